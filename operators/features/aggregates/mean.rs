//! The aggregate `mean`.

use super::{AggregateFunction, Op};
use crate::features::summary::{Parts, Summary};

struct Mean;

impl Op {
    /// `mean`
    pub const MEAN: Op = Op(&Mean);
}

impl AggregateFunction for Mean {
    fn name(&self) -> &'static str {
        "mean"
    }

    fn doc(&self) -> &'static str {
        "Arithmetic mean; null in an empty window."
    }

    fn needs(&self) -> Parts {
        Parts::SUM
    }

    fn value(&self, summary: &Summary, _time: f64) -> f64 {
        if summary.count > 0.0 { summary.sum.high / summary.count } else { f64::NAN }
    }
}
