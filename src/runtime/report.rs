//! Brings the metrics up to date with what the job has counted: the workers count in atomics, and this copies them into
//! the recorder some times a second. What must be done now and then, whether somebody asks or not, is done here too:
//! served keys that have expired are forgotten, histograms are folded into their buckets.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use millstream_operators::EventTime;
use millstream_operators::reject::Reason;

use super::board::Board;
use super::clock::now_micros;
use super::job::INBOX;
use super::meter::{NodeCounters, SinkCounters, SourceCounters, WorkerCounters};
use super::shared::ROWS_IN_FLIGHT_MAX;
use crate::cluster::Shape;
use crate::http::health::{Expected, Health};
use crate::metrics::catalogue::*;
use crate::metrics::{Exporter, HistogramHandle};
use crate::plan::{Plan, SourcePlan};
use crate::sources::status::Connection;

/// How often the metrics are brought up to date.
const EVERY: Duration = Duration::from_millis(250);
/// How often a shard of every group of the online store is swept.
const SWEEP_EVERY: Duration = Duration::from_millis(100);
/// How often histograms are folded.
const FOLD_EVERY: Duration = Duration::from_secs(1);
/// Epochs that have ended and are not durable of which the end is remembered; a job that is further behind is held.
const EPOCHS_ENDED_MAX: usize = 1_024;

/// Reports a running job.
pub struct Reporter {
    /// The sources, by name; Kafka's count their records themselves.
    own_records: BTreeMap<String, bool>,
    /// Models' versions, by name.
    models: BTreeMap<String, String>,
    exporter: Exporter,
    reported: Instant,
    swept: Instant,
    folded: Instant,
    /// Events taken when the newest durable epoch was reported.
    taken: u64,
    durable: u64,
    /// Epochs that have ended and are not durable yet, with when their end was seen; and the newest of them all.
    ended: VecDeque<(u64, Instant)>,
    newest: u64,
    epoch_seconds: HistogramHandle,
}

impl Reporter {
    /// A reporter of a job that is starting; says what is known from the start.
    pub fn new(plan: &Plan, exporter: Exporter) -> Self {
        BUILD_INFO.of([env!("CARGO_PKG_VERSION")]).set(1.0);
        JOB_INFO.of([&plan.name, &plan.hash]).set(1.0);
        let live = |source: &SourcePlan| source.kind.settings().connector().is_some();
        EXCHANGE_ROWS_MAX.of([]).set(ROWS_IN_FLIGHT_MAX as f64);
        plan.sources().for_each(|(stream, _)| INBOX_BATCHES_MAX.of([&stream.name]).set(INBOX as f64));
        Reporter {
            own_records: plan.sources().map(|(stream, source)| (stream.name.clone(), live(source))).collect(),
            models: plan.models.iter().map(|model| (model.name.clone(), model.version.clone())).collect(),
            exporter,
            reported: Instant::now() - EVERY,
            swept: Instant::now(),
            folded: Instant::now(),
            taken: 0,
            durable: 0,
            ended: VecDeque::new(),
            newest: 0,
            epoch_seconds: EPOCH_CLOSE_DURATION.of([]),
        }
    }

    /// Called some 50 times a second: copies the counters if the last time is long enough ago, and sees to the rest.
    pub fn report(&mut self, board: &Board, health: &Health) {
        self.watch_epochs(board);
        if self.swept.elapsed() >= SWEEP_EVERY {
            self.swept = Instant::now();
            board.online.group_names().for_each(|_| board.online.sweep_next());
        }
        if self.folded.elapsed() >= FOLD_EVERY {
            self.folded = Instant::now();
            self.exporter.fold();
        }
        if self.reported.elapsed() >= EVERY {
            self.report_now(board, health);
        }
    }

    /// Copies the counters.
    pub fn report_now(&mut self, board: &Board, health: &Health) {
        self.reported = Instant::now();
        for (worker, counters) in board.meters.workers() {
            report_worker(worker, &counters);
        }
        for (name, source) in board.meters.sources() {
            self.source(&name, &source, &board.meters.node(&name));
        }
        for (name, node) in board.meters.nodes() {
            self.node(&name, &node);
        }
        for (name, sink) in board.meters.sinks() {
            self.sink(&name, &sink);
        }
        for (index, status) in board.statuses.iter().enumerate() {
            health.set_assigned(index, matches!(status.connection(), Connection::Reading | Connection::Ended));
        }
        for (gate, shut) in board.gates.each(board.open_epoch.load(Relaxed)) {
            GATE_SHUT.of([gate]).set(f64::from(u8::from(shut)));
        }
        EXCHANGE_QUEUED_ROWS.of([]).set(board.gates.rows_between_workers() as f64);
        self.epochs(board, health);
    }

