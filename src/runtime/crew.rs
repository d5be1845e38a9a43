//! The workers of a process: one timely runtime, one thread each, built from the seeds that the job gives them. In a job of
//! several processes the runtimes are connected by sockets.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use crossbeam_channel::{Receiver, Sender, bounded};
use millstream_operators::score::Score;
use millstream_operators::state::Groups;
use millstream_operators::watermark::Watermarks as SourceWatermarks;
use timely::communication::allocator::ProcessBuilder;
use timely::communication::allocator::zero_copy::initialize::initialize_networking_from_sockets;
use timely::communication::{AllocatorBuilder, Hooks};
use timely::execute::execute_from;
use timely::scheduling::SyncActivator;
use timely::worker::Worker;

use super::clock::EpochClock;
use super::connect::{Context, State};
use super::dataflow::{Built, Parts, build};
use super::failure::Failures;
use super::lanes::{Lane, Tapped};
use super::output::Output;
use super::worker::Loop;
use crate::checkpoint::NodeState;
use crate::cluster::Shape;
use crate::cluster::socket::Socket;
use crate::online::OnlineStore;
use crate::plan::Plan;
use crate::sources::Arrival;

/// What one worker is made of. Everything that can fail has been opened before.
pub struct Seed {
    /// The inbox of each source.
    pub inboxes: Vec<Receiver<Arrival>>,
    /// The writer's end of each sink; `None` where another worker writes.
    pub outputs: Vec<Option<Output>>,
    /// The scorer of each model.
    pub scores: Vec<Option<Score>>,
    /// A feed into the slow lane.
    pub slow: Option<Box<dyn Lane + Send>>,
    /// A feed into the offline store.
    pub offline: Option<Box<dyn Lane + Send>>,
    /// Event times seen so far, for each source.
    pub watermarks: Vec<SourceWatermarks>,
    /// The worker's heartbeat.
    pub heartbeat: Arc<AtomicI64>,
}

/// What all workers share, beside [`Context`].
#[derive(Clone)]
pub struct Common {
    /// What runs.
    pub plan: Arc<Plan>,
    /// Takes features at the end of each epoch.
    pub online: Arc<OnlineStore>,
    /// Where a failure is reported.
    pub failures: Failures,
    /// Cuts epochs in live runs.
    pub clock: Option<EpochClock>,
    /// How long a worker spins after its last record.
    pub spin: Duration,
    /// State to take up, by node: each worker takes the key groups it owns out of it.
    pub restore: Arc<Mutex<BTreeMap<String, NodeState>>>,
    /// How the workers are spread over processes.
    pub shape: Shape,
}

/// Workers at work.
pub struct Crew {
    thread: JoinHandle<anyhow::Result<()>>,
}

impl Crew {
    /// Starts one worker a seed, connected with those of other processes by `sockets`. Returns when all dataflows are built, with the activators that wake each worker's
    /// sources: `wakes[worker][source]`.
    ///
    /// # Errors
    /// If state can't be taken up, or the runtime does not start.
    pub fn start(
        seeds: Vec<Seed>,
        contexts: impl Fn(usize) -> Context + Send + Sync + 'static,
        common: Common,
        sockets: Sockets,
    ) -> anyhow::Result<(Crew, Vec<Vec<SyncActivator>>)> {
        let workers = seeds.len();
        let (ready, readies) = bounded(workers);
        let thread = std::thread::Builder::new()
            .name("workers".into())
            .spawn(move || run(seeds, contexts, common, sockets, ready))
            .context("start the workers' thread")?;
        let mut wakes: Vec<Vec<SyncActivator>> = (0..workers).map(|_| Vec::new()).collect();
        for _ in 0..workers {
            match readies.recv() {
                Ok(Ok((worker, activators))) => wakes[worker] = activators,
                Ok(Err(error)) => return Err(error),
                Err(_) => return Err(anyhow!("a worker ended before it was built")),
            }
        }
        Ok((Crew { thread }, wakes))
    }

    /// Whether all workers have ended.
    pub fn ended(&self) -> bool {
        self.thread.is_finished()
    }

    /// Waits for all workers.
    ///
    /// # Errors
    /// If a worker failed.
    pub fn join(self) -> anyhow::Result<()> {
        self.thread.join().map_err(|_| anyhow!("a worker panicked"))?
    }
}

/// The connections to other processes, by their numbers; empty for a job of one process.
pub type Sockets = Vec<Option<Socket>>;

type Ready = Sender<anyhow::Result<(usize, Vec<SyncActivator>)>>;

