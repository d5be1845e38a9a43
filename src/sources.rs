//! Sources: where events come from. One kind a connection; formats ([`FormatKind`](millstream_operators::decode::FormatKind)) are apart.
//!
//! A connector reads on threads of its own and hands batches to one bounded [`Port`] a worker. A full port makes the
//! connector wait, and so the broker keep the rest: that is the engine's backpressure. Positions (partition -> next
//! offset) belong to the checkpoint, never to the connector.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread::JoinHandle;

use millstream_operators::error::ConfigError;
use millstream_operators::kinds;
use millstream_operators::reject::Reject;
use millstream_operators::{Batch, Messages};

use crate::cluster::Shape;

pub mod file;
pub mod gap;
pub mod kafka;
pub mod memory;
pub mod partitions;
pub mod status;

pub use gap::Gap;
pub use partitions::{Partitions, Positions, Topic, Topics};
pub use status::{Connection, Status};

kinds! {
    /// Where events come from.
    pub enum SourceKind("source"): SourceSettings {
        "kafka" => Kafka(kafka::KafkaSource),
        "file" => File(file::FileSource),
        "memory" => Memory(memory::MemorySource),
    }
}

/// The settings of a source.
pub trait SourceSettings {
    /// What is wrong with the settings without asking the world; paths start below the kind's name.
    fn errors(&self) -> Vec<ConfigError> {
        Vec::new()
    }

    /// What reads it live; `None` for a source that ends, which the replay's reader reads.
    fn connector(&self) -> Option<&dyn Connector> {
        None
    }

    /// The topics that its positions name; `None` for a source without topics.
    fn topics(&self) -> Option<&[String]> {
        None
    }
}

/// What a connector hands to a worker.
#[derive(Debug)]
pub enum Arrival {
    /// Messages to decode, all of one partition or several, in offset order within each.
    Messages(Messages),
    /// Rows of one source that are already decoded (files, replays), and the records that failed on the way. When all
    /// of them failed, the batch is empty and its columns mean nothing.
    Records(Batch, Vec<Reject>),
    /// Everything before the timely time has been handed over (replays, which decide about time themselves).
    Advance(u64),
    /// A partition is read from `offset` on: its position until its first message. Without it, a partition that had no
    /// message yet would start anew at the next start and skip what came meanwhile.
    Position {
        /// The number in the table of partitions.
        partition: u32,
        /// The next offset that will be read.
        offset: i64,
    },
    /// All partitions that are this worker's at the start have come, each with its position: until then it is not known whose events are
    /// still to come, and time stands still. What comes by itself, from files, needs no such word.
    Assigned,
    /// The newest event time that `partition` will not go back behind by more than the lateness is not known any more:
    /// it has no events.
    Idle(u32),
    /// No more will come: the end of a bounded source.
    End,
}

/// A worker's bounded inbox for one source. Sending wakes the worker.
pub struct Port {
    sender: crossbeam_channel::Sender<Arrival>,
    wake: Box<dyn Fn() + Send + Sync>,
}

/// The worker is gone: the connector stops.
#[derive(Debug, thiserror::Error)]
#[error("the worker has stopped")]
pub struct Closed;

impl Port {
    /// A port that sends into `sender` and calls `wake` after every send.
    pub fn new(sender: crossbeam_channel::Sender<Arrival>, wake: Box<dyn Fn() + Send + Sync>) -> Self {
        Port { sender, wake }
    }

    /// Hands `arrival` over; waits while the inbox is full.
    ///
    /// # Errors
    /// [`Closed`] if the worker has stopped.
    pub fn send(&self, arrival: Arrival) -> Result<(), Closed> {
        self.sender.send(arrival).map_err(|_| Closed)?;
        (self.wake)();
        Ok(())
    }
}

/// What a connector needs to start.
pub struct Start {
    /// The source's name in the topology, for messages and metrics.
    pub name: Arc<str>,
    /// The source's index in the plan: `Row::source`.
    pub source: u16,
    /// Name of the job: the consumer group.
    pub job: Arc<str>,
    /// The folder that relative paths start from.
    pub folder: std::path::PathBuf,
    /// Largest message accepted, in bytes; a larger one is handed over truncated to this plus one byte, for the decoder
    /// to reject.
    pub message_size_max: usize,
    /// How long a partition must have been read to its end before it is [`Idle`](Arrival::Idle).
    pub idle_after: std::time::Duration,
    /// Where to go on: the next offset of each partition. A partition that is not named starts at the kind's default.
    pub positions: Positions,
    /// What was known of the topics when these were the positions.
    pub topics: Topics,
    /// Where to end, before the offset of each partition; one that is not named is not read. `None` for a source that reads on.
    pub until: Option<Positions>,
    /// One inbox for each worker of this process.
    pub ports: Vec<Port>,
    /// How the workers are spread over processes. Partition p belongs to worker p % shape.total().
    pub shape: Shape,
    /// The job's table of partitions: gives each (topic, partition) the number in `Row::partition`.
    pub partitions: Arc<Partitions>,
    /// Set when the job drains: stop reading, send `End`, return.
    pub stop: Arc<AtomicBool>,
    /// Readiness and committed positions.
    pub status: Arc<Status>,
}

/// A source that can be started.
pub trait Connector {
    /// Checks the configuration against the world (broker reachable and topic there, files readable) and starts reading.
    /// Returns the reading thread.
    ///
    /// # Errors
    /// What was tried and what the world said.
    fn start(&self, start: Start) -> Result<JoinHandle<Result<(), SourceError>>, SourceError>;

    /// Moves the `positions` of source `name` of `job` behind records that are gone, and `topics` to those that are there; gives
    /// what is missed. Waits for brokers that are away.
    ///
    /// # Errors
    /// A topic that is missing, a client that is not let in.
    fn pass_gaps(
        &self,
        name: &str,
        job: &str,
        positions: &mut Positions,
        topics: &mut Topics,
    ) -> Result<Vec<Gap>, SourceError>;
}

/// A source that failed.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// A file can't be read or is not what it should be.
    #[error("source `{name}`: {path}: {detail}")]
    File {
        /// The source.
        name: String,
        /// The file, with `:line` where a line is to blame.
        path: String,
        /// What was wrong.
        detail: String,
    },
    /// The broker refused or is not there.
    #[error("source `{name}`: {detail}")]
    Kafka {
        /// The source.
        name: String,
        /// What was tried and what the broker said.
        detail: String,
    },
    /// A topic is to be replayed, and nothing says in which files its events are.
    #[error(
        "source `{name}` has no history, and a replay reads the history of its sources; write `history: {{ files: ... }}`"
    )]
    NoHistory {
        /// The source.
        name: String,
    },
    /// The position to go on from is gone (retention, a topic made anew): records would be missed.
    #[error(
        "source `{name}`: {topic}/{partition}: position {position} is not available ({detail}); records would be lost. Go on \
         without them, and keep the state, with `--allow-gap {name}`, or start anew with `--fresh`"
    )]
    Gap {
        /// The source.
        name: String,
        /// The topic.
        topic: String,
        /// The partition.
        partition: i32,
        /// The position wanted.
        position: i64,
        /// What is there.
        detail: String,
    },
}
