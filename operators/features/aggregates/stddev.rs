//! The aggregate `stddev`.
//!
//! From the count n, the sum s and the sum of squares q: `sqrt(n q - s s) / n`. In plain `f64` the difference would lose
//! all digits for values that are large and close together; here n, s and q are exact to 106 bits, and so is the
//! difference to 1e-30 of n q. What is smaller than that is the rounding of equal values and counts as zero.

use super::{AggregateFunction, Op};
use crate::features::summary::{Parts, Summary};

struct Stddev;

impl Op {
    /// `stddev`
    pub const STDDEV: Op = Op(&Stddev);
}

/// The least difference, relative to n q, that is not rounding: 2^-100. Deviations below 1e-15 of the mean are zero.
const RESOLUTION: f64 = 1.0 / (1u128 << 100) as f64;

impl AggregateFunction for Stddev {
    fn name(&self) -> &'static str {
        "stddev"
    }

    fn doc(&self) -> &'static str {
        "Population standard deviation; null in an empty window."
    }

    fn needs(&self) -> Parts {
        Parts::SUM.and(Parts::SQUARES)
    }

    fn value(&self, summary: &Summary, _time: f64) -> f64 {
        let squares = summary.squares.times(summary.count);
        let difference = squares.minus_wide(summary.sum.squared()).high;
        let difference = if difference > squares.high * RESOLUTION { difference } else { 0.0 };
        // 0/0 is the null of an empty window.
        difference.sqrt() / summary.count
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::features::summary::Measured;

    fn stddev(values: &[f64]) -> f64 {
        let mut summary = Summary::EMPTY;
        for value in values {
            summary.add(&Measured::new(*value, Stddev.needs()), 0.0, Stddev.needs());
        }
        Stddev.value(&summary, 0.0)
    }

    #[test]
    fn small_deviations_from_a_large_value_are_kept() {
        for offset in [0.0, 1e3, 1e9, 1e12] {
            let values: Vec<f64> = (0..1000).map(|n| offset + (n % 7) as f64 * 0.25).collect();
            let mean = values.iter().map(|v| v - offset).sum::<f64>() / 1000.0;
            let expected = (values.iter().map(|v| (v - offset - mean).powi(2)).sum::<f64>() / 1000.0).sqrt();
            let relative = (stddev(&values) - expected).abs() / expected;
            assert!(relative < 1e-12, "{relative:e} off at {offset:e}");
        }
    }

    #[test]
    fn equal_values_deviate_by_nothing() {
        for value in [0.0, 0.1, 123.45, -1e9 / 3.0, 1e100] {
            for n in [1, 3, 1000] {
                assert_eq!(stddev(&vec![value; n]), 0.0, "{n} times {value}");
            }
        }
    }
}
