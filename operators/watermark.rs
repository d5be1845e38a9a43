//! Watermarks of one source on one worker: how far event time has come, partition by partition.
//!
//! ```text
//! partition 0   ──●──●───────●─┤ newest ── lateness ──▶ its watermark ─┐
//! partition 1   ─●───●─┤ newest ── lateness ──▶ its watermark ─────────┴─ least ─▶ the source's watermark
//! partition 2   ─●─┤ idle: does not count
//! ```
//!
//! A partition's watermark is the last time before its newest event less the allowed lateness; the source's is the least
//! over the partitions that are active. It never goes back. A row at or before its partition's watermark is late: that
//! depends on the partition's own rows alone, not on how partitions happen to be interleaved. Only a partition that was
//! idle is held to the source's watermark, which went on without it, until it has caught up.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::batch::{Batch, EventTime, Row};
use crate::operator::Outputs;
use crate::reject::{Reason, Reject};

/// What happens to a late row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Late {
    /// It goes on, and is counted.
    Keep,
    /// It is dropped, and counted.
    Drop,
    /// It is rejected.
    Reject,
}

/// Event time as a source has seen it.
///
/// ```
/// use millstream_operators::watermark::{Late, Watermarks};
/// let mut watermarks = Watermarks::new("departures", 60_000, Late::Keep);
/// watermarks.seen(0, 1_000_000);
/// watermarks.seen(1, 2_000_000);
/// assert_eq!(watermarks.watermark(), 939_999); // a row at 940_000 is still in time
/// watermarks.idle(0);
/// assert_eq!(watermarks.watermark(), 1_939_999);
/// watermarks.seen(0, 1_000_100); // awake again; the watermark does not go back
/// assert_eq!(watermarks.watermark(), 1_939_999);
///
/// [0, 1].into_iter().for_each(|partition| watermarks.idle(partition));
/// assert!(watermarks.has_no_say());
/// watermarks.follow(3_000_000); // what others have come to meanwhile
/// assert_eq!(watermarks.watermark(), 3_000_000);
/// ```
#[derive(Debug, Clone)]
pub struct Watermarks {
    stage: Arc<str>,
    lateness: i64,
    late: Late,
    partitions: BTreeMap<u32, Partition>,
    watermark: EventTime,
    late_kept: u64,
}

#[derive(Debug, Clone, Copy)]
struct Partition {
    /// `None` before its first event.
    newest: Option<EventTime>,
    /// False while it is idle, or read by another worker.
    active: bool,
    /// True from when it is idle until its own watermark has come up to the source's.
    left_behind: bool,
}

impl Partition {
    fn new(active: bool) -> Self {
        Partition { newest: None, active, left_behind: false }
    }
}

impl Watermarks {
    /// Nothing seen yet. `stage` names the source in rejects; `lateness` is in milliseconds.
    pub fn new(stage: &str, lateness: i64, late: Late) -> Self {
        let partitions = BTreeMap::new();
        Watermarks { stage: stage.into(), lateness, late, partitions, watermark: EventTime::MIN, late_kept: 0 }
    }

    /// The source's watermark: no row at or before it is expected. `EventTime::MIN` before the first row.
    pub fn watermark(&self) -> EventTime {
        self.watermark
    }

    /// True when there is no partition on this worker that has events: then it has no say in how far time has come.
    pub fn has_no_say(&self) -> bool {
        !self.partitions.values().any(|partition| partition.active)
    }

    /// Takes note that the source has come to `watermark` on other workers while this one [has no say](Watermarks::has_no_say). A
    /// partition that wakes up is held to it, as if one worker read all of them.
    pub fn follow(&mut self, watermark: EventTime) {
        self.watermark = self.watermark.max(watermark);
    }

    /// All partitions that this worker reads are [expected](Watermarks::expect): time has come to where their events were before the
    /// stop, also of those that have no new ones.
    pub fn resume(&mut self) {
        self.go_on();
    }

