//! What an operator is to the runtime: batches in on ports, batches out on ports, state that can be cut at an epoch.

use crate::batch::{Batch, EventTime};
use crate::reject::Reject;
use crate::state::{Groups, StateError};

/// What an operator gave during one call.
#[derive(Debug, Default)]
pub struct Outputs {
    /// Batches for each output port, in order.
    pub ports: Vec<Vec<Batch>>,
    /// Records that failed here.
    pub rejects: Vec<Reject>,
    /// Rows that were dropped on purpose (a filter said no). Counted, so that no record vanishes.
    pub filtered: u64,
    /// Rows that came later than allowed and were dropped.
    pub late: u64,
    /// Rows that had gone on before and were dropped.
    pub duplicates: u64,
}

impl Outputs {
    /// An empty collection for `ports` output ports.
    pub fn new(ports: usize) -> Self {
        Outputs { ports: (0..ports).map(|_| Vec::new()).collect(), ..Outputs::default() }
    }

    /// Gives `batch` on `port`; an empty batch is nothing.
    pub fn give(&mut self, port: usize, batch: Batch) {
        if !batch.is_empty() {
            self.ports[port].push(batch);
        }
    }
}

/// An operator of the dataflow. One instance lives on each worker and sees the rows whose key group is the worker's.
///
/// The runtime calls [`process`](Operator::process) with rows of the open epoch only, so the state is exactly the end of
/// the epoch when it first calls [`save_changes`](Operator::save_changes) of it.
pub trait Operator {
    /// Takes a batch that arrived on input `port`.
    fn process(&mut self, port: usize, batch: Batch, out: &mut Outputs);

    /// Takes the batches of a closed tick, from all ports, when the run asks for event-time order (bounded runs). An
    /// operator whose ports see one state must interleave the rows by event time; for others order within a port is
    /// enough.
    fn process_tick(&mut self, batches: Vec<(usize, Batch)>, out: &mut Outputs) {
        for (port, batch) in batches {
            self.process(port, batch, out);
        }
    }

    /// No row with an event time at or before `watermark` is expected any more: time to drop what can't be read again.
    fn advance(&mut self, _watermark: EventTime, _out: &mut Outputs) {}

    /// All rows of `epoch` have been processed: the state is the end of the epoch.
    fn close_epoch(&mut self, _epoch: u64, _out: &mut Outputs) {}

    /// Looks after work that waits for the world (a writer's deliveries); true while there is some, even after the end
    /// of the input. Pure operators have none.
    fn poll(&mut self) -> bool {
        false
    }

    /// Gives what had changed when an epoch was closed as [`rows`](crate::state::rows) by key group. Called first right then, and
    /// again as long as it says that there is more: whoever has much does some `bytes` a call, and takes rows in between. All
    /// has been given before the next epoch is closed. Nothing for an operator without state.
    fn save_changes(&mut self, _bytes: usize, _give: &mut dyn FnMut(u16, Vec<u8>)) -> bool {
        false
    }

    /// Takes back rows of one key group, the oldest first.
    ///
    /// # Errors
    /// If the bytes were not written by this operator with this definition.
    fn load(&mut self, _key_group: u16, _bytes: &[u8]) -> Result<(), StateError> {
        Err(StateError::Unexpected)
    }

    /// Takes back rows of many key groups, at the start and each group once, on so many threads if it can.
    ///
    /// # Errors
    /// Like [`load`](Operator::load).
    fn load_groups(&mut self, groups: Groups, _threads: usize) -> Result<(), StateError> {
        groups
            .into_iter()
            .try_for_each(|(key_group, all)| all.into_iter().try_for_each(|bytes| self.load(key_group, &bytes)))
    }

    /// Keys and approximate bytes of state, for metrics.
    fn state_size(&self) -> (u64, u64) {
        (0, 0)
    }
}
