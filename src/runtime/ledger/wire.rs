//! What a worker leaves of an epoch, on its way to the coordinator of another process.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Part, SourcePart, Word};
use crate::checkpoint::{Block, Kind};
use crate::cluster::message::Bytes;
use crate::sinks::Records;

/// A [`Word`] that can travel. Rows for tables are not in it: their taps are on the coordinator's workers.
#[derive(Debug, Serialize, Deserialize)]
pub struct WordOnWire {
    participant: usize,
    through: u64,
    parts: Vec<PartOnWire>,
}

#[derive(Debug, Serialize, Deserialize)]
struct PartOnWire {
    epoch: u64,
    state: Vec<StateOnWire>,
    outbox: Vec<(String, u16, Vec<Records>)>,
    sources: Vec<SourcePart>,
}

#[derive(Debug, Serialize, Deserialize)]
struct StateOnWire {
    node: String,
    key_group: u16,
    epoch: u64,
    rows: Bytes,
}

impl From<Word> for WordOnWire {
    fn from(word: Word) -> WordOnWire {
        let part = |(epoch, part): (u64, Part)| {
            debug_assert!(part.offline.is_empty(), "rows for tables go to the coordinator's workers");
            let state = part.state.into_iter().map(|block| StateOnWire {
                node: block.name.to_string(),
                key_group: block.part,
                epoch: block.epoch,
                rows: Bytes(block.bytes),
            });
            let outbox = part.outbox.into_iter().map(|(sink, writer, records)| {
                (sink.to_string(), writer, records.into_iter().map(Arc::unwrap_or_clone).collect())
            });
            PartOnWire { epoch, state: state.collect(), outbox: outbox.collect(), sources: part.sources }
        };
        WordOnWire {
            participant: word.participant,
            through: word.through,
            parts: word.parts.into_iter().map(part).collect(),
        }
    }
}

impl From<WordOnWire> for Word {
    fn from(word: WordOnWire) -> Word {
        let part = |part: PartOnWire| {
            let state = part.state.into_iter().map(|state| Block {
                kind: Kind::State,
                name: state.node.into(),
                part: state.key_group,
                epoch: state.epoch,
                bytes: state.rows.0,
            });
            let outbox = part
                .outbox
                .into_iter()
                .map(|(sink, writer, records)| (Arc::from(sink), writer, records.into_iter().map(Arc::new).collect()));
            let (state, outbox) = (state.collect(), outbox.collect());
            (part.epoch, Part { state, outbox, offline: Vec::new(), sources: part.sources })
        };
        Word { participant: word.participant, through: word.through, parts: word.parts.into_iter().map(part).collect() }
    }
}
