//! What a changed topology means for a job that has a checkpoint: which nodes go on, which begin, and what would be lost.
//!
//! State belongs to a node's name and definition. A node of the checkpoint that the plan has under the same name with the
//! same definition is **kept**, whatever else has changed. One of another definition is **recomputed**: it begins empty,
//! and new records fill it; a feature group that has some aggregates in common with itself is **extended**: they go on. A
//! source, sink or table of another place is **replaced**. One that the plan lacks is **dropped**. What the checkpoint lacks
//! is **new**. A group that does not go on as it is may be [filled](crate::backfill) with what was read before: a **backfill**.
//!
//! ```text
//! checkpoint: features.card 5f0c…  features.shop a18b…  drift.amount 77d1…
//! plan:       features.card 5f0c…  features.shop 0e42…                      features.city 3c9a…
//!             keep                 recompute            drop                new
//! ```
//!
//! Nothing is lost without a word: a start refuses a change that would lose something, until each node that loses is named.
//! What can be lost is state, positions of sources, and outputs that are decided but maybe not yet where they belong: the
//! records of a sink that is gone or writes elsewhere, the rows of a table likewise. A job that was stopped cleanly has
//! none of the latter.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use serde::Serialize;

use crate::checkpoint::{Block, Checkpoint, CheckpointError, Defined, Definitions, Kind, NodeState};
use crate::plan::definitions::TEXTS;
use crate::plan::{GroupPlan, Plan};
pub use contents::Contents;
use groups::{Layout, Made};

mod contents;
mod groups;
mod reasons;
#[cfg(test)]
mod tests;

/// What becomes of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It goes on with what the checkpoint has of it.
    Keep,
    /// It begins.
    New,
    /// It is a feature group that is defined otherwise, and goes on with what the two definitions have in common.
    Extend,
    /// It is computed otherwise: what the checkpoint has of it is dropped, and new records fill it.
    Recompute,
    /// It is a feature group that is new or defined otherwise, and goes on with what a backfill has made of the records that
    /// the job has read.
    Backfill,
    /// It is a source, sink or table of another place: what the checkpoint has of the old one is dropped.
    Replace,
    /// It is gone, and so is what the checkpoint has of it.
    Drop,
}

/// A node of the plan or of the checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct NodeChange {
    /// Its section and name, such as `features.card`.
    pub node: String,
    /// What becomes of it.
    pub verdict: Verdict,
    /// The nodes whose text has changed and which it is or reads, if it is defined otherwise: they are why.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub because: Vec<String>,
    /// What the checkpoint has of it, if that was [asked for](Change::measure).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub has: Option<Contents>,
    /// What would be lost of it; `None` if nothing would.
    pub loses: Option<Contents>,
}

/// A plan beside a checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Change {
    /// The checkpoint's epoch.
    pub epoch: u64,
    /// Every node that has state or an effect, in the plan or in the checkpoint.
    pub nodes: Vec<NodeChange>,
}

impl Change {
    /// Compares. `bounded` says that sources are read from files.
    ///
    /// # Errors
    /// If the checkpoint's rows are cut.
    pub fn between(checkpoint: &Checkpoint, plan: &Plan, bounded: bool) -> Result<Change, CheckpointError> {
        let (was, is) = (&checkpoint.progress.definitions, plan.definitions());
        let names: BTreeSet<&String> =
            was.keys().chain(is.keys()).filter(|node| !belongs_to_group(node) && *node != TEXTS).collect();
        let mut nodes = Vec::new();
        for node in names {
            let verdict = match (was.get(node), is.get(node)) {
                (Some(was), Some(is)) if was.digest == *is => Verdict::Keep,
                (Some(_), Some(_)) if is_end(node) => Verdict::Replace,
                (Some(_), Some(_)) if lost_of_group(checkpoint, plan, node).is_some() => Verdict::Extend,
                (Some(_), Some(_)) => Verdict::Recompute,
                (None, _) => Verdict::New,
                (Some(_), None) => Verdict::Drop,
            };
            let loses = match verdict {
                Verdict::New => None,
                Verdict::Extend => {
                    let aggregates = lost_of_group(checkpoint, plan, node).filter(|(lost, _)| *lost > 0);
                    let contents = Contents::of(checkpoint, node)?;
                    aggregates
                        .filter(|_| contents.keys > 0)
                        .map(|aggregates| Contents { aggregates: Some(aggregates), ..contents })
                }
                Verdict::Keep => unread_positions(checkpoint, plan, node, bounded),
                Verdict::Recompute | Verdict::Backfill | Verdict::Replace | Verdict::Drop => {
                    Some(Contents::of(checkpoint, node)?).filter(|contents| !contents.is_empty())
                }
            };
            let because = match verdict {
                Verdict::Recompute | Verdict::Extend => reasons::because(checkpoint, plan, node),
                _ => Vec::new(),
            };
            nodes.push(NodeChange { node: node.clone(), verdict, because, has: None, loses });
        }
        Ok(Change { epoch: checkpoint.progress.epoch, nodes })
    }

