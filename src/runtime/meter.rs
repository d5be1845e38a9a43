//! What a job counts, in one place: atomics that workers add to once a batch, read by the metrics, the progress display
//! and the closing summary. Conservation is checked on them: in = out + rejected + filtered + late + duplicates.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use hdrhistogram::Histogram;
use millstream_operators::operator::Outputs;
use millstream_operators::reject::Reason;
use millstream_operators::{Batch, EventTime};
use serde::{Deserialize, Serialize};

use crate::sinks::Records;

/// Counters of a node, all workers together.
#[derive(Debug, Default)]
pub struct NodeCounters {
    /// Records taken.
    pub records_in: AtomicU64,
    /// Records given, all ports together.
    pub records_out: AtomicU64,
    /// Rejects, by [`Reason::ALL`].
    pub rejects: [AtomicU64; Reason::ALL.len()],
    /// Records dropped by a filter.
    pub filtered: AtomicU64,
    /// Records dropped because they were late.
    pub late: AtomicU64,
    /// Records dropped because they had gone on before.
    pub duplicates: AtomicU64,
    /// Keys and bytes of state, by worker.
    pub state: Mutex<BTreeMap<usize, (u64, u64)>>,
}

/// Counters of a worker's loop.
#[derive(Debug, Default)]
pub struct WorkerCounters {
    /// Turns of the loop.
    pub steps: AtomicU64,
    /// Turns without a row in which the worker was free to sleep.
    pub parks: AtomicU64,
    /// Microseconds in turns that moved rows.
    pub busy_micros: AtomicU64,
    /// Microseconds in the other turns.
    pub idle_micros: AtomicU64,
}

/// Counters of a source, all workers together.
#[derive(Debug)]
pub struct SourceCounters {
    /// Messages or rows taken from the connector.
    pub records: AtomicU64,
    /// Their bytes.
    pub bytes: AtomicU64,
    /// Late records that went on all the same.
    pub late_kept: AtomicU64,
    /// The watermark at the last cut; `i64::MIN` before the first event.
    pub watermark: AtomicI64,
    /// Arrivals that wait in the inbox, by worker.
    pub queued: Mutex<BTreeMap<usize, Arc<AtomicU64>>>,
}

/// Counters of a sink, all workers together.
#[derive(Debug)]
pub struct SinkCounters {
    /// Records encoded.
    pub records: AtomicU64,
    /// Bytes of their values.
    pub bytes: AtomicU64,
    /// Microseconds in which some writer could not take what it was given.
    pub stalled_micros: AtomicU64,
    /// Records that writers could not take yet.
    pub queued: AtomicI64,
    /// Microseconds from arrival in the process to the writer, by record.
    pub latency: Mutex<Histogram<u64>>,
}

/// A histogram of latencies in microseconds, without any.
pub fn no_latencies() -> Histogram<u64> {
    Histogram::new_with_max(600_000_000, 3).expect("three digits up to ten minutes are allowed")
}

/// All counters of a job, by name.
#[derive(Debug, Default)]
pub struct Meters {
    nodes: Mutex<BTreeMap<Arc<str>, Arc<NodeCounters>>>,
    sources: Mutex<BTreeMap<Arc<str>, Arc<SourceCounters>>>,
    sinks: Mutex<BTreeMap<Arc<str>, Arc<SinkCounters>>>,
    workers: Mutex<BTreeMap<usize, Arc<WorkerCounters>>>,
}

