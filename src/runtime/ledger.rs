//! What the participants of an epoch leave for its checkpoint.
//!
//! Workers, the slow lane and the writer of drift signals take part. Each has a ledger: whatever runs there registers,
//! puts what changed in an epoch into its [`Part`], and says when the epoch is closed for it. When all have, the parts go to
//! the thread that writes checkpoints.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use crossbeam_channel::Sender;
use millstream_operators::Batch;

use serde::{Deserialize, Serialize};

use super::shared::Taken;
use crate::checkpoint::Block;
use crate::sinks::Records;

pub mod wire;

/// What one participant has of an epoch.
#[derive(Debug, Default)]
pub struct Part {
    /// Changes of state.
    pub state: Vec<Block>,
    /// Records that were written to sinks which commit after the decision: (sink, writer, records).
    pub outbox: Vec<(Arc<str>, u16, Vec<Arc<Records>>)>,
    /// Rows for the offline store: (table, rows).
    pub offline: Vec<(usize, Batch)>,
    /// How far sources were read, with the newest event time of each partition.
    pub sources: Vec<SourcePart>,
}

impl Part {
    /// Memory, about.
    pub fn size_bytes(&self) -> usize {
        let state: usize = self.state.iter().map(|block| block.bytes.len() + size_of::<Block>()).sum();
        let records = self.outbox.iter().flat_map(|(.., records)| records);
        let records: usize =
            records.map(|records| records.values.len() + records.keys.len() + records.headers.len()).sum();
        let offline = self.offline.iter().map(|(_, batch)| batch.records.get_array_memory_size());
        state + records + offline.sum::<usize>()
    }
}

/// A source on one worker at the end of an epoch.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct SourcePart {
    /// The source's index.
    pub source: usize,
    /// Next offsets.
    pub taken: Taken,
    /// Newest event times by partition.
    pub event_times: Vec<(u32, i64)>,
}

/// What a participant says.
#[derive(Debug)]
pub struct Word {
    /// Who.
    pub participant: usize,
    /// It has closed all epochs up to this.
    pub through: u64,
    /// The epochs among them in which something changed.
    pub parts: Vec<(u64, Part)>,
}

/// A participant's ledger.
#[derive(Debug)]
pub struct Ledger {
    participant: usize,
    worker: u16,
    /// How far each of those registered has closed.
    through: Vec<u64>,
    told: u64,
    parts: BTreeMap<u64, Part>,
    sender: Sender<Word>,
}

/// A ledger that the operators of a worker share.
pub type SharedLedger = Rc<RefCell<Ledger>>;

impl Ledger {
    /// The ledger of participant number `participant` (a worker's is its index) of a job that goes on after `epoch`.
    pub fn new(participant: usize, epoch: u64, sender: Sender<Word>) -> Ledger {
        let worker = u16::try_from(participant).expect("there are at most 256 workers");
        Ledger { participant, worker, through: Vec::new(), told: epoch, parts: BTreeMap::new(), sender }
    }

    /// The index of the worker.
    pub fn worker(&self) -> u16 {
        self.worker
    }

    /// Registers somebody who will close epochs. All register before the first epoch is closed.
    pub fn register(&mut self) -> usize {
        self.through.push(self.told);
        self.through.len() - 1
    }

    /// What the participant has of `epoch`.
    pub fn part(&mut self, epoch: u64) -> &mut Part {
        self.parts.entry(epoch).or_default()
    }

    /// Adds rows of state of a node.
    pub fn state(&mut self, epoch: u64, name: &Arc<str>, key_group: u16, bytes: Vec<u8>) {
        let kind = crate::checkpoint::Kind::State;
        self.part(epoch).state.push(Block { kind, name: name.clone(), part: key_group, epoch, bytes });
    }

    /// `who` has closed everything up to `epoch`.
    pub fn closed(&mut self, who: usize, epoch: u64) {
        self.through[who] = epoch;
        let through = self.through.iter().copied().min().unwrap_or(epoch);
        if through > self.told {
            self.told = through;
            let later = self.parts.split_off(&(through + 1));
            let parts = std::mem::replace(&mut self.parts, later).into_iter().collect();
            // A thread that has ended has reported why.
            drop(self.sender.send(Word { participant: self.participant, through, parts }));
        }
    }
}
