//! Rows of state as bytes: keys with their values, and keys that are gone. Whoever keeps them need not know what a value
//! means: of several rows of a key the last one counts.
//!
//! ```text
//! row:     key length · key · 0                        the key is gone
//!          key length · key · value length + 1 · value
//! ```
//! Lengths are LEB128.

use std::collections::BTreeMap;

/// Writes rows.
///
/// ```
/// use millstream_operators::state::rows::{Writer, read};
/// let mut writer = Writer::default();
/// writer.put(b"JFK", |bytes| bytes.extend_from_slice(&[7, 7]));
/// writer.remove(b"EWR");
/// let bytes = writer.finish();
/// let rows: Vec<_> = read(&bytes).collect::<Result<_, _>>().unwrap();
/// assert_eq!(rows, [(&b"JFK"[..], Some(&[7, 7][..])), (b"EWR", None)]);
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

    /// `key` is gone.
    pub fn remove(&mut self, key: &[u8]) {
        self.key(key);
        length(&mut self.bytes, 0);
    }

    fn key(&mut self, key: &[u8]) {
        length(&mut self.bytes, key.len() as u64);
        self.bytes.extend_from_slice(key);
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

/// A key and its value; `None` when the key is gone.
pub type Row<'a> = (&'a [u8], Option<&'a [u8]>);

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
    let value = match take_length(rest)?.checked_sub(1) {
        Some(value_length) => Some(take(rest, value_length)?),
        None => None,
    };
    Ok((key, value))
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

/// The rows that stand: takes in rows, oldest first, and keeps the last of each key. Its memory is theirs.
#[derive(Debug, Default)]
pub struct Standing {
    rows: BTreeMap<Box<[u8]>, Box<[u8]>>,
}

impl Standing {
    /// Takes in rows that are younger than all before.
    ///
    /// # Errors
    /// If a row is cut.
    pub fn absorb(&mut self, bytes: &[u8]) -> Result<(), String> {
        for row in read(bytes) {
            match row? {
                (key, Some(value)) => match self.rows.get_mut(key) {
                    Some(known) if known.len() == value.len() => known.copy_from_slice(value),
                    Some(known) => *known = value.into(),
                    None => drop(self.rows.insert(key.into(), value.into())),
                },
                (key, None) => drop(self.rows.remove(key)),
            }
        }
        Ok(())
    }

    /// The rows, keys in byte order.
    pub fn finish(self) -> Vec<u8> {
        let mut writer = Writer::default();
        for (key, value) in self.rows {
            writer.put(&key, |bytes| bytes.extend_from_slice(&value));
        }
        writer.finish()
    }
}

/// Merges rows, oldest first, into the rows that stand: keys in byte order, those that are gone left out.
///
/// # Errors
/// If a row is cut.
pub fn merge<'a>(all: impl IntoIterator<Item = &'a [u8]>) -> Result<Vec<u8>, String> {
    let mut standing = Standing::default();
    all.into_iter().try_for_each(|bytes| standing.absorb(bytes))?;
    Ok(standing.finish())
}

/// Folds rows, oldest first, into the last of each key: keys in byte order, also those that are gone, for there may be older
/// rows of them elsewhere.
///
/// # Errors
/// If a row is cut.
pub fn fold<'a>(all: impl IntoIterator<Item = &'a [u8]>) -> Result<Vec<u8>, String> {
    let mut last = BTreeMap::new();
    for bytes in all {
        for row in read(bytes) {
            let (key, value) = row?;
            last.insert(key, value);
        }
    }
    let mut writer = Writer::default();
    for (key, value) in last {
        match value {
            Some(value) => writer.put(key, |bytes| bytes.extend_from_slice(value)),
            None => writer.remove(key),
        }
    }
    Ok(writer.finish())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rows(bytes: &[u8]) -> Vec<(Vec<u8>, Option<Vec<u8>>)> {
        read(bytes).map(|row| row.unwrap()).map(|(key, value)| (key.to_vec(), value.map(<[u8]>::to_vec))).collect()
    }

    proptest! {
        #[test]
        fn rows_come_back_and_merge_like_a_map(
            written in proptest::collection::vec((0..20_u8, proptest::option::of(proptest::collection::vec(any::<u8>(), 0..300))), 0..60),
            cut in 0..60_usize,
        ) {
            let write = |rows: &[(u8, Option<Vec<u8>>)]| {
                let mut writer = Writer::default();
                for (key, value) in rows {
                    let key = vec![*key; usize::from(*key) * 20];
                    match value {
                        Some(value) => writer.put(&key, |bytes| bytes.extend_from_slice(value)),
                        None => writer.remove(&key),
                    }
                }
                writer.finish()
            };
            let bytes = write(&written);
            prop_assert_eq!(rows(&bytes).len(), written.len());
            let (first, second) = written.split_at(cut.min(written.len()));
            let merged = merge([&write(first)[..], &write(second)]).unwrap();
            let map: BTreeMap<u8, Option<Vec<u8>>> = written.iter().cloned().collect();
            let expected: Vec<(Vec<u8>, Option<Vec<u8>>)> = map.iter().filter(|(_, value)| value.is_some())
                .map(|(key, value)| (vec![*key; usize::from(*key) * 20], value.clone())).collect();
            prop_assert_eq!(rows(&merged), expected);
            // However the rows are folded before, they merge to the same.
            let folded = fold([&write(second)[..]]).unwrap();
            prop_assert_eq!(merge([&write(first)[..], &folded]).unwrap(), merged);
            let folded = fold([&write(first)[..], &write(second)]).unwrap();
            prop_assert_eq!(rows(&folded).len(), map.len());
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
}
