//! State that goes on under another definition of its group.
//!
//! What a key remembers lies in items, and each item has a slot for each measure (rows) or for each measure in a window
//! (tiles). A [`Shape`] says which slots there are, by names that the caller gives to values and conditions: slots of one
//! name hold the same numbers. [`FeatureGroup::carry`] puts the slots that two shapes share in their new places. The others
//! begin empty: an event from before has no value there, as if it had been left out.
//!
//! ```text
//! before:  [ time │ amount │ count where paid ]      after:  [ time │ amount │ amount where night ]
//!                     └──────────────────────────────────────────▶          (no value in old rows)
//! ```
//!
//! What is new may be **filled** ([`FeatureGroup::fill`]) from a state of the new shape that has seen events of the same stream again, all of
//! them or only those that were still to be had: each event that both know gets what was missing.
//!
//! ```text
//! carried: [ 1 │ 20 │ - ] [ 2 │ 35 │ - ] [ 3 │ 35 │ - ]
//! again:                  [ 2 │ 35 │ 1 ] [ 3 │ 35 │ 0 ]     (what came before is gone from the stream)
//! filled:  [ 1 │ 20 │ - ] [ 2 │ 35 │ 1 ] [ 3 │ 35 │ 0 ]
//! ```
//!
//! Steps behind a state are taken first, in the frame of the definition before. Views and summaries are not carried: they are found again from the items at the next read.

use std::collections::VecDeque;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::entity::{Entity, LayoutKind};
use super::frame::Frame;
use super::group::FeatureGroup;
use super::ring::Ring;
use super::steps;
use super::summary::{Parts, Summary};
use crate::state::{StateError, change_rows, fill_rows};

/// What stands where in the state of a group.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Shape {
    rings: Vec<Items>,
    lookups: Vec<Remembered>,
    /// What the state of a key depends on; `None` in a checkpoint of a build that wrote no steps.
    #[serde(default)]
    frame: Option<Frame>,
}

/// An as-of lookup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Remembered {
    /// The column.
    name: String,
    /// How old a value may be: values are kept about as long.
    age_max: i64,
}

/// The items of a ring.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Items {
    /// Length of a tile in milliseconds; 0 when items are rows. Tells the rings of a group apart.
    tile: u64,
    slots: Vec<Slot>,
}

/// A measure's place in the items of a ring.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Slot {
    /// The measure.
    name: String,
    /// The parts of the tile's summary; a row has the value itself.
    parts: Option<Parts>,
}

impl Slot {
    /// Numbers in it.
    fn len(&self) -> usize {
        self.parts.map_or(1, Parts::packed_len)
    }

    /// Whether it can be filled from `other`.
    fn takes(&self, other: &Slot) -> bool {
        let enough = match (self.parts, other.parts) {
            (None, None) => true,
            (Some(wanted), Some(there)) => there.and(wanted) == there,
            _ => false,
        };
        enough && self.name == other.name
    }

    /// Fills `to` from a slot that it [takes](Slot::takes), or leaves it empty.
    fn fill(&self, to: &mut [f64], from: Option<(&Slot, &[f64])>) {
        match (self.parts, from) {
            (None, Some((_, value))) => to[0] = value[0],
            (None, None) => to[0] = f64::NAN,
            (Some(parts), Some((Slot { parts: Some(there), .. }, packed))) => {
                Summary::unpack(packed, *there).pack(to, parts);
            }
            (Some(parts), _) => Summary::EMPTY.pack(to, parts),
        }
    }
}

impl Items {
    fn stride(&self) -> usize {
        1 + self.slots.iter().map(Slot::len).sum::<usize>()
    }

    /// The slot that fills `slot`, and where it begins in an item.
    fn source_of(&self, slot: &Slot) -> Option<(usize, &Slot)> {
        let mut at = 1;
        for known in &self.slots {
            if slot.takes(known) {
                return Some((at, known));
            }
            at += known.len();
        }
        None
    }

    /// The items of `from`, which are of the shape `before`, in this shape.
    fn carry(&self, before: &Items, from: &Ring) -> Ring {
        let mut ring = Ring::new(self.stride());
        let sources: Vec<_> = self.slots.iter().map(|slot| before.source_of(slot)).collect();
        if sources.iter().all(Option::is_none) {
            return ring;
        }
        for at in 0..from.len() {
            let old = from.item(at);
            let item = ring.push(old[0]);
            let mut place = 1;
            for (slot, source) in self.slots.iter().zip(&sources) {
                let source = source.map(|(at, known)| (known, &old[at..at + known.len()]));
                slot.fill(&mut item[place..place + slot.len()], source);
                place += slot.len();
            }
        }
        ring
    }

