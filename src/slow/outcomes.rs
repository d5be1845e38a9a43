//! Predictions joined to labels that arrive hours later, as differential collections.
//!
//! ```text
//! predictions (key -> score bin, slices) ──┐
//!                                          ├─ join ─▶ (slice, bin, label), consolidated ─▶ a histogram a slice
//! labels      (key -> positive?)        ───┘
//! ```
//!
//! Order does not matter: a label may come first. A corrected label takes the old one back and puts the new one in, and
//! the difference flows through the join into the figures. What is older than the window is taken back the same way, so
//! the figures are those of the window and memory is bounded by it. Of several labels for a key the latest counts (by
//! event time, then partition and offset); several predictions for a key all count.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

use arrow::array::{Array, AsArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float64Type};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use differential_dataflow::input::InputSession;
use millstream_operators::batch::Row;
use millstream_operators::key::KeyColumns;
use millstream_operators::quality::{Histogram, Quality, bin};
use millstream_operators::{Batch, EventTime};
use serde::{Deserialize, Serialize};
use timely::dataflow::operators::probe::Handle as Probe;
use timely::worker::Worker;

use super::OutcomePlan;
use crate::metrics::catalogue::{
    OUTCOME_AUC, OUTCOME_CALIBRATION_ERROR, OUTCOME_JOINED, OUTCOME_LOG_LOSS, OUTCOME_POSITIVE_RATIO,
    OUTCOME_PREDICTIONS, SLICES_MAX,
};

/// Order of events, the same in every run.
type Place = (EventTime, u16, u32, i64);

fn place(row: &Row) -> Place {
    (row.event_time, row.source, row.partition, row.offset)
}

/// A prediction as it enters the join: the score's bin, and the slices it counts in.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
struct Prediction {
    bin: u16,
    slices: Vec<u32>,
}

/// A label that stands; `None` takes an earlier one back.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Label {
    at: Place,
    positive: Option<bool>,
}

/// What an outcome remembers: the consolidated inputs of its join.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Saved {
    predictions: Vec<(Place, String, Prediction)>,
    labels: Vec<(String, Label)>,
    slices: Vec<String>,
}

/// The outcomes of a model.
pub struct Outcomes {
    plan: OutcomePlan,
    predictions: InputSession<u64, (String, Prediction), isize>,
    labels: InputSession<u64, (String, bool), isize>,
    probe: Probe<u64>,
    histograms: Rc<RefCell<BTreeMap<u32, Histogram>>>,
    /// The predictions in the window, oldest first.
    standing: BTreeMap<(Place, String), Prediction>,
    /// The label of each key.
    known: HashMap<String, Label>,
    /// The labels in the window, oldest first.
    aging: BTreeMap<(Place, String), ()>,
    /// Names of slices; the first is everything.
    slices: Vec<String>,
    numbers: HashMap<String, u32>,
}

/// Values of a column beyond [`SLICES_MAX`] count together under this one.
const OTHER: &str = "other";

impl Outcomes {
    /// Builds the join on `worker` and puts back what was saved.
    ///
    /// # Errors
    /// None today; the state was decoded before.
    pub fn new(
        worker: &mut Worker,
        plan: &OutcomePlan,
        first_epoch: u64,
        saved: Option<&Saved>,
    ) -> anyhow::Result<Self> {
        let (mut predictions, mut labels) = (InputSession::new(), InputSession::new());
        let probe = Probe::new();
        let histograms: Rc<RefCell<BTreeMap<u32, Histogram>>> = Rc::default();
        let counted = histograms.clone();
        worker.dataflow_named::<u64, _, _>(&plan.name, |scope| {
            let predictions = predictions.to_collection(scope);
            let labels = labels.to_collection(scope);
            predictions
                .join_map(labels, |_key: &String, prediction: &Prediction, positive: &bool| {
                    (prediction.clone(), *positive)
                })
                .flat_map(|(prediction, positive)| {
                    prediction.slices.into_iter().map(move |slice| (slice, prediction.bin, positive))
                })
                .consolidate()
                .inspect_batch(move |_time, changes| {
                    let mut histograms = counted.borrow_mut();
                    for ((slice, bin, positive), _, times) in changes {
                        histograms.entry(*slice).or_default().add(*bin, *positive, *times as i64);
                    }
                })
                .probe_with(&probe);
        });
        let mut outcomes = Outcomes {
            plan: plan.clone(),
            predictions,
            labels,
            probe,
            histograms,
            standing: BTreeMap::new(),
            known: HashMap::new(),
            aging: BTreeMap::new(),
            slices: vec![String::new()],
            numbers: HashMap::from([(String::new(), 0)]),
        };
        if let Some(saved) = saved {
            outcomes.restore(saved);
        }
        outcomes.settle(worker, first_epoch.saturating_sub(1));
        Ok(outcomes)
    }

