//! What stands in the window of an outcome: by key, its predictions and its label. Plain bookkeeping, without the join:
//! what changes is left as [`Change`]s, for the join to follow.

use std::collections::BTreeSet;

use millstream_operators::EventTime;
use millstream_operators::key::hash;
use millstream_operators::state::{KeyedState, StateError};
use serde::{Deserialize, Serialize};

/// An event's place in the order of its stream, but for the names of partitions, which a number stands for here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moment {
    pub event_time: EventTime,
    /// In the outcome's own table, which goes into the checkpoint: the same in every run.
    pub partition: u32,
    pub offset: i64,
}

/// A prediction as it enters the join: the score's bin, and the slices it counts in.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Prediction {
    pub bin: u16,
    pub slices: Vec<u32>,
}

/// A label; `None` takes an earlier one back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Label {
    pub at: Moment,
    pub positive: Option<bool>,
}

/// What is known of a key.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Case {
    predictions: Vec<(Moment, Prediction)>,
    label: Option<Label>,
}

impl Case {
    fn is_empty(&self) -> bool {
        self.predictions.is_empty() && self.label.is_none()
    }

    fn positive(&self) -> Option<bool> {
        self.label.and_then(|label| label.positive)
    }

    /// Its share of the counts.
    fn tally(&self) -> Tally {
        let predictions = self.predictions.len() as u64;
        let labelled = self.positive().is_some();
        Tally {
            predictions,
            pending: if labelled { 0 } else { predictions },
            unmatched_labels: u64::from(labelled && predictions == 0),
        }
    }
}

/// How many of what stand in the window.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Tally {
    /// Predictions, with and without a label.
    pub predictions: u64,
    /// Predictions without a label.
    pub pending: u64,
    /// Labels without a prediction.
    pub unmatched_labels: u64,
}

/// What went out of the window.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Evicted {
    /// Predictions that had their label.
    pub labelled: u64,
    /// Predictions that never had one.
    pub unlabelled: u64,
    /// Labels.
    pub labels: u64,
}

/// What a label did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// The key had none.
    New,
    /// It says something else than the one before.
    Correction,
    /// It says what the one before said.
    Repeat,
    /// It is null: the one before is taken back, if there was one.
    Withdrawal,
    /// There is a later one.
    Stale,
}

/// A change of the join's inputs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A prediction of a key comes (1) or goes (-1).
    Prediction(Box<[u8]>, Prediction, isize),
    /// A label of a key comes or goes.
    Label(Box<[u8]>, bool, isize),
}

/// Predictions and labels in the window.
#[derive(Default)]
pub struct Standing {
    cases: KeyedState<Case>,
    /// The keys to look at when the window has left a time behind. An entry may outlive its reason.
    due: BTreeSet<(EventTime, Box<[u8]>)>,
    tally: Tally,
    /// What the join has not been told yet.
    pub changes: Vec<Change>,
}

impl Standing {
    /// How many of what stand.
    pub fn tally(&self) -> Tally {
        self.tally
    }

    /// Number of keys that are remembered, and of times to look at one.
    #[cfg(test)]
    pub fn size(&self) -> (usize, usize) {
        (self.cases.len(), self.due.len())
    }

    /// Takes in a prediction. The same event again takes the place of the first.
    pub fn predict(&mut self, key: &[u8], at: Moment, prediction: Prediction) {
        self.due.insert((at.event_time, key.into()));
        self.change(key, |case, changes| {
            if let Some(known) = case.predictions.iter().position(|(known, _)| *known == at) {
                let (_, old) = case.predictions.remove(known);
                changes.push(Change::Prediction(key.into(), old, -1));
            }
            changes.push(Change::Prediction(key.into(), prediction.clone(), 1));
            case.predictions.push((at, prediction));
        });
    }

