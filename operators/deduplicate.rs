//! Deduplication: of all events that are the same, the first goes on.
//!
//! Who sends events may send some twice: a producer that is not idempotent and has lost an answer, a collector that starts
//! again. Two events are the same if they have the same values in the columns that the topology names, and are at most so
//! long apart in event time. The first that arrives goes on, whichever happened first; the others are dropped and counted.
//!
//! ```text
//! id, minute:   7 at 1    8 at 2    7 at 1    7 at 50    7 at 70        within an hour
//!               goes on   goes on   dropped   dropped    goes on
//! ```
//!
//! The state of an entity key is what has gone on of it, an id and its event time each, for as long as an event that is in
//! time could be the same as one of them. Where entity and id are one and the same it is one event time a key.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::batch::{Batch, EventTime};
use crate::key::{KeyColumns, hash};
use crate::operator::{Operator, Outputs};
use crate::reject::{Reason, Reject};
use crate::state::{Groups, KeyedState, StateError};

/// The operator. Input port 0 takes rows, output port 0 gives those that go on, in their order.
///
/// ```
/// use millstream_operators::deduplicate::Deduplicate;
/// // Rows with an id in column 2 and a card in column 0, an hour apart at most; a card's rows stay in their order.
/// let deduplicate = Deduplicate::new("once", vec![0], vec![2], 3_600_000);
/// ```
pub struct Deduplicate {
    stage: Arc<str>,
    keys: KeyColumns,
    /// What tells the events of a key apart; `None` where that is the key itself.
    ids: Option<KeyColumns>,
    within: u64,
    watermark: EventTime,
    /// Rows taken since the last sweep.
    taken: usize,
    state: KeyedState<Seen>,
}

/// What has gone on of a key: a hash of the id, and the newest event time with which it did, in the order of the hashes. Two ids of one
/// key with the same 64 bits would be taken for one: of a million ids a key in the time, once in forty million keys.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Seen(Vec<(u64, EventTime)>);

/// Bytes of a part: an id and its time.
const PART_BYTES: usize = 16;

impl Seen {
    fn find(&self, id: u64) -> Option<EventTime> {
        let at = self.0.binary_search_by_key(&id, |(known, _)| *known).ok()?;
        Some(self.0[at].1)
    }

    fn put(&mut self, id: u64, time: EventTime) {
        match self.0.binary_search_by_key(&id, |(known, _)| *known) {
            Ok(at) => self.0[at].1 = self.0[at].1.max(time),
            Err(at) => self.0.insert(at, (id, time)),
        }
    }

    /// Takes what was told of: ids with their times, end to end.
    fn take(&mut self, told: &[u8]) -> Result<(), String> {
        let (parts, []) = told.as_chunks::<PART_BYTES>() else { return Err("an id is cut".to_string()) };
        for part in parts {
            let number = |at: usize| part[at..].first_chunk().map(|bytes| u64::from_le_bytes(*bytes));
            let (Some(id), Some(time)) = (number(0), number(8)) else { return Err("an id is cut".to_string()) };
            self.put(id, time as EventTime);
        }
        Ok(())
    }

    fn check(&self) -> Result<(), String> {
        match self.0.is_sorted_by(|one, other| one.0 < other.0) {
            true => Ok(()),
            false => Err("ids are not in their order".to_string()),
        }
    }
}

impl Deduplicate {
    /// An operator of the node `stage`. The columns `keys` of its rows are the entity key, which decides where a row is looked at; the
    /// columns `ids` tell the events of a key apart, and may be the same. Events that are the same are at most `within`
    /// milliseconds apart.
    pub fn new(stage: &str, keys: Vec<usize>, ids: Vec<usize>, within: i64) -> Self {
        Deduplicate {
            stage: stage.into(),
            ids: (ids != keys).then(|| KeyColumns::new(ids)),
            keys: KeyColumns::new(keys),
            within: within.max(0) as u64,
            watermark: EventTime::MIN,
            taken: 0,
            state: KeyedState::new(),
        }
    }

    /// The ids of a batch, hashed; `None` where a column is null.
    fn ids(&self, batch: &Batch) -> Vec<Option<u64>> {
        let Some(columns) = &self.ids else { return vec![Some(0); batch.len()] };
        let mut ids = Vec::with_capacity(batch.len());
        columns.for_each(batch, |_, id| ids.push(id.map(hash)));
        ids
    }
}

