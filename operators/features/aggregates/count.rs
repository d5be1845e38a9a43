//! `count`: the number of rows (or of non-null values, with `of`); 0 in an empty window.

use arrow::datatypes::DataType;

use super::AggregateFunction;
use crate::features::summary::{Parts, Summary};

/// The number of rows (or of non-null values, with `of`); 0 in an empty window.
#[derive(Debug, Clone, Copy)]
pub struct Count;

impl AggregateFunction for Count {
    fn name(&self) -> &'static str {
        "count"
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
