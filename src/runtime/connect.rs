//! Places an operator in the dataflow: the only way a record meets state.
//!
//! An operator sees rows of one epoch at a time. Rows of the open epoch are processed at once (on arrival) or, in bounded
//! runs, when their tick closes; rows of later epochs are held back until the open epoch is complete on all workers. So
//! the operator's state is exactly the end of the epoch when the epoch closes, without barriers and without stopping
//! anybody. What an epoch has changed is encoded in slices, with rows of the next one in between.
//!
//! ```text
//!           rows of the open epoch ──────────────▶ process ──▶ outputs
//! input ──┤
//!           rows of later epochs ──▶ held ──(frontier passes the open epoch: advance, close, open the next)──▶ process
//! ```
//!
//! `for_each` is used, never `for_each_time`: the latter sorts with an unstable sort and so breaks the order of records.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use millstream_operators::batch::Batch;
use millstream_operators::operator::{Operator, Outputs};
use millstream_operators::reject;
use timely::container::CapacityContainerBuilder;
use timely::dataflow::Scope;
use timely::dataflow::channels::pact::{Exchange, Pipeline};
use timely::dataflow::operators::Capability;
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::OutputBuilderSession;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use timely::progress::frontier::MutableAntichain;

use super::ledger::SharedLedger;
use super::meter::{Meters, NodeMeter};
use super::route::{Edge, Parcel, Routing, route};
use super::shared::{Ending, Gates, Watermarks};
use super::time::{LAST_TICK, epoch_of, time};
use crate::cluster::Shape;

/// Bytes of changed state that an operator encodes before rows have their turn again: some tenths of a millisecond. In debug
/// builds so few that all tests come by here.
const SLICE_BYTES: usize = if cfg!(debug_assertions) { 1 << 10 } else { 128 << 10 };

/// When the rows of the open epoch are processed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// As they come: live runs, and operators whose rows do not touch each other.
    Arrival,
    /// When their tick is complete on all workers, all ports together: bounded runs.
    Ticks,
}

/// A node's state in checkpoints.
#[derive(Debug, Clone)]
pub struct State {
    /// Its name there.
    pub name: Arc<str>,
    /// Whether the coordinator's workers have all of it, and not each worker its key groups.
    pub at_coordinator: bool,
}

/// Operators of a worker with their state.
pub type Kept<O> = Rc<RefCell<Vec<(State, Rc<RefCell<O>>)>>>;

/// What a worker's operators share.
#[derive(Clone)]
pub struct Context {
    /// Index of the worker.
    pub worker: usize,
    /// Number of workers in all processes.
    pub workers: usize,
    /// How they are spread over processes.
    pub shape: Shape,
    /// The first epoch of this run.
    pub first_epoch: u64,
    /// Watermarks by epoch.
    pub watermarks: Arc<Watermarks>,
    /// What holds the sources back.
    pub gates: Arc<Gates>,
    /// When the run ends.
    pub ending: Arc<Ending>,
    /// True while the job drains.
    pub draining: Arc<AtomicBool>,
    /// The newest epoch that a source has opened.
    pub open_epoch: Arc<AtomicU64>,
    /// What the job counts.
    pub meters: Arc<Meters>,
    /// The operators, kept until they have taken up their state.
    pub nodes: Kept<dyn Operator>,
    /// What the worker leaves for each epoch's checkpoint.
    pub ledger: SharedLedger,
    /// Activators of operators that must be looked at from time to time (writers that wait for the world).
    pub polled: Rc<RefCell<Vec<timely::scheduling::Activator>>>,
    /// Bumped for every batch that an operator takes: tells busy turns of the worker from idle ones.
    pub moved: Rc<Cell<u64>>,
}

/// An operator's name, behaviour and number of output ports.
pub struct Node {
    /// The node's name: its metrics' and its rejects' stage.
    pub name: Arc<str>,
    /// Its state, if it keeps some.
    pub state: Option<State>,
    /// What it does.
    pub operator: Rc<RefCell<dyn Operator>>,
    /// Number of output ports.
    pub outputs: usize,
    /// When rows are processed.
    pub order: Order,
    /// Whether the operator waits for the world, and so is looked at regularly and may outlive its input.
    pub polled: bool,
}

/// The edges that leave a node.
pub struct Outgoing<'scope> {
    /// One edge for each output port.
    pub ports: Vec<Edge<'scope>>,
    /// The node's rejects, as batches of [`reject::schema`].
    pub rejects: Edge<'scope>,
}

type Session<'a> = OutputBuilderSession<'a, u64, CapacityContainerBuilder<Vec<Parcel>>>;

