//! As-of lookups: the latest value of a column at or before a time, for columns of any scalar type.

use std::collections::VecDeque;
use std::sync::Arc;

use arrow::array::{Array, ArrayData, ArrayRef, AsArray, BooleanArray, StringArray, StringBuilder, make_array};
use arrow::buffer::{BooleanBuffer, Buffer, NullBuffer};
use arrow::datatypes::DataType;
use serde::{Deserialize, Serialize};

use crate::batch::EventTime;

/// A value of a column; its type is the column's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Scalar {
    /// The bits of a boolean, number, date or timestamp.
    Bits(u64),
    /// A text.
    Text(Box<str>),
}

/// True for the types whose values can be looked up.
pub fn is_supported(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Boolean | DataType::Utf8)
        || data_type.primitive_width().is_some_and(|width| width <= 8)
}

/// The values of a column of a [supported](is_supported) type.
#[derive(Debug)]
pub enum Scalars<'a> {
    /// Texts.
    Text(&'a StringArray),
    /// Booleans.
    Boolean(&'a BooleanArray),
    /// Numbers, dates and timestamps of `width` bytes.
    Fixed {
        /// The column's memory.
        data: ArrayData,
        /// Bytes of a value, at most 8.
        width: usize,
    },
}

impl<'a> Scalars<'a> {
    /// The values of `column`; `None` if its type is not supported.
    pub fn new(column: &'a dyn Array) -> Option<Self> {
        Some(match column.data_type() {
            DataType::Utf8 => Scalars::Text(column.as_string()),
            DataType::Boolean => Scalars::Boolean(column.as_boolean()),
            data_type if is_supported(data_type) => {
                Scalars::Fixed { data: column.to_data(), width: data_type.primitive_width()? }
            }
            _ => return None,
        })
    }

    /// The value at `row`; `None` when it is null.
    pub fn get(&self, row: usize) -> Option<Scalar> {
        match self {
            Scalars::Text(texts) => texts.is_valid(row).then(|| Scalar::Text(texts.value(row).into())),
            Scalars::Boolean(column) => column.is_valid(row).then(|| Scalar::Bits(u64::from(column.value(row)))),
            Scalars::Fixed { data, width } if data.is_valid(row) => {
                let at = (data.offset() + row) * width;
                let mut bits = [0; 8];
                bits[..*width].copy_from_slice(&data.buffers()[0].as_slice()[at..at + width]);
                Some(Scalar::Bits(u64::from_le_bytes(bits)))
            }
            Scalars::Fixed { .. } => None,
        }
    }
}

/// Builds a column of looked-up values.
#[derive(Debug)]
pub enum ScalarColumn {
    /// Of booleans, numbers, dates and timestamps, with whether each is there.
    Bits {
        /// The column's type.
        data_type: DataType,
        /// The bits of each value; 0 for null.
        bits: Vec<u64>,
        /// False for null.
        valid: Vec<bool>,
    },
    /// Of texts.
    Text(StringBuilder),
}

impl ScalarColumn {
    /// An empty column of a supported type.
    pub fn new(data_type: &DataType) -> Self {
        match data_type {
            DataType::Utf8 => ScalarColumn::Text(StringBuilder::new()),
            _ => ScalarColumn::Bits { data_type: data_type.clone(), bits: Vec::new(), valid: Vec::new() },
        }
    }

    /// Appends a value or null.
    pub fn push(&mut self, value: Option<&Scalar>) {
        match (self, value) {
            (ScalarColumn::Text(texts), Some(Scalar::Text(text))) => texts.append_value(text),
            (ScalarColumn::Text(texts), _) => texts.append_null(),
            (ScalarColumn::Bits { bits, valid, .. }, Some(Scalar::Bits(value))) => {
                bits.push(*value);
                valid.push(true);
            }
            (ScalarColumn::Bits { bits, valid, .. }, _) => {
                bits.push(0);
                valid.push(false);
            }
        }
    }

    /// The column.
    ///
    /// # Panics
    /// If the type was not a supported one.
    pub fn finish(self) -> ArrayRef {
        let (data_type, bits, valid) = match self {
            ScalarColumn::Text(mut texts) => return Arc::new(texts.finish()),
            ScalarColumn::Bits { data_type, bits, valid } => (data_type, bits, valid),
        };
        let nulls = NullBuffer::new(BooleanBuffer::from(valid));
        let values: Buffer = match data_type.primitive_width() {
            None => BooleanBuffer::collect_bool(bits.len(), |row| bits[row] == 1).into_inner(),
            // Made of whole numbers of the column's width, so that the buffer is aligned for them.
            Some(8) => Buffer::from_vec(bits.clone()),
            Some(4) => Buffer::from_vec(bits.iter().map(|bits| *bits as u32).collect::<Vec<u32>>()),
            Some(2) => Buffer::from_vec(bits.iter().map(|bits| *bits as u16).collect::<Vec<u16>>()),
            Some(_) => Buffer::from_vec(bits.iter().map(|bits| *bits as u8).collect::<Vec<u8>>()),
        };
        let data = ArrayData::builder(data_type).len(bits.len()).add_buffer(values).nulls(Some(nulls));
        make_array(data.build().expect("one value of the column's width for each row"))
    }
}

/// The values of one column for one key, in the order of event time; ties in the order they came.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct History {
    values: VecDeque<(EventTime, Scalar)>,
}

