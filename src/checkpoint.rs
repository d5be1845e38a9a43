//! Checkpoints: where a job goes on, stopped or killed.
//!
//! A checkpoint is everything that a job knew at the end of an epoch: how far each source was read, the state of every
//! node by key group, how long each file sink was, and the outputs of the epochs that have not reached Kafka or the
//! offline store for good (the *outbox*). It lies in the job's state folder:
//!
//! ```text
//! state/lock                      held by the running job, so that there is only one
//! state/manifest/<number>.json    what is readable, with the names, lengths and checksums of the segments
//! state/seg/<start>-<number>.seg  blocks of what changed, epoch after epoch, each with its checksum
//! state/seg/base-<start>-<number>.seg   the state of all nodes at the end of an epoch, merged from what was before
//! ```
//!
//! **The manifest is the only commit point.** Blocks are written and synced first, then the manifest appears under its name
//! at once and only if there is none of that name. A crash before leaves the checkpoint before. Everything outside (Kafka
//! transactions, Delta commits) follows the manifest and is done again from the outbox if a crash came in between. Loading
//! takes the newest manifest and checks every byte; what is wrong with it is an error with the name of the file and the
//! block, never a silent step back to an older one, which would repeat output.
//!
//! **Manifests are numbered without a gap**, and a start begins with one of its own (`start.rs`): of two copies of a job
//! only one can publish the next number, and the other ends.
//!
//! A checkpoint costs what has changed since the one before. A thread of its own merges changes into a new base when there
//! are about as many of them as there is state, and files that no kept manifest names are removed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::File;
use std::sync::Arc;

use crate::failpoint::{self, Point};
use crate::sources::Positions;
use compact::Compaction;
use manifest::Manifest;
use segment::{Appender, Mark, Summary};
use start::{claim, first, new_id};
use storage::{Created, Storage};

mod compact;
mod definitions;
mod error;
mod manifest;
pub mod report;
mod segment;
mod start;
mod storage;
mod sweep;

pub use definitions::{Defined, Definitions};
pub use error::CheckpointError;
pub use manifest::Base;
pub use storage::Place;

/// The format this build writes and reads.
pub const FORMAT: u32 = 3;
/// Checkpoints that are kept.
const KEPT: usize = 2;

/// A node's state: for each key group its [rows](millstream_operators::state::rows), the oldest first.
pub type NodeState = BTreeMap<u16, Vec<Vec<u8>>>;

/// Newest event times by (topic or file, partition).
pub type EventTimes = BTreeMap<(String, i32), i64>;

/// What a block holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Rows of a node's state; the part is the key group.
    State,
    /// Records of a sink that are not committed yet; the part is the writer.
    Outbox,
    /// Rows of an offline table that are not committed yet; the part is the worker.
    Offline,
}

/// A piece of a checkpoint.
#[derive(Debug, Clone, PartialEq)]
pub struct Block {
    /// What it holds.
    pub kind: Kind,
    /// The node of the state by section and name (`features.card`); the sink; the table.
    pub name: Arc<str>,
    /// Which part of it.
    pub part: u16,
    /// The epoch in which it came to be.
    pub epoch: u64,
    /// What it holds.
    pub bytes: Vec<u8>,
}

/// Whatever must be done again if it was not done: (epoch, bytes), in order.
pub type Pending = Vec<(u64, Vec<u8>)>;

/// What a job knew at the end of an epoch, but for the state of its nodes.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Progress {
    /// The epoch that had ended; 0 for a job that has not begun.
    pub epoch: u64,
    /// Where each source goes on, by its name.
    pub positions: BTreeMap<String, Positions>,
    /// The newest event time of each partition of each source.
    pub event_times: BTreeMap<String, EventTimes>,
    /// How much each file sink held, by its name.
    pub sinks: BTreeMap<String, u64>,
    /// For each [effect](effect_name) the newest epoch that was known to be committed.
    pub committed: BTreeMap<String, u64>,
    /// The nodes that all this belongs to.
    pub definitions: Definitions,
}

/// The name under which a manifest says how far part `part` of a sink (`sinks.predictions`) or table (`offline.predictions`)
/// is committed.
pub fn effect_name(node: &str, part: u16) -> String {
    format!("{node}/{part}")
}

