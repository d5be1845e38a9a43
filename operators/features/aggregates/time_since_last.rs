//! The aggregate `time_since_last`.

use super::{AggregateFunction, Op};
use crate::features::summary::{Parts, Summary};

struct TimeSinceLast;

impl Op {
    /// `time_since_last`
    pub const TIME_SINCE_LAST: Op = Op(&TimeSinceLast);
}

impl AggregateFunction for TimeSinceLast {
    fn name(&self) -> &'static str {
        "time_since_last"
    }

    fn doc(&self) -> &'static str {
        "Seconds since the latest row (or non-null value, with `of`); null in an empty window."
    }

    fn needs(&self) -> Parts {
        Parts::LAST
    }

    fn needs_values(&self) -> bool {
        false
    }

    /// A tile that reaches beyond the time of the read may hold a row after it: no time has passed since then.
    fn value(&self, summary: &Summary, time: f64) -> f64 {
        if summary.count > 0.0 { ((time - summary.last_time) / 1000.0).max(0.0) } else { f64::NAN }
    }
}
