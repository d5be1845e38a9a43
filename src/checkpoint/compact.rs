//! Merges segments, on a thread of its own. Two merges there are, and only one at a time:
//!
//! ```text
//! base · 200 MB · 30 MB · 9 · 1 · 1 · 1 · 1 ──▶ base                    changes are as much as the state: a new base
//! base · 200 MB · 30 MB · 9 · 1 · 1 · 1 · 1 ──▶ base · 200 MB · 30 MB · 11   many files: the newest few into one
//! ```
//!
//! A base has the state of every key group, each key once. A merged segment stands for the ones it was made of: the last
//! change of each key, and the outputs that are not known to be committed. The newest segments are merged that together are
//! about as large as the one before them, so that each byte is merged only some times, and few files are left.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError, sync_channel};

use millstream_operators::state::rows::{self, Standing};

use super::error::CheckpointError;
use super::manifest::Base;
use super::segment::{self, Appender, Summary};
use super::storage::{Place, Storage};
use super::{Block, Checkpoint, Kind, Progress, Store, definitions, is_pending};
use crate::failpoint::{self, Point};

/// How far merges stand back from other threads if there are not cores for all: they have about a tenth of a share.
const NICE: i32 = 10;

/// A merge under way.
#[derive(Debug)]
pub(super) struct Compaction {
    result: Receiver<Result<Merged, CheckpointError>>,
}

/// What to merge.
struct Task {
    place: Place,
    /// The name of the file to make.
    name: String,
    /// Where the job is: what belongs to nodes that it no longer has is left out.
    progress: Progress,
    base: Option<Base>,
    /// Oldest first.
    segments: Vec<Summary>,
}

/// A file that has been merged.
#[derive(Debug)]
enum Merged {
    /// The state up to an epoch.
    Base(Base),
    /// What counts of the segments of these files; `None` if nothing does.
    Segment(BTreeSet<String>, Option<Summary>),
}

impl Compaction {
    fn start(task: Task, merge: fn(&Task) -> Result<Merged, CheckpointError>) -> Result<Compaction, CheckpointError> {
        let (done, result) = sync_channel(1);
        let path = task.place.0.name(&segment::key(&task.name));
        let run = move || {
            // Linux has it of a thread, and the others have it well: records and epochs go first. It is no harm if not.
            _ = rustix::process::nice(NICE);
            let merged = merge(&task).inspect_err(|_| {
                // What is left of it is nothing, and a disk that is full has better use for the room.
                _ = task.place.0.remove(vec![segment::key(&task.name)]);
            });
            failpoint::reached(Point::BaseMerged);
            drop(done.send(merged));
        };
        let started = std::thread::Builder::new().name("compaction".into()).spawn(run);
        started.map_err(|source| CheckpointError::Io { doing: "start a thread for", path, source })?;
        Ok(Compaction { result })
    }

    /// What was merged or why not; `None` while the merge goes on.
    fn take(&mut self) -> Option<Result<Merged, CheckpointError>> {
        match self.result.try_recv() {
            Ok(result) => Some(result),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => {
                let source = io::Error::other("the thread ended without a result");
                Some(Err(CheckpointError::Io { doing: "merge", path: "the segments".into(), source }))
            }
        }
    }
}

impl Store {
    /// Takes up what has been merged meanwhile.
    pub(super) fn take_merged(&mut self) {
        let Some(merged) = self.compaction.as_mut().and_then(Compaction::take) else { return };
        self.compaction = None;
        match merged {
            Ok(Merged::Base(base)) => self.base = Some(base),
            Ok(Merged::Segment(files, merged)) => {
                let is_merged = |segment: &Summary| files.contains(&segment.file);
                let at = self.closed.iter().position(is_merged);
                self.closed.retain(|segment| !is_merged(segment));
                // If none is left, the base has them all by now.
                if let (Some(at), Some(merged)) = (at, merged) {
                    self.closed.insert(at, merged);
                }
            }
            // The segments are all there still; a later try may have room or a disk that works.
            Err(error) => tracing::warn!(%error, "changes could not be merged; trying again later"),
        }
    }

