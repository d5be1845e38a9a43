//! The thread that writes checkpoints: gathers what all participants leave of an epoch, publishes the manifest, and so
//! decides it.
//!
//! ```text
//! workers, slow lane, signals ──parts of epoch e──▶ ┐
//! file sinks ──durable up to e────────────────────▶ ├─ all there? ─▶ segment, manifest ─▶ e is decided ─▶ Kafka commits,
//! clock ──not more often than engine.epoch────────▶ ┘                                                    Delta commits
//! ```
//!
//! If the disk is slower than the epochs, several are decided at once. A full disk is waited for, and so is a store that does
//! not answer; meanwhile the sources are held by their gate: the epochs are late, nothing is lost.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use millstream_operators::Batch;
use millstream_operators::key::KEY_GROUPS;

use super::board::Board;
use super::clock::EpochClock;
use super::ledger::{Part, Word};
use super::seeds::{self, Writers};
use crate::checkpoint::{Block, CheckpointError, Kind, Progress, Store, effect_name};
use crate::failpoint::{self, Flaw, Point};
use crate::metrics::catalogue::{
    CHECKPOINT_BYTES, CHECKPOINT_DURATION, CHECKPOINT_EPOCH, CHECKPOINT_LAST, CHECKPOINTS, EPOCH_GATHER_DURATION,
};
use crate::offline;
use crate::plan::Plan;
use crate::provenance::Origins;
use crate::replay::Cuts;
use crate::sinks::Records;

/// How long to wait before the next try.
const RETRY: Duration = Duration::from_secs(1);
/// Memory of changes and outputs for which a checkpoint is written before its time.
const WAITING_BYTES_MAX: usize = 16 << 20;
/// How often writers that make durable by themselves are looked at.
const POLL: Duration = Duration::from_millis(2);
/// How often a thread without work looks whether the job has failed.
const LOOK: Duration = Duration::from_millis(50);

/// What the thread needs.
pub struct Start {
    /// What runs.
    pub plan: Arc<Plan>,
    /// What the job's threads share.
    pub board: Board,
    /// Where checkpoints go.
    pub store: Store,
    /// The checkpoint that the job goes on from.
    pub from: Progress,
    /// What was made of the checkpoint for other nodes than it had; `None` if they are the same.
    pub made: Option<Vec<Block>>,
    /// The cuts of a bounded run, which know its positions.
    pub cuts: Option<Arc<Cuts>>,
    /// What cuts the epochs of a live one.
    pub clock: Option<EpochClock>,
    /// The newest epoch that the offline store has committed.
    pub offline: Box<dyn Fn() -> u64 + Send>,
}

/// The running thread.
pub struct Checkpoints {
    sender: Sender<Word>,
    thread: JoinHandle<Option<Closing>>,
}

impl Checkpoints {
    /// Starts the thread that hears `participants` participants.
    ///
    /// # Errors
    /// If the checkpoint with the plan's nodes can't be written, or the operating system refuses a thread.
    pub fn start(
        mut start: Start,
        participants: usize,
        (sender, receiver): (Sender<Word>, Receiver<Word>),
    ) -> anyhow::Result<Checkpoints> {
        // Live epochs have this length themselves; those of a bounded run are as short as it is fast.
        let every = if start.cuts.is_some() { start.plan.engine.epoch.duration() } else { Duration::ZERO };
        let made = start.made.take();
        let mut gathering = Gathering {
            through: vec![start.from.epoch; participants],
            every,
            due: Instant::now() + every,
            refused_since: None,
            parts: BTreeMap::new(),
            waiting_bytes: 0,
            changed: made.is_some(),
            blocks: made.unwrap_or_default(),
            progress: start.from.clone(),
            moved: BTreeSet::new(),
            writers: seeds::writers(&start.plan),
            tables: start.plan.offline.iter().map(|table| table.name.as_str().into()).collect(),
            start,
        };
        gathering.adopt()?;
        let run = move || gathering.run(&receiver).then_some(Closing(gathering));
        let thread = std::thread::Builder::new().name("checkpoints".into()).spawn(run);
        Ok(Checkpoints { sender, thread: thread.context("start the checkpoints' thread")? })
    }

