//! Rows of state as bytes: keys with their values, keys that are gone, and **parts**: what has happened to a value since it
//! was last written whole. Whoever keeps them need not know what values and parts mean: of a key the last whole value
//! counts, and the parts behind it in their order, which may be joined end to end.
//!
//! ```text
//! row:     key length · key · 0                             the key is gone
//!          key length · key · value length + 1 · value      its whole value
//!          key length · key · 0x80 0x00 · length · part     a part of its value
//! ```
//! Lengths are LEB128 of the fewest bytes; the zero of two bytes is none.

use std::collections::BTreeMap;

/// Writes rows.
///
/// ```
/// use millstream_operators::state::rows::{Change, Writer, read};
/// let mut writer = Writer::default();
/// writer.put(b"JFK", |bytes| bytes.extend_from_slice(&[7, 7]));
/// writer.remove(b"EWR");
/// let bytes = writer.finish();
/// let rows: Vec<_> = read(&bytes).collect::<Result<_, _>>().unwrap();
/// assert_eq!(rows, [(&b"JFK"[..], Change::Whole(&[7, 7])), (b"EWR", Change::Gone)]);
/// ```
#[derive(Debug, Default)]
pub struct Writer {
    bytes: Vec<u8>,
    value: Vec<u8>,
}

impl Writer {
    /// The value of `key` is what `write` appends.
    pub fn put(&mut self, key: &[u8], write: impl FnOnce(&mut Vec<u8>)) {
        self.key(key);
        self.value.clear();
        write(&mut self.value);
        length(&mut self.bytes, self.value.len() as u64 + 1);
        self.bytes.extend_from_slice(&self.value);
    }

    /// What has happened to the value of `key` since it was last written, in pieces that belong end to end.
    pub fn part<'a>(&mut self, key: &[u8], pieces: impl Iterator<Item = &'a [u8]> + Clone) {
        self.key(key);
        self.bytes.extend_from_slice(&PART);
        length(&mut self.bytes, pieces.clone().map(|piece| piece.len() as u64).sum());
        pieces.for_each(|piece| self.bytes.extend_from_slice(piece));
    }

    /// `key` is gone.
    pub fn remove(&mut self, key: &[u8]) {
        self.key(key);
        length(&mut self.bytes, 0);
    }

    fn key(&mut self, key: &[u8]) {
        length(&mut self.bytes, key.len() as u64);
        self.bytes.extend_from_slice(key);
    }

    /// Bytes written.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// True if nothing was written.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The rows written.
    pub fn finish(self) -> Vec<u8> {
        self.bytes
    }
}

fn length(bytes: &mut Vec<u8>, mut length: u64) {
    while length >= 0x80 {
        bytes.push(length as u8 | 0x80);
        length >>= 7;
    }
    bytes.push(length as u8);
}

/// Stands where a whole value has its length.
const PART: [u8; 2] = [0x80, 0];

/// What a row says of its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change<'a> {
    /// It is gone.
    Gone,
    /// Its whole value.
    Whole(&'a [u8]),
    /// A part of its value.
    Part(&'a [u8]),
}

impl<'a> Change<'a> {
    /// The value, for rows that have no parts; `None` when the key is gone.
    ///
    /// # Errors
    /// If it is a part.
    pub fn whole(self) -> Result<Option<&'a [u8]>, String> {
        match self {
            Change::Gone => Ok(None),
            Change::Whole(value) => Ok(Some(value)),
            Change::Part(_) => Err("a part of a value that is always written whole".to_string()),
        }
    }
}

/// A key and what became of it.
pub type Row<'a> = (&'a [u8], Change<'a>);

/// Reads rows, up to the first that is cut.
pub fn read(bytes: &[u8]) -> impl Iterator<Item = Result<Row<'_>, String>> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let row = take_row(&mut rest);
        if row.is_err() {
            rest = &[];
        }
        Some(row)
    })
}

fn take_row<'a>(rest: &mut &'a [u8]) -> Result<Row<'a>, String> {
    let key_length = take_length(rest)?;
    let key = take(rest, key_length)?;
    if let Some(part) = rest.strip_prefix(&PART) {
        *rest = part;
        let part_length = take_length(rest)?;
        return Ok((key, Change::Part(take(rest, part_length)?)));
    }
    let change = match take_length(rest)?.checked_sub(1) {
        Some(value_length) => Change::Whole(take(rest, value_length)?),
        None => Change::Gone,
    };
    Ok((key, change))
}

fn take_length(rest: &mut &[u8]) -> Result<u64, String> {
    let mut length = 0_u64;
    for shift in (0..64).step_by(7) {
        let byte = take(rest, 1)?[0];
        length |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(length);
        }
    }
    Err("a length is too long".to_string())
}

