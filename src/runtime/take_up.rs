//! What a start takes up of a checkpoint, the newest or the one it is told: what the plan still has, as [`crate::change`] says.

use std::collections::BTreeSet;

use super::repeats::Wanted;
use crate::backfill;
use crate::change::{self, Change};
use crate::checkpoint::{Block, Checkpoint, CheckpointError, Definitions, Progress, Store};
use crate::failpoint::{self, Point};
use crate::plan::Plan;
use crate::sources::Gap;

/// Where a job goes on.
pub struct TakenUp {
    /// What the plan goes on with.
    pub checkpoint: Checkpoint,
    /// If the plan's nodes are not those of the checkpoint: the state that was made for them of what there was.
    pub made: Option<Vec<Block>>,
    /// The nodes that the checkpoint did not have, by section and name. Empty for a job that has not begun.
    pub began: BTreeSet<String>,
    /// The feature groups that begin with what a backfill has made.
    pub filled: Vec<String>,
    /// What the job goes on without.
    pub gaps: Vec<Gap>,
}

/// Reads the checkpoint that is `wanted` and leaves of it what `plan` goes on with.
///
/// # Errors
/// If the checkpoint is damaged, or something would be lost or repeated.
pub fn take_up(store: &mut Store, plan: &Plan, bounded: bool, wanted: &Wanted) -> anyhow::Result<TakenUp> {
    let origin = wanted.origin(plan)?;
    loop {
        let back = match &origin {
            Some(origin) => wanted.epoch(origin, store, plan)?.map(|epoch| (origin, epoch)),
            None => None,
        };
        let mut older = None;
        let loaded = match back {
            Some((origin, epoch)) => Some(as_epoch(epoch, origin.checkpoint()?)),
            None => match store.load() {
                Err(damage @ CheckpointError::Corrupt { .. }) => {
                    let (origin, epoch) = older.insert(wanted.older(damage, store, plan)?);
                    Some(as_epoch(*epoch, origin.checkpoint()?))
                }
                loaded => match (loaded?, wanted.lost(store, plan)?) {
                    (Some(newest), Some((origin, epoch))) => {
                        older = Some((origin, epoch));
                        Some(as_epoch(epoch, newest))
                    }
                    (loaded, _) => loaded,
                },
            },
        };
        failpoint::reached(Point::StateLoaded);
        let mut taken_up = compare(loaded, plan, bounded, wanted)?;
        taken_up.pass_gaps(plan, &wanted.allow_gap)?;
        // Not before it is clear that the plan may go on: a copy that runs would have ended for nothing.
        let is_newest = match &older {
            Some((origin, epoch)) => store.take_over_from(origin, *epoch)?,
            None => store.take_over()?,
        };
        if !is_newest {
            continue;
        }
        failpoint::reached(Point::JobTakenOver);
        taken_up.gaps.iter().for_each(Gap::tell);
        let progress = &mut taken_up.checkpoint.progress;
        if progress.epoch == 0 {
            progress.committed = store.writers().clone();
        }
        if let Some((origin, _)) = back {
            store.go_back(origin)?;
            // Before anything outside is told of its epoch.
            let made = taken_up.made.take().unwrap_or_default();
            store.publish(&taken_up.checkpoint.progress, &made)?;
        }
        return Ok(taken_up);
    }
}

fn as_epoch(epoch: u64, checkpoint: Checkpoint) -> Checkpoint {
    Checkpoint { progress: Progress { epoch, ..checkpoint.progress }, ..checkpoint }
}

fn compare(loaded: Option<Checkpoint>, plan: &Plan, bounded: bool, wanted: &Wanted) -> anyhow::Result<TakenUp> {
    let Some(mut checkpoint) = loaded else {
        let definitions = change::defined(&Definitions::new(), plan, 0);
        let progress = Progress { definitions, ..Progress::default() };
        let checkpoint = Checkpoint { progress, ..Checkpoint::default() };
        let made = Some(change::begin(plan));
        return Ok(TakenUp { checkpoint, made, began: BTreeSet::new(), filled: Vec::new(), gaps: Vec::new() });
    };
    let mut change = Change::between(&checkpoint, plan, bounded)?;
    let groups = change.backfill(&wanted.backfill, plan)?;
    change.permit(&wanted.allow_drop)?;
    let filled = backfill::filled(plan, &groups, &checkpoint.progress)?;
    if !change.is_none() {
        change.log();
    }
    let before = checkpoint.progress.definitions.clone();
    let made = change.apply(&mut checkpoint, plan, bounded, &filled)?;
    let after = &checkpoint.progress.definitions;
    let is_new = |(node, defined): &(&String, &_)| before.get(*node) != Some(*defined);
    let began = after.iter().filter(is_new).map(|(node, _)| node.clone()).collect();
    let changed = !change.is_none() || *after != before || !made.is_empty();
    Ok(TakenUp { checkpoint, made: changed.then_some(made), began, filled: groups, gaps: Vec::new() })
}

impl TakenUp {
    /// Moves the positions of sources behind records that are gone, if that is `allowed`. The checkpoint says so before anything
    /// is read: a start that is killed later neither needs to be allowed again nor finds half of it.
    fn pass_gaps(&mut self, plan: &Plan, allowed: &[String]) -> anyhow::Result<()> {
        let progress = &mut self.checkpoint.progress;
        for (stream, source) in plan.sources() {
            let is_allowed = allowed.contains(&stream.name);
            let (Some(connector), Some(positions)) = (source.connector(), progress.positions.get_mut(&stream.name))
            else {
                continue;
            };
            if is_allowed {
                let topics = progress.topics.entry(stream.name.clone()).or_default();
                self.gaps.extend(connector.pass_gaps(&stream.name, &plan.name, positions, topics)?);
            }
        }
        if !self.gaps.is_empty() {
            self.made.get_or_insert_default();
        }
        Ok(())
    }
}
