//! Taps: rows of a stream handed to a lane beside the dataflow (the slow lane, the offline store), stamped with their
//! epoch.
//!
//! A lane hears about the end of an epoch once per worker, after all of the worker's taps have handed over theirs. In a job
//! of several processes the lanes are the coordinator's: rows for their taps go to its workers.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use std::sync::atomic::Ordering;

use crossbeam_channel::Sender;
use millstream_operators::operator::{Operator, Outputs};
use millstream_operators::{Batch, EventTime};

use super::checkpoints::Checkpoints;
use super::failure::Failures;
use super::ledger::{Ledger, SharedLedger};
use super::seeds::Opening;
use super::shared::{Gates, Watermarks};
use super::signals::Signals;
use crate::cluster::Shape;
use crate::offline::pending::PendingRows;
use crate::offline::{Begin, Feeder, Offline, OfflineConfig, OpenOffline, OpenTable};
use crate::plan::{OfflinePlan, Plan};
use crate::provenance::Origins;
use crate::slow::{DetectorPlan, Feed, OutcomePlan, SlowLane, SlowPlan, SlowReport};

/// What a lane takes from a worker. Calls never wait: the lane's queue is bounded by the gates of the sources.
pub trait Lane {
    /// Takes rows of an epoch, for the lane's input `input`.
    fn rows(&mut self, input: usize, epoch: u64, batch: Batch);
    /// The worker has handed over all of `epoch`.
    fn close(&mut self, epoch: u64, watermark: EventTime);
    /// The worker has no more.
    fn end(&mut self);
}

/// A lane as a worker's taps share it.
pub struct Tapped {
    lane: Box<dyn Lane>,
    taps: usize,
    closed: BTreeMap<u64, usize>,
}

impl Tapped {
    /// A lane without taps yet.
    pub fn new(lane: Box<dyn Lane>) -> Rc<RefCell<Tapped>> {
        Rc::new(RefCell::new(Tapped { lane, taps: 0, closed: BTreeMap::new() }))
    }

    /// Tells the lane that the worker has no more.
    pub fn end(&mut self) {
        self.lane.end();
    }
}

/// One stream's tap into a lane, as an operator without output.
pub struct Tap {
    lane: Rc<RefCell<Tapped>>,
    input: usize,
    epoch: u64,
    watermarks: Arc<Watermarks>,
    /// Where the rows are kept for the checkpoint, if the lane commits after the decision.
    ledger: Option<SharedLedger>,
}

impl Tap {
    /// A tap into the lane's input `input`. All taps are made before the first row comes.
    pub fn new(lane: &Rc<RefCell<Tapped>>, input: usize, first_epoch: u64, watermarks: Arc<Watermarks>) -> Self {
        lane.borrow_mut().taps += 1;
        Tap { lane: lane.clone(), input, epoch: first_epoch, watermarks, ledger: None }
    }

    /// Has the rows kept for the checkpoint as well.
    pub fn keep_in(&mut self, ledger: SharedLedger) {
        self.ledger = Some(ledger);
    }
}

impl Operator for Tap {
    fn process(&mut self, _port: usize, batch: Batch, _out: &mut Outputs) {
        if let Some(ledger) = &self.ledger {
            let kept = Batch { raw: None, ..batch.clone() };
            ledger.borrow_mut().part(self.epoch).offline.push((self.input, kept));
        }
        self.lane.borrow_mut().lane.rows(self.input, self.epoch, batch);
    }

    fn close_epoch(&mut self, epoch: u64, _out: &mut Outputs) {
        self.epoch = epoch + 1;
        let mut tapped = self.lane.borrow_mut();
        let closed = tapped.closed.entry(epoch).or_default();
        *closed += 1;
        if *closed == tapped.taps {
            tapped.closed.remove(&epoch);
            let watermark = self.watermarks.at(epoch);
            tapped.lane.close(epoch, watermark);
        }
    }
}

/// The offline store as a worker's lane.
struct OfflineLane {
    feeder: Feeder,
}

impl Lane for OfflineLane {
    fn rows(&mut self, input: usize, epoch: u64, batch: Batch) {
        self.feeder.feed(input, epoch, batch);
    }
    fn close(&mut self, epoch: u64, _watermark: EventTime) {
        self.feeder.close(epoch);
    }
    fn end(&mut self) {}
}

