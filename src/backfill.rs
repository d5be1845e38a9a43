//! A backfill: a feature group that is new to a job, or defined otherwise, begins with what the job has read before.
//!
//! Without one such a group begins empty, and a sum over thirty days is right in thirty days. But the records are still in
//! their topics. A backfill is a job of its own that reads them, from the oldest that is there to where the checkpoint stands,
//! through the nodes that lead to the group and no others: there is no sink, no table, no detector, no dead letter. The next
//! start takes the group's state from it, and all else from the checkpoint.
//!
//! ```text
//! topic     ├── read by the job so far ──────────┤ position of its checkpoint
//! backfill  ├── oldest there is ────────────────▶│ state of the group
//! the job                                        └──▶ goes on with the next record, the group like the rest
//! ```
//!
//! The group is then what it would be in a job that had it from the beginning of the topics: records are taken as they arrive,
//! partition by partition in order, as after a long stop. What retention has removed is missing in what is new. Aggregates that the
//! checkpoint has too go on from there, and lack nothing.
//!
//! A backfill has checkpoints of its own, at `backfill` below the job's. So one that was stopped or killed goes on, and
//! it can be made beside the running job: the rest, which the job reads until it is stopped, is little.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use millstream_operators::units::Millis;

use crate::change::{self, Contents};
use crate::checkpoint::report::{self, Which};
use crate::checkpoint::{Checkpoint, CheckpointError, Place, Progress, Store};
use crate::cluster::{Joined, Shape};
use crate::plan::{Node, Plan};
use crate::runtime::job::{Job, Mode};
use crate::runtime::repeats::Wanted;
use crate::sources::Positions;
use crate::sources::SourceKind;
use crate::sources::kafka::StartAt;
use crate::summary::Summary;
use crate::topology::{Engine, Topology};

/// What a backfill's place is called, below that of the job's state, and how its name ends.
const NAME: &str = "backfill";
/// The longest name of a job.
const NAME_LENGTH_MAX: usize = 63;
/// The length of its epochs: nobody waits for what they make.
const EPOCH: Millis = Millis(2_000);
/// How often the job is looked after.
const LOOK: Duration = Duration::from_millis(20);
/// How often it is said how far it is.
const TELL_EVERY: Duration = Duration::from_secs(5);

/// A backfill of some groups, up to a checkpoint.
#[derive(Debug)]
pub struct Backfill {
    plan: Arc<Plan>,
    shape: Shape,
    groups: BTreeSet<String>,
    until: BTreeMap<String, Positions>,
    /// The epoch of the checkpoint.
    epoch: u64,
}

/// Why there is nothing to fill.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Nothing {
    /// It has read nothing.
    #[error("the job has no checkpoint yet: it begins when it is started, and its groups with it")]
    Unbegun,
    /// They go on as they are.
    #[error("the job's checkpoint has these groups as they are defined")]
    Kept,
}

/// What a backfill has made.
#[derive(Debug)]
pub struct Filled {
    /// The epoch of the checkpoint that it stands at.
    pub epoch: u64,
    /// Whether it was stopped before it stood there.
    pub stopped: bool,
    /// The records that were read, by source; of an earlier try they are not among them.
    pub records: BTreeMap<String, u64>,
    /// The state of each group.
    pub groups: BTreeMap<String, Contents>,
}

/// A group can't begin with what a backfill has made.
#[derive(Debug, thiserror::Error)]
pub enum BackfillError {
    /// Nothing was made of it, or of another definition.
    #[error("nothing has filled `{group}` as it is defined: `millstream backfill FILE {group}` does")]
    Missing {
        /// The group.
        group: String,
    },
    /// What was made stands before the checkpoint or behind it.
    #[error(
        "what has filled {groups} has read {partition} up to {stands}, and the checkpoint stands at {at}: `millstream backfill` \
         with the same groups brings it there"
    )]
    Elsewhere {
        /// The groups.
        groups: String,
        /// Topic (or file) and partition.
        partition: String,
        /// Where it stands.
        stands: i64,
        /// Where it has to.
        at: i64,
    },
    /// All sources end: a run of them anew makes everything.
    #[error(
        "all sources of this topology are files, and `run --fresh` makes every group of all of them: there is nothing to fill"
    )]
    Bounded,
}

