//! Encoding: rows become [`Records`], what a sink's writer takes.
//!
//! ```text
//! batch ─ its provenance beside it ─ select (expressions) ─ JSON ─▶ value ┐
//!                                   └ key columns ────────────────▶ key   ├─ Records
//! origins, model, reject ─────────────────────────────────────────▶ headers ┘
//! ```
//!
//! Only the provenance that something reads is made. A row for which an expression of the select fails is written with
//! null in that column: it has passed all checks, and there is no later place to send it to.

mod json;

use std::borrow::Cow;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::datatypes::{DataType, Schema, SchemaRef, TimestampMillisecondType};
use millstream_operators::Batch;
use millstream_operators::expressions::Expression;
use millstream_operators::key::KeyColumns;

pub use json::JsonWriter;

use crate::provenance::{Names, Origins, Provenance};
use crate::sinks::Records;

/// What the value of a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value {
    /// The selected columns as a JSON object.
    Json,
    /// The bytes of the column `payload` as they are: dead letters in a sink whose headers say the rest.
    Payload,
}

/// Which headers a record carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Headers {
    /// None.
    None,
    /// Where the event came from, when it happened, and the epoch and the start of the job that it was made in.
    Event,
    /// Those of an event, and which prediction of which model it is.
    Prediction,
    /// Why and where a record was rejected, and where it came from.
    Reject,
}

impl Headers {
    /// The names, in the order of the values.
    pub fn names(self) -> &'static [&'static str] {
        match self {
            Headers::None => &[],
            Headers::Event => &["epoch", "generation", "event_time", "topic", "partition", "offset"],
            Headers::Prediction => &[
                "prediction_id",
                "model",
                "model_version",
                "epoch",
                "generation",
                "event_time",
                "topic",
                "partition",
                "offset",
            ],
            Headers::Reject => &["stage", "reason", "detail", "event_time", "topic", "partition", "offset"],
        }
    }
}

/// What a sink writes.
#[derive(Debug, Clone)]
pub struct EncoderConfig {
    /// Makes the provenance of the stream's rows.
    pub origins: Origins,
    /// Provenance columns that stand to the right of the stream's own when `columns` and `key` are evaluated.
    pub provenance: Vec<Provenance>,
    /// The stream's columns and its `provenance`.
    pub input: SchemaRef,
    /// The columns written: one expression over `input` for each field of `schema`.
    pub columns: Vec<Expression>,
    /// Names and types of the columns written.
    pub schema: SchemaRef,
    /// The columns of `input` that make the record's key; none for records without a key.
    pub key: Vec<usize>,
    /// What the value is.
    pub value: Value,
    /// Which headers there are.
    pub headers: Headers,
    /// Which start of the job it is, for the headers.
    pub generation: u64,
}

/// Encodes the rows of a stream for a sink.
#[derive(Debug, Clone)]
pub struct Encoder {
    origins: Origins,
    /// The provenance up to the last column that is read, and whether each is.
    provenance: Vec<(Provenance, bool)>,
    /// The stream's columns and `provenance`.
    input: SchemaRef,
    columns: Vec<Expression>,
    json: JsonWriter,
    key: Option<KeyColumns>,
    value: Value,
    headers: Headers,
    generation: u64,
    /// Length of the last record: the guess for the next.
    size_bytes: usize,
}

impl Encoder {
    /// The encoder of a sink.
    pub fn new(config: EncoderConfig) -> Encoder {
        let EncoderConfig { origins, provenance, input, columns, schema, key, value, headers, generation } = config;
        let own = input.fields().len() - provenance.len();
        let read = |n: usize| {
            let name = input.field(own + n).name();
            key.contains(&(own + n)) || columns.iter().any(|column| column.columns().contains(name))
        };
        let read: Vec<bool> = (0..provenance.len()).map(read).collect();
        let made = read.iter().rposition(|read| *read).map_or(0, |last| last + 1);
        Encoder {
            origins,
            provenance: provenance.into_iter().zip(read).take(made).collect(),
            input: Arc::new(Schema::new(input.fields()[..own + made].to_vec())),
            columns,
            json: JsonWriter::new(&schema),
            key: (!key.is_empty()).then(|| KeyColumns::new(key)),
            value,
            headers,
            generation,
            size_bytes: 64,
        }
    }

    /// The records of a batch that goes out in `epoch`, one a row, in order. A record whose key has a null has an empty
    /// key.
    pub fn encode(&mut self, batch: &Batch, epoch: u64) -> Records {
        let mut records = Records {
            header_names: self.headers.names().iter().map(|name| Cow::Borrowed(*name)).collect(),
            event_times: batch.rows.iter().map(|row| row.event_time).collect(),
            ..Records::default()
        };
        let with_provenance = self.with_provenance(batch, epoch);
        match self.value {
            Value::Json => {
                records.values.reserve(self.size_bytes * batch.len());
                let columns = self.select(&with_provenance.records);
                self.json.write(&columns, batch.len(), &mut records.values, &mut records.value_ends);
            }
            Value::Payload => write_payloads(batch, &mut records),
        }
        if let Some(key) = &self.key {
            key.for_each(&with_provenance, |_, key| {
                records.keys.extend_from_slice(key.unwrap_or_default());
                records.key_ends.push(records.keys.len());
            });
        }
        self.write_headers(batch, epoch, &mut records);
        if !batch.is_empty() {
            self.size_bytes = records.values.len() / batch.len() + 8;
        }
        records
    }