fn run(
    seeds: Vec<Seed>,
    contexts: impl Fn(usize) -> Context + Send + Sync + 'static,
    common: Common,
    sockets: Sockets,
    ready: Ready,
) -> anyhow::Result<()> {
    let (builders, connections) = connected(common.shape, sockets)?;
    let seeds: Mutex<Vec<Option<Seed>>> = Mutex::new(seeds.into_iter().map(Some).collect());
    let guards = execute_from(builders, connections, timely::WorkerConfig::default(), move |worker| {
        let index = worker.index() - common.shape.local().start;
        let seed = seeds.lock().expect("no worker panics with the lock")[index].take();
        work(worker, seed.expect("each worker takes its seed once"), &contexts, &common, &ready)
    })
    .map_err(|error| anyhow!("start timely: {error}"))?;
    guards.join().into_iter().try_for_each(|ended| ended.map_err(|error| anyhow!("a worker failed: {error}"))?)
}

/// What workers are connected by: one thread alone, several, or several and those of other processes.
fn connected(shape: Shape, sockets: Sockets) -> anyhow::Result<(Vec<AllocatorBuilder>, Box<dyn Any + Send>)> {
    if shape.processes == 1 {
        let config = match shape.workers {
            1 => timely::CommunicationConfig::Thread,
            workers => timely::CommunicationConfig::Process(workers),
        };
        return config.try_build().map_err(|error| anyhow!("start timely: {error}"));
    }
    let hooks = Hooks::default();
    let inside = ProcessBuilder::new_typed_vector(shape.workers, hooks.refill.clone(), hooks.spill.clone());
    let connected = initialize_networking_from_sockets(inside, sockets, shape.process, shape.workers, hooks);
    let (builders, guard) = connected.context("connect the workers with those of the other processes")?;
    Ok((builders.into_iter().map(AllocatorBuilder::Tcp).collect(), Box::new(guard)))
}

fn work(
    worker: &mut Worker,
    seed: Seed,
    contexts: &impl Fn(usize) -> Context,
    common: &Common,
    ready: &Ready,
) -> anyhow::Result<()> {
    let context = contexts(worker.index());
    let activity = Rc::new(Cell::new(0));
    let lanes: Vec<Option<Rc<RefCell<Tapped>>>> =
        [seed.slow, seed.offline].into_iter().map(|lane| lane.map(|lane| Tapped::new(lane))).collect();
    let parts = Parts {
        inboxes: seed.inboxes,
        outputs: seed.outputs,
        scores: seed.scores,
        watermarks: seed.watermarks,
        online: common.online.clone(),
        failures: common.failures.clone(),
        slow: lanes[0].clone(),
        offline: lanes[1].clone(),
        clock: common.clock,
        activity: activity.clone(),
    };
    let built: Built =
        worker.dataflow_named::<u64, _, _>("fast lane", |scope| build(scope, &common.plan, &context, parts));
    let restored = restore(&context, &common.restore);
    let failed = restored.is_err();
    let index = context.worker - common.shape.local().start;
    let _ = ready.send(restored.map(|()| (index, built.wakes)));
    if failed {
        return Err(anyhow!("worker {} could not take up its state", context.worker));
    }
    let polled = context.polled.clone();
    let running = Loop {
        polled,
        activity,
        moved: context.moved.clone(),
        spin: common.spin,
        clock: common.clock,
        heartbeat: seed.heartbeat,
        counters: context.meters.worker(context.worker),
    };
    running.run(worker);
    running.heartbeat.store(i64::MAX, Ordering::Relaxed);
    for lane in lanes.into_iter().flatten() {
        lane.borrow_mut().end();
    }
    Ok(())
}

/// Gives the operators the key groups that this worker owns. What has been taken up is freed at once: a start must not need the
/// memory of its state twice, and the job not for as long as it runs.
fn restore(context: &Context, states: &Mutex<BTreeMap<String, NodeState>>) -> anyhow::Result<()> {
    // All workers of the process do this at the same time.
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = (cores / context.shape.workers).max(1);
    for (State { name, at_coordinator }, operator) in context.nodes.borrow().iter() {
        let is_mine = |key_group: &u16| {
            let owner = millstream_operators::key::worker_of(*key_group, context.workers);
            let owner = if *at_coordinator { context.shape.at_coordinator(owner) } else { owner };
            owner == context.worker
        };
        let mine: Groups = {
            let mut states = states.lock().expect("no worker panics with the lock");
            let Some(state) = states.get_mut(&**name) else { continue };
            state.extract_if(.., |key_group, _| is_mine(key_group)).collect()
        };
        let loaded = operator.borrow_mut().load_groups(mine, threads);
        loaded.with_context(|| format!("take up the state of `{name}`"))?;
    }
    // They are not asked for again.
    context.nodes.borrow_mut().clear();
    Ok(())
}
