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
//! the figures are those of the window and memory is bounded by it; what comes too late for the window leaves it at once.
//! Of several labels for a key the latest counts (by event time, then partition and offset); a null label takes
//! the earlier ones back. Several predictions for a key all count. A prediction without a score or a key, and a label
//! without a key, are skipped and counted.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;

use anyhow::Context as _;
use arrow::array::{Array, AsArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float64Type};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use differential_dataflow::input::InputSession;
use millstream_operators::batch::Row;
use millstream_operators::key::{KEY_GROUPS, KeyColumns};
use millstream_operators::quality::{Histogram, Quality, bin};
use millstream_operators::state::rows;
use millstream_operators::{Batch, EventTime};
use serde::{Deserialize, Serialize};
use timely::dataflow::operators::probe::Handle as Probe;
use timely::worker::Worker;

use super::OutcomePlan;
use super::order::EventOrder;
use crate::checkpoint::NodeState;
use slices::Slices;
use standing::{Change, Label, Moment, Prediction, Standing};

mod counts;
mod slices;
mod standing;
#[cfg(test)]
mod tests;

pub use counts::OutcomeCounts;
pub use slices::ALL;

/// Where the state keeps what belongs to no key: behind the key groups.
const HEAD: u16 = KEY_GROUPS as u16;

/// What an outcome remembers that belongs to no key.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Head {
    slices: Vec<String>,
    partitions: Vec<(String, i32)>,
}

/// The join, and what it has come to.
struct Join {
    predictions: InputSession<u64, (Box<[u8]>, Prediction), isize>,
    labels: InputSession<u64, (Box<[u8]>, bool), isize>,
    probe: Probe<u64>,
    /// Predictions with labels, by slice, and the slices that changed since they were last looked at.
    counted: Rc<RefCell<Counted>>,
}

#[derive(Default)]
struct Counted {
    histograms: BTreeMap<u32, Histogram>,
    changed: BTreeSet<u32>,
}

/// The outcomes of a model.
pub struct Outcomes {
    plan: OutcomePlan,
    join: Join,
    standing: Standing,
    slices: Slices,
    partitions: Partitions,
    /// Figures by slice, as of the last epoch.
    figures: BTreeMap<u32, Quality>,
    counts: OutcomeCounts,
    /// The head as it was last given to a checkpoint.
    given: Vec<u8>,
    series: counts::Series,
}

impl Outcomes {
    /// Builds the join on `worker` and puts back what was saved.
    ///
    /// # Errors
    /// If the saved state does not decode.
    pub fn new(
        worker: &mut Worker,
        plan: &OutcomePlan,
        first_epoch: u64,
        saved: Option<&NodeState>,
    ) -> anyhow::Result<Self> {
        let mut outcomes = Outcomes {
            plan: plan.clone(),
            join: Join::new(worker, &plan.name),
            standing: Standing::default(),
            slices: Slices::new(Vec::new()),
            partitions: Partitions::default(),
            figures: BTreeMap::new(),
            counts: OutcomeCounts::default(),
            given: Vec::new(),
            series: counts::Series::new(&plan.name),
        };
        if let Some(saved) = saved {
            outcomes.restore(saved).with_context(|| format!("take up the state of outcome `{}`", plan.name))?;
        }
        outcomes.settle(worker, first_epoch.saturating_sub(1));
        Ok(outcomes)
    }

    fn restore(&mut self, saved: &NodeState) -> anyhow::Result<()> {
        let head = saved.get(&HEAD).and_then(|parts| parts.last()).context("its head is missing")?;
        let head = rows::read(head).next().transpose().map_err(anyhow::Error::msg).context("decode its head")?;
        let (_, head) = head.context("its head is empty")?;
        let head = head.whole().map_err(anyhow::Error::msg).context("decode its head")?;
        let head: Head = postcard::from_bytes(head.unwrap_or_default()).context("decode its head")?;
        for (key_group, parts) in saved.iter().filter(|(key_group, _)| **key_group != HEAD) {
            for bytes in parts {
                self.standing.load(*key_group, bytes)?;
            }
        }
        self.slices = Slices::new(head.slices);
        self.partitions.names = head.partitions;
        self.standing.restored();
        Ok(())
    }