    /// Takes in a label, unless there is one that `is_later` than it.
    pub fn label(&mut self, key: &[u8], label: Label, is_later: impl Fn(&Moment, &Moment) -> bool) -> Effect {
        self.due.insert((label.at.event_time, key.into()));
        self.change(key, |case, changes| {
            let before = case.label;
            if before.is_some_and(|before| is_later(&before.at, &label.at)) {
                return Effect::Stale;
            }
            let old = case.positive();
            case.label = Some(label);
            if old != label.positive {
                changes.extend(old.map(|old| Change::Label(key.into(), old, -1)));
                changes.extend(label.positive.map(|new| Change::Label(key.into(), new, 1)));
            }
            match (old, label.positive) {
                (_, None) => Effect::Withdrawal,
                (None, Some(_)) => Effect::New,
                (Some(old), Some(new)) if old == new => Effect::Repeat,
                (Some(_), Some(_)) => Effect::Correction,
            }
        })
    }

    /// Forgets what happened at or before `end`.
    pub fn forget(&mut self, end: EventTime) -> Evicted {
        let mut evicted = Evicted::default();
        let mut looked_at = 0;
        while self.due.first().is_some_and(|(time, _)| *time <= end) {
            let Some((_, key)) = self.due.pop_first() else { break };
            looked_at += 1;
            if self.cases.find(hash(&key), &key).is_none() {
                continue;
            }
            self.change(&key, |case, changes| {
                let labelled = case.positive().is_some();
                case.predictions.retain(|(at, prediction)| {
                    let stays = at.event_time > end;
                    if !stays {
                        *(if labelled { &mut evicted.labelled } else { &mut evicted.unlabelled }) += 1;
                        changes.push(Change::Prediction(key.clone(), prediction.clone(), -1));
                    }
                    stays
                });
                if let Some(label) = case.label.take_if(|label| label.at.event_time <= end) {
                    evicted.labels += u64::from(label.positive.is_some());
                    changes.extend(label.positive.map(|positive| Change::Label(key.clone(), positive, -1)));
                }
            });
        }
        // Two slots for each key looked at: the sweep goes round faster than cases can become empty.
        self.cases.sweep(2 * looked_at, |_, case| !case.is_empty());
        evicted
    }

    /// Changes the case of a key, and keeps count.
    fn change<R>(&mut self, key: &[u8], change: impl FnOnce(&mut Case, &mut Vec<Change>) -> R) -> R {
        let case = self.cases.entry(key);
        let before = case.tally();
        let result = change(case, &mut self.changes);
        let after = case.tally();
        self.count(before, after);
        result
    }

    fn count(&mut self, before: Tally, after: Tally) {
        let Tally { predictions, pending, unmatched_labels } = &mut self.tally;
        *predictions = *predictions + after.predictions - before.predictions;
        *pending = *pending + after.pending - before.pending;
        *unmatched_labels = *unmatched_labels + after.unmatched_labels - before.unmatched_labels;
    }

    /// Gives what has changed since the last call, by key group.
    pub fn save_changes(&mut self, give: &mut dyn FnMut(u16, Vec<u8>)) {
        self.cases.save_changes(give);
    }

    /// Takes back rows of a key group, the oldest first.
    ///
    /// # Errors
    /// If the bytes do not decode.
    pub fn load(&mut self, key_group: u16, bytes: &[u8]) -> Result<(), StateError> {
        self.cases.load(key_group, bytes)
    }

    /// Takes up what was loaded: afterwards the changes hold all of it.
    pub fn restored(&mut self) {
        let Standing { cases, due, tally, changes } = self;
        (*due, *tally) = (BTreeSet::new(), Tally::default());
        for (key, case) in cases.iter() {
            let of_case = case.tally();
            tally.predictions += of_case.predictions;
            tally.pending += of_case.pending;
            tally.unmatched_labels += of_case.unmatched_labels;
            for (at, prediction) in &case.predictions {
                due.insert((at.event_time, key.into()));
                changes.push(Change::Prediction(key.into(), prediction.clone(), 1));
            }
            if let Some(label) = &case.label {
                due.insert((label.at.event_time, key.into()));
                changes.extend(label.positive.map(|positive| Change::Label(key.into(), positive, 1)));
            }
        }
    }
}
