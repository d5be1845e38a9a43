//! The bytes of one version: the features of a key, packed.
//!
//! ```text
//! [ null bits, one a feature ][ feature 0 ][ feature 1 ] ...
//!   number, time: 8 bytes    bool: 1 byte    text: length in 4 bytes, then the text    null: nothing
//! [ until when this is so: 8 bytes, or nothing if nobody knows ]
//! ```
//! All little endian. The layout is part of the checkpoint: see `save::FORMAT`.

use arrow::array::TimestampMillisecondArray;
use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Float64Array, Int64Array, StringArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float64Type, Int64Type, Schema, TimeUnit, TimestampMillisecondType};
use arrow::error::ArrowError;
use arrow::temporal_conversions::as_datetime;
use serde_json::{Map, Number, Value};

/// The types of features, in the order of the schema.
pub(super) struct Layout {
    features: Vec<(String, Kind)>,
}

/// The types of features.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A boolean.
    Bool,
    /// A whole number.
    Int64,
    /// A number.
    Float64,
    /// A text.
    Text,
    /// A time.
    Time,
}

impl Kind {
    /// The type of a column's features; `None` if the store can't keep them.
    pub fn of(data_type: &DataType) -> Option<Kind> {
        Some(match data_type {
            DataType::Boolean => Kind::Bool,
            integer if integer.is_integer() => Kind::Int64,
            float if float.is_floating() => Kind::Float64,
            text if text.is_string() => Kind::Text,
            DataType::Timestamp(_, _) => Kind::Time,
            _ => return None,
        })
    }

    /// Bytes of the packed value that `bytes` begin with; `None` if it is cut.
    pub(super) fn width(self, bytes: &[u8]) -> Option<usize> {
        Some(match self {
            Kind::Bool => 1,
            Kind::Int64 | Kind::Float64 | Kind::Time => 8,
            Kind::Text => 4 + u32::from_le_bytes(bytes.get(..4)?.try_into().ok()?) as usize,
        })
    }

    fn data_type(self) -> DataType {
        match self {
            Kind::Bool => DataType::Boolean,
            Kind::Int64 => DataType::Int64,
            Kind::Float64 => DataType::Float64,
            Kind::Text => DataType::Utf8,
            Kind::Time => DataType::Timestamp(TimeUnit::Millisecond, None),
        }
    }
}

/// The columns of a batch, ready to be packed row by row.
pub(super) struct Columns {
    features: Vec<Column>,
    /// Until when each row is so; of a group that says it.
    valid_until: Option<Int64Array>,
}

/// Never: the end of the time of a row to which nothing more happens.
const FOR_EVER: i64 = i64::MAX;
/// Bytes of the time until which a row is so.
pub(super) const UNTIL_BYTES: usize = size_of::<i64>();

/// A version's features by name, and until when they are so: `None` if nobody knows.
pub(super) type Unpacked = (Map<String, Value>, Option<i64>);

enum Column {
    Bool(BooleanArray),
    Int64(Int64Array),
    Float64(Float64Array),
    Text(StringArray),
    Time(TimestampMillisecondArray),
}

impl Layout {
    /// # Errors
    /// If a feature is of another type than boolean, number, text or timestamp.
    pub fn new(features: &Schema) -> Result<Self, ArrowError> {
        let feature = |field: &arrow::datatypes::FieldRef| {
            let kind = Kind::of(field.data_type()).ok_or_else(|| {
                let (name, found) = (field.name(), field.data_type());
                ArrowError::SchemaError(format!(
                    "the online store keeps numbers, text and times, but `{name}` is {found}"
                ))
            })?;
            Ok((field.name().clone(), kind))
        };
        Ok(Layout { features: features.fields().iter().map(feature).collect::<Result<_, ArrowError>>()? })
    }

    /// Columns of the schema given to [`new`](Layout::new), for packing, and until when the rows are so.
    pub fn columns(&self, columns: &[ArrayRef], valid_until: Option<&ArrayRef>) -> Result<Columns, ArrowError> {
        let column = |(column, (_, kind)): (&ArrayRef, &(String, Kind))| {
            let wanted = kind.data_type();
            let column = if *column.data_type() == wanted { column.clone() } else { cast(column, &wanted)? };
            Ok(match kind {
                Kind::Bool => Column::Bool(column.as_boolean().clone()),
                Kind::Int64 => Column::Int64(column.as_primitive::<Int64Type>().clone()),
                Kind::Float64 => Column::Float64(column.as_primitive::<Float64Type>().clone()),
                Kind::Text => Column::Text(column.as_string().clone()),
                Kind::Time => Column::Time(column.as_primitive::<TimestampMillisecondType>().clone()),
            })
        };
        let columns = columns.iter().zip(&self.features).map(column);
        let valid_until = valid_until.map(|column| column.as_primitive::<Int64Type>().clone());
        Ok(Columns { features: columns.collect::<Result<_, ArrowError>>()?, valid_until })
    }

    /// The features of a packed row by name, and until when they are so; NaN and infinite numbers are null. `None` if the bytes
    /// are not of this layout.
    pub fn unpack(&self, mut bytes: &[u8]) -> Option<Unpacked> {
        let nulls = bytes.split_off(..self.features.len().div_ceil(8))?;
        let mut values = Map::with_capacity(self.features.len());
        for (at, (name, kind)) in self.features.iter().enumerate() {
            let value = if nulls[at / 8] >> (at % 8) & 1 == 1 { Value::Null } else { unpack_value(*kind, &mut bytes)? };
            values.insert(name.clone(), value);
        }
        let valid_until = if bytes.is_empty() { None } else { Some(i64::from_le_bytes(array(&mut bytes)?)) };
        bytes.is_empty().then_some((values, valid_until))
    }
}