    /// Has the feature groups of these names (`card` or `features.card`) begin with what a backfill has made. Gives their paths,
    /// without those that are kept.
    ///
    /// # Errors
    /// If one of them is no feature group of the plan.
    pub fn backfill(&mut self, groups: &[String], plan: &Plan) -> Result<Vec<String>, NoGroup> {
        let named = named_groups(groups, plan)?;
        let chosen = self.nodes.iter_mut().filter(|node| node.verdict != Verdict::Keep && named.contains(&node.node));
        Ok(chosen
            .map(|node| {
                // What goes on in any case is not made anew, and what was taken out of it is lost.
                if node.verdict != Verdict::Extend {
                    node.loses = None;
                }
                node.verdict = Verdict::Backfill;
                node.node.clone()
            })
            .collect())
    }

    /// Says of each node what the checkpoint has of it. All state is gone through for that.
    ///
    /// # Errors
    /// If the checkpoint's rows are cut.
    pub fn measure(&mut self, checkpoint: &Checkpoint) -> Result<(), CheckpointError> {
        for node in &mut self.nodes {
            node.has = Some(Contents::of(checkpoint, &node.node)?);
        }
        Ok(())
    }

    /// Whether a job may go on with the plan.
    ///
    /// # Errors
    /// The nodes that would lose something and are not `allowed` to, by name (`card`) or section and name
    /// (`features.card`).
    pub fn permit(&self, allowed: &[String]) -> Result<(), Refused> {
        let is_allowed = |node: &str| {
            let name = node.split_once('.').map_or(node, |(_, name)| name);
            allowed.iter().any(|allowed| allowed == node || allowed == name)
        };
        let losing = self.nodes.iter().filter(|node| node.loses.is_some() && !is_allowed(&node.node));
        let losing: Vec<NodeChange> = losing.cloned().collect();
        match losing.is_empty() {
            true => Ok(()),
            false => Err(Refused { epoch: self.epoch, losing }),
        }
    }

    /// Leaves in the checkpoint what the plan goes on with. Gives the state that is made anew, for the next checkpoint: what a
    /// feature group has in common with itself, and what a backfill has made of the rest, `filled`; and that of a further instance
    /// of a group, which has seen the same rows as the first, and begins with the same state.
    ///
    /// # Errors
    /// If rows of one of the checkpoints do not decode.
    pub fn apply(
        &self,
        checkpoint: &mut Checkpoint,
        plan: &Plan,
        bounded: bool,
        filled: &Checkpoint,
    ) -> Result<Vec<Block>, CheckpointError> {
        let made = self.states(checkpoint, plan, filled)?;
        let kept: BTreeSet<&str> =
            self.nodes.iter().filter(|node| node.verdict == Verdict::Keep).map(|node| node.node.as_str()).collect();
        let kept = |section: &str, name: &str| kept.contains(format!("{section}.{name}").as_str());
        let progress = &mut checkpoint.progress;
        let before = std::mem::take(&mut progress.definitions);
        progress.definitions = defined(&before, plan, progress.epoch);
        let digest = |definitions: &Definitions, node: &String| definitions.get(node).map(|node| node.digest.clone());
        checkpoint.nodes.retain(|node, _| digest(&before, node) == digest(&progress.definitions, node));
        checkpoint.outbox.retain(|(sink, _), _| kept("sinks", sink));
        checkpoint.offline.retain(|table, _| kept("offline", table));
        progress.sinks.retain(|sink, _| kept("sinks", sink));
        progress.committed.retain(|effect, _| {
            let (node, _) = effect.rsplit_once('/').unwrap_or((effect, ""));
            node.split_once('.').is_some_and(|(section, name)| kept(section, name))
        });
        progress.positions.retain(|source, _| kept("sources", source));
        progress.event_times.retain(|source, _| kept("sources", source));
        progress.topics.retain(|source, _| kept("sources", source));
        for (name, topics) in topics(plan).into_iter().filter(|_| !bounded) {
            let reads = |(topic, _): &(String, i32)| topics.contains(topic);
            if let Some(positions) = progress.positions.get_mut(name) {
                positions.0.retain(|partition, _| reads(partition));
            }
            if let Some(times) = progress.event_times.get_mut(name) {
                times.retain(|partition, _| reads(partition));
            }
            if let Some(known) = progress.topics.get_mut(name) {
                known.retain(|topic, _| topics.contains(topic));
            }
        }
        let first = progress.epoch + 1;
        let blocks = made.iter().flat_map(|(node, state)| blocks(node, first, state)).collect();
        checkpoint.nodes.extend(made);
        Ok(blocks)
    }

