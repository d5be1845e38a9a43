//! A job from start to end: takes up its checkpoint, starts the lanes, the workers and the connectors, watches, drains,
//! writes the checkpoint, sums up. Of a job of several processes, the coordinator does all this and a member what its
//! workers need.
//!
//! ```text
//! connectors (threads) ──inboxes──▶ workers (timely) ──▶ sinks' writers
//!                                      ├──▶ slow lane (thread, differential)
//!                                      └──▶ offline store (thread)
//! the caller's thread: signals, progress, failures, the end
//! ```

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Instant;

use anyhow::Context as _;
use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use timely::scheduling::SyncActivator;

use super::board::Board;
use super::checkpoints::{Checkpoints, Start};
use super::clock::EpochClock;
use super::connect::Context;
use super::coordinator::{Coordinator, Members};
use super::crew::{Common, Crew};
use super::lanes::{Lanes, LanesEnd};
use super::ledger::{Ledger, Word};
use super::member::{Beginning, Member, Membering};
use super::memory::Budget;
use super::owned::Owned;
use super::repeats::Wanted;
use super::seeds::Opening;
use super::take_up::{TakenUp, take_up};
use crate::backfill;
use crate::checkpoint::{Checkpoint, NodeState, Place, Store};
use crate::cluster::message::Welcome;
use crate::cluster::{Joined, LOST, PeerFailure, Shape};
use crate::metrics::catalogue::MEMORY_BUDGET;
use crate::offline::Begin;
use crate::plan::Plan;
use crate::replay::{Cuts, Pace, Progress, Replay, read_on_arrival};
use crate::sources::status::Connection;
use crate::sources::{Arrival, Port, SourceError};
use crate::summary::Summary;

/// Arrivals that an inbox holds before its connector waits.
pub const INBOX: usize = 16;

/// How a run is driven.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Mode {
    /// Connectors deliver, the clock cuts epochs, rows are processed on arrival.
    Live,
    /// Bounded files are merged in event-time order, at a pace.
    Bounded(Pace),
}

/// A running job, or one process of it.
pub struct Job {
    plan: Arc<Plan>,
    started: Instant,
    crew: Crew,
    connectors: Vec<JoinHandle<Result<(), SourceError>>>,
    board: Board,
    progress: Arc<Progress>,
    cuts: Arc<Cuts>,
    memory: Budget,
    role: Role,
}

/// What a process does beside having workers.
#[expect(clippy::large_enum_variant, reason = "there is one of it")]
enum Role {
    /// It has what there is once, and links to members if there are any.
    Coordinator { lanes: Lanes, checkpoints: Checkpoints, members: Option<Coordinator> },
    /// It has a link to the coordinator.
    Member(Membering),
}

