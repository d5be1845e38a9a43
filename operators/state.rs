//! Keyed state: the one interface behind which every stateful operator keeps what it remembers.
//!
//! Slots lie in a slab of chunks that never move; 256 index maps (one a key group) point into it, so no insert ever
//! rehashes everything. State leaves and comes back as [`rows`] by key group, so any number of workers can take up a
//! checkpoint. A key that changed is remembered until its change has been given: a checkpoint costs what has changed, not
//! what there is.

use std::collections::VecDeque;

use hashbrown::HashTable;
use serde::{Serialize, de::DeserializeOwned};

use crate::key::{KEY_GROUPS, hash, key_group};

pub mod rows;

/// State that can't be taken back.
#[derive(Debug, Clone, thiserror::Error, PartialEq)]
pub enum StateError {
    /// The bytes do not decode.
    #[error("the state of key group {key_group} does not decode: {detail}")]
    Corrupt {
        /// The key group.
        key_group: u16,
        /// What the decoder said.
        detail: String,
    },
    /// State was given to an operator that keeps none.
    #[error("the operator keeps no state, but the checkpoint has some for it")]
    Unexpected,
}

/// A key's bytes: short keys stay inside the slot, so that a lookup needs no further memory access.
enum KeyBytes {
    Inline { length: u8, bytes: [u8; INLINE_KEY] },
    Heap(Box<[u8]>),
}

/// Longest key kept inside its slot; with the length and the variant it fills 24 bytes, as much as the boxed one needs.
const INLINE_KEY: usize = 22;

impl KeyBytes {
    fn new(key: &[u8]) -> Self {
        if key.len() > INLINE_KEY {
            return KeyBytes::Heap(key.into());
        }
        let mut bytes = [0; INLINE_KEY];
        bytes[..key.len()].copy_from_slice(key);
        KeyBytes::Inline { length: key.len() as u8, bytes }
    }

    fn as_slice(&self) -> &[u8] {
        match self {
            KeyBytes::Inline { length, bytes } => &bytes[..*length as usize],
            KeyBytes::Heap(bytes) => bytes,
        }
    }
}

struct Slot<S> {
    hash: u64,
    key: KeyBytes,
    /// Changed since the changes were last given.
    changed: bool,
    /// Given at least once, or loaded: its end has to be told.
    given: bool,
    state: S,
}

/// The place of a key's state, valid until the key is removed: a row looks its key up once and then goes by its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place(u32);

/// A map from entity keys to states of type `S`, cut into key groups.
///
/// ```
/// use millstream_operators::state::KeyedState;
/// let mut counts: KeyedState<u64> = KeyedState::new();
/// *counts.entry(b"JFK") += 1;
/// *counts.entry(b"JFK") += 1;
/// assert_eq!(counts.get(b"JFK"), Some(&2));
/// assert_eq!(counts.get(b"EWR"), None);
/// ```
pub struct KeyedState<S> {
    index: Vec<HashTable<u32>>,
    slots: Vec<Vec<Option<Slot<S>>>>,
    free: VecDeque<u32>,
    len: usize,
    /// Where the next [`sweep`](KeyedState::sweep) goes on.
    swept: usize,
    /// Slots that have changed; a slot that was emptied meanwhile says so itself.
    changed: Vec<u32>,
    /// Keys that are gone since the changes were last given.
    removed: Vec<(u16, Box<[u8]>)>,
}

const CHUNK: usize = 1024;

/// The hash by which a key group's table spreads its keys. The top byte of a key's hash is the group, so it is the same
/// for all of them; the table takes its tags from there and would find every key alike.
fn within_group(hash: u64) -> u64 {
    hash ^ (hash << 8)
}

impl<S> Default for KeyedState<S> {
    fn default() -> Self {
        Self::new()
    }
}

impl<S> KeyedState<S> {
    /// Empty state.
    pub fn new() -> Self {
        KeyedState {
            index: (0..KEY_GROUPS).map(|_| HashTable::new()).collect(),
            slots: Vec::new(),
            free: VecDeque::new(),
            len: 0,
            swept: 0,
            changed: Vec::new(),
            removed: Vec::new(),
        }
    }

