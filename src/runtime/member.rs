//! A member's end of a job of several processes: it begins with what the coordinator sends, tells how it stands, and sends on
//! what its workers leave of each epoch.

use std::collections::BTreeMap;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use crossbeam_channel::{Receiver, Sender, bounded, select, unbounded};

use super::board::Board;
use super::clock::EpochClock;
use super::coordinator::TURN;
use super::ledger::Word;
use super::owned::Owned;
use super::shared::{Gates, Taken};
use crate::checkpoint::Checkpoint;
use crate::cluster::link::Link;
use crate::cluster::message::{Said, ToCoordinator, ToMember, Told, Welcome};

/// How often somebody who waits for the coordinator looks whether the job has failed.
const LOOK: Duration = Duration::from_millis(20);
/// How long a member that has failed waits for the coordinator to end, so that the reason is heard.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// The link to the coordinator of a job that has not begun.
pub struct Member {
    link: Link<ToCoordinator>,
    inbox: Receiver<(usize, ToMember)>,
}

/// Where the job goes on, for this process.
pub struct Beginning {
    /// What the coordinator says.
    pub welcome: Welcome,
    /// The part of the checkpoint that this process needs.
    pub checkpoint: Checkpoint,
}

impl Member {
    /// Takes up the link.
    ///
    /// # Errors
    /// If the operating system refuses.
    pub fn new(control: BTreeMap<usize, TcpStream>) -> anyhow::Result<Member> {
        let (heard, inbox) = unbounded();
        let stream = control.into_values().next().context("a member has a link to the coordinator")?;
        let link = Link::start(0, stream, heard).context("talk to the coordinator")?;
        Ok(Member { link, inbox })
    }

    /// Waits for what the coordinator sends at the start.
    ///
    /// # Errors
    /// If it says something else.
    pub fn begin(&self) -> anyhow::Result<Beginning> {
        let (mut welcome, mut checkpoint) = (Welcome::default(), Checkpoint::default());
        loop {
            match self.inbox.recv().context("wait for the coordinator")?.1 {
                ToMember::Welcome(heard) => welcome = *heard,
                ToMember::State { node, key_group, rows } => {
                    let rows = rows.into_iter().map(|rows| rows.0).collect();
                    checkpoint.nodes.entry(node).or_default().insert(key_group, rows);
                }
                ToMember::Begin => break,
                other => bail!("the coordinator said {other:?} before the job had begun"),
            }
        }
        checkpoint.progress = std::mem::take(&mut welcome.progress);
        checkpoint.outbox = std::mem::take(&mut welcome.outbox).into_iter().collect();
        Ok(Beginning { welcome, checkpoint })
    }

    /// Starts to hear and to tell. `words` are the workers'.
    ///
    /// # Errors
    /// If the operating system refuses a thread.
    pub fn watch(self, board: Board, words: Receiver<Word>) -> anyhow::Result<Membering> {
        let link = Arc::new(self.link);
        let asking = link.clone();
        board.partitions.follow(Box::new(move |topic, partition| {
            asking.send(&ToCoordinator::Number { topic: topic.to_string(), partition });
        }));
        let (owned, answers) = unbounded();
        let (clock, clocks) = bounded(1);
        let (start, starts) = bounded(1);
        let (bye, byes) = bounded(1);
        let over = Arc::new(AtomicBool::new(false));
        let watching = Watching {
            link: link.clone(),
            board: board.clone(),
            said: Said::default(),
            watermarks_said: 0,
            positions: BTreeMap::new(),
            decided: 0,
            failure_known: false,
            owned,
            clock,
            start,
            bye,
        };
        let (inbox, stop) = (self.inbox, over.clone());
        let run = move || watching.run(&inbox, &words, &stop);
        let thread = std::thread::Builder::new().name("member".into()).spawn(run).context("watch the coordinator")?;
        Ok(Membering { link, board, answers: Arc::new(Mutex::new(answers)), clocks, starts, byes, over, thread })
    }
}