fn take<'a>(rest: &mut &'a [u8], length: u64) -> Result<&'a [u8], String> {
    let split = usize::try_from(length).ok().and_then(|length| rest.split_at_checked(length));
    let (taken, left) =
        split.ok_or_else(|| format!("a row goes on for {length} bytes where {} are left", rest.len()))?;
    *rest = left;
    Ok(taken)
}

/// The rows that stand: takes in rows, oldest first, and keeps the last whole value of each key with the parts behind it. Its
/// memory is theirs.
#[derive(Debug, Default)]
pub struct Standing {
    rows: BTreeMap<Box<[u8]>, Value>,
}

#[derive(Debug)]
struct Value {
    whole: Box<[u8]>,
    parts: Vec<u8>,
}

impl Standing {
    /// Takes in rows that are younger than all before.
    ///
    /// # Errors
    /// If a row is cut, or a part of a value that is not there.
    pub fn absorb(&mut self, bytes: &[u8]) -> Result<(), String> {
        for row in read(bytes) {
            match row? {
                (key, Change::Whole(value)) => match self.rows.get_mut(key) {
                    Some(known) if known.whole.len() == value.len() => {
                        known.whole.copy_from_slice(value);
                        known.parts.clear();
                    }
                    Some(known) => *known = Value { whole: value.into(), parts: Vec::new() },
                    None => drop(self.rows.insert(key.into(), Value { whole: value.into(), parts: Vec::new() })),
                },
                (key, Change::Part(part)) => match self.rows.get_mut(key) {
                    Some(known) => known.parts.extend_from_slice(part),
                    None => return Err(NOT_THERE.to_string()),
                },
                (key, Change::Gone) => drop(self.rows.remove(key)),
            }
        }
        Ok(())
    }

    /// Number of keys.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// True without any key.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The rows, keys in byte order: of each its whole value and, if it has any, its parts as one.
    pub fn finish(self) -> Vec<u8> {
        let mut writer = Writer::default();
        for (key, Value { whole, parts }) in self.rows {
            writer.put(&key, |bytes| bytes.extend_from_slice(&whole));
            if !parts.is_empty() {
                writer.part(&key, std::iter::once(&*parts));
            }
        }
        writer.finish()
    }
}

/// What is wrong with a part whose value is not there: rows before it are lost.
pub(super) const NOT_THERE: &str = "a part of a value that is not there";

/// The rows that stand when all have been taken in, oldest first.
///
/// # Errors
/// If a row is cut, or a part of a value that is not there.
pub fn standing<'a>(all: impl IntoIterator<Item = &'a [u8]>) -> Result<Standing, String> {
    let mut standing = Standing::default();
    all.into_iter().try_for_each(|bytes| standing.absorb(bytes))?;
    Ok(standing)
}

/// Merges rows, oldest first, into the rows that stand: keys in byte order, those that are gone left out.
///
/// # Errors
/// If a row is cut, or a part of a value that is not there.
pub fn merge<'a>(all: impl IntoIterator<Item = &'a [u8]>) -> Result<Vec<u8>, String> {
    standing(all).map(Standing::finish)
}

