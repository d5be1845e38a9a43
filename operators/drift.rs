//! Drift detectors: the values of one column in, signals out. One kind a detector.
//!
//! A detector remembers what the column looked like and says when it no longer does:
//!
//! ```text
//! values, in event-time order ── observe ──▶ skipped | quiet | alarm ──▶ Signal ──▶ sink, metrics
//!                                              (null, NaN)      (level, statistic, threshold, evidence)
//! ```
//!
//! [`adwin`] and [`page_hinkley`] watch every value and look for a change of the mean; [`psi`] compares whole windows
//! with a frozen reference distribution. The first two follow River 0.26 to the index and the bit; what River does
//! differently from the papers is said beside the option that chooses.

use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Builder, Int64Builder, RecordBatch, StringBuilder};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};

use crate::batch::{Batch, EventTime, Row};
use crate::kinds;
use crate::state::StateError;

pub mod adwin;
pub mod page_hinkley;
pub mod psi;

kinds! {
    /// How drift is detected.
    pub enum DetectorKind("detector"): DetectorConfig {
        "adwin" => Adwin(adwin::AdwinConfig),
        "page_hinkley" => PageHinkley(page_hinkley::PageHinkleyConfig),
        "psi" => Psi(psi::PsiConfig),
    }
}

/// The settings of a detector.
pub trait DetectorConfig {
    /// The detector, with nothing seen yet.
    ///
    /// # Errors
    /// What is wrong with the configuration, and where.
    fn build(&self) -> Result<Box<dyn Detector>, DetectorError>;
}

/// A detector that cannot be made as configured.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{option}: {message}")]
pub struct DetectorError {
    /// The option at fault, as a path below the detector: `reference.histogram.edges`.
    pub option: String,
    /// What is wrong with it and what to write instead.
    pub message: String,
}

impl DetectorError {
    /// An error of `option`.
    pub fn new(option: impl Into<String>, message: impl Into<String>) -> Self {
        DetectorError { option: option.into(), message: message.into() }
    }
}

/// Watches one column. Equal values in equal order give equal verdicts, whatever lies between two calls (a save, a load).
pub trait Detector: Send + Sync {
    /// Takes the next value of the column. `None` is a null; NaN counts as one.
    fn observe(&mut self, value: Option<f64>, event_time: EventTime) -> Verdict;

    /// The statistic as it stands, for a dashboard; `None` while there is nothing to say.
    fn statistic(&self) -> Option<f64>;

    /// Number of values in the window that the detector looks at.
    fn window_samples(&self) -> u64;

    /// Everything the detector remembers.
    fn save(&self) -> Vec<u8>;

    /// Takes back what [`save`](Detector::save) gave to a detector of the same configuration.
    ///
    /// # Errors
    /// If the bytes do not decode.
    fn load(&mut self, bytes: &[u8]) -> Result<(), StateError>;
}

/// What a detector says about one value.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// The value was not used: null, NaN, or infinite where the detector cannot take it. To be counted.
    Skipped,
    /// No change.
    Quiet,
    /// A change.
    Alarm(Alarm),
}

/// How sure a detector is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Something moves, but it may be noise.
    Warning,
    /// The column has changed.
    Drift,
}

impl Level {
    /// The text in a signal.
    pub fn as_str(self) -> &'static str {
        match self {
            Level::Warning => "warning",
            Level::Drift => "drift",
        }
    }
}

/// A change, as the detector saw it.
#[derive(Debug, Clone, PartialEq)]
pub struct Alarm {
    /// How sure the detector is.
    pub level: Level,
    /// The detector's statistic when it fired.
    pub statistic: f64,
    /// What the statistic was compared with.
    pub threshold: f64,
    /// The numbers behind the decision, as a JSON object: counts, means, edges ...
    pub evidence: String,
}

/// An alarm with the detector it comes from and the row that raised it.
#[derive(Debug, Clone, PartialEq)]
pub struct Signal {
    /// Name of the detector in the topology.
    pub detector: Arc<str>,
    /// Its kind: `adwin`, `page_hinkley` or `psi`.
    pub kind: &'static str,
    /// The stream it watches.
    pub stream: Arc<str>,
    /// The column it watches.
    pub column: Arc<str>,
    /// The rows it watches: the condition in the topology, or `all`.
    pub slice: Arc<str>,
    /// The row whose value raised the alarm.
    pub row: Row,
    /// The alarm.
    pub alarm: Alarm,
}

