//! How the job is: a few atomics that the runtime writes on its way and HTTP reads.
//!
//! | question | answer | who acts on it |
//! |---|---|---|
//! | started? | the state is restored and the workers run | an orchestrator that waits before it asks the others |
//! | alive? | every worker has stepped within a minute | an orchestrator that restarts; never depends on Kafka |
//! | ready? | sources assigned, models loaded, epochs committing, not draining | a load balancer, a roll-out |
//!
//! Times are counted from the making of the [`Health`] by the monotonic clock, so a step of the system's clock changes nothing.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::Serialize;

use crate::metrics::catalogue::{EPOCH_AGE_SECONDS, EPOCH_COMMITTED, EPOCH_CURRENT, UP_SINCE};

/// A worker that has not stepped for this long is stuck: no record takes that long, and parked workers wake up more often.
pub const STALL: Duration = Duration::from_secs(60);
/// Epochs that may pass without a commit before the job is not ready.
const EPOCHS_LATE: u32 = 3;
/// An epoch number that no epoch has: before the first commit.
const NONE: u64 = u64::MAX;

/// Where the job is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// It opens sources, loads models and restores state.
    Starting,
    /// It processes.
    Running,
    /// It finishes the records in flight and stops.
    Draining,
}

/// What the runtime tells about itself. Everything is cheap enough to say on every activation of a worker.
#[derive(Debug)]
pub struct Health {
    origin: Instant,
    stage: AtomicU8,
    /// When each worker last stepped, in milliseconds since the origin.
    workers: Vec<AtomicU64>,
    sources: Vec<(String, AtomicBool)>,
    models: Vec<(String, AtomicBool)>,
    epoch: Duration,
    epoch_open: AtomicU64,
    epoch_committed: AtomicU64,
    /// When the newest epoch was committed, in milliseconds since the origin.
    committed_at: AtomicU64,
    in_flight: AtomicBool,
}

/// The answer to one question about the job, with the reasons if it is no.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Answer {
    /// True if all checks passed.
    pub ok: bool,
    /// What was checked.
    pub checks: Vec<Check>,
}

/// One check.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Check {
    /// What was checked.
    pub check: &'static str,
    /// Whether it passed.
    pub ok: bool,
    /// Why it did not, as a code: `starting`, `draining`, `worker_stuck`, `source_not_assigned`, `model_not_loaded` or
    /// `epoch_late`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<&'static str>,
    /// Why it did not, for a person.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// The job's names and figures that are known before it starts.
#[derive(Debug, Clone, Default)]
pub struct Expected {
    /// Number of workers.
    pub workers: usize,
    /// The sources' names; a source is named by its index here.
    pub sources: Vec<String>,
    /// The models' names; a model is named by its index here.
    pub models: Vec<String>,
    /// Length of an epoch.
    pub epoch: Duration,
}

impl Health {
    /// A job that is starting.
    pub fn new(expected: Expected) -> Self {
        let named = |names: Vec<String>| names.into_iter().map(|name| (name, AtomicBool::new(false))).collect();
        Health {
            origin: Instant::now(),
            stage: AtomicU8::new(Stage::Starting as u8),
            workers: (0..expected.workers).map(|_| AtomicU64::new(0)).collect(),
            sources: named(expected.sources),
            models: named(expected.models),
            epoch: expected.epoch,
            epoch_open: AtomicU64::new(NONE),
            epoch_committed: AtomicU64::new(NONE),
            committed_at: AtomicU64::new(0),
            in_flight: AtomicBool::new(false),
        }
    }

    /// Worker number `worker` is at work, or awake to find that there is none: once an activation.
    pub fn stepped(&self, worker: usize, now: Instant) {
        self.workers[worker].store(self.millis(now), Ordering::Relaxed);
    }

    /// Source number `source` knows the partitions it reads (or lost them).
    pub fn set_assigned(&self, source: usize, assigned: bool) {
        self.sources[source].1.store(assigned, Ordering::Relaxed);
    }