    /// Waits until the last epoch is decided, or it is clear that it will not be. All participants must have ended. Gives what
    /// is left to do when its outputs are committed as well.
    pub fn finish(self) -> Option<Closing> {
        drop(self.sender);
        // A panic of the thread has ended the process already.
        self.thread.join().ok().flatten()
    }
}

/// The books of a job whose last epoch is decided.
pub struct Closing(Gathering);

impl Closing {
    /// Publishes the last checkpoint once more, when everything is committed, so that it says so: nobody has to ask the world
    /// then, and outputs may be moved or removed without a loss.
    pub fn close(self) {
        let Closing(mut gathering) = self;
        let before = gathering.progress.committed.clone();
        gathering.note(gathering.progress.epoch);
        if gathering.progress.committed != before
            && let Err(error) = gathering.start.store.publish(&gathering.progress, &[])
        {
            tracing::warn!(%error, "the last checkpoint does not say that its outputs are committed; the next start asks");
        }
    }
}

struct Gathering {
    start: Start,
    through: Vec<u64>,
    every: Duration,
    due: Instant,
    refused_since: Option<Instant>,
    parts: BTreeMap<u64, Vec<(usize, Part)>>,
    /// Memory of what has been heard since the last checkpoint.
    waiting_bytes: usize,
    /// Blocks of the next checkpoint.
    blocks: Vec<Block>,
    progress: Progress,
    /// Whether positions or sinks have changed since the last checkpoint, or there is none yet.
    changed: bool,
    /// Sources whose positions have changed since the last decision.
    moved: BTreeSet<usize>,
    writers: Vec<Writers>,
    /// The names of the plan's tables.
    tables: Vec<Arc<str>>,
}

impl Gathering {
    /// Publishes the checkpoint that the job goes on from once more, if there are nodes or writers that it does not know, before
    /// anything is done with them: what a start that is killed leaves behind (a file, a transaction that is open) is then known
    /// to the next one, however many workers that has.
    fn adopt(&mut self) -> anyhow::Result<()> {
        let known = self.progress.committed.clone();
        self.note(self.progress.epoch);
        if !self.changed && self.progress.committed.keys().all(|effect| known.contains_key(effect)) {
            return Ok(());
        }
        let published = self.start.store.publish(&self.progress, &self.blocks);
        published.context("write the checkpoint with the nodes and writers of this start")?;
        self.blocks.clear();
        self.changed = false;
        Ok(())
    }

