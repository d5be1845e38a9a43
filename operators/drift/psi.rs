//! PSI, the population stability index: windows of values against a frozen reference distribution.
//!
//! Both are histograms over the same bins, which are frozen with the reference, so that the figures of different windows
//! can be compared. Nulls and NaN have a bin of their own: a column that goes missing is the commonest drift of all.
//!
//! ```text
//! edges          e0      e1      e2                value x lies in bin (number of edges <= x)
//! bins      b0   |  b1   |  b2   |  b3   missing
//!
//! PSI = sum over bins of (p - q) ln(p / q),        p, q: the shares of window and reference
//! ```
//!
//! PSI is not 0 when nothing has changed. With B bins, n values in the reference and m in the window it is about
//! `(1/n + 1/m)` times a chi-squared variable with B - 1 degrees of freedom (Yurdakul, 2018). So a signal carries the value
//! to expect without a change and its 99 % point, and an index above the threshold but within that noise is a warning
//! only. A window signals when it is worse than the one before (nothing, warning, drift): a change that lasts is one
//! signal, not one a window.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Alarm, Detector, DetectorConfig, DetectorError, Level, Verdict, from_bytes, to_bytes};
use crate::batch::EventTime;
use crate::kinds::Kind;
use crate::state::StateError;
use crate::units::Millis;
use histogram::{Comparison, compare};

mod histogram;
#[cfg(test)]
mod tests;

pub use histogram::Counts;

/// A test for a change of a column's distribution, window by window.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PsiConfig {
    /// What is compared with the reference, again and again: windows that follow each other without a gap.
    /// `{ rows: 2000 }` (the default): so many values; too few (below about 1,000) and the index is mostly noise, too many
    /// and a change is seen late. `{ time: { length: 1d, count_min: 500 } }`: so much event time; a day or a week evens out
    /// what hours and weekdays do, shorter ones see them as drift. A window of time with fewer than `count_min` values is
    /// not judged: too small and a quiet night is judged by noise, too large and quiet streams are never judged.
    pub window: Window,
    /// The distribution to compare with. `{ first: { values: 5000, bins: 10 } }` (the default): the first values of the
    /// stream, at most 1,000,000, in 2 to 1,000 bins of equal shares; too few values and the reference is noise, too many
    /// and the drift may be in it; more bins see finer changes and need larger windows.
    /// `{ histogram: { edges: [10, 50], counts: [700, 250, 50], missing: 0 } }`: counts made elsewhere, from the training
    /// set for instance; a value equal to an edge belongs to the bin on its right. `{ file: PATH }`: the same in a JSON
    /// file, relative to the topology's folder.
    pub reference: Reference,
    /// An index above this is drift, unless noise alone exceeds it in one window of a hundred: then it is a warning.
    /// Customary: 0.1 for some change, 0.25 for much. Too small and every season is drift; too large and only a landslide
    /// is.
    pub threshold: f64,
    /// An index above this is a warning; at most `threshold`. Without it there are no warnings below the threshold. Too
    /// small and weekdays are warned of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warning: Option<f64>,
    /// The least share a bin is taken to have, above 0 and below 0.1, so that an empty bin does not make the index
    /// infinite. Smaller makes a value in a bin that was empty count more; above the share of real bins it hides changes.
    pub floor: f64,
}

impl Default for PsiConfig {
    fn default() -> Self {
        let (window, reference) = (Window::default(), Reference::default());
        PsiConfig { window, reference, threshold: 0.25, warning: None, floor: 1e-4 }
    }
}

/// What is compared with the reference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Window {
    /// So many values. Too few (below about 1,000) and the index is mostly noise; too many and a change is seen late.
    Rows(u64),
    /// A length of event time.
    Time(TimeWindow),
}

impl Default for Window {
    fn default() -> Self {
        Window::Rows(2_000)
    }
}

/// A window of event time, cut at multiples of its length since 1970. The first value after its end has it judged; a
/// value that comes late counts in the window that is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TimeWindow {
    /// Its length. A day or a week evens out what hours and weekdays do; shorter ones see them as drift.
    pub length: Millis,
    /// A window with fewer values is not judged. Too small and a quiet night is judged by noise; too large and quiet
    /// streams are never judged.
    #[serde(default = "count_min")]
    pub count_min: u64,
}

fn count_min() -> u64 {
    500
}

/// The distribution to compare with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Reference {
    /// The first values of the stream, frozen when they are there.
    First(First),
    /// Counts that were made elsewhere, from the training set for instance.
    Histogram(Counts),
    /// The same in a JSON file with `edges`, `counts` and `missing`; relative to the topology's folder. Its contents belong
    /// to the definition: another file is another detector.
    File(String),
}

impl Default for Reference {
    fn default() -> Self {
        Reference::First(First::default())
    }
}

