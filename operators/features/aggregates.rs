//! Aggregate functions: what a feature says about the values in a window. One file a function.
//!
//! A function does not see values, only the [`Summary`] that windows keep, and it names the [`Parts`] of it that it
//! needs; functions that need the same parts share them. A new function is a file here, a variant of [`Op`] and its line
//! in [`Op::function`].

use arrow::datatypes::DataType;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::summary::{Parts, Summary};

pub mod count;
pub mod last;
pub mod max;
pub mod mean;
pub mod min;
pub mod stddev;
pub mod sum;
pub mod time_since_last;

/// An aggregate over the values in a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Op {
    /// Number of rows (of non-null values, with `of`). 0 in an empty window.
    Count,
    /// Sum; null in an empty window.
    Sum,
    /// Arithmetic mean; null in an empty window.
    Mean,
    /// Smallest value; null in an empty window.
    Min,
    /// Largest value; null in an empty window.
    Max,
    /// Population standard deviation; null in an empty window.
    Stddev,
    /// The latest value by event time; null in an empty window.
    Last,
    /// Seconds since the latest row; null in an empty window.
    TimeSinceLast,
}

impl Op {
    /// Every function, in the order of the reference page.
    pub const ALL: &'static [Op] =
        &[Op::Count, Op::Sum, Op::Mean, Op::Min, Op::Max, Op::Stddev, Op::Last, Op::TimeSinceLast];

    /// The function of this name.
    pub fn function(self) -> &'static dyn AggregateFunction {
        match self {
            Op::Count => &count::Count,
            Op::Sum => &sum::Sum,
            Op::Mean => &mean::Mean,
            Op::Min => &min::Min,
            Op::Max => &max::Max,
            Op::Stddev => &stddev::Stddev,
            Op::Last => &last::Last,
            Op::TimeSinceLast => &time_since_last::TimeSinceLast,
        }
    }
}

/// What an aggregate is computed from, and how.
pub trait AggregateFunction: Sync {
    /// The name in a topology file and in the names of features.
    fn name(&self) -> &'static str;

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
            assert_eq!(value.is_nan(), *op != Op::Count, "{op:?} of nothing is {value}");
        }
    }
}
