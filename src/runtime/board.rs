//! What a job's threads share, and what the metrics, the display and HTTP look at.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::clock::now_micros;
use super::decided::Decided;
use super::failure::Failures;
use super::lanes::NO_LANE;
use super::meter::Meters;
use super::owned::Owned;
use super::seeds;
use super::shared::{Durable, Ending, Gates, Taken, Unopened, Watermarks};
use crate::checkpoint::{Checkpoint, effect_name};
use crate::cluster::Shape;
use crate::http::health::Health;
use crate::online::{OnlineGroup, OnlineStore};
use crate::plan::{Plan, SourcePlan};
use crate::replay::Cuts;
use crate::slow::QualityBySlice;
use crate::sources::status::Status;
use crate::sources::{Gap, Partitions, Port, Positions, Start};
use crate::summary::{Summary, memory_peak_bytes};

/// A worker whose last step is older than this is not at work.
const HEARTBEAT_MICROS_MAX: i64 = 1_000_000;

/// What a job's threads share. Cloning it clones references.
#[derive(Clone)]
pub struct Board {
    /// How the workers are spread over processes.
    pub shape: Shape,
    /// What the job counts.
    pub meters: Arc<Meters>,
    /// What holds the sources back.
    pub gates: Arc<Gates>,
    /// Watermarks by epoch.
    pub watermarks: Arc<Watermarks>,
    /// The newest epoch that each writer has made durable.
    pub durable: Arc<Durable>,
    /// The table of partitions.
    pub partitions: Arc<Partitions>,
    /// What ended the job before its time.
    pub failures: Failures,
    /// Served features.
    pub online: Arc<OnlineStore>,
    /// Each source's standing with the world.
    pub statuses: Vec<Arc<Status>>,
    /// The last step of each worker of this process, in microseconds since 1970.
    pub heartbeats: Vec<Arc<AtomicI64>>,
    /// When the run ends.
    pub ending: Arc<Ending>,
    /// Which epochs are decided.
    pub decided: Arc<Decided>,
    /// Quality after the newest epoch of the slow lane.
    pub quality: Arc<Mutex<QualityBySlice>>,
    /// The newest epoch that a source has opened.
    pub open_epoch: Arc<AtomicU64>,
    /// True while the job drains.
    pub draining: Arc<AtomicBool>,
    /// What the job went on without at its start.
    pub gaps: Arc<[Gap]>,
    /// Says whether this start still has the job.
    pub owned: Owned,
}

impl Board {
    /// The board of a process of a job that goes on from `checkpoint`.
    ///
    /// # Errors
    /// If the online store can't keep a group's features.
    pub fn new(plan: &Plan, shape: Shape, checkpoint: &Checkpoint, cuts: Option<Arc<Cuts>>) -> anyhow::Result<Board> {
        let sources = plan.sources().count();
        let inputs = sources * shape.workers;
        let epoch = checkpoint.progress.epoch;
        // What all others have to say comes from each of them as if it were an input.
        let others = shape.processes - 1;
        let (watermarks, ending) = match (cuts, shape.is_coordinator()) {
            (Some(cuts), _) => (Watermarks::bounded(cuts), Ending::new(inputs, epoch)),
            (None, true) => (Watermarks::live(sources, shape.workers + others), Ending::new(inputs + others, epoch)),
            (None, false) => (Watermarks::following(sources, shape.workers), Ending::following(inputs, epoch)),
        };
        let elsewhere = |worker: usize| !shape.is_coordinator() && !shape.local().contains(&worker);
        let committed = &checkpoint.progress.committed;
        let writers = seeds::writers(plan).into_iter().zip(&plan.sinks).flat_map(|(writers, sink)| {
            (0..writers.count).map(move |worker| {
                let known = committed.get(&effect_name(&sink.path(), worker as u16)).copied();
                let commits_after_decision = writers.commits_after_decision;
                // One that is new has nothing to catch up with.
                let epoch = known.filter(|_| commits_after_decision).unwrap_or(epoch);
                Unopened { epoch, elsewhere: elsewhere(worker), commits_after_decision }
            })
        });
        let gates = Gates::new(plan.engine.epoch.0);
        for lane in [&gates.slow_epoch, &gates.durable_epoch, &gates.decided_epoch] {
            lane.store(NO_LANE, Ordering::Relaxed);
        }
        Ok(Board {
            shape,
            meters: Arc::default(),
            gates: Arc::new(gates),
            watermarks: Arc::new(watermarks),
            durable: Arc::new(Durable::new(writers)),
            partitions: Arc::default(),
            failures: Failures::default(),
            online: Arc::new(online(plan)?),
            statuses: plan.sources().map(|_| Arc::default()).collect(),
            heartbeats: seeds::heartbeats(shape.workers),
            ending: Arc::new(ending),
            decided: Arc::new(Decided::new(epoch)),
            quality: Arc::default(),
            open_epoch: Arc::new(AtomicU64::new(epoch + 1)),
            draining: Arc::default(),
            gaps: Arc::default(),
            owned: Owned::default(),
        })
    }