/// The slow lane as a worker's lane.
struct SlowFeed {
    worker: usize,
    streams: Arc<Vec<usize>>,
    sender: Sender<Feed>,
}

impl SlowFeed {
    /// A slow lane that has ended has said why; its job is ending.
    fn send(&self, feed: Feed) {
        drop(self.sender.send(feed));
    }
}

impl Lane for SlowFeed {
    fn rows(&mut self, input: usize, epoch: u64, batch: Batch) {
        self.send(Feed::Rows { stream: self.streams[input], epoch, batch });
    }
    fn close(&mut self, epoch: u64, watermark: EventTime) {
        self.send(Feed::Close { worker: self.worker, epoch, watermark });
    }
    fn end(&mut self) {
        self.send(Feed::End { worker: self.worker });
    }
}

/// The lanes of a job.
pub struct Lanes {
    offline: Option<Offline>,
    feeders: std::vec::IntoIter<Feeder>,
    slow: Option<SlowLane>,
    streams: Arc<Vec<usize>>,
    signals: Option<Signals>,
    failures: Failures,
}

/// What the lanes leave behind.
#[derive(Debug, Default)]
pub struct LanesEnd {
    /// What the slow lane did.
    pub slow: Option<SlowReport>,
}

impl Lanes {
    /// Starts the lanes that the plan needs.
    ///
    /// # Errors
    /// If a table or a sink of drift signals can't be opened, or the slow lane can't take up its state.
    pub fn start(opening: &Opening<'_>, begin: Begin, ledgers: &mut dyn FnMut() -> Ledger) -> anyhow::Result<Lanes> {
        let (plan, board, first_epoch) = (opening.plan, opening.board, opening.first_epoch);
        let (mut offline, mut feeders) = (None, Vec::new());
        if !plan.offline.is_empty() {
            let (store, fed) = crate::offline::start(open_offline(opening, begin)?)?;
            (offline, feeders) = (Some(store), fed);
        }
        let streams = plan.slow_streams();
        let (mut slow, mut signals) = (None, None);
        if !streams.is_empty() {
            let sending = Signals::start(opening, ledgers())?;
            let into = sending.inlet();
            let states = &opening.from.nodes;
            let (ledger, partitions) = (ledgers(), board.partitions.clone());
            slow = Some(SlowLane::start(slow_plan(plan, board.shape), states, first_epoch, into, ledger, partitions)?);
            signals = Some(sending);
        }
        Ok(Lanes {
            offline,
            feeders: feeders.into_iter(),
            slow,
            streams: Arc::new(streams),
            signals,
            failures: board.failures.clone(),
        })
    }

    /// A feed of the slow lane for worker `worker`.
    pub fn slow_feed(&self, worker: usize) -> Option<Box<dyn Lane + Send>> {
        let slow = self.slow.as_ref()?;
        Some(Box::new(SlowFeed { worker, streams: self.streams.clone(), sender: slow.feed() }))
    }

    /// A feed of the offline store, for the next worker.
    pub fn offline_feed(&mut self) -> Option<Box<dyn Lane + Send>> {
        let feeder = self.feeders.next()?;
        Some(Box::new(OfflineLane { feeder }))
    }

    /// Shuts the gates of the sources while a lane is behind, and reports a lane that failed.
    pub fn look_after(&self, gates: &Gates) {
        let slow = self.slow.as_ref().map_or(NO_LANE, SlowLane::closed_epoch);
        gates.slow_epoch.store(slow, Ordering::Relaxed);
        if self.slow.as_ref().is_some_and(SlowLane::failed) {
            // A lane that has failed must not hold the sources: the job drains, and its end says what happened.
            gates.slow_epoch.store(NO_LANE, Ordering::Relaxed);
            gates.failed.store(true, Ordering::Release);
        }
        if let Some(offline) = &self.offline {
            gates.offline_backlog_bytes.store(offline.backlog_bytes(), Ordering::Relaxed);
            if let Err(error) = offline.check() {
                self.failures.report(error.into());
                gates.failed.store(true, Ordering::Release);
            }
        }
    }

