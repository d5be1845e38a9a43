//! `mean`: the arithmetic mean of the values; null in an empty window.

use super::AggregateFunction;
use crate::features::summary::{Parts, Summary};

/// The arithmetic mean of the values; null in an empty window.
#[derive(Debug, Clone, Copy)]
pub struct Mean;

impl AggregateFunction for Mean {
    fn name(&self) -> &'static str {
        "mean"
    }

    fn needs(&self) -> Parts {
        Parts::SUM
    }

    fn value(&self, summary: &Summary, _time: f64) -> f64 {
        if summary.count > 0.0 { summary.sum.high / summary.count } else { f64::NAN }
    }
}
