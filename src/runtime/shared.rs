//! What the workers of a process share: watermarks by epoch, the gates that hold sources back, the durable epoch, and the
//! end of the run. In a job of several processes, each has its own and the control links bring them together some hundred
//! times a second ([`coordinator`](super::coordinator), [`member`](super::member)).

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use millstream_operators::EventTime;

use crate::replay::Cuts;

/// The watermark of each epoch. Operators read it when they close the epoch themselves.
///
/// In a bounded run the reader knows it: rows come in event-time order, so it is where the reader was when it cut the epoch,
/// however the rows were shared out among the workers. In a live run it is what every source on every worker said when it
/// closed the epoch, and an operator that asks before all have done so is told that of the epoch before.
#[derive(Debug)]
pub struct Watermarks {
    /// The cuts of a bounded run.
    cuts: Option<Arc<Cuts>>,
    sources: usize,
    /// How many speak of each source.
    inputs: usize,
    /// Whether the process is told the watermarks, and only collects what its own inputs say.
    follows: bool,
    epochs: Mutex<Epochs>,
}

#[derive(Debug, Default)]
struct Epochs {
    /// What inputs have said of epochs of which not all have: the least so far, and how often one has spoken.
    said: BTreeMap<u64, (BySource, usize)>,
    /// The least that all inputs have said, by epoch.
    complete: BTreeMap<u64, BySource>,
    /// What the process was told, by epoch.
    told: BTreeMap<u64, BySource>,
    /// The greatest watermark of the epochs that are forgotten: the job's.
    forgotten: EventTime,
    /// The same of each source.
    forgotten_of: BySource,
}

/// Watermarks by the numbers of their sources; [`NO_SAY`] of one of which no input has a say.
pub type BySource = Vec<EventTime>;

/// The job's watermark: that of the source that is the furthest behind.
fn least(of_sources: &[EventTime]) -> EventTime {
    of_sources.iter().min().copied().unwrap_or(NO_SAY)
}

/// What an input says that has no partitions with events: it holds nobody back.
pub const NO_SAY: EventTime = EventTime::MAX;

/// Epochs that are remembered: more than workers can be apart.
const EPOCHS_KEPT: u64 = 64;

impl Watermarks {
    /// Of a live run with `sources` sources, each with `inputs` inputs (workers, and other processes).
    pub fn live(sources: usize, inputs: usize) -> Self {
        let forgotten_of = vec![EventTime::MIN; sources];
        let epochs = Epochs { forgotten: EventTime::MIN, forgotten_of, ..Epochs::default() };
        Watermarks { cuts: None, sources, inputs, follows: false, epochs: Mutex::new(epochs) }
    }

    /// Of a member of a job of several processes, each source with `inputs` inputs of its own.
    pub fn following(sources: usize, inputs: usize) -> Self {
        Watermarks { follows: true, ..Watermarks::live(sources, inputs) }
    }

    /// Of a bounded run whose reader notes its cuts in `cuts`.
    pub fn bounded(cuts: Arc<Cuts>) -> Self {
        Watermarks { cuts: Some(cuts), ..Watermarks::live(0, 0) }
    }

    /// An input of `source` will give no event at or before `watermark` after `epoch`.
    pub fn publish(&self, epoch: u64, source: usize, watermark: EventTime) {
        if self.cuts.is_some() {
            return;
        }
        let mut epochs = self.epochs.lock().expect("no thread panics with the lock");
        let (of_sources, times) = epochs.said.entry(epoch).or_insert_with(|| (vec![NO_SAY; self.sources], 0));
        of_sources[source] = of_sources[source].min(watermark);
        *times += 1;
        if *times == self.sources * self.inputs
            && let Some((of_sources, _)) = epochs.said.remove(&epoch)
        {
            epochs.complete.insert(epoch, of_sources);
        }
    }

    /// The watermark at the end of `epoch`, never behind that of an earlier epoch. An epoch that some input has not closed
    /// has the one before it. What later epochs have does not count: a worker that is behind is not told what a faster
    /// one knows.
    pub fn at(&self, epoch: u64) -> EventTime {
        if let Some(cuts) = &self.cuts {
            return cuts.watermark(epoch).unwrap_or(EventTime::MIN);
        }
        self.greatest(epoch, least, |epochs| epochs.forgotten)
    }

