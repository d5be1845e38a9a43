//! Checkpoints: where a job goes on, stopped or killed.
//!
//! A checkpoint is everything that a job knew at the end of an epoch: how far each source was read, the state of every
//! node by key group, how long each file sink was, and the outputs of the epochs that have not reached Kafka or the
//! offline store for good (the *outbox*). It lies in the job's state folder:
//!
//! ```text
//! state/lock                      held by the running job, so that there is only one
//! state/generation                how often the job has been started
//! state/seg/<generation>-<epoch>.seg   blocks of what changed, epoch after epoch, each with its checksum
//! state/seg/base-<epoch>.seg      the state of all nodes at the end of an epoch, merged from what was before
//! state/manifest/<epoch>.json     the rest, readable, with the names, lengths and checksums of the segments
//! ```
//!
//! **The manifest is the only commit point.** Blocks are appended to the segment and synced first, then the manifest appears
//! under its name at once and only if there is none of that name. A crash before leaves the checkpoint before. Everything
//! outside (Kafka transactions, Delta commits) follows the manifest and is done again from the outbox if a crash came in
//! between. Loading takes the newest manifest and checks every byte; what is wrong with it is an error with the name of the
//! file and the block, never a silent step back to an older one, which would repeat output.
//!
//! A checkpoint costs what has changed since the one before. A thread of its own merges changes into a new base when there
//! are about as many of them as there is state, and files that no kept manifest names are removed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::sources::Positions;
use compact::Compaction;
use error::tried;
use manifest::Manifest;
use segment::{Appender, Summary};
use start::{lock, new_id, next_generation};

mod compact;
mod definitions;
mod error;
mod manifest;
pub mod report;
mod segment;
mod start;

pub use definitions::{Defined, Definitions};
pub use error::CheckpointError;
pub use manifest::Base;

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

/// A job's state folder, locked for as long as this lives.
#[derive(Debug)]
pub struct Store {
    folder: PathBuf,
    job: String,
    topology: String,
    id: String,
    generation: u64,
    base: Option<Base>,
    /// Segments that the next manifest names, oldest first, without the open one.
    closed: Vec<Summary>,
    open: Option<Appender>,
    /// The files that each kept manifest names.
    kept: VecDeque<(u64, BTreeSet<String>)>,
    compaction: Option<Compaction>,
    swept: bool,
    _lock: File,
}

impl Store {
    /// Takes the state folder of `job`, making it if it is not there. `topology` is the digest of all its definitions, for
    /// the readers of manifests.
    ///
    /// # Errors
    /// If another process holds it, or the file system refuses.
    pub fn open(folder: &Path, job: &str, topology: &str) -> Result<Store, CheckpointError> {
        for folder in [folder.join("manifest"), folder.join("seg")] {
            tried(fs::create_dir_all(&folder), "make", &folder)?;
        }
        let lock = lock(folder)?;
        let generation = next_generation(folder)?;
        Ok(Store {
            folder: folder.to_path_buf(),
            job: job.to_string(),
            topology: topology.to_string(),
            id: new_id(),
            generation,
            base: None,
            closed: Vec::new(),
            open: None,
            kept: VecDeque::new(),
            compaction: None,
            swept: false,
            _lock: lock,
        })
    }

