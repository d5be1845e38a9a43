//! `max`: the largest value; null in an empty window.

use super::AggregateFunction;
use crate::features::summary::{Parts, Summary};

/// The largest value; null in an empty window.
#[derive(Debug, Clone, Copy)]
pub struct Max;

impl AggregateFunction for Max {
    fn name(&self) -> &'static str {
        "max"
    }

    fn needs(&self) -> Parts {
        Parts::MAX
    }

    fn value(&self, summary: &Summary, _time: f64) -> f64 {
        if summary.count > 0.0 { summary.max } else { f64::NAN }
    }
}