/// Connects `node` to its inputs.
pub fn connect<'scope>(
    scope: Scope<'scope, u64>,
    context: &Context,
    node: Node,
    inputs: Vec<(Edge<'scope>, Routing)>,
) -> Outgoing<'scope> {
    let mut builder = OperatorBuilder::new(node.name.to_string(), scope);
    let activator = Rc::new(scope.activator_for(builder.operator_info().address));
    if node.polled {
        context.polled.borrow_mut().push(scope.activator_for(builder.operator_info().address));
    }
    if let Some(state) = &node.state {
        context.nodes.borrow_mut().push((state.clone(), node.operator.clone()));
    }
    let mut ports = Vec::new();
    let mut outputs: Vec<OutputBuilder<_, CapacityContainerBuilder<Vec<Parcel>>>> = Vec::new();
    for _ in 0..node.outputs + 1 {
        let (output, stream) = builder.new_output();
        outputs.push(OutputBuilder::from(output));
        ports.push(stream);
    }
    let workers = context.workers;
    let mut exchanged = Vec::new();
    let mut local = Vec::new();
    for (port, (edge, routing)) in inputs.into_iter().enumerate() {
        if workers > 1 && !matches!(routing, Routing::Stay) {
            let routed = route(edge, routing, workers, context.gates.clone());
            exchanged.push((port, builder.new_input(routed, Exchange::new(|parcel: &Parcel| parcel.worker))));
        } else {
            local.push((port, builder.new_input(edge, Pipeline)));
        }
    }
    let mut placed = Placed::new(context, node);
    let gates = context.gates.clone();
    builder.build_reschedule(move |capabilities| {
        placed.start(capabilities);
        move |frontiers: &[MutableAntichain<u64>]| {
            let mut sessions: Vec<Session<'_>> = outputs.iter_mut().map(|output| output.activate()).collect();
            for (port, input) in &mut local {
                input.for_each(|capability, parcels| placed.take(*port, &capability, parcels, &mut sessions));
            }
            for (port, input) in &mut exchanged {
                input.for_each(|capability, parcels| {
                    let rows: usize = parcels.iter().map(|parcel| parcel.batch.len()).sum();
                    gates.rows_in_flight.fetch_sub(rows as i64, Ordering::Relaxed);
                    placed.take(*port, &capability, parcels, &mut sessions)
                });
            }
            let frontier = frontiers.iter().filter_map(|f| f.frontier().first().copied()).min();
            placed.leave_changes(SLICE_BYTES);
            placed.close(frontier, &mut sessions);
            let unfinished = placed.operator.borrow_mut().poll();
            if (unfinished && !placed.polled) || placed.leaving.is_some() {
                activator.activate();
            }
            unfinished || placed.leaving.is_some()
        }
    });
    let rejects = ports.pop().expect("one more output than ports was made");
    Outgoing { ports, rejects }
}

/// Batches of one time that wait, with a capability for each output.
struct Held {
    capabilities: Vec<Capability<u64>>,
    batches: Vec<(usize, Batch)>,
}

/// An operator in its place: its open epoch, what it holds back, and the right to give at the end of the epoch.
struct Placed {
    operator: Rc<RefCell<dyn Operator>>,
    order: Order,
    polled: bool,
    open: u64,
    held: BTreeMap<u64, Held>,
    /// One for each output, at the last tick of the open epoch: what an operator gives when it closes.
    closing: Vec<Capability<u64>>,
    given: Outputs,
    watermarks: Arc<Watermarks>,
    ending: Arc<Ending>,
    meter: NodeMeter,
    state: Option<Arc<str>>,
    /// The epoch whose changes are being left for its checkpoint.
    leaving: Option<u64>,
    ledger: SharedLedger,
    /// The node's number in the ledger.
    entry: usize,
    moved: Rc<Cell<u64>>,
}

impl Placed {
    fn new(context: &Context, node: Node) -> Self {
        Placed {
            order: node.order,
            polled: node.polled,
            open: context.first_epoch,
            held: BTreeMap::new(),
            closing: Vec::new(),
            given: Outputs::new(node.outputs),
            watermarks: context.watermarks.clone(),
            ending: context.ending.clone(),
            meter: NodeMeter::new(&node.name, &context.meters, context.worker),
            entry: context.ledger.borrow_mut().register(),
            ledger: context.ledger.clone(),
            leaving: None,
            state: node.state.map(|state| state.name),
            operator: node.operator,
            moved: context.moved.clone(),
        }
    }

    fn start(&mut self, mut capabilities: Vec<Capability<u64>>) {
        for capability in &mut capabilities {
            capability.downgrade(&time(self.open, LAST_TICK));
        }
        self.closing = capabilities;
    }