    /// Removes all checkpoints of a state folder, and nothing else that may lie there.
    ///
    /// # Errors
    /// If another process holds it, or the file system refuses.
    pub fn forget(folder: &Path) -> Result<(), CheckpointError> {
        if !folder.exists() {
            return Ok(());
        }
        let _lock = lock(folder)?;
        // Manifests go first: a segment without a manifest is nothing.
        for folder in [folder.join("manifest"), folder.join("seg")] {
            match fs::remove_dir_all(&folder) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                result => tried(result, "remove", &folder)?,
            }
        }
        Ok(())
    }

    /// How often the job has been started in this folder.
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
    /// If it is damaged, of another job or of another format.
    pub fn load(&mut self) -> Result<Option<Checkpoint>, CheckpointError> {
        let Some(epoch) = epochs(&self.folder)?.pop() else { return Ok(None) };
        let manifest = Manifest::read(&self.folder, epoch)?;
        let path = manifest_path(&self.folder, epoch).display().to_string();
        if manifest.job != self.job {
            let (found, wanted) = (manifest.job, self.job.clone());
            return Err(CheckpointError::OtherJob { path, found, wanted });
        }
        let checkpoint = assemble(&self.folder, &manifest)?;
        self.id.clone_from(&manifest.id);
        self.kept = VecDeque::from([(epoch, manifest.files())]);
        (self.base, self.closed) = (manifest.base, manifest.segments);
        Ok(Some(checkpoint))
    }

    /// Makes a new checkpoint: what has been, with `blocks` for what changed since the one before. When this returns, it is
    /// durable and the newest.
    ///
    /// # Errors
    /// If there is one of the same epoch, or the file system refuses: the checkpoint before stays the newest, and the call
    /// may be repeated with the same blocks and more.
    pub fn publish(&mut self, progress: &Progress, blocks: &[Block]) -> Result<Published, CheckpointError> {
        let path = manifest_path(&self.folder, progress.epoch);
        if path.exists() {
            return Err(CheckpointError::Exists { path: path.display().to_string() });
        }
        let before = self.open.as_ref().map(Appender::mark);
        let bytes = self.append(progress.epoch, blocks)?;
        let published = self.publish_manifest(progress, &path);
        if published.is_err() {
            // Without a manifest the blocks are nothing, and the next try brings them again.
            match (&mut self.open, before) {
                (Some(open), Some(mark)) if mark.is_of(open) => open.back_to(&mark),
                _ => self.open = None,
            }
        }
        let text = published?;
        self.sweep()?;
        self.compact(progress)?;
        Ok(Published { bytes: bytes + text })
    }

    /// Writes the manifest of everything that has been appended; gives its length.
    fn publish_manifest(&mut self, progress: &Progress, path: &Path) -> Result<u64, CheckpointError> {
        self.take_base()?;
        self.drop_covered(&progress.committed);
        let open = self.open.iter().map(Appender::summary);
        let manifest = Manifest::new(
            (&self.job, &self.id, &self.topology, self.generation),
            progress,
            self.base.clone(),
            self.closed.iter().cloned().chain(open).collect(),
        );
        let files = manifest.files();
        let text = manifest.text();
        let draft = path.with_extension("tmp");
        let mut file = tried(File::create(&draft), "make", &draft)?;
        tried(file.write_all(&text).and_then(|()| file.sync_all()), "write", &draft)?;
        // A link, unlike a rename, never replaces: two writers can't both believe that theirs is the checkpoint.
        match fs::hard_link(&draft, path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(CheckpointError::Exists { path: path.display().to_string() });
            }
            result => tried(result, "publish", path)?,
        }
        sync_folder(&self.folder, "manifest")?;
        tried(fs::remove_file(&draft), "remove", &draft)?;
        self.kept.push_back((progress.epoch, files));
        Ok(text.len() as u64)
    }

    /// Appends blocks to the open segment and syncs it.
    fn append(&mut self, epoch: u64, blocks: &[Block]) -> Result<u64, CheckpointError> {
        if blocks.is_empty() {
            return Ok(0);
        }
        let mut made = false;
        if self.open.as_ref().is_none_or(Appender::is_broken) {
            self.closed.extend(self.open.take().filter(Appender::has_blocks).map(|open| open.summary()));
            let name = format!("{}-{epoch}.seg", self.generation);
            let path = self.folder.join("seg").join(&name);
            self.open = Some(tried(Appender::create(&path, &name), "make", &path)?);
            made = true;
        }
        let Some(open) = &mut self.open else { return Ok(0) };
        let path = self.folder.join("seg").join(open.name());
        let written = tried(open.append(blocks), "write", &path)?;
        if made {
            sync_folder(&self.folder, "seg")?;
        }
        Ok(written)
    }

    /// Takes up a base that has been merged meanwhile.
    fn take_base(&mut self) -> Result<(), CheckpointError> {
        if let Some(merged) = self.compaction.as_mut().and_then(Compaction::take) {
            self.compaction = None;
            match merged {
                Ok(base) => {
                    sync_folder(&self.folder, "seg")?;
                    self.base = Some(base);
                }
                // The segments are all there still; a later try may have room or a disk that works.
                Err(error) => tracing::warn!(%error, "changes could not be merged into a new base; trying again later"),
            }
        }
        Ok(())
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
            (files, bytes) = (files + 1, bytes + segment.state_bytes);
        }
        bytes += self.open.as_ref().map_or(0, |open| open.summary().state_bytes);
        let base = self.base.as_ref().map_or(0, |base| base.segment.bytes);
        let roll = self.open.as_ref().is_some_and(|open| open.summary().bytes > SEGMENT_BYTES_MAX);
        let due = bytes > base.max(CHANGES_BYTES_MIN) || files > FILES_MAX;
        if (due && self.compaction.is_none()) || roll {
            self.closed.extend(self.open.take().filter(Appender::has_blocks).map(|open| open.summary()));
        }
        if due && self.compaction.is_none() {
            let (base, segments) = (self.base.clone(), self.closed.clone());
            let started = Compaction::start(&self.folder.join("seg"), progress, base, segments);
            self.compaction = Some(tried(started, "start a thread for", &self.folder)?);
        }
        Ok(())
    }

    /// Removes all but the newest checkpoints, and, at the first time, what crashes have left.
    fn sweep(&mut self) -> Result<(), CheckpointError> {
        let mut files = BTreeSet::new();
        while self.kept.len() > KEPT
            && let Some((epoch, named)) = self.kept.pop_front()
        {
            let path = manifest_path(&self.folder, epoch);
            remove(&path)?;
            files.extend(named);
        }
        let needed: BTreeSet<&String> = self.kept.iter().flat_map(|(_, named)| named).collect();
        for name in files.iter().filter(|name| !needed.contains(name)) {
            remove(&self.folder.join("seg").join(name))?;
        }
        if !std::mem::replace(&mut self.swept, true) {
            self.sweep_leftovers()?;
        }
        Ok(())
    }

    fn sweep_leftovers(&self) -> Result<(), CheckpointError> {
        let epochs: BTreeSet<u64> = self.kept.iter().map(|(epoch, _)| *epoch).collect();
        let needed: BTreeSet<&String> = self.kept.iter().flat_map(|(_, named)| named).collect();
        for name in ["manifest", "seg"] {
            let folder = self.folder.join(name);
            for entry in tried(fs::read_dir(&folder), "list", &folder)? {
                let path = tried(entry, "list", &folder)?.path();
                let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
                let file = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_string();
                let leftover = match extension {
                    "tmp" => true,
                    "seg" => !needed.contains(&file),
                    "json" => epoch_of(&path).is_some_and(|epoch| !epochs.contains(&epoch)),
                    _ => false,
                };
                if leftover {
                    remove(&path)?;
                }
            }
        }
        Ok(())
    }
}