    fn restore(&mut self, saved: &Saved) {
        self.slices.clone_from(&saved.slices);
        self.numbers = saved.slices.iter().enumerate().map(|(n, slice)| (slice.clone(), n as u32)).collect();
        for (at, key, prediction) in &saved.predictions {
            self.predictions.insert((key.clone(), prediction.clone()));
            self.standing.insert((*at, key.clone()), prediction.clone());
        }
        for (key, label) in &saved.labels {
            self.label(key.clone(), *label);
        }
    }

    /// The outcome's name.
    pub fn name(&self) -> &str {
        &self.plan.name
    }

    /// Takes the rows of a completed epoch, by stream and in order.
    ///
    /// # Errors
    /// If a column is not what the plan says.
    pub fn epoch(
        &mut self,
        worker: &mut Worker,
        epoch: u64,
        rows: &BTreeMap<usize, Batch>,
        watermark: EventTime,
    ) -> anyhow::Result<()> {
        if let Some(batch) = rows.get(&self.plan.predictions) {
            self.predict(batch)?;
        }
        if let Some(batch) = rows.get(&self.plan.labels) {
            self.learn(batch)?;
        }
        self.forget(watermark);
        self.settle(worker, epoch);
        self.publish();
        Ok(())
    }

    fn predict(&mut self, batch: &Batch) -> anyhow::Result<()> {
        let scores = cast(batch.records.column(self.plan.score), &DataType::Float64)?;
        let scores = scores.as_primitive::<Float64Type>();
        let options = FormatOptions::default();
        let columns = self.plan.slices.clone();
        let mut formatters = Vec::new();
        for (name, column) in &columns {
            formatters.push((name, ArrayFormatter::try_new(batch.records.column(*column), &options)?));
        }
        let mut keys: Vec<Option<String>> = Vec::with_capacity(batch.len());
        KeyColumns::new(self.plan.prediction_key.clone()).for_each(batch, |_, key| keys.push(key.map(text)));
        for (i, key) in keys.into_iter().enumerate() {
            let Some(key) = key.filter(|_| scores.is_valid(i)) else { continue };
            let mut slices = vec![0];
            for (name, formatter) in &formatters {
                slices.push(self.slice(name, &formatter.value(i).to_string()));
            }
            let prediction = Prediction { bin: bin(scores.value(i)), slices };
            self.predictions.insert((key.clone(), prediction.clone()));
            self.standing.insert((place(&batch.rows[i]), key), prediction);
        }
        Ok(())
    }

    /// The number of a slice; a column has at most [`SLICES_MAX`], the rest count as `other`.
    fn slice(&mut self, column: &str, value: &str) -> u32 {
        let name = format!("{column}={value}");
        if let Some(number) = self.numbers.get(&name) {
            return *number;
        }
        let of_column = format!("{column}=");
        let many = self.slices.iter().filter(|slice| slice.starts_with(&of_column)).count() >= SLICES_MAX;
        let name = if many { format!("{column}={OTHER}") } else { name };
        *self.numbers.entry(name.clone()).or_insert_with(|| {
            self.slices.push(name);
            (self.slices.len() - 1) as u32
        })
    }