    /// Model number `model` is loaded and tried.
    pub fn set_loaded(&self, model: usize) {
        self.models[model].1.store(true, Ordering::Relaxed);
    }

    /// The workers start to process. Ages count from here.
    pub fn set_running(&self) {
        let now = self.millis(Instant::now());
        self.committed_at.store(now, Ordering::Relaxed);
        self.workers.iter().for_each(|worker| worker.store(now, Ordering::Relaxed));
        self.stage.store(Stage::Running as u8, Ordering::Release);
        UP_SINCE.of([]).set(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64());
    }

    /// The job stops: no more input is read.
    pub fn set_draining(&self) {
        self.stage.store(Stage::Draining as u8, Ordering::Release);
    }

    /// `epoch` is open.
    pub fn epoch_opened(&self, epoch: u64) {
        self.epoch_open.store(epoch, Ordering::Relaxed);
    }

    /// Everything of `epoch` is durable.
    pub fn epoch_committed(&self, epoch: u64) {
        self.epoch_committed.store(epoch, Ordering::Relaxed);
        self.committed_at.store(self.millis(Instant::now()), Ordering::Relaxed);
    }

    /// Whether records were read that no committed epoch holds yet. Only then is a late commit a fault.
    pub fn set_in_flight(&self, in_flight: bool) {
        self.in_flight.store(in_flight, Ordering::Relaxed);
    }

    /// Where the job is in its life.
    pub fn stage(&self) -> Stage {
        match self.stage.load(Ordering::Acquire) {
            stage if stage == Stage::Starting as u8 => Stage::Starting,
            stage if stage == Stage::Running as u8 => Stage::Running,
            _ => Stage::Draining,
        }
    }

    /// The open epoch, the newest committed one, and the time since its commit (since the start, before the first).
    pub fn epochs(&self, now: Instant) -> (Option<u64>, Option<u64>, Duration) {
        let some = |epoch: &AtomicU64| Some(epoch.load(Ordering::Relaxed)).filter(|epoch| *epoch != NONE);
        (some(&self.epoch_open), some(&self.epoch_committed), self.since(&self.committed_at, now))
    }

    /// Whether the job has started.
    pub fn started(&self) -> Answer {
        Answer::of(vec![self.check_stage(&[Stage::Running, Stage::Draining])])
    }

    /// Whether every worker steps. A job that is starting is alive however long it takes to restore its state.
    pub fn alive(&self, now: Instant) -> Answer {
        let stuck: Vec<String> = self
            .workers
            .iter()
            .enumerate()
            .map(|(worker, stepped)| (worker, self.since(stepped, now)))
            .filter(|(_, silent)| self.stage() != Stage::Starting && *silent > STALL)
            .map(|(worker, silent)| format!("worker {worker} has not stepped for {} s", silent.as_secs()))
            .collect();
        Answer::of(vec![Check::of("workers", "worker_stuck", stuck)])
    }

    /// Whether the job does what it is there for.
    pub fn ready(&self, now: Instant) -> Answer {
        let missing = |all: &[(String, AtomicBool)], what: &str| {
            let missing = all.iter().filter(|(_, there)| !there.load(Ordering::Relaxed));
            missing.map(|(name, _)| format!("{what} `{name}`")).collect::<Vec<_>>()
        };
        let (_, _, age) = self.epochs(now);
        let limit = self.epoch.saturating_mul(EPOCHS_LATE).max(Duration::from_secs(1));
        let late = self.stage() == Stage::Running && self.in_flight.load(Ordering::Relaxed) && age > limit;
        let late = late.then(|| {
            format!("no epoch was committed for {:.1} s; the limit is {:.1} s", age.as_secs_f64(), limit.as_secs_f64())
        });
        Answer::of(vec![
            self.check_stage(&[Stage::Running]),
            Check::of("sources", "source_not_assigned", missing(&self.sources, "source")),
            Check::of("models", "model_not_loaded", missing(&self.models, "model")),
            Check::of("epochs", "epoch_late", late.into_iter().collect()),
        ])
    }

