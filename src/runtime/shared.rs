//! What the workers of a process share: watermarks by epoch, the gates that hold sources back, and the durable epoch.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};

use millstream_operators::EventTime;

/// The watermark of each epoch: what every source on every worker said when it closed the epoch. Operators read it
/// when they close the epoch themselves, so the answer does not depend on who is faster.
#[derive(Debug)]
pub struct Watermarks {
    inputs: usize,
    epochs: Mutex<Epochs>,
}

#[derive(Debug)]
struct Epochs {
    /// What inputs have said, by epoch.
    said: BTreeMap<u64, Vec<EventTime>>,
    /// The watermark at the end of each epoch that was asked for.
    settled: BTreeMap<u64, EventTime>,
    start: EventTime,
}

/// What an input says that has no partitions to speak of: it holds nobody back.
pub const NO_SAY: EventTime = EventTime::MAX;

/// Epochs that are remembered: more than workers can be apart.
const EPOCHS_KEPT: u64 = 1_024;

impl Watermarks {
    /// For `inputs` inputs (sources x workers), going on from `start`.
    pub fn new(inputs: usize, start: EventTime) -> Self {
        let epochs = Epochs { said: BTreeMap::new(), settled: BTreeMap::new(), start };
        Watermarks { inputs, epochs: Mutex::new(epochs) }
    }

    /// The input will give no event at or before `watermark` after `epoch`.
    pub fn publish(&self, epoch: u64, watermark: EventTime) {
        let mut epochs = self.epochs.lock().expect("no thread panics with the lock");
        epochs.said.entry(epoch).or_default().push(watermark);
    }

    /// The watermark at the end of `epoch`: the least of all inputs, never behind that of an earlier epoch. An epoch
    /// that some input never closed (the end of a run) has the watermark before it. The answer is the same whenever it
    /// is asked for: a worker that is behind is not told what a faster one knows.
    pub fn at(&self, epoch: u64) -> EventTime {
        let mut epochs = self.epochs.lock().expect("no thread panics with the lock");
        if let Some(settled) = epochs.settled.get(&epoch) {
            return *settled;
        }
        let before = epochs.settled.range(..epoch).next_back().map_or(epochs.start, |(_, watermark)| *watermark);
        let complete = epochs.said.get(&epoch).filter(|said| said.len() == self.inputs);
        let least = complete.and_then(|said| said.iter().min().copied()).filter(|least| *least != NO_SAY);
        let watermark = least.map_or(before, |least| least.max(before));
        epochs.settled.insert(epoch, watermark);
        let oldest = epoch.saturating_sub(EPOCHS_KEPT);
        epochs.said = epochs.said.split_off(&oldest);
        epochs.settled = epochs.settled.split_off(&oldest);
        watermark
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
    /// Something failed for good: stop taking records, give up.
    pub failed: AtomicBool,
}

/// Rows between workers before sources are held.
const ROWS_IN_FLIGHT_MAX: i64 = 65_536;
/// Bytes waiting for the offline store before sources are held.
const OFFLINE_BACKLOG_BYTES_MAX: u64 = 256 << 20;
/// Epochs that a lane or the sinks may be behind before sources are held.
const EPOCHS_BEHIND_MAX: u64 = 4;

impl Gates {
    /// Whether a source in `epoch` must wait.
    pub fn held(&self, epoch: u64) -> bool {
        self.stalled_sinks.load(Ordering::Relaxed) > 0
            || self.rows_in_flight.load(Ordering::Relaxed) > ROWS_IN_FLIGHT_MAX
            || self.slow_epoch.load(Ordering::Relaxed) + EPOCHS_BEHIND_MAX < epoch
            || self.durable_epoch.load(Ordering::Relaxed) + EPOCHS_BEHIND_MAX < epoch
            || self.offline_backlog_bytes.load(Ordering::Relaxed) > OFFLINE_BACKLOG_BYTES_MAX
    }
}

/// The newest epoch that each writer has made durable, and with it the newest that all have.
#[derive(Debug)]
pub struct Durable {
    writers: Vec<AtomicU64>,
}

impl Durable {
    /// For `writers` writers (sinks x workers), all durable up to `epoch`.
    pub fn new(writers: usize, epoch: u64) -> Self {
        Durable { writers: (0..writers).map(|_| AtomicU64::new(epoch)).collect() }
    }
    /// Writer `writer` has made everything up to `epoch` durable.
    pub fn set(&self, writer: usize, epoch: u64) {
        self.writers[writer].fetch_max(epoch, Ordering::AcqRel);
    }
    /// The newest epoch that writer `writer` has made durable.
    pub fn of(&self, writer: usize) -> u64 {
        self.writers[writer].load(Ordering::Acquire)
    }
    /// The newest epoch that all writers have made durable; `None` without writers.
    pub fn epoch(&self) -> Option<u64> {
        self.writers.iter().map(|writer| writer.load(Ordering::Acquire)).min()
    }
}

/// Next offset of each partition (by number), as a worker has taken them.
pub type Taken = BTreeMap<u32, i64>;

/// Positions at the ends of epochs, until the epoch is durable.
#[derive(Debug, Default)]
pub struct PositionLog {
    epochs: Mutex<BTreeMap<u64, Vec<(usize, Taken)>>>,
}

impl PositionLog {
    /// What a worker has taken of source `source` at the end of `epoch`.
    pub fn publish(&self, epoch: u64, source: usize, taken: &Taken) {
        let mut epochs = self.epochs.lock().expect("no thread panics with the lock");
        epochs.entry(epoch).or_default().push((source, taken.clone()));
    }

    /// The newest positions at the end of `epoch` or before, by source; forgets what it gives.
    pub fn until(&self, epoch: u64) -> BTreeMap<usize, Taken> {
        let mut epochs = self.epochs.lock().expect("no thread panics with the lock");
        let later = epochs.split_off(&(epoch + 1));
        let done = std::mem::replace(&mut *epochs, later);
        let mut newest: BTreeMap<usize, Taken> = BTreeMap::new();
        for (source, taken) in done.into_values().flatten() {
            newest.entry(source).or_default().extend(taken);
        }
        newest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_worker_is_told_the_watermark_of_its_own_epoch() {
        let watermarks = Watermarks::new(2, 0);
        for (epoch, [first, second]) in [(1, [10, 20]), (2, [30, 25]), (3, [20, 20])] {
            watermarks.publish(epoch, first);
            watermarks.publish(epoch, second);
        }
        assert_eq!([1, 2, 3].map(|epoch| watermarks.at(epoch)), [10, 25, 25]);
        assert_eq!(watermarks.at(1), 10);
        watermarks.publish(4, 99);
        assert_eq!(watermarks.at(4), 25, "an epoch that an input never closed");
        watermarks.publish(5, NO_SAY);
        watermarks.publish(5, 40);
        assert_eq!(watermarks.at(5), 40, "an input without partitions holds nobody back");
        watermarks.publish(6, NO_SAY);
        watermarks.publish(6, NO_SAY);
        assert_eq!(watermarks.at(6), 40);
    }
}
