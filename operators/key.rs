//! Entity keys: one or more columns as one text, its hash, and the key group that decides the worker.
//!
//! The text joins the columns' values with `|` (a `|` or `\` inside a value is escaped by `\`), so it is also what a
//! reader of the online store writes: `JFK`, `AA|JFK`.

use arrow::array::{Array, AsArray};
use arrow::datatypes::{DataType, Int8Type, Int16Type, Int32Type, Int64Type, UInt32Type, UInt64Type};
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
        let mut text = Vec::with_capacity(32);
        let columns: Vec<&dyn Array> = self.indices.iter().map(|i| batch.records.column(*i).as_ref()).collect();
        for row in 0..batch.len() {
            text.clear();
            let mut complete = true;
            for (n, column) in columns.iter().enumerate() {
                if column.is_null(row) {
                    complete = false;
                    break;
                }
                if n > 0 {
                    text.push(b'|');
                }
                write_value(*column, row, &mut text);
            }
            each(row, complete.then_some(text.as_slice()));
        }
    }
}

/// The text of one value, as it stands in a key.
fn write_value(column: &dyn Array, row: usize, text: &mut Vec<u8>) {
    use std::io::Write;
    let integer = match column.data_type() {
        DataType::Utf8 => {
            for byte in column.as_string::<i32>().value(row).bytes() {
                if byte == b'|' || byte == b'\\' {
                    text.push(b'\\');
                }
                text.push(byte);
            }
            return;
        }
        DataType::Int64 => Some(column.as_primitive::<Int64Type>().value(row)),
        DataType::Int32 => Some(column.as_primitive::<Int32Type>().value(row) as i64),
        DataType::Int16 => Some(column.as_primitive::<Int16Type>().value(row) as i64),
        DataType::Int8 => Some(column.as_primitive::<Int8Type>().value(row) as i64),
        DataType::UInt32 => Some(column.as_primitive::<UInt32Type>().value(row) as i64),
        DataType::UInt64 => {
            write!(text, "{}", column.as_primitive::<UInt64Type>().value(row)).expect("a Vec takes every write");
            return;
        }
        _ => None,
    };
    match integer {
        Some(value) => write!(text, "{value}").expect("a Vec takes every write"),
        None => {
            if let Ok(formatter) = ArrayFormatter::try_new(column, &FormatOptions::default()) {
                write!(text, "{}", formatter.value(row)).expect("a Vec takes every write");
            }
        }
    }
}
