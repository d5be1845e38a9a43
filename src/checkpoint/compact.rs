//! Merges segments into a base, on a thread of its own: the state of every key group at the end of an epoch, each key once.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError, sync_channel};

use millstream_operators::state::rows::Standing;

use super::error::{CheckpointError, tried};
use super::manifest::Base;
use super::segment::{self, Appender, Summary};
use super::{Block, Definitions, Kind, Progress, definitions};

/// A merge under way.
#[derive(Debug)]
pub(super) struct Compaction {
    result: Receiver<Result<Base, CheckpointError>>,
}

impl Compaction {
    /// Begins to merge everything up to where the job is: the base before, if there is one, and the segments after it. Only
    /// what belongs to the job's present nodes goes in.
    pub fn start(
        folder: &Path,
        progress: &Progress,
        base: Option<Base>,
        segments: Vec<Summary>,
    ) -> io::Result<Compaction> {
        let (done, result) = sync_channel(1);
        let (folder, epoch, nodes) = (folder.to_path_buf(), progress.epoch, progress.definitions.clone());
        let run = move || drop(done.send(merge(&folder, epoch, &nodes, base.as_ref(), &segments)));
        std::thread::Builder::new().name("compaction".into()).spawn(run)?;
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

/// Merges and writes; the new base is synced but not yet named by a manifest.
pub(super) fn merge(
    folder: &Path,
    epoch: u64,
    nodes: &Definitions,
    base: Option<&Base>,
    segments: &[Summary],
) -> Result<Base, CheckpointError> {
    let merged = base.map_or(0, |base| base.epoch);
    let mut state: BTreeMap<(Arc<str>, u16), Standing> = BTreeMap::new();
    let sources = base.iter().map(|base| (true, &base.segment)).chain(segments.iter().map(|segment| (false, segment)));
    for (is_base, summary) in sources {
        segment::read(&folder.join(&summary.file), summary, |block| {
            let counts = definitions::counts(nodes, block.kind, &block.name, block.epoch);
            if block.kind == Kind::State && counts && (is_base || block.epoch > merged) {
                return state.entry((block.name, block.part)).or_default().absorb(&block.bytes);
            }
            Ok(())
        })?;
    }
    let name = format!("base-{epoch}.seg");
    let path = folder.join(&name);
    let mut appender = tried(Appender::create(&path, &name), "make", &path)?;
    let mut blocks = Vec::new();
    let mut waiting = 0;
    for ((name, part), standing) in state {
        let bytes = standing.finish();
        if bytes.is_empty() {
            continue;
        }
        waiting += bytes.len();
        blocks.push(Block { kind: Kind::State, name, part, epoch, bytes });
        if waiting > WRITE_BYTES {
            tried(appender.append(&blocks), "write", &path)?;
            (waiting, blocks) = (0, Vec::new());
        }
    }
    tried(appender.append(&blocks), "write", &path)?;
    Ok(Base { epoch, segment: appender.summary() })
}

/// Bytes that are written and synced at once.
const WRITE_BYTES: usize = 8 << 20;
