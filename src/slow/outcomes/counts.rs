//! What an outcome counts, for the summary and the metrics.

use millstream_operators::quality::Quality;
use serde::Serialize;

use super::standing::{Effect, Evicted, Tally};
use crate::metrics::GaugeHandle;
use crate::metrics::catalogue::*;

/// What an outcome has seen in a run, and what stands at its end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct OutcomeCounts {
    /// Predictions taken in.
    pub predictions: u64,
    /// Predictions skipped because their score is null, NaN or infinite.
    pub skipped_scores: u64,
    /// Predictions skipped because a column of their key is null.
    pub skipped_keys: u64,
    /// Labels, by what they did.
    pub labels: LabelCounts,
    /// Predictions that left the window with their label.
    pub evicted_labelled: u64,
    /// Predictions that left the window without one.
    pub evicted_unlabelled: u64,
    /// Labels that left the window.
    pub evicted_labels: u64,
    /// What is in the window now.
    pub standing: Tally,
}

/// Labels by what they did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct LabelCounts {
    /// The key had none.
    pub new: u64,
    /// It says something else than the one before.
    pub correction: u64,
    /// It says what the one before said.
    pub repeat: u64,
    /// It is null and takes back what there was.
    pub withdrawal: u64,
    /// There is a later one: it counts for nothing.
    pub stale: u64,
    /// A column of its key is null.
    pub skipped: u64,
}

impl OutcomeCounts {
    /// Counts a prediction that is skipped, with a key or without.
    pub(super) fn skip(&mut self, has_key: bool) {
        *(if has_key { &mut self.skipped_scores } else { &mut self.skipped_keys }) += 1;
    }

    pub(super) fn evicted(&mut self, evicted: Evicted) {
        self.evicted_labelled += evicted.labelled;
        self.evicted_unlabelled += evicted.unlabelled;
        self.evicted_labels += evicted.labels;
    }
}

impl LabelCounts {
    pub(super) fn add(&mut self, effect: Effect) {
        *match effect {
            Effect::New => &mut self.new,
            Effect::Correction => &mut self.correction,
            Effect::Repeat => &mut self.repeat,
            Effect::Withdrawal => &mut self.withdrawal,
            Effect::Stale => &mut self.stale,
        } += 1;
    }

    fn by_effect(&self) -> [(&'static str, u64); 6] {
        let LabelCounts { new, correction, repeat, withdrawal, stale, skipped } = *self;
        [
            ("new", new),
            ("correction", correction),
            ("repeat", repeat),
            ("withdrawal", withdrawal),
            ("stale", stale),
            ("skipped", skipped),
        ]
    }
}

/// The series of an outcome.
pub struct Series {
    outcome: String,
    predictions: GaugeHandle,
    pending: GaugeHandle,
    unmatched: GaugeHandle,
}

impl Series {
    /// For the outcome of this name.
    pub fn new(outcome: &str) -> Self {
        Series {
            outcome: outcome.into(),
            predictions: OUTCOME_PREDICTIONS.of([outcome]),
            pending: OUTCOME_PENDING.of([outcome]),
            unmatched: OUTCOME_UNMATCHED_LABELS.of([outcome]),
        }
    }

    /// Tells the counts, once an epoch.
    pub fn count(&self, counts: &OutcomeCounts) {
        let name = self.outcome.as_str();
        self.predictions.set(counts.standing.predictions as f64);
        self.pending.set(counts.standing.pending as f64);
        self.unmatched.set(counts.standing.unmatched_labels as f64);
        for (effect, labels) in counts.labels.by_effect() {
            OUTCOME_LABELS.of([name, effect]).absolute(labels);
        }
        OUTCOME_SKIPPED.of([name, "score"]).absolute(counts.skipped_scores);
        OUTCOME_SKIPPED.of([name, "key"]).absolute(counts.skipped_keys);
        for (what, evicted) in [
            ("labelled", counts.evicted_labelled),
            ("unlabelled", counts.evicted_unlabelled),
            ("label", counts.evicted_labels),
        ] {
            OUTCOME_EVICTED.of([name, what]).absolute(evicted);
        }
    }

    /// Tells the figures of a slice that has changed. A figure that has no meaning any more is NaN: a series can't go.
    pub fn judge(&self, slice: &str, quality: &Quality) {
        let labels = [self.outcome.as_str(), slice];
        OUTCOME_JOINED.of(labels).set(quality.count as f64);
        for (metric, value) in [
            (&OUTCOME_AUC, quality.auc),
            (&OUTCOME_LOG_LOSS, quality.log_loss),
            (&OUTCOME_CALIBRATION_ERROR, quality.calibration_error),
            (&OUTCOME_POSITIVE_RATIO, quality.base_rate),
        ] {
            metric.of(labels).set(value.unwrap_or(f64::NAN));
        }
    }
}