impl Meters {
    /// The counters of a worker.
    pub fn worker(&self, worker: usize) -> Arc<WorkerCounters> {
        self.workers.lock().expect("no thread panics with the lock").entry(worker).or_default().clone()
    }
    /// The counters of a node.
    pub fn node(&self, name: &Arc<str>) -> Arc<NodeCounters> {
        self.nodes.lock().expect("no thread panics with the lock").entry(name.clone()).or_default().clone()
    }
    /// The counters of a source.
    pub fn source(&self, name: &Arc<str>) -> Arc<SourceCounters> {
        let mut sources = self.sources.lock().expect("no thread panics with the lock");
        let new = || {
            let (records, bytes) = (AtomicU64::new(0), AtomicU64::new(0));
            let (late_kept, watermark) = (AtomicU64::new(0), AtomicI64::new(EventTime::MIN));
            Arc::new(SourceCounters { records, bytes, late_kept, watermark, queued: Mutex::default() })
        };
        sources.entry(name.clone()).or_insert_with(new).clone()
    }
    /// The counters of a sink.
    pub fn sink(&self, name: &Arc<str>) -> Arc<SinkCounters> {
        let mut sinks = self.sinks.lock().expect("no thread panics with the lock");
        let new = || {
            let latency = no_latencies();
            let (records, bytes, stalled_micros) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
            let (queued, latency) = (AtomicI64::new(0), Mutex::new(latency));
            Arc::new(SinkCounters { records, bytes, stalled_micros, queued, latency })
        };
        sinks.entry(name.clone()).or_insert_with(new).clone()
    }
    /// The latencies of some sinks, together.
    pub fn latencies(&self, sinks: &[Arc<str>]) -> Histogram<u64> {
        let mut all = no_latencies();
        for sink in sinks {
            let counters = self.sink(sink);
            let latency = counters.latency.lock().expect("no thread panics with the lock");
            all.add(&*latency).expect("histograms of latencies are of one shape");
        }
        all
    }
    /// All workers.
    pub fn workers(&self) -> Vec<(usize, Arc<WorkerCounters>)> {
        let workers = self.workers.lock().expect("no thread panics with the lock");
        workers.iter().map(|(worker, counters)| (*worker, counters.clone())).collect()
    }
    /// All nodes.
    pub fn nodes(&self) -> Vec<(Arc<str>, Arc<NodeCounters>)> {
        self.nodes.lock().expect("no thread panics with the lock").iter().map(|(n, c)| (n.clone(), c.clone())).collect()
    }
    /// All sources.
    pub fn sources(&self) -> Vec<(Arc<str>, Arc<SourceCounters>)> {
        let sources = self.sources.lock().expect("no thread panics with the lock");
        sources.iter().map(|(n, c)| (n.clone(), c.clone())).collect()
    }
    /// All sinks.
    pub fn sinks(&self) -> Vec<(Arc<str>, Arc<SinkCounters>)> {
        self.sinks.lock().expect("no thread panics with the lock").iter().map(|(n, c)| (n.clone(), c.clone())).collect()
    }
}

/// What the closing summary needs of a process's counters, to be added to another's.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Counts {
    nodes: Vec<(String, NodeCounts)>,
    /// Records by source.
    sources: Vec<(String, u64)>,
    /// Records by sink, and its latencies: (microseconds, records).
    sinks: Vec<(String, u64, Vec<(u64, u64)>)>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct NodeCounts {
    records_out: u64,
    rejects: Vec<u64>,
    filtered: u64,
    late: u64,
    duplicates: u64,
}

impl Meters {
    /// What the closing summary needs.
    pub fn counts(&self) -> Counts {
        let node = |(name, node): (Arc<str>, Arc<NodeCounters>)| {
            let counts = NodeCounts {
                records_out: node.records_out.load(Relaxed),
                rejects: node.rejects.iter().map(|count| count.load(Relaxed)).collect(),
                filtered: node.filtered.load(Relaxed),
                late: node.late.load(Relaxed),
                duplicates: node.duplicates.load(Relaxed),
            };
            (name.to_string(), counts)
        };
        let sink = |(name, sink): (Arc<str>, Arc<SinkCounters>)| {
            let latency = sink.latency.lock().expect("no thread panics with the lock");
            let latency = latency.iter_recorded().map(|value| (value.value_iterated_to(), value.count_at_value()));
            (name.to_string(), sink.records.load(Relaxed), latency.collect())
        };
        let sources = self.sources().into_iter();
        Counts {
            nodes: self.nodes().into_iter().map(node).collect(),
            sources: sources.map(|(name, source)| (name.to_string(), source.records.load(Relaxed))).collect(),
            sinks: self.sinks().into_iter().map(sink).collect(),
        }
    }

