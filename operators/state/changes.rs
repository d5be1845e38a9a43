//! What leaves keyed state and comes back: rows of the keys that have changed.
//!
//! A state is given whole, or as what has happened to it since it was last given, a **part**, if the operator told of all of
//! that in few bytes. Parts wait in one arena, those of a state linked from the newest to the oldest:
//!
//! ```text
//! arena:  before u32 · length u32 · bytes │ before · length · bytes │ ...
//! ```
//!
//! A load makes the same changes of the same states again. So that it need not make many, a state is given whole again when
//! its parts have as many bytes as an eighth of the whole had: what lies in a checkpoint of a state is at most an eighth
//! more than the state.
//!
//! Changes can be given in slices, with rows taken in between: after a *cut*, a state that is about to change again before its
//! turn is encoded first (copy on write). What is given is what was at the cut.

use std::collections::BTreeMap;

use serde::{Serialize, de::DeserializeOwned};

use super::{CHUNK, KeyBytes, KeyedState, Place, Slot, StateError, rows};
use crate::key::{hash, key_group};

/// Of a whole state's bytes, one in so many for parts.
const PARTS_SHARE: usize = 8;
/// Bytes of parts that may wait; what happens beyond makes its state be given whole.
const WAITING_MAX: usize = 256 << 20;
/// Bytes of memory for parts that are kept for later ones.
const KEPT_MAX: usize = 16 << 20;

/// What is to be given of a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// Nothing.
    None,
    /// All that has happened to it: where the newest of it stands in the arena.
    Parts(u32),
    /// All of it.
    Whole,
}

/// The arena of parts.
#[derive(Debug, Default)]
pub(super) struct Happened {
    bytes: Vec<u8>,
}

/// Bytes before those of a part: the place of the one before it, plus one, and its length.
const HEAD: usize = 8;

impl Happened {
    /// Takes what `tell` appends, of a state to be given as `change` says, with room for so many bytes of parts. Gives how it is
    /// to be given now.
    pub fn add(&mut self, change: Change, room: &mut u32, tell: impl FnOnce(&mut Vec<u8>)) -> Change {
        let before = match change {
            Change::Whole => return Change::Whole,
            Change::None => 0,
            Change::Parts(at) => at + 1,
        };
        let start = self.bytes.len();
        if *room == 0 || start > WAITING_MAX {
            return Change::Whole;
        }
        self.bytes.extend_from_slice(&before.to_le_bytes());
        self.bytes.extend_from_slice(&[0; HEAD - 4]);
        tell(&mut self.bytes);
        let length = self.bytes.len() - start - HEAD;
        match u32::try_from(length).ok().and_then(|length| room.checked_sub(length)) {
            Some(left) => {
                *room = left;
                self.bytes[start + 4..start + HEAD].copy_from_slice(&(length as u32).to_le_bytes());
                Change::Parts(start as u32)
            }
            None => {
                self.bytes.truncate(start);
                Change::Whole
            }
        }
    }

    /// The places of the parts up to the one at `newest`, oldest first.
    fn up_to(&self, newest: u32, places: &mut Vec<u32>) {
        places.clear();
        let mut next = Some(newest);
        while let Some(at) = next {
            places.push(at);
            next = self.number(at as usize).checked_sub(1);
        }
        places.reverse();
    }

    /// The part at a place.
    fn part(&self, at: u32) -> &[u8] {
        let start = at as usize;
        &self.bytes[start + HEAD..start + HEAD + self.number(start + 4) as usize]
    }

    fn number(&self, at: usize) -> u32 {
        u32::from_le_bytes([0, 1, 2, 3].map(|byte| self.bytes[at + byte]))
    }

    /// Forgets all parts.
    fn clear(&mut self) {
        self.bytes.clear();
        self.bytes.shrink_to(KEPT_MAX);
    }
}

/// Of a state that is given whole in so many bytes: how many bytes of parts may follow.
fn room(whole: usize) -> u32 {
    u32::try_from(whole / PARTS_SHARE).unwrap_or(u32::MAX)
}

/// What is left to do of a cut.
pub(super) struct Saving<S> {
    /// The slots that had changed. One that is not due any more has been given already, or is another key's.
    slots: std::vec::IntoIter<u32>,
    /// What had happened to them.
    happened: Happened,
    /// What has been written, by key group.
    groups: BTreeMap<u16, rows::Writer>,
    /// Bytes of it.
    written: usize,
    encode: fn(&S, &mut Vec<u8>),
    places: Vec<u32>,
}

impl<S> Saving<S> {
    /// Writes what is due of a slot.
    fn write(&mut self, slot: &mut Slot<S>) {
        let (key, change) = (slot.key.as_slice(), std::mem::replace(&mut slot.change, Change::None));
        slot.given = true;
        let writer = self.groups.entry(key_group(slot.hash)).or_default();
        let before = writer.len();
        if let Change::Parts(newest) = change {
            self.happened.up_to(newest, &mut self.places);
            writer.part(key, self.places.iter().map(|at| self.happened.part(*at)));
        } else {
            let (state, room_of) = (&slot.state, &mut slot.room);
            writer.put(key, |bytes| {
                (self.encode)(state, bytes);
                *room_of = room(bytes.len());
            });
        }
        self.written += writer.len() - before;
    }
}