    /// The newest event time of each partition that had one: what a checkpoint keeps.
    pub fn newest(&self) -> impl Iterator<Item = (u32, EventTime)> {
        self.partitions.iter().filter_map(|(number, partition)| Some((*number, partition.newest?)))
    }

    /// Takes back what [`newest`](Watermarks::newest) gave. Rows are late as before the stop, but the partition does not
    /// hold the watermark back until it is [expected](Watermarks::expect) or seen: another worker may read it now.
    pub fn restore(&mut self, partition: u32, newest: EventTime) {
        let entry = self.partitions.entry(partition).or_insert(Partition::new(false));
        entry.newest = entry.newest.max(Some(newest));
    }

    /// This worker reads `partition`: it holds the watermark back until it has an event or is idle, so that a partition
    /// whose events come a moment later does not find time gone by.
    pub fn expect(&mut self, partition: u32) {
        self.partitions.entry(partition).or_insert(Partition::new(true)).active = true;
    }

    /// An event of `partition` happened at `event_time`.
    pub fn seen(&mut self, partition: u32, event_time: EventTime) {
        self.note(partition, event_time);
        self.go_on();
    }

    /// `partition` has no events: it no longer holds the watermark back.
    pub fn idle(&mut self, partition: u32) {
        if let Some(partition) = self.partitions.get_mut(&partition) {
            (partition.active, partition.left_behind) = (false, true);
        }
        self.go_on();
    }

    /// Rows that were late and kept, so far.
    pub fn late_kept(&self) -> u64 {
        self.late_kept
    }

    /// Takes note of a batch's event times, in order, and gives the rows that go on. The events of a partition that is
    /// neither known nor expected are never late for what other partitions have done.
    pub fn observe(&mut self, batch: Batch, out: &mut Outputs) -> Option<Batch> {
        let late: Vec<u32> = (0..batch.len() as u32)
            .filter(|row| {
                let Row { partition, event_time, .. } = batch.rows[*row as usize];
                self.note(partition, event_time)
            })
            .collect();
        self.go_on();
        if late.is_empty() {
            return Some(batch);
        }
        match self.late {
            Late::Keep => {
                self.late_kept += late.len() as u64;
                return Some(batch);
            }
            Late::Drop => out.late += late.len() as u64,
            Late::Reject => {
                let detail = format!(
                    "it is more than {} ms behind the newest event of its partition, or of the source while the partition had none",
                    self.lateness
                );
                let reject =
                    |row: &u32| Reject::of_row(&self.stage, Reason::Late, detail.as_str(), &batch, *row as usize);
                out.rejects.extend(late.iter().map(reject));
            }
        }
        batch.without(&late)
    }

    /// Notes an event; true when it is late.
    fn note(&mut self, partition: u32, event_time: EventTime) -> bool {
        let entry = self.partitions.entry(partition).or_insert(Partition::new(true));
        let behind = entry.newest.is_some_and(|newest| event_time <= before(newest, self.lateness));
        let gone_by = entry.left_behind && event_time <= self.watermark;
        let newest = entry.newest.map_or(event_time, |newest| newest.max(event_time));
        entry.left_behind &= before(newest, self.lateness) < self.watermark;
        entry.newest = Some(newest);
        entry.active = true;
        behind || gone_by
    }

    /// Brings the source's watermark up to its partitions'.
    fn go_on(&mut self) {
        let active = self.partitions.values().filter(|partition| partition.active);
        // `None`, a partition without an event yet, is the least of all and holds the watermark where it is.
        if let Some(Some(oldest)) = active.map(|partition| partition.newest).min() {
            self.watermark = self.watermark.max(before(oldest, self.lateness));
        }
    }
}

/// The last time that is no longer expected when `newest` has been seen.
fn before(newest: EventTime, lateness: i64) -> EventTime {
    newest.saturating_sub(lateness).saturating_sub(1)
}

