//! The aggregate `range`.

use super::{AggregateFunction, Op};
use crate::features::summary::{Parts, Summary};

struct Range;

impl Op {
    /// `range`
    pub const RANGE: Op = Op(&Range);
}

impl AggregateFunction for Range {
    fn name(&self) -> &'static str {
        "range"
    }

    fn doc(&self) -> &'static str {
        "Largest value less the smallest: 0 for one value, null in an empty window."
    }

    fn needs(&self) -> Parts {
        Parts::MIN.and(Parts::MAX)
    }

    fn value(&self, summary: &Summary, _time: f64) -> f64 {
        if summary.count > 0.0 { summary.max - summary.min } else { f64::NAN }
    }
}
