//! The aggregate `max`.

use super::{AggregateFunction, Op};
use crate::features::summary::{Parts, Summary};

struct Max;

impl Op {
    /// `max`
    pub const MAX: Op = Op(&Max);
}

impl AggregateFunction for Max {
    fn name(&self) -> &'static str {
        "max"
    }

    fn doc(&self) -> &'static str {
        "Largest value; null in an empty window."
    }

    fn needs(&self) -> Parts {
        Parts::MAX
    }

    fn value(&self, summary: &Summary, _time: f64) -> f64 {
        if summary.count > 0.0 { summary.max } else { f64::NAN }
    }
}
