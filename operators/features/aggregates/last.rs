//! The aggregate `last`.

use super::{AggregateFunction, Op};
use crate::features::summary::{Parts, Summary};

struct Last;

impl Op {
    /// `last`
    pub const LAST: Op = Op(&Last);
}

impl AggregateFunction for Last {
    fn name(&self) -> &'static str {
        "last"
    }

    fn doc(&self) -> &'static str {
        "The latest value by event time, of several at one time the one that came last; null in an empty window."
    }

    fn needs(&self) -> Parts {
        Parts::LAST
    }

    fn value(&self, summary: &Summary, _time: f64) -> f64 {
        if summary.count > 0.0 { summary.last } else { f64::NAN }
    }
}