    /// Notes when epochs end and when they are durable.
    fn watch_epochs(&mut self, board: &Board) {
        let (open, now) = (board.open_epoch.load(Relaxed), Instant::now());
        if self.newest == 0 {
            // What ended before the first look has ended in an earlier run.
            self.newest = open.saturating_sub(1);
        }
        for epoch in self.newest + 1..open {
            self.newest = epoch;
            if self.ended.len() < EPOCHS_ENDED_MAX {
                self.ended.push_back((epoch, now));
            }
        }
        let durable = board.durable.epoch().unwrap_or(open);
        while let Some((_, ended)) = self.ended.pop_front_if(|(epoch, _)| *epoch <= durable) {
            self.epoch_seconds.record(now.saturating_duration_since(ended).as_secs_f64());
        }
    }

    fn source(&self, name: &str, source: &SourceCounters, node: &NodeCounters) {
        if self.own_records.get(name) == Some(&false) {
            SOURCE_RECORDS.of([name, name]).absolute(source.records.load(Relaxed));
            SOURCE_BYTES.of([name, name]).absolute(source.bytes.load(Relaxed));
        }
        for (worker, queued) in source.queued.lock().expect("no thread panics with the lock").iter() {
            INBOX_QUEUED_BATCHES.of([name, &worker.to_string()]).set(queued.load(Relaxed) as f64);
        }
        let rejected = &node.rejects[Reason::Late as usize];
        for (action, late) in [("kept", &source.late_kept), ("dropped", &node.late), ("dead_lettered", rejected)] {
            LATE_RECORDS.of([name, action]).absolute(late.load(Relaxed));
        }
        let watermark = source.watermark.load(Relaxed);
        if watermark != EventTime::MIN {
            WATERMARK_TIMESTAMP.of([name]).set(watermark as f64 / 1e3);
            WATERMARK_LAG_SECONDS.of([name]).set((now_micros() as f64 / 1e3 - watermark as f64) / 1e3);
        }
    }

    fn node(&self, name: &str, node: &NodeCounters) {
        OPERATOR_RECORDS_IN.of([name]).absolute(node.records_in.load(Relaxed));
        OPERATOR_RECORDS_OUT.of([name]).absolute(node.records_out.load(Relaxed));
        for (reason, count) in Reason::ALL.iter().zip(&node.rejects) {
            let count = count.load(Relaxed);
            if count > 0 {
                DLQ_RECORDS.of([name, reason.as_str()]).absolute(count);
            }
        }
        for (reason, count) in [("filtered", &node.filtered), ("late", &node.late), ("duplicate", &node.duplicates)] {
            let count = count.load(Relaxed);
            if count > 0 {
                RECORDS_DROPPED.of([name, reason]).absolute(count);
            }
        }
        let state = node.state.lock().expect("no thread panics with the lock");
        if !state.is_empty() {
            STATE_KEYS.of([name]).set(state.values().map(|(keys, _)| *keys as f64).sum::<f64>());
            STATE_BYTES.of([name]).set(state.values().map(|(_, bytes)| *bytes as f64).sum::<f64>());
        }
        if let Some(version) = self.models.get(name) {
            MODEL_PREDICTIONS.of([name, version]).absolute(node.records_out.load(Relaxed));
        }
    }

    fn sink(&self, name: &str, sink: &SinkCounters) {
        SINK_RECORDS.of([name]).absolute(sink.records.load(Relaxed));
        SINK_BYTES.of([name]).absolute(sink.bytes.load(Relaxed));
        SINK_QUEUED_RECORDS.of([name]).set(sink.queued.load(Relaxed) as f64);
        SINK_STALLED_SECONDS.of([name]).set(sink.stalled_micros.load(Relaxed) as f64 / 1e6);
        self.exporter.latencies.set(name, &sink.latency.lock().expect("no thread panics with the lock"));
    }

    fn epochs(&mut self, board: &Board, health: &Health) {
        health.epoch_opened(board.open_epoch.load(Relaxed));
        let taken: u64 = board.meters.sources().iter().map(|(_, source)| source.records.load(Relaxed)).sum();
        let epoch = board.durable_epoch();
        if epoch > self.durable {
            (self.durable, self.taken) = (epoch, taken);
            health.epoch_committed(epoch);
        }
        health.set_in_flight(taken > self.taken);
    }
}

fn report_worker(worker: usize, counters: &WorkerCounters) {
    let worker = worker.to_string();
    let labels = [worker.as_str()];
    WORKER_STEPS.of(labels).absolute(counters.steps.load(Relaxed));
    WORKER_PARKS.of(labels).absolute(counters.parks.load(Relaxed));
    WORKER_BUSY_SECONDS.of(labels).set(counters.busy_micros.load(Relaxed) as f64 / 1e6);
    WORKER_IDLE_SECONDS.of(labels).set(counters.idle_micros.load(Relaxed) as f64 / 1e6);
}

/// The health of a job that is starting.
pub fn health(plan: &Plan, shape: Shape) -> Health {
    Health::new(Expected {
        workers: shape.workers,
        sources: plan.sources().map(|(stream, _)| stream.name.clone()).collect(),
        models: plan.models.iter().map(|model| model.name.clone()).collect(),
        epoch: plan.engine.epoch.duration(),
    })
}