    /// Where each slot lies in an item, and whether it was carried from the shape `before`.
    fn places(&self, before: &Items) -> Vec<(Range<usize>, bool)> {
        let mut at = 1;
        let place = |slot: &Slot| {
            let place = at..at + slot.len();
            at = place.end;
            (place, before.source_of(slot).is_some())
        };
        self.slots.iter().map(place).collect()
    }

    /// An item with the slots empty that were carried.
    fn without_carried(&self, item: &[f64], places: &[(Range<usize>, bool)]) -> Vec<f64> {
        let mut item = item.to_vec();
        for (slot, (place, _)) in self.slots.iter().zip(places).filter(|(_, (_, is_carried))| *is_carried) {
            slot.fill(&mut item[place.clone()], None);
        }
        item
    }

    /// `carried`, which was of the shape `before`, with what is new from `again`, where the events were seen again. What only `again`
    /// has is taken if it is older than all that was carried: longer windows reach it.
    fn fill(&self, before: &Items, carried: &Ring, again: &Ring) -> Ring {
        let places = self.places(before);
        if !places.iter().any(|(_, is_carried)| *is_carried) {
            return again.clone();
        }
        let mut ring = Ring::new(self.stride());
        let mut push = |item: &[f64]| ring.push(item[0]).copy_from_slice(item);
        let older = if carried.len() > 0 { again.count_before(carried.time(0)) } else { again.len() };
        (0..older).for_each(|at| push(again.item(at)));
        // A tile is the same whatever was summed up in it. Rows of one time are told apart by what both know of them.
        let is_same = |one: &[f64], other: &[f64]| {
            let mut shared = places.iter().filter(|(_, is_carried)| *is_carried).flat_map(|(place, _)| place.clone());
            self.tile > 0 || shared.all(|at| one[at] == other[at] || (one[at].is_nan() && other[at].is_nan()))
        };
        let mut next = older;
        let mut at = 0;
        while at < carried.len() || next < again.len() {
            let time = |ring: &Ring, at: usize| if at < ring.len() { ring.time(at) } else { f64::INFINITY };
            let now = time(carried, at).min(time(again, next));
            let mut open: VecDeque<usize> = VecDeque::new();
            while next < again.len() && again.time(next) == now {
                open.push_back(next);
                next += 1;
            }
            while at < carried.len() && carried.time(at) == now {
                let mut item = carried.item(at).to_vec();
                let found = open.iter().position(|other| is_same(&item, again.item(*other)));
                if let Some(other) = found.and_then(|found| open.remove(found)) {
                    for (place, _) in places.iter().filter(|(_, is_carried)| !is_carried) {
                        item[place.clone()].copy_from_slice(&again.item(other)[place.clone()]);
                    }
                }
                push(&item);
                at += 1;
            }
            for seen in open.into_iter().map(|other| again.item(other)) {
                // Where the definition before had nothing to remember, only what is new is to be had. It did have of an event that
                // the job left out, as late: that stays so.
                let new = self.without_carried(seen, &places);
                if is_same(&new, seen) {
                    push(&new);
                }
            }
        }
        ring
    }
}

impl Shape {
    /// How many slots and lookups there are, and how many of them find no place in `after`.
    pub fn lost(&self, after: &Shape) -> (usize, usize) {
        let slots = self.rings.iter().flat_map(|ring| ring.slots.iter().map(move |slot| (ring.tile, slot)));
        let is_taken = |(tile, slot): &(u64, &Slot)| {
            let ring = after.rings.iter().find(|ring| ring.tile == *tile);
            ring.is_some_and(|ring| ring.slots.iter().any(|other| other.takes(slot)))
        };
        let all = slots.clone().count() + self.lookups.len();
        let lost = slots.filter(|slot| !is_taken(slot)).count()
            + self.lookups.iter().filter(|lookup| !after.lookups.iter().any(|other| other.name == lookup.name)).count();
        (lost, all)
    }

    /// The steps that `entity` has taken since it was written.
    fn take_steps(&self, entity: &mut Entity, steps: &[u8]) -> Result<(), String> {
        let frame = self.frame.as_ref().filter(|frame| frame.is_sound());
        let frame = frame.ok_or("steps of a key, but the checkpoint does not say in which frame")?;
        entity.check(frame)?;
        steps::take(frame, entity, steps)
    }

