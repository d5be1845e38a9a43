//! The coordinator's end of a job of several processes: it sends members where the job goes on, hears what they leave of
//! each epoch, and tells them how the job stands.
//!
//! A thread does so some hundred times a second. What is decided, how far sources may read and when the run ends reach
//! members that much later, and nothing depends on how soon.

use std::collections::{BTreeMap, BTreeSet};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, unbounded};
use millstream_operators::key;

use super::board::Board;
use super::clock::EpochClock;
use super::ledger::Word;
use crate::checkpoint::Checkpoint;
use crate::cluster::link::Link;
use crate::cluster::message::{Bytes, Said, ToCoordinator, ToMember, Told, Welcome};
use crate::cluster::{PeerFailure, Shape};
use crate::plan::Plan;
use crate::runtime::meter::Counts;

/// How often members are told how the job stands.
pub const TURN: Duration = Duration::from_millis(2);
/// How often somebody who waits for members looks whether the job has failed.
const LOOK: Duration = Duration::from_millis(20);

type Links = Arc<BTreeMap<usize, Link<ToMember>>>;

/// The links to members of a job that has not begun.
pub struct Members {
    links: BTreeMap<usize, Link<ToMember>>,
    inbox: Receiver<(usize, ToCoordinator)>,
}

impl Members {
    /// Takes up the links.
    ///
    /// # Errors
    /// If the operating system refuses.
    pub fn new(control: BTreeMap<usize, TcpStream>) -> anyhow::Result<Members> {
        let (heard, inbox) = unbounded();
        let mut links = BTreeMap::new();
        for (process, stream) in control {
            let link = Link::start(process, stream, heard.clone());
            links.insert(process, link.with_context(|| format!("talk to process {process}"))?);
        }
        Ok(Members { links, inbox })
    }

    /// Sends each member where the job goes on, `welcome` and what it needs of the checkpoint: what the members' writers have to commit, and the state of the key groups that
    /// their workers own.
    pub fn welcome(&self, plan: &Plan, shape: Shape, checkpoint: &Checkpoint, welcome: &Welcome) {
        let nodes: BTreeSet<String> = plan.keyed().map(|(node, _)| node).collect();
        for (process, link) in &self.links {
            let local = Shape { process: *process, ..shape }.local();
            let owned = |worker: &usize| local.contains(worker);
            let outbox = checkpoint.outbox.iter().filter(|((_, writer), _)| owned(&usize::from(*writer)));
            link.send(&ToMember::Welcome(Box::new(Welcome {
                progress: checkpoint.progress.clone(),
                outbox: outbox.map(|(writer, records)| (writer.clone(), records.clone())).collect(),
                ..welcome.clone()
            })));
            for (node, state) in checkpoint.nodes.iter().filter(|(node, _)| nodes.contains(*node)) {
                for (key_group, rows) in
                    state.iter().filter(|(group, _)| owned(&key::worker_of(**group, shape.total())))
                {
                    let rows = rows.iter().map(|rows| Bytes(rows.clone())).collect();
                    link.send(&ToMember::State { node: node.clone(), key_group: *key_group, rows });
                }
            }
            link.send(&ToMember::Begin);
        }
    }

    /// Starts to hear and to tell. `words` go to the checkpoints.
    ///
    /// # Errors
    /// If the operating system refuses a thread.
    pub fn watch(self, board: Board, clock: EpochClock, words: Sender<Word>) -> anyhow::Result<Coordinator> {
        let links: Links = Arc::new(self.links);
        let (ready, readies) = unbounded();
        let (finished, finishes) = unbounded();
        let over = Arc::new(AtomicBool::new(false));
        let watching = Watching {
            links: links.clone(),
            said: links.keys().map(|process| (*process, Said::default())).collect(),
            told: BTreeMap::new(),
            watermarks_told: 0,
            named: 0,
            board: board.clone(),
            clock,
            words,
            ready,
            finished,
        };
        let (inbox, stop) = (self.inbox, over.clone());
        let run = move || watching.run(&inbox, &stop);
        let thread = std::thread::Builder::new().name("coordinator".into()).spawn(run).context("watch the members")?;
        Ok(Coordinator { links, board, readies, finishes, over, thread })
    }
}