impl History {
    /// Takes a value. Values that no read after `horizon` can see are dropped: those that a later one at or before the
    /// horizon hides.
    pub fn insert(&mut self, time: EventTime, value: Scalar, horizon: EventTime) {
        let in_order = self.values.back().is_none_or(|(last, _)| *last <= time);
        let at = if in_order { self.values.len() } else { self.values.partition_point(|(other, _)| *other <= time) };
        self.values.insert(at, (time, value));
        while self.values.get(1).is_some_and(|(next, _)| *next <= horizon) {
            self.values.pop_front();
        }
    }

    /// The latest value at or before `time` that is at most `age_max` milliseconds older.
    pub fn get(&self, time: EventTime, age_max: i64) -> Option<&Scalar> {
        let (newest, value) = self.values.back()?;
        let (found, value) = if *newest <= time {
            (*newest, value)
        } else {
            let until = self.values.partition_point(|(other, _)| *other <= time);
            let (found, value) = self.values.get(until.checked_sub(1)?)?;
            (*found, value)
        };
        (time.saturating_sub(found) <= age_max).then_some(value)
    }

    /// When what a read at `time` finds will be another: the first time at which it is too old. `None` if it finds nothing.
    pub fn changes_at(&self, time: EventTime, age_max: i64) -> Option<EventTime> {
        let until = self.values.partition_point(|(other, _)| *other <= time);
        let (found, _) = self.values.get(until.checked_sub(1)?)?;
        (time.saturating_sub(*found) <= age_max).then(|| found.saturating_add(age_max).saturating_add(1))
    }

    /// Approximate bytes of memory.
    pub fn size_bytes(&self) -> usize {
        let texts = self.values.iter().map(|(_, value)| if let Scalar::Text(text) = value { text.len() } else { 0 });
        size_of::<Self>() + self.values.capacity() * size_of::<(EventTime, Scalar)>() + texts.sum::<usize>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{Date32Array, Float64Array, Int16Array, TimestampMillisecondArray};

    #[test]
    fn columns_of_every_type_come_back() {
        let columns: Vec<ArrayRef> = vec![
            Arc::new(BooleanArray::from(vec![Some(true), None, Some(false)])),
            Arc::new(Int16Array::from(vec![Some(-3), None, Some(7)])),
            Arc::new(Float64Array::from(vec![Some(-0.5), None, Some(1e300)])),
            Arc::new(Date32Array::from(vec![Some(-1), None, Some(20_000)])),
            Arc::new(
                TimestampMillisecondArray::from(vec![Some(-5), None, Some(1_700_000_000_000)]).with_timezone("UTC"),
            ),
            Arc::new(StringArray::from(vec![Some("é"), None, Some("")])),
        ];
        for column in columns {
            assert!(is_supported(column.data_type()));
            // From the middle of a larger array, as a slice of a batch is.
            let slice = column.slice(1, 2);
            let mut back = ScalarColumn::new(column.data_type());
            let values = Scalars::new(&slice).unwrap();
            (0..slice.len()).for_each(|row| back.push(values.get(row).as_ref()));
            assert_eq!(&back.finish(), &slice);
        }
        assert!(!is_supported(&DataType::Binary));
        assert!(!is_supported(&DataType::Decimal128(20, 2)));
    }

    #[test]
    fn the_latest_value_at_or_before_a_time_is_found() {
        let mut history = History::default();
        for (time, value) in [(10, 1), (30, 3), (20, 2), (30, 4)] {
            history.insert(time, Scalar::Bits(value), EventTime::MIN);
        }
        let at = |time| history.get(time, 15).cloned();
        assert_eq!(at(9), None);
        assert_eq!(at(10), Some(Scalar::Bits(1)));
        assert_eq!(at(29), Some(Scalar::Bits(2)));
        assert_eq!(at(30), Some(Scalar::Bits(4)), "of two at one time the later one that came");
        assert_eq!(at(45), Some(Scalar::Bits(4)));
        assert_eq!(at(46), None, "too old");
        let changes = |time| history.changes_at(time, 15);
        assert_eq!((changes(9), changes(30), changes(45), changes(46)), (None, Some(46), Some(46), None));
    }

    #[test]
    fn hidden_values_are_dropped() {
        let mut history = History::default();
        for time in 0..100 {
            history.insert(time, Scalar::Bits(time as u64), time - 10);
        }
        assert_eq!(history.values.len(), 11);
        assert_eq!(history.get(90, 50), Some(&Scalar::Bits(90)));
    }
}