    /// The same of one source, whichever workers read it. In a bounded run, where no partition is idle, nobody asks for it.
    pub fn of(&self, source: usize, epoch: u64) -> EventTime {
        if self.cuts.is_some() {
            return EventTime::MIN;
        }
        self.greatest(epoch, |of_sources| of_sources[source], |epochs| epochs.forgotten_of[source])
    }

    /// The greatest of the epochs up to `epoch`; `forgotten` is of those that are forgotten.
    fn greatest(
        &self,
        epoch: u64,
        which: impl Fn(&[EventTime]) -> EventTime,
        forgotten: impl Fn(&Epochs) -> EventTime,
    ) -> EventTime {
        let mut epochs = self.epochs.lock().expect("no thread panics with the lock");
        epochs.forget(self.follows, epoch.saturating_sub(EPOCHS_KEPT));
        let known = if self.follows { &epochs.told } else { &epochs.complete };
        let kept = known.range(..=epoch).map(|(_, of_sources)| which(of_sources)).filter(|found| *found != NO_SAY);
        kept.max().unwrap_or(EventTime::MIN).max(forgotten(&epochs))
    }

    /// What all inputs have said of epochs after `epoch`: the least of each source.
    pub fn complete_after(&self, epoch: u64) -> Vec<(u64, BySource)> {
        let epochs = self.epochs.lock().expect("no thread panics with the lock");
        epochs.complete.range(epoch + 1..).map(|(epoch, of_sources)| (*epoch, of_sources.clone())).collect()
    }

    /// The process was told the watermarks of epochs.
    pub fn tell(&self, watermarks: &[(u64, BySource)]) {
        let mut epochs = self.epochs.lock().expect("no thread panics with the lock");
        let Some((newest, _)) = watermarks.last() else { return };
        // What its inputs said of them has been passed on long ago.
        epochs.complete = epochs.complete.split_off(newest);
        epochs.told.extend(watermarks.iter().cloned());
    }
}

impl Epochs {
    /// Keeps of the epochs before `first` the greatest watermarks only.
    fn forget(&mut self, follows: bool, first: u64) {
        let known = if follows { &mut self.told } else { &mut self.complete };
        while let Some(old) = known.first_entry().filter(|old| *old.key() < first) {
            let of_sources = old.remove();
            let job = (&mut self.forgotten, least(&of_sources));
            for (forgotten, watermark) in self.forgotten_of.iter_mut().zip(of_sources).chain([job]) {
                if watermark != NO_SAY {
                    *forgotten = watermark.max(*forgotten);
                }
            }
        }
    }
}

/// What holds sources back. A source that is held takes nothing from its inbox, the full inbox stops its connector, and
/// the rest waits in Kafka.
#[derive(Debug, Default)]
pub struct Gates {
    /// Sinks that could not take everything they were given.
    pub stalled_sinks: AtomicUsize,
    /// Rows on their way from one worker to another.
    pub rows_in_flight: AtomicI64,
    /// The same, as the other processes of the job count them: a row that leaves one arrives in another.
    pub rows_elsewhere: AtomicI64,
    /// Whether another process of the job holds its sources.
    pub held_elsewhere: AtomicBool,
    /// The newest epoch that the slow lane has closed.
    pub slow_epoch: AtomicU64,
    /// Bytes that wait for the offline store.
    pub offline_backlog_bytes: AtomicU64,
    /// The newest epoch that all sinks have made durable.
    pub durable_epoch: AtomicU64,
    /// The newest epoch that is decided, in a live run: those of a bounded one are decided many at a time.
    pub decided_epoch: AtomicU64,
    /// Whether the storage refuses checkpoints for now.
    pub refused: AtomicBool,
    /// Epochs that a lane or the sinks may be behind.
    epochs_behind_max: AtomicU64,
    /// Whether the process has more memory than it should.
    pub memory_shut: AtomicBool,
    /// Something failed for good: stop taking records, give up.
    pub failed: AtomicBool,
}

/// Rows between workers before sources are held.
pub const ROWS_IN_FLIGHT_MAX: i64 = 65_536;
/// Bytes waiting for the offline store before sources are held.
const OFFLINE_BACKLOG_BYTES_MAX: u64 = 256 << 20;
/// Epochs that a lane or the sinks may always be behind before sources are held.
const EPOCHS_BEHIND_MIN: u64 = 4;
/// Time that a lane or the sinks may be behind before sources are held: a commit that takes a while is no reason to stop.
const BEHIND_MILLIS_MAX: u64 = 3_000;