    /// Brings the gauges of epochs up to date, at a scrape: the age must grow even when nothing moves.
    pub fn refresh_metrics(&self, now: Instant) {
        let (open, committed, age) = self.epochs(now);
        EPOCH_CURRENT.of([]).set(open.unwrap_or(0) as f64);
        EPOCH_COMMITTED.of([]).set(committed.unwrap_or(0) as f64);
        EPOCH_AGE_SECONDS.of([]).set(if self.stage() == Stage::Starting { 0.0 } else { age.as_secs_f64() });
    }

    fn check_stage(&self, wanted: &[Stage]) -> Check {
        let (reason, detail) = match self.stage() {
            stage if wanted.contains(&stage) => ("", None),
            Stage::Draining => ("draining", Some("the job finishes the records in flight and stops")),
            Stage::Starting | Stage::Running => ("starting", Some("the job opens its sources and restores its state")),
        };
        Check::of("stage", reason, detail.map(str::to_owned).into_iter().collect())
    }

    fn millis(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.origin).as_millis() as u64
    }

    fn since(&self, then: &AtomicU64, now: Instant) -> Duration {
        Duration::from_millis(self.millis(now).saturating_sub(then.load(Ordering::Relaxed)))
    }
}

impl Answer {
    fn of(checks: Vec<Check>) -> Self {
        Answer { ok: checks.iter().all(|check| check.ok), checks }
    }
}

impl Check {
    /// A check that passed if there are no `faults`.
    fn of(check: &'static str, reason: &'static str, faults: Vec<String>) -> Self {
        let ok = faults.is_empty();
        Check { check, ok, reason: (!ok).then_some(reason), detail: (!ok).then(|| faults.join(", ")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn health() -> Health {
        let epoch = Duration::from_secs(1);
        Health::new(Expected { workers: 2, sources: vec!["flights".into()], models: vec!["delay".into()], epoch })
    }

    fn reasons(answer: &Answer) -> Vec<&'static str> {
        assert_eq!(answer.ok, answer.checks.iter().all(|check| check.ok));
        answer.checks.iter().filter_map(|check| check.reason).collect()
    }

    #[test]
    fn a_job_is_ready_when_all_is_there_and_until_it_drains() {
        let health = health();
        let now = Instant::now();
        assert_eq!(reasons(&health.started()), ["starting"]);
        assert_eq!(reasons(&health.ready(now)), ["starting", "source_not_assigned", "model_not_loaded"]);
        assert!(health.alive(now + Duration::from_secs(3600)).ok, "restoring may take long");
        health.set_assigned(0, true);
        health.set_loaded(0);
        health.set_running();
        assert!(health.ready(now).ok && health.started().ok);
        health.set_draining();
        assert_eq!(reasons(&health.ready(now)), ["draining"]);
        assert!(health.started().ok);
    }

    #[test]
    fn a_late_epoch_counts_only_with_records_in_flight() {
        let health = health();
        health.set_assigned(0, true);
        health.set_loaded(0);
        health.set_running();
        let later = Instant::now() + Duration::from_secs(4);
        assert!(health.ready(later).ok, "an idle job is ready");
        health.set_in_flight(true);
        let answer = health.ready(later);
        assert_eq!(reasons(&answer), ["epoch_late"]);
        let detail = answer.checks[3].detail.as_deref().expect("a detail");
        assert!(detail.ends_with("the limit is 3.0 s"), "{detail}");
        health.epoch_committed(7);
        let (_, committed, age) = health.epochs(Instant::now());
        assert!(committed == Some(7) && age < Duration::from_secs(1));
    }

    #[test]
    fn a_worker_that_does_not_step_is_named() {
        let health = health();
        health.set_running();
        let later = Instant::now() + Duration::from_secs(61);
        health.stepped(0, later);
        let answer = health.alive(later);
        assert_eq!(reasons(&answer), ["worker_stuck"]);
        let detail = answer.checks[0].detail.as_deref().expect("a detail");
        assert!(detail.starts_with("worker 1 has not stepped for 6"), "{detail}");
    }
}
