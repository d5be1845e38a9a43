//! The manifest of a checkpoint: JSON that a person can read and no one should write.
//!
//! Its checksum covers the text with an empty checksum, and the text must be exactly what this build would write for the
//! values in it, so that not one byte can change unseen.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use super::segment::{State, Summary, digits};
use super::{Checkpoint, EventTimes, FORMAT};
use crate::sources::Positions;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Manifest {
    pub format: u32,
    pub job: String,
    pub topology: String,
    pub epoch: u64,
    pub generation: u64,
    /// By source.
    positions: BTreeMap<String, Vec<Position>>,
    /// By source.
    event_times: BTreeMap<String, Vec<Newest>>,
    sinks: BTreeMap<String, u64>,
    counters: BTreeMap<String, u64>,
    pub segment: Summary,
    checksum: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Position {
    topic: String,
    partition: i32,
    next: i64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Newest {
    topic: String,
    partition: i32,
    event_time: i64,
}

/// The format of a manifest of any version; `None` if that can't be told.
pub(super) fn format(text: &[u8]) -> Option<u32> {
    #[derive(Deserialize)]
    struct Format {
        format: u32,
    }
    serde_json::from_slice::<Format>(text).ok().map(|manifest| manifest.format)
}

impl Manifest {
    pub fn new(job: &str, checkpoint: &Checkpoint, segment: Summary) -> Manifest {
        let position = |((topic, partition), next): (&(String, i32), &i64)| Position {
            topic: topic.clone(),
            partition: *partition,
            next: *next,
        };
        let newest = |((topic, partition), event_time): (&(String, i32), &i64)| Newest {
            topic: topic.clone(),
            partition: *partition,
            event_time: *event_time,
        };
        let positions = checkpoint.positions.iter();
        let event_times = checkpoint.event_times.iter();
        Manifest {
            format: FORMAT,
            job: job.to_string(),
            topology: checkpoint.topology.clone(),
            epoch: checkpoint.epoch,
            generation: checkpoint.generation,
            positions: positions.map(|(name, of)| (name.clone(), of.0.iter().map(position).collect())).collect(),
            event_times: event_times.map(|(name, of)| (name.clone(), of.iter().map(newest).collect())).collect(),
            sinks: checkpoint.sinks.clone(),
            counters: checkpoint.counters.clone(),
            segment,
            checksum: String::new(),
        }
    }

    /// The text of the file.
    pub fn text(mut self) -> Vec<u8> {
        self.checksum = String::new();
        self.checksum = digits(xxh3_64(&self.written()));
        self.written()
    }

    fn written(&self) -> Vec<u8> {
        let mut text = serde_json::to_vec_pretty(self).expect("a manifest has text keys and finite numbers");
        text.push(b'\n');
        text
    }

    /// Reads a file that [`text`](Manifest::text) wrote.
    pub fn parse(text: &[u8]) -> Result<Manifest, String> {
        let manifest: Manifest = serde_json::from_slice(text).map_err(|error| format!("is not a manifest: {error}"))?;
        if manifest.clone().text() != text {
            return Err("does not have its checksum".to_string());
        }
        Ok(manifest)
    }

    pub fn into_checkpoint(self, (nodes, slow): State) -> Checkpoint {
        let positions = self.positions.into_iter().map(|(source, of)| {
            (source, Positions(of.into_iter().map(|at| ((at.topic, at.partition), at.next)).collect()))
        });
        let event_times = self.event_times.into_iter().map(|(source, of)| {
            let times: EventTimes = of.into_iter().map(|at| ((at.topic, at.partition), at.event_time)).collect();
            (source, times)
        });
        Checkpoint {
            epoch: self.epoch,
            generation: self.generation,
            topology: self.topology,
            positions: positions.collect(),
            event_times: event_times.collect(),
            sinks: self.sinks,
            counters: self.counters,
            nodes,
            slow,
        }
    }
}