/// A checkpoint to go on from. The default is a job that has not begun.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Checkpoint {
    /// What is readable in the manifest.
    pub progress: Progress,
    /// The state of each node, by section and name.
    pub nodes: BTreeMap<String, NodeState>,
    /// Records by sink and writer.
    pub outbox: BTreeMap<(String, u16), Pending>,
    /// Rows by table: (epoch, bytes), by epoch and worker.
    pub offline: BTreeMap<String, Pending>,
}

/// The checkpoints of a job that this process has taken over.
#[derive(Debug)]
pub struct Store {
    place: Place,
    job: String,
    topology: String,
    id: String,
    /// Tells this start of the job from all others.
    writer: String,
    generation: u64,
    /// The number of the manifest with which this start took over.
    claim: u64,
    /// The number of the newest manifest.
    sequence: u64,
    /// Segments that this start has made.
    segments: u64,
    base: Option<Base>,
    /// Segments that the next manifest names, oldest first, without the open one.
    closed: Vec<Summary>,
    open: Option<Appender>,
    /// The files that each kept manifest names, by its number.
    kept: VecDeque<(u64, BTreeSet<String>)>,
    compaction: Option<Compaction>,
    swept: bool,
    /// Where the storage has locks.
    lock: Option<File>,
}

impl Store {
    /// Takes over `job` at a place, making it ready if nothing is there. `topology` is the digest of all its definitions, for
    /// the readers of manifests.
    ///
    /// # Errors
    /// If another process holds it, it can't be read or written, or the newest checkpoint is of another job or another
    /// format, or damaged.
    pub fn open(place: &Place, job: &str, topology: &str) -> Result<Store, CheckpointError> {
        let storage = &*place.0;
        let lock = storage.lock()?;
        let writer = new_id();
        let claimed = claim(storage, &writer, |before| {
            let before = before.map(|sequence| Manifest::read(storage, sequence)).transpose()?;
            let Some(before) = before else { return Ok(Some(first(job, topology, 1))) };
            // It was there a moment ago: another copy publishes.
            let Some(mut before) = before else { return Ok(None) };
            before.generation += 1;
            if before.epoch == 0 {
                return Ok(Some(first(job, topology, before.generation)));
            }
            before.check_job(storage, job)?;
            Ok(Some(before))
        })?;
        let manifest = claimed.manifest;
        let kept = claimed.before.into_iter().chain([manifest.sequence]).map(|sequence| (sequence, manifest.files()));
        Ok(Store {
            place: place.clone(),
            job: job.to_string(),
            topology: topology.to_string(),
            writer,
            generation: manifest.generation,
            claim: manifest.sequence,
            sequence: manifest.sequence,
            segments: 0,
            open: None,
            kept: kept.collect(),
            id: manifest.id,
            base: manifest.base,
            closed: manifest.segments,
            compaction: None,
            swept: false,
            lock,
        })
    }

    /// How often the job has been started here.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// What tells this life of the job, from a fresh start on, from all others.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The newest checkpoint, every byte of it checked; `None` if the job has none.
    ///
    /// # Errors
    /// If it is damaged.
    pub fn load(&self) -> Result<Option<Checkpoint>, CheckpointError> {
        let storage = &*self.place.0;
        let manifest = Manifest::read(storage, self.sequence)?;
        let Some(manifest) = manifest.filter(|manifest| manifest.writer == self.writer) else {
            return Err(CheckpointError::TakenOver { path: storage.name(&manifest::key(self.sequence)) });
        };
        if manifest.epoch == 0 { Ok(None) } else { assemble(storage, &manifest).map(Some) }
    }

    /// Makes a new checkpoint: what has been, with `blocks` for what changed since the one before. When this returns, it is
    /// durable and the newest.
    ///
    /// # Errors
    /// If another copy of the job has taken over, or the storage refuses: the checkpoint before stays the newest, and the
    /// call may be repeated with the same blocks and more.
    pub fn publish(&mut self, progress: &Progress, blocks: &[Block]) -> Result<Published, CheckpointError> {
        let before = self.open.as_ref().map(Appender::mark);
        let bytes = self.append(blocks)?;
        failpoint::reached(Point::BlocksAppended);
        let text = match self.publish_manifest(progress) {
            Ok(text) => text,
            Err(Refused { error, in_doubt }) => {
                self.take_back(before, in_doubt);
                return Err(error);
            }
        };
        match self.sweep() {
            // The checkpoint is made, come what may, and what is left is seen to by a later start.
            Err(error) if error.may_pass() => tracing::warn!(%error, "files that are not needed could not be removed"),
            result => result?,
        }
        self.compact(progress)?;
        Ok(Published { bytes: bytes + text })
    }