    fn learn(&mut self, batch: &Batch) -> anyhow::Result<()> {
        let values = self.plan.value.evaluate_each(&batch.records).values;
        let values = cast(&values, &DataType::Float64)?;
        let values = values.as_primitive::<Float64Type>();
        let mut keys: Vec<Option<String>> = Vec::with_capacity(batch.len());
        KeyColumns::new(self.plan.label_key.clone()).for_each(batch, |_, key| keys.push(key.map(text)));
        for (i, key) in keys.into_iter().enumerate() {
            let Some(key) = key else { continue };
            let value = values.is_valid(i).then(|| values.value(i)).filter(|value| !value.is_nan());
            self.label(key, Label { at: place(&batch.rows[i]), positive: value.map(|value| value >= 0.5) });
        }
        Ok(())
    }

    /// Puts a label in the place of the one before it, unless that is the later one.
    fn label(&mut self, key: String, label: Label) {
        if let Some(old) = self.known.get(&key).copied() {
            if old.at > label.at {
                return;
            }
            self.take_back(&key, old);
        }
        if let Some(positive) = label.positive {
            self.labels.insert((key.clone(), positive));
        }
        self.aging.insert((label.at, key.clone()), ());
        self.known.insert(key, label);
    }

    fn take_back(&mut self, key: &str, old: Label) {
        if let Some(positive) = old.positive {
            self.labels.remove((key.to_string(), positive));
        }
        self.aging.remove(&(old.at, key.to_string()));
    }

    /// Takes back what the window has left behind.
    fn forget(&mut self, watermark: EventTime) {
        let end = watermark.saturating_sub(self.plan.window.0);
        while let Some(first) = self.standing.first_entry().filter(|entry| entry.key().0.0 <= end) {
            let ((_, key), prediction) = first.remove_entry();
            self.predictions.remove((key, prediction));
        }
        while let Some(((at, key), ())) = self.aging.pop_first() {
            if at.0 > end {
                self.aging.insert((at, key), ());
                return;
            }
            if let Some(old) = self.known.remove(&key) {
                self.take_back(&key, old);
            }
        }
    }

    /// Completes an epoch in the dataflow: afterwards the histograms hold all of it.
    fn settle(&mut self, worker: &mut Worker, epoch: u64) {
        let next = epoch + 1;
        self.predictions.advance_to(next);
        self.labels.advance_to(next);
        self.predictions.flush();
        self.labels.flush();
        while self.probe.less_than(&next) {
            worker.step();
        }
    }

    /// The figures by slice.
    pub fn quality(&self) -> BTreeMap<String, Quality> {
        let histograms = self.histograms.borrow();
        let figures = histograms.iter().filter(|(_, histogram)| !histogram.is_empty());
        figures.map(|(slice, histogram)| (self.slices[*slice as usize].clone(), histogram.quality())).collect()
    }

    fn publish(&self) {
        let name = self.plan.name.as_str();
        OUTCOME_PREDICTIONS.of([name]).set(self.standing.len() as f64);
        for (slice, quality) in self.quality() {
            let labels = [name, slice.as_str()];
            OUTCOME_JOINED.of(labels).set(quality.count as f64);
            for (metric, value) in [
                (&OUTCOME_AUC, quality.auc),
                (&OUTCOME_LOG_LOSS, quality.log_loss),
                (&OUTCOME_CALIBRATION_ERROR, quality.calibration_error),
                (&OUTCOME_POSITIVE_RATIO, quality.base_rate),
            ] {
                if let Some(value) = value {
                    metric.of(labels).set(value);
                }
            }
        }
    }

    /// What is remembered, for the checkpoint.
    pub fn save(self) -> Saved {
        let mut labels: Vec<(String, Label)> = self.known.into_iter().collect();
        labels.sort_by(|a, b| a.0.cmp(&b.0));
        let standing = self.standing.into_iter();
        Saved {
            predictions: standing.map(|((at, key), prediction)| (at, key, prediction)).collect(),
            labels,
            slices: self.slices,
        }
    }
}

fn text(key: &[u8]) -> String {
    String::from_utf8_lossy(key).into_owned()
}
