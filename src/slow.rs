//! The slow lane: what may take milliseconds, beside the lane that may not. Drift detectors, and outcomes (predictions
//! joined to labels that arrive later) as differential collections.
//!
//! ```text
//! workers ──rows, stamped with their epoch──▶ one thread: ─▶ detectors ─▶ signals ─▶ sinks
//!         ──"epoch e is complete"───────────▶   epoch by   ─▶ outcomes  ─▶ quality ─▶ metrics, summary
//!                                               epoch
//! ```
//!
//! An epoch is processed when every worker has completed it, its rows in the order of (event time, source, partition by
//! name, offset). So the results depend on the rows and the cuts of the epochs alone: not on the number of workers, nor on
//! who was faster. Detectors and outcomes keep their state by name; whether it is taken up is decided before.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use anyhow::{Context as _, anyhow};
use crossbeam_channel::{Receiver, Sender, unbounded};
use millstream_operators::drift::DetectorKind;
use millstream_operators::expressions::Expression;
use millstream_operators::quality::Quality;
use millstream_operators::units::Millis;
use millstream_operators::{Batch, EventTime};
use timely::worker::Worker;

use crate::checkpoint::NodeState;
use crate::runtime::ledger::Ledger;
use crate::runtime::signals::Signal;
use crate::sources::Partitions;
use detectors::Detectors;
use order::EventOrder;
use outcomes::Outcomes;

mod detectors;
mod order;
mod outcomes;
#[cfg(test)]
mod tests;

pub use detectors::DetectorCounts;
pub use outcomes::{ALL, OutcomeCounts};

/// What the slow lane does.
#[derive(Debug, Clone, Default)]
pub struct SlowPlan {
    /// Number of workers that feed it.
    pub workers: usize,
    /// The detectors.
    pub detectors: Vec<DetectorPlan>,
    /// The outcomes.
    pub outcomes: Vec<OutcomePlan>,
}

/// A detector on a column.
#[derive(Debug, Clone)]
pub struct DetectorPlan {
    /// The detector's name.
    pub name: String,
    /// The stream it watches, by the number that feeds carry.
    pub stream: usize,
    /// The stream's name.
    pub stream_name: String,
    /// The column's place.
    pub column: usize,
    /// The column's name.
    pub column_name: String,
    /// The rows it watches; all without it.
    pub condition: Option<Expression>,
    /// The detector.
    pub config: DetectorKind,
    /// The name of its state in checkpoints.
    pub state: String,
}

/// Predictions to be joined to labels.
#[derive(Debug, Clone)]
pub struct OutcomePlan {
    /// The outcome's name.
    pub name: String,
    /// The stream of predictions.
    pub predictions: usize,
    /// Its columns that make the key.
    pub prediction_key: Vec<usize>,
    /// Its column that holds the score.
    pub score: usize,
    /// Its columns to cut the figures by, with their names.
    pub slices: Vec<(String, usize)>,
    /// The stream of labels.
    pub labels: usize,
    /// Its columns that make the key.
    pub label_key: Vec<usize>,
    /// The label: a number (from 0.5 on positive) or a boolean; null is no label.
    pub value: Expression,
    /// How far back predictions and labels count, in event time.
    pub window: Millis,
    /// The name of its state in checkpoints.
    pub state: String,
}

/// What a worker tells the slow lane.
#[derive(Debug)]
pub enum Feed {
    /// Rows of a stream in an epoch.
    Rows {
        /// The stream.
        stream: usize,
        /// The epoch.
        epoch: u64,
        /// The rows.
        batch: Batch,
    },
    /// The worker has handed over all of an epoch.
    Close {
        /// The worker.
        worker: usize,
        /// The epoch.
        epoch: u64,
        /// No event at or before this is expected after it.
        watermark: EventTime,
    },
    /// The worker has no more.
    End {
        /// The worker.
        worker: usize,
    },
}

