//! Page-Hinkley: how far the sum of deviations from the running mean has moved away from its extreme.
//!
//! Each value adds its deviation from the mean so far, less a tolerance `delta`, to two sums that slowly forget. While
//! the mean holds, the sums stay near their extremes; when it rises, the first leaves its minimum behind, and when it
//! falls, the second drops below its maximum.
//!
//! Page, "Continuous Inspection Schemes", Biometrika 41 (1954). Numbers follow River 0.26, whose maximum starts at -1
//! rather than at minus infinity: a stream whose first deviations all lie below -1 is judged against -1.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Alarm, Detector, DetectorConfig, DetectorError, Level, Verdict, from_bytes, to_bytes};
use crate::batch::EventTime;
use crate::kinds::Kind;
use crate::state::StateError;

/// A test for a jump of the mean of a number.
///
/// The defaults suppose values of about 1: give `standardize` for anything else.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PageHinkleyConfig {
    /// No alarm before so many values. Too few and the first mean is noise; too many hide an early change.
    pub min_instances: u64,
    /// Deviation per value that is tolerated, in the value's unit. Too small and slow wandering adds up to an alarm; too
    /// large and small changes are never seen.
    pub delta: f64,
    /// How far the sum may move before the alarm, in the value's unit. Smaller is faster and less sure.
    pub threshold: f64,
    /// What is kept of the sums at each value, above 0 and at most 1. 1 never forgets; 0.99 forgets within hundreds.
    pub alpha: f64,
    /// Which changes count.
    pub mode: Direction,
    /// Measures each value in standard deviations from a known mean, so that `delta` and `threshold` fit any column.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub standardize: Option<Standardize>,
}

impl Default for PageHinkleyConfig {
    fn default() -> Self {
        PageHinkleyConfig {
            min_instances: 30,
            delta: 0.005,
            threshold: 50.0,
            alpha: 0.9999,
            mode: Direction::Both,
            standardize: None,
        }
    }
}

impl Kind for PageHinkleyConfig {
    const EXAMPLE: &'static str = "{ threshold: 50, standardize: { mean: 12.6, std: 40.2 } }";
}

impl DetectorConfig for PageHinkleyConfig {
    fn build(&self) -> Result<Box<dyn Detector>, DetectorError> {
        Ok(Box::new(PageHinkley::new(self)?))
    }
}

/// Which changes count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// A rise of the mean.
    Up,
    /// A fall of the mean.
    Down,
    /// Both.
    #[default]
    Both,
}

/// Mean and standard deviation of the column when all was well, of the training set for instance.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Standardize {
    /// The mean.
    pub mean: f64,
    /// The standard deviation, above 0.
    pub std: f64,
}

/// The detector.
#[derive(Debug, Clone)]
pub struct PageHinkley {
    config: PageHinkleyConfig,
    sums: Sums,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Sums {
    count: u64,
    mean: f64,
    increase: f64,
    decrease: f64,
    increase_min: f64,
    decrease_max: f64,
    /// The last value raised an alarm: the next starts anew.
    alarmed: bool,
}

impl Default for Sums {
    fn default() -> Self {
        Sums {
            count: 0,
            mean: 0.0,
            increase: 0.0,
            decrease: 0.0,
            increase_min: f64::INFINITY,
            decrease_max: -1.0,
            alarmed: false,
        }
    }
}

impl Sums {
    /// How far the rising sum is above its minimum.
    fn rise(&self) -> f64 {
        self.increase - self.increase_min
    }
    /// How far the falling sum is below its maximum.
    fn fall(&self) -> f64 {
        self.decrease_max - self.decrease
    }
}

impl PageHinkley {
    /// A detector that has seen nothing.
    ///
    /// # Errors
    /// If an option is out of its range.
    pub fn new(config: &PageHinkleyConfig) -> Result<Self, DetectorError> {
        if !(config.alpha > 0.0 && config.alpha <= 1.0) {
            return Err(DetectorError::new("alpha", format!("{} is not above 0 and at most 1", config.alpha)));
        }
        if !(config.threshold > 0.0 && config.threshold.is_finite()) {
            return Err(DetectorError::new("threshold", format!("{} is not above 0", config.threshold)));
        }
        if !(config.delta >= 0.0 && config.delta.is_finite()) {
            return Err(DetectorError::new("delta", format!("{} is not 0 or more", config.delta)));
        }
        if let Some(Standardize { mean, std }) = config.standardize {
            if !(std > 0.0 && std.is_finite()) {
                return Err(DetectorError::new("standardize.std", format!("{std} is not above 0")));
            }
            if !mean.is_finite() {
                return Err(DetectorError::new("standardize.mean", format!("{mean} is not a finite number")));
            }
        }
        Ok(PageHinkley { config: config.clone(), sums: Sums::default() })
    }

