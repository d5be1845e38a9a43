//! Keyed state: the one interface behind which every stateful operator keeps what it remembers.
//!
//! Slots lie in a slab of chunks that never move; 256 index maps (one a key group) point into it, so no insert ever
//! rehashes everything. State leaves and comes back as [`rows`] by key group, so any number of workers can take up a
//! checkpoint. A key that changed is remembered until its change has been given: a checkpoint costs what has changed, not
//! what there is. Where an operator can say what has happened to a state, the change is that alone (`changes.rs`).

use std::collections::VecDeque;

use hashbrown::HashTable;

use crate::key::{KEY_GROUPS, hash, key_group};
use changes::{Change, Happened, Saving};
pub use changes::{change_rows, fill_rows, no_parts};
pub use load::Groups;

mod changes;
mod load;
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
    /// What is to be given of it.
    change: Change,
    /// Whether it changed after an odd number of cuts: what changed before the last one is due.
    odd: bool,
    /// Given at least once, or loaded: its end has to be told.
    given: bool,
    /// Bytes of parts that may still be given before it is given whole again.
    room: u32,
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
    /// What has happened to states since the changes were last given.
    happened: Happened,
    /// Memory for that of the next cut.
    spare: Happened,
    /// Whether the number of cuts is odd.
    odd: bool,
    /// What had changed at the last cut, until all of it has been given.
    saving: Option<Saving<S>>,
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
            happened: Happened::default(),
            spare: Happened::default(),
            odd: false,
            saving: None,
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

    /// The state at a place, for any change.
    ///
    /// # Panics
    /// If its key was removed.
    pub fn at_mut(&mut self, place: Place) -> &mut S {
        let slot = self.slots[place.0 as usize / CHUNK][place.0 as usize % CHUNK].as_mut();
        let slot = slot.expect("a place names an occupied slot");
        changes::settle(slot, self.odd, &mut self.saving);
        if slot.change == Change::None {
            slot.odd = self.odd;
            self.changed.push(place.0);
        }
        slot.change = Change::Whole;
        &mut slot.state
    }

    /// The state at a place, for a change that can be told in few bytes: `tell` appends them, if they are wanted. Whoever
    /// loads them must make the same change of the same state.
    ///
    /// # Panics
    /// If its key was removed.
    pub fn at_mut_telling(&mut self, place: Place, tell: impl FnOnce(&S, &mut Vec<u8>)) -> &mut S {
        let slot = self.slots[place.0 as usize / CHUNK][place.0 as usize % CHUNK].as_mut();
        let slot = slot.expect("a place names an occupied slot");
        changes::settle(slot, self.odd, &mut self.saving);
        if slot.change == Change::None {
            slot.odd = self.odd;
            self.changed.push(place.0);
        }
        slot.change = self.happened.add(slot.change, &mut slot.room, |bytes| tell(&slot.state, bytes));
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
        let key = KeyBytes::new(key);
        let place = self.put_in(Slot { hash, key, change: Change::Whole, odd: self.odd, given: false, room: 0, state });
        self.changed.push(place.0);
        place
    }

    /// Puts a slot where there is room for it.
    fn put_in(&mut self, slot: Slot<S>) -> Place {
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
        let hash = slot.hash;
        self.slots[at as usize / CHUNK][at as usize % CHUNK] = Some(slot);
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
            changes::settle(slot, self.odd, &mut self.saving);
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

    /// Like [`sweep`](KeyedState::sweep) when so many rows have come since the last time: a slot for every two of them goes round faster
    /// than keys can come, at a constant cost for each.
    pub fn sweep_after(&mut self, rows: usize, keep: impl FnMut(&[u8], &mut S) -> bool) -> usize {
        self.sweep(rows / 2 + 16, keep)
    }

    /// The number of keys, and their bytes in memory by those of some: `bytes` says those of a state.
    pub fn size(&self, bytes: impl Fn(&S) -> usize) -> (u64, u64) {
        /// Keys looked at: as many as tell the usual size of a key.
        const SAMPLE: usize = 1024;
        let sample = self.iter().take(SAMPLE).map(|(key, state)| key.len() + bytes(state));
        let (seen, sum) = sample.fold((0, 0), |(seen, sum), bytes| (seen + 1, sum + bytes as u64));
        let keys = self.len as u64;
        (keys, sum * keys / seen.max(1))
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

#[cfg(test)]
mod tests;
