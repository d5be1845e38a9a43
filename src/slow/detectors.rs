//! The detectors of a job, each on its column.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Context as _;
use arrow::array::{Array, AsArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float64Type};
use millstream_operators::Batch;
use millstream_operators::drift::{self, Detector, Level, Signal, Verdict};
use millstream_operators::expressions::Expression;
use millstream_operators::state::rows;

use super::order::EventOrder;
use super::{ALL, DetectorPlan};
use crate::checkpoint::NodeState;
use crate::metrics::catalogue::{DRIFT_ALERTS, DRIFT_SCORE, DRIFT_SKIPPED, DRIFT_VALUES, DRIFT_WINDOW_SAMPLES};
use crate::metrics::{CounterHandle, GaugeHandle};

/// What a detector did in a run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DetectorCounts {
    /// Values it was shown.
    pub values: u64,
    /// Values among them that it could not use: null, NaN, or infinite where it takes no infinity.
    pub skipped: u64,
    /// Signals of level `warning`.
    pub warnings: u64,
    /// Signals of level `drift`.
    pub drifts: u64,
}

struct Watching {
    plan: DetectorPlan,
    detector: Box<dyn Detector>,
    counts: DetectorCounts,
    /// Whether it has seen a row since its state was last given.
    changed: bool,
    series: Series,
}

/// All detectors.
pub struct Detectors {
    all: Vec<Watching>,
}

impl Detectors {
    /// Builds the detectors, with the states that a checkpoint has of them.
    ///
    /// # Errors
    /// If a detector's configuration is wrong, or its state does not decode.
    pub fn new(plans: &[DetectorPlan], states: &BTreeMap<String, NodeState>) -> anyhow::Result<Detectors> {
        let mut all = Vec::new();
        for plan in plans {
            let mut detector =
                plan.config.settings().build().with_context(|| format!("build detector `{}`", plan.name))?;
            if let Some(state) = states.get(&plan.state).and_then(|state| state.get(&0)?.last()) {
                restore(detector.as_mut(), state)
                    .with_context(|| format!("take up the state of detector `{}`", plan.name))?;
            }
            let (plan, counts, series) = (plan.clone(), DetectorCounts::default(), Series::new(plan));
            all.push(Watching { plan, detector, counts, changed: false, series });
        }
        Ok(Detectors { all })
    }

    /// Shows the rows of an epoch, by stream and in order, to the detectors. Gives their signals, in `order`.
    pub fn observe(&mut self, rows: &BTreeMap<usize, Batch>, order: &EventOrder) -> Option<Batch> {
        let mut signals = Vec::new();
        for watching in &mut self.all {
            if let Some(batch) = rows.get(&watching.plan.stream) {
                watching.observe(batch, &mut signals);
                watching.changed = true;
            }
        }
        signals.sort_by(|a, b| order.compare(&a.row, &b.row));
        (!signals.is_empty()).then(|| drift::to_batch(&signals))
    }

    /// Gives the states that have changed since the last call, each by the name of its state as a row of key group 0.
    pub fn save_changes(&mut self, give: &mut dyn FnMut(&str, Vec<u8>)) {
        for watching in self.all.iter_mut().filter(|watching| watching.changed) {
            watching.changed = false;
            let mut writer = rows::Writer::default();
            writer.put(b"detector", |bytes| bytes.extend(watching.detector.save()));
            give(&watching.plan.state, writer.finish());
        }
    }

    /// What each detector did since the start.
    pub fn counts(&self) -> BTreeMap<String, DetectorCounts> {
        self.all.iter().map(|watching| (watching.plan.name.clone(), watching.counts)).collect()
    }
}

fn restore(detector: &mut dyn Detector, state: &[u8]) -> anyhow::Result<()> {
    let row = rows::read(state).next().transpose().map_err(anyhow::Error::msg).context("decode it")?;
    let (_, saved) = row.context("decode it")?;
    let saved = saved.whole().map_err(anyhow::Error::msg).context("decode it")?;
    Ok(detector.load(saved.unwrap_or_default())?)
}

impl Watching {
    fn observe(&mut self, batch: &Batch, signals: &mut Vec<Signal>) {
        let in_slice = self.plan.condition.as_ref().map(|condition| condition.evaluate_each(&batch.records).values);
        let in_slice = in_slice.as_ref().and_then(|values| values.as_boolean_opt());
        let values = cast(batch.records.column(self.plan.column), &DataType::Float64);
        let values = values.expect("the plan lets detectors watch numeric columns only");
        let values = values.as_primitive::<Float64Type>();
        for (i, row) in batch.rows.iter().enumerate() {
            if in_slice.is_some_and(|slice| !(slice.is_valid(i) && slice.value(i))) {
                continue;
            }
            let value = values.is_valid(i).then(|| values.value(i));
            self.counts.values += 1;
            match self.detector.observe(value, row.event_time) {
                Verdict::Quiet => {}
                Verdict::Skipped => self.counts.skipped += 1,
                Verdict::Alarm(alarm) => {
                    *match alarm.level {
                        Level::Warning => &mut self.counts.warnings,
                        Level::Drift => &mut self.counts.drifts,
                    } += 1;
                    signals.push(Signal {
                        detector: Arc::from(self.plan.name.as_str()),
                        kind: self.plan.config.kind_name(),
                        stream: Arc::from(self.plan.stream_name.as_str()),
                        column: Arc::from(self.plan.column_name.as_str()),
                        slice: Arc::from(self.plan.condition.as_ref().map_or(ALL, Expression::sql)),
                        row: *row,
                        alarm,
                    });
                }
            }
        }
        self.series.tell(&self.counts, self.detector.as_ref());
    }
}

/// The series of a detector.
struct Series {
    values: CounterHandle,
    skipped: CounterHandle,
    warnings: CounterHandle,
    drifts: CounterHandle,
    samples: GaugeHandle,
    labels: [String; 2],
}

impl Series {
    fn new(plan: &DetectorPlan) -> Self {
        let labels = [plan.stream_name.as_str(), plan.name.as_str()];
        let alerts = |level: Level| DRIFT_ALERTS.of([labels[0], labels[1], level.as_str()]);
        Series {
            values: DRIFT_VALUES.of(labels),
            skipped: DRIFT_SKIPPED.of(labels),
            warnings: alerts(Level::Warning),
            drifts: alerts(Level::Drift),
            samples: DRIFT_WINDOW_SAMPLES.of(labels),
            labels: labels.map(str::to_owned),
        }
    }

    /// Tells the counts, once an epoch.
    fn tell(&self, counts: &DetectorCounts, detector: &dyn Detector) {
        self.values.absolute(counts.values);
        self.skipped.absolute(counts.skipped);
        self.warnings.absolute(counts.warnings);
        self.drifts.absolute(counts.drifts);
        self.samples.set(detector.window_samples() as f64);
        if let Some(statistic) = detector.statistic() {
            DRIFT_SCORE.of([&self.labels[0], &self.labels[1]]).set(statistic);
        }
    }
}
