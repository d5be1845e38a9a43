//! Population stability index: a window of values against a frozen reference distribution.
//!
//! Values are counted in bins whose edges are frozen with the reference: quantiles of the reference, one bin more for
//! nulls and NaN. After each window of values, `PSI = sum (p - q) ln(p / q)` over the bins, where q is the reference's
//! share of a bin and p the window's; an empty bin counts as a share of 0.0001, as is customary.
//!
//! PSI is not 0 when nothing has changed. With B bins, n values in the reference and m in the window it is about
//! `(1/n + 1/m)` times a chi-squared variable with B - 1 degrees of freedom (Yurdakul, 2018). An alarm therefore carries
//! the value to expect without a change, and its 99 % point, beside the folklore's thresholds (0.1 some, 0.25 much).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Alarm, Detector, DetectorError, Level, Verdict, from_bytes, to_bytes};
use crate::batch::EventTime;
use crate::kinds::Kind;
use crate::state::StateError;

/// A test for a change of a column's distribution, window by window.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PsiConfig {
    /// Values in a window. Too few (below about 1,000) and the index is mostly noise; too many and a change is seen late.
    #[serde(default = "window")]
    pub window: u64,
    /// The distribution to compare with.
    #[serde(default)]
    pub reference: Reference,
    /// An index above this raises an alarm. Customary: 0.1 for some change, 0.25 for much.
    #[serde(default = "threshold")]
    pub threshold: f64,
}

fn window() -> u64 {
    2_000
}
fn threshold() -> f64 {
    0.25
}

/// The distribution to compare with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Reference {
    /// The first values of the stream, frozen when they are there.
    First(First),
    /// Counts that were made elsewhere, from the training set for instance.
    Histogram(Counts),
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
    /// Number of values. As many as a window or more.
    pub values: u64,
    /// Number of bins with equal shares of them; more see finer changes and need larger windows.
    pub bins: u32,
}

impl Default for First {
    fn default() -> Self {
        First { values: 5_000, bins: 10 }
    }
}

/// A reference given as counts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Counts {
    /// The inner edges, rising: a value equal to an edge belongs to the bin on its right.
    pub edges: Vec<f64>,
    /// Values in each bin, one number more than there are edges.
    pub counts: Vec<u64>,
    /// Nulls and NaN in the reference.
    #[serde(default)]
    pub missing: u64,
}

impl Kind for PsiConfig {
    const EXAMPLE: &'static str = "{ window: 2000, reference: { first: { values: 5000, bins: 10 } }, threshold: 0.25 }";
}

/// Share that an empty bin counts as.
const EMPTY: f64 = 1e-4;

/// The detector.
#[derive(Debug, Clone)]
pub struct Psi {
    config: PsiConfig,
    state: State,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct State {
    /// Values of a reference that is not frozen yet, and how many were missing.
    collecting: Vec<f64>,
    collected_missing: u64,
    /// The frozen reference.
    edges: Vec<f64>,
    /// Counts by bin, the last for missing values; empty before the reference is frozen.
    reference: Vec<u64>,
    /// Counts of the open window.
    window: Vec<u64>,
    /// The index of the newest whole window.
    psi: Option<f64>,
}

impl Psi {
    /// The detector, with nothing seen yet.
    ///
    /// # Errors
    /// If a number is out of its range, or the histogram is none.
    pub fn new(config: &PsiConfig) -> Result<Self, DetectorError> {
        if config.window == 0 {
            return Err(DetectorError::new("window", "a window of 0 values never ends; write 2000"));
        }
        if config.threshold.is_nan() || config.threshold <= 0.0 {
            return Err(DetectorError::new("threshold", "it must be above 0; 0.25 is customary"));
        }
        let mut state = State::default();
        match &config.reference {
            Reference::First(first) if first.bins < 2 => {
                return Err(DetectorError::new("reference.first.bins", "at least 2 bins are needed"));
            }
            Reference::First(first) if first.values < u64::from(first.bins) => {
                return Err(DetectorError::new("reference.first.values", "at least one value a bin is needed"));
            }
            Reference::First(_) => {}
            Reference::Histogram(counts) => {
                check(counts)?;
                let all = counts.counts.iter().copied().chain([counts.missing]).collect();
                state.freeze(counts.edges.clone(), all);
            }
        }
        Ok(Psi { config: config.clone(), state })
    }

