//! Merges segments into a base, on a thread of its own: the state of every key group at the end of an epoch, each key once.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError, sync_channel};

use millstream_operators::state::rows::Standing;

use super::error::CheckpointError;
use super::manifest::Base;
use super::segment::{self, Appender, Summary};
use super::storage::{Place, Storage};
use super::{Block, Definitions, Kind, Progress, definitions};
use crate::failpoint::{self, Point};

/// A merge under way.
#[derive(Debug)]
pub(super) struct Compaction {
    result: Receiver<Result<Base, CheckpointError>>,
}

impl Compaction {
    /// Begins to merge everything up to where the job is into the file `name`: the base before, if there is one, and the
    /// segments after it. Only what belongs to the job's present nodes goes in.
    pub fn start(
        place: &Place,
        name: String,
        progress: &Progress,
        base: Option<Base>,
        segments: Vec<Summary>,
    ) -> Result<Compaction, CheckpointError> {
        let (done, result) = sync_channel(1);
        let (place, epoch, nodes) = (place.clone(), progress.epoch, progress.definitions.clone());
        let path = place.0.name(&segment::key(&name));
        let run = move || drop(done.send(merge(&*place.0, (&name, epoch), &nodes, base.as_ref(), &segments)));
        let started = std::thread::Builder::new().name("compaction".into()).spawn(run);
        started.map_err(|source| CheckpointError::Io { doing: "start a thread for", path, source })?;
        Ok(Compaction { result })
    }

    /// The new base or why there is none; `None` while the merge goes on.
    pub fn take(&mut self) -> Option<Result<Base, CheckpointError>> {
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

/// Merges and writes; the new base is durable but not yet named by a manifest.
pub(super) fn merge(
    storage: &dyn Storage,
    (name, epoch): (&str, u64),
    nodes: &Definitions,
    base: Option<&Base>,
    segments: &[Summary],
) -> Result<Base, CheckpointError> {
    let merged = base.map_or(0, |base| base.epoch);
    let mut state: BTreeMap<(Arc<str>, u16), Standing> = BTreeMap::new();
    let sources = base.iter().map(|base| (true, &base.segment)).chain(segments.iter().map(|segment| (false, segment)));
    for (is_base, summary) in sources {
        segment::read(storage, summary, |block| {
            let counts = definitions::counts(nodes, block.kind, &block.name, block.epoch);
            if block.kind == Kind::State && counts && (is_base || block.epoch > merged) {
                return state.entry((block.name, block.part)).or_default().absorb(&block.bytes);
            }
            Ok(())
        })?;
    }
    let blocks = state.into_iter().filter_map(|((name, part), standing)| {
        let bytes = standing.finish();
        (!bytes.is_empty()).then_some(Block { kind: Kind::State, name, part, epoch, bytes })
    });
    let segment = write(storage, name, blocks).inspect_err(|_| {
        // What is left of it is nothing, and a disk that is full has better use for the room.
        _ = storage.remove(vec![segment::key(name)]);
    })?;
    failpoint::reached(Point::BaseMerged);
    Ok(Base { epoch, segment })
}

/// Writes blocks into a segment of their own.
fn write(storage: &dyn Storage, name: &str, blocks: impl Iterator<Item = Block>) -> Result<Summary, CheckpointError> {
    let mut appender = Appender::create(storage, name)?;
    let (mut waiting, mut waiting_bytes) = (Vec::new(), 0);
    for block in blocks {
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
