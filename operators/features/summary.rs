//! What a window remembers of one measure: enough for every aggregate asked of it, and no more.
//!
//! A [`Summary`] takes values and whole summaries (a tile), and gives them back when they leave the window. Counts and
//! sums can be given back; the smallest, the largest and the latest value cannot once it is the one that leaves. Then the
//! summary says so, and the window looks for it again among what is left.

use serde::{Deserialize, Serialize};

use super::wide::Wide;

/// A set of the parts of a [`Summary`]. The count is always kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash, Serialize, Deserialize)]
pub struct Parts(u8);

impl Parts {
    /// Only the count.
    pub const COUNT: Parts = Parts(0);
    /// The sum.
    pub const SUM: Parts = Parts(1);
    /// The sum of squares.
    pub const SQUARES: Parts = Parts(2);
    /// The smallest value.
    pub const MIN: Parts = Parts(4);
    /// The largest value.
    pub const MAX: Parts = Parts(8);
    /// The latest value and its time.
    pub const LAST: Parts = Parts(16);

    /// The parts of both sets.
    #[must_use]
    pub const fn and(self, other: Parts) -> Parts {
        Parts(self.0 | other.0)
    }

    /// True when any of `other`'s parts is in the set.
    #[inline(always)]
    pub const fn has(self, other: Parts) -> bool {
        self.0 & other.0 != 0
    }

    /// True for the count alone.
    #[inline(always)]
    pub const fn is_count(self) -> bool {
        self.0 == 0
    }

    /// Number of `f64` in a packed summary of these parts.
    pub const fn packed_len(self) -> usize {
        let mut len = 1;
        let widths = [(Parts::SUM, 2), (Parts::SQUARES, 2), (Parts::MIN, 1), (Parts::MAX, 1), (Parts::LAST, 2)];
        let mut at = 0;
        while at < widths.len() {
            if self.has(widths[at].0) {
                len += widths[at].1;
            }
            at += 1;
        }
        len
    }
}

/// A value of a measure and its square, made once for all windows. A value that is left out is NaN.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Measured {
    /// The value; NaN when the row is left out.
    pub value: f64,
    /// Its square, when an aggregate needs it.
    pub square: Wide,
}

/// Values beyond ±`VALUE_MAX` are left out like NaN: their squares overflow.
pub const VALUE_MAX: f64 = 1e100;

impl Measured {
    /// A value that is left out.
    pub const LEFT_OUT: Measured = Measured { value: f64::NAN, square: Wide::ZERO };

    /// A value; NaN, an infinity or a value beyond [`VALUE_MAX`] is left out.
    pub fn new(value: f64, needs: Parts) -> Self {
        if value.is_nan() || value.abs() > VALUE_MAX {
            return Measured::LEFT_OUT;
        }
        let square = if needs.has(Parts::SQUARES) { Wide::product(value, value) } else { Wide::ZERO };
        Measured { value, square }
    }

    /// True when the row does not count.
    #[inline(always)]
    pub fn is_left_out(&self) -> bool {
        self.value.is_nan()
    }
}

/// Counts, sums and extremes of the values of one measure in one window (or in one tile of it). Parts that are not needed
/// keep their value of the empty window.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Number of values; a whole number.
    pub count: f64,
    /// Their sum.
    pub sum: Wide,
    /// The sum of their squares.
    pub squares: Wide,
    /// The smallest; infinity when empty.
    pub min: f64,
    /// The largest; minus infinity when empty.
    pub max: f64,
    /// Event time of the latest in milliseconds since 1970; minus infinity when empty.
    pub last_time: f64,
    /// The latest by event time; of several at one time the one that came last.
    pub last: f64,
}

/// A part that leaves a sum and is this many times larger than what is left has taken with it the digits of the rest:
/// 2^40 leaves 66 of the 106 bits.
const DOMINANT: f64 = (1u64 << 40) as f64;

impl Summary {
    /// Of no value.
    pub const EMPTY: Summary = Summary {
        count: 0.0,
        sum: Wide::ZERO,
        squares: Wide::ZERO,
        min: f64::INFINITY,
        max: f64::NEG_INFINITY,
        last_time: f64::NEG_INFINITY,
        last: 0.0,
    };

    /// Of one value at `time`.
    #[inline(always)]
    pub fn of(value: f64, time: f64, needs: Parts) -> Summary {
        let mut one = Summary::EMPTY;
        one.add(&Measured::new(value, needs), time, needs);
        one
    }

    /// Takes a value that is not left out.
    #[inline(always)]
    pub fn add(&mut self, measured: &Measured, time: f64, needs: Parts) {
        self.count += 1.0;
        if needs.is_count() {
            return;
        }
        if needs.has(Parts::SUM) {
            self.sum = self.sum.plus(measured.value);
        }
        if needs.has(Parts::SQUARES) {
            self.squares = self.squares.plus_wide(measured.square);
        }
        self.min = if needs.has(Parts::MIN) { self.min.min(measured.value) } else { self.min };
        self.max = if needs.has(Parts::MAX) { self.max.max(measured.value) } else { self.max };
        if needs.has(Parts::LAST) && time >= self.last_time {
            (self.last_time, self.last) = (time, measured.value);
        }
    }

