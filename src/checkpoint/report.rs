//! What stands in a checkpoint, for people: read without the lock, so it works beside a running job.

use std::collections::BTreeMap;

use millstream_operators::state::rows;
use serde::Serialize;

use super::manifest::{Manifest, sequence_of};
use super::storage::{Found, Place};
use super::{Checkpoint, CheckpointError, KEPT, NodeState, assemble};

/// A checkpoint in a list.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Listed {
    /// The number of its manifest.
    pub number: u64,
    /// Its epoch.
    pub epoch: u64,
    /// The job.
    pub job: String,
    /// Which start of the job wrote it.
    pub generation: u64,
    /// When it was written, in seconds since 1970.
    pub written: u64,
    /// Files it consists of, beside the manifest.
    pub files: usize,
    /// Bytes of them that are its own.
    pub bytes: u64,
}

/// What stands in a checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Contents {
    /// The checkpoint.
    #[serde(flatten)]
    pub listed: Listed,
    /// Digest of the topology's definitions.
    pub topology: String,
    /// The next offset by source, topic and partition.
    pub positions: BTreeMap<String, BTreeMap<String, i64>>,
    /// How long each file sink was.
    pub sinks: BTreeMap<String, u64>,
    /// The newest epoch that each Kafka writer and table was known to have committed.
    pub committed: BTreeMap<String, u64>,
    /// The state of each node.
    pub nodes: BTreeMap<String, NodeContents>,
    /// Blocks of records that were decided and not known to be committed, by sink and writer.
    pub outbox: BTreeMap<String, Pending>,
    /// Blocks of rows that were decided and not known to be committed, by table.
    pub offline: BTreeMap<String, Pending>,
}

/// A node's share.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct NodeContents {
    /// Keys.
    pub keys: u64,
    /// Key groups that have one.
    pub key_groups: usize,
    /// Bytes of the state, each key once.
    pub bytes: u64,
}

impl NodeContents {
    /// What a checkpoint holds of node `name`.
    ///
    /// # Errors
    /// If its rows are cut.
    pub fn of(name: &str, state: &NodeState) -> Result<NodeContents, CheckpointError> {
        let mut contents = NodeContents::default();
        for parts in state.values() {
            let corrupt = |detail| CheckpointError::Corrupt { path: format!("the state of `{name}`"), detail };
            let merged = rows::merge(parts.iter().map(Vec::as_slice)).map_err(corrupt)?;
            contents.keys += rows::read(&merged).count() as u64;
            contents.bytes += merged.len() as u64;
            contents.key_groups += usize::from(!merged.is_empty());
        }
        Ok(contents)
    }
}

/// What waits to be committed.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Pending {
    /// Blocks.
    pub blocks: usize,
    /// Bytes.
    pub bytes: u64,
    /// The first and the last epoch.
    pub epochs: Option<(u64, u64)>,
}

impl Pending {
    /// Of blocks with their epochs.
    pub fn of<'a>(blocks: impl IntoIterator<Item = &'a (u64, Vec<u8>)>) -> Pending {
        let mut pending = Pending::default();
        for (epoch, bytes) in blocks {
            let (first, last) = pending.epochs.unwrap_or((*epoch, *epoch));
            pending.epochs = Some((first.min(*epoch), last.max(*epoch)));
            pending.blocks += 1;
            pending.bytes += bytes.len() as u64;
        }
        pending
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.blocks == 0
    }
}

/// The checkpoints at a place that are kept, the oldest first; what stands there from before a `--fresh` is none.
///
/// # Errors
/// If a manifest is damaged or can't be read.
pub fn list(place: &Place) -> Result<Vec<Listed>, CheckpointError> {
    let mut all = Vec::new();
    for found in kept(place)? {
        all.extend(manifest(place, &found)?.map(|manifest| listed(&found, &manifest)));
    }
    Ok(all)
}

