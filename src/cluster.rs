//! A job of several processes, on one machine or on several.
//!
//! ```text
//!         files, tables, online store, slow lane, checkpoints, clock
//!                               │
//!                         coordinator (process 0) ── workers 0..W
//!        control links  ┌───────┴───────┐              ║ timely's
//!                    member 1        member 2          ║ connections,
//!                  workers W..2W   workers 2W..3W ═════╝ each to each
//! ```
//!
//! The [coordinator](Shape::is_coordinator) owns everything that there is once: the checkpoints, the tables, the online store,
//! the slow lane, and the clock. A member has workers, reads its share of the Kafka partitions and writes with producers of its own; what its
//! workers leave of an epoch travels to the coordinator, which decides. So only the coordinator needs the place of the state,
//! and a member begins with what the coordinator sends it.
//!
//! All processes start together and end together: timely has no way to replace one. Whoever loses another one ends at once
//! with [`LOST`], and everything goes on from the newest checkpoint when all are started again: by the
//! [supervisor](crate::supervisor), by systemd, or by whatever runs containers.
//!
//! [`handshake`] lets in only who knows the secret, [`join`] connects the processes, [`link`] carries the [messages](message),
//! [`socket`] is what timely reads and writes.

use std::ops::Range;
use std::sync::Once;

use crate::exit;

pub mod handshake;
pub mod join;
pub mod link;
pub mod message;
pub mod socket;
#[cfg(test)]
mod tests;

pub use join::{Joined, Membership, join};

/// The exit code of a process that has lost another one: start all of them again.
pub const LOST: i32 = 8;

/// How the workers of a job are spread over processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Number of processes.
    pub processes: usize,
    /// The number of this process.
    pub process: usize,
    /// Workers of each process.
    pub workers: usize,
}

impl Shape {
    /// One process.
    pub fn single(workers: usize) -> Shape {
        Shape { processes: 1, process: 0, workers }
    }

    /// Workers of all processes.
    pub fn total(&self) -> usize {
        self.processes * self.workers
    }

    /// The workers of this process.
    pub fn local(&self) -> Range<usize> {
        self.process * self.workers..(self.process + 1) * self.workers
    }

    /// The coordinator's worker that takes what worker `worker` has for what there is once.
    pub fn at_coordinator(&self, worker: usize) -> usize {
        worker % self.workers
    }

    /// Whether this process owns what there is once.
    pub fn is_coordinator(&self) -> bool {
        self.process == 0
    }
}

/// Another process is gone, or does not answer: ends this one. Nothing is lost, the next start goes on from the newest
/// checkpoint; but half a job is worse than none.
pub fn lost(process: usize, why: &str) -> ! {
    static SAID: Once = Once::new();
    SAID.call_once(|| tracing::error!(process, why, "another process of the job is gone: this one ends as well"));
    exit::now(LOST)
}

/// What another process of the job reported before it ended: this one ends for the same reason.
#[derive(Debug, thiserror::Error)]
#[error("process {process}: {text}")]
pub struct PeerFailure {
    /// Which process.
    pub process: usize,
    /// What it said.
    pub text: String,
    /// The exit code that it asks for.
    pub code: u8,
}
