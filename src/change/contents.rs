//! What a checkpoint has of a node: state, positions, outputs on their way.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use crate::checkpoint::report::{NodeContents, Pending};
use crate::checkpoint::{Checkpoint, CheckpointError};

/// What a checkpoint has of a node.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Contents {
    /// Keys of its state.
    #[serde(skip_serializing_if = "is_zero")]
    pub keys: u64,
    /// Aggregates that are lost of a group, and how many there are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub aggregates: Option<(usize, usize)>,
    /// Bytes of its state, each key once.
    #[serde(skip_serializing_if = "is_zero")]
    pub bytes: u64,
    /// Of a source: the next offset by topic (or file) and partition.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub positions: BTreeMap<String, i64>,
    /// Of a file: how long it is.
    #[serde(skip_serializing_if = "is_zero")]
    pub length: u64,
    /// Of a sink or table: what is decided and maybe not committed yet.
    #[serde(skip_serializing_if = "Pending::is_empty")]
    pub waiting: Pending,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl Contents {
    /// Of the node of that section and name.
    ///
    /// # Errors
    /// If the node's rows are cut.
    pub fn of(checkpoint: &Checkpoint, node: &str) -> Result<Contents, CheckpointError> {
        let (section, name) = node.split_once('.').unwrap_or((node, ""));
        Ok(match section {
            "sources" => Contents::of_source(checkpoint, name),
            "sinks" => {
                let blocks = checkpoint.outbox.iter().filter(|((sink, _), _)| sink == name);
                let length = checkpoint.progress.sinks.get(name).copied().unwrap_or(0);
                Contents { length, waiting: Pending::of(blocks.flat_map(|(_, blocks)| blocks)), ..Contents::default() }
            }
            "offline" => {
                let blocks = checkpoint.offline.get(name).into_iter().flatten();
                Contents { waiting: Pending::of(blocks), ..Contents::default() }
            }
            _ => match checkpoint.nodes.get(node) {
                Some(state) => {
                    let NodeContents { keys, bytes, .. } = NodeContents::of(node, state)?;
                    Contents { keys, bytes, ..Contents::default() }
                }
                None => Contents::default(),
            },
        })
    }

    /// Of source `name`.
    pub fn of_source(checkpoint: &Checkpoint, name: &str) -> Contents {
        let positions = checkpoint.progress.positions.get(name).into_iter().flat_map(|positions| &positions.0);
        let named = positions.map(|((topic, partition), next)| (format!("{topic}/{partition}"), *next));
        Contents { positions: named.collect(), ..Contents::default() }
    }

    /// Whether nothing would be lost with it. A file stays where it is.
    pub fn is_empty(&self) -> bool {
        self.keys == 0 && self.positions.is_empty() && self.waiting.is_empty()
    }
}

impl fmt::Display for Contents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Contents { keys, aggregates, bytes, positions, length, waiting } = self;
        if let Some((lost, all)) = aggregates {
            return write!(f, "{lost} of {} of {}", counted(*all as u64, "aggregate"), counted(*keys, "key"));
        }
        let mut parts = Vec::new();
        if *keys > 0 {
            parts.push(format!("{}, {bytes} bytes of state", counted(*keys, "key")));
        }
        if !positions.is_empty() {
            let each = positions.iter().map(|(partition, next)| format!("{partition} at {next}"));
            parts.push(each.collect::<Vec<_>>().join(", "));
        }
        if *length > 0 {
            parts.push(format!("{length} bytes in the file"));
        }
        if let Some((first, last)) = waiting.epochs {
            let bytes = waiting.bytes;
            parts.push(format!("{bytes} bytes of epochs {first} to {last}, decided and maybe not committed yet"));
        }
        if parts.is_empty() {
            return f.write_str("empty");
        }
        f.write_str(&parts.join("; "))
    }
}

fn counted(number: u64, what: &str) -> String {
    if number == 1 { format!("1 {what}") } else { format!("{number} {what}s") }
}