/// The columns of a batch of signals: `detector`, `kind`, `stream`, `column`, `slice`, `level` (text), `statistic`,
/// `threshold` (float64), `event_time` (timestamp of the row that raised it), `evidence` (JSON text).
pub fn signal_schema() -> SchemaRef {
    let text = |name: &str| Field::new(name, DataType::Utf8, false);
    Arc::new(Schema::new(vec![
        text("detector"),
        text("kind"),
        text("stream"),
        text("column"),
        text("slice"),
        text("level"),
        Field::new("statistic", DataType::Float64, false),
        Field::new("threshold", DataType::Float64, false),
        Field::new("event_time", DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into())), false),
        text("evidence"),
    ]))
}

/// Signals as a batch of [`signal_schema`], in order; each row's origin is the row that raised the alarm.
pub fn to_batch(signals: &[Signal]) -> Batch {
    let mut texts: [StringBuilder; 7] = std::array::from_fn(|_| StringBuilder::new());
    let (mut statistic, mut threshold, mut time) = (Float64Builder::new(), Float64Builder::new(), Int64Builder::new());
    for Signal { detector, kind, stream, column, slice, row, alarm } in signals {
        let values = [detector, *kind, stream, column, slice, alarm.level.as_str(), alarm.evidence.as_str()];
        for (builder, value) in texts.iter_mut().zip(values) {
            builder.append_value(value);
        }
        statistic.append_value(alarm.statistic);
        threshold.append_value(alarm.threshold);
        time.append_value(row.event_time);
    }
    let [detector, kind, stream, column, slice, level, evidence] =
        texts.map(|mut text| Arc::new(text.finish()) as ArrayRef);
    let time = time.finish().reinterpret_cast::<arrow::datatypes::TimestampMillisecondType>().with_timezone("UTC");
    let numbers: [ArrayRef; 3] = [Arc::new(statistic.finish()), Arc::new(threshold.finish()), Arc::new(time)];
    let [statistic, threshold, time] = numbers;
    let columns = vec![detector, kind, stream, column, slice, level, statistic, threshold, time, evidence];
    let records = RecordBatch::try_new(signal_schema(), columns).expect("the builders follow the schema");
    Batch::new(records, signals.iter().map(|signal| signal.row).collect())
}

/// The state of a detector as bytes.
fn to_bytes(state: &impl serde::Serialize) -> Vec<u8> {
    postcard::to_allocvec(state).expect("state types serialize into memory")
}

/// The state of a detector from bytes. Detectors have no key: they count as key group 0.
fn from_bytes<S: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<S, StateError> {
    postcard::from_bytes(bytes).map_err(|error| StateError::Corrupt { key_group: 0, detail: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::AsArray;

    /// The values of a stream of `tests/golden/streams`.
    pub fn stream(name: &str) -> Vec<f64> {
        let path = format!("{}/../tests/golden/streams/{name}.csv", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
        text.lines().skip(1).map(|line| line.parse().expect("a number")).collect()
    }

    /// A file of `tests/golden`.
    pub fn golden(name: &str) -> serde_json::Value {
        let path = format!("{}/../tests/golden/{name}", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
        serde_json::from_str(&text).expect("JSON")
    }

    #[test]
    fn signals_become_a_batch() {
        let row = Row { source: 1, partition: 2, offset: 3, event_time: 4, arrived_micros: 5 };
        let alarm = Alarm { level: Level::Drift, statistic: 0.5, threshold: 0.2, evidence: "{}".into() };
        let signal = Signal {
            detector: "scores".into(),
            kind: "psi",
            stream: "fraud".into(),
            column: "score".into(),
            slice: "all".into(),
            row,
            alarm,
        };
        let batch = to_batch(&[signal.clone(), signal]);
        assert_eq!(batch.records.schema(), signal_schema());
        assert_eq!(*batch.rows, vec![row, row]);
        assert_eq!(batch.records["level"].as_string::<i32>().value(1), "drift");
        assert_eq!(to_batch(&[]).len(), 0);
    }
}
