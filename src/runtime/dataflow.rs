//! Builds one worker's dataflow from a plan. Every worker builds the same graph; only what is inside the operators
//! differs.
//!
//! Streams are built on demand, each after its inputs; a feature group after the inputs of all of its readers. The hot
//! path comes first, so that one step of the worker carries a record from its source to its sinks.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use arrow::array::AsArray;
use crossbeam_channel::Receiver;
use millstream_operators::Batch;
use millstream_operators::deduplicate::Deduplicate;
use millstream_operators::key::{KeyColumns, groups_of};
use millstream_operators::operator::{Operator, Outputs};
use millstream_operators::score::Score;
use millstream_operators::state::StateError;
use timely::dataflow::Scope;
use timely::dataflow::operators::Concatenate;
use timely::scheduling::SyncActivator;

use super::clock::EpochClock;
use super::connect::{Context, Node, Order, Outgoing, State, connect};
use super::failure::Failures;
use super::input::{Input, connect_source};
use super::lanes::{Tap, Tapped};
use super::ledger::SharedLedger;
use super::output::Output;
use super::route::{Edge, Routing};
use crate::online::OnlineStore;
use crate::plan::definitions::prepare_path;
use crate::plan::{Node as PlanNode, Plan};
use crate::sources::Arrival;

/// What a worker brings along to build its dataflow.
pub struct Parts {
    /// The inbox of each source.
    pub inboxes: Vec<Receiver<Arrival>>,
    /// The writer's end of each sink that takes a stream or the rejects; `None` where another worker writes.
    pub outputs: Vec<Option<Output>>,
    /// Event times seen so far, for each source.
    pub watermarks: Vec<millstream_operators::watermark::Watermarks>,
    /// The scorer of each model.
    pub scores: Vec<Option<Score>>,
    /// Takes features at the end of each epoch.
    pub online: Arc<OnlineStore>,
    /// Where a failure is reported.
    pub failures: Failures,
    /// The slow lane, if the topology has one and this process has it.
    pub slow: Option<Rc<RefCell<Tapped>>>,
    /// The offline store, likewise.
    pub offline: Option<Rc<RefCell<Tapped>>>,
    /// Cuts epochs in live runs; `None` in bounded runs.
    pub clock: Option<EpochClock>,
    /// Bumped by sources for every batch.
    pub activity: Rc<Cell<u64>>,
}

/// What is left in the worker's hands.
pub struct Built {
    /// Wakes the worker when something arrives, for each source.
    pub wakes: Vec<SyncActivator>,
}

/// Builds the dataflow.
pub fn build<'scope>(scope: Scope<'scope, u64>, plan: &Plan, context: &Context, parts: Parts) -> Built {
    let mut building = Building {
        scope,
        plan,
        context,
        bounded: parts.clock.is_none(),
        streams: plan.streams.iter().map(|_| None).collect(),
        groups: plan.groups.iter().map(|_| None).collect(),
        rejects: Vec::new(),
        built: Built { wakes: Vec::new() },
        parts,
    };
    for stream in 0..plan.streams.len() {
        building.stream(stream);
    }
    for group in 0..plan.groups.len() {
        building.group(group);
    }
    building.taps();
    building.sinks();
    building.built
}

struct Building<'a, 'scope> {
    scope: Scope<'scope, u64>,
    plan: &'a Plan,
    context: &'a Context,
    bounded: bool,
    streams: Vec<Option<Edge<'scope>>>,
    groups: Vec<Option<Vec<Edge<'scope>>>>,
    rejects: Vec<Edge<'scope>>,
    built: Built,
    parts: Parts,
}