impl Backfill {
    /// The backfill of `groups` of `topology`, each `card` or `features.card`, up to the job's newest checkpoint.
    ///
    /// # Errors
    /// If one of them is no feature group, all sources end, the topology can't run, or the checkpoint can't be read.
    pub fn new(topology: &Topology, folder: &Path, groups: &[String]) -> anyhow::Result<Result<Backfill, Nothing>> {
        if topology.is_bounded() {
            return Err(BackfillError::Bounded.into());
        }
        let plan = Plan::or_line(topology, folder).map_err(anyhow::Error::msg)?;
        let mut groups = change::named_groups(groups, &plan)?;
        let Some(at) = report::progress(&Place::of(&plan.engine, folder)?, &plan.name)? else {
            return Ok(Err(Nothing::Unbegun));
        };
        let definitions = plan.definitions();
        groups.retain(|group| at.definitions.get(group).map(|defined| &defined.digest) != definitions.get(group));
        if groups.is_empty() {
            return Ok(Err(Nothing::Kept));
        }
        let part = leading_to(&groups, topology, &plan);
        let shape = Shape::single(part.engine.workers);
        let mut plan = Plan::or_line(&part, folder).map_err(anyhow::Error::msg)?;
        let mut until = BTreeMap::new();
        for stream in &mut plan.streams {
            if let Node::Source(source) = &mut stream.node {
                let positions = at.positions.get(&stream.name).cloned().unwrap_or_default();
                source.until = Some(positions.clone());
                until.insert(stream.name.clone(), positions);
            }
        }
        Ok(Ok(Backfill { plan: Arc::new(plan), shape, groups, until, epoch: at.epoch }))
    }

    /// Makes it, or goes on with it, until it stands at the checkpoint or `stop` says true. Calls it some times a second.
    ///
    /// # Errors
    /// As a job's start and end.
    pub fn run(&self, stop: &dyn Fn() -> bool) -> anyhow::Result<Filled> {
        let place = Place::of(&self.plan.engine, &self.plan.folder)?;
        let before = self.prepare(&place)?;
        let stands =
            |progress: &Progress| self.until.iter().all(|(source, until)| behind(progress, source, until).is_none());
        let summary = match before.is_some_and(|before| stands(&before)) {
            true => Summary::default(),
            false => self.read(stop)?,
        };
        let made = report::checkpoint(&place, Which::Newest, &self.plan.name)?.unwrap_or_default();
        let contents = |group: &String| Ok((group.clone(), Contents::of(&made, group)?));
        let groups: Result<_, CheckpointError> = self.groups.iter().map(contents).collect();
        Ok(Filled { epoch: self.epoch, stopped: !stands(&made.progress), records: summary.events, groups: groups? })
    }

    /// Where an earlier try got to; one that can't go on is forgotten.
    fn prepare(&self, place: &Place) -> anyhow::Result<Option<Progress>> {
        let Some(before) = report::progress(place, &self.plan.name)? else { return Ok(None) };
        let definitions = self.plan.definitions();
        let is_same = before.definitions.iter().map(|(node, defined)| (node, &defined.digest)).eq(&definitions);
        // A job that was started from a savepoint, or anew, may stand where it stood long ago.
        let is_ahead = before.positions.iter().any(|(source, positions)| {
            let until = self.until.get(source);
            positions
                .0
                .iter()
                .any(|(partition, at)| until.and_then(|until| until.0.get(partition)).is_none_or(|until| at > until))
        });
        if is_same && !is_ahead {
            return Ok(Some(before));
        }
        tracing::info!(is_same, is_ahead, "an earlier backfill is of no use: this one begins anew");
        Store::forget(place)?;
        Ok(None)
    }

    fn read(&self, stop: &dyn Fn() -> bool) -> anyhow::Result<Summary> {
        let groups = Vec::from_iter(self.groups.iter().cloned()).join(" ");
        tracing::info!(groups, epoch = self.epoch, "filling what is new with what was read before");
        let mut job = Job::start(self.plan.clone(), Mode::Live, &Wanted::default(), self.shape, Joined::default())?;
        let mut told = Instant::now();
        while !job.ended() {
            job.look_after();
            if stop() {
                job.board().drain();
            }
            if told.elapsed() >= TELL_EVERY {
                told = Instant::now();
                let records: u64 = job.board().sum_up(&self.plan).events.values().sum();
                let of: i64 = self.until.values().flat_map(|until| until.0.values()).sum();
                tracing::info!(groups, records, of, "filling");
            }
            std::thread::sleep(LOOK);
        }
        job.finish()
    }
}