    /// Takes what arrived on a port: processes it or holds it.
    fn take(
        &mut self,
        port: usize,
        capability: &timely::dataflow::operators::InputCapability<u64>,
        parcels: &mut Vec<Parcel>,
        sessions: &mut [Session<'_>],
    ) {
        self.moved.set(self.moved.get() + 1);
        let at = *capability.time();
        if self.order == Order::Arrival && epoch_of(at) <= self.open {
            let mut operator = self.operator.borrow_mut();
            for parcel in parcels.drain(..) {
                self.meter.records_in(parcel.batch.len());
                operator.process(port, parcel.batch, &mut self.given);
            }
            drop(operator);
            give(&mut self.given, &self.meter, sessions, |_| capability);
            return;
        }
        let outputs = self.closing.len();
        let held = self.held.entry(at).or_insert_with(|| Held {
            capabilities: (0..outputs).map(|output| capability.retain(output)).collect(),
            batches: Vec::new(),
        });
        held.batches.extend(parcels.drain(..).map(|parcel| (port, parcel.batch)));
    }

    /// Processes what the frontier has completed, and closes the epochs it has passed. `None` is the end of all input.
    fn close(&mut self, frontier: Option<u64>, sessions: &mut [Session<'_>]) {
        while !self.closing.is_empty() {
            self.process_held(frontier, sessions);
            if frontier.is_some_and(|frontier| epoch_of(frontier) <= self.open) {
                return;
            }
            let watermark = self.watermarks.at(self.open);
            self.leave_changes(usize::MAX);
            {
                let mut operator = self.operator.borrow_mut();
                operator.advance(watermark, &mut self.given);
                operator.close_epoch(self.open, &mut self.given);
                self.meter.state(operator.state_size());
            }
            give(&mut self.given, &self.meter, sessions, |output| &self.closing[output]);
            self.leaving = Some(self.open);
            self.leave_changes(SLICE_BYTES);
            if frontier.is_none() && self.ending.last_epoch().is_some_and(|last| self.open >= last) {
                return self.closing.clear();
            }
            self.open += 1;
            for capability in &mut self.closing {
                capability.downgrade(&time(self.open, LAST_TICK));
            }
        }
    }

    /// Leaves what the epoch that was closed last has changed for its checkpoint, some `bytes` of it if there is much.
    fn leave_changes(&mut self, bytes: usize) {
        let Some(epoch) = self.leaving else { return };
        let mut ledger = self.ledger.borrow_mut();
        if let Some(name) = &self.state {
            let mut operator = self.operator.borrow_mut();
            if operator.save_changes(bytes, &mut |key_group, bytes| ledger.state(epoch, name, key_group, bytes)) {
                return;
            }
        }
        self.leaving = None;
        ledger.closed(self.entry, epoch);
    }

    /// Processes what was held and belongs to the open epoch: all of it on arrival, closed ticks otherwise.
    fn process_held(&mut self, frontier: Option<u64>, sessions: &mut [Session<'_>]) {
        while let Some(entry) = self.held.first_entry() {
            let at = *entry.key();
            let complete = self.order == Order::Arrival || frontier.is_none_or(|frontier| at < frontier);
            if epoch_of(at) > self.open || !complete {
                return;
            }
            let Held { capabilities, batches } = entry.remove();
            for (_, batch) in &batches {
                self.meter.records_in(batch.len());
            }
            let mut operator = self.operator.borrow_mut();
            match self.order {
                Order::Ticks => operator.process_tick(batches, &mut self.given),
                Order::Arrival => {
                    for (port, batch) in batches {
                        operator.process(port, batch, &mut self.given);
                    }
                }
            }
            drop(operator);
            give(&mut self.given, &self.meter, sessions, |output| &capabilities[output]);
        }
    }
}

/// Sends what the operator gave, at the time of a capability of each output.
fn give<'a, C>(
    given: &mut Outputs,
    meter: &NodeMeter,
    sessions: &mut [Session<'_>],
    capability: impl Fn(usize) -> &'a C,
) where
    C: timely::dataflow::operators::CapabilityTrait<u64> + 'a,
{
    for (port, batches) in given.ports.iter_mut().enumerate() {
        if batches.is_empty() {
            continue;
        }
        let mut parcels: Vec<Parcel> = Vec::with_capacity(batches.len());
        for batch in batches.drain(..) {
            meter.records_out(batch.len());
            parcels.push(Parcel { worker: 0, batch });
        }
        sessions[port].session(capability(port)).give_container(&mut parcels);
    }
    meter.dropped(given);
    if !given.rejects.is_empty() {
        let last = sessions.len() - 1;
        let batch = reject::to_batch(&given.rejects);
        given.rejects.clear();
        sessions[last].session(capability(last)).give_container(&mut vec![Parcel { worker: 0, batch }]);
    }
    (given.filtered, given.late, given.duplicates) = (0, 0, 0);
}
