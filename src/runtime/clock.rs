//! The clock that cuts epochs in live runs, and the wall clock that stamps arrivals.
//!
//! All workers derive the epoch from one base, so their cuts are microseconds apart and almost no record has to be held
//! back. The base is monotonic: a step of the wall clock changes nothing.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Cuts epochs of one length from a common start.
#[derive(Debug, Clone, Copy)]
pub struct EpochClock {
    start: Instant,
    first_epoch: u64,
    length: Duration,
}

impl EpochClock {
    /// Epoch `first_epoch` begins now.
    pub fn new(first_epoch: u64, length: Duration) -> Self {
        EpochClock { start: Instant::now(), first_epoch, length: length.max(Duration::from_millis(1)) }
    }

    /// As a process has it that was told that epoch `first_epoch` began `elapsed` ago.
    pub fn running(first_epoch: u64, length: Duration, elapsed: Duration) -> Self {
        let start = Instant::now().checked_sub(elapsed).unwrap_or_else(Instant::now);
        EpochClock { start, ..EpochClock::new(first_epoch, length) }
    }

    /// How long ago the first epoch began.
    pub fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// The epoch at `now`.
    pub fn epoch(&self, now: Instant) -> u64 {
        let elapsed = now.saturating_duration_since(self.start).as_nanos() / self.length.as_nanos();
        self.first_epoch + elapsed as u64
    }

    /// When the epoch after `epoch` begins.
    pub fn end_of(&self, epoch: u64) -> Instant {
        let epochs = u32::try_from(epoch + 1 - self.first_epoch).unwrap_or(u32::MAX);
        self.start + self.length.saturating_mul(epochs)
    }
}

/// Microseconds since 1970 by the process's clock: for latency and for bounds on event time, never for decisions that a
/// replay must repeat.
pub fn now_micros() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as i64)
}