impl Operator for Deduplicate {
    fn process(&mut self, _port: usize, batch: Batch, out: &mut Outputs) {
        let ids = self.ids(&batch);
        let Deduplicate { stage, keys, within, state, .. } = self;
        let mut dropped: Vec<u32> = Vec::new();
        keys.for_each(&batch, |row, key| {
            let (Some(key), Some(id)) = (key, ids[row]) else {
                let detail = "a column by which events are told apart is null";
                out.rejects.push(Reject::of_row(stage, Reason::MissingKey, detail, &batch, row));
                dropped.push(row as u32);
                return;
            };
            let (hash, time) = (hash(key), batch.rows[row].event_time);
            let Some(place) = state.find(hash, key) else {
                state.find_or_insert(hash, key, || Seen(vec![(id, time)]));
                return;
            };
            if state.at(place).find(id).is_some_and(|seen| seen.abs_diff(time) <= *within) {
                out.duplicates += 1;
                dropped.push(row as u32);
                return;
            }
            let tell = |_: &Seen, to: &mut Vec<u8>| {
                to.extend_from_slice(&id.to_le_bytes());
                to.extend_from_slice(&time.to_le_bytes());
            };
            state.at_mut_telling(place, tell).put(id, time);
        });
        self.taken += batch.len();
        match dropped.is_empty() {
            true => out.give(0, batch),
            false => batch.without(&dropped).into_iter().for_each(|left| out.give(0, left)),
        }
    }

    /// Of events of one tick the first by event time goes on, so that it does not depend on the number of workers.
    fn process_tick(&mut self, batches: Vec<(usize, Batch)>, out: &mut Outputs) {
        let batches: Vec<Batch> = batches.into_iter().map(|(_, batch)| batch).collect();
        let Some(all) = Batch::concat(&batches).expect("a port has one schema") else { return };
        let mut order: Vec<u32> = (0..all.len() as u32).collect();
        order.sort_by_key(|row| all.rows[*row as usize].place());
        self.process(0, all.take(&order).expect("the indices are rows of the batch"), out);
    }

    fn advance(&mut self, watermark: EventTime, _out: &mut Outputs) {
        // The largest time says that the input has ended, not that a time has come.
        if watermark > self.watermark && watermark < EventTime::MAX {
            self.watermark = watermark;
        }
        let (watermark, within) = (self.watermark, self.within);
        self.state.sweep_after(std::mem::take(&mut self.taken), |_, seen| {
            seen.0.retain(|(_, time)| time.saturating_add_unsigned(within) >= watermark);
            !seen.0.is_empty()
        });
    }

    fn save_changes(&mut self, bytes: usize, give: &mut dyn FnMut(u16, Vec<u8>)) -> bool {
        self.state.save_some_changes(bytes, give)
    }

    fn load(&mut self, key_group: u16, bytes: &[u8]) -> Result<(), StateError> {
        self.state.load_telling(key_group, bytes, Seen::check, Seen::take)
    }

    fn load_groups(&mut self, groups: Groups, threads: usize) -> Result<(), StateError> {
        self.state.load_groups(groups, threads, Seen::check, Seen::take)
    }