/// Writes what is due of a slot, if anything is, before something else happens to it. `odd` is the state's.
pub(super) fn settle<S>(slot: &mut Slot<S>, odd: bool, saving: &mut Option<Saving<S>>) {
    if slot.change != Change::None && slot.odd != odd {
        saving.as_mut().expect("what changed before a cut is due until all of it has been given").write(slot);
    }
}

impl<S: Serialize + DeserializeOwned> KeyedState<S> {
    /// Gives what has changed since the last call, or since the start, as [`rows`] of each key group with a change, in the
    /// order of the groups. A key that came and went in between is not mentioned.
    pub fn save_changes(&mut self, give: &mut dyn FnMut(u16, Vec<u8>)) {
        if self.saving.is_some() {
            self.save_some_changes(usize::MAX, give);
        }
        self.save_some_changes(usize::MAX, give);
    }

    /// Like [`save_changes`](KeyedState::save_changes), a slice a call: the first makes the cut, and each writes some `bytes`
    /// and says whether another is needed. The one that is the last gives what the state was at the cut, whatever has happened
    /// to it since.
    ///
    /// ```
    /// use millstream_operators::state::KeyedState;
    /// let mut counts: KeyedState<u64> = KeyedState::new();
    /// for key in 0..100_u64 {
    ///     *counts.entry(&key.to_le_bytes()) = 7;
    /// }
    /// let mut given = Vec::new();
    /// assert!(counts.save_some_changes(64, &mut |group, rows| given.push((group, rows))));
    /// *counts.entry(&99_u64.to_le_bytes()) = 8;
    /// while counts.save_some_changes(64, &mut |group, rows| given.push((group, rows))) {}
    /// let mut back: KeyedState<u64> = KeyedState::new();
    /// given.iter().for_each(|(group, rows)| back.load(*group, rows).unwrap());
    /// assert_eq!((back.len(), back.get(&99_u64.to_le_bytes())), (100, Some(&7)), "as at the cut");
    /// ```
    pub fn save_some_changes(&mut self, bytes: usize, give: &mut dyn FnMut(u16, Vec<u8>)) -> bool {
        let mut saving = self.saving.take().unwrap_or_else(|| self.cut());
        saving.written = 0;
        while let Some(at) = saving.slots.next() {
            match &mut self.slots[at as usize / CHUNK][at as usize % CHUNK] {
                Some(slot) if slot.change != Change::None && slot.odd != self.odd => saving.write(slot),
                _ => continue,
            }
            if saving.written >= bytes {
                self.saving = Some(saving);
                return true;
            }
        }
        for (group, written) in saving.groups {
            give(group, written.finish());
        }
        self.spare = saving.happened;
        self.spare.clear();
        false
    }

    /// Makes what has changed until now due.
    fn cut(&mut self) -> Saving<S> {
        let mut groups: BTreeMap<u16, rows::Writer> = BTreeMap::new();
        // Keys that are gone come first: one may have come again.
        for (group, key) in self.removed.drain(..) {
            groups.entry(group).or_default().remove(&key);
        }
        self.odd = !self.odd;
        let slots = std::mem::take(&mut self.changed).into_iter();
        let happened = std::mem::replace(&mut self.happened, std::mem::take(&mut self.spare));
        Saving { slots, happened, groups, written: 0, encode: encode::<S>, places: Vec::new() }
    }

    /// Takes back rows of a key group that [`save_changes`](KeyedState::save_changes) gave; later changes over earlier ones.
    ///
    /// # Errors
    /// If the bytes do not decode, or have parts.
    pub fn load(&mut self, group: u16, bytes: &[u8]) -> Result<(), StateError> {
        self.load_telling(group, bytes, |_| Ok(()), no_parts)
    }

    /// Like [`load`](KeyedState::load), for states whose shape depends on the operator's definition: `check` says what is
    /// wrong with one that was saved under another definition. `happen` makes the changes of a part that
    /// [`at_mut_telling`](KeyedState::at_mut_telling) was told.
    ///
    /// # Errors
    /// If the bytes do not decode, or at the first state that does not pass the check.
    pub fn load_telling(
        &mut self,
        group: u16,
        bytes: &[u8],
        check: impl Fn(&S) -> Result<(), String>,
        mut happen: impl FnMut(&mut S, &[u8]) -> Result<(), String>,
    ) -> Result<(), StateError> {
        let corrupt = |detail| StateError::Corrupt { key_group: group, detail };
        for row in rows::read(bytes) {
            let (key, change) = row.map_err(corrupt)?;
            let hash = hash(key);
            if key_group(hash) != group {
                return Err(corrupt("a key is of another key group".to_string()));
            }
            let known = self.find(hash, key);
            match change {
                rows::Change::Gone => {
                    if let Some(place) = known {
                        self.vacate(place.0);
                    }
                }
                rows::Change::Whole(value) => {
                    let state: S = postcard::from_bytes(value).map_err(|error| corrupt(error.to_string()))?;
                    check(&state).map_err(corrupt)?;
                    let room = room(value.len());
                    match known {
                        Some(place) => {
                            let slot = self.loaded(place);
                            (slot.state, slot.room) = (state, room);
                        }
                        None => drop(self.put_in(Slot {
                            hash,
                            key: KeyBytes::new(key),
                            change: Change::None,
                            odd: self.odd,
                            given: true,
                            room,
                            state,
                        })),
                    }
                }
                rows::Change::Part(part) => {
                    let place = known.ok_or_else(|| corrupt(rows::NOT_THERE.to_string()))?;
                    let slot = self.loaded(place);
                    happen(&mut slot.state, part).map_err(corrupt)?;
                    slot.room = slot.room.saturating_sub(u32::try_from(part.len()).unwrap_or(u32::MAX));
                }
            }
        }
        Ok(())
    }