    /// Without a manifest the blocks are nothing, and the next try brings them again. If the manifest may be there after all,
    /// its blocks stay where they are.
    fn take_back(&mut self, before: Option<Mark>, in_doubt: bool) {
        match (&mut self.open, before) {
            (Some(open), Some(mark)) if mark.is_of(open) && in_doubt => open.close_at(&mark),
            (Some(open), Some(mark)) if mark.is_of(open) => open.cut_to(&mark),
            _ => self.open = None,
        }
    }

    /// Writes the manifest of everything that has been appended; gives its length.
    fn publish_manifest(&mut self, progress: &Progress) -> Result<u64, Refused> {
        self.take_base();
        self.drop_covered(&progress.committed);
        let open = self.open.iter().map(Appender::summary);
        let segments = self.closed.iter().cloned().chain(open).collect();
        let job = (&*self.job, &*self.id, &*self.topology);
        let manifest = Manifest::new(job, progress, self.base.clone(), segments);
        let files = manifest.files();
        // An earlier try may have come through although it seemed to fail. It is one more checkpoint, and this is the next.
        for _ in 0..TRIES {
            let sequence = self.sequence + 1;
            let manifest = manifest.clone().stamped(sequence, self.generation, &self.writer);
            let (key, text) = (manifest::key(sequence), manifest.text());
            let sure = |error| Refused { error, in_doubt: false };
            let found = match self.place.0.create(&key, &text).map_err(sure)? {
                Created::New => None,
                Created::Taken(found) if found == text => None,
                Created::Taken(found) => Some(found),
                Created::Unknown(error) => return Err(Refused { error, in_doubt: true }),
            };
            let Some(found) = found else {
                self.sequence = sequence;
                self.kept.push_back((sequence, files));
                return Ok(text.len() as u64);
            };
            match Manifest::parse(&found) {
                Ok(found) if found.writer == self.writer => {
                    self.sequence = sequence;
                    self.kept.push_back((sequence, found.files()));
                }
                _ => return Err(sure(CheckpointError::TakenOver { path: self.place.0.name(&key) })),
            }
        }
        Err(Refused { error: CheckpointError::TakenOver { path: self.place.0.name("manifest") }, in_doubt: false })
    }

    /// Appends blocks to the open segment and makes them durable.
    fn append(&mut self, blocks: &[Block]) -> Result<u64, CheckpointError> {
        if blocks.is_empty() {
            return Ok(0);
        }
        if self.open.as_ref().is_none_or(Appender::is_closed) {
            self.close();
            self.open = Some(Appender::create(&*self.place.0, &self.segment_name())?);
            self.segments += 1;
        }
        self.open.as_mut().map_or(Ok(0), |open| open.append(blocks))
    }

    /// Nothing more is appended to the open segment.
    fn close(&mut self) {
        self.closed.extend(self.open.take().filter(Appender::has_blocks).map(|open| open.summary()));
    }

    /// Takes up a base that has been merged meanwhile.
    fn take_base(&mut self) {
        if let Some(merged) = self.compaction.as_mut().and_then(Compaction::take) {
            self.compaction = None;
            match merged {
                Ok(base) => self.base = Some(base),
                // The segments are all there still; a later try may have room or a disk that works.
                Err(error) => tracing::warn!(%error, "changes could not be merged into a new base; trying again later"),
            }
        }
    }

    /// Drops segments of which the base has the state, and the world the outputs.
    fn drop_covered(&mut self, committed: &BTreeMap<String, u64>) {
        let merged = self.base.as_ref().map_or(0, |base| base.epoch);
        let floor = committed.values().copied().min().unwrap_or(u64::MAX).min(merged);
        self.closed.retain(|segment| segment.last_epoch > floor);
    }

