//! What a commit holds, and the batch id that follows from it: the thread that joins a training row to the offsets it came
//! from, the topology that made it and the model that scored it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Int64Type};
use arrow::error::ArrowError;
use millstream_operators::key::hash;
use serde_json::{Value, json};

use super::columns::{OFFSET, PARTITION, TOPIC};

/// First and last of a range, both inside.
type Span = (i64, i64);

/// Contents of the rows taken since the last commit.
#[derive(Debug, Default)]
pub(super) struct Contents {
    /// Number of rows.
    pub rows: u64,
    /// First and last epoch.
    epochs: Option<(u64, u64)>,
    offsets: BTreeMap<String, BTreeMap<i64, Span>>,
    models: BTreeMap<String, BTreeSet<String>>,
}

impl Contents {
    /// Takes up rows of `epoch`.
    pub fn add(&mut self, epoch: u64, batch: &RecordBatch) -> Result<(), ArrowError> {
        self.rows += batch.num_rows() as u64;
        self.epochs = Some(self.epochs.map_or((epoch, epoch), |(first, last)| (first.min(epoch), last.max(epoch))));
        if let (Some(topic), Some(partition), Some(offset)) =
            (texts(batch, TOPIC)?, integers(batch, PARTITION)?, integers(batch, OFFSET)?)
        {
            self.add_offsets(topic.as_string(), partition.as_primitive(), offset.as_primitive());
        }
        if let (Some(model), Some(version)) = (texts(batch, "model")?, texts(batch, "model_version")?) {
            self.add_models(model.as_string(), version.as_string());
        }
        Ok(())
    }

    /// Rows of one partition mostly follow each other, so a span is looked up once a run of them.
    fn add_offsets(
        &mut self,
        topic: &arrow::array::StringArray,
        partition: &arrow::array::PrimitiveArray<Int64Type>,
        offset: &arrow::array::PrimitiveArray<Int64Type>,
    ) {
        let mut start = 0;
        while start < topic.len() {
            let (name, number) = (topic.value(start), partition.value(start));
            let mut end = start + 1;
            while end < topic.len() && partition.value(end) == number && topic.value(end) == name {
                end += 1;
            }
            let run = &offset.values()[start..end];
            let low = run.iter().copied().min().unwrap_or(i64::MAX);
            let high = run.iter().copied().max().unwrap_or(i64::MIN);
            if !self.offsets.contains_key(name) {
                self.offsets.insert(name.to_owned(), BTreeMap::new());
            }
            if let Some(partitions) = self.offsets.get_mut(name) {
                let span = partitions.entry(number).or_insert((low, high));
                *span = (span.0.min(low), span.1.max(high));
            }
            start = end;
        }
    }

    fn add_models(&mut self, model: &arrow::array::StringArray, version: &arrow::array::StringArray) {
        let mut previous = None;
        for row in (0..model.len()).filter(|row| model.is_valid(*row) && version.is_valid(*row)) {
            let pair = (model.value(row), version.value(row));
            if previous != Some(pair) {
                self.models.entry(pair.0.to_owned()).or_default().insert(pair.1.to_owned());
                previous = Some(pair);
            }
        }
    }

    /// The batch id: unique, because no two commits of a table hold the same offsets of the same epochs.
    pub fn batch_id(&self, job: &str, table: &str) -> String {
        let (first, last) = self.epochs.unwrap_or_default();
        let digest = hash(format!("{:?}{:?}", self.offsets, self.models).as_bytes());
        format!("{job}-{table}-{first}-{last}-{digest:016x}")
    }

    /// What the commit says about itself, in `commitInfo`.
    pub fn describe(&self, job: &str, table: &str, topology_hash: &str) -> [(String, Value); 2] {
        let (first, last) = self.epochs.unwrap_or_default();
        let offsets: BTreeMap<&str, BTreeMap<String, [i64; 2]>> = self
            .offsets
            .iter()
            .map(|(topic, partitions)| {
                (topic.as_str(), partitions.iter().map(|(p, (low, high))| (p.to_string(), [*low, *high])).collect())
            })
            .collect();
        let about = json!({
            "job": job,
            "table": table,
            "epochs": [first, last],
            "rows": self.rows,
            "offsets": offsets,
            "topology_hash": topology_hash,
            "models": self.models,
        });
        [("batch_id".into(), self.batch_id(job, table).into()), ("millstream".into(), about)]
    }
}

/// The column as text, if there is one.
fn texts(batch: &RecordBatch, name: &str) -> Result<Option<Arc<dyn Array>>, ArrowError> {
    batch.column_by_name(name).map(|column| cast(column, &DataType::Utf8)).transpose()
}

/// The column as 64-bit integers, if there is one.
fn integers(batch: &RecordBatch, name: &str) -> Result<Option<Arc<dyn Array>>, ArrowError> {
    batch.column_by_name(name).map(|column| cast(column, &DataType::Int64)).transpose()
}
