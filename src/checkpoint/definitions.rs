//! What a checkpoint remembers of the nodes that it has something of: which definition each was made with, and since when.
//!
//! Nothing is taken out of a segment when a node is dropped: the manifest says what counts. A node that is dropped and comes
//! back later under the same name begins at the end of another epoch, and so never finds the rows of the first.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Kind;

/// A node that has state or an effect.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Defined {
    /// Digest of its definition.
    pub digest: String,
    /// The epoch at whose end it began: what the segments hold of its name up to then was another node's.
    pub since: u64,
}

/// The nodes, by section and name: `features.card`, `sinks.predictions`.
pub type Definitions = BTreeMap<String, Defined>;

/// Whether a block counts: its node is still there, and it came to be after the node began.
pub(super) fn counts(definitions: &Definitions, kind: Kind, name: &str, epoch: u64) -> bool {
    let defined = match kind {
        Kind::State => definitions.get(name),
        Kind::Outbox => definitions.get(&format!("sinks.{name}")),
        Kind::Offline => definitions.get(&format!("offline.{name}")),
    };
    defined.is_some_and(|defined| epoch > defined.since)
}
