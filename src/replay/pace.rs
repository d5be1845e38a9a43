//! How fast a replay goes.

use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use millstream_operators::EventTime;
use millstream_operators::units::PerSecond;

use super::stopped;

/// How fast a replay goes. It changes neither the order nor the epochs.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum Pace {
    /// As fast as the workers take the records.
    #[default]
    Fastest,
    /// Event time passes this many times as fast as the clock. A gap that would take longer than a minute takes a minute,
    /// so that one bad stamp does not stop the show.
    Lapse(f64),
    /// So many records per second.
    Rate(PerSecond),
}

/// Records that are due within this time are handed over now: shorter waits would cost more than they are worth.
const EARLY: Duration = Duration::from_millis(2);
/// The longest time that is waited for one record.
const GAP_MAX: Duration = Duration::from_secs(60);
/// How often a wait looks whether the job stops.
const LOOK: Duration = Duration::from_millis(20);

/// Knows when the next record is due.
pub(crate) struct Pacer {
    pace: Pace,
    /// When the first record was due, and its event time.
    start: Option<(Instant, EventTime)>,
    /// Records taken.
    rows: u64,
    /// Time that was not waited.
    skipped: Duration,
}

impl Pacer {
    pub fn new(pace: Pace) -> Pacer {
        Pacer { pace, start: None, rows: 0, skipped: Duration::ZERO }
    }

    /// Counts a record that was taken.
    pub fn count(&mut self) {
        self.rows += 1;
    }

    /// Whether the next record, of event time `time`, is not due yet.
    pub fn must_wait(&mut self, time: EventTime) -> bool {
        self.pace != Pace::Fastest && self.early(time, Instant::now()) > EARLY
    }

    /// Waits until the next record, of event time `time`, is due. False when the job stops.
    pub fn wait(&mut self, time: EventTime, stop: &AtomicBool) -> bool {
        let now = Instant::now();
        let due = now + self.early(time, now);
        loop {
            let left = due.saturating_duration_since(Instant::now());
            if stopped(stop) {
                return false;
            }
            if left.is_zero() {
                return true;
            }
            std::thread::sleep(left.min(LOOK));
        }
    }

    /// How long before it is due a record of event time `time` comes at `now`.
    fn early(&mut self, time: EventTime, now: Instant) -> Duration {
        let (start, first) = *self.start.get_or_insert((now, time));
        let seconds = match self.pace {
            Pace::Fastest => return Duration::ZERO,
            Pace::Lapse(factor) => time.saturating_sub(first) as f64 / 1_000.0 / factor,
            Pace::Rate(PerSecond(rate)) => self.rows as f64 / rate,
        };
        let after = Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX).saturating_sub(self.skipped);
        let early = after.saturating_sub(now.saturating_duration_since(start));
        self.skipped = self.skipped.saturating_add(early.saturating_sub(GAP_MAX));
        early.min(GAP_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(pace: Pace, records: &[(EventTime, u64, u64)]) {
        let start = Instant::now();
        let mut pacer = Pacer::new(pace);
        for (time, now_ms, expected_ms) in records {
            let early = pacer.early(*time, start + Duration::from_millis(*now_ms));
            let early_ms = (early.as_secs_f64() * 1_000.0).round() as u64;
            assert_eq!(early_ms, *expected_ms, "{pace:?} at {now_ms} ms, event time {time}");
            pacer.count();
        }
    }

    #[test]
    fn records_are_due_by_their_pace() {
        check(Pace::Fastest, &[(0, 0, 0), (9_000_000, 0, 0)]);
        check(Pace::Lapse(10.0), &[(5_000, 0, 0), (5_000, 1, 0), (6_000, 1, 99), (7_000, 500, 0), (15_000, 500, 500)]);
        check(Pace::Rate(PerSecond(10.0)), &[(0, 0, 0), (0, 0, 100), (7, 150, 50), (8, 1000, 0)]);
    }

    #[test]
    fn a_gap_takes_a_minute_at_most() {
        let year = 365 * 86_400_000;
        // The first stamp is of 1970, the rest of 2013: a minute, and then by the clock.
        check(Pace::Lapse(1.0), &[(0, 0, 0), (43 * year, 0, 60_000), (43 * year + 50, 60_000, 50)]);
        check(Pace::Lapse(1.0), &[(0, 0, 0), (EventTime::MAX, 0, 60_000)]);
    }
}