    fn collect(&mut self, value: Option<f64>, first: First) {
        match value {
            Some(value) => self.state.collecting.push(value),
            None => self.state.collected_missing += 1,
        }
        let collected = self.state.collecting.len() as u64 + self.state.collected_missing;
        if collected < first.values {
            return;
        }
        let mut values = std::mem::take(&mut self.state.collecting);
        values.sort_by(f64::total_cmp);
        let quantile = |k: usize| values.get(k * values.len() / first.bins as usize).copied();
        let mut edges: Vec<f64> = (1..first.bins as usize).filter_map(quantile).collect();
        edges.dedup();
        let mut counts = vec![0; edges.len() + 2];
        values.iter().for_each(|value| counts[place(&edges, *value)] += 1);
        counts[edges.len() + 1] = self.state.collected_missing;
        self.state.freeze(edges, counts);
    }

    fn judge(&mut self) -> Verdict {
        let State { edges, reference, window, .. } = &self.state;
        let (n, m) = (reference.iter().sum::<u64>() as f64, window.iter().sum::<u64>() as f64);
        let share = |count: u64, total: f64| if count == 0 { EMPTY } else { count as f64 / total };
        let shares = reference.iter().zip(window).filter(|(q, p)| **q > 0 || **p > 0);
        let terms = shares.map(|(q, p)| (share(*q, n), share(*p, m)));
        let psi: f64 = terms.map(|(q, p)| (p - q) * (p / q).ln()).sum();
        let freedom = reference.iter().filter(|count| **count > 0).count().saturating_sub(1).max(1) as f64;
        let (expected, high) = (freedom * (1.0 / n + 1.0 / m), chi_squared_99(freedom) * (1.0 / n + 1.0 / m));
        let evidence = serde_json::json!({
            "edges": edges, "reference_counts": reference, "window_counts": window,
            "expected_without_change": expected, "p99_without_change": high,
        });
        self.state.psi = Some(psi);
        self.state.window = vec![0; self.state.reference.len()];
        if psi <= self.config.threshold {
            return Verdict::Quiet;
        }
        let threshold = self.config.threshold;
        Verdict::Alarm(Alarm { level: Level::Drift, statistic: psi, threshold, evidence: evidence.to_string() })
    }
}

impl State {
    fn freeze(&mut self, edges: Vec<f64>, counts: Vec<u64>) {
        self.window = vec![0; counts.len()];
        (self.edges, self.reference) = (edges, counts);
    }
}

fn check(counts: &Counts) -> Result<(), DetectorError> {
    let refuse =
        |option: &str, message: &str| Err(DetectorError::new(format!("reference.histogram.{option}"), message));
    if counts.edges.iter().any(|edge| !edge.is_finite()) || counts.edges.windows(2).any(|pair| pair[0] >= pair[1]) {
        return refuse("edges", "the edges must be finite and rise");
    }
    if counts.counts.len() != counts.edges.len() + 1 {
        return refuse("counts", "there must be one count more than there are edges");
    }
    if counts.counts.iter().sum::<u64>() == 0 {
        return refuse("counts", "a reference without values compares with nothing");
    }
    Ok(())
}

/// The bin of a value.
fn place(edges: &[f64], value: f64) -> usize {
    edges.partition_point(|edge| *edge <= value)
}

/// The 99 % point of a chi-squared variable (Wilson and Hilferty, 1931; within 1 % from 2 degrees of freedom on).
fn chi_squared_99(freedom: f64) -> f64 {
    const NORMAL_99: f64 = 2.326_347_874;
    let spread = 2.0 / (9.0 * freedom);
    freedom * (1.0 - spread + NORMAL_99 * spread.sqrt()).powi(3)
}

impl Detector for Psi {
    fn observe(&mut self, value: Option<f64>, _event_time: EventTime) -> Verdict {
        let value = value.filter(|value| !value.is_nan());
        if let (Reference::First(first), true) = (&self.config.reference, self.state.reference.is_empty()) {
            let first = *first;
            self.collect(value, first);
            return Verdict::Quiet;
        }
        let bin = value.map_or(self.state.reference.len() - 1, |value| place(&self.state.edges, value));
        self.state.window[bin] += 1;
        match self.window_samples() >= self.config.window {
            true => self.judge(),
            false => Verdict::Quiet,
        }
    }