/// A member's link at work.
pub struct Membering {
    link: Arc<Link<ToCoordinator>>,
    board: Board,
    answers: Arc<Mutex<Receiver<Result<bool, String>>>>,
    clocks: Receiver<u64>,
    starts: Receiver<()>,
    byes: Receiver<()>,
    over: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Membering {
    /// Asks the coordinator whether the start still has the job.
    pub fn owned(&self) -> Owned {
        let (link, gates, answers) = (self.link.clone(), self.board.gates.clone(), self.answers.clone());
        Owned::asking(move || {
            // One after the other: the answer to a question that was asked before may be too old.
            let answers = answers.lock().expect("no thread panics with the lock");
            link.send(&ToCoordinator::IsOwned);
            hear(&answers, &gates).unwrap_or_else(|error| Err(error.to_string()))
        })
    }

    /// The coordinator's clock, as this process has it: half the time of the question and the answer too late at most.
    ///
    /// # Errors
    /// If the job fails meanwhile.
    pub fn clock(&self, first_epoch: u64, length: Duration) -> anyhow::Result<EpochClock> {
        let asked = Instant::now();
        self.link.send(&ToCoordinator::Clock);
        let elapsed = Duration::from_nanos(hear(&self.clocks, &self.board.gates)?);
        Ok(EpochClock::running(first_epoch, length, elapsed + asked.elapsed() / 2))
    }

    /// Says that the workers are built, and waits until those of all processes are.
    ///
    /// # Errors
    /// If the job fails meanwhile.
    pub fn ready(&self) -> anyhow::Result<()> {
        self.link.send(&ToCoordinator::Ready);
        hear(&self.starts, &self.board.gates)
    }

    /// Tells the coordinator that all is done, and waits until it lets this process go. If the job has failed, waits until
    /// the coordinator has heard it.
    pub fn finish(self) {
        let failed = || self.board.gates.failed.load(Ordering::Acquire);
        if !failed() {
            self.link.send(&ToCoordinator::Finished(Box::new(self.board.meters.counts())));
            // All of this process is durable: what becomes of the coordinator is told by its own exit code. It may close the link
            // while this side says something more.
            self.link.end();
        }
        let mut failed_at = None;
        while self.byes.recv_timeout(LOOK).is_err() {
            if !self.link.is_up() || (failed() && failed_at.get_or_insert_with(Instant::now).elapsed() > LAST_WORDS) {
                break;
            }
        }
        self.link.end();
        self.over.store(true, Ordering::Release);
        // A panic of the thread has ended the process already.
        let _ended = self.thread.join();
    }
}

/// Waits for an answer of the coordinator.
fn hear<T>(from: &Receiver<T>, gates: &Gates) -> anyhow::Result<T> {
    loop {
        if let Ok(heard) = from.recv_timeout(LOOK) {
            return Ok(heard);
        }
        if gates.failed.load(Ordering::Acquire) {
            bail!("another process of the job failed");
        }
    }
}

/// The thread.
struct Watching {
    link: Arc<Link<ToCoordinator>>,
    board: Board,
    said: Said,
    /// The newest epoch whose watermark was said.
    watermarks_said: u64,
    /// How far this process's workers had read sources at the end of epochs that are not decided: for lag tools.
    positions: BTreeMap<u64, Vec<(usize, Taken)>>,
    decided: u64,
    /// Whether the coordinator knows that the job fails.
    failure_known: bool,
    owned: Sender<Result<bool, String>>,
    clock: Sender<u64>,
    start: Sender<()>,
    bye: Sender<()>,
}

impl Watching {
    fn run(mut self, inbox: &Receiver<(usize, ToMember)>, words: &Receiver<Word>, over: &AtomicBool) {
        while !over.load(Ordering::Acquire) {
            select! {
                recv(inbox) -> message => match message {
                    Ok((_, message)) => self.hear(message),
                    // The link has ended with the job.
                    Err(_) => std::thread::sleep(TURN),
                },
                recv(words) -> word => match word {
                    Ok(word) => self.send(word),
                    Err(_) => std::thread::sleep(TURN),
                },
                default(TURN) => {}
            }
            self.tell();
        }
    }

    fn send(&mut self, word: Word) {
        for (epoch, part) in &word.parts {
            let taken = part.sources.iter().map(|source| (source.source, source.taken.clone()));
            self.positions.entry(*epoch).or_default().extend(taken);
        }
        self.link.send(&ToCoordinator::Word(word.into()));
    }

    fn hear(&mut self, message: ToMember) {
        // Whoever waits for these has gone: the job has failed, and says so.
        match message {
            ToMember::IsOwned(is_owned) => drop(self.owned.send(is_owned)),
            ToMember::Clock(elapsed) => drop(self.clock.send(elapsed)),
            ToMember::Start => _ = self.start.send(()),
            ToMember::Partitions(named) => self.board.partitions.learn(named),
            ToMember::Told(told) => self.take(told),
            ToMember::Bye => {
                self.link.end();
                _ = self.bye.send(());
            }
            ToMember::Welcome(_) | ToMember::State { .. } | ToMember::Begin => {
                tracing::error!("the coordinator began the job twice");
            }
        }
    }

    fn take(&mut self, told: Told) {
        let board = &self.board;
        board.watermarks.tell(&told.watermarks);
        board.gates.rows_elsewhere.store(told.rows_in_flight, Ordering::Relaxed);
        board.gates.held_elsewhere.store(told.held, Ordering::Relaxed);
        if told.decided > self.decided {
            self.decided = told.decided;
            board.decided.decide(told.decided);
            self.tell_sources();
        }
        self.board.ending.tell(told.exhausted, told.last);
        if told.draining {
            self.board.draining.store(true, Ordering::Release);
        }
        if told.failing {
            self.failure_known = true;
            self.link.end();
            self.board.gates.failed.store(true, Ordering::Release);
            self.board.decided.give_up();
        }
    }

    /// Tells sources what is decided of what they have read.
    fn tell_sources(&mut self) {
        let later = self.positions.split_off(&(self.decided + 1));
        let mut newest: BTreeMap<usize, Taken> = BTreeMap::new();
        for (source, taken) in std::mem::replace(&mut self.positions, later).into_values().flatten() {
            newest.entry(source).or_default().extend(taken);
        }
        for (source, taken) in newest {
            self.board.statuses[source].commit(self.board.named(&taken));
        }
    }

    fn tell(&mut self) {
        let board = &self.board;
        if !self.failure_known
            && board.gates.failed.load(Ordering::Acquire)
            && let Some((code, text)) = board.failures.said()
        {
            self.failure_known = true;
            self.link.end();
            self.link.send(&ToCoordinator::Failed { code, text });
        }
        let watermarks = board.watermarks.complete_after(self.watermarks_said);
        self.watermarks_said = watermarks.last().map_or(self.watermarks_said, |(epoch, _)| *epoch);
        let said = Said {
            exhausted: board.ending.exhausted_here(),
            rested: board.ending.rested_here(),
            draining: board.draining.load(Ordering::Acquire),
            rows_in_flight: board.gates.rows_in_flight.load(Ordering::Relaxed),
            held: board.gates.held_here(board.open_epoch.load(Ordering::Relaxed)),
            durable: board.durable.here(),
            watermarks,
        };
        if said != self.said {
            self.link.send(&ToCoordinator::Said(said.clone()));
            self.said = Said { watermarks: Vec::new(), ..said };
        }
    }
}
