//! Feature groups that are defined otherwise, but not altogether: an aggregate more or less changes nothing about the
//! others, whose state goes on.
//!
//! A checkpoint has, beside the state of a group, what stands where in it. That is state itself (`features.card.shape`, one
//! row), written when a group begins, so that not each manifest has to say it.

use millstream_operators::features::Shape;
use millstream_operators::state::{StateError, rows};
use serde::{Deserialize, Serialize};

use crate::checkpoint::{Checkpoint, CheckpointError, NodeState};
use crate::online::{self, Packed};
use crate::plan::GroupPlan;

/// What a checkpoint says about the state of a group.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Layout {
    /// Digest of the rows that feed it, its keys and its tiles: with others nothing is the same.
    fed: String,
    /// What stands where in the state of a key.
    shape: Shape,
    /// What stands where in the served features of a key.
    served: Vec<Packed>,
}

/// The key group and the key of a layout's row.
const PART: u16 = 0;
const KEY: &[u8] = b"layout";

impl Layout {
    /// Of a group of the plan.
    pub fn of(group: &GroupPlan) -> Layout {
        Layout { fed: group.fed().to_string(), shape: group.shape(), served: group.served() }
    }

    /// What the checkpoint says of a group; `None` if it has none of the name.
    pub fn read(checkpoint: &Checkpoint, group: &GroupPlan) -> Option<Layout> {
        let parts = checkpoint.nodes.get(&group.shape_path())?.get(&PART)?;
        let row = rows::read(parts.last()?).next()?.ok()?;
        serde_json::from_slice(row.1.whole().ok()??).ok()
    }

    /// As a node's state.
    pub fn state(&self) -> NodeState {
        let mut writer = rows::Writer::default();
        // Plain data with texts as keys can always be written.
        writer.put(KEY, |bytes| bytes.extend(serde_json::to_vec(self).unwrap_or_default()));
        NodeState::from([(PART, vec![writer.finish()])])
    }

    /// How many aggregates would be lost, and of how many, if the group went on as `after`; `None` if it can't.
    pub fn lost(&self, after: &Layout) -> Option<(usize, usize)> {
        let (lost, all) = self.shape.lost(&after.shape);
        (self.fed == after.fed && lost < all).then_some((lost, all))
    }

    /// The state of a group of this layout as state of `group`, whose layout is `after`.
    ///
    /// # Errors
    /// If a row does not decode.
    pub fn carry(&self, after: &Layout, group: &GroupPlan, state: &NodeState) -> Result<NodeState, CheckpointError> {
        let operator = group.operator();
        each_part(&group.path(), state, |part, rows| operator.carry(&self.shape, &after.shape, part, rows))
    }

    /// The same for its served features.
    ///
    /// # Errors
    /// If a row does not decode.
    pub fn carry_served(
        &self,
        after: &Layout,
        group: &GroupPlan,
        state: &NodeState,
    ) -> Result<NodeState, CheckpointError> {
        each_part(&group.online_path(), state, |part, rows| online::carry(&self.served, &after.served, part, rows))
    }
}

/// The rows that stand of each key group, made anew.
fn each_part(
    node: &str,
    state: &NodeState,
    make: impl Fn(u16, &[u8]) -> Result<Vec<u8>, StateError>,
) -> Result<NodeState, CheckpointError> {
    let corrupt = |detail| CheckpointError::Corrupt { path: format!("the state of `{node}`"), detail };
    let mut made = NodeState::new();
    for (part, blocks) in state {
        let standing = rows::merge(blocks.iter().map(Vec::as_slice)).map_err(corrupt)?;
        let rows = make(*part, &standing).map_err(|error| corrupt(error.to_string()))?;
        made.insert(*part, vec![rows]);
    }
    Ok(made)
}
