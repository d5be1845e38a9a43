//! `last`: the latest value by event time, of several at one time the one that came last; null in an empty window.

use super::AggregateFunction;
use crate::features::summary::{Parts, Summary};

/// The latest value by event time, of several at one time the one that came last; null in an empty window.
#[derive(Debug, Clone, Copy)]
pub struct Last;

impl AggregateFunction for Last {
    fn name(&self) -> &'static str {
        "last"
    }

    fn needs(&self) -> Parts {
        Parts::LAST
    }

    fn value(&self, summary: &Summary, _time: f64) -> f64 {
        if summary.count > 0.0 { summary.last } else { f64::NAN }
    }
}
