//! ADWIN: a window of adaptive length that is cut when two of its parts have different means.
//!
//! The window is kept as an exponential histogram: row i holds up to `max_buckets` buckets of 2^i values each, newest
//! first, every bucket with its sum and sum of squared deviations. Every `clock` values the detector tries all borders
//! between buckets, oldest first, and drops the oldest bucket for as long as some border parts the window into means
//! that differ by more than Hoeffding-like noise allows.
//!
//! ```text
//! oldest                                newest
//! [ 8 ] [ 4 ] [ 4 ] | [ 2 ] [ 2 ] [ 1 ] [ 1 ]
//!       mean of W0  ^  mean of W1            |mean0 - mean1| > epsilon: drop the oldest, try again
//! ```
//!
//! Bifet and Gavaldà, "Learning from Time-Changing Data with Adaptive Windowing", SDM 2007. Numbers follow River 0.26.

use std::collections::VecDeque;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Alarm, Detector, DetectorConfig, DetectorError, Level, Verdict, from_bytes, to_bytes};
use crate::batch::EventTime;
use crate::kinds::Kind;
use crate::state::StateError;

/// A window of adaptive length over a number, cut when its mean changes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AdwinConfig {
    /// Probability of a false alarm at one test, between 0 and 1. Larger finds smaller changes sooner and raises more
    /// false alarms; too small finds nothing but landslides.
    pub delta: f64,
    /// A test every so many values. 1 finds a change at once and costs the most; large delays the alarm by as much.
    pub clock: u32,
    /// Buckets of one size before two are merged. More gives finer borders to cut at and costs memory and time.
    pub max_buckets: u32,
    /// Fewest values on either side of a cut. Too small and a few odd values look like a change; too large delays.
    pub min_window_length: u32,
    /// No test before the window holds more values than this.
    pub grace_period: u32,
    /// What happens to the window after an alarm.
    pub compat: AdwinCompat,
}

impl Default for AdwinConfig {
    fn default() -> Self {
        AdwinConfig {
            delta: 0.002,
            clock: 32,
            max_buckets: 5,
            min_window_length: 5,
            grace_period: 10,
            compat: AdwinCompat::River,
        }
    }
}

impl Kind for AdwinConfig {
    const EXAMPLE: &'static str = "{ delta: 0.002, clock: 32 }";
}

impl DetectorConfig for AdwinConfig {
    fn build(&self) -> Result<Box<dyn Detector>, DetectorError> {
        Ok(Box::new(Adwin::new(self)?))
    }
}

/// What happens to the window after an alarm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AdwinCompat {
    /// As River does: the next value starts an empty window, so one change gives one alarm, but what was learnt about
    /// the new level is thrown away.
    #[default]
    River,
    /// As the paper does: the window keeps its recent part. A large change may give several alarms in a row while the
    /// old part is dropped.
    Canonical,
}

/// The detector.
#[derive(Debug, Clone)]
pub struct Adwin {
    config: AdwinConfig,
    window: Window,
    /// The last value raised an alarm; in River's way the window is thrown away at the next.
    alarmed: bool,
}

/// The exponential histogram. `rows[i]` holds buckets of 2^i values, oldest first.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
struct Window {
    rows: Vec<VecDeque<Bucket>>,
    width: f64,
    total: f64,
    /// Sum of squared deviations from the mean (what River calls `variance`).
    deviations: f64,
    ticks: u64,
    detections: u64,
}

/// Sum and sum of squared deviations of a bucket's values.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Bucket {
    total: f64,
    deviations: f64,
}

/// The first cut of a test that found a change.
struct Cut {
    old_count: f64,
    old_mean: f64,
    new_count: f64,
    new_mean: f64,
    epsilon: f64,
}

impl Adwin {
    /// A detector with an empty window.
    ///
    /// # Errors
    /// If an option is out of its range.
    pub fn new(config: &AdwinConfig) -> Result<Self, DetectorError> {
        if !(config.delta > 0.0 && config.delta < 1.0) {
            return Err(DetectorError::new("delta", format!("{} is not between 0 and 1", config.delta)));
        }
        let options = [
            ("clock", config.clock),
            ("max_buckets", config.max_buckets),
            ("min_window_length", config.min_window_length),
        ];
        if let Some((option, _)) = options.iter().find(|(_, value)| *value == 0) {
            return Err(DetectorError::new(*option, "must be at least 1"));
        }
        Ok(Adwin { config: config.clone(), window: Window::default(), alarmed: false })
    }
}

