//! Brings the metrics up to date with what the job has counted: the workers count in atomics, and this copies them into
//! the recorder some times a second.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use millstream_operators::EventTime;
use millstream_operators::reject::Reason;

use super::board::Board;
use super::clock::now_micros;
use super::meter::{NodeCounters, SinkCounters, SourceCounters};
use crate::http::health::{Expected, Health};
use crate::metrics::catalogue::*;
use crate::plan::{Plan, SourcePlan};
use crate::sources::SourceKind;
use crate::sources::status::Connection;

/// How often the metrics are brought up to date.
const EVERY: Duration = Duration::from_millis(250);

/// Reports a running job.
pub struct Reporter {
    /// The sources, by name; Kafka's count their records themselves.
    own_records: BTreeMap<String, bool>,
    /// Models' versions, by name.
    models: BTreeMap<String, String>,
    reported: Instant,
    /// Events taken when the newest durable epoch was reported.
    taken: u64,
    durable: u64,
}

impl Reporter {
    /// A reporter of a job that is starting; says what is known from the start.
    pub fn new(plan: &Plan) -> Self {
        BUILD_INFO.of([env!("CARGO_PKG_VERSION")]).set(1.0);
        JOB_INFO.of([&plan.name, &plan.hash]).set(1.0);
        let kafka = |source: &SourcePlan| matches!(source.kind, SourceKind::Kafka(_));
        for model in &plan.models {
            MODEL_INFO.of([&model.name, &model.version]).set(1.0);
        }
        Reporter {
            own_records: plan.sources().map(|(stream, source)| (stream.name.clone(), kafka(source))).collect(),
            models: plan.models.iter().map(|model| (model.name.clone(), model.version.clone())).collect(),
            reported: Instant::now() - EVERY,
            taken: 0,
            durable: 0,
        }
    }

    /// Copies the counters, if the last time is long enough ago.
    pub fn report(&mut self, board: &Board, health: &Health) {
        if self.reported.elapsed() >= EVERY {
            self.report_now(board, health);
        }
    }

    /// Copies the counters.
    pub fn report_now(&mut self, board: &Board, health: &Health) {
        self.reported = Instant::now();
        for (name, source) in board.meters.sources() {
            self.source(&name, &source);
        }
        for (name, node) in board.meters.nodes() {
            self.node(&name, &node);
        }
        for (name, sink) in board.meters.sinks() {
            report_sink(&name, &sink);
        }
        for (index, status) in board.statuses.iter().enumerate() {
            health.set_assigned(index, matches!(status.connection(), Connection::Reading | Connection::Ended));
        }
        self.epochs(board, health);
    }

    fn source(&self, name: &str, source: &SourceCounters) {
        if self.own_records.get(name) == Some(&false) {
            SOURCE_RECORDS.of([name, name]).absolute(source.records.load(Relaxed));
            SOURCE_BYTES.of([name, name]).absolute(source.bytes.load(Relaxed));
        }
        LATE_RECORDS.of([name, "kept"]).absolute(source.late_kept.load(Relaxed));
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
        for (reason, count) in [("filtered", &node.filtered), ("late", &node.late)] {
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

    fn epochs(&mut self, board: &Board, health: &Health) {
        health.epoch_opened(board.open_epoch.load(Relaxed));
        let taken: u64 = board.meters.sources().iter().map(|(_, source)| source.records.load(Relaxed)).sum();
        if let Some(epoch) = board.durable.epoch().filter(|epoch| *epoch > self.durable) {
            (self.durable, self.taken) = (epoch, taken);
            health.epoch_committed(epoch);
        }
        health.set_in_flight(taken > self.taken);
    }
}

fn report_sink(name: &str, sink: &SinkCounters) {
    SINK_RECORDS.of([name]).absolute(sink.records.load(Relaxed));
    SINK_BYTES.of([name]).absolute(sink.bytes.load(Relaxed));
    SINK_STALLED_SECONDS.of([name]).set(sink.stalled_micros.load(Relaxed) as f64 / 1e6);
    let latency = sink.latency.lock().expect("no thread panics with the lock");
    for (quantile, gauge) in [("0.5", 0.5), ("0.99", 0.99), ("0.999", 0.999)] {
        PROCESSING_LATENCY.of([name, quantile]).set(latency.value_at_quantile(gauge) as f64 / 1e6);
    }
}

/// The health of a job that is starting.
pub fn health(plan: &Plan) -> Health {
    Health::new(Expected {
        workers: plan.engine.workers,
        sources: plan.sources().map(|(stream, _)| stream.name.clone()).collect(),
        models: plan.models.iter().map(|model| model.name.clone()).collect(),
        epoch: plan.engine.epoch.duration(),
    })
}
