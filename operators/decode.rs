//! Decoding: messages become typed rows. One kind a format.
//!
//! ```text
//! messages ─ read (json, csv) ─┐
//!                              ├─ validate ─▶ batch of the declared columns
//! typed rows (parquet) ─ fit ──┘
//!              └────────────────────┴─▶ rejects
//! ```
//!
//! Every message is read on its own, so a bad one can't touch its neighbours, and what becomes of a message does not
//! depend on the batch it comes in. Rows out and rejects together are always as many as messages in.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BinaryArray, RecordBatch, UInt32Array};
use arrow::compute;
use arrow::datatypes::SchemaRef;
use indexmap::IndexMap;

use crate::batch::{Batch, EventTime, Messages, Row};
use crate::error::ConfigError;
use crate::kinds;
use crate::reject::{self, Reason, Reject};
use crate::schema::{self, ColumnType, Range};
use crate::validate::{EventTimeRule, Rules, Validator};

mod columns;
pub mod csv;
mod fit;
pub mod json;

kinds! {
    /// How a message becomes an event.
    pub enum FormatKind("format") {
        "json" => Json(json::JsonFormat),
        "csv" => Csv(csv::CsvFormat),
    }
}

impl Default for FormatKind {
    fn default() -> Self {
        FormatKind::Json(json::JsonFormat::default())
    }
}

/// What a decoder does with the messages of a source.
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderConfig {
    /// The source's name, for rejects.
    pub stage: Arc<str>,
    /// The format of a message.
    pub format: FormatKind,
    /// The columns, in the order of the output.
    pub columns: IndexMap<String, ColumnType>,
    /// Smallest and largest value, by column.
    pub ranges: IndexMap<String, Range>,
    /// SQL conditions that must be true of every row.
    pub checks: Vec<String>,
    /// Where the event time stands; `None` for the message's own timestamp.
    pub event_time: Option<EventTimeRule>,
    /// How far ahead of the clock an event time may be, in milliseconds, wherever it stands; `None` for any.
    pub ahead_max_millis: Option<i64>,
    /// Largest message accepted, in bytes.
    pub message_size_max: usize,
    /// Keeps the messages' bytes beside the rows, for rejects of later nodes.
    pub keep_raw: bool,
}

/// Turns messages into rows of the declared columns. A clone starts from the same definition.
///
/// ```
/// use arrow::array::BinaryArray;
/// use indexmap::IndexMap;
/// use millstream_operators::decode::{Decoder, DecoderConfig, FormatKind};
/// use millstream_operators::schema::ColumnType;
/// use millstream_operators::{Messages, Row};
///
/// let mut decoder = Decoder::new(DecoderConfig {
///     stage: "payments".into(),
///     format: FormatKind::default(),
///     columns: IndexMap::from([("amount".to_string(), ColumnType::FLOAT64)]),
///     ranges: IndexMap::new(),
///     checks: vec!["amount > 0".into()],
///     event_time: None,
///     ahead_max_millis: None,
///     message_size_max: 1 << 20,
///     keep_raw: false,
/// })
/// .unwrap();
/// let payloads: Vec<&[u8]> = vec![br#"{"amount": 2.5}"#, br#"{"amount": "2.5"}"#, br#"{"amount": -1}"#];
/// let row = Row { source: 0, partition: 0, offset: 0, event_time: 1_767_225_600_000, arrived_micros: 0 };
/// let messages = Messages { payloads: BinaryArray::from(payloads), rows: vec![row; 3], header: None };
/// let mut rejects = Vec::new();
/// let batch = decoder.decode(messages, None, &mut rejects).unwrap();
/// assert_eq!((batch.len(), rejects.len()), (1, 2));
/// assert_eq!(rejects[0].detail, "`amount` is the text \"2.5\", not float64");
/// assert_eq!(rejects[1].detail, "`amount > 0` is not true");
/// ```
#[derive(Debug, Clone)]
pub struct Decoder {
    stage: Arc<str>,
    columns: Arc<IndexMap<String, ColumnType>>,
    schema: SchemaRef,
    reader: Reader,
    validator: Validator,
    message_size_max: usize,
    keep_raw: bool,
    record: columns::Record,
}

#[derive(Debug, Clone)]
enum Reader {
    Json(json::JsonReader),
    Csv(csv::CsvReader),
}