    /// Number of keys.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True without any key.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn slot(&self, at: u32) -> &Slot<S> {
        let slot = &self.slots[at as usize / CHUNK][at as usize % CHUNK];
        slot.as_ref().expect("a place names an occupied slot")
    }

    /// The place of `key`, whose [`hash`](crate::key::hash) the caller has, if there is one.
    pub fn find(&self, hash: u64, key: &[u8]) -> Option<Place> {
        let found = self.index[key_group(hash) as usize].find(within_group(hash), |at| {
            let slot = self.slot(*at);
            slot.hash == hash && slot.key.as_slice() == key
        });
        found.copied().map(Place)
    }

    /// The place of `key`, whose [`hash`](crate::key::hash) the caller has; a new key starts with `new()`.
    pub fn find_or_insert(&mut self, hash: u64, key: &[u8], new: impl FnOnce() -> S) -> Place {
        match self.find(hash, key) {
            Some(place) => place,
            None => self.insert(hash, key, new()),
        }
    }

    /// The state at a place.
    ///
    /// # Panics
    /// If its key was removed.
    pub fn at(&self, place: Place) -> &S {
        &self.slot(place.0).state
    }

    /// The state at a place, for change.
    ///
    /// # Panics
    /// If its key was removed.
    pub fn at_mut(&mut self, place: Place) -> &mut S {
        let slot = self.slots[place.0 as usize / CHUNK][place.0 as usize % CHUNK].as_mut();
        let slot = slot.expect("a place names an occupied slot");
        if !slot.changed {
            slot.changed = true;
            self.changed.push(place.0);
        }
        &mut slot.state
    }

    /// The key at a place.
    ///
    /// # Panics
    /// If it was removed.
    pub fn key_at(&self, place: Place) -> &[u8] {
        self.slot(place.0).key.as_slice()
    }

    /// The state of `key`, if there is one.
    pub fn get(&self, key: &[u8]) -> Option<&S> {
        self.find(hash(key), key).map(|place| self.at(place))
    }

    /// The state of `key` for change, if there is one.
    pub fn get_mut(&mut self, key: &[u8]) -> Option<&mut S> {
        let place = self.find(hash(key), key)?;
        Some(self.at_mut(place))
    }

    fn insert(&mut self, hash: u64, key: &[u8], state: S) -> Place {
        let at = match self.free.pop_front() {
            Some(at) => at,
            None => {
                if self.slots.last().is_none_or(|chunk| chunk.len() == CHUNK) {
                    self.slots.push(Vec::with_capacity(CHUNK));
                }
                let chunks = self.slots.len();
                let chunk = self.slots.last_mut().expect("a chunk was just made");
                chunk.push(None);
                ((chunks - 1) * CHUNK + chunk.len() - 1) as u32
            }
        };
        let slot = Slot { hash, key: KeyBytes::new(key), changed: true, given: false, state };
        self.slots[at as usize / CHUNK][at as usize % CHUNK] = Some(slot);
        self.changed.push(at);
        let slots = &self.slots;
        let hash_of = |at: &u32| {
            let slot = slots[*at as usize / CHUNK][*at as usize % CHUNK].as_ref();
            within_group(slot.expect("the index names occupied slots only").hash)
        };
        self.index[key_group(hash) as usize].insert_unique(within_group(hash), at, hash_of);
        self.len += 1;
        Place(at)
    }

    /// Every key and its state, in no fixed order.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &S)> {
        self.slots.iter().flatten().flatten().map(|slot| (slot.key.as_slice(), &slot.state))
    }

    /// Keeps the keys for which `keep` says true; gives the number of keys removed. What `keep` changes in a state that it
    /// keeps is not known as a change.
    pub fn retain(&mut self, keep: impl FnMut(&[u8], &mut S) -> bool) -> usize {
        let all = self.slots.iter().map(Vec::len).sum();
        self.swept = 0;
        self.sweep(all, keep)
    }

    /// Like [`retain`](KeyedState::retain) for the next `slots` slots only, round and round: many small sweeps see every
    /// key without a pause that grows with their number.
    pub fn sweep(&mut self, slots: usize, mut keep: impl FnMut(&[u8], &mut S) -> bool) -> usize {
        let all: usize = self.slots.iter().map(Vec::len).sum();
        let mut removed = 0;
        for _ in 0..slots.min(all) {
            let at = if self.swept < all { self.swept } else { 0 };
            self.swept = at + 1;
            let place = &mut self.slots[at / CHUNK][at % CHUNK];
            let Some(slot) = place else { continue };
            if keep(slot.key.as_slice(), &mut slot.state) {
                continue;
            }
            if slot.given {
                self.removed.push((key_group(slot.hash), slot.key.as_slice().into()));
            }
            self.vacate(at as u32);
            removed += 1;
        }
        removed
    }

    /// Takes a key out of its slot and the index.
    fn vacate(&mut self, at: u32) {
        let Some(slot) = self.slots[at as usize / CHUNK][at as usize % CHUNK].take() else { return };
        let table = &mut self.index[key_group(slot.hash) as usize];
        if let Ok(entry) = table.find_entry(within_group(slot.hash), |other| *other == at) {
            entry.remove();
        }
        self.free.push_back(at);
        self.len -= 1;
    }
}

