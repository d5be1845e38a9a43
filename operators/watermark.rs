//! Watermarks of one source on one worker: how far event time has come, partition by partition.
//!
//! A partition's watermark is its newest event time less the allowed lateness; the source's is the least over the
//! partitions that are not idle. It never goes back, and rows behind their partition's watermark are late.

use std::collections::BTreeMap;

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
/// assert_eq!(watermarks.watermark(), 940_000);
/// watermarks.idle(0);
/// assert_eq!(watermarks.watermark(), 1_940_000);
/// watermarks.seen(0, 1_000_100); // awake again; the watermark does not go back
/// assert_eq!(watermarks.watermark(), 1_940_000);
/// ```
#[derive(Debug, Clone)]
pub struct Watermarks {
    stage: std::sync::Arc<str>,
    lateness: i64,
    late: Late,
    partitions: BTreeMap<u32, Partition>,
    watermark: EventTime,
    late_kept: u64,
}

#[derive(Debug, Clone, Copy)]
struct Partition {
    newest: EventTime,
    idle: bool,
}

impl Watermarks {
    /// Nothing seen yet. `stage` names the source in rejects; `lateness` is in milliseconds.
    pub fn new(stage: &str, lateness: i64, late: Late) -> Self {
        let partitions = BTreeMap::new();
        Watermarks { stage: stage.into(), lateness, late, partitions, watermark: EventTime::MIN, late_kept: 0 }
    }

    /// The source's watermark: no row at or before it is expected. `EventTime::MIN` before the first row.
    pub fn watermark(&mut self) -> EventTime {
        let active = self.partitions.values().filter(|partition| !partition.idle);
        if let Some(oldest) = active.map(|partition| partition.newest).min() {
            self.watermark = self.watermark.max(oldest.saturating_sub(self.lateness));
        }
        self.watermark
    }

    /// The newest event time of each partition that had one: what a checkpoint keeps.
    pub fn newest(&self) -> impl Iterator<Item = (u32, EventTime)> {
        self.partitions.iter().map(|(number, partition)| (*number, partition.newest))
    }

    /// An event of `partition` happened at `event_time`.
    pub fn seen(&mut self, partition: u32, event_time: EventTime) {
        let entry = self.partitions.entry(partition).or_insert(Partition { newest: event_time, idle: false });
        entry.newest = entry.newest.max(event_time);
        entry.idle = false;
    }

    /// `partition` has no events: it no longer holds the watermark back.
    pub fn idle(&mut self, partition: u32) {
        if let Some(partition) = self.partitions.get_mut(&partition) {
            partition.idle = true;
        }
    }

    /// Rows that were late and kept, so far.
    pub fn late_kept(&self) -> u64 {
        self.late_kept
    }

    /// Takes note of a batch's event times and gives the rows that go on.
    pub fn observe(&mut self, batch: Batch, out: &mut Outputs) -> Option<Batch> {
        let late: Vec<bool> = batch.rows.iter().map(|row| self.note(row)).collect();
        let count = late.iter().filter(|late| **late).count();
        if count == 0 {
            return Some(batch);
        }
        match self.late {
            Late::Keep => {
                self.late_kept += count as u64;
                return Some(batch);
            }
            Late::Drop => out.late += count as u64,
            Late::Reject => {
                for (i, row) in batch.rows.iter().enumerate().filter(|(i, _)| late[*i]) {
                    let payload = batch.raw.as_ref().map(|raw| raw.value(i).to_vec()).unwrap_or_default();
                    let detail =
                        format!("it is more than {} ms behind the newest event of its partition", self.lateness);
                    out.rejects.push(Reject {
                        stage: self.stage.clone(),
                        reason: Reason::Late,
                        detail,
                        payload,
                        row: *row,
                    });
                }
            }
        }
        let on_time: Vec<u32> = (0..batch.len() as u32).filter(|i| !late[*i as usize]).collect();
        let batch = batch.take(&on_time).expect("the indices are rows of this batch");
        (!batch.is_empty()).then_some(batch)
    }

    /// Notes a row; true when it is late.
    fn note(&mut self, row: &Row) -> bool {
        let known = self.partitions.get(&row.partition);
        let late = known.is_some_and(|partition| row.event_time < partition.newest.saturating_sub(self.lateness));
        self.seen(row.partition, row.event_time);
        late
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{Int64Array, RecordBatch};

    use super::*;

    fn batch(times: &[EventTime]) -> Batch {
        let column = Arc::new(Int64Array::from(times.to_vec()));
        let records = RecordBatch::try_from_iter([("n", column as _)]).expect("one column");
        let row = |(i, time): (usize, &EventTime)| Row {
            source: 0,
            partition: 3,
            offset: i as i64,
            event_time: *time,
            arrived_micros: 0,
        };
        Batch::new(records, times.iter().enumerate().map(row).collect())
    }

    #[test]
    fn late_rows_go_where_they_should() {
        for (late, rows, dropped, rejected, kept) in
            [(Late::Keep, 4, 0, 0, 1), (Late::Drop, 3, 1, 0, 0), (Late::Reject, 3, 0, 1, 0)]
        {
            let (mut watermarks, mut out) = (Watermarks::new("s", 100, late), Outputs::new(1));
            let given = watermarks.observe(batch(&[1_000, 2_000, 1_899, 1_900]), &mut out);
            assert_eq!(given.map(|batch| batch.len()), Some(rows));
            assert_eq!((out.late, out.rejects.len() as u64, watermarks.late_kept()), (dropped, rejected, kept));
        }
    }

    #[test]
    fn the_watermark_never_goes_back() {
        let mut watermarks = Watermarks::new("s", 10, Late::Keep);
        assert_eq!(watermarks.watermark(), EventTime::MIN);
        watermarks.seen(0, 100);
        assert_eq!(watermarks.watermark(), 90);
        watermarks.seen(1, 50);
        assert_eq!(watermarks.watermark(), 90);
        watermarks.seen(1, 300);
        watermarks.seen(0, 200);
        assert_eq!(watermarks.watermark(), 190);
    }
}
