//! What a commit holds, and the batch id that follows from it: the thread that joins a training row to the offsets it came
//! from, the topology that made it and the model that scored it.

use std::collections::BTreeMap;

use millstream_operators::Row;
use millstream_operators::key::hash;
use serde_json::{Value, json};

use crate::provenance::Origins;

/// First and last of a range, both inside.
type Span = (i64, i64);

/// Contents of the rows taken since the last commit.
#[derive(Debug, Default)]
pub(super) struct Contents {
    /// Number of rows.
    pub rows: u64,
    /// First and last epoch.
    epochs: Option<(u64, u64)>,
    /// Offsets by number of the partition.
    offsets: BTreeMap<u32, Span>,
}

/// Whose rows they are.
pub(super) struct About<'a> {
    /// Name of the job.
    pub job: &'a str,
    /// The table's name in the topology.
    pub table: &'a str,
    /// Hash of the topology.
    pub topology_hash: &'a str,
    /// What is known about all rows.
    pub origins: &'a Origins,
}

impl Contents {
    /// Takes up rows of `epoch`. Rows of one partition mostly follow each other, so a span is looked up once a run of them.
    pub fn add(&mut self, epoch: u64, rows: &[Row]) {
        self.rows += rows.len() as u64;
        self.epochs = Some(self.epochs.map_or((epoch, epoch), |(first, last)| (first.min(epoch), last.max(epoch))));
        for run in rows.chunk_by(|one, next| one.partition == next.partition) {
            let low = run.iter().map(|row| row.offset).min().unwrap_or(i64::MAX);
            let high = run.iter().map(|row| row.offset).max().unwrap_or(i64::MIN);
            let span = self.offsets.entry(run[0].partition).or_insert((low, high));
            *span = (span.0.min(low), span.1.max(high));
        }
    }

    /// What the commit says about itself, in `commitInfo`. The batch id is unique, because no two commits of a table hold
    /// the same offsets of the same epochs.
    pub fn describe(&self, about: &About<'_>) -> [(String, Value); 2] {
        let About { job, table, topology_hash, origins } = about;
        let (first, last) = self.epochs.unwrap_or_default();
        let mut offsets: BTreeMap<String, BTreeMap<String, [i64; 2]>> = BTreeMap::new();
        for (number, (low, high)) in &self.offsets {
            let (topic, partition) = origins.partitions.name(*number);
            offsets.entry(topic.to_string()).or_default().insert(partition.to_string(), [*low, *high]);
        }
        let models: BTreeMap<&str, [&str; 1]> =
            origins.model.iter().map(|model| (&*model.name, [&*model.version])).collect();
        let digest = hash(format!("{offsets:?}{models:?}").as_bytes());
        let id = format!("{job}-{table}-{first}-{last}-{digest:016x}");
        let contents = json!({
            "job": job,
            "table": table,
            "epochs": [first, last],
            "rows": self.rows,
            "offsets": offsets,
            "topology_hash": topology_hash,
            "models": models,
        });
        [("batch_id".into(), id.into()), ("millstream".into(), contents)]
    }
}
