//! The manifest of a checkpoint: JSON that a person can read and no one should write.
//!
//! Its checksum covers the text with an empty checksum, and the text must be exactly what this build would write for the
//! values in it, so that not one byte can change unseen.
//!
//! Manifests are numbered without a gap: who publishes makes the one after the newest that it knows of, and fails if it is
//! there. Who has lost the job to another copy is told so by that.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use super::error::CheckpointError;
use super::segment::{Summary, digits};
use super::storage::Storage;
use super::{Definitions, EventTimes, FORMAT, FORMAT_OLDEST, Progress};
use crate::sources::{Positions, Topics};

/// The state of all nodes at the end of an epoch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Base {
    /// The epoch.
    pub epoch: u64,
    /// Where it lies.
    pub segment: Summary,
}

/// What a start of a job stamps its manifests with.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Start {
    /// Tells it from all others.
    pub writer: String,
    /// How often the job had been started, with this one.
    pub generation: u64,
    /// The number of its first manifest; 0 before it has taken over.
    pub first: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Manifest {
    pub format: u32,
    /// Its number.
    pub sequence: u64,
    pub job: String,
    pub id: String,
    pub topology: String,
    pub epoch: u64,
    pub generation: u64,
    /// Which start of the job wrote it: no two have the same.
    pub writer: String,
    /// The number of that start's first manifest.
    pub first: u64,
    /// The checkpoint that the job was last told to go on from, if it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<String>,
    /// By source.
    pub positions: BTreeMap<String, Vec<Position>>,
    /// By source.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    topics: BTreeMap<String, Topics>,
    /// By source.
    event_times: BTreeMap<String, Vec<Newest>>,
    sinks: BTreeMap<String, u64>,
    pub committed: BTreeMap<String, u64>,
    /// By section and name.
    pub definitions: Definitions,
    pub base: Option<Base>,
    pub segments: Vec<Summary>,
    checksum: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Position {
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

/// The key of a manifest.
pub(super) fn key(sequence: u64) -> String {
    format!("manifest/{sequence}.json")
}

/// The numbers of all manifests, in order.
pub(super) fn sequences(storage: &dyn Storage) -> Result<Vec<u64>, CheckpointError> {
    let found = storage.list("manifest")?;
    let mut sequences: Vec<u64> = found.iter().filter_map(|found| sequence_of(&found.name)).collect();
    sequences.sort_unstable();
    Ok(sequences)
}

/// The number in a manifest's name.
pub(super) fn sequence_of(name: &str) -> Option<u64> {
    name.strip_suffix(".json")?.parse().ok()
}

/// The format of a manifest of any version; `None` if that can't be told.
fn format(text: &[u8]) -> Option<u32> {
    #[derive(Deserialize)]
    struct Format {
        format: u32,
    }
    serde_json::from_slice::<Format>(text).ok().map(|manifest| manifest.format)
}

impl Manifest {
    /// With the writers that an earlier manifest names: a job that begins anew has committed nothing with them, but may find what
    /// they have left open.
    pub fn with_writers_of(mut self, before: Option<&Manifest>) -> Manifest {
        let writers = before.into_iter().flat_map(|before| before.committed.keys());
        self.committed = writers.map(|writer| (writer.clone(), 0)).collect();
        self
    }

    /// The manifest of `progress` of a job: its name, id and digest of its topology.
    pub fn new(
        (job, id, topology): (&str, &str, &str),
        progress: &Progress,
        base: Option<Base>,
        segments: Vec<Summary>,
    ) -> Manifest {
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
        let positions = progress.positions.iter();
        let event_times = progress.event_times.iter();
        Manifest {
            format: FORMAT,
            sequence: 0,
            job: job.to_string(),
            id: id.to_string(),
            topology: topology.to_string(),
            epoch: progress.epoch,
            generation: 0,
            writer: String::new(),
            first: 0,
            origin: None,
            positions: positions.map(|(name, of)| (name.clone(), of.0.iter().map(position).collect())).collect(),
            event_times: event_times.map(|(name, of)| (name.clone(), of.iter().map(newest).collect())).collect(),
            topics: progress.topics.clone(),
            sinks: progress.sinks.clone(),
            committed: progress.committed.clone(),
            definitions: progress.definitions.clone(),
            base,
            segments,
            checksum: String::new(),
        }
    }

    /// The same, as the next one of a start of the job: its number, and the start's.
    pub fn stamped(self, sequence: u64, start: &Start) -> Manifest {
        let Start { writer, generation, first } = start.clone();
        Manifest { sequence, generation, writer, first, ..self }
    }

    /// The same, as one of another start.
    pub fn of_generation(self, generation: u64) -> Manifest {
        Manifest { generation, ..self }
    }

    /// The same, of a job that was told to go on from some checkpoint.
    pub fn with_origin(self, origin: Option<String>) -> Manifest {
        Manifest { origin, ..self }
    }

    /// The segments that it names, the base first.
    pub fn segments(&self) -> impl Iterator<Item = &Summary> {
        self.base.iter().map(|base| &base.segment).chain(&self.segments)
    }

    /// The files that it names.
    pub fn files(&self) -> BTreeSet<String> {
        self.segments().map(|segment| segment.file.clone()).collect()
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

    /// Reads a manifest and checks it; `None` if there is none of that number.
    pub fn read(storage: &dyn Storage, sequence: u64) -> Result<Option<Manifest>, CheckpointError> {
        let key = key(sequence);
        let Some(manifest) = Manifest::read_file(storage, &key)? else { return Ok(None) };
        if manifest.sequence == sequence {
            return Ok(Some(manifest));
        }
        let detail = format!("the manifest has number {}", manifest.sequence);
        Err(CheckpointError::Corrupt { path: storage.name(&key), detail })
    }

    /// Reads a manifest that may lie under any name and checks it; `None` if it is not there.
    pub fn read_file(storage: &dyn Storage, key: &str) -> Result<Option<Manifest>, CheckpointError> {
        let Some(text) = storage.read(key)? else { return Ok(None) };
        let path = storage.name(key);
        if let Some(found) = format(&text).filter(|found| *found > FORMAT) {
            return Err(CheckpointError::Newer { path, found });
        }
        if let Some(found) = format(&text).filter(|found| *found < FORMAT_OLDEST) {
            return Err(CheckpointError::Older { path, found });
        }
        Manifest::parse(&text).map(Some).map_err(|detail| CheckpointError::Corrupt { path, detail })
    }

    /// Refuses a manifest of another job than `job`.
    pub fn check_job(&self, storage: &dyn Storage, job: &str) -> Result<(), CheckpointError> {
        if self.job == job {
            return Ok(());
        }
        let path = storage.name(&key(self.sequence));
        Err(CheckpointError::OtherJob { path, found: self.job.clone(), wanted: job.to_string() })
    }

    /// Reads a file that [`text`](Manifest::text) wrote.
    pub fn parse(text: &[u8]) -> Result<Manifest, String> {
        let manifest: Manifest = serde_json::from_slice(text).map_err(|error| format!("is not a manifest: {error}"))?;
        if manifest.clone().text() != text {
            return Err("does not have its checksum".to_string());
        }
        Ok(manifest)
    }

    /// What the job knew, but for the state of its nodes.
    pub fn progress(&self) -> Progress {
        let positions = self.positions.iter().map(|(source, of)| {
            let positions = of.iter().map(|at| ((at.topic.clone(), at.partition), at.next)).collect();
            (source.clone(), Positions(positions))
        });
        let event_times = self.event_times.iter().map(|(source, of)| {
            let times: EventTimes = of.iter().map(|at| ((at.topic.clone(), at.partition), at.event_time)).collect();
            (source.clone(), times)
        });
        Progress {
            epoch: self.epoch,
            positions: positions.collect(),
            event_times: event_times.collect(),
            topics: self.topics.clone(),
            sinks: self.sinks.clone(),
            committed: self.committed.clone(),
            definitions: self.definitions.clone(),
        }
    }
}