impl<'scope> Building<'_, 'scope> {
    /// The edge of a stream, built if it was not yet.
    fn stream(&mut self, id: usize) -> Edge<'scope> {
        if let Some(edge) = &self.streams[id] {
            return edge.clone();
        }
        let plan = self.plan;
        let stream = &plan.streams[id];
        let edge = match &stream.node {
            PlanNode::Source(source) => self.source(&stream.name, source),
            PlanNode::Prepare { input, operator } => {
                self.rowwise(&stream.name, *input, Rc::new(RefCell::new(operator.clone())))
            }
            PlanNode::Deduplicate { input, key, by, within, .. } => {
                let edge = self.stream(*input);
                let operator = Deduplicate::new(&stream.name, key.clone(), by.clone(), within.0);
                let node = Node {
                    name: stream.name.as_str().into(),
                    state: Some(State { name: prepare_path(&stream.name).into(), at_coordinator: false }),
                    operator: Rc::new(RefCell::new(operator)),
                    outputs: 1,
                    order: self.order(),
                    polled: false,
                };
                let routing = Routing::ByKey(KeyColumns::new(key.clone()));
                let outgoing = connect(self.scope, self.context, node, vec![(edge, routing)]);
                self.keep(outgoing).remove(0)
            }
            PlanNode::Score { input, model } => {
                let score = self.parts.scores[*model].take().expect("a model makes one stream");
                self.rowwise(&stream.name, *input, Rc::new(RefCell::new(score)))
            }
            PlanNode::Read { group, reader, .. } => self.group(*group)[*reader].clone(),
        };
        self.streams[id] = Some(edge.clone());
        edge
    }

    fn source(&mut self, name: &str, source: &crate::plan::SourcePlan) -> Edge<'scope> {
        let index = source.index as usize;
        let input = Input {
            name: name.into(),
            source: index,
            inbox: self.parts.inboxes[index].clone(),
            decoder: source.decoder.clone(),
            watermarks: self.parts.watermarks[index].clone(),
            clock: self.parts.clock,
            activity: self.parts.activity.clone(),
        };
        let (outgoing, wake) = connect_source(self.scope, self.context, input);
        self.built.wakes.push(wake);
        self.keep(outgoing).remove(0)
    }

    /// The order in which operators see rows that touch each other.
    fn order(&self) -> Order {
        if self.bounded { Order::Ticks } else { Order::Arrival }
    }

    /// An operator that looks at each row by itself.
    fn rowwise(&mut self, name: &str, input: usize, operator: Rc<RefCell<dyn Operator>>) -> Edge<'scope> {
        let edge = self.stream(input);
        let node = Node { name: name.into(), state: None, operator, outputs: 1, order: Order::Arrival, polled: false };
        let outgoing = connect(self.scope, self.context, node, vec![(edge, Routing::Stay)]);
        self.keep(outgoing).remove(0)
    }

    /// A feature group's output edges: one for each reader, then the published features.
    fn group(&mut self, id: usize) -> Vec<Edge<'scope>> {
        if let Some(edges) = &self.groups[id] {
            return edges.clone();
        }
        let plan = self.plan;
        let group = &plan.groups[id];
        let feeds = group.readers.iter().any(|reader| reader.feeds);
        let mut inputs = Vec::new();
        let updates = match feeds {
            // The reader that feeds the group brings the rows on its own port.
            true => timely::dataflow::operators::generic::operator::empty(self.scope),
            false => self.stream(group.input),
        };
        inputs.push((updates, Routing::ByKey(KeyColumns::new(group.key.clone()))));
        for reader in &group.readers {
            inputs.push((self.stream(reader.input), Routing::ByKey(KeyColumns::new(reader.on.clone()))));
        }
        let node = Node {
            name: group.name.as_str().into(),
            state: Some(State { name: group.path().into(), at_coordinator: false }),
            operator: Rc::new(RefCell::new(group.operator())),
            outputs: group.readers.len() + 1,
            order: self.order(),
            polled: false,
        };
        let outgoing = connect(self.scope, self.context, node, inputs);
        let edges = self.keep(outgoing);
        self.groups[id] = Some(edges.clone());
        if let Some(published) = edges.last() {
            let shape = self.context.shape;
            let operator: Rc<RefCell<dyn Operator>> = match shape.is_coordinator() {
                true => Rc::new(RefCell::new(Publish {
                    group: id,
                    online: self.parts.online.clone(),
                    failures: self.parts.failures.clone(),
                    touched: Vec::new(),
                    owned: (0..shape.total())
                        .filter(|worker| shape.at_coordinator(*worker) == self.context.worker)
                        .flat_map(|worker| groups_of(worker, shape.total()))
                        .collect(),
                })),
                false => Rc::new(RefCell::new(Elsewhere)),
            };
            let state = State { name: group.online_path().into(), at_coordinator: true };
            let node = Node {
                name: format!("{}.online", group.name).into(),
                state: (group.online && shape.is_coordinator()).then_some(state),
                operator,
                outputs: 0,
                order: Order::Arrival,
                polled: false,
            };
            let routing = self.to_coordinator();
            connect(self.scope, self.context, node, vec![(published.clone(), routing)]);
        }
        edges
    }

    /// Taps for the lanes beside the dataflow.
    fn taps(&mut self) {
        let plan = self.plan;
        let slow: Vec<usize> = plan.slow_streams();
        let offline: Vec<usize> = plan.offline.iter().map(|table| table.stream).collect();
        for (lane, what, streams) in
            [(self.parts.slow.clone(), "slow", slow), (self.parts.offline.clone(), "offline", offline)]
        {
            for (input, stream) in streams.into_iter().enumerate() {
                let edge = self.stream(stream);
                let operator: Rc<RefCell<dyn Operator>> = match &lane {
                    Some(lane) => {
                        let watermarks = self.context.watermarks.clone();
                        let mut tap = Tap::new(lane, input, self.context.first_epoch, watermarks);
                        if what == "offline" {
                            tap.keep_in(self.context.ledger.clone());
                        }
                        Rc::new(RefCell::new(tap))
                    }
                    None => Rc::new(RefCell::new(Elsewhere)),
                };
                let name = format!("{}.{what}", plan.streams[stream].name);
                self.tap(&name, operator, edge);
            }
        }
    }

    fn sinks(&mut self) {
        let plan = self.plan;
        for (id, sink) in plan.sinks.iter().enumerate() {
            let edge = match sink.from {
                crate::plan::From::Stream(stream) => self.stream(stream),
                crate::plan::From::Rejects => self.scope.concatenate(self.rejects.clone()),
                crate::plan::From::Drift => continue,
            };
            let routing = if sink.one_writer() { Routing::To(0) } else { Routing::Stay };
            let order = if self.bounded && sink.one_writer() { Order::Ticks } else { Order::Arrival };
            let output = self.parts.outputs[id].take();
            let operator: Rc<RefCell<dyn Operator>> = match output {
                Some(output) => Rc::new(RefCell::new(Writing { output, ledger: self.context.ledger.clone() })),
                None => Rc::new(RefCell::new(Elsewhere)),
            };
            let node = Node { name: sink.name.as_str().into(), state: None, operator, outputs: 0, order, polled: true };
            connect(self.scope, self.context, node, vec![(edge, routing)]);
        }
    }

    /// How rows find what there is once.
    fn to_coordinator(&self) -> Routing {
        let shape = self.context.shape;
        match shape.processes {
            1 => Routing::Stay,
            _ => Routing::To(shape.at_coordinator(self.context.worker)),
        }
    }

    /// A tap at the end of an edge.
    fn tap(&mut self, name: &str, operator: Rc<RefCell<dyn Operator>>, edge: Edge<'scope>) {
        let routing = self.to_coordinator();
        let node = Node { name: name.into(), state: None, operator, outputs: 0, order: Order::Arrival, polled: false };
        connect(self.scope, self.context, node, vec![(edge, routing)]);
    }

    /// Keeps a node's rejects for the dead-letter sinks; gives its output edges.
    fn keep(&mut self, outgoing: Outgoing<'scope>) -> Vec<Edge<'scope>> {
        self.rejects.push(outgoing.rejects);
        outgoing.ports
    }
}

