//! A source's end in the dataflow: takes arrivals from the worker's inbox, decodes them, and decides about time.
//!
//! In live runs the clock cuts epochs and rows go on at once. In bounded runs the reader has decided about time and says
//! so with [`Arrival::Advance`]. Nothing is taken while a gate is shut; the inbox fills, and the connector waits.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crossbeam_channel::{Receiver, TryRecvError};
use millstream_operators::decode::Decoder;
use millstream_operators::operator::Outputs;
use millstream_operators::reject::Reject;
use millstream_operators::watermark::Watermarks;
use millstream_operators::{Batch, Messages, reject};
use timely::container::CapacityContainerBuilder;
use timely::dataflow::Scope;
use timely::dataflow::operators::Capability;
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use timely::scheduling::SyncActivator;

use super::clock::{EpochClock, now_micros};
use super::connect::{Context, Outgoing};
use super::ledger::SourcePart;
use super::meter::{NodeMeter, SourceCounters};
use super::route::Parcel;
use super::shared::{NO_SAY, Taken};
use super::time::{epoch_of, time};
use crate::sources::Arrival;

/// One source on one worker.
pub struct Input {
    /// The source's name.
    pub name: Arc<str>,
    /// The source's index in the plan.
    pub source: usize,
    /// What the connector hands over.
    pub inbox: Receiver<Arrival>,
    /// Messages to rows.
    pub decoder: Decoder,
    /// Event time per partition, and what happens to late rows.
    pub watermarks: Watermarks,
    /// Cuts epochs in live runs; `None` in bounded runs.
    pub clock: Option<EpochClock>,
    /// Bumped for every batch: tells the worker's loop to keep spinning.
    pub activity: Rc<Cell<u64>>,
}

/// Arrivals that one activation takes before it lets the others run.
const ARRIVALS_MAX: usize = 1;

/// Connects a source. Also gives the activator that wakes the worker when something arrives.
pub fn connect_source<'scope>(
    scope: Scope<'scope, u64>,
    context: &Context,
    input: Input,
) -> (Outgoing<'scope>, SyncActivator) {
    let mut builder = OperatorBuilder::new(input.name.to_string(), scope);
    let address = builder.operator_info().address;
    let wake = scope.worker().sync_activator_for(address.to_vec());
    let activator = scope.activator_for(address.clone());
    context.polled.borrow_mut().push(scope.activator_for(address));
    let (rows, row_stream) = builder.new_output();
    let (rejects, reject_stream) = builder.new_output();
    let mut rows: OutputBuilder<_, CapacityContainerBuilder<Vec<Parcel>>> = OutputBuilder::from(rows);
    let mut rejects: OutputBuilder<_, CapacityContainerBuilder<Vec<Parcel>>> = OutputBuilder::from(rejects);
    let mut taking = Taking::new(context, input);
    builder.build(move |mut capabilities| {
        let mut open = capabilities.pop().zip(capabilities.pop());
        if let Some((reject_capability, row_capability)) = &mut open {
            let first = time(taking.context.first_epoch, 0);
            row_capability.downgrade(&first);
            reject_capability.downgrade(&first);
        }
        move |_frontiers| {
            let Some((reject_capability, row_capability)) = &mut open else { return };
            let step = taking.step(&mut Capabilities { rows: row_capability, rejects: reject_capability });
            let mut outputs = (rows.activate(), rejects.activate());
            if !taking.given.ports[0].is_empty() {
                let mut parcels: Vec<Parcel> = Vec::with_capacity(1);
                parcels.extend(taking.given.ports[0].drain(..).map(|batch| Parcel { worker: 0, batch }));
                outputs.0.session(&*row_capability).give_container(&mut parcels);
            }
            if !taking.given.rejects.is_empty() {
                let batch = reject::to_batch(&taking.given.rejects);
                taking.given.rejects.clear();
                outputs.1.session(&*reject_capability).give_container(&mut vec![Parcel { worker: 0, batch }]);
            }
            match step {
                Step::More => activator.activate(),
                Step::Wait => {}
                Step::End => open = None,
            }
        }
    });
    (Outgoing { ports: vec![row_stream], rejects: reject_stream }, wake)
}