impl Detector for Adwin {
    fn observe(&mut self, value: Option<f64>, _event_time: EventTime) -> Verdict {
        let Some(value) = value.filter(|value| value.is_finite()) else { return Verdict::Skipped };
        if self.alarmed && self.config.compat == AdwinCompat::River {
            self.window = Window::default();
        }
        self.window.insert(value, self.config.max_buckets as usize);
        let cut = self.window.cut(&self.config);
        self.alarmed = cut.is_some();
        let Some(cut) = cut else { return Verdict::Quiet };
        let evidence = serde_json::json!({
            "old": { "count": cut.old_count, "mean": cut.old_mean },
            "new": { "count": cut.new_count, "mean": cut.new_mean },
            "kept": self.window.width,
        });
        Verdict::Alarm(Alarm {
            level: Level::Drift,
            statistic: (cut.old_mean - cut.new_mean).abs(),
            threshold: cut.epsilon,
            evidence: evidence.to_string(),
        })
    }

    /// The mean of the window.
    fn statistic(&self) -> Option<f64> {
        (self.window.width > 0.0).then(|| self.window.total / self.window.width)
    }

    fn window_samples(&self) -> u64 {
        self.window.width as u64
    }

    fn save(&self) -> Vec<u8> {
        to_bytes(&(&self.window, self.alarmed))
    }

    fn load(&mut self, bytes: &[u8]) -> Result<(), StateError> {
        (self.window, self.alarmed) = from_bytes(bytes)?;
        Ok(())
    }
}

/// Values in a bucket of row `row`.
fn bucket_size(row: usize) -> f64 {
    (1u64 << row) as f64
}

impl Window {
    /// Adds a value as a bucket of its own and merges where a row has one bucket too many.
    fn insert(&mut self, value: f64, max_buckets: usize) {
        if self.rows.is_empty() {
            self.rows.push(VecDeque::new());
        }
        self.rows[0].push_back(Bucket { total: value, deviations: 0.0 });
        self.width += 1.0;
        if self.width > 1.0 {
            let others = self.width - 1.0;
            let distance = value - self.total / others;
            self.deviations += others * distance * distance / self.width;
        }
        self.total += value;
        self.compress(max_buckets);
    }

    /// Merges the two oldest buckets of every row that is over-full into one of the next row.
    fn compress(&mut self, max_buckets: usize) {
        let mut row = 0;
        while row < self.rows.len() && self.rows[row].len() > max_buckets {
            let size = bucket_size(row);
            let older = self.rows[row].pop_front().expect("an over-full row has two buckets");
            let newer = self.rows[row].pop_front().expect("an over-full row has two buckets");
            let distance = older.total / size - newer.total / size;
            let between = size * size * distance * distance / (size + size);
            if row + 1 == self.rows.len() {
                self.rows.push(VecDeque::new());
            }
            self.rows[row + 1].push_back(Bucket {
                total: older.total + newer.total,
                deviations: older.deviations + newer.deviations + between,
            });
            row += 1;
        }
    }

    /// Drops the oldest bucket.
    fn drop_oldest(&mut self) {
        let Some(row) = self.rows.len().checked_sub(1) else { return };
        let Some(bucket) = self.rows[row].pop_front() else { return };
        let size = bucket_size(row);
        self.width -= size;
        self.total -= bucket.total;
        let distance = bucket.total / size - self.total / self.width;
        self.deviations -= bucket.deviations + size * self.width * distance * distance / (size + self.width);
        if self.rows[row].is_empty() {
            self.rows.pop();
        }
    }

    /// On every `clock`-th value: drops old buckets while some border separates different means. The first cut, if any.
    fn cut(&mut self, config: &AdwinConfig) -> Option<Cut> {
        self.ticks += 1;
        if !self.ticks.is_multiple_of(u64::from(config.clock)) || self.width <= f64::from(config.grace_period) {
            return None;
        }
        let mut first = None;
        while let Some(cut) = self.find_cut(config) {
            first.get_or_insert(cut);
            self.drop_oldest();
        }
        if first.is_some() {
            self.detections += 1;
        }
        first
    }

    /// The oldest border that separates different means.
    fn find_cut(&self, config: &AdwinConfig) -> Option<Cut> {
        let (mut old_count, mut new_count) = (0.0, self.width);
        let (mut old_total, mut new_total) = (0.0, self.total);
        let min = f64::from(config.min_window_length);
        for (row, buckets) in self.rows.iter().enumerate().rev() {
            let size = bucket_size(row);
            for bucket in buckets {
                old_count += size;
                new_count -= size;
                old_total += bucket.total;
                new_total -= bucket.total;
                if old_count < min || new_count < min {
                    continue;
                }
                let (old_mean, new_mean) = (old_total / old_count, new_total / new_count);
                let epsilon = self.epsilon(old_count, new_count, config);
                if (old_mean - new_mean).abs() > epsilon {
                    return Some(Cut { old_count, old_mean, new_count, new_mean, epsilon });
                }
            }
        }
        None
    }

