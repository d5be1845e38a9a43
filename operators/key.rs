//! Entity keys: one or more columns as one text, its hash, and the key group that decides the worker.
//!
//! The text joins the columns' values with `|` (a `|` or `\` inside a value is escaped by `\`), so it is also what a
//! reader of the online store writes: `JFK`, `AA|JFK`.

use std::io::Write;

use arrow::array::{Array, AsArray, Int64Array, StringArray};
use arrow::datatypes::{DataType, Int64Type};
use arrow::util::display::{ArrayFormatter, FormatOptions};

use crate::batch::Batch;

/// Number of key groups, fixed for ever: a rescale moves whole groups, so a checkpoint can be read by any number of workers.
pub const KEY_GROUPS: usize = 256;

/// The hash of a key's bytes.
pub fn hash(key: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(key)
}

/// The key group of a hash: its top bits.
pub fn key_group(hash: u64) -> u16 {
    (hash >> 56) as u16
}

/// The worker that owns a key group among `workers`.
pub fn worker_of(key_group: u16, workers: usize) -> usize {
    key_group as usize * workers / KEY_GROUPS
}

/// The key groups that worker `worker` of `workers` owns.
///
/// ```
/// use millstream_operators::key::{groups_of, worker_of};
/// assert_eq!(groups_of(0, 3), 0..86);
/// assert!((0..256).all(|group| groups_of(worker_of(group, 3), 3).contains(&(group as usize))));
/// ```
pub fn groups_of(worker: usize, workers: usize) -> std::ops::Range<usize> {
    let first = |worker: usize| (worker * KEY_GROUPS).div_ceil(workers.max(1));
    first(worker)..first(worker + 1)
}

/// Writes the key texts of a batch, row by row.
#[derive(Debug, Clone)]
pub struct KeyColumns {
    indices: Vec<usize>,
}

impl KeyColumns {
    /// Keys made from the columns at `indices` of a batch's schema.
    pub fn new(indices: Vec<usize>) -> Self {
        KeyColumns { indices }
    }

    /// Calls `each(row, key)` for every row; `None` when a column of the key is null.
    pub fn for_each(&self, batch: &Batch, mut each: impl FnMut(usize, Option<&[u8]>)) {
        let columns: Vec<Column<'_>> = self.indices.iter().map(|i| Column::new(batch.records.column(*i))).collect();
        let mut text = Vec::with_capacity(32);
        for row in 0..batch.len() {
            // The usual key: one column whose text stands there as it is.
            if let [Column::Text(texts)] = columns.as_slice()
                && texts.is_valid(row)
                && !needs_escape(texts.value(row).as_bytes())
            {
                each(row, Some(texts.value(row).as_bytes()));
                continue;
            }
            text.clear();
            let complete = columns.iter().enumerate().all(|(n, column)| {
                if n > 0 {
                    text.push(SEPARATOR);
                }
                column.write(row, &mut text)
            });
            each(row, complete.then_some(text.as_slice()));
        }
    }

    /// True when a row of `batch` may have a null in its key.
    pub fn has_nulls(&self, batch: &Batch) -> bool {
        self.indices.iter().any(|i| batch.records.column(*i).null_count() > 0)
    }
}

const SEPARATOR: u8 = b'|';
const ESCAPE: u8 = b'\\';

fn needs_escape(text: &[u8]) -> bool {
    text.iter().any(|byte| *byte == SEPARATOR || *byte == ESCAPE)
}

/// A column of a key with its type found once a batch.
enum Column<'a> {
    Text(&'a StringArray),
    Int64(&'a Int64Array),
    Other(&'a dyn Array),
}

impl<'a> Column<'a> {
    fn new(array: &'a dyn Array) -> Self {
        match array.data_type() {
            DataType::Utf8 => Column::Text(array.as_string()),
            DataType::Int64 => Column::Int64(array.as_primitive::<Int64Type>()),
            _ => Column::Other(array),
        }
    }

    /// Appends the text of a value; false when it is null.
    fn write(&self, row: usize, text: &mut Vec<u8>) -> bool {
        match self {
            Column::Text(texts) if texts.is_valid(row) => {
                let value = texts.value(row).as_bytes();
                if !needs_escape(value) {
                    text.extend_from_slice(value);
                    return true;
                }
                for byte in value {
                    if needs_escape(&[*byte]) {
                        text.push(ESCAPE);
                    }
                    text.push(*byte);
                }
            }
            Column::Int64(column) if column.is_valid(row) => {
                write!(text, "{}", column.value(row)).expect("a Vec takes every write");
            }
            Column::Other(array) if array.is_valid(row) => {
                let Ok(formatter) = ArrayFormatter::try_new(*array, &FormatOptions::default()) else { return false };
                write!(text, "{}", formatter.value(row)).expect("a Vec takes every write");
            }
            _ => return false,
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::Row;
    use arrow::array::{ArrayRef, BooleanArray, Int16Array, RecordBatch};
    use std::sync::Arc;

    fn keys(columns: Vec<ArrayRef>) -> Vec<Option<String>> {
        let names = ["a", "b", "c", "d"];
        let records = RecordBatch::try_from_iter(names.into_iter().zip(columns.clone())).unwrap();
        let row = Row { source: 0, partition: 0, offset: 0, event_time: 0, arrived_micros: 0 };
        let batch = Batch::new(records, vec![row; columns[0].len()]);
        let mut keys = Vec::new();
        let key_columns = KeyColumns::new((0..columns.len()).collect());
        key_columns.for_each(&batch, |_, key| keys.push(key.map(|key| String::from_utf8(key.to_vec()).unwrap())));
        assert_eq!(key_columns.has_nulls(&batch), keys.contains(&None));
        keys
    }

    #[test]
    fn a_key_is_the_text_of_its_columns() {
        let text: ArrayRef = Arc::new(StringArray::from(vec![Some("AA"), None, Some("a|b\\c"), Some("")]));
        assert_eq!(keys(vec![text.clone()]), [Some("AA".into()), None, Some("a\\|b\\\\c".into()), Some("".into())]);
        let number: ArrayRef = Arc::new(Int64Array::from(vec![Some(-1), Some(2), Some(i64::MAX), None]));
        let expected = [Some("AA|-1".into()), None, Some("a\\|b\\\\c|9223372036854775807".into()), None];
        assert_eq!(keys(vec![text, number]), expected);
        let flag: ArrayRef = Arc::new(BooleanArray::from(vec![true, false]));
        let small: ArrayRef = Arc::new(Int16Array::from(vec![Some(7), None]));
        assert_eq!(keys(vec![flag, small]), [Some("true|7".into()), None]);
    }
}