struct Capabilities<'a> {
    rows: &'a mut Capability<u64>,
    rejects: &'a mut Capability<u64>,
}

impl Capabilities<'_> {
    fn now(&self) -> u64 {
        *self.rows.time()
    }
    fn downgrade(&mut self, to: u64) {
        self.rows.downgrade(&to);
        self.rejects.downgrade(&to);
    }
}

enum Step {
    /// There may be more in the inbox.
    More,
    /// Nothing to do until something arrives or the clock moves on.
    Wait,
    /// All sources have ended.
    End,
}

struct Taking {
    context: Context,
    input: Input,
    given: Outputs,
    meter: NodeMeter,
    counters: Arc<SourceCounters>,
    /// What waits in the inbox.
    queued: Arc<AtomicU64>,
    /// What has been taken.
    taken: Taken,
    /// Late rows that were kept and have been counted.
    late_kept: u64,
    /// Whether the connector has said which partitions are this worker's. Before that they hold the watermark, or the backlog of a
    /// worker that was faster would pass for the present, and theirs for late.
    assigned: bool,
    /// The source's number in the ledger.
    entry: usize,
    /// How the source ended, if it has.
    ended: Option<Ended>,
    /// Whether it cuts no more, since all have ended.
    rests: bool,
}

/// How a source ended.
#[derive(Clone, Copy)]
enum Ended {
    /// There is no more: after this epoch it holds no watermark back.
    Exhausted(u64),
    /// It was told to stop, and has more for the next run.
    Stopped,
}

impl Taking {
    fn new(context: &Context, input: Input) -> Self {
        let meter = NodeMeter::new(&input.name, &context.meters, context.worker);
        let counters = context.meters.source(&input.name);
        let queued = counters.queue(context.worker);
        let entry = context.ledger.borrow_mut().register();
        Taking {
            context: context.clone(),
            input,
            given: Outputs::new(1),
            meter,
            counters,
            queued,
            taken: Taken::new(),
            late_kept: 0,
            assigned: false,
            entry,
            ended: None,
            rests: false,
        }
    }

    /// Takes at most one batch, so that its rows leave with the capability's present time.
    fn step(&mut self, capabilities: &mut Capabilities<'_>) -> Step {
        let open = epoch_of(capabilities.now());
        if let Some(last) = self.ended.and_then(|_| self.context.ending.last_epoch()) {
            self.cut(open, last + 1);
            return Step::End;
        }
        if self.ended.is_some() && self.context.ending.exhausted() {
            if !std::mem::replace(&mut self.rests, true) {
                self.context.ending.rest(open);
            }
            return Step::Wait;
        }
        if let Some(clock) = self.input.clock {
            let epoch = clock.epoch(Instant::now());
            if epoch > open {
                self.cut(open, epoch);
                capabilities.downgrade(time(epoch, 0));
            }
        }
        // A job that fails drains nothing: what holds sources back may never let go of them.
        if self.ended.is_none() && self.context.gates.failed.load(Ordering::Acquire) {
            self.end(epoch_of(capabilities.now()));
        }
        if self.ended.is_some() {
            return Step::Wait;
        }
        self.queued.store(self.input.inbox.len() as u64, Ordering::Relaxed);
        for _ in 0..ARRIVALS_MAX {
            if self.context.gates.held(epoch_of(capabilities.now())) {
                return Step::Wait;
            }
            match self.input.inbox.try_recv() {
                Ok(Arrival::Assigned) => {
                    self.assigned = true;
                    self.input.watermarks.resume();
                }
                Ok(Arrival::Messages(messages)) => self.messages(messages),
                Ok(Arrival::Records(batch, rejects)) => {
                    self.assigned = true;
                    self.rejects(rejects);
                    self.rows(batch);
                }
                Ok(Arrival::Advance(to)) => {
                    let (now, next) = (epoch_of(capabilities.now()), epoch_of(to));
                    if next > now {
                        self.cut(now, next);
                    }
                    capabilities.downgrade(to);
                }
                Ok(Arrival::Idle(partition)) => self.input.watermarks.idle(partition),
                Ok(Arrival::Position { partition, offset }) => {
                    self.take(partition, offset - 1);
                    self.input.watermarks.expect(partition);
                }
                Ok(Arrival::End) | Err(TryRecvError::Disconnected) => {
                    self.end(epoch_of(capabilities.now()));
                    return Step::More;
                }
                Err(TryRecvError::Empty) => return Step::Wait,
            }
            self.input.activity.set(self.input.activity.get() + 1);
        }
        Step::More
    }

