//! `sum`: the sum of the values; null in an empty window.

use super::AggregateFunction;
use crate::features::summary::{Parts, Summary};

/// The sum of the values; null in an empty window.
#[derive(Debug, Clone, Copy)]
pub struct Sum;

impl AggregateFunction for Sum {
    fn name(&self) -> &'static str {
        "sum"
    }

    fn needs(&self) -> Parts {
        Parts::SUM
    }

    fn value(&self, summary: &Summary, _time: f64) -> f64 {
        if summary.count > 0.0 { summary.sum.high } else { f64::NAN }
    }
}