impl Job {
    /// Starts a job, or the coordinator of one, going on from the checkpoint that is `wanted`, if there is one.
    ///
    /// # Errors
    /// If the checkpoint can't be taken up, something of it would be lost or outputs repeated, a sink, model or table can't be
    /// opened, a source refuses to start, or a member fails to.
    pub fn start(plan: Arc<Plan>, mode: Mode, wanted: &Wanted, shape: Shape, joined: Joined) -> anyhow::Result<Job> {
        let members = if joined.control.is_empty() { None } else { Some(Members::new(joined.control)?) };
        let place = Place::of(&plan.engine, &plan.folder)?;
        let store = Store::open(&place, &plan.name, &plan.hash);
        let mut store = store.context("take the place of the state (`engine.state`)")?;
        let TakenUp { checkpoint, made, began, filled, gaps } = take_up(&mut store, &plan, mode != Mode::Live, wanted)?;
        if made.is_none() {
            store.merge_loaded(&checkpoint);
        }
        if let Some(members) = &members {
            let welcome = Welcome {
                id: store.id().to_string(),
                start: store.writer().to_string(),
                generation: store.generation(),
                may_repeat: wanted.allow_repeat,
                began: began.iter().cloned().collect(),
                ..Welcome::default()
            };
            members.welcome(&plan, shape, &checkpoint, &welcome);
        }
        let first_epoch = checkpoint.progress.epoch + 1;
        let cuts: Arc<Cuts> = Arc::default();
        let bounded_cuts = matches!(mode, Mode::Bounded(_)).then(|| cuts.clone());
        let mut board = Board::new(&plan, shape, &checkpoint, bounded_cuts.clone())?;
        board.gaps = gaps.into();
        board.owned = Owned::of(&store);
        let clock = EpochClock::new(first_epoch, plan.engine.epoch.duration());
        let (words, heard) = unbounded();
        let members = members.map(|members| members.watch(board.clone(), clock, words.clone())).transpose()?;
        let mut participants = shape.total();
        let mut ledgers = || {
            participants += 1;
            Ledger::new(participants - 1, first_epoch - 1, words.clone())
        };
        let opening = Opening {
            plan: &plan,
            from: &checkpoint,
            began,
            board: &board,
            id: store.id().to_string(),
            start: store.writer().to_string(),
            generation: store.generation(),
            first_epoch,
            may_repeat: wanted.allow_repeat,
        };
        let mut lanes = Lanes::start(&opening, begin(mode, &checkpoint), &mut ledgers)?;
        let (senders, inboxes) = inboxes(shape.workers, plan.sources().count());
        let seeds = opening.seeds(Some(&mut lanes), inboxes)?;
        opening.settle_former_writers()?;
        let common = common(&plan, &board, (mode == Mode::Live).then_some(clock), checkpoint.nodes);
        let checkpoint = Checkpoint { nodes: Default::default(), outbox: Default::default(), ..checkpoint };
        let start = Start {
            plan: plan.clone(),
            board: board.clone(),
            store,
            from: checkpoint.progress.clone(),
            made,
            cuts: bounded_cuts,
            clock: (mode == Mode::Live).then_some(clock),
            offline: lanes.offline_committed(),
        };
        let checkpoints = Checkpoints::start(start, participants, (words.clone(), heard))?;
        // The job's own first checkpoint has it now.
        if !filled.is_empty()
            && let Err(error) = backfill::forget(&plan)
        {
            tracing::warn!(%error, "what a backfill has made is not needed any more and could not be removed");
        }
        let (crew, wakes) = Crew::start(seeds, contexts(&board, first_epoch, words), common, joined.data)?;
        if let Some(members) = &members {
            members.start()?;
        }
        let role = Role::Coordinator { lanes, checkpoints, members };
        let mut job = Job::of(plan, crew, board, cuts, role);
        job.connect(mode, &checkpoint, senders, wakes, first_epoch)?;
        Ok(job)
    }

    /// Starts a member of a job of several processes.
    ///
    /// # Errors
    /// If a sink or model can't be opened, a source refuses to start, or another process fails to start.
    pub fn start_member(plan: Arc<Plan>, shape: Shape, joined: Joined) -> anyhow::Result<Job> {
        let member = Member::new(joined.control)?;
        let Beginning { welcome, mut checkpoint } = member.begin()?;
        let first_epoch = checkpoint.progress.epoch + 1;
        let mut board = Board::new(&plan, shape, &checkpoint, None)?;
        let (words, heard) = unbounded();
        let link = member.watch(board.clone(), heard)?;
        board.owned = link.owned();
        let started = (|| {
            let clock = link.clock(first_epoch, plan.engine.epoch.duration())?;
            let opening = Opening {
                plan: &plan,
                from: &checkpoint,
                began: welcome.began.into_iter().collect(),
                board: &board,
                id: welcome.id,
                start: welcome.start,
                generation: welcome.generation,
                first_epoch,
                may_repeat: welcome.may_repeat,
            };
            let (senders, inboxes) = inboxes(shape.workers, plan.sources().count());
            let seeds = opening.seeds(None, inboxes)?;
            let common = common(&plan, &board, Some(clock), std::mem::take(&mut checkpoint.nodes));
            let (crew, wakes) = Crew::start(seeds, contexts(&board, first_epoch, words), common, joined.data)?;
            link.ready()?;
            Ok((crew, senders, wakes))
        })();
        let (crew, senders, wakes) = match started {
            Ok(started) => started,
            Err(error) => {
                board.failures.report(error);
                board.gates.failed.store(true, Ordering::Release);
                link.finish();
                return Err(board.failures.first().unwrap_or_else(|| elsewhere().into()));
            }
        };
        let mut job = Job::of(plan, crew, board, Arc::default(), Role::Member(link));
        job.connect(Mode::Live, &checkpoint, senders, wakes, first_epoch)?;
        Ok(job)
    }

