//! A sink's end in the dataflow: encodes rows and hands them to the sink's writer, never waiting for it.
//!
//! What the writer can't take stays in a queue here, and a sink with a queue shuts the gate of the sources. The queue
//! holds records and ends of epochs in order, so an epoch is closed at the writer after its last record.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use arrow::array::AsArray;
use millstream_operators::Batch;
use millstream_operators::operator::{Operator, Outputs};
use millstream_operators::reject;

use super::clock::now_micros;
use super::failure::Failures;
use super::meter::{Meters, SinkCounters};
use super::shared::{Durable, Gates};
use crate::encode::Encoder;
use crate::metrics::catalogue::SINK_ERRORS;
use crate::sinks::{Records, SinkError, SinkWriter};

enum Queued {
    Records { epoch: u64, records: Arc<Records>, from: usize },
    End(u64),
}

/// A sink on one worker, as an operator without output.
pub struct Output {
    name: Arc<str>,
    encoder: Encoder,
    writer: Box<dyn SinkWriter>,
    queue: VecDeque<Queued>,
    /// What was written in the open epoch, if the sink commits after the decision: for the checkpoint.
    outbox: Option<Vec<Arc<Records>>>,
    epoch: u64,
    failed: bool,
    durable: Arc<Durable>,
    slot: usize,
    gates: Arc<Gates>,
    failures: Failures,
    counters: Arc<SinkCounters>,
    stalled_at: Option<Instant>,
    /// Since when there has been something in the queue.
    waiting_since: Option<Instant>,
}

/// Batches in the queue above which the sources are held.
const QUEUE_MAX: usize = 256;
/// How long there may be something in the queue before the sources are held.
const BREATH: Duration = Duration::from_millis(20);

/// What an output shares with the rest of its process.
pub struct OutputContext {
    /// Where the writer's durable epoch is kept, and under which number.
    pub durable: Arc<Durable>,
    /// The writer's number in `durable`.
    pub slot: usize,
    /// Whether the sink commits an epoch after it was decided.
    pub commits_after_decision: bool,
    /// The first epoch of this run.
    pub first_epoch: u64,
    /// The gates of the sources.
    pub gates: Arc<Gates>,
    /// Where a failure is reported.
    pub failures: Failures,
    /// What the job counts.
    pub meters: Arc<Meters>,
}

impl Output {
    /// A sink's end with its encoder and writer.
    pub fn new(name: Arc<str>, encoder: Encoder, writer: Box<dyn SinkWriter>, context: OutputContext) -> Self {
        Output {
            counters: context.meters.sink(&name),
            name,
            encoder,
            writer,
            queue: VecDeque::new(),
            outbox: context.commits_after_decision.then(Vec::new),
            epoch: context.first_epoch,
            stalled_at: None,
            waiting_since: None,
            failed: false,
            durable: context.durable,
            slot: context.slot,
            gates: context.gates,
            failures: context.failures,
        }
    }

    /// The sink's name.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// What was written since the last call, if the sink commits after the decision: to be asked when an epoch is closed.
    pub fn take_outbox(&mut self) -> Vec<Arc<Records>> {
        self.outbox.as_mut().map(std::mem::take).unwrap_or_default()
    }

    fn encode(&mut self, batch: &Batch) {
        let records = Arc::new(self.encoder.encode(batch, self.epoch));
        // Also when the sink has failed: an epoch may be decided before the job has stopped, and the next start then writes what its
        // checkpoint has.
        if let Some(outbox) = &mut self.outbox {
            outbox.push(records.clone());
        }
        if self.failed {
            return;
        }
        self.counters.encoded(&records, batch, now_micros());
        self.counters.queued.fetch_add(records.len() as i64, Ordering::Relaxed);
        self.queue.push_back(Queued::Records { epoch: self.epoch, records, from: 0 });
    }

