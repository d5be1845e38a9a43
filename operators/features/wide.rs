//! Sums that lose nothing: a number of twice the precision of an `f64`.
//!
//! A window's sum takes a value when its event comes and gives it back when the event leaves. In plain `f64` each of
//! these steps rounds, and after a day the sum of an empty window is not zero. A [`Wide`] holds the sum as two `f64`
//! (about 106 bits), so a sum of values of similar size is as good as exact: its rounding to `f64` does not depend on the
//! order in which values came and went. Sums and products follow Dekker (1971) and Knuth (TAOCP 2, 4.2.2).

use serde::{Deserialize, Serialize};

/// The unevaluated sum of two `f64`, the second at most half a unit in the last place of the first.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Wide {
    /// The number rounded to `f64`.
    pub high: f64,
    /// What the rounding left over.
    pub low: f64,
}

impl Wide {
    /// Zero.
    pub const ZERO: Wide = Wide { high: 0.0, low: 0.0 };

    /// The exact sum of two numbers.
    #[inline(always)]
    fn sum(a: f64, b: f64) -> Wide {
        let high = a + b;
        let part = high - a;
        Wide { high, low: (a - (high - part)) + (b - part) }
    }

    /// The exact sum of two numbers, of which the first is the larger or zero.
    #[inline(always)]
    fn sum_ordered(a: f64, b: f64) -> Wide {
        let high = a + b;
        Wide { high, low: b - (high - a) }
    }

    /// The exact product of two numbers, each below 1e150 so that nothing overflows.
    #[inline(always)]
    pub fn product(a: f64, b: f64) -> Wide {
        let ((a1, a2), (b1, b2)) = (halves(a), halves(b));
        let high = a * b;
        Wide { high, low: ((a1 * b1 - high) + a1 * b2 + a2 * b1) + a2 * b2 }
    }

    /// `self + value`.
    #[inline(always)]
    #[must_use]
    pub fn plus(self, value: f64) -> Wide {
        let sum = Wide::sum(self.high, value);
        Wide::sum_ordered(sum.high, sum.low + self.low)
    }

    /// `self + other`.
    #[inline(always)]
    #[must_use]
    pub fn plus_wide(self, other: Wide) -> Wide {
        let sum = Wide::sum(self.high, other.high);
        Wide::sum_ordered(sum.high, sum.low + (self.low + other.low))
    }

    /// `self - other`.
    #[inline(always)]
    #[must_use]
    pub fn minus_wide(self, other: Wide) -> Wide {
        self.plus_wide(Wide { high: -other.high, low: -other.low })
    }

    /// `self * factor`.
    #[inline(always)]
    #[must_use]
    pub fn times(self, factor: f64) -> Wide {
        let product = Wide::product(self.high, factor);
        Wide::sum_ordered(product.high, product.low + self.low * factor)
    }

    /// `self * self`.
    #[inline(always)]
    #[must_use]
    pub fn squared(self) -> Wide {
        let square = Wide::product(self.high, self.high);
        Wide::sum_ordered(square.high, square.low + 2.0 * self.high * self.low)
    }
}

/// A number as a sum of two that have half its digits each, so that their products are exact (Veltkamp).
#[inline(always)]
fn halves(value: f64) -> (f64, f64) {
    const SPLIT: f64 = ((1u64 << 27) + 1) as f64;
    let scaled = SPLIT * value;
    let upper = scaled - (scaled - value);
    (upper, value - upper)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Products of 53-bit integers need 106 bits: all of them are kept.
        #[test]
        fn products_are_exact(a in -(1i64 << 53)..(1i64 << 53), b in -(1i64 << 53)..(1i64 << 53)) {
            let product = Wide::product(a as f64, b as f64);
            prop_assert_eq!(product.high as i128 + product.low as i128, a as i128 * b as i128);
        }

        /// What comes and goes leaves nothing behind, in any order.
        #[test]
        fn sums_do_not_drift(values in prop::collection::vec(-1e9..1e9f64, 1..200), kept in -1.0..1.0f64) {
            let mut sum = Wide::ZERO.plus(kept);
            for value in &values {
                sum = sum.plus(*value);
            }
            for value in values.iter().rev() {
                sum = sum.minus_wide(Wide { high: *value, low: 0.0 });
            }
            prop_assert!((sum.high - kept).abs() <= 1e-20, "{} left of {}", sum.high, kept);
        }
    }

    #[test]
    fn products_and_squares_of_wide_numbers_agree() {
        let third = Wide::ZERO.plus(1e9).plus(1.0 / 3.0);
        let (square, product) = (third.squared(), third.times(1e9).plus_wide(third.times(1.0 / 3.0)));
        assert!(((square.high - product.high) + (square.low - product.low)).abs() < 1e-13);
    }
}