    /// Waits until the lanes have done everything that workers, which have ended, gave them.
    ///
    /// # Errors
    /// If a lane failed.
    pub fn finish(self, checkpoints: Checkpoints) -> anyhow::Result<LanesEnd> {
        drop(self.feeders);
        let slow = self.slow.map(SlowLane::finish).transpose();
        if let Some(signals) = self.signals {
            signals.finish();
        }
        let slow = slow?;
        // Tables commit what is decided.
        let closing = checkpoints.finish();
        if let Some(offline) = self.offline {
            offline.finish()?;
        }
        if let Some(closing) = closing {
            closing.close();
        }
        Ok(LanesEnd { slow })
    }

    /// Says how far all tables are committed.
    pub fn offline_committed(&self) -> Box<dyn Fn() -> u64 + Send> {
        match &self.offline {
            Some(offline) => {
                let durable = offline.durable();
                Box::new(move || durable().unwrap_or(0))
            }
            None => Box::new(|| 0),
        }
    }
}

/// The closed epoch of a lane that is not there: it never holds anybody.
pub const NO_LANE: u64 = u64::MAX / 2;

fn open_offline(opening: &Opening<'_>, begin: Begin) -> anyhow::Result<OpenOffline> {
    let (plan, board) = (opening.plan, opening.board);
    let mut pending: Vec<Vec<(u64, PendingRows)>> = Vec::new();
    for table in &plan.offline {
        let mut batches = Vec::new();
        for (epoch, bytes) in opening.from.offline.get(&table.name).into_iter().flatten() {
            let batch = crate::offline::pending::decode(bytes, &board.partitions);
            batches.push((
                *epoch,
                batch.map_err(|detail| {
                    anyhow::anyhow!("the checkpoint's rows of table `{}`, epoch {epoch}: {detail}", table.name)
                })?,
            ));
        }
        pending.push(batches);
    }
    let open = |table: &OfflinePlan| OpenTable {
        name: table.name.clone(),
        config: OfflineConfig {
            from: plan.streams[table.stream].name.clone(),
            table: table.table.clone(),
            every: table.every,
        },
        schema: plan.streams[table.stream].schema.clone(),
        origins: Origins { partitions: board.partitions.clone(), model: plan.model_info(table.stream) },
        begin: match begin {
            Begin::After(epoch) if opening.began.contains(&table.path()) => Begin::Joining(epoch),
            begin => begin,
        },
    };
    Ok(OpenOffline {
        decided: board.decided.clone(),
        pending,
        job: plan.name.clone(),
        topology_hash: plan.hash.clone(),
        folder: plan.folder.clone(),
        workers: board.shape.workers,
        tables: plan.offline.iter().map(open).collect(),
    })
}

/// The slow lane's share of a plan.
fn slow_plan(plan: &Plan, shape: Shape) -> SlowPlan {
    let detector = |detector: &crate::plan::DetectorPlan| {
        let stream = &plan.streams[detector.stream];
        DetectorPlan {
            name: detector.name.clone(),
            stream: detector.stream,
            stream_name: stream.name.clone(),
            column: detector.column,
            column_name: stream.schema.field(detector.column).name().clone(),
            condition: detector.condition.clone(),
            config: detector.detector.clone(),
            state: detector.path(),
        }
    };
    let outcome = |outcome: &crate::plan::OutcomePlan| {
        let schema = &plan.streams[outcome.predictions].schema;
        let named = |column: &usize| (schema.field(*column).name().clone(), *column);
        OutcomePlan {
            name: outcome.name.clone(),
            predictions: outcome.predictions,
            prediction_key: outcome.prediction_key.clone(),
            score: outcome.score,
            slices: outcome.slices.iter().map(named).collect(),
            labels: outcome.labels,
            label_key: outcome.label_key.clone(),
            value: outcome.value.clone(),
            window: outcome.window,
            state: outcome.path(),
        }
    };
    SlowPlan {
        workers: shape.workers,
        detectors: plan.detectors.iter().map(detector).collect(),
        outcomes: plan.outcomes.iter().map(outcome).collect(),
    }
}