/// Quality by outcome and slice; the slice [`ALL`] is everything.
pub type QualityBySlice = BTreeMap<String, BTreeMap<String, Quality>>;

/// What the slow lane leaves behind.
#[derive(Debug, Default)]
pub struct SlowReport {
    /// What each detector did in this run.
    pub detectors: BTreeMap<String, DetectorCounts>,
    /// What each outcome has seen in this run, and what stands.
    pub outcomes: BTreeMap<String, OutcomeCounts>,
    /// Quality of the predictions in the windows.
    pub quality: QualityBySlice,
}

/// The running slow lane.
pub struct SlowLane {
    sender: Sender<Feed>,
    closed: Arc<AtomicU64>,
    quality: Arc<Mutex<QualityBySlice>>,
    failed: Arc<AtomicBool>,
    thread: JoinHandle<anyhow::Result<SlowReport>>,
}

impl SlowLane {
    /// Starts the lane with the states of a checkpoint, by name; `first_epoch` is the first it will see. Signals go to
    /// `signals`, each epoch's before its close, changes of state into `ledger`. Rows name their partitions by numbers of
    /// `partitions`.
    ///
    /// # Errors
    /// If the state does not belong to the plan, or a detector can't be built.
    pub fn start(
        plan: SlowPlan,
        states: &BTreeMap<String, NodeState>,
        first_epoch: u64,
        signals: Sender<Signal>,
        mut ledger: Ledger,
        partitions: Arc<Partitions>,
    ) -> anyhow::Result<SlowLane> {
        let entry = ledger.register();
        let detectors = Detectors::new(&plan.detectors, states)?;
        let named = |outcome: &OutcomePlan| Some((outcome.name.clone(), states.get(&outcome.state)?.clone()));
        let states: BTreeMap<String, NodeState> = plan.outcomes.iter().filter_map(named).collect();
        let (sender, receiver) = unbounded();
        let closed = Arc::new(AtomicU64::new(first_epoch - 1));
        let quality = Arc::new(Mutex::new(QualityBySlice::new()));
        let shared = (closed.clone(), quality.clone());
        let failed = Arc::new(AtomicBool::new(false));
        let failing = failed.clone();
        let run = move || {
            let report = timely::execute_directly(move |worker| {
                let outcomes: anyhow::Result<Vec<Outcomes>> = plan
                    .outcomes
                    .iter()
                    .map(|outcome| Outcomes::new(worker, outcome, first_epoch, states.get(&outcome.name)))
                    .collect();
                let (closed, quality) = shared;
                let order = EventOrder::new(partitions);
                let outcomes = outcomes?;
                let mut lane = Running { plan, order, detectors, outcomes, signals, closed, quality, ledger, entry };
                lane.run(worker, &receiver)?;
                Ok(lane.finish())
            });
            failing.store(report.is_err(), Ordering::Release);
            report
        };
        let thread = std::thread::Builder::new().name("slow lane".into()).spawn(run).context("start the slow lane")?;
        Ok(SlowLane { sender, closed, quality, failed, thread })
    }

    /// A way in for a worker.
    pub fn feed(&self) -> Sender<Feed> {
        self.sender.clone()
    }

    /// The newest epoch that has been processed.
    pub fn closed_epoch(&self) -> u64 {
        self.closed.load(Ordering::Acquire)
    }

    /// Whether the lane has failed; [`finish`](SlowLane::finish) says why.
    pub fn failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    /// The figures after the newest epoch.
    pub fn quality(&self) -> Arc<Mutex<QualityBySlice>> {
        self.quality.clone()
    }

    /// Waits until everything that was fed has been processed. Workers must have ended.
    ///
    /// # Errors
    /// If the lane failed.
    pub fn finish(self) -> anyhow::Result<SlowReport> {
        drop(self.sender);
        self.thread.join().map_err(|_| anyhow!("the slow lane panicked"))?.context("the slow lane failed")
    }
}

