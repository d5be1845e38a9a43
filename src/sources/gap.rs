//! Records that a start goes on without: they are gone, and it was allowed to (`run --allow-gap`).

use std::fmt;

use serde::Serialize;

use crate::metrics::catalogue::{SOURCE_GAPS, SOURCE_MISSED_OFFSETS};

/// What a start misses of a partition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Gap {
    /// The source.
    pub source: String,
    /// The topic.
    pub topic: String,
    /// The partition.
    pub partition: i32,
    /// Why records are missed.
    pub reason: Reason,
    /// The first offset that is missed.
    pub from: i64,
    /// The last one; `None` if nobody can say.
    pub to: Option<i64>,
    /// How many they are. Not each has a record: compaction and the marks of transactions leave holes.
    pub offsets: Option<u64>,
}

/// Why records are missed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// They are older than the partition's oldest record: retention has removed them, or somebody has.
    Removed,
    /// The topic is another one of the name. What the one before had beyond the position, nobody knows.
    MadeAnew,
    /// The partition ends before the position: its log was cut. What was written in place of that before this start, nobody
    /// knows.
    CutBack,
}

impl Gap {
    /// Says so in the log and in the metrics.
    pub fn tell(&self) {
        let Gap { source, topic, partition, .. } = self;
        SOURCE_GAPS.of([source.as_str(), topic.as_str()]).increment(1);
        SOURCE_MISSED_OFFSETS.of([source.as_str(), topic.as_str()]).increment(self.offsets.unwrap_or(0));
        tracing::warn!(
            source,
            topic,
            partition,
            from = self.from,
            to = self.to,
            offsets = self.offsets,
            missed = %self,
            "records are missed, as `--allow-gap` says"
        );
    }
}

impl fmt::Display for Gap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Gap { topic, partition, reason, from, .. } = self;
        match (reason, self.to, self.offsets) {
            (Reason::Removed, Some(to), Some(offsets)) => {
                write!(f, "{topic}/{partition} offsets {from} to {to} ({offsets}), which were removed")
            }
            (Reason::Removed, ..) => write!(f, "{topic}/{partition} from offset {from}, which were removed"),
            (Reason::MadeAnew, ..) => {
                write!(f, "{topic}/{partition} from offset {from} on of the topic before, which was made anew")
            }
            (Reason::CutBack, ..) => {
                write!(f, "{topic}/{partition} what was written from offset {from} on since it was cut back to there")
            }
        }
    }
}