/// What a checkpoint cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Published {
    /// Bytes written.
    pub bytes: u64,
}

/// Changes that are worth a merge, whatever the size of the state.
const CHANGES_BYTES_MIN: u64 = 128 << 20;
/// Segments that are worth a merge, whatever their size.
const FILES_MAX: usize = 16;
/// A segment of this size is closed and another begun, so that its outputs can be forgotten.
const SEGMENT_BYTES_MAX: u64 = 32 << 20;

/// Reads the segments of a manifest.
fn assemble(folder: &Path, manifest: &Manifest) -> Result<Checkpoint, CheckpointError> {
    let mut checkpoint = Checkpoint { progress: manifest.progress(), ..Checkpoint::default() };
    let merged = manifest.base.as_ref().map_or(0, |base| base.epoch);
    let base = manifest.base.iter().map(|base| (true, &base.segment));
    let mut offline: BTreeMap<Arc<str>, Vec<(u64, u16, Vec<u8>)>> = BTreeMap::new();
    for (is_base, summary) in base.chain(manifest.segments.iter().map(|segment| (false, segment))) {
        let path = folder.join("seg").join(&summary.file);
        // A part that the manifest does not name has been settled: an earlier run had more workers.
        let waits = |node: String, part, epoch| {
            manifest.committed.get(&effect_name(&node, part)).is_some_and(|committed| epoch > *committed)
        };
        segment::read(&path, summary, |block| {
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

fn remove(path: &Path) -> Result<(), CheckpointError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => tried(result, "remove", path),
    }
}

fn sync_folder(folder: &Path, name: &str) -> Result<(), CheckpointError> {
    let folder = folder.join(name);
    tried(File::open(&folder).and_then(|folder| folder.sync_all()), "sync", &folder)
}

/// The epochs that have a manifest, in order.
pub fn epochs(folder: &Path) -> Result<Vec<u64>, CheckpointError> {
    let folder = folder.join("manifest");
    let mut epochs = Vec::new();
    for entry in tried(fs::read_dir(&folder), "list", &folder)? {
        let path = tried(entry, "list", &folder)?.path();
        if path.extension().is_some_and(|extension| extension == "json") {
            epochs.extend(epoch_of(&path));
        }
    }
    epochs.sort_unstable();
    Ok(epochs)
}

fn manifest_path(folder: &Path, epoch: u64) -> PathBuf {
    folder.join("manifest").join(format!("{epoch}.json"))
}

fn epoch_of(path: &Path) -> Option<u64> {
    path.file_stem()?.to_str()?.parse().ok()
}

#[cfg(test)]
mod tests;