impl Reader {
    fn new(format: &FormatKind, columns: Arc<IndexMap<String, ColumnType>>) -> Result<Reader, ConfigError> {
        match format {
            FormatKind::Json(format) => Ok(Reader::Json(json::JsonReader::new(format, columns))),
            FormatKind::Csv(format) => csv::CsvReader::new(format, columns).map(Reader::Csv),
        }
    }
}

/// Why a record was rejected, before it is known where it came from.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Failure {
    pub reason: Reason,
    pub detail: String,
}

impl Failure {
    pub fn new(reason: Reason, detail: impl Into<String>) -> Self {
        Failure { reason, detail: detail.into() }
    }
}

/// The rows that failed: index among the rows given, and why.
pub(crate) type Failures = Vec<(usize, Failure)>;

impl Decoder {
    /// A decoder by `config`.
    ///
    /// # Errors
    /// Everything that is wrong with it, by path: `schema.x`, `ranges.x`, `checks[0]`, `event_time.column`.
    pub fn new(config: DecoderConfig) -> Result<Decoder, Vec<ConfigError>> {
        let mut errors = Vec::new();
        if config.columns.is_empty() {
            errors.push(ConfigError::new("schema", "there is no column"));
        }
        if config.columns.contains_key("") {
            errors.push(ConfigError::new("schema", "a column has an empty name"));
        }
        let schema = schema::arrow_schema(&config.columns);
        let rules = Rules {
            ranges: &config.ranges,
            checks: &config.checks,
            event_time: config.event_time.as_ref(),
            ahead_max_millis: config.ahead_max_millis,
        };
        let validator = Validator::new(&config.columns, &schema, &rules).map_err(|more| errors.extend(more)).ok();
        let columns = Arc::new(config.columns);
        let reader = Reader::new(&config.format, columns.clone()).map_err(|error| errors.push(error)).ok();
        let (Some(validator), Some(reader), true) = (validator, reader, errors.is_empty()) else {
            return Err(errors);
        };
        Ok(Decoder {
            stage: config.stage,
            record: columns::Record::new(columns.len()),
            columns,
            schema,
            reader,
            validator,
            message_size_max: config.message_size_max,
            keep_raw: config.keep_raw,
        })
    }

    /// A decoder of the same definition for messages of another format: a topic of JSON may have CSV files as its history.
    ///
    /// # Errors
    /// If the format does not fit the columns.
    pub fn with_format(&self, format: &FormatKind) -> Result<Decoder, ConfigError> {
        Ok(Decoder { reader: Reader::new(format, self.columns.clone())?, ..self.clone() })
    }

    /// True if it reads a format whose files have a header line.
    pub fn reads_header(&self) -> bool {
        matches!(self.reader, Reader::Csv(_))
    }

    /// The columns of its output: the declared ones, in their order.
    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// The rows of `messages`, in order; what fails goes to `rejects`, in order. `None` when no row is left.
    ///
    /// `now_millis` is the process's clock in live runs, to refuse event times too far ahead; `None` in bounded runs.
    pub fn decode(
        &mut self,
        messages: Messages,
        now_millis: Option<EventTime>,
        rejects: &mut Vec<Reject>,
    ) -> Option<Batch> {
        let Messages { payloads, rows, header } = messages;
        let mut failures = Failures::new();
        let mut columns = columns::Columns::new(&self.columns, rows.len());
        if let Reader::Csv(reader) = &mut self.reader {
            reader.begin(header.as_ref());
        }
        for index in 0..rows.len() {
            match self.read(&payloads, index) {
                Ok(()) => columns.push(&self.record),
                Err(failure) => failures.push((index, failure)),
            }
        }
        let records = columns.finish(&self.schema);
        let source = Source { rows, raw: Some(payloads), typed: None };
        self.validated(records, source, failures, now_millis, rejects)
    }

    /// Rows that are typed already (Parquet): their columns are matched by name and cast to the declared types where
    /// nothing is lost. Then as [`decode`](Decoder::decode); the payload of a reject is the row as JSON.
    pub fn accept(
        &mut self,
        records: RecordBatch,
        rows: Vec<Row>,
        now_millis: Option<EventTime>,
        rejects: &mut Vec<Reject>,
    ) -> Option<Batch> {
        let (fitted, failures) = fit::fit(&records, &self.columns, &self.schema);
        let kept = keep(rows.len(), &failures);
        let fitted = match &kept {
            Some(kept) => take(&fitted, kept),
            None => fitted,
        };
        let source = Source { rows, raw: None, typed: Some(records) };
        self.validated(fitted, source, failures, now_millis, rejects)
    }