    fn with_provenance(&self, batch: &Batch, epoch: u64) -> Batch {
        if self.provenance.is_empty() {
            return batch.clone();
        }
        let columns = self.provenance.iter().map(|(provenance, read)| match read {
            true => self.origins.column(*provenance, &batch.rows, epoch),
            false => arrow::array::new_null_array(&provenance.data_type(), batch.len()),
        });
        let columns = columns.collect();
        batch.with_columns(self.input.clone(), columns).expect("the plan derived the schema from the stream's own")
    }

    fn select(&self, input: &RecordBatch) -> Vec<ArrayRef> {
        self.columns.iter().map(|column| column.evaluate_each(input).values).collect()
    }

    fn write_headers(&self, batch: &Batch, epoch: u64, records: &mut Records) {
        if self.headers == Headers::None {
            return;
        }
        let partitions = &self.origins.partitions;
        let (names, streams) = (Names::new(partitions), Names::of_streams(partitions));
        let mut header = HeaderWriter { names, streams, records };
        let rejects = ["stage", "reason", "detail"].map(|name| text_column(batch, name));
        let times = batch.records.column_by_name("event_time").filter(|_| self.headers == Headers::Reject);
        let times = times.and_then(|times| times.as_primitive_opt::<TimestampMillisecondType>());
        for (n, row) in batch.rows.iter().enumerate() {
            match (self.headers, &self.origins.model) {
                (Headers::Prediction, Some(model)) => {
                    header.prediction_id(row, &model.version);
                    header.text(&model.name);
                    header.text(&model.version);
                }
                (Headers::Prediction, None) => (0..3).for_each(|_| header.text("")),
                (Headers::Reject, _) => {
                    rejects.iter().for_each(|column| header.text(column.map_or("", |column| column.value(n))));
                }
                (Headers::None | Headers::Event, _) => {}
            }
            if self.headers != Headers::Reject {
                header.number(epoch as i64);
                header.number(self.generation as i64);
            }
            // That of a reject is null if it could not be read.
            header.event_time(times.map_or(Some(row.event_time), |times| times.is_valid(n).then(|| times.value(n))));
            header.origin(row);
        }
    }
}

/// The values of dead letters: the original bytes.
fn write_payloads(batch: &Batch, records: &mut Records) {
    let payloads = batch.records.column_by_name("payload").filter(|column| *column.data_type() == DataType::Binary);
    let payloads = payloads.map(|column| column.as_binary::<i32>());
    for row in 0..batch.len() {
        records.values.extend_from_slice(payloads.map_or(b"", |payloads| payloads.value(row)));
        records.value_ends.push(records.values.len());
    }
}

fn text_column<'a>(batch: &'a Batch, name: &str) -> Option<&'a arrow::array::StringArray> {
    batch.records.column_by_name(name)?.as_string_opt::<i32>()
}

/// Appends header values, in the order of their names.
struct HeaderWriter<'a> {
    names: Names<'a>,
    streams: Names<'a>,
    records: &'a mut Records,
}

impl HeaderWriter<'_> {
    fn end(&mut self) {
        self.records.header_ends.push(self.records.headers.len());
    }
    fn text(&mut self, text: &str) {
        self.records.headers.extend_from_slice(text.as_bytes());
        self.end();
    }
    fn number(&mut self, number: i64) {
        serde_json::to_writer(&mut self.records.headers, &number).expect("a Vec takes every write");
        self.end();
    }
    fn event_time(&mut self, time: Option<i64>) {
        if let Some(time) = time {
            json::write_timestamp(time, &mut self.records.headers);
        }
        self.end();
    }
    fn prediction_id(&mut self, row: &millstream_operators::Row, version: &str) {
        let (topic, partition) = self.streams.of(row.partition);
        let mut id = String::with_capacity(topic.len() + version.len() + 24);
        crate::provenance::push_prediction_id(topic, partition, row.offset, version, &mut id);
        self.text(&id);
    }
    fn origin(&mut self, row: &millstream_operators::Row) {
        let (topic, partition) = self.names.of(row.partition);
        self.records.headers.extend_from_slice(topic.as_bytes());
        self.records.header_ends.push(self.records.headers.len());
        self.number(i64::from(partition));
        self.number(row.offset);
    }
}

#[cfg(test)]
mod tests;