/// Folds rows, oldest first, into the last of each key and the parts behind it: keys in byte order, also those that are gone,
/// and parts of values that are not among the rows, for there may be older rows of them elsewhere.
///
/// # Errors
/// If a row is cut.
pub fn fold<'a>(all: impl IntoIterator<Item = &'a [u8]>) -> Result<Vec<u8>, String> {
    let mut last: BTreeMap<&[u8], (Option<Change<'_>>, Vec<&[u8]>)> = BTreeMap::new();
    for bytes in all {
        for row in read(bytes) {
            let (key, change) = row?;
            let (known, parts) = last.entry(key).or_default();
            if let Change::Part(part) = change {
                parts.push(part);
            } else {
                (*known, *parts) = (Some(change), Vec::new());
            }
        }
    }
    let mut writer = Writer::default();
    for (key, (change, parts)) in last {
        match change {
            Some(Change::Whole(value)) => writer.put(key, |bytes| bytes.extend_from_slice(value)),
            Some(_) => writer.remove(key),
            None => {}
        }
        if !parts.is_empty() {
            writer.part(key, parts.into_iter());
        }
    }
    Ok(writer.finish())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A key's value: whole, and what parts have been added.
    type Value = (Vec<u8>, Vec<u8>);

    /// What happens to a key.
    #[derive(Debug, Clone)]
    enum Step {
        Put(Vec<u8>),
        Part(Vec<u8>),
        Remove,
    }

    fn step() -> impl Strategy<Value = Step> {
        let bytes = || proptest::collection::vec(any::<u8>(), 0..300);
        prop_oneof![2 => bytes().prop_map(Step::Put), 3 => bytes().prop_map(Step::Part), 1 => Just(Step::Remove)]
    }

    fn key_of(number: u8) -> Vec<u8> {
        vec![number; usize::from(number) * 20]
    }

    /// The slow version: what stands after some steps. A part of what is not there is not made.
    fn model(steps: &[(u8, Step)]) -> BTreeMap<u8, Value> {
        let mut map: BTreeMap<u8, Value> = BTreeMap::new();
        for (key, step) in steps {
            match step {
                Step::Put(value) => drop(map.insert(*key, (value.clone(), Vec::new()))),
                Step::Part(part) => drop(map.entry(*key).and_modify(|known| known.1.extend(part))),
                Step::Remove => drop(map.remove(key)),
            }
        }
        map
    }

    fn write(steps: &[(u8, Step)]) -> Vec<u8> {
        let mut writer = Writer::default();
        for (key, step) in steps {
            match step {
                Step::Put(value) => writer.put(&key_of(*key), |bytes| bytes.extend_from_slice(value)),
                // In two pieces, as they may come.
                Step::Part(part) => {
                    let (one, other) = part.split_at(part.len() / 2);
                    writer.part(&key_of(*key), [one, other].into_iter());
                }
                Step::Remove => writer.remove(&key_of(*key)),
            }
        }
        writer.finish()
    }

    /// What rows without an end of a key say.
    fn values(bytes: &[u8]) -> BTreeMap<Vec<u8>, Value> {
        let mut values: BTreeMap<Vec<u8>, Value> = BTreeMap::new();
        for row in read(bytes) {
            match row.unwrap() {
                (key, Change::Whole(value)) => {
                    assert_eq!(values.insert(key.to_vec(), (value.to_vec(), Vec::new())), None)
                }
                (key, Change::Part(part)) => values.get_mut(key).unwrap().1.extend(part),
                (_, Change::Gone) => panic!("merged rows have no ends"),
            }
        }
        values
    }

    proptest! {
        #[test]
        fn rows_come_back_and_merge_like_a_map(
            steps in proptest::collection::vec((0..12_u8, step()), 0..80),
            cuts in proptest::array::uniform2(0..80_usize),
        ) {
            // A part comes after what it is a part of.
            let mut there = std::collections::BTreeSet::new();
            let steps: Vec<(u8, Step)> = steps.into_iter().filter(|(key, step)| match step {
                Step::Part(_) => there.contains(key),
                Step::Put(_) => {
                    there.insert(*key);
                    true
                }
                Step::Remove => {
                    there.remove(key);
                    true
                }
            }).collect();
            let bytes = write(&steps);
            prop_assert_eq!(read(&bytes).map(Result::unwrap).count(), steps.len());
            let expected: BTreeMap<Vec<u8>, Value> = model(&steps).into_iter().map(|(key, value)| (key_of(key), value)).collect();
            let first = cuts[0].min(cuts[1]).min(steps.len());
            let second = cuts[0].max(cuts[1]).min(steps.len());
            let parts = [&steps[..first], &steps[first..second], &steps[second..]].map(write);
            let merged = merge(parts.iter().map(Vec::as_slice)).unwrap();
            prop_assert_eq!(values(&merged), expected.clone());
            prop_assert_eq!(standing([&bytes[..]]).unwrap().len(), expected.len());
            // However the rows are folded and merged before, they merge to the same.
            let later = fold([&parts[1][..], &parts[2]]).unwrap();
            prop_assert_eq!(merge([&parts[0][..], &later]).unwrap(), merged.clone());
            let earlier = fold([&parts[0][..], &parts[1]]).unwrap();
            prop_assert_eq!(merge([&earlier[..], &parts[2]]).unwrap(), merged.clone());
            let base = merge([&parts[0][..], &parts[1]]).unwrap();
            prop_assert_eq!(merge([&base[..], &parts[2]]).unwrap(), merged.clone());
            prop_assert_eq!(fold([&base[..], &parts[2]]).and_then(|folded| merge([&folded[..]])).unwrap(), merged);
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            for row in read(&bytes) {
                if row.is_err() {
                    break;
                }
            }
        }
    }

    #[test]
    fn a_part_of_what_is_not_there_is_an_error() {
        let mut writer = Writer::default();
        writer.part(b"JFK", [&[1][..], &[2, 3]].into_iter());
        let part = writer.finish();
        assert_eq!(read(&part).collect::<Vec<_>>(), [Ok((&b"JFK"[..], Change::Part(&[1, 2, 3])))]);
        assert_eq!(merge([&part[..]]), Err(NOT_THERE.to_string()));
        assert_eq!(fold([&part[..], &part]).map(|folded| folded.len()), Ok(part.len() + 3));
        assert!(Change::Part(&[1]).whole().is_err());
    }
}
