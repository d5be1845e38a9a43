//! `min`: the smallest value; null in an empty window.

use super::AggregateFunction;
use crate::features::summary::{Parts, Summary};

/// The smallest value; null in an empty window.
#[derive(Debug, Clone, Copy)]
pub struct Min;

impl AggregateFunction for Min {
    fn name(&self) -> &'static str {
        "min"
    }

    fn needs(&self) -> Parts {
        Parts::MIN
    }

    fn value(&self, summary: &Summary, _time: f64) -> f64 {
        if summary.count > 0.0 { summary.min } else { f64::NAN }
    }
}