    /// Until the end of the job; true if its last epoch was decided.
    fn run(&mut self, receiver: &Receiver<Word>) -> bool {
        loop {
            match receiver.recv_timeout(self.pause()) {
                Ok(word) => {
                    self.hear(word);
                    receiver.try_iter().for_each(|word| self.hear(word));
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => std::thread::sleep(POLL),
            }
            // Before an epoch that what has failed may have left incomplete is decided.
            if self.start.board.gates.failed.load(Ordering::Acquire) {
                self.start.board.decided.give_up();
                return false;
            }
            let (epoch, last) = self.complete();
            let due = last || Instant::now() >= self.due || self.waiting_bytes > WAITING_BYTES_MAX;
            if epoch > self.progress.epoch && due && !self.publish(epoch) {
                return false;
            }
            if last && self.progress.epoch >= epoch {
                return true;
            }
            if let Err(error) = self.start.store.look()
                && !self.refused(error)
            {
                return false;
            }
        }
    }

    fn hear(&mut self, word: Word) {
        self.through[word.participant] = word.through;
        for (epoch, part) in word.parts {
            self.waiting_bytes += part.size_bytes();
            self.parts.entry(epoch).or_default().push((word.participant, part));
        }
    }

    /// The newest epoch of which everything is here, and whether it is the last of the run.
    fn complete(&self) -> (u64, bool) {
        let board = &self.start.board;
        let told = self.through.iter().copied().min().unwrap_or_default();
        let complete = board.durable.staged().map_or(told, |staged| staged.min(told));
        (complete, board.ending.last_epoch().is_some_and(|last| complete >= last))
    }

    /// How long to wait for a word: until something may be done without one.
    fn pause(&self) -> Duration {
        let told = self.through.iter().copied().min().unwrap_or(0);
        let (complete, _) = self.complete();
        if complete > self.progress.epoch {
            self.due.saturating_duration_since(Instant::now())
        } else if told > self.progress.epoch && self.start.board.durable.staged().is_some() {
            POLL
        } else {
            LOOK
        }
    }

    /// Publishes a checkpoint of everything up to `epoch`. False if the job can't go on.
    fn publish(&mut self, epoch: u64) -> bool {
        let later = self.parts.split_off(&(epoch + 1));
        for (epoch, parts) in std::mem::replace(&mut self.parts, later) {
            for (participant, part) in parts {
                if let Err(error) = self.take(epoch, participant, part) {
                    return self.fail(error);
                }
            }
        }
        self.due = Instant::now() + self.every;
        self.waiting_bytes = 0;
        let before = std::mem::replace(&mut self.progress.epoch, epoch);
        self.note(epoch);
        // An idle job leaves the disk alone: nothing can be lost of an epoch in which nothing was.
        if self.blocks.is_empty() && !self.changed {
            self.decide(epoch);
            return true;
        }
        failpoint::reached(Point::CheckpointGathered);
        let started = Instant::now();
        if let Some(clock) = &self.start.clock {
            EPOCH_GATHER_DURATION.of([]).record(started.saturating_duration_since(clock.end_of(epoch)).as_secs_f64());
        }
        match self.start.store.publish(&self.progress, &self.blocks) {
            Ok(published) => {
                CHECKPOINT_DURATION.of([]).record(started.elapsed().as_secs_f64());
                CHECKPOINT_BYTES.of([]).increment(published.bytes);
                CHECKPOINTS.of(["ok"]).increment(1);
                CHECKPOINT_EPOCH.of([]).set(epoch as f64);
                CHECKPOINT_LAST.of([]).set(super::clock::now_micros() as f64 / 1e6);
                self.blocks.clear();
                (self.refused_since, self.changed) = (None, false);
                self.start.board.gates.refused.store(false, Ordering::Relaxed);
                self.decide(epoch);
                self.tell_sources();
                let tidied = self.start.store.tidy(&self.progress);
                tidied.map_or_else(|error| self.refused(error), |()| true)
            }
            Err(error) => {
                self.progress.epoch = before;
                self.refused(error)
            }
        }
    }

    /// Everything up to `epoch` is decided.
    fn decide(&self, epoch: u64) {
        self.start.board.decided.decide(epoch);
        if self.start.clock.is_some() {
            self.start.board.gates.decided_epoch.store(epoch, Ordering::Relaxed);
        }
    }

    /// A disk that is full may have room again in a moment, and a store that is away come back; everything else ends the job.
    fn refused(&mut self, error: CheckpointError) -> bool {
        CHECKPOINTS.of(["failed"]).increment(1);
        let since = *self.refused_since.get_or_insert_with(Instant::now);
        if error.may_pass() && since.elapsed() < self.start.plan.engine.state_timeout.duration() {
            tracing::error!(%error, "the checkpoint is tried again; sources are held meanwhile");
            self.start.board.gates.refused.store(true, Ordering::Relaxed);
            self.due = Instant::now() + RETRY;
            return true;
        }
        self.fail(anyhow::Error::new(error).context("write a checkpoint"))
    }

    /// Ends the job; nothing is decided any more.
    fn fail(&self, error: anyhow::Error) -> bool {
        self.start.board.failures.report(error);
        self.start.board.gates.failed.store(true, Ordering::Release);
        self.start.board.decided.give_up();
        false
    }

    /// Takes up what a participant left of an epoch.
    fn take(&mut self, epoch: u64, participant: usize, part: Part) -> anyhow::Result<()> {
        self.take_rows(epoch, participant as u16, part.offline)?;
        let board = &self.start.board;
        let lost = |block: &Block| {
            let is_slow = block.name.starts_with("drift.") || block.name.starts_with("outcomes.");
            failpoint::has(Flaw::LoseState) && !block.part.is_multiple_of(2)
                || failpoint::has(Flaw::LoseSlow) && is_slow && usize::from(block.part) < KEY_GROUPS
        };
        self.blocks.extend(part.state.into_iter().filter(|block| !lost(block)));
        for (sink, writer, records) in part.outbox {
            let dropped = usize::from(failpoint::has(Flaw::DropLast));
            let kept = &records[..records.len().saturating_sub(dropped)];
            let bytes = Records::concat(kept.iter().map(|records| &**records)).to_bytes();
            self.blocks.push(Block { kind: Kind::Outbox, name: sink, part: writer, epoch, bytes });
        }
        for source in part.sources {
            let name = self.start.plan.source_name(source.source);
            let positions = &mut self.progress.positions.entry(name.to_string()).or_default().0;
            let wrong = i64::from(failpoint::has(Flaw::SkipOne)) - i64::from(failpoint::has(Flaw::RepeatOne));
            for (partition, next) in board.named(&source.taken).0 {
                let next = next + wrong;
                if positions.insert(partition, next) != Some(next) {
                    self.changed = true;
                    self.moved.insert(source.source);
                }
            }
            // They move with the positions.
            let times = self.progress.event_times.entry(name.to_string()).or_default();
            for (number, newest) in source.event_times {
                let (topic, partition) = board.partitions.name(number);
                let known = times.entry((topic.to_string(), partition)).or_insert(newest);
                *known = newest.max(*known);
            }
        }
        Ok(())
    }

    /// Takes up the rows for tables that a worker has of an epoch: those of a table together, for a batch by itself has names and
    /// types of its columns.
    fn take_rows(&mut self, epoch: u64, worker: u16, rows: Vec<(usize, Batch)>) -> anyhow::Result<()> {
        let board = &self.start.board;
        let mut of_tables: BTreeMap<usize, Vec<Batch>> = BTreeMap::new();
        rows.into_iter().for_each(|(table, batch)| of_tables.entry(table).or_default().push(batch));
        for (table, batches) in of_tables {
            let name = self.tables[table].clone();
            let model = self.start.plan.model_info(self.start.plan.offline[table].stream);
            let origins = Origins { partitions: board.partitions.clone(), model };
            let encoded = offline::pending::encode(&batches, &origins);
            let bytes = encoded.with_context(|| format!("keep rows of epoch {epoch} for the table `{name}`"))?;
            self.blocks.push(Block { kind: Kind::Offline, name, part: worker, epoch, bytes });
        }
        Ok(())
    }

    /// Tells sources what is decided.
    fn tell_sources(&mut self) {
        for source in std::mem::take(&mut self.moved) {
            let positions = self.progress.positions.get(self.start.plan.source_name(source));
            self.start.board.statuses[source].commit(positions.cloned().unwrap_or_default());
        }
    }

    /// Notes where things stand at the end of `epoch`.
    fn note(&mut self, epoch: u64) {
        // A bounded run knows better where it goes on: it reads its files in another order than they stand.
        if let Some(cut) = self.start.cuts.as_ref().and_then(|cuts| cuts.at(epoch)) {
            for (source, positions) in cut.positions {
                let before = self.progress.positions.insert(source.to_string(), positions.clone());
                self.changed |= before.as_ref() != Some(&positions);
            }
        }
        for ((stream, _), status) in self.start.plan.sources().zip(&self.start.board.statuses) {
            let Some(topics) = status.take_topics() else { continue };
            if self.progress.topics.get(&stream.name) != Some(&topics) {
                self.progress.topics.insert(stream.name.clone(), topics);
                self.changed = true;
            }
        }
        self.progress.committed.clear();
        for (writers, sink) in self.writers.iter().zip(&self.start.plan.sinks) {
            for part in 0..writers.count {
                let slot = writers.first_slot + part;
                if writers.commits_after_decision {
                    let committed = self.start.board.durable.of(slot);
                    self.progress.committed.insert(effect_name(&sink.path(), part as u16), committed);
                } else if let Some(position) = self.start.board.durable.position(slot, epoch) {
                    self.changed |= self.progress.sinks.insert(writers.sink.clone(), position) != Some(position);
                }
            }
        }
        for table in &self.start.plan.offline {
            self.progress.committed.insert(effect_name(&table.path(), 0), (self.start.offline)());
        }
    }
}