/// The coordinator's links to members at work.
pub struct Coordinator {
    links: Links,
    board: Board,
    readies: Receiver<()>,
    finishes: Receiver<Counts>,
    over: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Coordinator {
    /// Waits until all members are ready, and has them read.
    ///
    /// # Errors
    /// What a member could not do.
    pub fn start(&self) -> anyhow::Result<()> {
        self.hear_all(&self.readies, drop)?;
        self.links.values().for_each(|link| link.send(&ToMember::Start));
        Ok(())
    }

    /// Waits until all members have finished, and adds what they have counted. A job that fails waits for nobody.
    pub fn finish(self) {
        let meters = self.board.meters.clone();
        // A member that fails has been reported.
        let _failed = self.hear_all(&self.finishes, |counts| meters.add(counts));
        self.links.values().for_each(|link| {
            link.end();
            link.send(&ToMember::Bye);
        });
        self.over.store(true, Ordering::Release);
        // A panic of the thread has ended the process already.
        let _ended = self.thread.join();
    }

    fn hear_all<T>(&self, from: &Receiver<T>, mut each: impl FnMut(T)) -> anyhow::Result<()> {
        let mut missing = self.links.len();
        while missing > 0 {
            match from.recv_timeout(LOOK) {
                Ok(heard) => {
                    each(heard);
                    missing -= 1;
                }
                Err(_) if self.board.gates.failed.load(Ordering::Acquire) => {
                    return Err(self.board.failures.first().unwrap_or_else(|| anyhow!("a process of the job failed")));
                }
                Err(_) => {}
            }
        }
        Ok(())
    }
}

/// The thread.
struct Watching {
    links: Links,
    said: BTreeMap<usize, Said>,
    told: BTreeMap<usize, Told>,
    /// The newest epoch whose watermark was told.
    watermarks_told: u64,
    /// Partitions that members know.
    named: usize,
    board: Board,
    clock: EpochClock,
    words: Sender<Word>,
    ready: Sender<()>,
    finished: Sender<Counts>,
}

impl Watching {
    fn run(mut self, inbox: &Receiver<(usize, ToCoordinator)>, over: &AtomicBool) {
        let mut told_at = Instant::now();
        while !over.load(Ordering::Acquire) {
            match inbox.recv_timeout(TURN.saturating_sub(told_at.elapsed())) {
                Ok((process, message)) => self.hear(process, message),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => std::thread::sleep(TURN),
            }
            if told_at.elapsed() >= TURN {
                told_at = Instant::now();
                self.tell();
            }
        }
    }

    fn hear(&mut self, process: usize, message: ToCoordinator) {
        // Whoever waits for these has gone: the job has failed, and says so.
        match message {
            // The storage may take its time.
            ToCoordinator::IsOwned => {
                let (links, owned) = (self.links.clone(), self.board.owned.clone());
                std::thread::spawn(move || links[&process].send(&ToMember::IsOwned(owned.ask())));
            }
            ToCoordinator::Clock => {
                self.links[&process].send(&ToMember::Clock(self.clock.elapsed().as_nanos() as u64));
            }
            ToCoordinator::Ready => _ = self.ready.send(()),
            ToCoordinator::Word(word) => drop(self.words.send(word.into())),
            ToCoordinator::Number { topic, partition } => {
                self.board.partitions.number(&topic, partition);
                self.name();
            }
            ToCoordinator::Said(said) => self.take(process, said),
            ToCoordinator::Failed { code, text } => {
                self.links[&process].end();
                self.board.failures.report(PeerFailure { process, text, code }.into());
                self.board.gates.failed.store(true, Ordering::Release);
            }
            ToCoordinator::Finished(counts) => drop(self.finished.send(*counts)),
        }
    }

    fn take(&mut self, process: usize, said: Said) {
        let before = &self.said[&process];
        for (writer, epoch) in &said.durable {
            self.board.durable.set(*writer, *epoch, Vec::new());
        }
        for (epoch, of_sources) in &said.watermarks {
            for (source, watermark) in of_sources.iter().enumerate() {
                self.board.watermarks.publish(*epoch, source, *watermark);
            }
        }
        if said.exhausted && !before.exhausted {
            self.board.ending.end();
        }
        if let (Some(epoch), None) = (said.rested, before.rested) {
            self.board.ending.rest(epoch);
        }
        if said.draining {
            self.board.draining.store(true, Ordering::Release);
        }
        self.said.insert(process, said);
        self.board.gates.rows_elsewhere.store(self.rows(None), Ordering::Relaxed);
        self.board.gates.held_elsewhere.store(self.held(None), Ordering::Relaxed);
        if let Some(epoch) = self.board.durable.epoch() {
            self.board.gates.durable_epoch.store(epoch, Ordering::Relaxed);
        }
    }

    /// Rows between workers as all members but one count them.
    fn rows(&self, but: Option<usize>) -> i64 {
        self.said.iter().filter(|(process, _)| Some(**process) != but).map(|(_, said)| said.rows_in_flight).sum()
    }

    /// Whether a member but one holds the sources.
    fn held(&self, but: Option<usize>) -> bool {
        self.said.iter().any(|(process, said)| Some(*process) != but && said.held)
    }

    /// Tells members which partitions have got numbers.
    fn name(&mut self) {
        let named = self.board.partitions.since(self.named);
        if !named.is_empty() {
            self.named += named.len();
            self.links.values().for_each(|link| link.send(&ToMember::Partitions(named.clone())));
        }
    }

    fn tell(&mut self) {
        self.name();
        let board = &self.board;
        let watermarks = board.watermarks.complete_after(self.watermarks_told);
        self.watermarks_told = watermarks.last().map_or(self.watermarks_told, |(epoch, _)| *epoch);
        let held_here = board.gates.held_here(board.open_epoch.load(Ordering::Relaxed));
        for (process, link) in self.links.iter() {
            let told = Told {
                decided: board.decided.epoch(),
                exhausted: board.ending.exhausted(),
                last: board.ending.last_epoch(),
                draining: board.draining.load(Ordering::Acquire),
                failing: board.gates.failed.load(Ordering::Acquire),
                rows_in_flight: board.gates.rows_in_flight.load(Ordering::Relaxed) + self.rows(Some(*process)),
                held: held_here || self.held(Some(*process)),
                watermarks: watermarks.clone(),
            };
            if self.told.get(process) != Some(&told) {
                if told.failing {
                    // It may go when it has heard it.
                    link.end();
                }
                link.send(&ToMember::Told(told.clone()));
                self.told.insert(*process, Told { watermarks: Vec::new(), ..told });
            }
        }
    }
}