#[cfg(test)]
mod tests {
    use arrow::array::{Int64Array, RecordBatch};
    use proptest::prelude::*;

    use super::*;

    /// Rows of (partition, event time).
    fn batch(rows: &[(u32, EventTime)]) -> Batch {
        let column = Int64Array::from_iter_values(rows.iter().map(|(_, time)| *time));
        let records = RecordBatch::try_from_iter([("n", Arc::new(column) as _)]).expect("one column");
        let row = |(offset, (partition, event_time)): (usize, &(u32, EventTime))| Row {
            source: 0,
            partition: *partition,
            offset: offset as i64,
            event_time: *event_time,
            arrived_micros: 0,
        };
        Batch::new(records, rows.iter().enumerate().map(row).collect())
    }

    #[test]
    fn late_rows_go_where_they_should() {
        for (late, rows, dropped, rejected, kept) in
            [(Late::Keep, 4, 0, 0, 1), (Late::Drop, 3, 1, 0, 0), (Late::Reject, 3, 0, 1, 0)]
        {
            let (mut watermarks, mut out) = (Watermarks::new("s", 100, late), Outputs::new(1));
            let given = watermarks.observe(batch(&[(3, 1_000), (3, 2_000), (3, 1_899), (3, 1_900)]), &mut out);
            assert_eq!(given.map(|batch| batch.len()), Some(rows));
            assert_eq!((out.late, out.rejects.len() as u64, watermarks.late_kept()), (dropped, rejected, kept));
        }
    }