    /// Drops segments of which the base has the state, and the world the outputs.
    pub(super) fn drop_covered(&mut self, committed: &BTreeMap<String, u64>) {
        let merged = self.base.as_ref().map_or(0, |base| base.epoch);
        let floor = committed.values().copied().min().unwrap_or(u64::MAX).min(merged);
        self.closed.retain(|segment| segment.last_epoch > floor);
    }

    /// Begins to merge if changes have grown to about what the state is, or to many files.
    pub(super) fn compact(&mut self, progress: &Progress) -> Result<(), CheckpointError> {
        let merged = self.base.as_ref().map_or(0, |base| base.epoch);
        let open = self.open.as_ref().map(Appender::summary);
        let later = self.closed.iter().filter(|segment| segment.last_epoch > merged).chain(&open);
        let bytes: u64 = later.map(|segment| segment.bytes).sum();
        let base = self.base.as_ref().map_or(0, |base| base.segment.bytes);
        let is_base_due = bytes > base.max(self.limits.changes_bytes);
        let is_free = self.compaction.is_none();
        // With large segments for much state there is a new base before there are many files: no change is merged twice.
        let segment_bytes = self.limits.segment_bytes.max(base / self.limits.files as u64);
        if (is_base_due && is_free) || open.is_some_and(|open| open.bytes > segment_bytes) {
            self.close();
        }
        if is_base_due && is_free {
            let name = format!("base-{}", self.segment_name());
            self.merge(name, progress, self.closed.clone(), merge_base)?;
        } else if is_free && self.closed.len() > self.limits.files {
            let segments = self.closed[self.newest_to_merge()..].to_vec();
            self.merge(self.segment_name(), progress, segments, merge_segments)?;
        }
        Ok(())
    }

    /// Merges what a start has read, if that was much more than the state. It has it in memory anyway, and a job that dies
    /// again and again must not spend its lives reading what the one before had no time to merge.
    pub fn merge_loaded(&mut self, checkpoint: &Checkpoint) {
        let bytes: u64 = self.closed.iter().map(|segment| segment.bytes).sum();
        let base = self.base.as_ref().map_or(0, |base| base.segment.bytes);
        if bytes <= base.max(self.limits.changes_bytes) {
            return;
        }
        let epoch = checkpoint.progress.epoch;
        let name = format!("base-{}", self.segment_name());
        self.segments += 1;
        let blocks = checkpoint.nodes.iter().flat_map(|(node, state)| {
            let node: Arc<str> = node.as_str().into();
            state.iter().filter_map(move |(part, changes)| {
                let merged = rows::merge(changes.iter().map(Vec::as_slice));
                let block = |bytes| Block { kind: Kind::State, name: node.clone(), part: *part, epoch, bytes };
                (merged != Ok(Vec::new())).then(|| merged.map(block))
            })
        });
        match write(&*self.place.0, &name, blocks) {
            Ok(segment) => self.base = Some(Base { epoch, segment }),
            Err(error) => tracing::warn!(%error, "changes could not be merged; trying again later"),
        }
    }

    fn merge(
        &mut self,
        name: String,
        progress: &Progress,
        segments: Vec<Summary>,
        merge: fn(&Task) -> Result<Merged, CheckpointError>,
    ) -> Result<(), CheckpointError> {
        let (place, progress, base) = (self.place.clone(), progress.clone(), self.base.clone());
        self.compaction = Some(Compaction::start(Task { place, name, progress, base, segments }, merge)?);
        self.segments += 1;
        Ok(())
    }

    /// From which of the closed segments on they are merged into one.
    fn newest_to_merge(&self) -> usize {
        let (mut from, mut bytes) = (self.closed.len(), 0);
        for (at, segment) in self.closed.iter().enumerate().rev() {
            if self.closed.len() - at > self.limits.files / 2 && segment.bytes > 2 * bytes {
                break;
            }
            (from, bytes) = (at, bytes + segment.bytes);
        }
        from
    }
}

