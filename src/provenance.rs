//! Provenance: columns that no stream carries and every row has, made only where they are written.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int32Array, Int64Array, StringBuilder, TimestampMillisecondArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use arrow::error::ArrowError;
use millstream_operators::{Batch, Row};

use crate::sources::Partitions;

/// A column about a row rather than of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Provenance {
    /// `prediction_id`: `<topic>-<partition>-<offset>-<model version>`. Of a row from a file the topic is the one that
    /// the file is the history of, or the source's name, and the partition the file's place among the source's files.
    PredictionId,
    /// `model`: the model's name.
    Model,
    /// `model_version`
    ModelVersion,
    /// `topic`: the topic or file that the event came from.
    Topic,
    /// `partition`
    Partition,
    /// `offset`: the message's offset, or the row's number in a file.
    Offset,
    /// `event_time`: when the event happened, UTC.
    EventTime,
    /// `epoch`: the epoch in which the row went out.
    Epoch,
}

impl Provenance {
    /// All of them, those of predictions first.
    pub const ALL: [Provenance; 8] = [
        Provenance::PredictionId,
        Provenance::Model,
        Provenance::ModelVersion,
        Provenance::Topic,
        Provenance::Partition,
        Provenance::Offset,
        Provenance::EventTime,
        Provenance::Epoch,
    ];

    /// The column's name.
    pub fn name(self) -> &'static str {
        match self {
            Provenance::PredictionId => "prediction_id",
            Provenance::Model => "model",
            Provenance::ModelVersion => "model_version",
            Provenance::Topic => "topic",
            Provenance::Partition => "partition",
            Provenance::Offset => "offset",
            Provenance::EventTime => "event_time",
            Provenance::Epoch => "epoch",
        }
    }

    /// The column's type.
    pub fn data_type(self) -> DataType {
        match self {
            Provenance::PredictionId | Provenance::Model | Provenance::ModelVersion | Provenance::Topic => {
                DataType::Utf8
            }
            Provenance::Partition => DataType::Int32,
            Provenance::Offset | Provenance::Epoch => DataType::Int64,
            Provenance::EventTime => DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into())),
        }
    }

    /// Whether only rows of a model's stream have it.
    pub fn of_predictions(self) -> bool {
        matches!(self, Provenance::PredictionId | Provenance::Model | Provenance::ModelVersion)
    }

    /// What rows of `schema` can have: a column of the stream's own hides the provenance of its name.
    pub fn available(schema: &Schema, predictions: bool) -> Vec<Provenance> {
        let free = |p: &Provenance| schema.index_of(p.name()).is_err() && (predictions || !p.of_predictions());
        Provenance::ALL.into_iter().filter(free).collect()
    }

    /// `schema` with `provenance` on its right.
    pub fn beside(schema: &Schema, provenance: &[Provenance]) -> SchemaRef {
        let own = schema.fields().iter().map(|field| field.as_ref().clone());
        let more = provenance.iter().map(|p| Field::new(p.name(), p.data_type(), true));
        Arc::new(Schema::new(own.chain(more).collect::<Vec<_>>()))
    }
}

/// The model that made a stream's rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelInfo {
    /// Its name in the topology.
    pub name: Arc<str>,
    /// Its version.
    pub version: Arc<str>,
}

/// What is known about all rows of a stream: makes their provenance.
#[derive(Debug, Clone)]
pub struct Origins {
    /// The job's table of partitions.
    pub partitions: Arc<Partitions>,
    /// The model, for a stream of predictions.
    pub model: Option<ModelInfo>,
}

impl Origins {
    /// `batch` with the columns `provenance` on its right. `schema` is [`Provenance::beside`] of the batch's own.
    ///
    /// # Errors
    /// If `schema` is another.
    pub fn beside(
        &self,
        batch: &Batch,
        schema: &SchemaRef,
        provenance: &[Provenance],
        epoch: u64,
    ) -> Result<Batch, ArrowError> {
        let columns = provenance.iter().map(|provenance| self.column(*provenance, &batch.rows, epoch)).collect();
        batch.with_columns(schema.clone(), columns)
    }