/// Rows of an open epoch, and who has completed it.
#[derive(Default)]
struct Open {
    rows: BTreeMap<usize, Vec<Batch>>,
    completed: usize,
    watermark: Option<EventTime>,
}

struct Running {
    plan: SlowPlan,
    order: EventOrder,
    detectors: Detectors,
    outcomes: Vec<Outcomes>,
    signals: Sender<Signal>,
    closed: Arc<AtomicU64>,
    quality: Arc<Mutex<QualityBySlice>>,
    ledger: Ledger,
    /// The lane's number in the ledger.
    entry: usize,
}

impl Running {
    /// Processes epochs as they are completed, until no worker can feed any more.
    fn run(&mut self, worker: &mut Worker, receiver: &Receiver<Feed>) -> anyhow::Result<()> {
        let mut open: BTreeMap<u64, Open> = BTreeMap::new();
        let mut ended = 0;
        while ended < self.plan.workers {
            let Ok(feed) = receiver.recv() else { break };
            match feed {
                Feed::Rows { stream, epoch, batch } => {
                    open.entry(epoch).or_default().rows.entry(stream).or_default().push(batch);
                }
                Feed::Close { epoch, watermark, .. } => {
                    let of_epoch = open.entry(epoch).or_default();
                    of_epoch.completed += 1;
                    of_epoch.watermark = Some(of_epoch.watermark.map_or(watermark, |known| known.min(watermark)));
                }
                Feed::End { .. } => ended += 1,
            }
            while let Some(first) = open.first_entry() {
                if first.get().completed < self.plan.workers {
                    break;
                }
                let (epoch, complete) = first.remove_entry();
                self.epoch(worker, epoch, complete)?;
            }
        }
        // Workers may end in different epochs: what the last of them gave is complete now.
        for (epoch, complete) in open {
            self.epoch(worker, epoch, complete)?;
        }
        Ok(())
    }

    fn epoch(&mut self, worker: &mut Worker, epoch: u64, complete: Open) -> anyhow::Result<()> {
        let mut rows = BTreeMap::new();
        for (stream, batches) in complete.rows {
            if let Some(batch) = Batch::concat(&batches)? {
                rows.insert(stream, self.order.sort(&batch)?);
            }
        }
        if let Some(signals) = self.detectors.observe(&rows, &self.order) {
            // The writers of signals outlive the lane; a closed channel means that the job is ending with an error.
            drop(self.signals.send(Signal::Rows(signals)));
        }
        drop(self.signals.send(Signal::Close(epoch)));
        let watermark = complete.watermark.unwrap_or(EventTime::MIN);
        let mut figures = QualityBySlice::new();
        for outcome in &mut self.outcomes {
            outcome.epoch(worker, epoch, &rows, watermark, &mut self.order)?;
            figures.insert(outcome.name().into(), outcome.quality());
        }
        *self.quality.lock().expect("no thread panics with the lock") = figures;
        self.closed.store(epoch, Ordering::Release);
        self.leave_changes(epoch);
        Ok(())
    }

    /// Leaves what the epoch has changed for its checkpoint.
    fn leave_changes(&mut self, epoch: u64) {
        let Running { detectors, outcomes, ledger, entry, .. } = self;
        detectors.save_changes(&mut |name, bytes| ledger.state(epoch, &Arc::from(name), 0, bytes));
        for outcome in outcomes {
            let name: Arc<str> = outcome.state().into();
            outcome.save_changes(&mut |key_group, bytes| ledger.state(epoch, &name, key_group, bytes));
        }
        ledger.closed(*entry, epoch);
    }

    fn finish(self) -> SlowReport {
        let mut report = SlowReport { detectors: self.detectors.counts(), ..SlowReport::default() };
        for outcome in &self.outcomes {
            let name = outcome.name().to_string();
            report.quality.insert(name.clone(), outcome.quality());
            report.outcomes.insert(name, outcome.counts());
        }
        report
    }
}
