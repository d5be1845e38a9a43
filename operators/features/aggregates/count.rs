//! The aggregate `count`.

use arrow::datatypes::DataType;

use super::{AggregateFunction, Op};
use crate::features::summary::{Parts, Summary};

struct Count;

impl Op {
    /// `count`
    pub const COUNT: Op = Op(&Count);
}

impl AggregateFunction for Count {
    fn name(&self) -> &'static str {
        "count"
    }

    fn doc(&self) -> &'static str {
        "Number of rows (of non-null values, with `of`). 0 in an empty window."
    }

    fn needs(&self) -> Parts {
        Parts::COUNT
    }

    fn value(&self, summary: &Summary, _time: f64) -> f64 {
        summary.count
    }

    fn needs_values(&self) -> bool {
        false
    }

    fn data_type(&self) -> DataType {
        DataType::Int64
    }
}