    /// Takes in a finite value.
    fn add(&mut self, value: f64) {
        let PageHinkleyConfig { alpha, delta, .. } = self.config;
        let sums = &mut self.sums;
        sums.count += 1;
        // Multiplied by 1/n rather than divided by n: the last bits are River's.
        sums.mean += (1.0 / sums.count as f64) * (value - sums.mean);
        let deviation = value - sums.mean;
        sums.increase = alpha * sums.increase + deviation - delta;
        sums.decrease = alpha * sums.decrease + deviation + delta;
        sums.increase_min = sums.increase_min.min(sums.increase);
        sums.decrease_max = sums.decrease_max.max(sums.decrease);
    }

    /// The statistic that counts, with its direction.
    fn largest(&self) -> (f64, &'static str) {
        let (rise, fall) = (self.sums.rise(), self.sums.fall());
        match self.config.mode {
            Direction::Up => (rise, "up"),
            Direction::Down => (fall, "down"),
            Direction::Both if fall > rise => (fall, "down"),
            Direction::Both => (rise, "up"),
        }
    }
}

impl Detector for PageHinkley {
    fn observe(&mut self, value: Option<f64>, _event_time: EventTime) -> Verdict {
        let Some(value) = value.filter(|value| value.is_finite()) else { return Verdict::Skipped };
        if self.sums.alarmed {
            self.sums = Sums::default();
        }
        self.add(match self.config.standardize {
            Some(Standardize { mean, std }) => (value - mean) / std,
            None => value,
        });
        let (statistic, direction) = self.largest();
        if self.sums.count < self.config.min_instances || statistic <= self.config.threshold {
            return Verdict::Quiet;
        }
        self.sums.alarmed = true;
        let evidence = serde_json::json!({
            "direction": direction, "value": value, "count": self.sums.count, "mean": self.sums.mean,
        });
        Verdict::Alarm(Alarm {
            level: Level::Drift,
            statistic,
            threshold: self.config.threshold,
            evidence: evidence.to_string(),
        })
    }

    fn statistic(&self) -> Option<f64> {
        (self.sums.count > 0).then(|| self.largest().0)
    }

    fn window_samples(&self) -> u64 {
        self.sums.count
    }

    fn save(&self) -> Vec<u8> {
        to_bytes(&self.sums)
    }

    fn load(&mut self, bytes: &[u8]) -> Result<(), StateError> {
        self.sums = from_bytes(bytes)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{golden, stream};
    use super::*;

    #[test]
    fn equals_river() {
        let golden = golden("drift/PageHinkley.json");
        for case in golden["cases"].as_array().unwrap() {
            let config: PageHinkleyConfig = serde_json::from_value(case["params"].clone()).unwrap();
            let mut detector = PageHinkley::new(&config).unwrap();
            let mut checkpoints = case["checkpoints"].as_array().unwrap().iter().peekable();
            let mut found = Vec::new();
            for (i, value) in stream(case["stream"].as_str().unwrap()).into_iter().enumerate() {
                if i == 1234 {
                    let bytes = detector.save();
                    detector = PageHinkley::new(&config).unwrap();
                    detector.load(&bytes).unwrap();
                }
                if let Verdict::Alarm(_) = detector.observe(Some(value), 0) {
                    found.push(i as u64);
                }
                if let Some(point) = checkpoints.next_if(|point| point["i"] == i as u64) {
                    let sums = &detector.sums;
                    for (name, value) in [
                        ("n", sums.count as f64),
                        ("mean", sums.mean),
                        ("sum_increase", sums.increase),
                        ("sum_decrease", sums.decrease),
                        ("min_increase", sums.increase_min),
                        ("max_decrease", sums.decrease_max),
                    ] {
                        let expected = point[name].as_f64().unwrap();
                        assert_eq!(value.to_bits(), expected.to_bits(), "{name} at {i}: {value}, {point}");
                    }
                }
            }
            let expected: Vec<u64> = case["drift"].as_array().unwrap().iter().map(|i| i.as_u64().unwrap()).collect();
            assert_eq!(found, expected, "{} {}", case["stream"], case["params"]);
            assert!(checkpoints.next().is_none());
        }
    }

    #[test]
    fn standardized_values_need_no_other_threshold() {
        let mut plain = PageHinkley::new(&PageHinkleyConfig::default()).unwrap();
        let standardize = Some(Standardize { mean: 1e6, std: 1e3 });
        let mut scaled = PageHinkley::new(&PageHinkleyConfig { standardize, ..Default::default() }).unwrap();
        for value in stream("gauss_abrupt") {
            let value = (value * 1e3).round();
            let alarmed = |verdict| matches!(verdict, Verdict::Alarm(_));
            let expected = alarmed(plain.observe(Some(value / 1e3), 0));
            assert_eq!(alarmed(scaled.observe(Some(value + 1e6), 0)), expected);
        }
    }

    #[test]
    fn missing_values_leave_no_trace() {
        let mut detector = PageHinkley::new(&PageHinkleyConfig::default()).unwrap();
        detector.observe(Some(1.0), 0);
        let before = detector.save();
        for value in [None, Some(f64::NAN), Some(f64::NEG_INFINITY)] {
            assert_eq!(detector.observe(value, 0), Verdict::Skipped);
        }
        assert_eq!(detector.save(), before);
    }
}