/// A reference made of the first values.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct First {
    /// Number of values, nulls included; at most 1,000,000, which are kept until they are all there. As many as a window or
    /// more: too few and the reference is noise, too many and the drift may be in it.
    pub values: u64,
    /// Number of bins with equal shares of them (fewer where values repeat), 2 to 1,000. More see finer changes and need
    /// larger windows.
    pub bins: u32,
}

impl Default for First {
    fn default() -> Self {
        First { values: 5_000, bins: 10 }
    }
}

const VALUES_MAX: u64 = 1_000_000;
const BINS_MAX: u32 = 1_000;
const FLOOR_MAX: f64 = 0.1;

impl Kind for PsiConfig {
    const EXAMPLE: &'static str =
        "{ window: { rows: 2000 }, reference: { first: { values: 5000, bins: 10 } }, threshold: 0.25, warning: 0.1 }";
}

impl DetectorConfig for PsiConfig {
    fn build(&self) -> Result<Box<dyn Detector>, DetectorError> {
        Ok(Box::new(Psi::new(self)?))
    }
}

impl PsiConfig {
    /// The file the reference stands in, if it stands in one.
    pub fn reference_file(&self) -> Option<&str> {
        match &self.reference {
            Reference::File(path) => Some(path),
            Reference::First(_) | Reference::Histogram(_) => None,
        }
    }

    /// The same with the reference from the text of its file.
    ///
    /// # Errors
    /// If the text is no histogram in JSON.
    pub fn with_reference(&self, text: &str) -> Result<Self, DetectorError> {
        let counts: Counts = serde_json::from_str(text).map_err(|error| {
            let like = r#"{"edges": [0.1, 0.9], "counts": [10, 80, 10], "missing": 0}"#;
            DetectorError::new("reference.file", format!("it does not hold a histogram like {like}: {error}"))
        })?;
        let refuse = |error: DetectorError| {
            let DetectorError { option, message } = error;
            DetectorError::new("reference.file", format!("its `{}`: {message}", option.trim_start_matches('.')))
        };
        counts.check("").map_err(refuse)?;
        Ok(PsiConfig { reference: Reference::Histogram(counts), ..self.clone() })
    }

    fn check(&self) -> Result<(), DetectorError> {
        let refuse = |option: &str, message: String| Err(DetectorError::new(option, message));
        match &self.reference {
            Reference::Histogram(counts) => counts.check("reference.histogram")?,
            Reference::File(path) => return refuse("reference.file", format!("`{path}` has not been read")),
            Reference::First(First { bins, .. }) if !(2..=BINS_MAX).contains(bins) => {
                return refuse("reference.first.bins", format!("{bins} is not between 2 and {BINS_MAX}"));
            }
            Reference::First(First { values, bins }) if !(u64::from(*bins)..=VALUES_MAX).contains(values) => {
                let message = format!("{values} is not between the number of bins, {bins}, and {VALUES_MAX}");
                return refuse("reference.first.values", message);
            }
            Reference::First(_) => {}
        }
        match self.window {
            Window::Rows(0) => return refuse("window.rows", "a window of 0 values never ends; write 2000".into()),
            Window::Time(TimeWindow { length, .. }) if length.0 <= 0 => {
                return refuse("window.time.length", "a window of no time never ends; write 1d".into());
            }
            _ => {}
        }
        if !(self.threshold > 0.0 && self.threshold.is_finite()) {
            let message = format!("{} is not a number above 0; 0.25 is customary", self.threshold);
            return refuse("threshold", message);
        }
        if let Some(warning) = self.warning.filter(|warning| !(*warning > 0.0 && *warning <= self.threshold)) {
            return refuse("warning", format!("{warning} is not above 0 and at most `threshold`, {}", self.threshold));
        }
        if !(self.floor > 0.0 && self.floor < FLOOR_MAX) {
            return refuse("floor", format!("{} is not above 0 and below {FLOOR_MAX}", self.floor));
        }
        Ok(())
    }
}

/// The detector.
#[derive(Debug, Clone)]
pub struct Psi {
    config: PsiConfig,
    state: State,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct State {
    reference: Frozen,
    window: Counts,
    /// Event times of the open window: where it begins, and its newest value.
    from: Option<EventTime>,
    to: EventTime,
    /// The index of the newest window that was judged, and what it said.
    last: Option<(f64, Option<Level>)>,
}

/// The reference, or what is there of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
enum Frozen {
    Collecting { values: Vec<f64>, missing: u64 },
    Done(Counts),
}

impl Psi {
    /// The detector, with nothing seen yet.
    ///
    /// # Errors
    /// If an option is out of its range, or the reference stands in a file that has not been read
    /// ([`PsiConfig::with_reference`]).
    pub fn new(config: &PsiConfig) -> Result<Self, DetectorError> {
        config.check()?;
        let (reference, edges) = match &config.reference {
            Reference::Histogram(counts) => (Frozen::Done(counts.clone()), counts.edges.clone()),
            _ => (Frozen::Collecting { values: Vec::new(), missing: 0 }, Vec::new()),
        };
        let state = State { reference, window: Counts::empty(edges), from: None, to: EventTime::MIN, last: None };
        Ok(Psi { config: config.clone(), state })
    }