    fn statistic(&self) -> Option<f64> {
        self.state.psi
    }

    fn window_samples(&self) -> u64 {
        self.state.window.iter().sum()
    }

    fn save(&self) -> Vec<u8> {
        to_bytes(&self.state)
    }

    fn load(&mut self, bytes: &[u8]) -> Result<(), StateError> {
        self.state = from_bytes(bytes)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::stream;
    use super::*;

    fn feed(psi: &mut Psi, values: impl IntoIterator<Item = f64>) -> Vec<Alarm> {
        let verdicts = values.into_iter().map(|value| psi.observe(Some(value), 0));
        verdicts.filter_map(|verdict| if let Verdict::Alarm(alarm) = verdict { Some(alarm) } else { None }).collect()
    }

    #[test]
    fn the_index_is_its_definition() {
        let counts = Counts { edges: vec![1.0, 2.0], counts: vec![50, 30, 20], missing: 0 };
        let config = PsiConfig { window: 10, reference: Reference::Histogram(counts), threshold: 0.1 };
        let mut psi = Psi::new(&config).expect("it is right");
        let alarms = feed(&mut psi, [0.0, 0.5, 1.0, 1.5, 1.9, 2.0, 2.5, 3.0, 9.0, 2.2]);
        let expected: f64 = [(0.2, 0.5f64), (0.3, 0.3), (0.5, 0.2)].iter().map(|(p, q)| (p - q) * (p / q).ln()).sum();
        assert_eq!(alarms.len(), 1);
        assert!((alarms[0].statistic - expected).abs() < 1e-12);
        assert!((psi.statistic().expect("one window was judged") - expected).abs() < 1e-12);
    }

    #[test]
    fn a_jump_is_seen_and_a_stationary_stream_is_left_alone() {
        let config =
            PsiConfig { window: 500, reference: Reference::First(First { values: 1_000, bins: 10 }), threshold: 0.25 };
        let mut psi = Psi::new(&config).expect("it is right");
        assert_eq!(feed(&mut psi, stream("gauss_stationary")).len(), 0);
        let mut psi = Psi::new(&config).expect("it is right");
        assert!(!feed(&mut psi, stream("gauss_abrupt")).is_empty());
    }

    #[test]
    fn it_goes_on_from_its_state() {
        let config =
            PsiConfig { window: 300, reference: Reference::First(First { values: 700, bins: 5 }), threshold: 0.02 };
        let (mut whole, mut first) = (Psi::new(&config).expect("right"), Psi::new(&config).expect("right"));
        let values = stream("gauss_abrupt");
        let expected = feed(&mut whole, values.iter().copied());
        let (before, after) = values.split_at(1_234);
        let mut alarms = feed(&mut first, before.iter().copied());
        let mut second = Psi::new(&config).expect("right");
        second.load(&first.save()).expect("its own state");
        alarms.extend(feed(&mut second, after.iter().copied()));
        assert_eq!(alarms, expected);
    }

    #[test]
    fn nulls_have_a_bin_of_their_own() {
        let counts = Counts { edges: vec![0.0], counts: vec![500, 500], missing: 0 };
        let config = PsiConfig { window: 100, reference: Reference::Histogram(counts), threshold: 0.25 };
        let mut psi = Psi::new(&config).expect("it is right");
        let values = (0..100).map(|i| if i % 2 == 0 { None } else { Some(f64::from(i % 4) - 2.0) });
        assert!(values.map(|value| psi.observe(value, 0)).any(|verdict| matches!(verdict, Verdict::Alarm(_))));
    }
}