    /// What the connector of a source needs.
    pub fn start(&self, plan: &Plan, name: &str, source: &SourcePlan, ports: Vec<Port>, from: &Checkpoint) -> Start {
        let idle_after = source.event_time.as_ref().map_or(Duration::from_secs(10), |time| time.idle_after.duration());
        Start {
            name: name.into(),
            source: source.index,
            job: plan.name.as_str().into(),
            folder: plan.folder.clone(),
            message_size_max: source.message_size_max,
            idle_after,
            positions: from.progress.positions.get(name).cloned().unwrap_or_default(),
            topics: from.progress.topics.get(name).cloned().unwrap_or_default(),
            until: source.until.clone(),
            ports,
            shape: self.shape,
            partitions: self.partitions.clone(),
            stop: self.draining.clone(),
            status: self.statuses[source.index as usize].clone(),
        }
    }

    /// The newest epoch that is durable in every sink, as far as this process knows.
    pub fn durable_epoch(&self) -> u64 {
        self.durable.epoch().unwrap_or_else(|| self.decided.epoch())
    }

    /// Asks the job to drain: sources stop, what has been taken is finished. Returns at once.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Release);
    }

    /// Whether the job drains.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// Whether something has failed for good: the job ends as soon as it can.
    pub fn is_failing(&self) -> bool {
        self.gates.failed.load(Ordering::Acquire)
    }

    /// What this process has done so far.
    pub fn sum_up(&self, plan: &Plan) -> Summary {
        let mut summary = Summary {
            job: plan.name.clone(),
            epoch: self.durable_epoch(),
            memory_peak_bytes: memory_peak_bytes(),
            gaps: self.gaps.to_vec(),
            ..Summary::default()
        };
        summary.count(&self.meters, &plan.predictions());
        summary
    }

    /// Tells `health` which workers have stepped lately.
    pub fn report_steps(&self, health: &Health) {
        let (now, micros) = (Instant::now(), now_micros());
        for (worker, heartbeat) in self.heartbeats.iter().enumerate() {
            if micros.saturating_sub(heartbeat.load(Ordering::Relaxed)) < HEARTBEAT_MICROS_MAX {
                health.stepped(worker, now);
            }
        }
    }

    /// Positions by name instead of number.
    pub fn named(&self, taken: &Taken) -> Positions {
        let named = taken.iter().map(|(number, offset)| {
            let (topic, partition) = self.partitions.name(*number);
            ((topic.to_string(), partition), *offset)
        });
        Positions(named.collect())
    }
}

/// The online store of a plan's groups. A group that is not served has no rows.
fn online(plan: &Plan) -> anyhow::Result<OnlineStore> {
    let group = |group: &crate::plan::GroupPlan| {
        let operator = group.operator();
        OnlineGroup { name: group.name.clone(), schema: operator.published_schema(), ttl: Some(operator.ttl()) }
    };
    Ok(OnlineStore::new(&plan.groups.iter().map(group).collect::<Vec<_>>())?)
}