    /// The largest difference of means that is still noise.
    fn epsilon(&self, old_count: f64, new_count: f64, config: &AdwinConfig) -> f64 {
        let min = f64::from(config.min_window_length);
        let delta_prime = (2.0 * self.width.ln() / config.delta).ln();
        let m_recip = 1.0 / (old_count - min + 1.0) + 1.0 / (new_count - min + 1.0);
        let variance = self.deviations / self.width;
        (2.0 * m_recip * variance * delta_prime).sqrt() + 2.0 / 3.0 * delta_prime * m_recip
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{golden, stream};
    use super::*;

    /// Runs every case of a golden file; `compat` says which behaviour it holds.
    fn check(file: &str, compat: AdwinCompat) {
        let golden = golden(file);
        for case in golden["cases"].as_array().unwrap() {
            let mut config: AdwinConfig = serde_json::from_value(case["params"].clone()).unwrap();
            config.compat = compat;
            let mut detector = Adwin::new(&config).unwrap();
            let mut checkpoints = case["checkpoints"].as_array().unwrap().iter().peekable();
            let mut found = Vec::new();
            for (i, value) in stream(case["stream"].as_str().unwrap()).into_iter().enumerate() {
                if i == 1234 {
                    let bytes = detector.save();
                    detector = Adwin::new(&config).unwrap();
                    detector.load(&bytes).unwrap();
                }
                if let Verdict::Alarm(_) = detector.observe(Some(value), 0) {
                    found.push(i as u64);
                }
                if let Some(point) = checkpoints.next_if(|point| point["i"] == i as u64) {
                    let window = &detector.window;
                    for (name, value) in [
                        ("width", window.width),
                        ("total", window.total),
                        ("variance", window.deviations),
                        ("estimation", detector.statistic().unwrap_or_default()),
                        ("n_detections", window.detections as f64),
                    ] {
                        if let Some(expected) = point.get(name).and_then(|n| n.as_f64()) {
                            assert_eq!(value.to_bits(), expected.to_bits(), "{name} at {i}: {value}, {case}");
                        }
                    }
                }
            }
            let expected: Vec<u64> = case["drift"].as_array().unwrap().iter().map(|i| i.as_u64().unwrap()).collect();
            assert_eq!(found, expected, "{} {}", case["stream"], case["params"]);
            assert!(checkpoints.next().is_none());
        }
    }

    #[test]
    fn equals_river() {
        check("drift/ADWIN.json", AdwinCompat::River);
    }

    #[test]
    fn equals_rivers_kernel_without_its_reset() {
        check("drift/ADWIN_canonical_no_reset.json", AdwinCompat::Canonical);
    }

    #[test]
    fn an_alarm_says_what_changed() {
        let mut detector = Adwin::new(&AdwinConfig::default()).unwrap();
        let alarm = (0..2000).find_map(|i| {
            match detector.observe(Some(if i < 1000 { 0.0 } else { 1.0 } + f64::from(i % 2) * 0.1), 0) {
                Verdict::Alarm(alarm) => Some(alarm),
                _ => None,
            }
        });
        let alarm = alarm.expect("the mean jumps by ten times its noise");
        assert!(alarm.statistic > alarm.threshold);
        let evidence: serde_json::Value = serde_json::from_str(&alarm.evidence).unwrap();
        assert!(evidence["old"]["mean"].as_f64().unwrap() < evidence["new"]["mean"].as_f64().unwrap());
    }

    #[test]
    fn missing_values_leave_no_trace() {
        let mut detector = Adwin::new(&AdwinConfig::default()).unwrap();
        detector.observe(Some(1.0), 0);
        let before = detector.save();
        for value in [None, Some(f64::NAN), Some(f64::INFINITY)] {
            assert_eq!(detector.observe(value, 0), Verdict::Skipped);
        }
        assert_eq!(detector.save(), before);
    }

    #[test]
    fn refuses_options_out_of_range() {
        for (options, at) in
            [(r#"{"delta": 0}"#, "delta"), (r#"{"delta": 1.5}"#, "delta"), (r#"{"clock": 0}"#, "clock")]
        {
            let config = serde_json::from_str(options).unwrap();
            assert_eq!(Adwin::new(&config).unwrap_err().option, at);
        }
    }
}