    /// The outcome's name.
    pub fn name(&self) -> &str {
        &self.plan.name
    }

    /// The name of its state in checkpoints.
    pub fn state(&self) -> &str {
        &self.plan.state
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
        order: &mut EventOrder,
    ) -> anyhow::Result<()> {
        if let Some(batch) = rows.get(&self.plan.predictions) {
            self.predict(batch, order)?;
        }
        if let Some(batch) = rows.get(&self.plan.labels) {
            self.learn(batch, order)?;
        }
        let evicted = self.standing.forget(watermark.saturating_sub(self.plan.window.0));
        self.counts.evicted(evicted);
        self.settle(worker, epoch);
        self.counts.standing = self.standing.tally();
        self.series.count(&self.counts);
        Ok(())
    }

    fn predict(&mut self, batch: &Batch, order: &mut EventOrder) -> anyhow::Result<()> {
        let Outcomes { plan, standing, slices, partitions, counts, .. } = self;
        let scores = cast(batch.records.column(plan.score), &DataType::Float64)?;
        let scores = scores.as_primitive::<Float64Type>();
        let options = FormatOptions::default();
        let mut formatters = Vec::new();
        for (name, column) in &plan.slices {
            formatters.push((name, ArrayFormatter::try_new(batch.records.column(*column), &options)?));
        }
        KeyColumns::new(plan.prediction_key.clone()).for_each(batch, |i, key| {
            let score = scores.is_valid(i).then(|| scores.value(i)).filter(|score| score.is_finite());
            let (Some(key), Some(score)) = (key, score) else {
                counts.skip(key.is_some());
                return;
            };
            let mut of = vec![slices::ALL_NUMBER];
            of.extend(formatters.iter().map(|(name, value)| slices.number(name, &value.value(i).to_string())));
            let at = partitions.moment(&batch.rows[i], order);
            standing.predict(key, at, Prediction { bin: bin(score), slices: of });
            counts.predictions += 1;
        });
        Ok(())
    }

    fn learn(&mut self, batch: &Batch, order: &mut EventOrder) -> anyhow::Result<()> {
        let values = self.plan.value.evaluate_each(&batch.records).values;
        let values = cast(&values, &DataType::Float64)?;
        let values = values.as_primitive::<Float64Type>();
        let Outcomes { plan, standing, partitions, counts, .. } = self;
        KeyColumns::new(plan.label_key.clone()).for_each(batch, |i, key| {
            let Some(key) = key else {
                counts.labels.skipped += 1;
                return;
            };
            let value = values.is_valid(i).then(|| values.value(i)).filter(|value| !value.is_nan());
            let at = partitions.moment(&batch.rows[i], order);
            let label = Label { at, positive: value.map(|value| value >= 0.5) };
            counts.labels.add(standing.label(key, label, |a, b| partitions.place(a) > partitions.place(b)));
        });
        Ok(())
    }

    /// Completes an epoch in the dataflow: afterwards the figures are those of all that stands.
    fn settle(&mut self, worker: &mut Worker, epoch: u64) {
        self.join.update(self.standing.changes.drain(..));
        self.join.settle(worker, epoch + 1);
        let mut counted = self.join.counted.borrow_mut();
        let Counted { histograms, changed } = &mut *counted;
        for slice in std::mem::take(changed) {
            let quality = histograms.get(&slice).map(Histogram::quality).unwrap_or_default();
            self.series.judge(self.slices.name(slice), &quality);
            if quality.count == 0 {
                histograms.remove(&slice);
                self.figures.remove(&slice);
            } else {
                self.figures.insert(slice, quality);
            }
        }
    }

    /// The figures by slice, of those with a labelled prediction in the window.
    pub fn quality(&self) -> BTreeMap<String, Quality> {
        self.figures.iter().map(|(slice, quality)| (self.slices.name(*slice).to_owned(), *quality)).collect()
    }

