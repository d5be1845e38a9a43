//! The engine's one currency: an Arrow record batch with, for every row, where it came from and when it happened.
//!
//! A batch holds whatever arrived since the last activation: one row when a stream is idle, hundreds under load.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, BinaryArray, RecordBatch, UInt32Array};
use arrow::compute;
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;

/// Event time in milliseconds since 1970-01-01T00:00:00Z. Always a column, never a timely timestamp.
pub type EventTime = i64;

/// Where a row came from and when; travels with the row through every operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Row {
    /// Index of the row's source in the plan's list of sources.
    pub source: u16,
    /// Partition of the source: an index into the job's table of (topic, partition) or of files.
    pub partition: u32,
    /// Offset within the partition: Kafka's offset, or the line or row number (0-based) of a file.
    pub offset: i64,
    /// When the event happened; 0 if it has no event time.
    pub event_time: EventTime,
    /// When the process received it: microseconds since 1970 by the process's clock. For latency only.
    pub arrived_micros: i64,
}

impl Row {
    /// When the event happened; `None` if it has no event time: event times begin behind 0.
    pub fn happened(&self) -> Option<EventTime> {
        (self.event_time != 0).then_some(self.event_time)
    }

    /// Its place among all rows of a job, whatever the number of workers: by event time, of one time by where it came from.
    pub fn place(&self) -> (EventTime, u16, u32, i64) {
        (self.event_time, self.source, self.partition, self.offset)
    }
}

/// Rows on an edge of the dataflow. Invariant: `rows.len() == records.num_rows()`, and `raw` is as long when it is there.
#[derive(Debug, Clone)]
pub struct Batch {
    /// The columns.
    pub records: RecordBatch,
    /// One entry for each row of `records`.
    pub rows: Arc<Vec<Row>>,
    /// The original bytes of each row, kept while a later node may still reject it.
    pub raw: Option<BinaryArray>,
}

impl Batch {
    /// A batch of `records` and their origins.
    ///
    /// # Panics
    /// If the lengths differ: the caller made both from the same rows.
    pub fn new(records: RecordBatch, rows: Vec<Row>) -> Self {
        assert_eq!(records.num_rows(), rows.len(), "one origin for each row");
        Batch { records, rows: Arc::new(rows), raw: None }
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// True when there is no row.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The rows at `indices`, in that order.
    ///
    /// # Errors
    /// If an index is out of range.
    pub fn take(&self, indices: &[u32]) -> Result<Batch, ArrowError> {
        let indices = UInt32Array::from(indices.to_vec());
        let records = compute::take_record_batch(&self.records, &indices)?;
        let rows = indices.values().iter().map(|i| self.rows[*i as usize]).collect();
        let raw = match &self.raw {
            Some(raw) => compute::take(raw, &indices, None)?.as_any().downcast_ref::<BinaryArray>().cloned(),
            None => None,
        };
        Ok(Batch { records, rows: Arc::new(rows), raw })
    }

    /// All rows but those at `indices`, which stand in order. `None` when no row is left.
    pub fn without(&self, indices: &[u32]) -> Option<Batch> {
        let mut out = indices.iter().copied().peekable();
        let left: Vec<u32> = (0..self.len() as u32).filter(|row| out.next_if_eq(row).is_none()).collect();
        if left.is_empty() {
            return None;
        }
        Some(self.take(&left).expect("the indices are rows of this batch"))
    }

    /// `length` rows from `offset`, without a copy of the columns.
    pub fn slice(&self, offset: usize, length: usize) -> Batch {
        Batch {
            records: self.records.slice(offset, length),
            rows: Arc::new(self.rows[offset..offset + length].to_vec()),
            raw: self.raw.as_ref().map(|raw| raw.slice(offset, length)),
        }
    }

    /// The same rows with other columns.
    ///
    /// # Panics
    /// If the number of rows differs.
    pub fn with_records(&self, records: RecordBatch) -> Batch {
        assert_eq!(records.num_rows(), self.len(), "columns of the same rows");
        Batch { records, rows: self.rows.clone(), raw: self.raw.clone() }
    }

    /// The same rows with `columns` added on the right; `schema` is the whole new schema.
    ///
    /// # Errors
    /// If the columns do not fit the schema or the number of rows.
    pub fn with_columns(&self, schema: SchemaRef, columns: Vec<ArrayRef>) -> Result<Batch, ArrowError> {
        let mut all = self.records.columns().to_vec();
        all.extend(columns);
        let options = arrow::array::RecordBatchOptions::new().with_row_count(Some(self.len()));
        Ok(self.with_records(RecordBatch::try_new_with_options(schema, all, &options)?))
    }

    /// All rows of `batches` (of one schema), in order. `None` when there is no batch.
    ///
    /// # Errors
    /// If the schemas differ.
    pub fn concat(batches: &[Batch]) -> Result<Option<Batch>, ArrowError> {
        let Some(first) = batches.first() else { return Ok(None) };
        if batches.len() == 1 {
            return Ok(Some(first.clone()));
        }
        let records = compute::concat_batches(&first.records.schema(), batches.iter().map(|b| &b.records))?;
        let rows = batches.iter().flat_map(|b| b.rows.iter().copied()).collect();
        let raw = if batches.iter().all(|b| b.raw.is_some()) {
            let parts: Vec<&dyn Array> =
                batches.iter().filter_map(|b| b.raw.as_ref().map(|r| r as &dyn Array)).collect();
            compute::concat(&parts)?.as_any().downcast_ref::<BinaryArray>().cloned()
        } else {
            None
        };
        Ok(Some(Batch { records, rows: Arc::new(rows), raw }))
    }
}

/// Undecoded messages of one source, as they were read: the input of a decoder.
#[derive(Debug, Clone)]
pub struct Messages {
    /// The payloads; null is a tombstone (a message without a value).
    pub payloads: BinaryArray,
    /// One entry for each payload. `event_time` holds the message's own timestamp (Kafka's) until decoding sets the event's.
    pub rows: Vec<Row>,
    /// The column names of the file's header line, for a format that has one (CSV files).
    pub header: Option<Arc<Vec<String>>>,
}

impl Messages {
    /// Number of messages.
    pub fn len(&self) -> usize {
        self.rows.len()
    }
    /// True when there is no message.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }
}