    /// Hands the queue to the writer until it takes no more.
    fn flush(&mut self) -> Result<(), SinkError> {
        while let Some(first) = self.queue.front_mut() {
            match first {
                Queued::Records { epoch, records, from } => {
                    let before = *from;
                    *from = self.writer.write(*epoch, records, before)?;
                    self.counters.queued.fetch_sub((*from - before) as i64, Ordering::Relaxed);
                    if *from < records.len() {
                        break;
                    }
                }
                Queued::End(epoch) => self.writer.close_epoch(*epoch)?,
            }
            self.queue.pop_front();
        }
        self.look_at_queue();
        if let Some(epoch) = self.writer.durable()? {
            self.durable.set(self.slot, epoch, self.writer.positions());
            if let Some(epoch) = self.durable.epoch() {
                self.gates.durable_epoch.store(epoch, Ordering::Relaxed);
            }
        }
        Ok(())
    }

    /// A writer takes a breath between two epochs; only one that does not keep up holds the sources.
    fn look_at_queue(&mut self) {
        if self.queue.is_empty() {
            self.waiting_since = None;
            return self.mark_stalled(false);
        }
        let since = *self.waiting_since.get_or_insert_with(Instant::now);
        self.mark_stalled(self.queue.len() > QUEUE_MAX || since.elapsed() > BREATH);
    }

    /// Shuts the gate of the sources while the writer can't take what it was given, and opens it again.
    fn mark_stalled(&mut self, stalled: bool) {
        match (stalled, self.stalled_at) {
            (true, None) => {
                self.stalled_at = Some(Instant::now());
                self.gates.stalled_sinks.fetch_add(1, Ordering::Relaxed);
            }
            (false, Some(since)) => {
                self.stalled_at = None;
                self.gates.stalled_sinks.fetch_sub(1, Ordering::Relaxed);
                self.counters.stalled_micros.fetch_add(since.elapsed().as_micros() as u64, Ordering::Relaxed);
            }
            _ => {}
        }
    }

    /// A failed sink takes no more: the job ends, and its next start goes on before the failure.
    fn check(&mut self, result: Result<(), SinkError>) {
        if let Err(error) = result {
            SINK_ERRORS.of([&self.name, error.kind()]).increment(1);
            self.fail(anyhow::Error::new(error).context(format!("sink `{}` failed", self.name)));
        }
    }

    fn fail(&mut self, error: anyhow::Error) {
        self.failed = true;
        for queued in self.queue.drain(..) {
            if let Queued::Records { records, from, .. } = queued {
                self.counters.queued.fetch_sub((records.len() - from) as i64, Ordering::Relaxed);
            }
        }
        self.mark_stalled(false);
        self.failures.report(error);
        self.gates.failed.store(true, Ordering::Release);
    }
}

impl Operator for Output {
    fn process(&mut self, _port: usize, batch: Batch, _out: &mut Outputs) {
        self.encode(&batch);
        if self.failed {
            return;
        }
        let flushed = self.flush();
        self.check(flushed);
    }

    /// One writer for all workers writes the rows of a tick in event-time order, so that its output does not depend on
    /// the number of workers.
    fn process_tick(&mut self, batches: Vec<(usize, Batch)>, out: &mut Outputs) {
        let batches: Vec<Batch> = batches.into_iter().map(|(_, batch)| batch).collect();
        match Batch::concat(&batches).and_then(|all| all.map(|all| in_event_order(&all)).transpose()) {
            Ok(Some(batch)) => self.process(0, batch, out),
            Ok(None) => {}
            Err(error) => {
                self.fail(anyhow::Error::new(error).context(format!("sink `{}`: batches of one stream", self.name)));
            }
        }
    }

    fn close_epoch(&mut self, epoch: u64, _out: &mut Outputs) {
        self.epoch = epoch + 1;
        if self.failed {
            return;
        }
        self.queue.push_back(Queued::End(epoch));
        let flushed = self.flush();
        self.check(flushed);
    }

