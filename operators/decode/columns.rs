//! The record being read, and the columns that records are gathered in.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use arrow::array::timezone::Tz;
use arrow::array::{
    ArrayRef, BooleanBuilder, Float64Builder, Int64Builder, RecordBatch, StringBuilder, TimestampMillisecondBuilder,
};
use arrow::compute::kernels::cast_utils::string_to_datetime;
use arrow::datatypes::SchemaRef;
use indexmap::IndexMap;

use super::Failure;
use crate::reject::{Reason, shortened};
use crate::schema::{ColumnType, Values};

/// A value as it was read, of the type of its column.
#[derive(Debug, Clone, PartialEq)]
enum Cell {
    Missing,
    Null,
    Bool(bool),
    /// An int64, or a timestamp in milliseconds.
    Int(i64),
    Float(f64),
    /// A part of the record's text.
    Text(Range<usize>),
}

/// One record while it is read: a cell for each declared column. Only a whole record goes into the columns.
#[derive(Debug, Clone)]
pub struct Record {
    cells: Vec<Cell>,
    text: String,
    /// The first thing that is wrong with it.
    failure: Option<Failure>,
}

/// Whole numbers beyond this are not exact as float64, and so not as numbers of many JSON writers.
pub const EXACT_MAX: f64 = 9_007_199_254_740_992.0;

impl Record {
    pub fn new(columns: usize) -> Self {
        Record { cells: vec![Cell::Missing; columns], text: String::new(), failure: None }
    }

    /// Forgets the last record.
    pub fn clear(&mut self) {
        self.cells.fill(Cell::Missing);
        self.text.clear();
        self.failure = None;
    }

    /// Notes what is wrong; only the first counts.
    pub fn fail(&mut self, reason: Reason, detail: impl FnOnce() -> String) {
        if self.failure.is_none() {
            self.failure = Some(Failure::new(reason, detail()));
        }
    }

    /// True when the column has been read before in this record.
    pub fn is_set(&self, column: usize) -> bool {
        self.cells[column] != Cell::Missing
    }

    pub fn set_null(&mut self, column: usize) {
        self.cells[column] = Cell::Null;
    }

    pub fn set_bool(&mut self, column: usize, name: &str, declared: ColumnType, value: bool) {
        match declared.values {
            Values::Bool => self.cells[column] = Cell::Bool(value),
            _ => self.wrong_type(name, declared, &value.to_string()),
        }
    }

    pub fn set_int(&mut self, column: usize, name: &str, declared: ColumnType, value: i64) {
        match declared.values {
            Values::Int64 | Values::Timestamp => self.cells[column] = Cell::Int(value),
            Values::Float64 => self.cells[column] = Cell::Float(value as f64),
            _ => self.wrong_type(name, declared, &format!("the number {value}")),
        }
    }

    pub fn set_float(&mut self, column: usize, name: &str, declared: ColumnType, value: f64) {
        match declared.values {
            Values::Float64 => self.cells[column] = Cell::Float(value),
            // `5.0` is what many writers make of the whole number 5.
            Values::Int64 | Values::Timestamp if value.fract() == 0.0 && value.abs() <= EXACT_MAX => {
                self.cells[column] = Cell::Int(value as i64);
            }
            Values::Int64 | Values::Timestamp if value.fract() == 0.0 => self.fail(Reason::OutOfRange, || {
                format!("`{name}` is {value:e}, which does not fit into {declared} exactly")
            }),
            _ => self.wrong_type(name, declared, &format!("the number {value}")),
        }
    }

    /// A text, of a format that has types.
    pub fn set_text(&mut self, column: usize, name: &str, declared: ColumnType, value: &str) {
        match declared.values {
            Values::String => self.set_string(column, value),
            Values::Timestamp => match timestamp(value) {
                Some(millis) => self.cells[column] = Cell::Int(millis),
                None => self.wrong_type(name, declared, &quoted(value)),
            },
            _ => self.wrong_type(name, declared, &quoted(value)),
        }
    }

    /// A text, of a format that has nothing but text: it is read as the column's type.
    pub fn parse(&mut self, column: usize, name: &str, declared: ColumnType, value: &str) {
        let cell = match declared.values {
            Values::String => return self.set_string(column, value),
            Values::Bool => match value {
                "true" | "True" | "TRUE" | "1" => Some(Cell::Bool(true)),
                "false" | "False" | "FALSE" | "0" => Some(Cell::Bool(false)),
                _ => None,
            },
            Values::Int64 => match (value.parse(), value.parse()) {
                (Ok(int), _) => Some(Cell::Int(int)),
                (_, Ok(float)) => return self.set_float(column, name, declared, float),
                _ => None,
            },
            Values::Float64 => value.parse().ok().map(Cell::Float),
            Values::Timestamp => value.parse().ok().or_else(|| timestamp(value)).map(Cell::Int),
        };
        match cell {
            Some(cell) => self.cells[column] = cell,
            None => self.wrong_type(name, declared, &quoted(value)),
        }
    }

