//! Running quality of binary predictions: AUC, log loss, Brier score, calibration, from one histogram of scores.
//!
//! A score is counted in one of 65,536 equal bins, by label, with a multiplicity: a retracted prediction or a corrected
//! label is counted with -1, so the figures are always those of the predictions that stand. Rounding a score to its bin
//! moves it by at most 8e-6; the AUC is exact for the rounded scores (ties count half: Mann-Whitney).

use std::collections::BTreeMap;

/// Number of bins.
pub const BINS: u32 = 1 << 16;
/// Bins of the calibration curve.
const CALIBRATION_BINS: usize = 10;
/// Log loss is taken of probabilities no closer to 0 and 1 than half a bin, so that one confident mistake is not infinite.
const CLIP: f64 = 0.5 / BINS as f64;

/// The bin of a score in [0, 1]; a score outside counts as 0 or 1.
pub fn bin(score: f64) -> u16 {
    (score.clamp(0.0, 1.0) * f64::from(BINS)).min(f64::from(BINS - 1)) as u16
}

/// The score that a bin stands for: its middle.
fn middle(bin: u16) -> f64 {
    (f64::from(bin) + 0.5) / f64::from(BINS)
}

/// Predictions with labels, counted.
///
/// ```
/// use millstream_operators::quality::{Histogram, bin};
/// let mut histogram = Histogram::default();
/// for (score, label) in [(0.9, true), (0.8, false), (0.3, false), (0.7, true)] {
///     histogram.add(bin(score), label, 1);
/// }
/// assert_eq!(histogram.quality().auc, Some(0.75));
/// histogram.add(bin(0.8), false, -1); // the label was wrong ...
/// histogram.add(bin(0.8), true, 1); // ... and is corrected
/// assert_eq!(histogram.quality().auc, Some(1.0));
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Histogram {
    /// Negatives and positives of each bin that has some.
    bins: BTreeMap<u16, [i64; 2]>,
}

/// Figures of a histogram. Each is none where it has no meaning: without predictions, or without both classes.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Quality {
    /// Predictions with a label.
    pub count: u64,
    /// Share of positives.
    pub base_rate: Option<f64>,
    /// Area under the ROC curve.
    pub auc: Option<f64>,
    /// Mean log loss, in nats.
    pub log_loss: Option<f64>,
    /// Mean squared difference between score and label.
    pub brier: Option<f64>,
    /// Expected calibration error over ten equal bins: mean |mean score - observed rate|, weighted by count.
    pub calibration_error: Option<f64>,
}

impl Histogram {
    /// Counts a prediction `times` times; a negative number takes it back.
    pub fn add(&mut self, bin: u16, label: bool, times: i64) {
        let entry = self.bins.entry(bin).or_default();
        entry[usize::from(label)] += times;
        if *entry == [0, 0] {
            self.bins.remove(&bin);
        }
    }

    /// True when nothing is counted.
    pub fn is_empty(&self) -> bool {
        self.bins.is_empty()
    }

    /// The figures.
    pub fn quality(&self) -> Quality {
        let (mut negatives, mut positives, mut pairs) = (0.0, 0.0, 0.0);
        let (mut loss, mut squares) = (0.0, 0.0);
        let mut calibration = [[0.0; 3]; CALIBRATION_BINS];
        for (bin, [negative, positive]) in &self.bins {
            let (score, negative, positive) = (middle(*bin), *negative as f64, *positive as f64);
            pairs += positive * (negatives + negative / 2.0);
            negatives += negative;
            positives += positive;
            let clipped = score.clamp(CLIP, 1.0 - CLIP);
            loss -= positive * clipped.ln() + negative * (1.0 - clipped).ln();
            squares += positive * (1.0 - score).powi(2) + negative * score.powi(2);
            let place = (score * CALIBRATION_BINS as f64) as usize;
            let of_bin = &mut calibration[place.min(CALIBRATION_BINS - 1)];
            of_bin[0] += positive + negative;
            of_bin[1] += score * (positive + negative);
            of_bin[2] += positive;
        }
        let count = negatives + positives;
        let mean = |sum: f64| (count > 0.0).then(|| sum / count);
        let errors: f64 = calibration.iter().map(|[_, scores, positives]| (scores - positives).abs()).sum();
        Quality {
            count: count as u64,
            base_rate: mean(positives),
            auc: (negatives > 0.0 && positives > 0.0).then(|| pairs / (negatives * positives)),
            log_loss: mean(loss),
            brier: mean(squares),
            calibration_error: mean(errors),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The share of pairs of a positive and a negative that are ordered rightly, counted pair by pair.
    fn slow_auc(rows: &[(u16, bool)]) -> Option<f64> {
        let scores = |label| rows.iter().filter(move |row| row.1 == label).map(|row| row.0);
        let (mut right, mut pairs) = (0.0, 0.0);
        for positive in scores(true) {
            for negative in scores(false) {
                pairs += 1.0;
                right += match positive.cmp(&negative) {
                    std::cmp::Ordering::Greater => 1.0,
                    std::cmp::Ordering::Equal => 0.5,
                    std::cmp::Ordering::Less => 0.0,
                };
            }
        }
        (pairs > 0.0).then(|| right / pairs)
    }

    proptest! {
        #[test]
        fn the_auc_is_the_share_of_ordered_pairs(
            rows in prop::collection::vec((0u16..40, any::<bool>()), 0..60),
            taken_back in prop::collection::vec((0u16..40, any::<bool>()), 0..20),
        ) {
            let mut histogram = Histogram::default();
            for (bin, label) in rows.iter().chain(&taken_back) {
                histogram.add(*bin * 1000, *label, 1);
            }
            for (bin, label) in &taken_back {
                histogram.add(*bin * 1000, *label, -1);
            }
            let quality = histogram.quality();
            prop_assert_eq!(quality.count as usize, rows.len());
            match (quality.auc, slow_auc(&rows)) {
                (Some(auc), Some(slow)) => prop_assert!((auc - slow).abs() < 1e-12),
                (auc, slow) => prop_assert_eq!(auc, slow),
            }
        }
    }

    #[test]
    fn log_loss_brier_and_calibration_are_their_definitions() {
        let mut histogram = Histogram::default();
        let rows = [(0.2, false), (0.2, true), (0.7, true), (0.9, true)];
        rows.iter().for_each(|(score, label)| histogram.add(bin(*score), *label, 1));
        let quality = histogram.quality();
        let p = |(score, label): &(f64, bool)| if *label { *score } else { 1.0 - score };
        let loss = rows.iter().map(|row| -p(row).ln()).sum::<f64>() / 4.0;
        let brier = rows.iter().map(|row| (1.0 - p(row)).powi(2)).sum::<f64>() / 4.0;
        assert!((quality.log_loss.unwrap() - loss).abs() < 1e-4);
        assert!((quality.brier.unwrap() - brier).abs() < 1e-4);
        assert!((quality.calibration_error.unwrap() - (0.6 + 0.3 + 0.1) / 4.0).abs() < 1e-4);
        assert_eq!(Histogram::default().quality(), Quality::default());
    }
}