impl Gates {
    /// Open gates, for epochs of `epoch_millis`.
    pub fn new(epoch_millis: i64) -> Gates {
        let epochs = BEHIND_MILLIS_MAX / epoch_millis.max(1) as u64;
        Gates { epochs_behind_max: AtomicU64::new(epochs.max(EPOCHS_BEHIND_MIN)), ..Gates::default() }
    }

    /// Rows on their way from one worker to another, in all processes.
    pub fn rows_between_workers(&self) -> i64 {
        self.rows_in_flight.load(Ordering::Relaxed) + self.rows_elsewhere.load(Ordering::Relaxed)
    }

    /// Whether a source in `epoch` must wait.
    pub fn held(&self, epoch: u64) -> bool {
        self.each(epoch).iter().any(|(_, shut)| *shut)
    }

    /// Whether this process has a reason of its own to hold sources in `epoch`: the others hold theirs as well then.
    pub fn held_here(&self, epoch: u64) -> bool {
        self.each(epoch).iter().any(|(gate, shut)| *shut && *gate != "process")
    }

    /// The gates by name, and whether each holds a source in `epoch`.
    pub fn each(&self, epoch: u64) -> [(&'static str, bool); 8] {
        let behind_max = self.epochs_behind_max.load(Ordering::Relaxed);
        let behind = |newest: &AtomicU64| newest.load(Ordering::Relaxed) + behind_max < epoch;
        [
            ("sink", self.stalled_sinks.load(Ordering::Relaxed) > 0),
            ("exchange", self.rows_between_workers() > ROWS_IN_FLIGHT_MAX),
            ("process", self.held_elsewhere.load(Ordering::Relaxed)),
            ("slow_lane", behind(&self.slow_epoch)),
            ("epoch", behind(&self.durable_epoch) || behind(&self.decided_epoch)),
            ("checkpoint", self.refused.load(Ordering::Relaxed)),
            ("offline", self.offline_backlog_bytes.load(Ordering::Relaxed) > OFFLINE_BACKLOG_BYTES_MAX),
            ("memory", self.memory_shut.load(Ordering::Relaxed)),
        ]
    }
}

/// The newest epoch that each writer has made durable, and with it the newest that all have.
#[derive(Debug)]
pub struct Durable {
    writers: Vec<WriterStanding>,
}

#[derive(Debug)]
struct WriterStanding {
    /// The newest durable epoch.
    epoch: AtomicU64,
    /// Whether it is in another process, and nobody tells this one about it.
    elsewhere: bool,
    /// Whether the writer waits for an epoch's decision, and the decision not for the writer.
    commits_after_decision: bool,
    /// How much the sink held at the end of each durable epoch that no checkpoint has asked for yet.
    positions: Mutex<BTreeMap<u64, u64>>,
}

/// How a writer (of a sink on a worker) stands before it is opened.
#[derive(Debug, Clone, Copy)]
pub struct Unopened {
    /// The newest epoch that is known to be durable. What was decided after it may be in the checkpoint only.
    pub epoch: u64,
    /// Whether it is in another process, and nobody tells this one about it.
    pub elsewhere: bool,
    /// Whether it commits an epoch after the decision, and does not make it durable before.
    pub commits_after_decision: bool,
}

impl Durable {
    /// For writers (sinks x workers) that are yet to be opened.
    pub fn new(writers: impl IntoIterator<Item = Unopened>) -> Self {
        let standing = |Unopened { epoch, elsewhere, commits_after_decision }| WriterStanding {
            epoch: AtomicU64::new(epoch),
            elsewhere,
            commits_after_decision,
            positions: Mutex::default(),
        };
        Durable { writers: writers.into_iter().map(standing).collect() }
    }
    /// The newest durable epoch of each writer of this process, by its number.
    pub fn here(&self) -> Vec<(usize, u64)> {
        let here = self.writers.iter().enumerate().filter(|(_, writer)| !writer.elsewhere);
        here.map(|(number, writer)| (number, writer.epoch.load(Ordering::Acquire))).collect()
    }
    /// Writer `writer` has made everything up to `epoch` durable, and held so much at the ends of these epochs.
    pub fn set(&self, writer: usize, epoch: u64, positions: Vec<(u64, u64)>) {
        let writer = &self.writers[writer];
        writer.positions.lock().expect("no thread panics with the lock").extend(positions);
        writer.epoch.fetch_max(epoch, Ordering::AcqRel);
    }
    /// The newest epoch that writer `writer` has made durable.
    pub fn of(&self, writer: usize) -> u64 {
        self.writers[writer].epoch.load(Ordering::Acquire)
    }
    /// How much writer `writer` held at the end of `epoch`, which is durable; forgets what was before.
    pub fn position(&self, writer: usize, epoch: u64) -> Option<u64> {
        let mut positions = self.writers[writer].positions.lock().expect("no thread panics with the lock");
        let later = positions.split_off(&(epoch + 1));
        let newest = std::mem::replace(&mut *positions, later).pop_last();
        newest.map(|(_, position)| position)
    }
    /// The newest epoch that all writers have made durable; `None` without writers.
    pub fn epoch(&self) -> Option<u64> {
        let here = self.writers.iter().filter(|writer| !writer.elsewhere);
        here.map(|writer| writer.epoch.load(Ordering::Acquire)).min()
    }
    /// The newest epoch that all writers have made durable whose word a decision waits for; `None` without such writers.
    pub fn staged(&self) -> Option<u64> {
        let before = self.writers.iter().filter(|writer| !writer.commits_after_decision);
        before.map(|writer| writer.epoch.load(Ordering::Acquire)).min()
    }
}

/// Next offset of each partition (by number), as a worker has taken them.
pub type Taken = BTreeMap<u32, i64>;

/// The end of a run. An input (a source on a worker) that has no more rows goes on closing epochs until no input has any:
/// so everything in the dataflow closes the same epochs, and a file that ends beside a topic holds nobody back.
///
/// Then each input rests: it says which epoch it has open and cuts no more. The last epoch is the newest of these, so nobody has
/// gone past it, and all close it and none after it. (An epoch that only some have closed would never be decided, and its writers
/// would wait for that.)
#[derive(Debug)]
pub struct Ending {
    /// Inputs that may still give rows.
    running: AtomicUsize,
    /// Inputs that do not rest yet.
    restless: AtomicUsize,
    /// The newest epoch that an input had open when it came to rest.
    newest: AtomicU64,
    /// What another process finds out, if this one is told.
    told: Option<Told>,
}

/// What a process is told about the end.
#[derive(Debug)]
struct Told {
    exhausted: AtomicBool,
    /// [`UNKNOWN`] before it is told.
    last: AtomicU64,
}

/// A last epoch that is not known yet.
const UNKNOWN: u64 = u64::MAX;

impl Ending {
    /// For a run with so many inputs that goes on after `epoch`.
    pub fn new(inputs: usize, epoch: u64) -> Ending {
        let (running, restless) = (AtomicUsize::new(inputs), AtomicUsize::new(inputs));
        Ending { running, restless, newest: AtomicU64::new(epoch), told: None }
    }

