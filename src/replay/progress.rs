//! How far a bounded run has come, for a progress bar.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use millstream_operators::EventTime;

/// How far a bounded run has come. Written by the run, read by anyone.
#[derive(Debug)]
pub struct Progress {
    bytes_total: AtomicU64,
    bytes_done: AtomicU64,
    records: AtomicU64,
    event_time: AtomicI64,
}

impl Default for Progress {
    fn default() -> Self {
        Progress {
            bytes_total: AtomicU64::new(0),
            bytes_done: AtomicU64::new(0),
            records: AtomicU64::new(0),
            event_time: AtomicI64::new(EventTime::MIN),
        }
    }
}

impl Progress {
    /// Bytes of all files.
    pub fn bytes_total(&self) -> u64 {
        self.bytes_total.load(Ordering::Relaxed)
    }
    /// About how many of them have been handed over.
    pub fn bytes_done(&self) -> u64 {
        self.bytes_done.load(Ordering::Relaxed)
    }
    /// Records handed over in this run, good and bad.
    pub fn records(&self) -> u64 {
        self.records.load(Ordering::Relaxed)
    }
    /// The event time that has been reached; `None` before the first event.
    pub fn event_time(&self) -> Option<EventTime> {
        Some(self.event_time.load(Ordering::Relaxed)).filter(|time| *time != EventTime::MIN)
    }

    pub(super) fn add_bytes_total(&self, bytes: u64) {
        self.bytes_total.fetch_add(bytes, Ordering::Relaxed);
    }
    pub(super) fn handed_over(&self, records: u64, event_time: EventTime, bytes_done: u64) {
        self.records.fetch_add(records, Ordering::Relaxed);
        self.event_time.store(event_time, Ordering::Relaxed);
        self.bytes_done.store(bytes_done, Ordering::Relaxed);
    }
    pub(super) fn finish(&self) {
        self.bytes_done.store(self.bytes_total(), Ordering::Relaxed);
    }
}
