//! Builds one worker's dataflow from a plan. Every worker builds the same graph; only what is inside the operators
//! differs.
//!
//! Streams are built on demand, each after its inputs; a feature group after the inputs of all of its readers. The hot
//! path comes first, so that one step of the worker carries a record from its source to its sinks.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use crossbeam_channel::Receiver;
use millstream_operators::Batch;
use millstream_operators::key::KeyColumns;
use millstream_operators::operator::{Operator, Outputs};
use millstream_operators::score::Score;
use timely::dataflow::Scope;
use timely::dataflow::operators::Concatenate;
use timely::scheduling::SyncActivator;

use super::clock::EpochClock;
use super::connect::{Context, Node, Order, Outgoing, connect};
use super::failure::Failures;
use super::input::{Input, connect_source};
use super::lanes::{Tap, Tapped};
use super::output::Output;
use super::route::{Edge, Routing};
use super::shared::Taken;
use crate::online::OnlineStore;
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
    /// The slow lane, if the topology has one.
    pub slow: Option<Rc<RefCell<Tapped>>>,
    /// The offline store, if the topology has one.
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
    /// What each source has taken.
    pub taken: Vec<Rc<RefCell<Taken>>>,
    /// The watermark state of each source.
    pub watermarks: Vec<Rc<RefCell<millstream_operators::watermark::Watermarks>>>,
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
        built: Built { wakes: Vec::new(), taken: Vec::new(), watermarks: Vec::new() },
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
        let taken = Rc::new(RefCell::new(Taken::new()));
        let watermarks = Rc::new(RefCell::new(self.parts.watermarks[index].clone()));
        let input = Input {
            name: name.into(),
            source: index,
            inbox: self.parts.inboxes[index].clone(),
            decoder: source.decoder.clone(),
            watermarks: watermarks.clone(),
            clock: self.parts.clock,
            taken: taken.clone(),
            activity: self.parts.activity.clone(),
        };
        let (outgoing, wake) = connect_source(self.scope, self.context, input);
        self.built.wakes.push(wake);
        self.built.taken.push(taken);
        self.built.watermarks.push(watermarks);
        self.keep(outgoing).remove(0)
    }

    /// An operator that looks at each row by itself.
    fn rowwise(&mut self, name: &str, input: usize, operator: Rc<RefCell<dyn Operator>>) -> Edge<'scope> {
        let edge = self.stream(input);
        let node = Node { name: name.into(), operator, outputs: 1, order: Order::Arrival, polled: false };
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
            operator: Rc::new(RefCell::new(group.operator())),
            outputs: group.readers.len() + 1,
            order: if self.bounded { Order::Ticks } else { Order::Arrival },
            polled: false,
        };
        let outgoing = connect(self.scope, self.context, node, inputs);
        let edges = self.keep(outgoing);
        self.groups[id] = Some(edges.clone());
        if let Some(published) = edges.last() {
            let publish =
                Publish { group: id, online: self.parts.online.clone(), failures: self.parts.failures.clone() };
            self.end(&format!("{}.online", group.name), publish, published.clone(), Routing::Stay, Order::Arrival);
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
            let Some(lane) = lane else { continue };
            for (input, stream) in streams.into_iter().enumerate() {
                let edge = self.stream(stream);
                let tap = Tap::new(&lane, input, self.context.first_epoch, self.context.watermarks.clone());
                let name = format!("{}.{what}", plan.streams[stream].name);
                self.end(&name, tap, edge, Routing::Stay, Order::Arrival);
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
            let routing = if sink.one_writer() { Routing::ToOne } else { Routing::Stay };
            let order = if self.bounded && sink.one_writer() { Order::Ticks } else { Order::Arrival };
            let output = self.parts.outputs[id].take();
            let operator: Rc<RefCell<dyn Operator>> = match output {
                Some(output) => {
                    let output = Rc::new(RefCell::new(output));
                    self.context.outputs.borrow_mut().push((sink.name.as_str().into(), output.clone()));
                    output
                }
                None => Rc::new(RefCell::new(Elsewhere)),
            };
            let node = Node { name: sink.name.as_str().into(), operator, outputs: 0, order, polled: true };
            connect(self.scope, self.context, node, vec![(edge, routing)]);
        }
    }

    /// An operator at the end of an edge.
    fn end<O: Operator + 'static>(
        &mut self,
        name: &str,
        operator: O,
        edge: Edge<'scope>,
        routing: Routing,
        order: Order,
    ) {
        let operator = Rc::new(RefCell::new(operator));
        let node = Node { name: name.into(), operator, outputs: 0, order, polled: false };
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
}

impl Operator for Publish {
    fn process(&mut self, _port: usize, batch: Batch, _out: &mut Outputs) {
        if let Err(error) = self.online.publish(self.group, &batch) {
            self.failures.report(anyhow::Error::new(error));
        }
    }
}

/// A sink that another worker writes: no row comes here.
struct Elsewhere;

impl Operator for Elsewhere {
    fn process(&mut self, _port: usize, batch: Batch, _out: &mut Outputs) {
        debug_assert!(batch.is_empty(), "rows of this sink go to another worker");
    }
}