    /// Takes what another summary holds; of two latest values at one time the other's stays.
    #[inline(always)]
    pub fn merge(&mut self, other: &Summary, needs: Parts) {
        self.count += other.count;
        if needs.is_count() {
            return;
        }
        if needs.has(Parts::SUM) {
            self.sum = self.sum.plus_wide(other.sum);
        }
        if needs.has(Parts::SQUARES) {
            self.squares = self.squares.plus_wide(other.squares);
        }
        self.min = if needs.has(Parts::MIN) { self.min.min(other.min) } else { self.min };
        self.max = if needs.has(Parts::MAX) { self.max.max(other.max) } else { self.max };
        if needs.has(Parts::LAST) && other.count > 0.0 && other.last_time >= self.last_time {
            (self.last_time, self.last) = (other.last_time, other.last);
        }
    }

    /// Gives back `part`, which it took before. Returns the parts that must be found again among what is left. `newest` is
    /// what came last: its size tells whether a sum near zero is small or only balanced.
    #[inline(always)]
    pub fn retract(&mut self, part: &Summary, newest: &Summary, needs: Parts) -> Parts {
        self.count -= part.count;
        if self.count <= 0.0 {
            *self = Summary::EMPTY;
            return Parts::COUNT;
        }
        let mut lost = Parts::COUNT;
        if needs.is_count() {
            return lost;
        }
        if needs.has(Parts::SUM) {
            self.sum = self.sum.minus_wide(part.sum);
            if dominates(part.sum, self.sum, newest.sum) {
                lost = lost.and(Parts::SUM);
            }
        }
        if needs.has(Parts::SQUARES) {
            self.squares = self.squares.minus_wide(part.squares);
            if dominates(part.squares, self.squares, newest.squares) {
                lost = lost.and(Parts::SQUARES);
            }
        }
        if needs.has(Parts::MIN) && part.min <= self.min {
            lost = lost.and(Parts::MIN);
        }
        if needs.has(Parts::MAX) && part.max >= self.max {
            lost = lost.and(Parts::MAX);
        }
        if needs.has(Parts::LAST) && part.last_time >= self.last_time {
            lost = lost.and(Parts::LAST);
        }
        lost
    }

    /// The summary packed in `slots` by [`pack`](Summary::pack).
    #[inline(always)]
    pub fn unpack(slots: &[f64], needs: Parts) -> Summary {
        let mut summary = Summary { count: slots[0], ..Summary::EMPTY };
        let mut at = 1;
        let mut next = || {
            at += 1;
            slots[at - 1]
        };
        if needs.has(Parts::SUM) {
            summary.sum = Wide { high: next(), low: next() };
        }
        if needs.has(Parts::SQUARES) {
            summary.squares = Wide { high: next(), low: next() };
        }
        if needs.has(Parts::MIN) {
            summary.min = next();
        }
        if needs.has(Parts::MAX) {
            summary.max = next();
        }
        if needs.has(Parts::LAST) {
            (summary.last_time, summary.last) = (next(), next());
        }
        summary
    }

    /// Writes the needed parts into `slots`, of which there are [`Parts::packed_len`].
    #[inline(always)]
    pub fn pack(&self, slots: &mut [f64], needs: Parts) {
        slots[0] = self.count;
        let mut at = 1;
        let mut put = |value| {
            slots[at] = value;
            at += 1;
        };
        if needs.has(Parts::SUM) {
            put(self.sum.high);
            put(self.sum.low);
        }
        if needs.has(Parts::SQUARES) {
            put(self.squares.high);
            put(self.squares.low);
        }
        if needs.has(Parts::MIN) {
            put(self.min);
        }
        if needs.has(Parts::MAX) {
            put(self.max);
        }
        if needs.has(Parts::LAST) {
            put(self.last_time);
            put(self.last);
        }
    }
}

/// True when `part`, which left, was so much larger than the `rest` that the rest has lost digits.
#[inline(always)]
fn dominates(part: Wide, rest: Wide, newest: Wide) -> bool {
    part.high.abs() > DOMINANT * rest.high.abs() && part.high.abs() > DOMINANT * newest.high.abs()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Parts = Parts(31);

    #[test]
    fn a_packed_summary_comes_back_whole() {
        for bits in 0..32 {
            let needs = Parts(bits);
            let mut summary = Summary::of(0.1, 5.0, needs);
            summary.add(&Measured::new(7.5, needs), 9.0, needs);
            let mut slots = vec![0.0; needs.packed_len()];
            summary.pack(&mut slots, needs);
            assert_eq!(Summary::unpack(&slots, needs), summary, "parts {bits}");
        }
    }

    #[test]
    fn an_extreme_that_leaves_is_reported() {
        let (low, high) = (Summary::of(1.0, 0.0, ALL), Summary::of(5.0, 1.0, ALL));
        let mut summary = low;
        summary.merge(&high, ALL);
        summary.merge(&Summary::of(3.0, 2.0, ALL), ALL);
        assert_eq!(summary.retract(&low, &high, ALL), Parts::MIN);
        assert_eq!(summary.sum.high, 8.0);
        assert_eq!(summary.retract(&Summary::of(3.0, 2.0, ALL), &high, ALL), Parts::LAST);
        assert_eq!(summary.retract(&high, &high, ALL), Parts::COUNT);
        assert_eq!(summary, Summary::EMPTY);
    }

    #[test]
    fn a_part_that_took_digits_with_it_is_reported() {
        let (huge, small) = (Summary::of(1e80, 0.0, ALL), Summary::of(1.0, 1.0, ALL));
        let mut summary = huge;
        summary.merge(&small, ALL);
        assert!(summary.retract(&huge, &small, ALL).has(Parts::SUM));
    }

    #[test]
    fn values_that_are_no_numbers_are_left_out() {
        for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1.1e100, -1e200] {
            assert!(Measured::new(value, ALL).is_left_out());
        }
        assert!(!Measured::new(-1e100, ALL).is_left_out());
    }
}