    fn set_string(&mut self, column: usize, value: &str) {
        let start = self.text.len();
        self.text.push_str(value);
        self.cells[column] = Cell::Text(start..self.text.len());
    }

    /// Notes that a column holds `found`, which is not of its type.
    pub fn wrong_type(&mut self, name: &str, declared: ColumnType, found: &str) {
        let declared = ColumnType { optional: false, ..declared };
        self.fail(Reason::WrongType, || format!("`{name}` is {found}, not {declared}"));
    }

    /// Says what is wrong with the record, now that it has been read to its end.
    pub fn complete(&mut self, columns: &IndexMap<String, ColumnType>) -> Result<(), Failure> {
        if let Some(failure) = self.failure.take() {
            return Err(failure);
        }
        for (cell, (name, declared)) in self.cells.iter().zip(columns) {
            if !declared.optional && matches!(cell, Cell::Missing | Cell::Null) {
                let what = if *cell == Cell::Null { "null" } else { "missing" };
                return Err(Failure::new(Reason::MissingField, format!("`{name}` is {what}; it is not optional")));
            }
        }
        Ok(())
    }
}

fn quoted(value: &str) -> String {
    format!("the text \"{}\"", shortened(value))
}

/// Milliseconds since 1970 of an RFC 3339 text. A text without an offset is UTC; a date alone is its midnight.
fn timestamp(text: &str) -> Option<i64> {
    static UTC: OnceLock<Option<Tz>> = OnceLock::new();
    let utc = UTC.get_or_init(|| "+00:00".parse().ok()).as_ref()?;
    string_to_datetime(utc, text).ok().map(|time| time.timestamp_millis())
}

/// The columns of a batch while it is read.
pub struct Columns(Vec<Column>);

enum Column {
    Bool(BooleanBuilder),
    Int(Int64Builder),
    Float(Float64Builder),
    Text(StringBuilder),
    Timestamp(TimestampMillisecondBuilder),
}

/// Bytes of text to make room for in a row; more grows the column.
const TEXT_SIZE_USUAL: usize = 12;

impl Columns {
    /// Empty columns with room for `rows`.
    pub fn new(columns: &IndexMap<String, ColumnType>, rows: usize) -> Self {
        let column = |declared: &ColumnType| match declared.values {
            Values::Bool => Column::Bool(BooleanBuilder::with_capacity(rows)),
            Values::Int64 => Column::Int(Int64Builder::with_capacity(rows)),
            Values::Float64 => Column::Float(Float64Builder::with_capacity(rows)),
            Values::String => Column::Text(StringBuilder::with_capacity(rows, rows * TEXT_SIZE_USUAL)),
            Values::Timestamp => {
                Column::Timestamp(TimestampMillisecondBuilder::with_capacity(rows).with_data_type(declared.data_type()))
            }
        };
        Columns(columns.values().map(column).collect())
    }

    /// Adds a record that is complete.
    pub fn push(&mut self, record: &Record) {
        for (column, cell) in self.0.iter_mut().zip(&record.cells) {
            match (column, cell) {
                (Column::Bool(column), Cell::Bool(value)) => column.append_value(*value),
                (Column::Int(column), Cell::Int(value)) => column.append_value(*value),
                (Column::Float(column), Cell::Float(value)) => column.append_value(*value),
                (Column::Text(column), Cell::Text(range)) => column.append_value(&record.text[range.clone()]),
                (Column::Timestamp(column), Cell::Int(value)) => column.append_value(*value),
                (Column::Bool(column), _) => column.append_null(),
                (Column::Int(column), _) => column.append_null(),
                (Column::Float(column), _) => column.append_null(),
                (Column::Text(column), _) => column.append_null(),
                (Column::Timestamp(column), _) => column.append_null(),
            }
        }
    }

    /// The columns as records of `schema`, which declares them.
    pub fn finish(self, schema: &SchemaRef) -> RecordBatch {
        let array = |column: Column| -> ArrayRef {
            match column {
                Column::Bool(mut column) => Arc::new(column.finish()),
                Column::Int(mut column) => Arc::new(column.finish()),
                Column::Float(mut column) => Arc::new(column.finish()),
                Column::Text(mut column) => Arc::new(column.finish()),
                Column::Timestamp(mut column) => Arc::new(column.finish()),
            }
        };
        let arrays = self.0.into_iter().map(array).collect();
        RecordBatch::try_new(schema.clone(), arrays).expect("the builders follow the schema")
    }
}