    fn of(plan: Arc<Plan>, crew: Crew, board: Board, cuts: Arc<Cuts>, role: Role) -> Job {
        let (started, progress) = (Instant::now(), Arc::default());
        let memory = Budget::new(&plan.engine);
        MEMORY_BUDGET.of([]).set(memory.bytes() as f64);
        Job { plan, started, crew, connectors: Vec::new(), board, progress, cuts, memory, role }
    }

    /// Starts what delivers: a connector a source, or one reader for all sources of a bounded run.
    fn connect(
        &mut self,
        mode: Mode,
        checkpoint: &Checkpoint,
        senders: Vec<Vec<Sender<Arrival>>>,
        wakes: Vec<Vec<SyncActivator>>,
        first_epoch: u64,
    ) -> anyhow::Result<()> {
        let mut ports: Vec<Vec<Port>> = senders.iter().map(|_| Vec::new()).collect();
        let mut wakes: Vec<_> = wakes.into_iter().map(Vec::into_iter).collect();
        for (source, senders) in senders.into_iter().enumerate() {
            for (worker, sender) in senders.into_iter().enumerate() {
                let wake = wakes[worker].next().context("a worker built fewer sources than the plan has")?;
                ports[source].push(Port::new(sender, Box::new(move || _ = wake.activate())));
            }
        }
        match mode {
            Mode::Live => {
                for ((stream, source), ports) in self.plan.sources().zip(ports) {
                    let start = self.board.start(&self.plan, &stream.name, source, ports, checkpoint);
                    self.connectors.push(match source.connector() {
                        Some(connector) => connector.start(start)?,
                        // Files are the coordinator's to read: here, they have ended.
                        None if !self.board.shape.is_coordinator() => {
                            _ = start.status.set_connection(Connection::Ended);
                            continue;
                        }
                        None => read_on_arrival(
                            source.bounded(&stream.name, &self.plan.folder, start.positions.clone())?,
                            start,
                        )?,
                    });
                }
            }
            Mode::Bounded(pace) => {
                let mut sources = Vec::new();
                for (stream, source) in self.plan.sources() {
                    let positions = checkpoint.progress.positions.get(&stream.name).cloned().unwrap_or_default();
                    sources.push(source.bounded(&stream.name, &self.plan.folder, positions)?);
                }
                let replay = Replay {
                    sources,
                    ports,
                    partitions: self.board.partitions.clone(),
                    first_epoch,
                    pace,
                    stop: self.board.draining.clone(),
                    progress: self.progress.clone(),
                    cuts: self.cuts.clone(),
                };
                self.connectors.push(replay.start()?);
                self.board.statuses.iter().for_each(|status| _ = status.set_connection(Connection::Reading));
            }
        }
        Ok(())
    }

    /// What others may look at while the job runs.
    pub fn board(&self) -> &Board {
        &self.board
    }

    /// How far a bounded run is.
    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// True when all rows have gone through and every sink is durable.
    pub fn ended(&self) -> bool {
        self.crew.ended()
    }

    /// Looks after the job; called some times a second. Holds the sources while a lane is behind, and drains the job if
    /// something failed.
    pub fn look_after(&mut self) {
        if let Role::Coordinator { lanes, .. } = &self.role {
            lanes.look_after(&self.board.gates);
        }
        self.memory.look_after(&self.board.gates);
        let (ended, running) = self.connectors.drain(..).partition(|connector| connector.is_finished());
        self.connectors = running;
        for connector in ended {
            self.reap(connector);
        }
        if self.board.is_failing() {
            self.board.drain();
        }
    }

    fn reap(&self, connector: JoinHandle<Result<(), SourceError>>) {
        if let Ok(Err(error)) = connector.join() {
            self.board.failures.report(error.into());
            self.board.gates.failed.store(true, Ordering::Release);
        }
    }

