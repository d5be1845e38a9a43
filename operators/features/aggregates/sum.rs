//! The aggregate `sum`.

use super::{AggregateFunction, Op};
use crate::features::summary::{Parts, Summary};

struct Sum;

impl Op {
    /// `sum`
    pub const SUM: Op = Op(&Sum);
}

impl AggregateFunction for Sum {
    fn name(&self) -> &'static str {
        "sum"
    }

    fn doc(&self) -> &'static str {
        "Sum; null in an empty window."
    }

    fn needs(&self) -> Parts {
        Parts::SUM
    }

    fn value(&self, summary: &Summary, _time: f64) -> f64 {
        if summary.count > 0.0 { summary.sum.high } else { f64::NAN }
    }
}