    /// Nothing comes after `epoch`.
    fn end(&mut self, epoch: u64) {
        let stopped =
            self.context.draining.load(Ordering::Acquire) || self.context.gates.failed.load(Ordering::Acquire);
        self.ended = Some(if stopped { Ended::Stopped } else { Ended::Exhausted(epoch) });
        self.context.ending.end();
    }

    /// Epochs `from..to` have ended for this source.
    fn cut(&mut self, from: u64, to: u64) {
        if from >= to {
            return;
        }
        // One that was stopped before it was told has something to say at the next start.
        let knows = self.assigned || matches!(self.ended, Some(Ended::Exhausted(_)));
        let silent = knows && self.input.watermarks.has_no_say();
        if silent {
            self.input.watermarks.follow(self.context.watermarks.of(self.input.source, from));
        }
        let watermark = self.input.watermarks.watermark();
        for epoch in from..to {
            let exhausted = matches!(self.ended, Some(Ended::Exhausted(last)) if epoch > last);
            let said = if silent || exhausted { NO_SAY } else { watermark };
            self.context.watermarks.publish(epoch, self.input.source, said);
        }
        self.counters.watermark.store(watermark, Ordering::Relaxed);
        self.context.open_epoch.fetch_max(to, Ordering::Relaxed);
        let late_kept = self.input.watermarks.late_kept();
        self.counters.late_kept.fetch_add(late_kept - self.late_kept, Ordering::Relaxed);
        self.late_kept = late_kept;
        let taken = self.taken.clone();
        let event_times = self.input.watermarks.newest().collect();
        let mut ledger = self.context.ledger.borrow_mut();
        // Nothing was taken after `from`: what holds at its end holds at the ends of the others.
        ledger.part(from).sources.push(SourcePart { source: self.input.source, taken, event_times });
        ledger.closed(self.entry, to - 1);
    }

    fn messages(&mut self, messages: Messages) {
        for row in &messages.rows {
            self.take(row.partition, row.offset);
        }
        self.counters.taken(messages.len(), messages.payloads.value_data().len());
        self.meter.records_in(messages.len());
        let now = self.input.clock.map(|_| now_micros() / 1_000);
        let decoded = self.input.decoder.decode(messages, now, &mut self.given.rejects);
        self.finish(decoded);
    }

    fn rows(&mut self, batch: Batch) {
        for row in batch.rows.iter() {
            self.take(row.partition, row.offset);
        }
        self.meter.records_in(batch.len());
        self.counters.taken(batch.len(), 0);
        self.finish(Some(batch));
    }

    /// Records that failed on the way have come in like the others.
    fn rejects(&mut self, rejects: Vec<Reject>) {
        for reject in &rejects {
            self.take(reject.row.partition, reject.row.offset);
        }
        self.meter.records_in(rejects.len());
        self.counters.taken(rejects.len(), 0);
        self.given.rejects.extend(rejects);
    }

    fn take(&mut self, partition: u32, offset: i64) {
        let next = self.taken.entry(partition).or_insert(0);
        *next = (*next).max(offset + 1);
    }

    /// Late rows go where the topology says; the others go on.
    fn finish(&mut self, decoded: Option<Batch>) {
        if let Some(batch) = decoded {
            let on_time = self.input.watermarks.observe(batch, &mut self.given);
            if let Some(batch) = on_time {
                self.meter.records_out(batch.len());
                self.given.give(0, batch);
            }
        }
        self.meter.dropped(&self.given);
        (self.given.filtered, self.given.late) = (0, 0);
    }
}