    /// A slot that is being loaded: what a checkpoint knows is no change.
    fn loaded(&mut self, place: Place) -> &mut Slot<S> {
        let slot = self.slots[place.0 as usize / CHUNK][place.0 as usize % CHUNK].as_mut();
        let slot = slot.expect("a place names an occupied slot");
        (slot.change, slot.given) = (Change::None, true);
        slot
    }
}

/// For states that are always given whole.
///
/// # Errors
/// Always.
pub fn no_parts<S>(_: &mut S, part: &[u8]) -> Result<(), String> {
    rows::Change::Part(part).whole().map(|_| ())
}

/// Rows of a key group with each key's state changed by `change`, whole, and removals as they are. `happen` makes the changes
/// of a part, which stands right behind its state.
///
/// # Errors
/// If a row does not decode, or `change` refuses its state.
pub fn change_rows<S: Serialize + DeserializeOwned>(
    key_group: u16,
    bytes: &[u8],
    mut happen: impl FnMut(&mut S, &[u8]) -> Result<(), String>,
    change: impl Fn(S) -> Result<S, String>,
) -> Result<Vec<u8>, StateError> {
    let corrupt = |detail| StateError::Corrupt { key_group, detail };
    let mut changed = rows::Writer::default();
    let mut rows = rows::read(bytes).peekable();
    while let Some(row) = rows.next() {
        let value = match row.map_err(corrupt)? {
            (key, rows::Change::Gone) => {
                changed.remove(key);
                continue;
            }
            (key, rows::Change::Whole(value)) => (key, value),
            (_, rows::Change::Part(_)) => return Err(corrupt(rows::NOT_THERE.to_string())),
        };
        let (key, value) = value;
        let mut state: S = postcard::from_bytes(value).map_err(|error| corrupt(error.to_string()))?;
        while let Some(Ok((_, rows::Change::Part(part)))) =
            rows.next_if(|row| matches!(row, Ok((next, rows::Change::Part(_))) if *next == key))
        {
            happen(&mut state, part).map_err(corrupt)?;
        }
        let state = change(state).map_err(corrupt)?;
        changed.put(key, |bytes| encode(&state, bytes));
    }
    Ok(changed.finish())
}

/// The rows `standing` of a key group, each key once and whole, with each state filled from that of the same key in `others` by
/// `fill`. Keys that only `others` has are taken as they are.
///
/// # Errors
/// If a row does not decode or is no whole value, or `fill` refuses two states.
pub fn fill_rows<S: Serialize + DeserializeOwned>(
    key_group: u16,
    standing: &[u8],
    others: &[u8],
    fill: impl Fn(S, S) -> Result<S, String>,
) -> Result<Vec<u8>, StateError> {
    let corrupt = |detail| StateError::Corrupt { key_group, detail };
    let decode = |value: &[u8]| postcard::from_bytes(value).map_err(|error| corrupt(error.to_string()));
    let whole = |bytes| -> Result<BTreeMap<&[u8], &[u8]>, StateError> {
        let mut whole = BTreeMap::new();
        for row in rows::read(bytes) {
            let (key, change) = row.map_err(corrupt)?;
            whole.insert(key, change.whole().map_err(corrupt)?.ok_or_else(|| corrupt(rows::NOT_THERE.to_string()))?);
        }
        Ok(whole)
    };
    let mut others = whole(others)?;
    let mut filled = rows::Writer::default();
    for (key, value) in whole(standing)? {
        let Some(other) = others.remove(key) else {
            filled.put(key, |bytes| bytes.extend_from_slice(value));
            continue;
        };
        let state = fill(decode(value)?, decode(other)?).map_err(corrupt)?;
        filled.put(key, |bytes| encode(&state, bytes));
    }
    for (key, value) in others {
        filled.put(key, |bytes| bytes.extend_from_slice(value));
    }
    Ok(filled.finish())
}

pub(super) fn encode<S: Serialize>(state: &S, bytes: &mut Vec<u8>) {
    let taken = std::mem::take(bytes);
    *bytes = postcard::to_extend(state, taken).expect("state types serialize into memory");
}