    /// The states that are made anew, of a checkpoint that is still whole.
    fn states(
        &self,
        checkpoint: &Checkpoint,
        plan: &Plan,
        filled: &Checkpoint,
    ) -> Result<Vec<(String, NodeState)>, CheckpointError> {
        let before = &checkpoint.progress.definitions;
        let verdict = |path: &str| self.nodes.iter().find(|node| node.node == path).map(|node| node.verdict);
        let mut made: Vec<(String, NodeState)> = Vec::new();
        if before.get(TEXTS).is_none_or(|before| before.digest != plan.hash) {
            made.push((TEXTS.to_string(), reasons::state(plan)));
        }
        for group in &plan.groups {
            let first = group.first_path();
            let verdict = verdict(&first);
            let layout = Layout::of(group);
            // A checkpoint of an older build may say less of a group that is kept.
            let says_less = || Layout::read(checkpoint, group).is_some_and(|said| said != layout);
            if group.is_first() && (verdict != Some(Verdict::Keep) || says_less()) {
                made.push((group.shape_path(), layout.state()));
            }
            let state = match verdict {
                Some(Verdict::Extend | Verdict::Backfill) if group.is_first() => {
                    // Others may have been computed for it.
                    let filled = if verdict == Some(Verdict::Backfill) { filled } else { &Checkpoint::default() };
                    let Made { state, served } = Made::of(group, &layout, checkpoint, filled)?;
                    made.extend(served.filter(|_| group.online).map(|served| (group.online_path(), served)));
                    state
                }
                Some(Verdict::Extend | Verdict::Backfill) => {
                    made.iter().find(|(node, _)| *node == first).map(|(_, state)| state.clone())
                }
                Some(Verdict::Keep) if !before.contains_key(&group.path()) => checkpoint.nodes.get(&first).cloned(),
                _ => None,
            };
            made.extend(state.map(|state| (group.path(), state)));
        }
        Ok(made)
    }

    /// Whether anything differs.
    pub fn is_none(&self) -> bool {
        self.nodes.iter().all(|node| node.verdict == Verdict::Keep && node.loses.is_none())
    }

    /// Says in the log what is kept, what begins and what is dropped.
    pub fn log(&self) {
        let named = |verdict| {
            let nodes = self.nodes.iter().filter(|node| node.verdict == verdict);
            nodes.map(|node| node.node.as_str()).collect::<Vec<_>>().join(" ")
        };
        let (keep, new) = (named(Verdict::Keep), named(Verdict::New));
        let (extend, recompute) = (named(Verdict::Extend), named(Verdict::Recompute));
        let (backfill, replace, dropped) = (named(Verdict::Backfill), named(Verdict::Replace), named(Verdict::Drop));
        tracing::info!(
            epoch = self.epoch,
            keep,
            new,
            extend,
            recompute,
            backfill,
            replace,
            drop = dropped,
            "the topology has changed"
        );
        for NodeChange { node, loses, .. } in &self.nodes {
            if let Some(lost) = loses {
                tracing::warn!(node, %lost, "dropped, as `--allow-drop` says");
            }
        }
    }
}

/// The nodes of a job that begins at the end of `epoch` with the plan, where the nodes `before` were.
pub fn defined(before: &Definitions, plan: &Plan, epoch: u64) -> Definitions {
    let since = |node: &String, digest: &String| match before.get(node) {
        Some(before) if before.digest == *digest => before.since,
        _ => epoch,
    };
    let defined = |(node, digest): (String, String)| (node.clone(), Defined { since: since(&node, &digest), digest });
    plan.definitions().into_iter().map(defined).collect()
}

/// The state of a node as blocks of `epoch`.
fn blocks(node: &str, epoch: u64, state: &NodeState) -> Vec<Block> {
    let name: Arc<str> = node.into();
    let parts = state.iter().flat_map(|(part, all)| all.iter().map(|bytes| (*part, bytes.clone())));
    parts.map(|(part, bytes)| Block { kind: Kind::State, name: name.clone(), part, epoch, bytes }).collect()
}

