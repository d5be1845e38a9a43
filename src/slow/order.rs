//! The order of events in the slow lane: (event time, source, partition by name, offset). Numbers of partitions are given
//! by each process as it meets them; a name is the same in every run.

use std::cmp::Ordering;
use std::sync::Arc;

use arrow::error::ArrowError;
use millstream_operators::batch::{Batch, Row};

use crate::sources::Partitions;

/// Compares events of a job, and puts rows in order.
#[derive(Debug)]
pub struct EventOrder {
    partitions: Arc<Partitions>,
    /// Names by number, as far as they were needed.
    names: Vec<(Arc<str>, i32)>,
}

impl EventOrder {
    /// For rows whose partitions are numbers of `partitions`.
    pub fn new(partitions: Arc<Partitions>) -> Self {
        EventOrder { partitions, names: Vec::new() }
    }

    /// The name of a row's partition.
    pub fn partition(&mut self, row: &Row) -> &(Arc<str>, i32) {
        self.learn(row.partition);
        &self.names[row.partition as usize]
    }

    /// The rows in order.
    ///
    /// # Errors
    /// If the batch is too large for Arrow.
    pub fn sort(&mut self, batch: &Batch) -> Result<Batch, ArrowError> {
        batch.rows.iter().map(|row| row.partition).max().into_iter().for_each(|newest| self.learn(newest));
        let mut order: Vec<u32> = (0..batch.len() as u32).collect();
        order.sort_by(|a, b| self.compare(&batch.rows[*a as usize], &batch.rows[*b as usize]));
        batch.take(&order)
    }

    /// Which of two rows that were sorted comes first.
    ///
    /// # Panics
    /// If a row's partition was never sorted or asked for.
    pub fn compare(&self, a: &Row, b: &Row) -> Ordering {
        let partitions = || match a.partition == b.partition {
            true => Ordering::Equal,
            false => self.names[a.partition as usize].cmp(&self.names[b.partition as usize]),
        };
        let times = (a.event_time, a.source).cmp(&(b.event_time, b.source));
        times.then_with(partitions).then(a.offset.cmp(&b.offset))
    }

    fn learn(&mut self, newest: u32) {
        // A number that a row bears has been given, and so have those before it.
        for number in self.names.len() as u32..=newest {
            self.names.push(self.partitions.name(number));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_are_ordered_by_name_whatever_their_numbers() {
        let row = |partition, offset| Row { source: 0, partition, offset, event_time: 5, arrived_micros: 0 };
        let in_order = |names: [&str; 2]| {
            let partitions = Arc::new(Partitions::default());
            let numbers = names.map(|name| partitions.number(name, 0));
            let at = |name: &str| numbers[names.iter().position(|n| *n == name).expect("one of the two")];
            let mut order = EventOrder::new(partitions.clone());
            let (early, late) = (row(at("a"), 9), row(at("b"), 1));
            order.partition(&late);
            order.partition(&early);
            order.compare(&early, &late)
        };
        assert_eq!(in_order(["a", "b"]), Ordering::Less);
        assert_eq!(in_order(["b", "a"]), Ordering::Less);
    }
}