    fn carry(&self, after: &Shape, entity: &Entity, frame: &Frame) -> Result<Entity, String> {
        let rings = entity.rings();
        let is_own = rings.len() == self.rings.len()
            && entity.as_of.len() == self.lookups.len()
            && rings.iter().zip(&self.rings).all(|(ring, items)| ring.stride() == items.stride());
        if !is_own {
            return Err("a key is not of the shape that the checkpoint says".to_string());
        }
        let mut carried = Entity::new(frame);
        carried.newest = entity.newest;
        for (ring, items) in carried.rings_mut().iter_mut().zip(&after.rings) {
            let before = self.rings.iter().position(|known| known.tile == items.tile);
            if let Some(before) = before {
                *ring = items.carry(&self.rings[before], &rings[before]);
            }
        }
        for (history, lookup) in carried.as_of.iter_mut().zip(&after.lookups) {
            let known = entity.as_of.iter().zip(&self.lookups).filter(|(_, known)| known.name == lookup.name);
            // Of several, the one that remembers as long, or else the longest.
            let best = known.max_by_key(|(_, known)| (known.age_max == lookup.age_max, known.age_max));
            if let Some((known, _)) = best {
                *history = known.clone();
            }
        }
        Ok(carried)
    }

    /// `carried`, which was of the shape `before`, with what is new in this shape from `again`.
    fn fill(&self, before: &Shape, mut carried: Entity, again: &Entity) -> Entity {
        carried.newest = carried.newest.max(again.newest);
        for ((ring, items), again) in carried.rings_mut().iter_mut().zip(&self.rings).zip(again.rings()) {
            *ring = match before.rings.iter().find(|known| known.tile == items.tile) {
                Some(before) => items.fill(before, ring, again),
                None => again.clone(),
            };
        }
        for ((history, lookup), again) in carried.as_of.iter_mut().zip(&self.lookups).zip(&again.as_of) {
            if !before.lookups.iter().any(|known| known.name == lookup.name) {
                history.clone_from(again);
            }
        }
        carried
    }
}

impl FeatureGroup {
    /// The shape of the group's state. `measure` names what is aggregated, by its value and condition as they were written;
    /// `lookups` are the names of the columns of the lookups, in order.
    pub fn shape(&self, measure: impl Fn(Option<&str>, Option<&str>) -> String, lookups: &[String]) -> Shape {
        let definition = self.definition();
        let lookup = |(name, lookup): (&String, &super::definition::Lookup)| Remembered {
            name: name.clone(),
            age_max: lookup.age_max,
        };
        let name = |at: usize| {
            let (of, filter) = definition.measures[at].written();
            measure(of, filter)
        };
        let ring = |track: &super::windows::Track| match definition.frame.layout {
            LayoutKind::Rows => {
                let slots = (0..definition.measures.len()).map(|at| Slot { name: name(at), parts: None });
                Items { tile: 0, slots: slots.collect() }
            }
            LayoutKind::Tiles => {
                let cells = track.windows.iter().flat_map(|window| &window.cells);
                let slots = cells.map(|cell| Slot { name: name(cell.measure), parts: Some(cell.needs) });
                Items { tile: track.unit_millis as u64, slots: slots.collect() }
            }
        };
        Shape {
            rings: definition.frame.tracks.iter().map(ring).collect(),
            lookups: lookups.iter().zip(&definition.as_of).map(lookup).collect(),
            frame: Some(definition.frame.clone()),
        }
    }

    /// Rows of state of the shape `before` as rows of this group's, whose shape is `after`.
    ///
    /// # Errors
    /// If a row does not decode, or is of another shape.
    pub fn carry(&self, before: &Shape, after: &Shape, key_group: u16, bytes: &[u8]) -> Result<Vec<u8>, StateError> {
        let take_steps = |entity: &mut Entity, steps: &[u8]| before.take_steps(entity, steps);
        let carry = |entity: Entity| before.carry(after, &entity, &self.definition().frame);
        change_rows(key_group, bytes, take_steps, carry)
    }

    /// Rows of state that were [carried](FeatureGroup::carry) from the shape `before` to this group's, `after`, with what is new in it
    /// from `again`: rows of this group's state, to which a stream was given again. Keys that only `again` has are taken as they
    /// are.
    ///
    /// # Errors
    /// If a row does not decode, or is of another shape.
    pub fn fill(
        &self,
        before: &Shape,
        after: &Shape,
        key_group: u16,
        carried: &[u8],
        again: &[u8],
    ) -> Result<Vec<u8>, StateError> {
        let frame = &self.definition().frame;
        fill_rows(key_group, carried, again, |carried: Entity, again: Entity| {
            carried.check(frame)?;
            again.check(frame)?;
            Ok(after.fill(before, carried, &again))
        })
    }
}
