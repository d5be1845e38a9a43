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
//! state/savepoint/<name>.json     a manifest that is kept under a name: see `savepoint.rs`
//! ```
//!
//! **The manifest is the only commit point.** Blocks are written and synced first, then the manifest appears under its name
//! at once and only if there is none of that name. A crash before leaves the checkpoint before. Everything outside (Kafka
//! transactions, Delta commits) follows the manifest and is done again from the outbox if a crash came in between. Loading
//! takes the newest manifest and checks every byte; what is wrong with it is an error with the name of the file and the
//! block, never a silent step back to an older one, which would repeat output: see `older.rs`.
//!
//! **Manifests are numbered without a gap**, and a start begins with one of its own (`start.rs`): of two copies of a job
//! only one can publish the next number, and the other ends.
//!
//! A checkpoint costs what has changed since the one before. A thread of its own merges changes into a new base when there
//! are about as many of them as there is state, and files that no kept manifest names are removed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::File;
use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::failpoint::{self, Point};
use crate::sources::{Positions, Topics};
use compact::Compaction;
use manifest::{Manifest, Start};
use segment::{Appender, Mark, Stored, Summary};
use start::new_id;
use storage::{Created, Storage};

mod compact;
mod definitions;
mod error;
mod location;
mod manifest;
pub mod older;
mod origin;
pub mod report;
pub mod savepoint;
mod segment;
mod start;
mod storage;
mod sweep;
mod transfer;

pub use definitions::{Defined, Definitions};
pub use error::CheckpointError;
pub use location::Location;
pub use manifest::Base;
pub use origin::{Origin, Standing};
pub use start::Ownership;
pub use storage::Place;
pub use transfer::export;

/// The format this build writes.
pub const FORMAT: u32 = 5;
/// The oldest format this build reads. Format 3 has no parts in rows of state, 3 and 4 say nothing of topics.
const FORMAT_OLDEST: u32 = 3;
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
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// The epoch that had ended; 0 for a job that has not begun.
    pub epoch: u64,
    /// Where each source goes on, by its name.
    pub positions: BTreeMap<String, Positions>,
    /// What each source of topics knew of them, by its name.
    pub topics: BTreeMap<String, Topics>,
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

/// The checkpoints of a job: those that are there, and, when it has [taken over](Store::take_over), those that this start
/// makes.
#[derive(Debug)]
pub struct Store {
    place: Place,
    job: String,
    topology: String,
    id: String,
    /// The checkpoint that the job was told to go on from, if it was: see `origin.rs`.
    origin: Option<String>,
    start: Start,
    /// For each effect the newest epoch that was known to be committed when this start took over.
    writers: BTreeMap<String, u64>,
    /// The number of the newest manifest that this start knows of; 0 for none.
    sequence: u64,
    /// Segments that this start has made.
    segments: u64,
    base: Option<Base>,
    /// Segments that the next manifest names, oldest first, without the open one.
    closed: Vec<Summary>,
    open: Option<Appender>,
    /// The newest manifests, oldest first.
    kept: VecDeque<Kept>,
    compaction: Option<Compaction>,
    limits: Limits,
    swept: bool,
    /// Segments that nothing but savepoints needs.
    saved: BTreeSet<String>,
    /// When it was last sure that nobody has taken over.
    looked: Instant,
    /// Where the storage has locks.
    lock: Option<File>,
}

/// A manifest that is there.
#[derive(Debug)]
struct Kept {
    sequence: u64,
    /// Whether a copy that has lost could publish in its place, were it not there: see `sweep.rs`.
    fences: bool,
    /// The segments that it names.
    files: BTreeSet<String>,
}

impl Kept {
    /// A manifest that a start has published, or that it has taken over from.
    fn of(manifest: &Manifest, fences: bool) -> Kept {
        Kept { sequence: manifest.sequence, fences, files: manifest.files() }
    }
}

/// From when on files are merged.
#[derive(Debug, Clone, Copy)]
struct Limits {
    /// Segments that together are worth a new base, whatever the size of the state: a start reads them all, also outputs
    /// that were committed long ago.
    changes_bytes: u64,
    /// Segments beside the base before some are merged into one.
    files: usize,
    /// A segment of this size is closed and another begun, so that its outputs can be forgotten.
    segment_bytes: u64,
}

impl Limits {
    const DEFAULT: Limits = Limits { changes_bytes: 64 << 20, files: 16, segment_bytes: 16 << 20 };
}

impl Store {
    /// Goes to the place of a job's state, making it ready if nothing is there. `topology` is the digest of all its
    /// definitions, for the readers of manifests.
    ///
    /// # Errors
    /// If another process holds it, or it can't be read or written.
    pub fn open(place: &Place, job: &str, topology: &str) -> Result<Store, CheckpointError> {
        let lock = place.0.lock()?;
        Ok(Store {
            place: place.clone(),
            job: job.to_string(),
            topology: topology.to_string(),
            id: String::new(),
            origin: None,
            start: Start { writer: new_id(), ..Start::default() },
            writers: BTreeMap::new(),
            sequence: 0,
            segments: 0,
            base: None,
            closed: Vec::new(),
            open: None,
            kept: VecDeque::new(),
            compaction: None,
            limits: Limits::DEFAULT,
            swept: false,
            saved: BTreeSet::new(),
            looked: Instant::now(),
            lock,
        })
    }

