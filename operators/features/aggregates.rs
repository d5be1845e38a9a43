//! Aggregate functions: what a feature says about the values in a window. One file a function.
//!
//! A function does not see values, only the [`Summary`] that windows keep, and it names the [`Parts`] of it that it
//! needs; functions that need the same parts share them. A new function is a file here and its line in [`Op::ALL`]:
//! parsing, schema, reference and the contract's tests follow from the line.

use std::borrow::Cow;
use std::sync::LazyLock;

use arrow::datatypes::DataType;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::summary::{Parts, Summary};

mod count;
mod last;
mod max;
mod mean;
mod min;
mod range;
mod stddev;
mod sum;
mod time_since_last;

/// An aggregate over the values in a window, written in a file by its name.
#[derive(Clone, Copy)]
pub struct Op(&'static dyn AggregateFunction);

impl Op {
    /// Every function, in the order of the reference page.
    pub const ALL: &'static [Op] =
        &[Op::COUNT, Op::SUM, Op::MEAN, Op::MIN, Op::MAX, Op::RANGE, Op::STDDEV, Op::LAST, Op::TIME_SINCE_LAST];

    /// What it computes.
    pub fn function(self) -> &'static dyn AggregateFunction {
        self.0
    }

    fn name(self) -> &'static str {
        self.0.name()
    }
}

impl std::fmt::Debug for Op {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// A function is known by its name.
impl PartialEq for Op {
    fn eq(&self, other: &Op) -> bool {
        self.name() == other.name()
    }
}

impl Eq for Op {}

impl Serialize for Op {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for Op {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Op, D::Error> {
        static NAMES: LazyLock<Vec<&str>> = LazyLock::new(|| Op::ALL.iter().map(|op| op.name()).collect());
        let written = Cow::<str>::deserialize(deserializer)?;
        let found = Op::ALL.iter().find(|op| op.name() == written);
        found.copied().ok_or_else(|| D::Error::unknown_variant(&written, &NAMES))
    }
}

impl JsonSchema for Op {
    fn schema_name() -> Cow<'static, str> {
        "Op".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let one = |op: &Op| json_schema!({ "type": "string", "const": op.name(), "description": op.0.doc() });
        let all: Vec<Schema> = Op::ALL.iter().map(one).collect();
        json_schema!({ "description": "An aggregate over the values in a window.", "oneOf": all })
    }
}

/// What an aggregate is computed from, and how.
pub trait AggregateFunction: Sync {
    /// The name in a topology file and in the names of features.
    fn name(&self) -> &'static str;

    /// What it says, for the reference and for editors.
    fn doc(&self) -> &'static str;

    /// The parts of a summary it reads.
    fn needs(&self) -> Parts;

    /// The aggregate as of `time` (milliseconds since 1970). NaN is null.
    fn value(&self, summary: &Summary, time: f64) -> f64;

    /// Whether it aggregates values, so that `of` must be given, and not only rows.
    fn needs_values(&self) -> bool {
        true
    }

    /// Type of its features: `Float64`, or `Int64` for a whole number that is never null.
    fn data_type(&self) -> DataType {
        DataType::Float64
    }

    /// The aggregates of many reads, `out[i]` of the `i`th. One call a chunk: the loop within knows the function.
    fn fill(&self, reads: Reads<'_>, out: &mut [f64]) {
        for ((out, summaries), time) in out.iter_mut().zip(reads.summaries.chunks_exact(reads.width)).zip(reads.times) {
            *out = self.value(&summaries[reads.summary], *time);
        }
    }
}

/// Summaries of a group as of some reads: `width` of them a read.
#[derive(Debug, Clone, Copy)]
pub struct Reads<'a> {
    /// The summaries, read by read.
    pub summaries: &'a [Summary],
    /// Number of summaries of a read.
    pub width: usize,
    /// Which of them is asked for.
    pub summary: usize,
    /// Time of each read.
    pub times: &'a [f64],
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_function_is_named_as_in_a_file() {
        for op in Op::ALL {
            let written = serde_json::to_string(op).unwrap();
            assert_eq!(written, format!("\"{}\"", op.function().name()));
        }
    }

    #[test]
    fn an_empty_window_gives_null_but_a_count_of_zero() {
        for op in Op::ALL {
            let value = op.function().value(&Summary::EMPTY, 1e12);
            assert_eq!(value.is_nan(), *op != Op::COUNT, "{op:?} of nothing is {value}");
        }
    }
}