    /// Adds what another process has counted.
    pub fn add(&self, counts: Counts) {
        for (name, counts) in counts.nodes {
            let node = self.node(&name.as_str().into());
            node.records_out.fetch_add(counts.records_out, Relaxed);
            node.filtered.fetch_add(counts.filtered, Relaxed);
            node.late.fetch_add(counts.late, Relaxed);
            node.duplicates.fetch_add(counts.duplicates, Relaxed);
            node.rejects.iter().zip(counts.rejects).for_each(|(into, count)| _ = into.fetch_add(count, Relaxed));
        }
        for (name, records) in counts.sources {
            self.source(&name.as_str().into()).records.fetch_add(records, Relaxed);
        }
        for (name, records, latencies) in counts.sinks {
            let sink = self.sink(&name.as_str().into());
            sink.records.fetch_add(records, Relaxed);
            let mut latency = sink.latency.lock().expect("no thread panics with the lock");
            latencies.into_iter().for_each(|(value, count)| latency.saturating_record_n(value, count));
        }
    }
}

/// One worker's pen for a node's counters.
#[derive(Debug)]
pub struct NodeMeter {
    worker: usize,
    counters: Arc<NodeCounters>,
}

impl NodeMeter {
    /// A pen for the counters of node `name`.
    pub fn new(name: &Arc<str>, meters: &Meters, worker: usize) -> Self {
        NodeMeter { worker, counters: meters.node(name) }
    }
    /// Counts records taken.
    pub fn records_in(&self, records: usize) {
        self.counters.records_in.fetch_add(records as u64, Relaxed);
    }
    /// Counts records given.
    pub fn records_out(&self, records: usize) {
        self.counters.records_out.fetch_add(records as u64, Relaxed);
    }
    /// Counts what was rejected and dropped.
    pub fn dropped(&self, given: &Outputs) {
        for reject in &given.rejects {
            self.counters.rejects[reject.reason as usize].fetch_add(1, Relaxed);
        }
        if given.filtered > 0 {
            self.counters.filtered.fetch_add(given.filtered, Relaxed);
        }
        if given.late > 0 {
            self.counters.late.fetch_add(given.late, Relaxed);
        }
        if given.duplicates > 0 {
            self.counters.duplicates.fetch_add(given.duplicates, Relaxed);
        }
    }
    /// Reports the size of the worker's part of the state: keys and bytes.
    pub fn state(&self, size: (u64, u64)) {
        if size != (0, 0) {
            self.counters.state.lock().expect("no thread panics with the lock").insert(self.worker, size);
        }
    }
}

impl SourceCounters {
    /// Where worker `worker` says how much waits in its inbox.
    pub fn queue(&self, worker: usize) -> Arc<AtomicU64> {
        self.queued.lock().expect("no thread panics with the lock").entry(worker).or_default().clone()
    }
    /// Counts what the connector handed over.
    pub fn taken(&self, records: usize, bytes: usize) {
        self.records.fetch_add(records as u64, Relaxed);
        self.bytes.fetch_add(bytes as u64, Relaxed);
    }
}

impl SinkCounters {
    /// Counts encoded records of a batch, at `now_micros`.
    pub fn encoded(&self, records: &Records, batch: &Batch, now_micros: i64) {
        self.records.fetch_add(records.len() as u64, Relaxed);
        self.bytes.fetch_add(records.values.len() as u64, Relaxed);
        let mut latency = self.latency.lock().expect("no thread panics with the lock");
        for row in batch.rows.iter() {
            latency.saturating_record((now_micros - row.arrived_micros).max(1) as u64);
        }
    }
}