impl<S: Default> KeyedState<S> {
    /// The state of `key`; a new key starts with `S::default()`.
    pub fn entry(&mut self, key: &[u8]) -> &mut S {
        let place = self.find_or_insert(hash(key), key, S::default);
        self.at_mut(place)
    }
}

impl<S: Serialize + DeserializeOwned> KeyedState<S> {
    /// Gives what has changed since the last call, or since the start, as [`rows`] of each key group with a change, in the
    /// order of the groups. A key that came and went in between is not mentioned.
    pub fn save_changes(&mut self, give: &mut dyn FnMut(u16, Vec<u8>)) {
        let mut groups: std::collections::BTreeMap<u16, rows::Writer> = std::collections::BTreeMap::new();
        // Keys that are gone come first: one may have come again.
        for (group, key) in self.removed.drain(..) {
            groups.entry(group).or_default().remove(&key);
        }
        for at in self.changed.drain(..) {
            let Some(slot) = &mut self.slots[at as usize / CHUNK][at as usize % CHUNK] else { continue };
            if !std::mem::take(&mut slot.changed) {
                continue;
            }
            slot.given = true;
            let written = groups.entry(key_group(slot.hash)).or_default();
            written.put(slot.key.as_slice(), |bytes| encode(&slot.state, bytes));
        }
        for (group, written) in groups {
            give(group, written.finish());
        }
    }

    /// Takes back rows of a key group that [`save_changes`](KeyedState::save_changes) gave; later changes over earlier ones.
    ///
    /// # Errors
    /// If the bytes do not decode.
    pub fn load(&mut self, group: u16, bytes: &[u8]) -> Result<(), StateError> {
        self.load_checked(group, bytes, |_| Ok(()))
    }

    /// Like [`load`](KeyedState::load), for states whose shape depends on the operator's definition: `check` says what is
    /// wrong with one that was saved under another definition.
    ///
    /// # Errors
    /// If the bytes do not decode, or at the first state that does not pass the check.
    pub fn load_checked(
        &mut self,
        group: u16,
        bytes: &[u8],
        check: impl Fn(&S) -> Result<(), String>,
    ) -> Result<(), StateError> {
        let corrupt = |detail| StateError::Corrupt { key_group: group, detail };
        for row in rows::read(bytes) {
            let (key, value) = row.map_err(corrupt)?;
            let hash = hash(key);
            if key_group(hash) != group {
                return Err(corrupt("a key is of another key group".to_string()));
            }
            let known = self.find(hash, key);
            let Some(value) = value else {
                if let Some(place) = known {
                    self.vacate(place.0);
                }
                continue;
            };
            let state: S = postcard::from_bytes(value).map_err(|error| corrupt(error.to_string()))?;
            check(&state).map_err(corrupt)?;
            let place = match known {
                Some(place) => place,
                None => {
                    let place = self.insert(hash, key, state);
                    self.settle(place, None);
                    continue;
                }
            };
            self.settle(place, Some(state));
        }
        Ok(())
    }

    /// What a checkpoint knows is no change.
    fn settle(&mut self, place: Place, state: Option<S>) {
        let slot = self.slots[place.0 as usize / CHUNK][place.0 as usize % CHUNK].as_mut();
        let slot = slot.expect("a place names an occupied slot");
        (slot.changed, slot.given) = (false, true);
        if let Some(state) = state {
            slot.state = state;
        }
    }
}

/// Rows of a key group with each key's state changed by `change`; removals stay as they are.
///
/// # Errors
/// If a row does not decode, or `change` refuses its state.
pub fn change_rows<S: Serialize + DeserializeOwned>(
    key_group: u16,
    bytes: &[u8],
    change: impl Fn(S) -> Result<S, String>,
) -> Result<Vec<u8>, StateError> {
    let corrupt = |detail| StateError::Corrupt { key_group, detail };
    let mut changed = rows::Writer::default();
    for row in rows::read(bytes) {
        let (key, value) = row.map_err(corrupt)?;
        let Some(value) = value else {
            changed.remove(key);
            continue;
        };
        let state = postcard::from_bytes(value).map_err(|error| corrupt(error.to_string()))?;
        let state = change(state).map_err(corrupt)?;
        changed.put(key, |bytes| encode(&state, bytes));
    }
    Ok(changed.finish())
}

