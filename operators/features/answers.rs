//! Answers to reads, column by column.
//!
//! A read leaves the summaries of its key; every few reads the aggregate functions turn them into columns, one function at
//! a time over all of them. All numeric features of a batch lie in one buffer, so that a batch of one row does not pay for
//! an allocation a feature.

use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, Int64Array};
use arrow::buffer::{BooleanBuffer, Buffer, NullBuffer, ScalarBuffer};
use arrow::datatypes::DataType;

use super::aggregates::Reads;
use super::as_of::ScalarColumn;
use super::definition::{Definition, Origin};
use super::entity::Entity;
use super::summary::Summary;
use crate::batch::EventTime;

/// Reads gathered before the functions see them: few enough that their summaries stay in the first-level cache.
const READS_MAX: usize = 64;

/// The features of up to `capacity` reads.
pub struct Answers {
    capacity: usize,
    /// Reads whose aggregates are in `numbers`.
    finished: usize,
    summaries: Vec<Summary>,
    times: Vec<f64>,
    /// The aggregates, feature by feature, `capacity` numbers each; the bits of an integer for an integer feature.
    numbers: Vec<f64>,
    looked_up: Vec<ScalarColumn>,
}

impl Answers {
    /// For at most `capacity` reads.
    pub fn new(definition: &Definition, capacity: usize) -> Self {
        let aggregates = definition.features.len() - definition.as_of.len();
        Answers {
            capacity,
            finished: 0,
            summaries: Vec::with_capacity(definition.frame.summaries * capacity.min(READS_MAX)),
            times: Vec::with_capacity(capacity.min(READS_MAX)),
            numbers: vec![0.0; aggregates * capacity],
            looked_up: definition.as_of.iter().map(|lookup| ScalarColumn::new(&lookup.data_type)).collect(),
        }
    }

    /// Answers a read at `time` from the windows of `entity`, which stand there; without an entity from nothing.
    #[inline(always)]
    pub fn push(&mut self, definition: &Definition, entity: Option<&Entity>, time: EventTime) {
        match entity {
            Some(entity) => self.summaries.extend_from_slice(entity.summaries()),
            None => self.summaries.extend(std::iter::repeat_n(Summary::EMPTY, definition.frame.summaries)),
        }
        self.times.push(time as f64);
        for ((column, lookup), n) in self.looked_up.iter_mut().zip(&definition.as_of).zip(0..) {
            column.push(entity.and_then(|entity| entity.as_of.get(n)?.get(time, lookup.age_max)));
        }
        if self.times.len() == READS_MAX {
            self.compute(definition);
        }
    }

    /// Lets the functions see the reads gathered.
    fn compute(&mut self, definition: &Definition) {
        let rows = self.finished..self.finished + self.times.len();
        for (feature, numbers) in definition.features.iter().zip(self.numbers.chunks_exact_mut(self.capacity.max(1))) {
            let Origin::Aggregate { summary, function } = feature.origin else { continue };
            let width = definition.frame.summaries;
            let out = &mut numbers[rows.clone()];
            function.fill(Reads { summaries: &self.summaries, width, summary, times: &self.times }, out);
            if feature.data_type == DataType::Int64 {
                out.iter_mut().for_each(|number| *number = f64::from_bits(*number as i64 as u64));
            }
        }
        self.finished = rows.end;
        self.summaries.clear();
        self.times.clear();
    }

    /// The columns, in the order of the features.
    ///
    /// # Panics
    /// If there were fewer reads than the capacity.
    pub fn finish(mut self, definition: &Definition) -> Vec<ArrayRef> {
        self.compute(definition);
        assert_eq!(self.finished, self.capacity, "every row was read");
        let rows = self.finished;
        let aggregates = definition.features.len() - definition.as_of.len();
        let nulls: Vec<Option<NullBuffer>> =
            (0..aggregates).map(|n| nulls(&self.numbers[n * rows..(n + 1) * rows])).collect();
        let buffer = Buffer::from_vec(self.numbers);
        let column = |(n, nulls): (usize, Option<NullBuffer>)| -> ArrayRef {
            match definition.features[n].data_type {
                DataType::Int64 => Arc::new(Int64Array::new(ScalarBuffer::new(buffer.clone(), n * rows, rows), None)),
                _ => Arc::new(Float64Array::new(ScalarBuffer::new(buffer.clone(), n * rows, rows), nulls)),
            }
        };
        let aggregates = nulls.into_iter().enumerate().map(column);
        aggregates.chain(self.looked_up.into_iter().map(ScalarColumn::finish)).collect()
    }
}

/// The nulls of a column whose nulls are NaN.
fn nulls(numbers: &[f64]) -> Option<NullBuffer> {
    let any = numbers.iter().any(|number| number.is_nan());
    any.then(|| NullBuffer::new(BooleanBuffer::collect_bool(numbers.len(), |row| !numbers[row].is_nan())))
}