    /// For a member of a job of several processes: it is told when the run ends.
    pub fn following(inputs: usize, epoch: u64) -> Ending {
        let told = Told { exhausted: AtomicBool::new(false), last: AtomicU64::new(UNKNOWN) };
        Ending { told: Some(told), ..Ending::new(inputs, epoch) }
    }

    /// An input gives no rows any more.
    pub fn end(&self) {
        self.running.fetch_sub(1, Ordering::AcqRel);
    }

    /// Whether no input gives rows any more: all come to rest.
    pub fn exhausted(&self) -> bool {
        self.told.as_ref().map_or_else(|| self.exhausted_here(), |told| told.exhausted.load(Ordering::Acquire))
    }

    /// An input rests in `epoch`.
    pub fn rest(&self, epoch: u64) {
        self.newest.fetch_max(epoch, Ordering::AcqRel);
        self.restless.fetch_sub(1, Ordering::AcqRel);
    }

    /// The last epoch of the run, once it is known.
    pub fn last_epoch(&self) -> Option<u64> {
        let Some(told) = &self.told else { return self.rested_here() };
        Some(told.last.load(Ordering::Acquire)).filter(|last| *last != UNKNOWN)
    }

    /// Whether no input of this process gives rows any more.
    pub fn exhausted_here(&self) -> bool {
        self.running.load(Ordering::Acquire) == 0
    }

    /// The newest epoch that an input of this process had open when all of them had come to rest.
    pub fn rested_here(&self) -> Option<u64> {
        (self.restless.load(Ordering::Acquire) == 0).then(|| self.newest.load(Ordering::Acquire))
    }

