//! Declared column types: the short list a topology file can name, and their Arrow types.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use schemars::{JsonSchema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A column's type and whether it may be missing: `float64`, `string?`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ColumnType {
    /// The type of its values.
    pub values: Values,
    /// True when the column may be missing or null (`?`).
    pub optional: bool,
}

/// The types of values an event may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Values {
    /// `bool`
    Bool,
    /// `int64`
    Int64,
    /// `float64`
    Float64,
    /// `string`
    String,
    /// `timestamp`: RFC 3339 text or milliseconds since 1970; UTC, millisecond resolution.
    Timestamp,
}

/// The names a file may use, in the order an error lists them.
pub const NAMES: &[(&str, Values)] = &[
    ("bool", Values::Bool),
    ("int64", Values::Int64),
    ("float64", Values::Float64),
    ("string", Values::String),
    ("timestamp", Values::Timestamp),
];

impl ColumnType {
    /// `bool`
    pub const BOOL: ColumnType = ColumnType { values: Values::Bool, optional: false };
    /// `int64`
    pub const INT64: ColumnType = ColumnType { values: Values::Int64, optional: false };
    /// `float64`
    pub const FLOAT64: ColumnType = ColumnType { values: Values::Float64, optional: false };
    /// `string`
    pub const STRING: ColumnType = ColumnType { values: Values::String, optional: false };
    /// `timestamp`
    pub const TIMESTAMP: ColumnType = ColumnType { values: Values::Timestamp, optional: false };

    /// The same type with `?`: the column may be missing or null.
    pub const fn optional(self) -> ColumnType {
        ColumnType { optional: true, ..self }
    }

    /// The Arrow type of the column.
    pub fn data_type(self) -> DataType {
        match self.values {
            Values::Bool => DataType::Boolean,
            Values::Int64 => DataType::Int64,
            Values::Float64 => DataType::Float64,
            Values::String => DataType::Utf8,
            Values::Timestamp => DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into())),
        }
    }
}

impl FromStr for ColumnType {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (name, optional) = match text.strip_suffix('?') {
            Some(name) => (name, true),
            None => (text, false),
        };
        let found = NAMES.iter().find(|(known, _)| *known == name);
        let (_, values) = found.ok_or_else(|| {
            format!("`{text}` is not a column type; use bool, int64, float64, string or timestamp, with `?` at the end if it may be missing")
        })?;
        Ok(ColumnType { values: *values, optional })
    }
}

impl fmt::Display for ColumnType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, _) = NAMES.iter().find(|(_, values)| *values == self.values).expect("every type has a name");
        write!(f, "{name}{}", if self.optional { "?" } else { "" })
    }
}

impl Serialize for ColumnType {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
impl<'de> Deserialize<'de> for ColumnType {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Cow::<'de, str>::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}
impl JsonSchema for ColumnType {
    fn schema_name() -> Cow<'static, str> {
        "ColumnType".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> schemars::Schema {
        json_schema!({ "type": "string", "pattern": "^(bool|int64|float64|string|timestamp)\\??$", "description": "bool, int64, float64, string or timestamp; `?` at the end allows missing and null" })
    }
}

/// Smallest and largest value accepted of a numeric column. NaN is never inside a range. A bound is a float64: beyond 2^53
/// not every whole number is one, and the nearest is taken.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Range {
    /// Smallest value accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<f64>,
    /// Largest value accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<f64>,
}

/// The Arrow schema of declared columns, in the order declared. Every field is nullable for Arrow; the decoder enforces
/// which may be null, so that one bad record does not fail its batch.
pub fn arrow_schema(columns: &indexmap::IndexMap<String, ColumnType>) -> SchemaRef {
    let fields: Vec<Field> = columns.iter().map(|(name, column)| Field::new(name, column.data_type(), true)).collect();
    Arc::new(Schema::new(fields))
}
