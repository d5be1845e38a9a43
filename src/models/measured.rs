//! A scorer whose runs are measured: how long each takes, and how many rows it has.

use std::time::Instant;

use millstream_operators::score::{ModelFailed, Scorer, Scores, Values};

use crate::metrics::HistogramHandle;
use crate::metrics::catalogue::{MODEL_BATCH_ROWS, MODEL_INFERENCE_DURATION};

/// Passes rows on to a scorer and records each run. Two readings of the clock and two observations a run, some 100 ns.
pub struct Measured<S> {
    scorer: S,
    seconds: HistogramHandle,
    rows: HistogramHandle,
}

impl<S> Measured<S> {
    /// The scorer of the model called `model` in the topology.
    pub fn new(model: &str, scorer: S) -> Self {
        Measured { scorer, seconds: MODEL_INFERENCE_DURATION.of([model]), rows: MODEL_BATCH_ROWS.of([model]) }
    }
}

impl<S: Scorer> Scorer for Measured<S> {
    fn score(&mut self, inputs: &[Values], rows: usize, scores: &mut Scores) -> Result<(), ModelFailed> {
        let started = Instant::now();
        let scored = self.scorer.score(inputs, rows, scores);
        self.seconds.record(started.elapsed().as_secs_f64());
        self.rows.record(rows as f64);
        scored
    }
}