/// Merges everything up to where the job is: the base before, if there is one, and the segments after it. What it makes is
/// durable but not yet named by a manifest.
fn merge_base(task: &Task) -> Result<Merged, CheckpointError> {
    let (storage, nodes, epoch) = (&*task.place.0, &task.progress.definitions, task.progress.epoch);
    let merged = task.base.as_ref().map_or(0, |base| base.epoch);
    let mut state: BTreeMap<(Arc<str>, u16), Standing> = BTreeMap::new();
    let base = task.base.iter().map(|base| (true, &base.segment));
    for (is_base, summary) in base.chain(task.segments.iter().map(|segment| (false, segment))) {
        segment::read(storage, summary, |block| {
            let counts = definitions::counts(nodes, block.kind, &block.name, block.epoch);
            if block.kind == Kind::State && counts && (is_base || block.epoch > merged) {
                let block = block.open()?;
                return state.entry((block.name, block.part)).or_default().absorb(&block.bytes);
            }
            Ok(())
        })?;
    }
    let blocks = state.into_iter().filter_map(|((name, part), standing)| {
        let bytes = standing.finish();
        (!bytes.is_empty()).then_some(Ok(Block { kind: Kind::State, name, part, epoch, bytes }))
    });
    Ok(Merged::Base(Base { epoch, segment: write(storage, &task.name, blocks)? }))
}

/// Merges some segments into one that stands for them.
fn merge_segments(task: &Task) -> Result<Merged, CheckpointError> {
    let (storage, progress) = (&*task.place.0, &task.progress);
    let merged = task.base.as_ref().map_or(0, |base| base.epoch);
    let mut state: BTreeMap<(Arc<str>, u16), (u64, Vec<Vec<u8>>)> = BTreeMap::new();
    let mut outputs = Vec::new();
    for summary in &task.segments {
        segment::read(storage, summary, |block| {
            if !definitions::counts(&progress.definitions, block.kind, &block.name, block.epoch) {
                return Ok(());
            }
            if block.kind != Kind::State {
                if is_pending(&progress.committed, &block) {
                    outputs.push(block.open()?);
                }
            } else if block.epoch > merged {
                let block = block.open()?;
                let (epoch, changes) = state.entry((block.name, block.part)).or_default();
                *epoch = block.epoch.max(*epoch);
                changes.push(block.bytes);
            }
            Ok(())
        })?;
    }
    let files = task.segments.iter().map(|segment| segment.file.clone()).collect();
    if state.is_empty() && outputs.is_empty() {
        return Ok(Merged::Segment(files, None));
    }
    let state = state.into_iter().map(|((name, part), (epoch, changes))| {
        let bytes = rows::fold(changes.iter().map(Vec::as_slice))?;
        Ok(Block { kind: Kind::State, name, part, epoch, bytes })
    });
    let written = write(storage, &task.name, state.chain(outputs.into_iter().map(Ok)))?;
    let last_epoch = task.segments.iter().map(|segment| segment.last_epoch).max().unwrap_or_default();
    Ok(Merged::Segment(files, Some(Summary { last_epoch, ..written })))
}

/// Writes blocks into a segment of their own.
fn write(
    storage: &dyn Storage,
    name: &str,
    blocks: impl Iterator<Item = Result<Block, String>>,
) -> Result<Summary, CheckpointError> {
    let mut appender = Appender::create(storage, name)?;
    let (mut waiting, mut waiting_bytes) = (Vec::new(), 0);
    for block in blocks {
        let block =
            block.map_err(|detail| CheckpointError::Corrupt { path: storage.name(&segment::key(name)), detail })?;
        waiting_bytes += block.bytes.len();
        waiting.push(block);
        if waiting_bytes > WRITE_BYTES {
            appender.write(&waiting)?;
            waiting.clear();
            waiting_bytes = 0;
        }
    }
    appender.write(&waiting)?;
    appender.finish()?;
    Ok(appender.summary())
}

/// Bytes of state that are encoded at once.
const WRITE_BYTES: usize = 8 << 20;