/// What a job that begins with the plan has to say of its nodes in its first checkpoint.
pub fn begin(plan: &Plan) -> Vec<Block> {
    let first = plan.groups.iter().filter(|group| group.is_first());
    let shapes = first.map(|group| (group.shape_path(), Layout::of(group).state()));
    let all = shapes.chain([(TEXTS.to_string(), reasons::state(plan))]);
    all.flat_map(|(node, state)| blocks(&node, 1, &state)).collect()
}

/// Whether a node is a further instance of a feature group (`features.card#2`), its served features
/// (`features.card.online`) or what stands where in its state (`features.card.shape`): what happens to it follows from the group.
fn belongs_to_group(node: &str) -> bool {
    node.split_once('.').is_some_and(|(_, name)| name.contains(['#', '.']))
}

/// How many aggregates of a feature group would be lost, and of how many; `None` if it can't go on at all.
fn lost_of_group(checkpoint: &Checkpoint, plan: &Plan, node: &str) -> Option<(usize, usize)> {
    let group = plan.groups.iter().find(|group| group.path() == node)?;
    Layout::read(checkpoint, group)?.lost(&Layout::of(group))
}

/// Whether a node is where records come in or go out.
fn is_end(node: &str) -> bool {
    ["sources.", "sinks.", "offline."].iter().any(|section| node.starts_with(section))
}

/// The topics of each source that has some.
fn topics(plan: &Plan) -> BTreeMap<&str, &[String]> {
    let topics = plan.sources();
    topics.filter_map(|(stream, source)| Some((stream.name.as_str(), source.kind.settings().topics()?))).collect()
}

/// The positions of a kept source's topics that the plan does not read.
fn unread_positions(checkpoint: &Checkpoint, plan: &Plan, node: &str, bounded: bool) -> Option<Contents> {
    let name = node.strip_prefix("sources.").filter(|_| !bounded)?;
    let read = topics(plan).remove(name)?;
    let mut contents = Contents::of_source(checkpoint, name);
    contents.positions.retain(|partition, _| {
        let topic = partition.rsplit_once('/').map_or(partition.as_str(), |(topic, _)| topic);
        !read.iter().any(|read| read == topic)
    });
    Some(contents).filter(|contents| !contents.is_empty())
}

/// The paths of the feature groups of these names, each `card` or `features.card`.
///
/// # Errors
/// If the plan lacks one.
pub fn named_groups(names: &[String], plan: &Plan) -> Result<BTreeSet<String>, NoGroup> {
    let groups = || plan.groups.iter().filter(|group| group.is_first());
    let path = |name: &String| {
        let found = groups().find(|group| group.name == *name || group.path() == *name).map(GroupPlan::path);
        found.ok_or_else(|| NoGroup { name: name.clone(), known: groups().map(|group| group.name.clone()).collect() })
    };
    names.iter().map(path).collect()
}

/// A backfill of something that is no feature group.
#[derive(Debug, thiserror::Error)]
#[error("`{name}` is no feature group of the topology, and only those can be filled; there are {}", .known.join(", "))]
pub struct NoGroup {
    name: String,
    known: Vec<String>,
}

/// A start that would lose something.
#[derive(Debug, thiserror::Error)]
pub struct Refused {
    epoch: u64,
    losing: Vec<NodeChange>,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "the topology has changed since the checkpoint of epoch {}, and this would be lost:", self.epoch)?;
        for NodeChange { node, loses, verdict, because, .. } in &self.losing {
            let why = match verdict {
                Verdict::Drop => "is gone",
                Verdict::Keep => "reads other topics",
                Verdict::New | Verdict::Extend | Verdict::Recompute | Verdict::Backfill | Verdict::Replace => {
                    "is defined otherwise"
                }
            };
            let because = match because.iter().map(String::as_str).filter(|cause| cause != node).collect::<Vec<_>>() {
                causes if causes.is_empty() => String::new(),
                causes => format!(", since {} has changed", causes.join(" and ")),
            };
            writeln!(f, "  {node} {why}{because}: {}", loses.clone().unwrap_or_default())?;
        }
        let effects = |node: &NodeChange| node.node.starts_with("sinks.") || node.node.starts_with("offline.");
        if self.losing.iter().any(effects) {
            writeln!(
                f,
                "A job that is stopped with SIGTERM has committed all outputs: start it with the old file, stop it, and then \
                 change it."
            )?;
        }
        let flags: Vec<String> = self.losing.iter().map(|node| format!("--allow-drop {}", node.node)).collect();
        write!(
            f,
            "Put the old definitions back, let go of them with `{}`, or start anew with `--fresh`",
            flags.join(" ")
        )
    }
}