/// Fills `groups` as far as that is to be done before a start of the job.
///
/// # Errors
/// As those of a [`Backfill`].
pub fn fill(topology: &Topology, folder: &Path, groups: &[String]) -> anyhow::Result<()> {
    match Backfill::new(topology, folder, groups)? {
        Ok(backfill) => {
            let Filled { records, groups, .. } = backfill.run(&|| false)?;
            for (group, contents) in groups {
                tracing::info!(group, %contents, ?records, "filled");
            }
        }
        Err(nothing) => tracing::info!(%nothing, "nothing is to be filled"),
    }
    Ok(())
}

/// What a backfill has made of `groups`, if it stands where the job's checkpoint does. Without a group there is nothing to be had.
///
/// # Errors
/// [`BackfillError`], or if it can't be read.
pub fn filled(plan: &Plan, groups: &[String], at: &Progress) -> anyhow::Result<Checkpoint> {
    if groups.is_empty() {
        return Ok(Checkpoint::default());
    }
    let place = Place::of(&engine(&plan.engine), &plan.folder)?;
    let made = report::checkpoint(&place, Which::Newest, &name(&plan.name))?.unwrap_or_default();
    let definitions = plan.definitions();
    for group in groups {
        if made.progress.definitions.get(group).map(|defined| &defined.digest) != definitions.get(group) {
            return Err(BackfillError::Missing { group: group.clone() }.into());
        }
    }
    for source in made.progress.definitions.keys().filter_map(|node| node.strip_prefix("sources.")) {
        let until = at.positions.get(source).cloned().unwrap_or_default();
        if let Some((partition, stands, at)) = behind(&made.progress, source, &until) {
            return Err(BackfillError::Elsewhere { groups: groups.join(" and "), partition, stands, at }.into());
        }
    }
    Ok(made)
}

/// Forgets what a backfill has made: the job has it now.
///
/// # Errors
/// If the place can't be written.
pub fn forget(plan: &Plan) -> Result<(), CheckpointError> {
    Store::forget(&Place::of(&engine(&plan.engine), &plan.folder)?)
}

/// The first partition of a source that has not been read exactly up to `until`: its name, where it stands and where it has to.
fn behind(progress: &Progress, source: &str, until: &Positions) -> Option<(String, i64, i64)> {
    let stands = progress.positions.get(source);
    until.0.iter().find_map(|(partition, until)| {
        let stands = stands.and_then(|stands| stands.0.get(partition)).copied().unwrap_or(0);
        (stands != *until).then(|| (format!("{}/{}", partition.0, partition.1), stands, *until))
    })
}

/// The part of a topology that leads to `groups`, as a job of its own.
fn leading_to(groups: &BTreeSet<String>, topology: &Topology, plan: &Plan) -> Topology {
    let (mut needed, mut open) = (BTreeSet::new(), Vec::from_iter(groups.iter().cloned()));
    while let Some(node) = open.pop() {
        if needed.insert(node.clone()) {
            open.extend(plan.texts.get(&node).into_iter().flat_map(|text| text.reads.iter().cloned()));
        }
    }
    let mut part = topology.clone();
    let is_needed = |section: &str, name: &String| needed.contains(&format!("{section}.{name}"));
    part.sources.retain(|name, _| is_needed("sources", name));
    part.prepare.retain(|name, _| is_needed("prepare", name));
    part.features.retain(|name, _| is_needed("features", name));
    part.vectors.retain(|name, _| is_needed("vectors", name));
    part.models.retain(|name, _| is_needed("models", name));
    part.drift.clear();
    part.outcomes.clear();
    part.sinks.clear();
    part.offline.clear();
    for source in part.sources.values_mut() {
        if let SourceKind::Kafka(kafka) = &mut source.from {
            kafka.start = StartAt::Earliest;
        }
    }
    part.name = name(&topology.name);
    part.engine = engine(&topology.engine);
    part
}

/// The name of a job's backfill: its group of consumers is another than the job's, of which lag tools know.
fn name(job: &str) -> String {
    let job = &job[..job.len().min(NAME_LENGTH_MAX - 1 - NAME.len())];
    format!("{job}-{NAME}")
}

fn engine(of: &Engine) -> Engine {
    let state = format!("{}/{NAME}", of.state.trim_end_matches('/'));
    Engine { state, epoch: EPOCH, cluster: None, http: "off".into(), ..of.clone() }
}