/// The manifests that are kept, the oldest first.
fn kept(place: &Place) -> Result<Vec<Found>, CheckpointError> {
    let mut found = place.0.list("manifest")?;
    found.retain(|found| sequence_of(&found.name).is_some());
    found.sort_by_key(|found| sequence_of(&found.name));
    Ok(found.split_off(found.len().saturating_sub(KEPT)))
}

/// Reads a manifest; `None` if it is one of a job that has not begun, or was removed meanwhile.
fn manifest(place: &Place, found: &Found) -> Result<Option<Manifest>, CheckpointError> {
    let sequence = sequence_of(&found.name).unwrap_or_default();
    Ok(Manifest::read(&*place.0, sequence)?.filter(|manifest| manifest.epoch > 0))
}

fn listed(found: &Found, manifest: &Manifest) -> Listed {
    let segments = || manifest.base.iter().map(|base| &base.segment).chain(&manifest.segments);
    Listed {
        number: manifest.sequence,
        epoch: manifest.epoch,
        job: manifest.job.clone(),
        generation: manifest.generation,
        written: found.made,
        files: segments().count(),
        bytes: segments().map(|segment| segment.bytes).sum(),
    }
}

/// The newest checkpoint of `job`, every byte of it checked, without taking it over: a running job may publish newer ones
/// meanwhile. `None` if there is none.
///
/// # Errors
/// If it is damaged, of another job or format, or can't be read.
pub fn newest(place: &Place, job: &str) -> Result<Option<Checkpoint>, CheckpointError> {
    let mut newest = kept(place)?.pop();
    while let Some(found) = newest {
        let read = manifest(place, &found).and_then(|manifest| {
            let Some(manifest) = manifest else { return Ok(None) };
            manifest.check_job(&*place.0, job)?;
            assemble(&*place.0, &manifest).map(Some)
        });
        newest = kept(place)?.pop();
        // A job that goes on sweeps the files that were about to be read.
        let swept = newest.as_ref().is_some_and(|newest| newest.name != found.name);
        if !swept || matches!(read, Ok(Some(_))) {
            return read;
        }
    }
    Ok(None)
}

/// Reads the newest checkpoint, or the newest of an epoch, every byte of it, and says what stands in it. `None` if there is
/// none.
///
/// # Errors
/// If it is damaged, or can't be read.
pub fn read(place: &Place, epoch: Option<u64>) -> Result<Option<Contents>, CheckpointError> {
    for found in kept(place)?.into_iter().rev() {
        let manifest = manifest(place, &found)?;
        if let Some(manifest) = manifest.filter(|manifest| epoch.is_none_or(|epoch| epoch == manifest.epoch)) {
            return contents(place, &found, &manifest).map(Some);
        }
    }
    Ok(None)
}

fn contents(place: &Place, found: &Found, manifest: &Manifest) -> Result<Contents, CheckpointError> {
    let checkpoint = assemble(&*place.0, manifest)?;
    let mut nodes = BTreeMap::new();
    for (name, state) in &checkpoint.nodes {
        nodes.insert(name.clone(), NodeContents::of(name, state)?);
    }
    let progress = checkpoint.progress;
    let positions = progress.positions.into_iter().map(|(source, positions)| {
        let named = positions.0.into_iter().map(|((topic, partition), next)| (format!("{topic}/{partition}"), next));
        (source, named.collect())
    });
    let outbox = checkpoint.outbox.iter();
    let outbox = outbox.map(|((sink, part), blocks)| (super::effect_name(&format!("sinks.{sink}"), *part), blocks));
    Ok(Contents {
        listed: listed(found, manifest),
        topology: manifest.topology.clone(),
        positions: positions.collect(),
        sinks: progress.sinks,
        committed: progress.committed,
        nodes,
        outbox: outbox.map(|(name, blocks)| (name, Pending::of(blocks))).collect(),
        offline: checkpoint.offline.iter().map(|(table, blocks)| (table.clone(), Pending::of(blocks))).collect(),
    })
}