    /// For each [effect](effect_name) that this start has taken over, the newest epoch that was known to be committed: also of a job
    /// that has no checkpoint yet.
    pub fn writers(&self) -> &BTreeMap<String, u64> {
        &self.writers
    }

    /// How often the job has been started here.
    pub fn generation(&self) -> u64 {
        self.start.generation
    }

    /// What tells this life of the job, from a fresh start on, from all others.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// What tells this start from all others.
    pub fn writer(&self) -> &str {
        &self.start.writer
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
        self.looked = Instant::now();
        Ok(Published { bytes: bytes + text })
    }

    /// Removes what the newest checkpoint, at `progress`, has made needless, and begins to merge changes if there are many.
    /// Nobody has to wait for that who waits for the checkpoint.
    ///
    /// # Errors
    /// If files can't be removed for good or no thread is to be had. What the storage refuses for now is left to a later start.
    pub fn tidy(&mut self, progress: &Progress) -> Result<(), CheckpointError> {
        match self.sweep() {
            Err(error) if error.may_pass() => tracing::warn!(%error, "files that are not needed could not be removed"),
            result => result?,
        }
        // What crashes have left is told from what is being merged by its name in a checkpoint: it must be gone first.
        if self.swept { self.compact(progress) } else { Ok(()) }
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
        self.take_merged();
        self.drop_covered(&progress.committed);
        let open = self.open.iter().map(Appender::summary);
        let segments = self.closed.iter().cloned().chain(open).collect();
        let job = (&*self.job, &*self.id, &*self.topology);
        let manifest = Manifest::new(job, progress, self.base.clone(), segments).with_origin(self.origin.clone());
        // An earlier try may have come through although it seemed to fail. It is one more checkpoint, and this is the next.
        for _ in 0..TRIES {
            let sequence = self.sequence + 1;
            let manifest = manifest.clone().stamped(sequence, &self.start);
            let (key, text) = (manifest::key(sequence), manifest.clone().text());
            let sure = |error| Refused { error, in_doubt: false };
            let found = match self.place.0.create(&key, &text).map_err(sure)? {
                Created::New => None,
                Created::Taken(found) if found == text => None,
                Created::Taken(found) => Some(found),
                Created::Unknown(error) => return Err(Refused { error, in_doubt: true }),
            };
            let Some(found) = found else {
                self.sequence = sequence;
                self.kept.push_back(Kept::of(&manifest, false));
                return Ok(text.len() as u64);
            };
            match Manifest::parse(&found) {
                Ok(found) if found.writer == self.start.writer => {
                    self.sequence = sequence;
                    self.kept.push_back(Kept::of(&found, false));
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

/// Whether outputs are not known to be where they belong.
fn is_pending(committed: &BTreeMap<String, u64>, block: &Stored) -> bool {
    let effect = match block.kind {
        Kind::State => return false,
        Kind::Outbox => effect_name(&format!("sinks.{}", block.name), block.part),
        Kind::Offline => effect_name(&format!("offline.{}", block.name), 0),
    };
    // A part that is not named has been settled: an earlier run had more workers.
    committed.get(&effect).is_some_and(|committed| block.epoch > *committed)
}

/// Reads the segments of a manifest.
fn assemble(storage: &dyn Storage, manifest: &Manifest) -> Result<Checkpoint, CheckpointError> {
    let mut checkpoint = Checkpoint { progress: manifest.progress(), ..Checkpoint::default() };
    let merged = manifest.base.as_ref().map_or(0, |base| base.epoch);
    let base = manifest.base.iter().map(|base| (true, &base.segment));
    let mut offline: BTreeMap<Arc<str>, Vec<(u64, u16, Vec<u8>)>> = BTreeMap::new();
    for (is_base, summary) in base.chain(manifest.segments.iter().map(|segment| (false, segment))) {
        segment::read(storage, summary, |block| {
            if !definitions::counts(&manifest.definitions, block.kind, &block.name, block.epoch) {
                return Ok(());
            }
            let counts = match block.kind {
                Kind::State => is_base || block.epoch > merged,
                Kind::Outbox | Kind::Offline => is_pending(&manifest.committed, &block),
            };
            if !counts {
                return Ok(());
            }
            let block = block.open()?;
            match block.kind {
                Kind::State => {
                    let state = checkpoint.nodes.entry(block.name.to_string()).or_default();
                    state.entry(block.part).or_default().push(block.bytes);
                }
                Kind::Outbox => {
                    let outbox = checkpoint.outbox.entry((block.name.to_string(), block.part)).or_default();
                    outbox.push((block.epoch, block.bytes));
                }
                Kind::Offline => {
                    offline.entry(block.name).or_default().push((block.epoch, block.part, block.bytes));
                }
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
