//! Feature groups that are defined otherwise, but not altogether: an aggregate more or less changes nothing about the
//! others, whose state goes on. What is new begins empty, or with what a backfill has made of it.
//!
//! A checkpoint has, beside the state of a group, what stands where in it. That is state itself (`features.card.shape`, one
//! row), written when a group begins, so that not each manifest has to say it.

use std::collections::BTreeSet;

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
}

/// The state that a group of another definition begins with.
#[derive(Debug, Default)]
pub(super) struct Made {
    /// Its own.
    pub state: Option<NodeState>,
    /// Its served features'.
    pub served: Option<NodeState>,
}

impl Made {
    /// Of `group`, whose layout is `layout`: what goes on of the checkpoint's group, and what is new in it from `filled`; all from there if
    /// nothing goes on.
    ///
    /// # Errors
    /// If a row does not decode.
    pub fn of(
        group: &GroupPlan,
        layout: &Layout,
        checkpoint: &Checkpoint,
        filled: &Checkpoint,
    ) -> Result<Made, CheckpointError> {
        let was = Layout::read(checkpoint, group).filter(|was| was.lost(layout).is_some());
        let carried = was.as_ref().map(|was| Made::carried(group, was, layout, checkpoint)).transpose()?;
        let again = Layout::read(filled, group).map(|was| Made::carried(group, &was, layout, filled)).transpose()?;
        let (Some(was), Some(carried)) = (was, carried) else { return Ok(again.unwrap_or_default()) };
        let Some(again) = again else { return Ok(carried) };
        let operator = group.operator();
        Ok(Made {
            state: both(&group.path(), carried.state, again.state, |part, carried, again| {
                operator.fill(&was.shape, &layout.shape, part, carried, again)
            })?,
            served: both(&group.online_path(), carried.served, again.served, |part, carried, again| {
                online::fill(&was.served, &layout.served, part, carried, again)
            })?,
        })
    }

    /// What a checkpoint has of a group of the layout `was`, in the layout `is`.
    fn carried(group: &GroupPlan, was: &Layout, is: &Layout, checkpoint: &Checkpoint) -> Result<Made, CheckpointError> {
        let operator = group.operator();
        let (own, served) = (group.path(), group.online_path());
        Ok(Made {
            state: each(&own, checkpoint, |part, rows| operator.carry(&was.shape, &is.shape, part, rows))?,
            served: each(&served, checkpoint, |part, rows| online::carry(&was.served, &is.served, part, rows))?,
        })
    }
}

/// A node's rows in a checkpoint that stand of each key group, made anew.
fn each(
    node: &str,
    checkpoint: &Checkpoint,
    make: impl Fn(u16, &[u8]) -> Result<Vec<u8>, StateError>,
) -> Result<Option<NodeState>, CheckpointError> {
    let Some(state) = checkpoint.nodes.get(node) else { return Ok(None) };
    let made = state.iter().map(|(part, blocks)| {
        let rows = standing(node, blocks)?;
        Ok((*part, vec![make(*part, &rows).map_err(|error| corrupt(node, error.to_string()))?]))
    });
    made.collect::<Result<_, _>>().map(Some)
}

/// The rows that stand of each key group of two states, made one.
fn both(
    node: &str,
    carried: Option<NodeState>,
    again: Option<NodeState>,
    make: impl Fn(u16, &[u8], &[u8]) -> Result<Vec<u8>, StateError>,
) -> Result<Option<NodeState>, CheckpointError> {
    let (carried, again) = match (carried, again) {
        (Some(carried), Some(again)) => (carried, again),
        (one, other) => return Ok(one.or(other)),
    };
    let parts: BTreeSet<u16> = carried.keys().chain(again.keys()).copied().collect();
    let rows = |state: &NodeState, part| standing(node, state.get(&part).map_or(&[], Vec::as_slice));
    let made = parts.into_iter().map(|part| {
        let made = make(part, &rows(&carried, part)?, &rows(&again, part)?);
        Ok((part, vec![made.map_err(|error| corrupt(node, error.to_string()))?]))
    });
    made.collect::<Result<_, _>>().map(Some)
}

fn standing(node: &str, blocks: &[Vec<u8>]) -> Result<Vec<u8>, CheckpointError> {
    rows::merge(blocks.iter().map(Vec::as_slice)).map_err(|detail| corrupt(node, detail))
}

fn corrupt(node: &str, detail: String) -> CheckpointError {
    CheckpointError::Corrupt { path: format!("the state of `{node}`"), detail }
}
