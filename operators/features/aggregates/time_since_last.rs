//! `time_since_last`: seconds since the latest row (or non-null value, with `of`); null in an empty window.

use super::AggregateFunction;
use crate::features::summary::{Parts, Summary};

/// Seconds since the latest row (or non-null value, with `of`); null in an empty window.
#[derive(Debug, Clone, Copy)]
pub struct TimeSinceLast;

impl AggregateFunction for TimeSinceLast {
    fn name(&self) -> &'static str {
        "time_since_last"
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