/// Features to the online store, at the end of each epoch.
struct Publish {
    group: usize,
    online: Arc<OnlineStore>,
    failures: Failures,
    /// Keys published since the last changes were given.
    touched: Vec<Box<[u8]>>,
    /// The key groups whose rows come here.
    owned: Vec<usize>,
}

impl Operator for Publish {
    fn process(&mut self, _port: usize, batch: Batch, _out: &mut Outputs) {
        if let Err(error) = self.online.publish(self.group, &batch) {
            self.failures.report(anyhow::Error::new(error));
        }
        let keys = batch.records.column_by_name(crate::online::KEY).and_then(|keys| keys.as_string_opt::<i32>());
        self.touched.extend(keys.into_iter().flatten().flatten().map(|key| key.as_bytes().into()));
    }

    // In one piece: what is published later must not get into it.
    fn save_changes(&mut self, _bytes: usize, give: &mut dyn FnMut(u16, Vec<u8>)) -> bool {
        self.online.save_changes(self.group, self.touched.drain(..), &self.owned, give);
        false
    }

    fn load(&mut self, key_group: u16, bytes: &[u8]) -> Result<(), StateError> {
        self.online.load(self.group, key_group, bytes)
    }
}

/// A sink's end, which leaves in the ledger what it has written and must be committed later.
struct Writing {
    output: Output,
    ledger: SharedLedger,
}

impl Operator for Writing {
    fn process(&mut self, port: usize, batch: Batch, out: &mut Outputs) {
        self.output.process(port, batch, out);
    }

    fn process_tick(&mut self, batches: Vec<(usize, Batch)>, out: &mut Outputs) {
        self.output.process_tick(batches, out);
    }

    fn close_epoch(&mut self, epoch: u64, out: &mut Outputs) {
        self.output.close_epoch(epoch, out);
        let records = self.output.take_outbox();
        if !records.is_empty() {
            let mut ledger = self.ledger.borrow_mut();
            let worker = ledger.worker();
            ledger.part(epoch).outbox.push((self.output.name().clone(), worker, records));
        }
    }

    fn poll(&mut self) -> bool {
        self.output.poll()
    }
}

/// A sink that another worker writes, or a lane that another process has: no row comes here.
struct Elsewhere;

impl Operator for Elsewhere {
    fn process(&mut self, _port: usize, batch: Batch, _out: &mut Outputs) {
        debug_assert!(batch.is_empty(), "rows of this stream go to another worker");
    }
}