    fn state_size(&self) -> (u64, u64) {
        self.state.size(|seen| size_of::<Seen>() + seen.0.capacity() * size_of::<(u64, EventTime)>())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use arrow::array::{AsArray, Int64Array, RecordBatch, StringArray};
    use arrow::datatypes::Int64Type;
    use proptest::prelude::*;

    use super::*;
    use crate::batch::Row;
    use crate::state::rows;

    /// A card, an id and an event time.
    type Event = (Option<u8>, Option<i64>, EventTime);

    fn batch(events: &[Event], first: usize) -> Batch {
        let cards = StringArray::from_iter(events.iter().map(|(card, ..)| card.map(|card| format!("c|{card}"))));
        let ids = Int64Array::from_iter(events.iter().map(|(_, id, _)| *id));
        let numbers = Int64Array::from_iter_values((first..first + events.len()).map(|number| number as i64));
        let columns = [("card", Arc::new(cards) as _), ("id", Arc::new(ids) as _), ("number", Arc::new(numbers) as _)];
        let row = |(at, event): (usize, &Event)| Row {
            source: 0,
            partition: 0,
            offset: (first + at) as i64,
            event_time: event.2,
            arrived_micros: 0,
        };
        Batch::new(RecordBatch::try_from_iter(columns).unwrap(), events.iter().enumerate().map(row).collect())
    }

    /// The numbers of the events that go on.
    fn gone_on(out: &Outputs) -> Vec<usize> {
        let numbers = |batch: &Batch| batch.records.column(2).as_primitive::<Int64Type>().values().to_vec();
        out.ports[0].iter().flat_map(numbers).map(|number| number as usize).collect()
    }

    /// The same, slowly: every event is compared with all that went on before it. An event that is not the same as the newest of its
    /// id goes on, and counts if it is newer.
    fn expected(events: &[Event], within: i64, by_card: bool) -> Vec<usize> {
        let mut newest: BTreeMap<(Option<u8>, i64), EventTime> = BTreeMap::new();
        let mut left = Vec::new();
        for (number, (card, id, time)) in events.iter().enumerate() {
            let (Some(card), Some(id)) = (card, id) else { continue };
            let seen = newest.entry((by_card.then_some(*card), *id));
            match seen {
                std::collections::btree_map::Entry::Occupied(seen) if (time - *seen.get()).abs() <= within => continue,
                seen => drop(seen.and_modify(|seen| *seen = (*time).max(*seen)).or_insert(*time)),
            }
            left.push(number);
        }
        left
    }

    fn events() -> impl Strategy<Value = Vec<Event>> {
        let card = prop_oneof![9 => (0..4_u8).prop_map(Some), 1 => Just(None)];
        let id = prop_oneof![19 => (0..12_i64).prop_map(Some), 1 => Just(None)];
        prop::collection::vec((card, id, 0..400_i64), 0..120)
    }

    proptest! {
        #[test]
        fn the_first_of_each_goes_on_whenever_the_job_is_stopped(
            events in events(), within in 0..200_i64, of_card in any::<bool>(), cuts in prop::collection::vec(1..30_usize, 1..8),
        ) {
            // Ids are of a card, or of all cards.
            let keys = if of_card { vec![0] } else { vec![1] };
            let make = || Deduplicate::new("once", keys.clone(), vec![1], within);
            let (mut operator, mut saved) = (make(), BTreeMap::<u16, Vec<Vec<u8>>>::new());
            let (mut left, mut rejects, mut duplicates, mut from) = (Vec::new(), 0, 0, 0);
            for cut in cuts.iter().cycle() {
                let to = events.len().min(from + cut);
                let mut out = Outputs::new(1);
                operator.process(0, batch(&events[from..to], from), &mut out);
                left.extend(gone_on(&out));
                rejects += out.rejects.len();
                duplicates += out.duplicates as usize;
                while operator.save_changes(64, &mut |group, bytes| saved.entry(group).or_default().push(bytes)) {}
                // Started again: from what was saved.
                if cut % 3 == 0 {
                    operator = make();
                    for (group, blocks) in &saved {
                        operator.load(*group, &rows::merge(blocks.iter().map(Vec::as_slice)).unwrap()).unwrap();
                    }
                }
                from = to;
                if from == events.len() {
                    break;
                }
            }
            let nulls = events.iter().filter(|(card, id, _)| id.is_none() || (of_card && card.is_none())).count();
            let mut events = events;
            if !of_card {
                events.iter_mut().for_each(|(card, ..)| *card = Some(0));
            }
            prop_assert_eq!(&left, &expected(&events, within, of_card));
            prop_assert_eq!((rejects, left.len() + rejects + duplicates), (nulls, events.len()));
        }

        #[test]
        fn what_is_cut_is_an_error_and_never_a_panic(events in events(), cut in 0..2_000_usize) {
            let mut operator = Deduplicate::new("once", vec![0], vec![1], 50);
            operator.process(0, batch(&events, 0), &mut Outputs::new(1));
            operator.save_changes(usize::MAX, &mut |group, bytes| {
                let mut other = Deduplicate::new("once", vec![0], vec![1], 50);
                other.load(group, &bytes).unwrap();
                drop(other.load(group, &bytes[..cut % bytes.len()]));
            });
        }
    }

    #[test]
    fn what_can_not_come_again_is_forgotten() {
        let mut operator = Deduplicate::new("once", vec![0], vec![1], 100);
        let mut out = Outputs::new(1);
        operator.process(
            0,
            batch(&[(Some(1), Some(1), 1_000), (Some(1), Some(2), 1_050), (Some(2), Some(3), 1_000)], 0),
            &mut out,
        );
        operator.advance(1_100, &mut out);
        assert_eq!(operator.state_size().0, 2, "an event of 1,100 would be the same");
        operator.advance(1_101, &mut out);
        assert_eq!(operator.state_size().0, 1);
        operator.process(
            0,
            batch(&[(Some(1), Some(2), 1_140), (Some(1), Some(1), 1_105), (Some(2), Some(3), 1_105)], 3),
            &mut out,
        );
        assert_eq!((gone_on(&out), out.duplicates), (vec![0, 1, 2, 4, 5], 1));
        operator.advance(EventTime::MAX, &mut out);
        assert_eq!(operator.state_size().0, 2, "the end of the input is no time");
    }

    #[test]
    fn of_one_tick_the_first_by_event_time_goes_on() {
        let events = [(Some(1), Some(1), 30), (Some(1), Some(2), 20), (Some(1), Some(1), 10), (Some(1), Some(2), 25)];
        let mut operator = Deduplicate::new("once", vec![0], vec![1], 100);
        let mut out = Outputs::new(1);
        let batches = vec![(0, batch(&events[..2], 0)), (0, batch(&events[2..], 2))];
        operator.process_tick(batches, &mut out);
        assert_eq!(gone_on(&out), [2, 1]);
    }
}
