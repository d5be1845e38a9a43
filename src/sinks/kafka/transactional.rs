//! Exactly once: records go at once into an open transaction, which is committed when its epochs are decided.
//!
//! ```text
//! worker:     records of e ─▶ producer a ──┐          records of e+1 ─▶ producer b ──┐
//! committer:                               ├─ drain ─ decided(e)? ─ marker e ─ commit ├─ drain ─ ...
//! ```
//!
//! Two producers take turns, so that the next epoch's records flow while the last is committed. They begin to flow when the
//! last epoch's are acknowledged: a key's records must not change places. If a commit takes longer than an epoch, the open
//! transaction takes the next epoch as well: commits become fewer and larger instead of late.
//!
//! The manifest decides, the transaction follows. A crash between the two leaves a decided epoch that is not committed: its
//! records are in the checkpoint's outbox, and the next start, once it has fenced both transactional ids and so ended
//! whatever was open, writes them again if the [marker](super::marker) says that they are missing.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};
use millstream_kafka_batch::hurry;
use rdkafka::error::KafkaError;
use rdkafka::producer::Producer as _;
use rdkafka::types::RDKafkaErrorCode;
use rdkafka::util::Timeout;

use super::fence::{self, fenced, is_fence};
use super::marker::Marker;
use super::topic::Topic;
use super::{KafkaSink, Millis};
use crate::failpoint::{self, Flaw, Point};
use crate::kafka;
use crate::metrics::catalogue::SINK_COMMIT_DURATION;
use crate::runtime::decided::Decided;
use crate::sinks::{Open, Records, SinkError, SinkWriter};

/// How long a writer without records leaves its marker alone. Brokers forget one after `offsets.retention.minutes`, seven
/// days by default and one day in old clusters.
const MARKER_AGE_MAX: Duration = Duration::from_secs(6 * 3600);
/// How long a call that waits for the brokers may take before it is made again.
pub(super) const CALL_WAIT: Duration = Duration::from_secs(10);

/// A worker's two producers and their committer.
pub(super) struct Transactional {
    producers: [Arc<Side>; 2],
    /// The producer that takes records now.
    current: usize,
    /// The current producer's transaction: none, or with the newest epoch that is closed in it.
    open: Option<Transaction>,
    /// When the last transaction was begun.
    began: Instant,
    marker: Arc<Marker>,
    steps: Option<Sender<Step>>,
    committed: Arc<Committed>,
    thread: Option<JoinHandle<()>>,
}

/// An open transaction.
struct Transaction {
    /// The newest epoch that is closed and in it.
    closed: Option<u64>,
    /// The newest epoch of its records; `None` without any.
    newest: Option<u64>,
}

/// One of the two producers.
struct Side {
    topic: Topic,
    /// True while the committer has it.
    busy: AtomicBool,
}

/// What the committer does, in order.
struct Step {
    /// The newest epoch that is committed with the step.
    through: u64,
    /// The producer whose transaction it is; none for epochs without records.
    side: Option<Arc<Side>>,
    /// The newest epoch of its records.
    newest: Option<u64>,
}

/// How far the committer is.
#[derive(Default)]
struct Committed {
    epoch: AtomicU64,
    error: Mutex<Option<SinkError>>,
}

impl Committed {
    fn error(&self) -> MutexGuard<'_, Option<SinkError>> {
        self.error.lock().expect("no thread panics while it holds the error")
    }
}