    /// Waits for the end and closes the books: the last checkpoint, and what the run did. It may wait for disks, stores and other
    /// processes; whoever calls it says for how long.
    ///
    /// # Errors
    /// What made the job fail: the next start goes on from the newest checkpoint.
    pub fn finish(mut self) -> anyhow::Result<Summary> {
        while !self.ended() {
            self.look_after();
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        // What happens from here on happens to a job that has finished its records.
        let stopped = self.board.is_draining();
        self.crew.join()?;
        for connector in std::mem::take(&mut self.connectors) {
            if let Ok(Err(error)) = connector.join() {
                self.board.failures.report(error.into());
            }
        }
        let lanes = match self.role {
            Role::Coordinator { lanes, checkpoints, members } => {
                if let Some(members) = members {
                    members.finish();
                }
                lanes.finish(checkpoints)
            }
            Role::Member(link) => {
                link.finish();
                Ok(LanesEnd::default())
            }
        };
        // A lane may not come to its end because something else failed before.
        if let Some(error) = self.board.failures.first() {
            return Err(error);
        }
        let lanes = lanes?;
        if self.board.is_failing() {
            return Err(elsewhere().into());
        }
        let mut summary = Summary {
            ended: if stopped { "stopped" } else { "end_of_input" }.into(),
            epoch: self.board.ending.last_epoch().unwrap_or_default(),
            duration_seconds: self.started.elapsed().as_secs_f64(),
            ..self.board.sum_up(&self.plan)
        };
        if let Some(slow) = &lanes.slow {
            summary.judge(slow);
        }
        Ok(summary)
    }
}

/// What the offline store may find of earlier runs.
fn begin(mode: Mode, checkpoint: &Checkpoint) -> Begin {
    match (checkpoint.progress.epoch, mode) {
        (0, Mode::Live) => Begin::Anew,
        (0, Mode::Bounded(_)) => Begin::AnewReplacing,
        (epoch, _) => Begin::After(epoch),
    }
}

/// Inboxes by source and worker: senders for the connectors, receivers for the workers (`[worker][source]`).
fn inboxes(workers: usize, sources: usize) -> (Vec<Vec<Sender<Arrival>>>, Vec<Vec<Receiver<Arrival>>>) {
    let mut senders = Vec::new();
    let mut receivers: Vec<Vec<_>> = (0..workers).map(|_| Vec::new()).collect();
    for _ in 0..sources {
        let mut of_source = Vec::new();
        for inbox in &mut receivers {
            let (sender, receiver) = bounded(INBOX);
            of_source.push(sender);
            inbox.push(receiver);
        }
        senders.push(of_source);
    }
    (senders, receivers)
}

/// What the workers of this process share.
fn common(plan: &Arc<Plan>, board: &Board, clock: Option<EpochClock>, restore: BTreeMap<String, NodeState>) -> Common {
    Common {
        plan: plan.clone(),
        online: board.online.clone(),
        failures: board.failures.clone(),
        clock,
        spin: std::time::Duration::from_micros(plan.engine.spin_micros),
        restore: Arc::new(Mutex::new(restore)),
        shape: board.shape,
    }
}

/// Why a process of a job ends that has done nothing wrong.
fn elsewhere() -> PeerFailure {
    PeerFailure { process: 0, text: "the job fails; the log of another process says why".into(), code: LOST as u8 }
}

/// Makes each worker's context, on the worker's thread.
fn contexts(board: &Board, first_epoch: u64, words: Sender<Word>) -> impl Fn(usize) -> Context + Send + Sync + 'static {
    let board = board.clone();
    move |worker| Context {
        worker,
        workers: board.shape.total(),
        shape: board.shape,
        first_epoch,
        watermarks: board.watermarks.clone(),
        gates: board.gates.clone(),
        ending: board.ending.clone(),
        draining: board.draining.clone(),
        open_epoch: board.open_epoch.clone(),
        meters: board.meters.clone(),
        nodes: Rc::default(),
        ledger: Rc::new(RefCell::new(Ledger::new(worker, first_epoch - 1, words.clone()))),
        polled: Rc::default(),
        moved: Rc::default(),
    }
}
