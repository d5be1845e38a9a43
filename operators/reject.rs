//! Rejects: records that failed, kept as data. A reject carries the original bytes, the stage, the reason and the
//! origin, and goes to the dead-letter sink as an ordinary batch of [`schema`].

use std::borrow::Cow;
use std::sync::Arc;

use arrow::array::{ArrayRef, BinaryBuilder, RecordBatch, StringBuilder, TimestampMillisecondArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};

use crate::batch::{Batch, EventTime, Row};

/// Why a record was rejected: a closed list, so that it can be a metric label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The bytes are not of the declared format (broken JSON, invalid UTF-8 ...).
    Malformed,
    /// A tombstone where a record was expected.
    NoValue,
    /// A required field is missing or null.
    MissingField,
    /// A field has another type than declared.
    WrongType,
    /// A field the schema does not have, where extra fields are refused.
    UnknownField,
    /// A number outside its declared range, or NaN or infinite where that is refused.
    OutOfRange,
    /// A check of the topology is false or null.
    CheckFailed,
    /// The event time is missing, before the earliest allowed or too far in the future.
    BadEventTime,
    /// Later than the allowed lateness, where late events go to the dead-letter sink.
    Late,
    /// The entity key is null.
    MissingKey,
    /// An expression failed on this record (overflow, invalid cast ...).
    ExpressionFailed,
    /// The model failed on this record or answered NaN.
    ModelFailed,
    /// Larger than the allowed size.
    TooLarge,
}

impl Reason {
    /// Every reason, in the order of its declaration: `Reason::ALL[reason as usize] == reason`.
    pub const ALL: [Reason; 13] = [
        Reason::Malformed,
        Reason::NoValue,
        Reason::MissingField,
        Reason::WrongType,
        Reason::UnknownField,
        Reason::OutOfRange,
        Reason::CheckFailed,
        Reason::BadEventTime,
        Reason::Late,
        Reason::MissingKey,
        Reason::ExpressionFailed,
        Reason::ModelFailed,
        Reason::TooLarge,
    ];

    /// The label in headers and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::Malformed => "malformed",
            Reason::NoValue => "no_value",
            Reason::MissingField => "missing_field",
            Reason::WrongType => "wrong_type",
            Reason::UnknownField => "unknown_field",
            Reason::OutOfRange => "out_of_range",
            Reason::CheckFailed => "check_failed",
            Reason::BadEventTime => "bad_event_time",
            Reason::Late => "late",
            Reason::MissingKey => "missing_key",
            Reason::ExpressionFailed => "expression_failed",
            Reason::ModelFailed => "model_failed",
            Reason::TooLarge => "too_large",
        }
    }
}

/// One record that failed.
#[derive(Debug, Clone, PartialEq)]
pub struct Reject {
    /// The node where it failed: the stage.
    pub stage: Arc<str>,
    /// Why, as a label.
    pub reason: Reason,
    /// Why, for a person: field, value, expectation. Never longer than a few hundred characters.
    pub detail: String,
    /// The original bytes; empty for a tombstone.
    pub payload: Vec<u8>,
    /// When the event happened, if that could be read.
    pub event_time: Option<EventTime>,
    /// Where it came from. In a bounded run its event time is the place of the record among the others, which may not be its
    /// own.
    pub row: Row,
}

impl Reject {
    /// A row of a batch that failed at `stage`. Its payload are the original bytes if the batch has kept them, else the
    /// row as JSON.
    pub fn of_row(stage: &Arc<str>, reason: Reason, detail: impl Into<String>, batch: &Batch, row: usize) -> Reject {
        let payload = match &batch.raw {
            Some(raw) => raw.value(row).to_vec(),
            None => as_json(&batch.records, row),
        };
        let row = batch.rows[row];
        Reject { stage: stage.clone(), reason, detail: detail.into(), payload, event_time: row.happened(), row }
    }
}

/// A row as a JSON object, without its nulls; nothing if it has a type that JSON can't hold.
pub(crate) fn as_json(records: &RecordBatch, row: usize) -> Vec<u8> {
    let mut writer = arrow_json::LineDelimitedWriter::new(Vec::new());
    let written = writer.write(&records.slice(row, 1)).and_then(|()| writer.finish());
    let mut bytes = writer.into_inner();
    if written.is_err() {
        bytes.clear();
    }
    bytes.truncate(bytes.trim_ascii_end().len());
    bytes
}

/// The start of a value, short enough for a detail.
pub(crate) fn shortened(value: &str) -> Cow<'_, str> {
    const CHARACTERS_MAX: usize = 80;
    match value.char_indices().nth(CHARACTERS_MAX) {
        Some((end, _)) => Cow::Owned(format!("{}...", &value[..end])),
        None => Cow::Borrowed(value),
    }
}

/// The columns of a batch of rejects: `payload` (binary), `stage`, `reason`, `detail` (text), `event_time` (null where it could
/// not be read).
pub fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("payload", DataType::Binary, false),
        Field::new("stage", DataType::Utf8, false),
        Field::new("reason", DataType::Utf8, false),
        Field::new("detail", DataType::Utf8, false),
        Field::new("event_time", DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into())), true),
    ]))
}

/// Rejects as a batch of [`schema`], in order.
pub fn to_batch(rejects: &[Reject]) -> Batch {
    let (mut payload, mut stage, mut reason, mut detail) =
        (BinaryBuilder::new(), StringBuilder::new(), StringBuilder::new(), StringBuilder::new());
    for reject in rejects {
        payload.append_value(&reject.payload);
        stage.append_value(&reject.stage);
        reason.append_value(reject.reason.as_str());
        detail.append_value(&reject.detail);
    }
    let times: TimestampMillisecondArray = rejects.iter().map(|reject| reject.event_time).collect();
    let columns: Vec<ArrayRef> = vec![
        Arc::new(payload.finish()),
        Arc::new(stage.finish()),
        Arc::new(reason.finish()),
        Arc::new(detail.finish()),
        Arc::new(times.with_timezone("UTC")),
    ];
    let records = RecordBatch::try_new(schema(), columns).expect("the builders follow the schema");
    Batch::new(records, rejects.iter().map(|r| r.row).collect())
}