impl Columns {
    /// Packs a row into `bytes`, replacing what was there.
    pub fn pack(&self, row: usize, bytes: &mut Vec<u8>) {
        bytes.clear();
        bytes.resize(self.features.len().div_ceil(8), 0);
        for (at, column) in self.features.iter().enumerate() {
            if column.is_null(row) {
                bytes[at / 8] |= 1 << (at % 8);
                continue;
            }
            match column {
                Column::Bool(column) => bytes.push(u8::from(column.value(row))),
                Column::Int64(column) => bytes.extend_from_slice(&column.value(row).to_le_bytes()),
                Column::Float64(column) => bytes.extend_from_slice(&column.value(row).to_le_bytes()),
                Column::Time(column) => bytes.extend_from_slice(&column.value(row).to_le_bytes()),
                Column::Text(column) => {
                    let text = column.value(row).as_bytes();
                    bytes.extend_from_slice(&(text.len() as u32).to_le_bytes());
                    bytes.extend_from_slice(text);
                }
            }
        }
        if let Some(valid_until) = &self.valid_until {
            let until = if valid_until.is_null(row) { FOR_EVER } else { valid_until.value(row) };
            bytes.extend_from_slice(&until.to_le_bytes());
        }
    }
}

impl Column {
    fn is_null(&self, row: usize) -> bool {
        match self {
            Column::Bool(column) => column.is_null(row),
            Column::Int64(column) => column.is_null(row),
            Column::Float64(column) => column.is_null(row),
            Column::Text(column) => column.is_null(row),
            Column::Time(column) => column.is_null(row),
        }
    }
}

/// Takes one value off the front of `bytes`.
fn unpack_value(kind: Kind, bytes: &mut &[u8]) -> Option<Value> {
    Some(match kind {
        Kind::Bool => Value::Bool(bytes.split_off(..1)? == [1]),
        Kind::Int64 => Value::from(i64::from_le_bytes(array(bytes)?)),
        Kind::Float64 => Number::from_f64(f64::from_le_bytes(array(bytes)?)).map_or(Value::Null, Value::Number),
        Kind::Time => Value::from(time_text(i64::from_le_bytes(array(bytes)?))),
        Kind::Text => {
            let length = u32::from_le_bytes(array(bytes)?) as usize;
            Value::from(std::str::from_utf8(bytes.split_off(..length)?).ok()?)
        }
    })
}

fn array<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    bytes.split_off(..N)?.try_into().ok()
}

/// A time in milliseconds since 1970 as RFC 3339 writes it; as a bare number if the calendar does not reach that far.
pub fn time_text(millis: i64) -> String {
    match as_datetime::<TimestampMillisecondType>(millis) {
        Some(time) => time.format("%Y-%m-%dT%H:%M:%S%.3fZ").to_string(),
        None => millis.to_string(),
    }
}

/// A time written as RFC 3339 (with a zone, or in UTC), or as milliseconds since 1970.
pub fn parse_time(text: &str) -> Option<i64> {
    if let Ok(millis) = text.parse() {
        return Some(millis);
    }
    // A date alone is midnight for Arrow; a plus of the zone may have come as a blank out of a URL.
    let text = text.replace(' ', "+");
    let array = StringArray::from(vec![text.as_str()]);
    let utc = DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into()));
    let parsed = cast(&array, &utc).ok()?;
    parsed.is_valid(0).then(|| parsed.as_primitive::<TimestampMillisecondType>().value(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_and_written() {
        assert_eq!(time_text(1_356_998_400_123), "2013-01-01T00:00:00.123Z");
        assert_eq!(time_text(i64::MAX), i64::MAX.to_string());
        for (text, millis) in [
            ("2013-01-01T00:00:00.123Z", 1_356_998_400_123),
            ("2013-01-01T01:00:00+01:00", 1_356_998_400_000),
            ("2013-01-01T01:00:00 01:00", 1_356_998_400_000),
            ("2013-01-01T00:00:00", 1_356_998_400_000),
            ("1356998400123", 1_356_998_400_123),
            ("-1", -1),
        ] {
            assert_eq!(parse_time(text), Some(millis), "{text}");
        }
        for text in ["", "yesterday", "2013-13-01T00:00:00Z", "1e9"] {
            assert_eq!(parse_time(text), None, "{text}");
        }
    }

    #[test]
    fn bytes_of_another_layout_are_not_unpacked() {
        use arrow::datatypes::Field;
        let schema = Schema::new(vec![Field::new("a", DataType::Utf8, true), Field::new("b", DataType::Float32, true)]);
        let layout = Layout::new(&schema).expect("both are kept");
        for bytes in [&[][..], &[0], &[3, 0], &[2, 9, 0, 0, 0, 65], &[2, 1, 0, 0, 0, 255], &[1, 0, 0, 0]] {
            assert_eq!(layout.unpack(bytes), None, "{bytes:?}");
        }
        let features = serde_json::json!({"a": "A", "b": null}).as_object().cloned().expect("an object");
        assert_eq!(layout.unpack(&[2, 1, 0, 0, 0, 65]), Some((features.clone(), None)));
        assert_eq!(layout.unpack(&[2, 1, 0, 0, 0, 65, 7, 0, 0, 0, 0, 0, 0, 0]), Some((features, Some(7))));
        assert_eq!(layout.unpack(&[2, 1, 0, 0, 0, 65, 7, 0, 0]), None);
    }
}
