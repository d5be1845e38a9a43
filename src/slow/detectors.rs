//! The detectors of a job, each on its column.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Context as _;
use arrow::array::{Array, AsArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float64Type};
use millstream_operators::Batch;
use millstream_operators::drift::{self, Detector, Signal, Verdict};

use super::DetectorPlan;
use crate::metrics::catalogue::{DRIFT_ALERTS, DRIFT_SCORE, DRIFT_WINDOW_SAMPLES};

struct Watching {
    plan: DetectorPlan,
    detector: Box<dyn Detector>,
    signals: u64,
}

/// All detectors.
pub struct Detectors {
    all: Vec<Watching>,
}

impl Detectors {
    /// Builds the detectors, with the states that were saved.
    ///
    /// # Errors
    /// If a detector's configuration is wrong, or its state is another's.
    pub fn new(plans: &[DetectorPlan], states: &BTreeMap<String, Vec<u8>>) -> anyhow::Result<Detectors> {
        let mut all = Vec::new();
        for plan in plans {
            let mut detector = plan.config.build().with_context(|| format!("build detector `{}`", plan.name))?;
            if let Some(state) = states.get(&plan.name) {
                detector.load(state).with_context(|| format!("take up the state of detector `{}`", plan.name))?;
            }
            all.push(Watching { plan: plan.clone(), detector, signals: 0 });
        }
        Ok(Detectors { all })
    }

    /// Shows the rows of an epoch, by stream and in order, to the detectors. Gives their signals.
    pub fn observe(&mut self, rows: &BTreeMap<usize, Batch>) -> Option<Batch> {
        let mut signals = Vec::new();
        for watching in &mut self.all {
            if let Some(batch) = rows.get(&watching.plan.stream) {
                watching.observe(batch, &mut signals);
            }
        }
        signals.sort_by_key(|signal| {
            let row = &signal.row;
            (row.event_time, row.source, row.partition, row.offset)
        });
        (!signals.is_empty()).then(|| drift::to_batch(&signals))
    }

    /// The states by name.
    pub fn save(&self) -> BTreeMap<String, Vec<u8>> {
        self.all.iter().map(|watching| (watching.plan.name.clone(), watching.detector.save())).collect()
    }

    /// Signals by name, since the start.
    pub fn into_counts(self) -> BTreeMap<String, u64> {
        self.all.into_iter().map(|watching| (watching.plan.name, watching.signals)).collect()
    }
}

impl Watching {
    fn observe(&mut self, batch: &Batch, signals: &mut Vec<Signal>) {
        let values = cast(batch.records.column(self.plan.column), &DataType::Float64);
        let values = values.expect("the plan lets detectors watch numeric columns only");
        let values = values.as_primitive::<Float64Type>();
        let before = signals.len();
        for (i, row) in batch.rows.iter().enumerate() {
            let value = values.is_valid(i).then(|| values.value(i));
            if let Verdict::Alarm(alarm) = self.detector.observe(value, row.event_time) {
                signals.push(Signal {
                    detector: Arc::from(self.plan.name.as_str()),
                    kind: self.plan.config.kind_name(),
                    stream: Arc::from(self.plan.stream_name.as_str()),
                    column: Arc::from(self.plan.column_name.as_str()),
                    row: *row,
                    alarm,
                });
            }
        }
        let raised = (signals.len() - before) as u64;
        self.signals += raised;
        let labels = [self.plan.stream_name.as_str(), self.plan.name.as_str()];
        DRIFT_ALERTS.of(labels).increment(raised);
        DRIFT_WINDOW_SAMPLES.of(labels).set(self.detector.window_samples() as f64);
        if let Some(statistic) = self.detector.statistic() {
            DRIFT_SCORE.of(labels).set(statistic);
        }
    }
}