    /// What the process that finds out says.
    pub fn tell(&self, exhausted: bool, last: Option<u64>) {
        if let Some(told) = &self.told {
            told.exhausted.store(exhausted, Ordering::Release);
            told.last.store(last.unwrap_or(UNKNOWN), Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_worker_is_told_the_watermark_of_its_own_epoch() {
        let watermarks = Watermarks::live(1, 2);
        for (epoch, [first, second]) in [(1, [10, 20]), (2, [30, 25]), (3, [20, 20])] {
            watermarks.publish(epoch, 0, first);
            watermarks.publish(epoch, 0, second);
        }
        assert_eq!([1, 2, 3].map(|epoch| watermarks.at(epoch)), [10, 25, 25]);
        assert_eq!(watermarks.at(1), 10);
        watermarks.publish(4, 0, 99);
        assert_eq!(watermarks.at(4), 25, "an epoch that an input has not closed yet");
        watermarks.publish(4, 0, 98);
        assert_eq!(watermarks.at(4), 98, "now it has");
        assert_eq!(watermarks.at(4 + 2 * EPOCHS_KEPT), 98, "long after");
        let watermarks = Watermarks::live(1, 2);
        watermarks.publish(5, 0, NO_SAY);
        watermarks.publish(5, 0, 40);
        assert_eq!(watermarks.at(5), 40, "an input without partitions holds nobody back");
        watermarks.publish(6, 0, NO_SAY);
        watermarks.publish(6, 0, NO_SAY);
        assert_eq!(watermarks.at(6), 40);
        assert_eq!(watermarks.complete_after(4), [(5, vec![40]), (6, vec![NO_SAY])]);
    }

    #[test]
    fn each_source_has_a_watermark_and_the_job_the_least() {
        let watermarks = Watermarks::live(2, 2);
        let publish = |epoch, of_first: [EventTime; 2], of_second: [EventTime; 2]| {
            of_first.into_iter().for_each(|watermark| watermarks.publish(epoch, 0, watermark));
            of_second.into_iter().for_each(|watermark| watermarks.publish(epoch, 1, watermark));
        };
        let known = |epoch| (watermarks.at(epoch), watermarks.of(0, epoch), watermarks.of(1, epoch));
        publish(1, [10, 20], [5, NO_SAY]);
        assert_eq!(known(1), (5, 10, 5));
        publish(2, [50, 40], [NO_SAY, NO_SAY]);
        assert_eq!(known(2), (40, 40, 5), "the other has no say, and is where it was");
        publish(3, [60, 60], [7, NO_SAY]);
        assert_eq!(known(3), (40, 60, 7), "it is back, and behind");
        assert_eq!(known(3 + 2 * EPOCHS_KEPT), (40, 60, 7), "long after");
    }

    #[test]
    fn a_member_has_the_watermarks_that_it_was_told() {
        let member = Watermarks::following(1, 1);
        member.publish(1, 0, 50);
        let said = vec![(1, vec![50])];
        assert_eq!((member.complete_after(0), member.at(1)), (said, EventTime::MIN), "others may be behind");
        member.tell(&[(1, vec![20]), (2, vec![NO_SAY])]);
        assert_eq!([1, 2, 3].map(|epoch| member.at(epoch)), [20; 3]);
        member.tell(&[(3, vec![30])]);
        assert_eq!(member.of(0, 3), 30);
        assert_eq!([2, 3, 4 + 2 * EPOCHS_KEPT].map(|epoch| member.at(epoch)), [20, 30, 30]);
    }

    #[test]
    fn a_run_ends_with_an_epoch_that_nobody_has_gone_past() {
        let ending = Ending::new(2, 5);
        ending.end();
        assert!(!ending.exhausted());
        ending.end();
        // The first went on with the clock meanwhile.
        assert!(ending.exhausted() && ending.last_epoch().is_none());
        ending.rest(9);
        assert_eq!(ending.last_epoch(), None, "the other may have come further");
        ending.rest(11);
        assert_eq!(ending.last_epoch(), Some(11));
        let member = Ending::following(1, 5);
        member.end();
        assert!(member.exhausted_here() && !member.exhausted());
        member.tell(true, None);
        assert!(member.exhausted());
        member.rest(7);
        assert_eq!((member.rested_here(), member.last_epoch()), (Some(7), None));
        member.tell(true, Some(11));
        assert_eq!(member.last_epoch(), Some(11));
    }
}
