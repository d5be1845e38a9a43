//! What the coordinator and a member say to each other, in the order in which it can happen.
//!
//! ```text
//! coordinator                                   member
//!   Welcome, State ..., Begin              ──▶    opens its sinks and models
//!                                          ◀──  IsOwned: has nobody taken over from us?
//!   IsOwned, for each of its writers       ──▶
//!                                          ◀──  Clock: how long has the job run?
//!   Clock                                  ──▶    builds its workers
//!                                          ◀──  Ready
//!   Start                                  ──▶    reads
//!   Partitions, Told ...                   ◀─▶  Number, Said, Word ...
//!                                          ◀──  Finished, or Failed
//!   Bye                                    ──▶    ends
//! ```

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::checkpoint::{Pending, Progress};
use crate::runtime::ledger::wire::WordOnWire;
use crate::runtime::meter::Counts;
use crate::runtime::shared::BySource;
use crate::sources::partitions::Named;

/// From the coordinator to a member.
#[derive(Debug, Serialize, Deserialize)]
pub enum ToMember {
    /// Where the job goes on.
    Welcome(Box<Welcome>),
    /// State of a node: what a key group has, oldest first.
    State {
        /// The node, by section and name.
        node: String,
        /// The key group.
        key_group: u16,
        /// Its rows.
        rows: Vec<Bytes>,
    },
    /// That was all: open what you need.
    Begin,
    /// Whether the start still has the job; an error if that can't be told.
    IsOwned(Result<bool, String>),
    /// Nanoseconds since the first epoch began.
    Clock(u64),
    /// All processes are ready: read.
    Start,
    /// Partitions that have got their numbers, in the order of their numbers.
    Partitions(Vec<Named>),
    /// How the job stands.
    Told(Told),
    /// The job has ended.
    Bye,
}

/// Where the job goes on, as a member needs it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Welcome {
    /// Tells this life of the job from all others.
    pub id: String,
    /// Tells this start from all others.
    pub start: String,
    /// Which start of the job it is.
    pub generation: u64,
    /// Whether outputs may be written again that are there already.
    pub may_repeat: bool,
    /// The nodes that are new to the job.
    pub began: Vec<String>,
    /// What the job knew at the end of the newest checkpoint's epoch.
    pub progress: Progress,
    /// Records of the member's writers that may not be committed: (sink, writer), records by epoch.
    pub outbox: Vec<((String, u16), Pending)>,
}

/// How the job stands, as the coordinator sees it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Told {
    /// Everything up to this epoch is decided.
    pub decided: u64,
    /// Whether no source gives rows any more.
    pub exhausted: bool,
    /// The last epoch of the run, once it is known.
    pub last: Option<u64>,
    /// Whether the job drains.
    pub draining: bool,
    /// Whether the job fails.
    pub failing: bool,
    /// Rows between workers, as the other processes count them.
    pub rows_in_flight: i64,
    /// Whether another process holds the sources.
    pub held: bool,
    /// Watermarks of all sources, at the ends of epochs.
    pub watermarks: Vec<(u64, BySource)>,
}

/// From a member to the coordinator.
#[derive(Debug, Serialize, Deserialize)]
pub enum ToCoordinator {
    /// Does the start still have the job?
    IsOwned,
    /// How long has the job run?
    Clock,
    /// The workers are built and have their state.
    Ready,
    /// What a worker leaves of an epoch.
    Word(WordOnWire),
    /// A partition needs a number.
    Number {
        /// The topic.
        topic: String,
        /// The partition.
        partition: i32,
    },
    /// How the member stands.
    Said(Said),
    /// The member can't go on.
    Failed {
        /// The exit code that it asks for.
        code: u8,
        /// Why.
        text: String,
    },
    /// All is done and durable: what the member has counted.
    Finished(Box<Counts>),
}

/// How a member stands.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Said {
    /// Whether none of its sources gives rows any more.
    pub exhausted: bool,
    /// The newest epoch that one of its sources had open when all of them had come to rest.
    pub rested: Option<u64>,
    /// Whether somebody asked the member to stop.
    pub draining: bool,
    /// Rows between workers, as it counts them.
    pub rows_in_flight: i64,
    /// Whether it holds the sources.
    pub held: bool,
    /// The newest durable epoch of each of its writers, by the writer's number.
    pub durable: Vec<(usize, u64)>,
    /// Watermarks of its sources, at the ends of epochs.
    pub watermarks: Vec<(u64, BySource)>,
}

/// Bytes as bytes, not as numbers one by one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bytes(pub Vec<u8>);

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Bytes;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("bytes")
            }
            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Bytes, E> {
                Ok(Bytes(bytes.to_vec()))
            }
        }
        deserializer.deserialize_bytes(Visitor)
    }
}