impl Transactional {
    /// Opens a worker's producers: ends what an earlier run left open, and commits what it had decided.
    pub fn open(sink: &KafkaSink, open: Open) -> Result<Transactional, SinkError> {
        let batch_bytes = sink.batch_bytes(&open);
        let side = |letter| {
            let id = format!("{}.{}.{}.{letter}", open.job, open.name, open.worker);
            let mut sink = sink.clone();
            if failpoint::has(Flaw::NoOrder) && letter == "a" {
                sink.linger = Millis(150);
            }
            let topic = fenced(&id, || sink.topic(&open, batch_bytes, Some(&id)))?;
            Ok(Arc::new(Side { topic, busy: AtomicBool::new(false) }))
        };
        let early = failpoint::has(Flaw::MarkerBeforeFence).then(|| Marker::find(sink, &open)).transpose()?;
        if early.is_some() {
            failpoint::reached(Point::MarkerFound);
        }
        let (first, second) = std::thread::scope(|scope| {
            let second = scope.spawn(|| side("b"));
            (side("a"), second.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        });
        let sides = [first?, second?];
        failpoint::reached(Point::WritersFenced);
        // What a start knows from which another one has taken over is not the newest checkpoint.
        match open.commits.owned.ask() {
            Ok(false) if !failpoint::has(Flaw::NoAsk) => return Err(SinkError::TakenOver { name: open.name }),
            Ok(_) => {}
            Err(why) => {
                let detail = format!("ask whether another copy of this job has taken over: {why}");
                return Err(SinkError::Kafka { name: open.name, detail });
            }
        }
        // Both are fenced: from here on nobody else can move the marker.
        let (marker, found) = match early {
            None => Marker::find(sink, &open)?,
            Some(early) => early,
        };
        failpoint::reached(Point::MarkerFound);
        let marker = Arc::new(marker);
        redo(&sides[0].topic, &marker, &open, found).map_err(|error| behind(error, &sides, &marker))?;
        let committed = Arc::new(Committed::default());
        let (steps, waiting) = unbounded();
        let marked = open.commits.decided.epoch();
        let committing = Committing {
            marker: marker.clone(),
            sides: sides.clone(),
            decided: open.commits.decided.clone(),
            committed: committed.clone(),
            name: open.name.clone(),
        };
        let thread = std::thread::Builder::new().name(format!("commits of {}", open.name));
        let thread = thread.spawn(move || committing.run(&waiting, marked)).map_err(|source| SinkError::Kafka {
            name: open.name.clone(),
            detail: format!("start the committing thread: {source}"),
        })?;
        Ok(Transactional {
            producers: sides,
            current: 0,
            open: None,
            began: Instant::now(),
            marker,
            steps: Some(steps),
            committed,
            thread: Some(thread),
        })
    }

    fn check(&self) -> Result<(), SinkError> {
        match self.committed.error().take() {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    fn other_is_free(&self) -> bool {
        !self.producers[1 - self.current].busy.load(Ordering::Acquire)
    }

    /// Hands the open transaction to the committer if epochs are closed in it and the other producer can go on.
    fn hand_over(&mut self) {
        let Some(Transaction { closed: Some(through), newest }) = self.open else { return };
        if !self.other_is_free() {
            return;
        }
        let side = self.producers[self.current].clone();
        side.busy.store(true, Ordering::Release);
        self.step(Step { through, side: Some(side), newest });
        self.open = None;
        self.current = 1 - self.current;
    }

    /// Begins the current producer's transaction.
    fn begin(&mut self) -> Result<(), SinkError> {
        let topic = &self.producers[self.current].topic;
        topic.producer.begin_transaction().map_err(|error| said(topic, "begin a transaction", &error))?;
        self.began = Instant::now();
        Ok(())
    }

    fn take(&mut self, epoch: u64, records: &Records, from: usize) -> Result<usize, SinkError> {
        if from >= records.len() {
            return Ok(from);
        }
        if self.open.is_none() {
            // Two producers race each other to the broker: the next begins when the last has been acknowledged, or a
            // key's records could change places.
            let last = &self.producers[1 - self.current].topic;
            let acknowledged = last.producer.context().outstanding() == 0 || failpoint::has(Flaw::NoOrder);
            if !acknowledged || self.producers[self.current].busy.load(Ordering::Acquire) {
                return Ok(from);
            }
            self.begin()?;
        }
        // Epochs that were closed in the transaction are committed with this one: it takes more.
        self.open = Some(Transaction { closed: None, newest: Some(epoch) });
        let topic = &self.producers[self.current].topic;
        topic.take_deliveries()?;
        if failpoint::has(Flaw::WriteTwice) {
            topic.send(epoch, records, from)?;
        }
        topic.send(epoch, records, from)
    }

    fn close(&mut self, epoch: u64) -> Result<(), SinkError> {
        // From time to time an epoch without records brings a marker to the brokers as well, who forget old ones.
        let due = self.began.elapsed() > MARKER_AGE_MAX;
        if self.open.is_none() && due && !self.producers[self.current].busy.load(Ordering::Acquire) {
            self.begin()?;
            self.open = Some(Transaction { closed: None, newest: None });
        }
        match &mut self.open {
            Some(open) => open.closed = Some(epoch),
            None => self.step(Step { through: epoch, side: None, newest: None }),
        }
        self.hand_over();
        Ok(())
    }

    fn step(&self, step: Step) {
        if let Some(steps) = &self.steps {
            // A committer that has ended has said why.
            drop(steps.send(step));
        }
    }
}

/// The error behind an error of a writer.
fn behind(error: SinkError, [first, second]: &[Arc<Side>; 2], marker: &Marker) -> SinkError {
    fence::behind(error, [&first.topic, &second.topic], marker)
}

impl SinkWriter for Transactional {
    fn write(&mut self, epoch: u64, records: &Records, from: usize) -> Result<usize, SinkError> {
        self.check()?;
        self.hand_over();
        let written = self.take(epoch, records, from);
        written.map_err(|error| behind(error, &self.producers, &self.marker))
    }

    fn close_epoch(&mut self, epoch: u64) -> Result<(), SinkError> {
        self.check()?;
        let closed = self.close(epoch);
        closed.map_err(|error| behind(error, &self.producers, &self.marker))
    }

    fn durable(&mut self) -> Result<Option<u64>, SinkError> {
        self.check()?;
        // Also those that are idle have something to say now and then: a broker that is gone, their figures.
        for side in self.producers.iter().filter(|side| !side.busy.load(Ordering::Acquire)) {
            side.topic.take_deliveries().map_err(|error| behind(error, &self.producers, &self.marker))?;
        }
        self.hand_over();
        let epoch = self.committed.epoch.load(Ordering::Acquire);
        Ok((epoch > 0).then_some(epoch))
    }
}

impl Drop for Transactional {
    /// Whatever is still open is worth nothing: the next start ends it, and has the records.
    fn drop(&mut self) {
        self.steps = None;
        if let Some(thread) = self.thread.take().filter(JoinHandle::is_finished) {
            drop(thread.join());
        }
    }
}

/// The committer's thread.
struct Committing {
    marker: Arc<Marker>,
    sides: [Arc<Side>; 2],
    decided: Arc<Decided>,
    committed: Arc<Committed>,
    name: String,
}

impl Committing {
    /// Takes steps as they come. `marked` is what the marker says.
    fn run(&self, steps: &Receiver<Step>, mut marked: u64) {
        for step in steps {
            // Of epochs in which nothing was there is no checkpoint: a marker that named one could not be told from one of a checkpoint
            // that was lost.
            marked = step.newest.unwrap_or(marked);
            match self.take(&step, marked) {
                Ok(true) => self.committed.epoch.fetch_max(step.through, Ordering::AcqRel),
                Ok(false) => return,
                Err(error) => {
                    let error = behind(error, &self.sides, &self.marker);
                    self.committed.error().get_or_insert(error);
                    return;
                }
            };
            if let Some(side) = step.side {
                side.busy.store(false, Ordering::Release);
            }
        }
    }

    /// Commits a step when it is decided, marked with an epoch. False if it never will be.
    fn take(&self, step: &Step, marked: u64) -> Result<bool, SinkError> {
        let mut began = Instant::now();
        let mut did = |what| {
            let took = std::mem::replace(&mut began, Instant::now()).elapsed();
            SINK_COMMIT_DURATION.of([&self.name, what]).record(took.as_secs_f64());
        };
        if let Some(side) = &step.side {
            drain(&side.topic)?;
            did("drain");
            failpoint::reached(Point::RecordsDrained);
        }
        while !failpoint::has(Flaw::CommitFirst) && !self.decided.wait(step.through, CALL_WAIT) {
            if self.decided.given_up() {
                tracing::debug!(sink = %self.name, epoch = step.through, "never decided: left uncommitted");
                return Ok(false);
            }
        }
        if let Some(side) = &step.side {
            did("decide");
            // Not before: whoever asks for a marker that is in an open transaction gets no answer until it has ended, and a copy that
            // was killed may leave it open for long.
            mark(&side.topic, &self.marker, marked)?;
            did("mark");
            commit(&side.topic)?;
            did("commit");
        }
        Ok(true)
    }
}

/// Waits until the brokers have acknowledged everything: `commit_transaction` would wait in steps of 100 ms. No record lingers
/// to be sent with others, for none will come.
fn drain(topic: &Topic) -> Result<(), SinkError> {
    loop {
        topic.take_deliveries()?;
        if topic.producer.context().outstanding() == 0 {
            return Ok(());
        }
        // The mistake needs a slow producer.
        if failpoint::has(Flaw::NoOrder) {
            topic.producer.poll(Duration::from_millis(1));
        } else {
            hurry(&topic.producer, Duration::from_millis(1));
        }
    }
}

/// Adds the marker to the drained transaction.
fn mark(topic: &Topic, marker: &Marker, epoch: u64) -> Result<(), SinkError> {
    let offsets = marker.offsets(epoch).map_err(|error| said(topic, "make a marker", &error))?;
    if !failpoint::has(Flaw::NoMarker) {
        again(topic, "add the marker to the transaction", None, || {
            // librdkafka asks again by itself, and gives the whole transaction up when the time is over: it has as long as the
            // transaction may be open.
            topic.producer.send_offsets_to_transaction(&offsets, &marker.group, Timeout::Never)
        })?;
    }
    failpoint::reached(Point::MarkerSent);
    Ok(())
}

/// Commits the drained transaction, which has its marker.
fn commit(topic: &Topic) -> Result<(), SinkError> {
    again(topic, "commit the transaction", None, || topic.producer.commit_transaction(CALL_WAIT))?;
    failpoint::reached(Point::TransactionCommitted);
    Ok(())
}

/// Writes decided records again that the marker does not know of. With or without records it commits a marker, so that one
/// that is not there has been forgotten, never just not been written: every interleaving is looked at in
/// `tests/commit_model.rs`.
fn redo(topic: &Topic, marker: &Marker, open: &Open, found: Option<u64>) -> Result<(), SinkError> {
    let commits = &open.commits;
    if found.is_none() && commits.known > 0 && !commits.pending.is_empty() && !commits.may_repeat {
        let detail = format!(
            "the marker of group `{}` is gone (brokers forget it some days after the last commit), and the \
             checkpoint knows only that epoch {} was committed: whether the epochs up to {} are in topic `{}` can't be told. \
             Look for header `epoch` in its newest records; then start anew with `--fresh`, or with `--allow-repeat` have \
             them written, maybe again",
            super::marker::group(&open.job, &open.name, open.worker),
            commits.known,
            commits.pending.last().map_or(0, |(epoch, _)| *epoch),
            topic.topic,
        );
        return Err(SinkError::Kafka { name: open.name.clone(), detail });
    }
    // What is committed was decided before: a checkpoint that does not know of it is not the newest that there was. To go on from
    // it would repeat outputs, and lose those of its own next epochs that have these numbers.
    let decided = commits.decided.epoch();
    // Builds with one of these mistakes are to be found out by what they write.
    let is_blind = failpoint::has(Flaw::CommitFirst) || failpoint::has(Flaw::MarkerBeforeFence);
    if let Some(committed) = found.filter(|found| *found > decided && !is_blind) {
        return Err(SinkError::Ahead { name: open.name.clone(), topic: topic.topic.clone(), committed, decided });
    }
    let done = found.unwrap_or(0).max(commits.known);
    let is_missing = |(epoch, _): &&(u64, Records)| *epoch > done && !failpoint::has(Flaw::NoRedo);
    let missing: Vec<&(u64, Records)> = commits.pending.iter().filter(is_missing).collect();
    topic.producer.begin_transaction().map_err(|error| said(topic, "begin a transaction", &error))?;
    let mut count = 0;
    for (epoch, records) in &missing {
        let mut from = 0;
        while from < records.len() {
            from = topic.send(*epoch, records, from)?;
            topic.take_deliveries()?;
        }
        count += records.len();
    }
    drain(topic)?;
    failpoint::reached(Point::OutboxSent);
    mark(topic, marker, decided)?;
    commit(topic)?;
    if count > 0 {
        let (sink, worker) = (&open.name, open.worker);
        tracing::info!(sink, worker, records = count, through = decided, "committed what was decided before");
    }
    Ok(())
}

/// Makes a call until it has an answer: a call that timed out must be made again on the same producer, or it is not known
/// what became of it.
pub(super) fn again(
    topic: &Topic,
    doing: &str,
    deadline: Option<Instant>,
    call: impl Fn() -> Result<(), KafkaError>,
) -> Result<(), SinkError> {
    loop {
        let error = match call() {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        let late = deadline.is_some_and(|deadline| Instant::now() > deadline) || failpoint::has(Flaw::NoRetry);
        match &error {
            KafkaError::Transaction(told) if told.is_retriable() && !told.is_fatal() && !late => {
                topic.warn(&format!("{doing}: {told}; trying again"));
            }
            _ => return Err(said(topic, doing, &error)),
        }
    }
}

/// An error of a transaction in words.
pub(super) fn said(topic: &Topic, doing: &str, error: &KafkaError) -> SinkError {
    let brokers = &topic.brokers;
    let detail = match error {
        KafkaError::Transaction(told) if is_fence(told.code()) => {
            return SinkError::TakenOver { name: topic.name.clone() };
        }
        KafkaError::Transaction(told) if told.code() == RDKafkaErrorCode::TransactionalIdAuthorizationFailed => {
            format!(
                "{doing} at {brokers}: not allowed; the user needs the ACLs WRITE and DESCRIBE on transactional ids, READ on groups, or set `delivery: at_least_once`"
            )
        }
        KafkaError::Transaction(told) if told.code() == RDKafkaErrorCode::InvalidTransactionTimeout => {
            format!(
                "{doing} at {brokers}: `transaction_timeout` is longer than the brokers' `transaction.max.timeout.ms`; make it shorter"
            )
        }
        KafkaError::Transaction(told) if told.txn_requires_abort() => {
            format!("{doing} at {brokers}: {told}; the job ends, and its next start writes the decided records again")
        }
        _ => format!("{doing}: {}", kafka::explain(error, brokers, topic.trouble())),
    };
    topic.error(detail)
}