    /// What the outcome has seen in this run, and what stands.
    pub fn counts(&self) -> OutcomeCounts {
        self.counts
    }

    /// Gives what has changed since the last call, as rows by key group; what belongs to no key stands behind the groups.
    pub fn save_changes(&mut self, give: &mut dyn FnMut(u16, Vec<u8>)) {
        self.standing.save_changes(give);
        let (slices, partitions) = (self.slices.names().to_vec(), self.partitions.names.clone());
        let head = Head { slices, partitions };
        let head = postcard::to_allocvec(&head).expect("a vector takes what is written");
        if head != self.given {
            let mut writer = rows::Writer::default();
            writer.put(b"head", |bytes| bytes.extend_from_slice(&head));
            give(HEAD, writer.finish());
            self.given = head;
        }
    }
}

/// The partitions of an outcome's events by numbers of its own, which go into the checkpoint with their names.
#[derive(Default)]
struct Partitions {
    /// Names by the numbers in [`Moment`].
    names: Vec<(String, i32)>,
    /// Those numbers by the numbers of this process.
    known: Vec<Option<u32>>,
}

impl Partitions {
    /// The place of a row.
    fn moment(&mut self, row: &Row, order: &mut EventOrder) -> Moment {
        let number = row.partition as usize;
        if self.known.len() <= number {
            self.known.resize(number + 1, None);
        }
        let partition = self.known[number].unwrap_or_else(|| self.meet(order.partition(row)));
        self.known[number] = Some(partition);
        Moment { event_time: row.event_time, partition, offset: row.offset }
    }

    fn meet(&mut self, (topic, number): &(Arc<str>, i32)) -> u32 {
        let found = self.names.iter().position(|(t, n)| *t == **topic && n == number);
        found.unwrap_or_else(|| {
            self.names.push((topic.to_string(), *number));
            self.names.len() - 1
        }) as u32
    }

    /// What moments are ordered by.
    fn place<'a>(&'a self, at: &Moment) -> (EventTime, &'a (String, i32), i64) {
        (at.event_time, &self.names[at.partition as usize], at.offset)
    }
}

impl Join {
    fn new(worker: &mut Worker, name: &str) -> Join {
        let (mut predictions, mut labels) = (InputSession::new(), InputSession::new());
        let probe = Probe::new();
        let counted: Rc<RefCell<Counted>> = Rc::default();
        let counting = counted.clone();
        worker.dataflow_named::<u64, _, _>(name, |scope| {
            let predictions = predictions.to_collection(scope);
            let labels = labels.to_collection(scope);
            predictions
                .join_map(labels, |_key: &Box<[u8]>, prediction: &Prediction, positive: &bool| {
                    (prediction.clone(), *positive)
                })
                .flat_map(|(prediction, positive)| {
                    prediction.slices.into_iter().map(move |slice| (slice, prediction.bin, positive))
                })
                .consolidate()
                .inspect_batch(move |_time, changes| {
                    let mut counted = counting.borrow_mut();
                    for ((slice, bin, positive), _, times) in changes {
                        counted.histograms.entry(*slice).or_default().add(*bin, *positive, *times as i64);
                        counted.changed.insert(*slice);
                    }
                })
                .probe_with(&probe);
        });
        Join { predictions, labels, probe, counted }
    }

    fn update(&mut self, changes: impl Iterator<Item = Change>) {
        for change in changes {
            match change {
                Change::Prediction(key, prediction, times) => self.predictions.update((key, prediction), times),
                Change::Label(key, positive, times) => self.labels.update((key, positive), times),
            }
        }
    }

    /// Works until everything before epoch `next` has gone through.
    fn settle(&mut self, worker: &mut Worker, next: u64) {
        self.predictions.advance_to(next);
        self.labels.advance_to(next);
        self.predictions.flush();
        self.labels.flush();
        while self.probe.less_than(&next) {
            worker.step();
        }
    }
}
