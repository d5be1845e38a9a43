//! Counts of values over frozen bins, and how far two of them are apart.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::drift::DetectorError;
use crate::key;

/// Most edges of a reference.
const EDGES_MAX: usize = 10_000;

/// A histogram over frozen bins.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Counts {
    /// The borders between bins, rising, at most 10,000. The first bin is everything below the first edge; a value equal to
    /// an edge belongs to the bin on its right. Choose them so that every bin holds a few percent of the reference: an
    /// empty bin makes any value in it look like drift.
    pub edges: Vec<f64>,
    /// Values in each bin: one number more than there are edges.
    pub counts: Vec<u64>,
    /// Nulls and NaN in the reference: they have a bin of their own.
    #[serde(default)]
    pub missing: u64,
}

impl Counts {
    /// Nothing counted, over the bins of `edges`.
    pub fn empty(edges: Vec<f64>) -> Self {
        Counts { counts: vec![0; edges.len() + 1], edges, missing: 0 }
    }

    /// Bins of about equal counts of `values`, filled with them. Quantiles are linear between neighbours; where values
    /// repeat there are fewer bins.
    pub fn of_quantiles(values: &[f64], missing: u64, bins: u32) -> Self {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let last = sorted.len().saturating_sub(1) as f64;
        let quantile = |i: u32| {
            let at = last * f64::from(i) / f64::from(bins);
            let (low, high) = (*sorted.get(at.floor() as usize)?, *sorted.get(at.ceil() as usize)?);
            let edge = low + (high - low) * at.fract();
            edge.is_finite().then_some(edge)
        };
        let mut edges: Vec<f64> = (1..bins).filter_map(quantile).collect();
        edges.dedup();
        let mut counts = Counts { missing, ..Counts::empty(edges) };
        sorted.iter().for_each(|value| counts.add(Some(*value)));
        counts
    }

    /// What is wrong with it, if something is; `option` is the path of the histogram.
    ///
    /// # Errors
    /// If the edges are not finite and rising, or the counts do not go with them, or there are none.
    pub fn check(&self, option: &str) -> Result<(), DetectorError> {
        let refuse = |name: &str, message: String| Err(DetectorError::new(format!("{option}.{name}"), message));
        if self.edges.len() > EDGES_MAX {
            return refuse("edges", format!("there are {}, and may be {EDGES_MAX}", self.edges.len()));
        }
        if !self.edges.iter().all(|edge| edge.is_finite()) || !self.edges.is_sorted_by(|a, b| a < b) {
            return refuse("edges", "the edges must be finite and rise, none twice".into());
        }
        let (edges, bins) = (self.edges.len(), self.edges.len() + 1);
        if self.counts.len() != bins {
            return refuse("counts", format!("{edges} edges make {bins} bins, not {}", self.counts.len()));
        }
        match self.bins().try_fold(0_u64, |sum, count| sum.checked_add(count)) {
            None => refuse("counts", "the counts come to more than 2^64".into()),
            Some(0) => refuse("counts", "a reference without values compares with nothing".into()),
            Some(_) => Ok(()),
        }
    }

    /// True if there are as many counts as the edges make bins.
    pub fn fits(&self) -> bool {
        self.counts.len() == self.edges.len() + 1
    }

    /// Counts a value; `None` and NaN are missing, infinite values lie in the outermost bins.
    pub fn add(&mut self, value: Option<f64>) {
        match value.filter(|value| !value.is_nan()) {
            Some(value) => self.counts[self.edges.partition_point(|edge| *edge <= value)] += 1,
            None => self.missing += 1,
        }
    }

    /// Values counted, the missing too.
    pub fn total(&self) -> u64 {
        self.bins().sum()
    }

    /// Forgets what was counted.
    pub fn clear(&mut self) {
        self.counts.fill(0);
        self.missing = 0;
    }

    /// 16 digits that stand for these edges and counts, the same in every run.
    pub fn id(&self) -> String {
        let bits = self.edges.iter().map(|edge| edge.to_bits()).chain(self.bins());
        let bytes: Vec<u8> = bits.flat_map(u64::to_le_bytes).collect();
        format!("{:016x}", key::hash(&bytes))
    }

    /// The counts of all bins, the missing last.
    fn bins(&self) -> impl Iterator<Item = u64> {
        self.counts.iter().copied().chain([self.missing])
    }
}

/// PSI, and what it would be without a change.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Comparison {
    /// The index: `sum (p - q) ln(p / q)`, p and q the shares of window and reference.
    pub psi: f64,
    /// Its mean if nothing has changed.
    pub expected: f64,
    /// What one window in a hundred exceeds if nothing has changed.
    pub noise_99: f64,
}

/// Compares a window with the reference over the same bins. A bin counts as a share of `floor` at least.
pub fn compare(reference: &Counts, window: &Counts, floor: f64) -> Comparison {
    let (m, n) = (reference.total() as f64, window.total() as f64);
    let (mut psi, mut occupied) = (0.0, 0.0_f64);
    for (old, new) in reference.bins().zip(window.bins()) {
        if old > 0 || new > 0 {
            occupied += 1.0;
        }
        let (q, p) = ((old as f64 / m).max(floor), (new as f64 / n).max(floor));
        psi += (p - q) * (p / q).ln();
    }
    let freedom = (occupied - 1.0).max(0.0);
    let scale = 1.0 / n + 1.0 / m;
    Comparison { psi, expected: freedom * scale, noise_99: chi_squared_99(freedom) * scale }
}

/// The 99 % point of a chi-squared variable (Wilson and Hilferty, 1931; within 1 % from one degree of freedom on).
pub fn chi_squared_99(freedom: f64) -> f64 {
    const NORMAL_99: f64 = 2.326_347_874_040_841;
    if freedom == 0.0 {
        return 0.0;
    }
    let spread = 2.0 / (9.0 * freedom);
    freedom * (1.0 - spread + NORMAL_99 * spread.sqrt()).powi(3)
}