    /// Takes a value for the reference, and freezes it when it is complete. False when it was complete before.
    fn collect(&mut self, value: Option<f64>) -> bool {
        let (Frozen::Collecting { values, missing }, Reference::First(first)) =
            (&mut self.state.reference, &self.config.reference)
        else {
            return false;
        };
        match value.filter(|value| !value.is_nan()) {
            Some(value) => values.push(value),
            None => *missing += 1,
        }
        if values.len() as u64 + *missing >= first.values {
            let reference = Counts::of_quantiles(values, *missing, first.bins);
            self.state.window = Counts::empty(reference.edges.clone());
            self.state.reference = Frozen::Done(reference);
        }
        true
    }

    /// Ends the open window: compares it if it holds `count_min` values, and empties it.
    fn judge(&mut self, count_min: u64) -> Verdict {
        let Frozen::Done(reference) = &self.state.reference else { return Verdict::Quiet };
        let mut verdict = Verdict::Quiet;
        if self.state.window.total() >= count_min.max(1) {
            let comparison = compare(reference, &self.state.window, self.config.floor);
            let level = self.level(comparison);
            let before = self.state.last.and_then(|(_, level)| level);
            if let Some(level) = level.filter(|_| rank(level) > rank(before)) {
                verdict = Verdict::Alarm(self.alarm(reference, comparison, level));
            }
            self.state.last = Some((comparison.psi, level));
        }
        self.state.window.clear();
        self.state.from = None;
        verdict
    }

    fn level(&self, Comparison { psi, noise_99, .. }: Comparison) -> Option<Level> {
        let (above, real) = (psi > self.config.threshold, psi > noise_99);
        let warned = self.config.warning.is_some_and(|warning| psi > warning);
        match (above, real) {
            (true, true) => Some(Level::Drift),
            (true, false) => Some(Level::Warning),
            (false, true) if warned => Some(Level::Warning),
            (false, _) => None,
        }
    }

    fn alarm(&self, reference: &Counts, comparison: Comparison, level: Level) -> Alarm {
        let State { window, from, to, .. } = &self.state;
        let evidence = serde_json::json!({
            "edges": reference.edges,
            "reference": {
                "id": reference.id(), "count": reference.total(),
                "counts": reference.counts, "missing": reference.missing,
            },
            "window": {
                "from": from, "to": to, "count": window.total(),
                "counts": window.counts, "missing": window.missing,
            },
            "expected_without_change": comparison.expected,
            "p99_without_change": comparison.noise_99,
        });
        let threshold = match (level, self.config.warning) {
            (Level::Warning, Some(warning)) if comparison.psi <= self.config.threshold => warning,
            _ => self.config.threshold,
        };
        Alarm { level, statistic: comparison.psi, threshold, evidence: evidence.to_string() }
    }

    fn add(&mut self, value: Option<f64>, event_time: EventTime) {
        let newest = if self.state.window.total() == 0 { event_time } else { self.state.to.max(event_time) };
        self.state.window.add(value);
        self.state.to = newest;
    }
}

/// Nothing, warning, drift.
fn rank(level: Option<Level>) -> u8 {
    match level {
        None => 0,
        Some(Level::Warning) => 1,
        Some(Level::Drift) => 2,
    }
}

impl Detector for Psi {
    fn observe(&mut self, value: Option<f64>, event_time: EventTime) -> Verdict {
        if self.collect(value) {
            return Verdict::Quiet;
        }
        match self.config.window {
            Window::Rows(rows) => {
                self.state.from.get_or_insert(event_time);
                self.add(value, event_time);
                if self.state.window.total() < rows { Verdict::Quiet } else { self.judge(1) }
            }
            Window::Time(TimeWindow { length, count_min }) => {
                let start = event_time - event_time.rem_euclid(length.0);
                let ended = self.state.from.is_some_and(|from| from < start);
                let verdict = if ended { self.judge(count_min) } else { Verdict::Quiet };
                self.state.from.get_or_insert(start);
                self.add(value, event_time);
                verdict
            }
        }
    }

    /// The index of the newest window that was judged.
    fn statistic(&self) -> Option<f64> {
        self.state.last.map(|(psi, _)| psi)
    }

    fn window_samples(&self) -> u64 {
        self.state.window.total()
    }

    fn save(&self) -> Vec<u8> {
        to_bytes(&self.state)
    }

    fn load(&mut self, bytes: &[u8]) -> Result<(), StateError> {
        let state: State = from_bytes(bytes)?;
        let whole = match &state.reference {
            Frozen::Done(reference) => reference.check("").is_ok() && reference.edges == state.window.edges,
            Frozen::Collecting { values, .. } => values.len() as u64 <= VALUES_MAX,
        };
        if !whole || !state.window.fits() {
            return Err(StateError::Corrupt { key_group: 0, detail: "counts and edges do not go together".into() });
        }
        self.state = state;
        Ok(())
    }
}
