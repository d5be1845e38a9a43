//! What the workers of a process share: watermarks by epoch, the gates that hold sources back, the durable epoch, and the
//! end of the run.

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
    inputs: usize,
    epochs: Mutex<Epochs>,
}

#[derive(Debug)]
struct Epochs {
    /// What inputs have said, by epoch.
    said: BTreeMap<u64, Vec<EventTime>>,
    /// The greatest watermark of the epochs that are forgotten.
    forgotten: EventTime,
}

/// What an input says that has no partitions to speak of: it holds nobody back.
pub const NO_SAY: EventTime = EventTime::MAX;

/// Epochs that are remembered: more than workers can be apart.
const EPOCHS_KEPT: u64 = 64;

impl Watermarks {
    /// Of a live run with `inputs` inputs (sources x workers).
    pub fn live(inputs: usize) -> Self {
        let epochs = Mutex::new(Epochs { said: BTreeMap::new(), forgotten: EventTime::MIN });
        Watermarks { cuts: None, inputs, epochs }
    }

    /// Of a bounded run whose reader notes its cuts in `cuts`.
    pub fn bounded(cuts: Arc<Cuts>) -> Self {
        Watermarks { cuts: Some(cuts), ..Watermarks::live(0) }
    }

    /// The input will give no event at or before `watermark` after `epoch`.
    pub fn publish(&self, epoch: u64, watermark: EventTime) {
        if self.cuts.is_none() {
            let mut epochs = self.epochs.lock().expect("no thread panics with the lock");
            epochs.said.entry(epoch).or_default().push(watermark);
        }
    }

    /// The watermark at the end of `epoch`, never behind that of an earlier epoch. An epoch that some input has not closed
    /// has the one before it. What later epochs have does not count: a worker that is behind is not told what a faster
    /// one knows.
    pub fn at(&self, epoch: u64) -> EventTime {
        if let Some(cuts) = &self.cuts {
            return cuts.watermark(epoch).unwrap_or(EventTime::MIN);
        }
        let mut epochs = self.epochs.lock().expect("no thread panics with the lock");
        while epochs.said.first_key_value().is_some_and(|(old, _)| *old + EPOCHS_KEPT < epoch) {
            let said = epochs.said.pop_first().and_then(|(_, said)| self.least(&said));
            epochs.forgotten = epochs.forgotten.max(said.unwrap_or(EventTime::MIN));
        }
        let kept = epochs.said.range(..=epoch).filter_map(|(_, said)| self.least(said)).max();
        kept.unwrap_or(EventTime::MIN).max(epochs.forgotten)
    }

    /// The least of what the inputs said, if all have.
    fn least(&self, said: &[EventTime]) -> Option<EventTime> {
        let least = Some(said).filter(|said| said.len() == self.inputs)?.iter().min().copied();
        least.filter(|least| *least != NO_SAY)
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
    /// The newest epoch that the slow lane has closed.
    pub slow_epoch: AtomicU64,
    /// Bytes that wait for the offline store.
    pub offline_backlog_bytes: AtomicU64,
    /// The newest epoch that all sinks have made durable.
    pub durable_epoch: AtomicU64,
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

    /// Whether a source in `epoch` must wait.
    pub fn held(&self, epoch: u64) -> bool {
        self.each(epoch).iter().any(|(_, shut)| *shut)
    }

    /// The gates by name, and whether each holds a source in `epoch`.
    pub fn each(&self, epoch: u64) -> [(&'static str, bool); 6] {
        let behind_max = self.epochs_behind_max.load(Ordering::Relaxed);
        let behind = |newest: &AtomicU64| newest.load(Ordering::Relaxed) + behind_max < epoch;
        [
            ("sink", self.stalled_sinks.load(Ordering::Relaxed) > 0),
            ("exchange", self.rows_in_flight.load(Ordering::Relaxed) > ROWS_IN_FLIGHT_MAX),
            ("slow_lane", behind(&self.slow_epoch)),
            ("epoch", behind(&self.durable_epoch)),
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
    /// Whether the writer waits for an epoch's decision, and the decision not for the writer.
    commits_after_decision: bool,
    /// How much the sink held at the end of each durable epoch that no checkpoint has asked for yet.
    positions: Mutex<BTreeMap<u64, u64>>,
}

impl Durable {
    /// For writers (sinks x workers) of which each commits after the decision of an epoch or makes durable before it; all
    /// are durable up to `epoch`.
    pub fn new(commit_after_decision: impl IntoIterator<Item = bool>, epoch: u64) -> Self {
        let standing = |commits_after_decision| WriterStanding {
            epoch: AtomicU64::new(epoch),
            commits_after_decision,
            positions: Mutex::default(),
        };
        Durable { writers: commit_after_decision.into_iter().map(standing).collect() }
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
        self.writers.iter().map(|writer| writer.epoch.load(Ordering::Acquire)).min()
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
#[derive(Debug)]
pub struct Ending {
    /// Inputs that may still give rows.
    running: AtomicUsize,
    /// The newest epoch in which an input ended.
    newest: AtomicU64,
}

impl Ending {
    /// For a run with so many inputs that goes on after `epoch`.
    pub fn new(inputs: usize, epoch: u64) -> Ending {
        Ending { running: AtomicUsize::new(inputs), newest: AtomicU64::new(epoch) }
    }

    /// An input gives no rows after `epoch`.
    pub fn end(&self, epoch: u64) {
        self.newest.fetch_max(epoch, Ordering::AcqRel);
        self.running.fetch_sub(1, Ordering::AcqRel);
    }

    /// The last epoch of the run, once it is known: no input gives rows after it.
    pub fn last_epoch(&self) -> Option<u64> {
        (self.running.load(Ordering::Acquire) == 0).then(|| self.newest.load(Ordering::Acquire))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_worker_is_told_the_watermark_of_its_own_epoch() {
        let watermarks = Watermarks::live(2);
        for (epoch, [first, second]) in [(1, [10, 20]), (2, [30, 25]), (3, [20, 20])] {
            watermarks.publish(epoch, first);
            watermarks.publish(epoch, second);
        }
        assert_eq!([1, 2, 3].map(|epoch| watermarks.at(epoch)), [10, 25, 25]);
        assert_eq!(watermarks.at(1), 10);
        watermarks.publish(4, 99);
        assert_eq!(watermarks.at(4), 25, "an epoch that an input has not closed yet");
        watermarks.publish(4, 98);
        assert_eq!(watermarks.at(4), 98, "now it has");
        assert_eq!(watermarks.at(4 + 2 * EPOCHS_KEPT), 98, "long after");
        let watermarks = Watermarks::live(2);
        watermarks.publish(5, NO_SAY);
        watermarks.publish(5, 40);
        assert_eq!(watermarks.at(5), 40, "an input without partitions holds nobody back");
        watermarks.publish(6, NO_SAY);
        watermarks.publish(6, NO_SAY);
        assert_eq!(watermarks.at(6), 40);
    }
}
