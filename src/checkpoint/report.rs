//! What stands in a checkpoint, for people: read without the lock, so it works beside a running job.

use std::collections::BTreeMap;

use millstream_operators::state::rows;
use serde::Serialize;

use super::manifest::{Manifest, sequence_of};
use super::storage::{Found, Place};
use super::{Checkpoint, CheckpointError, KEPT, NodeState, Progress, assemble, savepoint};

/// Which checkpoint of a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which<'a> {
    /// The newest.
    Newest,
    /// The newest of an epoch.
    Epoch(u64),
    /// The one that is kept under a name.
    Named(&'a str),
}

/// A checkpoint in a list.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Listed {
    /// The name under which it is kept, if it is a savepoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
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
            let standing = rows::standing(parts.iter().map(Vec::as_slice)).map_err(corrupt)?;
            contents.keys += standing.len() as u64;
            let merged = standing.finish();
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

/// The checkpoints at a place that are kept, the oldest first; what stands there from before a `--fresh` is none. Of one whose
/// manifest is damaged a warning says so.
///
/// # Errors
/// If a manifest can't be read.
pub fn list(place: &Place) -> Result<Vec<Listed>, CheckpointError> {
    let mut all = Vec::new();
    for (found, manifest) in kept(place)? {
        match manifest {
            Ok(manifest) => all.push(listed(&found, &manifest, None)),
            Err(damage) => tracing::warn!(%damage, "a checkpoint is not in the list"),
        }
    }
    Ok(all)
}

/// A manifest, or what is wrong with it.
type Kept = (Found, Result<Manifest, CheckpointError>);

/// The manifests that are kept, the oldest first: not those from before a fresh start.
fn kept(place: &Place) -> Result<Vec<Kept>, CheckpointError> {
    let mut found = place.0.list("manifest")?;
    found.retain(|found| sequence_of(&found.name).is_some());
    found.sort_by_key(|found| sequence_of(&found.name));
    let mut kept = Vec::new();
    for found in found.into_iter().rev().take(KEPT) {
        // One that has gone was removed meanwhile, and so was what is older.
        let manifest = match Manifest::read(&*place.0, sequence_of(&found.name).unwrap_or_default()) {
            Err(error @ CheckpointError::Io { .. }) => return Err(error),
            manifest => manifest.transpose(),
        };
        match manifest.filter(|manifest| manifest.as_ref().map_or(true, |manifest| manifest.epoch > 0)) {
            Some(manifest) => kept.push((found, manifest)),
            None => break,
        }
    }
    kept.reverse();
    Ok(kept)
}

pub(super) fn listed(found: &Found, manifest: &Manifest, name: Option<&str>) -> Listed {
    let segments = || manifest.segments();
    Listed {
        name: name.map(str::to_string),
        number: manifest.sequence,
        epoch: manifest.epoch,
        job: manifest.job.clone(),
        generation: manifest.generation,
        written: found.made,
        files: segments().count(),
        bytes: segments().map(|segment| segment.bytes).sum(),
    }
}

/// A checkpoint of `job`, every byte of it checked, without taking it over: a running job may publish newer ones meanwhile.
/// `None` if there is none.
///
/// # Errors
/// If it is damaged, of another job or format, or can't be read.
pub fn checkpoint(place: &Place, which: Which<'_>, job: &str) -> Result<Option<Checkpoint>, CheckpointError> {
    beside_a_running_job(place, which, |_, manifest| {
        manifest.check_job(&*place.0, job)?;
        assemble(&*place.0, manifest)
    })
}

/// What `job` knew at its newest checkpoint, but for the state of its nodes; as [`checkpoint`].
///
/// # Errors
/// If the manifest is damaged, of another job or format, or can't be read.
pub fn progress(place: &Place, job: &str) -> Result<Option<Progress>, CheckpointError> {
    beside_a_running_job(place, Which::Newest, |_, manifest| {
        manifest.check_job(&*place.0, job)?;
        Ok(manifest.progress())
    })
}

/// The file and the manifest of a checkpoint; `None` if it is not there.
pub(super) fn find(place: &Place, which: Which<'_>) -> Result<Option<(Found, Manifest)>, CheckpointError> {
    match which {
        Which::Named(name) => savepoint::find(place, name),
        Which::Newest => kept(place)?.pop().map(|(found, manifest)| Ok((found, manifest?))).transpose(),
        Which::Epoch(epoch) => {
            let whole = kept(place)?.into_iter().rev().filter_map(|(found, manifest)| Some((found, manifest.ok()?)));
            Ok({ whole }.find(|(_, manifest)| manifest.epoch == epoch))
        }
    }
}

/// Does something with a checkpoint, again with the one that is the newest then if it was swept meanwhile. `None` if it is
/// not there.
pub(super) fn beside_a_running_job<T>(
    place: &Place,
    which: Which<'_>,
    read: impl Fn(&Found, &Manifest) -> Result<T, CheckpointError>,
) -> Result<Option<T>, CheckpointError> {
    for again in (0..TRIES).rev() {
        let Some((found, manifest)) = find(place, which)? else { return Ok(None) };
        let is_gone = || match which {
            Which::Named(_) => Ok(false),
            _ => kept(place).map(|kept| !kept.iter().any(|(kept, _)| kept.name == found.name)),
        };
        match read(&found, &manifest) {
            Err(_) if again > 0 && is_gone()? => {}
            read => return read.map(Some),
        }
    }
    Ok(None)
}

/// How often a checkpoint is read that a running job sweeps meanwhile.
const TRIES: usize = 20;

/// Reads a checkpoint, every byte of it, and says what stands in it. `None` if it is not there.
///
/// # Errors
/// If it is damaged, or can't be read.
pub fn read(place: &Place, which: Which<'_>) -> Result<Option<Contents>, CheckpointError> {
    let name = if let Which::Named(name) = which { Some(name) } else { None };
    beside_a_running_job(place, which, |found, manifest| contents(place, listed(found, manifest, name), manifest))
}

fn contents(place: &Place, listed: Listed, manifest: &Manifest) -> Result<Contents, CheckpointError> {
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
        listed,
        topology: manifest.topology.clone(),
        positions: positions.collect(),
        sinks: progress.sinks,
        committed: progress.committed,
        nodes,
        outbox: outbox.map(|(name, blocks)| (name, Pending::of(blocks))).collect(),
        offline: checkpoint.offline.iter().map(|(table, blocks)| (table.clone(), Pending::of(blocks))).collect(),
    })
}