    /// One column about `rows`, which go out in `epoch`. Of a stream without a model, the columns about models are null.
    pub fn column(&self, provenance: Provenance, rows: &[Row], epoch: u64) -> ArrayRef {
        match (provenance, &self.model) {
            (Provenance::Partition, _) => {
                let mut names = Names::new(&self.partitions);
                Arc::new(Int32Array::from_iter_values(rows.iter().map(|row| names.of(row.partition).1)))
            }
            (Provenance::Offset, _) => Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row.offset))),
            (Provenance::Epoch, _) => Arc::new(Int64Array::from_value(epoch as i64, rows.len())),
            (Provenance::EventTime, _) => {
                let times = TimestampMillisecondArray::from_iter_values(rows.iter().map(|row| row.event_time));
                Arc::new(times.with_timezone("UTC"))
            }
            (Provenance::Topic, _) => {
                let mut names = Names::new(&self.partitions);
                texts(rows, |row, text| text.push_str(names.of(row.partition).0))
            }
            (Provenance::PredictionId, Some(model)) => {
                let mut streams = Names::of_streams(&self.partitions);
                texts(rows, |row, text| {
                    let (topic, partition) = streams.of(row.partition);
                    push_prediction_id(topic, partition, row.offset, &model.version, text);
                })
            }
            (Provenance::Model, Some(model)) => texts(rows, |_, text| text.push_str(&model.name)),
            (Provenance::ModelVersion, Some(model)) => texts(rows, |_, text| text.push_str(&model.version)),
            (provenance, None) => arrow::array::new_null_array(&provenance.data_type(), rows.len()),
        }
    }
}

/// Appends the id of a prediction: the same for the same event and model version, however often it is made.
pub fn push_prediction_id(topic: &str, partition: i32, offset: i64, version: &str, text: &mut String) {
    use std::fmt::Write;
    write!(text, "{topic}-{partition}-{offset}-{version}").expect("a String takes every write");
}

fn texts(rows: &[Row], mut write: impl FnMut(&Row, &mut String)) -> ArrayRef {
    let mut builder = StringBuilder::with_capacity(rows.len(), rows.len() * 16);
    let mut text = String::new();
    for row in rows {
        text.clear();
        write(row, &mut text);
        builder.append_value(&text);
    }
    Arc::new(builder.finish())
}

/// Looks partitions up; neighbours are mostly of the same.
pub(crate) struct Names<'a> {
    partitions: &'a Partitions,
    find: fn(&Partitions, u32) -> (Arc<str>, i32),
    last: Option<(u32, (Arc<str>, i32))>,
}

impl<'a> Names<'a> {
    pub(crate) fn new(partitions: &'a Partitions) -> Names<'a> {
        Names { partitions, find: Partitions::name, last: None }
    }

    /// What ids are made of.
    pub(crate) fn of_streams(partitions: &'a Partitions) -> Names<'a> {
        Names { partitions, find: Partitions::stream, last: None }
    }

    /// The name of a number.
    pub(crate) fn of(&mut self, number: u32) -> (&str, i32) {
        if self.last.as_ref().is_none_or(|(last, _)| *last != number) {
            self.last = None;
        }
        let (_, (topic, partition)) = self.last.get_or_insert_with(|| (number, (self.find)(self.partitions, number)));
        (topic, *partition)
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{Array, RecordBatch};
    use arrow::util::display::{ArrayFormatter, FormatOptions};

    use super::*;

    #[test]
    fn every_provenance_says_where_a_row_is_from() {
        let partitions = Arc::new(Partitions::default());
        let rows: Vec<Row> = [("trips", 2, 40, 5), ("trips", 0, 7, 6), ("trips", 0, 8, 7)]
            .map(|(topic, partition, offset, event_time)| {
                let partition = partitions.number(topic, partition);
                Row { source: 0, partition, offset, event_time, arrived_micros: 0 }
            })
            .into();
        let numbers: ArrayRef = Arc::new(Int64Array::from(vec![1, 2, 3]));
        let batch = Batch::new(RecordBatch::try_from_iter([("n", numbers)]).unwrap(), rows);
        let model = ModelInfo { name: "delay".into(), version: "v3".into() };
        for (model, expected) in [
            (Some(model), "2 trips-0-7-v3 delay v3 trips 0 7 1970-01-01T00:00:00.006Z 9"),
            (None, "2 NULL NULL NULL trips 0 7 1970-01-01T00:00:00.006Z 9"),
        ] {
            let origins = Origins { partitions: partitions.clone(), model };
            let schema = Provenance::beside(&batch.records.schema(), &Provenance::ALL);
            let with = origins.beside(&batch, &schema, &Provenance::ALL, 9).unwrap();
            let options = FormatOptions::default().with_null("NULL");
            let texts =
                with.records.columns().iter().map(|column: &Arc<dyn Array>| {
                    ArrayFormatter::try_new(column, &options).unwrap().value(1).to_string()
                });
            assert_eq!(texts.collect::<Vec<_>>().join(" "), expected);
        }
    }

    #[test]
    fn a_column_of_the_stream_hides_the_provenance_of_its_name() {
        let schema = Schema::new(vec![Field::new("offset", DataType::Utf8, true)]);
        let names: Vec<_> = Provenance::available(&schema, false).iter().map(|p| p.name()).collect();
        assert_eq!(names, ["topic", "partition", "event_time", "epoch"]);
        assert_eq!(Provenance::available(&schema, true).len(), 7);
    }
}