    /// Reads one message into the record.
    fn read(&mut self, payloads: &BinaryArray, index: usize) -> Result<(), Failure> {
        if payloads.is_null(index) {
            return Err(Failure::new(Reason::NoValue, "the message has no value (a tombstone)"));
        }
        let payload = payloads.value(index);
        if payload.len() > self.message_size_max {
            // Sources cut what is larger, so its true size is not known here.
            let detail = format!("the message is larger than {} bytes (`message_size_max`)", self.message_size_max);
            return Err(Failure::new(Reason::TooLarge, detail));
        }
        let text = std::str::from_utf8(payload).map_err(|error| {
            let detail =
                format!("the message is not UTF-8: byte {} does not belong to a character", error.valid_up_to());
            Failure::new(Reason::Malformed, detail)
        })?;
        if text.is_empty() {
            return Err(Failure::new(Reason::Malformed, "the message is empty"));
        }
        self.record.clear();
        match &mut self.reader {
            Reader::Json(reader) => reader.read(text, &mut self.record)?,
            Reader::Csv(reader) => reader.read(text, &mut self.record)?,
        }
        self.record.complete(&self.columns)
    }

    /// Validates the rows that could be read (`records`), and puts together what is left.
    fn validated(
        &self,
        records: RecordBatch,
        source: Source,
        mut failures: Failures,
        now: Option<EventTime>,
        rejects: &mut Vec<Reject>,
    ) -> Option<Batch> {
        let read = keep(source.rows.len(), &failures);
        let mut rows = match &read {
            Some(read) => read.iter().map(|index| source.rows[*index as usize]).collect(),
            None => source.rows.clone(),
        };
        let invalid = self.validator.validate(&records, &mut rows, now);
        let valid = keep(rows.len(), &invalid);
        let origin = |row: usize| read.as_ref().map_or(row, |read| read[row] as usize);
        failures.extend(invalid.into_iter().map(|(row, failure)| (origin(row), failure)));
        failures.sort_by_key(|(index, _)| *index);
        let raw = source.raw.clone().filter(|_| self.keep_raw);
        // What could be read has its event time, whatever else is wrong with it.
        let row = |index: usize| match &read {
            Some(read) => read.binary_search(&(index as u32)).map_or(source.rows[index], |at| rows[at]),
            None => rows[index],
        };
        for (index, failure) in &failures {
            rejects.push(source.reject(&self.stage, *index, row(*index), failure));
        }
        let (records, rows) = match valid {
            Some(valid) => (take(&records, &valid), valid.iter().map(|row| rows[*row as usize]).collect()),
            None => (records, rows),
        };
        if rows.is_empty() {
            return None;
        }
        let mut batch = Batch::new(records, rows);
        batch.raw = match keep(source.rows.len(), &failures) {
            Some(kept) => raw.map(|raw| take_bytes(&raw, &kept)),
            None => raw,
        };
        Some(batch)
    }
}

/// What the rows came from.
struct Source {
    rows: Vec<Row>,
    raw: Option<BinaryArray>,
    typed: Option<RecordBatch>,
}

impl Source {
    fn reject(&self, stage: &Arc<str>, index: usize, row: Row, failure: &Failure) -> Reject {
        let payload = match (&self.raw, &self.typed) {
            (Some(raw), _) => raw.value(index).to_vec(),
            (None, Some(typed)) => reject::as_json(typed, index),
            (None, None) => Vec::new(),
        };
        let (reason, detail) = (failure.reason, failure.detail.clone());
        Reject { stage: stage.clone(), reason, detail, payload, event_time: row.happened(), row }
    }
}

/// The rows that did not fail; `None` when none failed. `failures` stand in the order of the rows.
fn keep(rows: usize, failures: &Failures) -> Option<Vec<u32>> {
    if failures.is_empty() {
        return None;
    }
    let mut failed = failures.iter().map(|(row, _)| *row).peekable();
    Some((0..rows).filter(|row| failed.next_if_eq(row).is_none()).map(|row| row as u32).collect())
}

fn take(records: &RecordBatch, rows: &[u32]) -> RecordBatch {
    let rows = UInt32Array::from(rows.to_vec());
    compute::take_record_batch(records, &rows).expect("the rows are rows of the records")
}

fn take_bytes(bytes: &BinaryArray, rows: &[u32]) -> BinaryArray {
    let taken: ArrayRef =
        compute::take(bytes, &UInt32Array::from(rows.to_vec()), None).expect("the rows are rows of the messages");
    taken.as_binary::<i32>().clone()
}

#[cfg(test)]
mod tests;