fn encode<S: Serialize>(state: &S, bytes: &mut Vec<u8>) {
    let taken = std::mem::take(bytes);
    *bytes = postcard::to_extend(state, taken).expect("state types serialize into memory");
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn keys_of_any_length_are_kept_apart() {
        let mut state: KeyedState<usize> = KeyedState::new();
        let keys: Vec<String> = (0..60).map(|n| "x".repeat(n)).collect();
        for key in &keys {
            *state.entry(key.as_bytes()) = key.len();
        }
        assert_eq!(state.len(), 60);
        for key in &keys {
            assert_eq!(state.get(key.as_bytes()), Some(&key.len()));
            let place = state.find(hash(key.as_bytes()), key.as_bytes()).unwrap();
            assert_eq!(state.key_at(place), key.as_bytes());
        }
    }

    #[test]
    fn small_sweeps_see_every_key_and_its_slot_is_used_again() {
        let mut state: KeyedState<u32> = KeyedState::new();
        for n in 0..3000u32 {
            *state.entry(&n.to_le_bytes()) = n;
        }
        let removed: usize = (0..31).map(|_| state.sweep(100, |_, n| *n % 3 != 0)).sum();
        assert_eq!((removed, state.len()), (1000, 2000));
        assert_eq!(state.get(&3u32.to_le_bytes()), None);
        assert_eq!(state.get(&4u32.to_le_bytes()), Some(&4));
        *state.entry(b"new") = 7;
        assert_eq!((state.len(), state.get(b"new")), (2001, Some(&7)));
        assert_eq!(state.iter().count(), 2001);
    }

    #[test]
    fn rows_that_do_not_fit_are_refused() {
        let mut state: KeyedState<u32> = KeyedState::new();
        *state.entry(b"key") = 7;
        let mut saved = Vec::new();
        state.save_changes(&mut |group, bytes| saved.push((group, bytes)));
        let (group, bytes) = &saved[0];
        let mut back: KeyedState<u32> = KeyedState::new();
        assert!(matches!(back.load(3, &[9, 9, 9]), Err(StateError::Corrupt { key_group: 3, .. })));
        assert!(back.load_checked(*group, bytes, |_| Err("of another shape".into())).is_err());
        assert!(back.load(group + 1, bytes).is_err(), "keys of another group");
        assert!(back.is_empty());
        back.load(*group, bytes).unwrap();
        assert_eq!(back.get(b"key"), Some(&7));
    }

    #[test]
    fn changes_add_up_to_the_state() {
        let mut state: KeyedState<u64> = KeyedState::new();
        let mut copy: KeyedState<u64> = KeyedState::new();
        let mut seed = 7_u64;
        let mut next = |end: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 33) % end
        };
        let whole = |state: &KeyedState<u64>| -> BTreeMap<Vec<u8>, u64> {
            state.iter().map(|(key, value)| (key.to_vec(), *value)).collect()
        };
        let mut merged: BTreeMap<u16, rows::Standing> = BTreeMap::new();
        for round in 0..50 {
            for _ in 0..next(200) {
                *state.entry(&next(300).to_le_bytes()) += round;
            }
            state.sweep(next(200) as usize, |_, value| *value % 5 != 1);
            let mut given = Vec::new();
            state.save_changes(&mut |group, bytes| given.push((group, bytes)));
            given.iter().for_each(|(group, bytes)| merged.entry(*group).or_default().absorb(bytes).unwrap());
            if round % 10 == 9 {
                // A copy made from what was merged takes up later changes as well.
                copy = KeyedState::new();
                for (group, standing) in std::mem::take(&mut merged) {
                    let bytes = standing.finish();
                    copy.load(group, &bytes).unwrap();
                    merged.entry(group).or_default().absorb(&bytes).unwrap();
                }
            } else {
                given.iter().for_each(|(group, bytes)| copy.load(*group, bytes).unwrap());
            }
            assert_eq!(whole(&state), whole(&copy), "round {round}");
            assert_eq!(state.len(), copy.len());
            let mut again = 0;
            state.save_changes(&mut |_, _| again += 1);
            copy.save_changes(&mut |_, _| again += 1);
            assert_eq!(again, 0, "nothing has changed since");
        }
    }
}
