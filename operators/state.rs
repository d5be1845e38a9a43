//! Keyed state: the one interface behind which every stateful operator keeps what it remembers.
//!
//! Slots lie in a slab of chunks that never move; 256 index maps (one a key group) point into it, so no insert ever
//! rehashes everything. A key group is saved and loaded as one blob: any number of workers can take up a checkpoint.

use std::collections::VecDeque;

use hashbrown::HashTable;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::key::{KEY_GROUPS, hash, key_group};

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

struct Slot<S> {
    key: Box<[u8]>,
    hash: u64,
    state: S,
}

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
}

const CHUNK: usize = 1024;

impl<S: Default> Default for KeyedState<S> {
    fn default() -> Self {
        Self::new()
    }
}

impl<S: Default> KeyedState<S> {
    /// Empty state.
    pub fn new() -> Self {
        KeyedState {
            index: (0..KEY_GROUPS).map(|_| HashTable::new()).collect(),
            slots: Vec::new(),
            free: VecDeque::new(),
            len: 0,
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
        slot.as_ref().expect("the index names occupied slots only")
    }

    fn find(&self, hash: u64, key: &[u8]) -> Option<u32> {
        let found = self.index[key_group(hash) as usize].find(hash, |at| {
            let slot = self.slot(*at);
            slot.hash == hash && *slot.key == *key
        });
        found.copied()
    }

    /// The state of `key`, if there is one.
    pub fn get(&self, key: &[u8]) -> Option<&S> {
        self.find(hash(key), key).map(|at| &self.slot(at).state)
    }

    /// The state of `key` for change, if there is one.
    pub fn get_mut(&mut self, key: &[u8]) -> Option<&mut S> {
        let at = self.find(hash(key), key)?;
        self.slots[at as usize / CHUNK][at as usize % CHUNK].as_mut().map(|slot| &mut slot.state)
    }

    /// The state of `key`; a new key starts with `S::default()`.
    pub fn entry(&mut self, key: &[u8]) -> &mut S {
        let hash = hash(key);
        let at = match self.find(hash, key) {
            Some(at) => at,
            None => self.insert(hash, key),
        };
        let slot = self.slots[at as usize / CHUNK][at as usize % CHUNK].as_mut();
        &mut slot.expect("found or just inserted").state
    }

    fn insert(&mut self, hash: u64, key: &[u8]) -> u32 {
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
        self.slots[at as usize / CHUNK][at as usize % CHUNK] =
            Some(Slot { key: key.into(), hash, state: S::default() });
        let slots = &self.slots;
        let hash_of = |at: &u32| {
            slots[*at as usize / CHUNK][*at as usize % CHUNK]
                .as_ref()
                .expect("the index names occupied slots only")
                .hash
        };
        self.index[key_group(hash) as usize].insert_unique(hash, at, hash_of);
        self.len += 1;
        at
    }

    /// Every key and its state, in no fixed order.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &S)> {
        self.slots.iter().flatten().flatten().map(|slot| (&*slot.key, &slot.state))
    }

    /// Keeps the keys for which `keep` says true; gives the number of keys removed.
    pub fn retain(&mut self, mut keep: impl FnMut(&[u8], &mut S) -> bool) -> usize {
        let mut removed = 0;
        for at in 0..self.slots.iter().map(Vec::len).sum::<usize>() {
            let place = &mut self.slots[at / CHUNK][at % CHUNK];
            let Some(slot) = place else { continue };
            if keep(&slot.key, &mut slot.state) {
                continue;
            }
            let hash = slot.hash;
            if let Ok(entry) = self.index[key_group(hash) as usize].find_entry(hash, |other| *other as usize == at) {
                entry.remove();
            }
            *place = None;
            self.free.push_back(at as u32);
            removed += 1;
        }
        self.len -= removed;
        removed
    }
}

#[derive(Serialize, Deserialize)]
struct Saved<K, S>(K, S);

impl<S: Default + Serialize + DeserializeOwned> KeyedState<S> {
    /// Gives every non-empty key group as bytes; keys in byte order, so equal state gives equal bytes.
    pub fn save(&self, give: &mut dyn FnMut(u16, Vec<u8>)) {
        for (group, index) in self.index.iter().enumerate() {
            if index.is_empty() {
                continue;
            }
            let mut slots: Vec<&Slot<S>> = index.iter().map(|at| self.slot(*at)).collect();
            slots.sort_by(|a, b| a.key.cmp(&b.key));
            let rows: Vec<Saved<&[u8], &S>> = slots.iter().map(|slot| Saved(&*slot.key, &slot.state)).collect();
            let bytes = postcard::to_allocvec(&rows).expect("state types serialize into memory");
            give(group as u16, bytes);
        }
    }

    /// Takes back a key group that [`save`](KeyedState::save) gave.
    ///
    /// # Errors
    /// If the bytes do not decode.
    pub fn load(&mut self, group: u16, bytes: &[u8]) -> Result<(), StateError> {
        let rows: Vec<Saved<Vec<u8>, S>> = postcard::from_bytes(bytes)
            .map_err(|error| StateError::Corrupt { key_group: group, detail: error.to_string() })?;
        for Saved(key, state) in rows {
            *self.entry(&key) = state;
        }
        Ok(())
    }
}
