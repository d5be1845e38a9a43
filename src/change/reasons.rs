//! Why a node is defined otherwise although its own text is what it was: something that it reads is not.
//!
//! A checkpoint has a digest of each node's own text, in a state of its own, one row a node. Only reasons are looked for in it:
//! what is kept is decided by the definitions.

use std::collections::BTreeSet;

use millstream_operators::state::rows;

use crate::checkpoint::{Checkpoint, NodeState};
use crate::plan::Plan;
use crate::plan::definitions::TEXTS;

/// The plan's texts as a node's state.
pub(super) fn state(plan: &Plan) -> NodeState {
    let mut writer = rows::Writer::default();
    for (node, text) in &plan.texts {
        writer.put(node.as_bytes(), |bytes| bytes.extend_from_slice(text.digest.as_bytes()));
    }
    NodeState::from([(0, vec![writer.finish()])])
}

/// The nodes whose texts have changed and which `node` is or reads, through others or not; those that nothing but changed
/// nodes leads to are left out.
pub(super) fn because(checkpoint: &Checkpoint, plan: &Plan, node: &str) -> Vec<String> {
    let Some(parts) = checkpoint.nodes.get(TEXTS).and_then(|state| state.get(&0)) else { return Vec::new() };
    let known: Vec<rows::Row<'_>> =
        parts.last().into_iter().flat_map(|part| rows::read(part)).filter_map(Result::ok).collect();
    let is_same = |node: &str, digest: &str| known.contains(&(node.as_bytes(), rows::Change::Whole(digest.as_bytes())));
    let (mut found, mut seen, mut open) = (BTreeSet::new(), BTreeSet::new(), vec![node.to_string()]);
    while let Some(node) = open.pop() {
        let Some(text) = plan.texts.get(&node).filter(|_| seen.insert(node.clone())) else { continue };
        match is_same(&node, &text.digest) {
            true => open.extend(text.reads.iter().cloned()),
            false => drop(found.insert(node)),
        }
    }
    found.into_iter().collect()
}