    #[test]
    fn a_late_row_is_rejected_with_its_columns_as_payload() {
        let (mut watermarks, mut out) = (Watermarks::new("s", 0, Late::Reject), Outputs::new(1));
        assert!(watermarks.observe(batch(&[(0, 5), (0, 4)]), &mut out).is_some());
        assert_eq!((out.rejects[0].payload.as_slice(), out.rejects[0].row.offset), (br#"{"n":4}"#.as_slice(), 1));
    }

    #[test]
    fn the_watermark_never_goes_back() {
        let mut watermarks = Watermarks::new("s", 10, Late::Keep);
        assert_eq!(watermarks.watermark(), EventTime::MIN);
        watermarks.seen(0, 100);
        assert_eq!(watermarks.watermark(), 89);
        watermarks.seen(1, 50);
        assert_eq!(watermarks.watermark(), 89);
        watermarks.seen(1, 300);
        watermarks.seen(0, 200);
        assert_eq!(watermarks.watermark(), 189);
    }

    #[test]
    fn an_expected_partition_holds_the_watermark_back_and_a_restored_one_does_not() {
        let mut watermarks = Watermarks::new("s", 0, Late::Drop);
        watermarks.restore(7, 50);
        watermarks.expect(1);
        watermarks.seen(0, 100);
        assert_eq!(watermarks.watermark(), EventTime::MIN);
        watermarks.idle(1);
        assert_eq!(watermarks.watermark(), 99);
        assert_eq!(watermarks.newest().collect::<Vec<_>>(), [(0, 100), (7, 50)]);
        let mut out = Outputs::new(1);
        assert!(watermarks.observe(batch(&[(7, 49)]), &mut out).is_none(), "late as before the stop");
        assert!(watermarks.observe(batch(&[(1, 99)]), &mut out).is_none(), "it was idle");
        assert!(watermarks.observe(batch(&[(2, 30)]), &mut out).is_some(), "nothing was known of it");
    }

    #[test]
    fn partitions_without_new_events_are_where_they_were_before_the_stop() {
        let mut watermarks = Watermarks::new("s", 10, Late::Keep);
        [(0, 100), (1, 80), (2, 5)].into_iter().for_each(|(partition, newest)| watermarks.restore(partition, newest));
        [0, 1].into_iter().for_each(|partition| watermarks.expect(partition));
        assert_eq!(watermarks.watermark(), EventTime::MIN, "there may be more of them");
        watermarks.resume();
        assert_eq!(watermarks.watermark(), 69);
        let mut watermarks = Watermarks::new("s", 10, Late::Keep);
        watermarks.restore(0, 100);
        [0, 1].into_iter().for_each(|partition| watermarks.expect(partition));
        watermarks.resume();
        assert_eq!(watermarks.watermark(), EventTime::MIN, "nothing is known of one of them");
    }

    #[test]
    fn who_has_no_say_follows_the_others_and_is_held_to_that() {
        let mut watermarks = Watermarks::new("s", 0, Late::Drop);
        assert!(watermarks.has_no_say(), "it has no partitions");
        watermarks.expect(0);
        assert!(!watermarks.has_no_say());
        watermarks.seen(0, 50);
        watermarks.idle(0);
        assert!(watermarks.has_no_say());
        watermarks.follow(200);
        let mut out = Outputs::new(1);
        assert!(watermarks.observe(batch(&[(0, 200)]), &mut out).is_none(), "time has gone by without it");
        assert!(!watermarks.has_no_say());
        assert_eq!(watermarks.watermark(), 200);
        assert!(watermarks.observe(batch(&[(0, 201)]), &mut out).is_some());
    }

    #[derive(Debug, Clone)]
    enum Step {
        Rows(Vec<(u32, EventTime)>),
        Idle(u32),
        Expect(u32),
        /// As far as others have come, if this one has no say.
        Follow(EventTime),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => prop::collection::vec((0u32..3, 0i64..200), 1..6).prop_map(Step::Rows),
            1 => (0u32..3).prop_map(Step::Idle),
            1 => (0u32..3).prop_map(Step::Expect),
            1 => (0i64..200).prop_map(Step::Follow),
        ]
    }

    proptest! {
        #[test]
        fn rows_that_go_on_are_after_the_watermark(steps in prop::collection::vec(step(), 0..30), lateness in 0i64..50) {
            let (mut watermarks, mut out) = (Watermarks::new("s", lateness, Late::Drop), Outputs::new(1));
            (0..3).for_each(|partition| watermarks.expect(partition));
            let (mut rows_in, mut given) = (0u64, 0u64);
            for step in steps {
                let before = watermarks.watermark();
                match step {
                    Step::Idle(partition) => watermarks.idle(partition),
                    Step::Expect(partition) => watermarks.expect(partition),
                    Step::Follow(time) if watermarks.has_no_say() => watermarks.follow(time),
                    Step::Follow(_) => {}
                    Step::Rows(rows) => {
                        rows_in += rows.len() as u64;
                        let on_time = watermarks.observe(batch(&rows), &mut out);
                        for row in on_time.iter().flat_map(|batch| batch.rows.iter()) {
                            given += 1;
                            prop_assert!(row.event_time > before);
                        }
                    }
                }
                prop_assert!(watermarks.watermark() >= before);
            }
            prop_assert_eq!(given + out.late, rows_in);
        }

        #[test]
        fn lateness_does_not_depend_on_how_partitions_are_interleaved(
            first in prop::collection::vec(0i64..100, 0..12),
            second in prop::collection::vec(0i64..100, 0..12),
            swap in any::<bool>(),
        ) {
            let late = |rows: Vec<(u32, EventTime)>| {
                let (mut watermarks, mut out) = (Watermarks::new("s", 10, Late::Drop), Outputs::new(1));
                rows.chunks(3).for_each(|rows| drop(watermarks.observe(batch(rows), &mut out)));
                out.late
            };
            let of = |partition: u32, times: &[EventTime]| times.iter().map(|time| (partition, *time)).collect::<Vec<_>>();
            let (a, b) = (of(0, &first), of(1, &second));
            let mixed = if swap { [b.clone(), a.clone()].concat() } else { [a.clone(), b.clone()].concat() };
            prop_assert_eq!(late(mixed), late(a) + late(b));
        }
    }
}
