//! The aggregate `min`.

use super::{AggregateFunction, Op};
use crate::features::summary::{Parts, Summary};

struct Min;

impl Op {
    /// `min`
    pub const MIN: Op = Op(&Min);
}

impl AggregateFunction for Min {
    fn name(&self) -> &'static str {
        "min"
    }

    fn doc(&self) -> &'static str {
        "Smallest value; null in an empty window."
    }

    fn needs(&self) -> Parts {
        Parts::MIN
    }

    fn value(&self, summary: &Summary, _time: f64) -> f64 {
        if summary.count > 0.0 { summary.min } else { f64::NAN }
    }
}