    /// Begins to merge if changes have grown to about what the state is, or to many files.
    fn compact(&mut self, progress: &Progress) -> Result<(), CheckpointError> {
        let merged = self.base.as_ref().map_or(0, |base| base.epoch);
        let later = self.closed.iter().filter(|segment| segment.last_epoch > merged);
        let (mut files, mut bytes) = (0, 0);
        for segment in later {
            (files, bytes) = (files + 1, bytes + segment.bytes);
        }
        bytes += self.open.as_ref().map_or(0, |open| open.summary().bytes);
        let base = self.base.as_ref().map_or(0, |base| base.segment.bytes);
        let roll = self.open.as_ref().is_some_and(|open| open.summary().bytes > SEGMENT_BYTES_MAX);
        let due = bytes > base.max(CHANGES_BYTES_MIN) || files > FILES_MAX;
        if (due && self.compaction.is_none()) || roll {
            self.close();
        }
        if due && self.compaction.is_none() {
            let (base, segments) = (self.base.clone(), self.closed.clone());
            let name = format!("base-{}", self.segment_name());
            self.segments += 1;
            self.compaction = Some(Compaction::start(&self.place, name, progress, base, segments)?);
        }
        Ok(())
    }
}

/// Why there is no new checkpoint.
struct Refused {
    error: CheckpointError,
    /// Whether the manifest may be there all the same.
    in_doubt: bool,
}

/// Tries of one checkpoint that came through although they seemed to fail.
const TRIES: usize = 100;

/// What a checkpoint cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Published {
    /// Bytes written.
    pub bytes: u64,
}

/// Segments that together are worth a merge, whatever the size of the state: a start reads them all, also outputs that were
/// committed long ago.
const CHANGES_BYTES_MIN: u64 = 64 << 20;
/// Segments that are worth a merge, whatever their size.
const FILES_MAX: usize = 16;
/// A segment of this size is closed and another begun, so that its outputs can be forgotten.
const SEGMENT_BYTES_MAX: u64 = 16 << 20;

/// Reads the segments of a manifest.
fn assemble(storage: &dyn Storage, manifest: &Manifest) -> Result<Checkpoint, CheckpointError> {
    let mut checkpoint = Checkpoint { progress: manifest.progress(), ..Checkpoint::default() };
    let merged = manifest.base.as_ref().map_or(0, |base| base.epoch);
    let base = manifest.base.iter().map(|base| (true, &base.segment));
    let mut offline: BTreeMap<Arc<str>, Vec<(u64, u16, Vec<u8>)>> = BTreeMap::new();
    for (is_base, summary) in base.chain(manifest.segments.iter().map(|segment| (false, segment))) {
        // A part that the manifest does not name has been settled: an earlier run had more workers.
        let waits = |node: String, part, epoch| {
            manifest.committed.get(&effect_name(&node, part)).is_some_and(|committed| epoch > *committed)
        };
        segment::read(storage, summary, |block| {
            if !definitions::counts(&manifest.definitions, block.kind, &block.name, block.epoch) {
                return Ok(());
            }
            match block.kind {
                Kind::State if is_base || block.epoch > merged => {
                    let state = checkpoint.nodes.entry(block.name.to_string()).or_default();
                    state.entry(block.part).or_default().push(block.bytes);
                }
                Kind::Outbox if waits(format!("sinks.{}", block.name), block.part, block.epoch) => {
                    let outbox = checkpoint.outbox.entry((block.name.to_string(), block.part)).or_default();
                    outbox.push((block.epoch, block.bytes));
                }
                Kind::Offline if waits(format!("offline.{}", block.name), 0, block.epoch) => {
                    offline.entry(block.name).or_default().push((block.epoch, block.part, block.bytes));
                }
                Kind::State | Kind::Outbox | Kind::Offline => {}
            }
            Ok(())
        })?;
    }
    for (table, mut blocks) in offline {
        blocks.sort_by_key(|(epoch, worker, _)| (*epoch, *worker));
        let pending = blocks.into_iter().map(|(epoch, _, bytes)| (epoch, bytes)).collect();
        checkpoint.offline.insert(table.to_string(), pending);
    }
    Ok(checkpoint)
}

#[cfg(test)]
mod tests;