    fn poll(&mut self) -> bool {
        if self.failed {
            return false;
        }
        let flushed = self.flush();
        self.check(flushed);
        // A job that fails decides nothing any more: what waits for a decision would wait for ever.
        let failing = self.failed || self.gates.failed.load(Ordering::Acquire);
        !failing && (!self.queue.is_empty() || self.durable.of(self.slot) + 1 < self.epoch)
    }
}

/// The rows by their places; rejects of one record also by their stage, since several nodes may
/// reject what they all were given.
pub fn in_event_order(batch: &Batch) -> Result<Batch, arrow::error::ArrowError> {
    let stages = (batch.records.schema() == reject::schema()).then(|| batch.records.column_by_name("stage")).flatten();
    let stages = stages.and_then(|column| column.as_string_opt::<i32>());
    let place = |i: &u32| (batch.rows[*i as usize].place(), stages.map(|stages| stages.value(*i as usize)));
    let mut order: Vec<u32> = (0..batch.len() as u32).collect();
    order.sort_by(|a, b| place(a).cmp(&place(b)));
    batch.take(&order)
}

#[cfg(test)]
mod tests {
    use arrow::array::{Int64Array, RecordBatch};
    use millstream_operators::Row;
    use millstream_operators::expressions::Expression;

    use super::*;
    use crate::encode::{EncoderConfig, Headers, Value};
    use crate::provenance::Origins;
    use crate::sources::Partitions;

    /// A sink that fails with its second write.
    struct Failing(bool);

    impl SinkWriter for Failing {
        fn write(&mut self, _epoch: u64, records: &Records, _from: usize) -> Result<usize, SinkError> {
            match std::mem::replace(&mut self.0, true) {
                false => Ok(records.len()),
                true => Err(SinkError::TakenOver { name: "out".into() }),
            }
        }
        fn close_epoch(&mut self, _epoch: u64) -> Result<(), SinkError> {
            Ok(())
        }
        fn durable(&mut self) -> Result<Option<u64>, SinkError> {
            Ok(None)
        }
    }

    fn batch(n: i64) -> Batch {
        let records = RecordBatch::try_from_iter([("n", Arc::new(Int64Array::from(vec![n])) as _)]);
        let row = Row { source: 0, partition: 0, offset: n, event_time: 1, arrived_micros: 0 };
        Batch::new(records.expect("a column"), vec![row])
    }

    /// The epochs that the job closes before it has stopped may still be decided.
    #[test]
    fn what_a_failed_sink_does_not_take_is_in_the_checkpoint() {
        let schema = batch(0).records.schema();
        let encoder = Encoder::new(EncoderConfig {
            origins: Origins { partitions: Arc::new(Partitions::default()), model: None },
            provenance: Vec::new(),
            input: schema.clone(),
            columns: vec![Expression::compile("n", &schema).expect("a column")],
            schema,
            key: Vec::new(),
            value: Value::Json,
            headers: Headers::None,
            generation: 1,
        });
        let context = OutputContext {
            durable: Arc::new(Durable::new([])),
            slot: 0,
            commits_after_decision: true,
            first_epoch: 1,
            gates: Arc::new(Gates::new(50)),
            failures: Failures::default(),
            meters: Arc::default(),
        };
        let gates = context.gates.clone();
        let mut output = Output::new("out".into(), encoder, Box::new(Failing(false)), context);
        let mut out = Outputs::new(0);
        for n in 1..=3 {
            output.process(0, batch(n), &mut out);
            output.close_epoch(n as u64, &mut out);
            let records = output.take_outbox();
            let values: Vec<&[u8]> = records.iter().map(|records| records.value(0)).collect();
            assert_eq!(values, [format!("{{\"n\":{n}}}").as_bytes()]);
            assert_eq!(gates.failed.load(Ordering::Acquire), n > 1);
        }
    }
}
