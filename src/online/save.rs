//! The store in a checkpoint: rows of the keys that changed, by key group, so that any number of workers can take them up.
//!
//! The newest features could be derived from the group's own state, older versions could not; so the store saves what it
//! has.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use millstream_operators::key::{KEY_GROUPS, hash, key_group};
use millstream_operators::state::{StateError, rows};

use super::{Entry, Group, OnlineStore, VERSIONS_MAX, Version};

/// Event time and packed features, newest first.
pub(super) type SavedVersions = Vec<(i64, Vec<u8>)>;

impl OnlineStore {
    /// Gives how the keys `touched` of group number `group` stand now, and which keys of `owned` key groups have expired
    /// since the last call, as rows by key group.
    ///
    /// # Panics
    /// If there is no such group.
    pub fn save_changes(
        &self,
        group: usize,
        touched: impl Iterator<Item = Box<[u8]>>,
        owned: &[usize],
        give: &mut dyn FnMut(u16, Vec<u8>),
    ) {
        let group = &self.groups[group];
        let mut changed: BTreeMap<u16, rows::Writer> = BTreeMap::new();
        let expired = owned.iter().copied().filter(|shard| *shard < KEY_GROUPS).flat_map(|shard| {
            std::mem::take(&mut *group.expired[shard].lock().expect("no thread panics while it holds the list"))
        });
        let keys: std::collections::BTreeSet<Box<[u8]>> = touched.chain(expired).collect();
        for key in keys {
            let of = key_group(hash(&key));
            let writer = changed.entry(of).or_default();
            match group.versions(&key) {
                Some(versions) => writer.put(&key, |bytes| {
                    let taken = std::mem::take(bytes);
                    *bytes = postcard::to_extend(&versions, taken).expect("plain data serializes into memory");
                }),
                None => writer.remove(&key),
            }
        }
        for (of, writer) in changed {
            give(of, writer.finish());
        }
    }

    /// Takes back rows of a key group, the oldest first.
    ///
    /// # Errors
    /// If the bytes do not decode, or are not of the group's columns.
    ///
    /// # Panics
    /// If there is no such group.
    pub fn load(&self, group: usize, key_group: u16, bytes: &[u8]) -> Result<(), StateError> {
        let group = &self.groups[group];
        let corrupt = |detail: String| StateError::Corrupt { key_group, detail };
        for row in rows::read(bytes) {
            let (key, change) = row.map_err(corrupt)?;
            group.forget(key);
            if let Some(value) = change.whole().map_err(corrupt)? {
                let versions = postcard::from_bytes(value).map_err(|error| corrupt(error.to_string()))?;
                group.load(key_group, key, versions).map_err(corrupt)?;
            }
        }
        Ok(())
    }
}

impl Group {
    fn versions(&self, key: &[u8]) -> Option<SavedVersions> {
        let hash = hash(key);
        let shard = self.read(key_group(hash) as usize);
        let entry = shard.find(hash, |entry| entry.hash == hash && *entry.key == *key)?;
        Some(entry.versions.iter().map(|version| (version.event_time, version.bytes.to_vec())).collect())
    }

    fn forget(&self, key: &[u8]) {
        let hash = hash(key);
        let mut shard = self.write(key_group(hash) as usize);
        if let Ok(known) = shard.find_entry(hash, |known| known.hash == hash && *known.key == *key) {
            let (known, _) = known.remove();
            self.keys.fetch_sub(1, Ordering::Relaxed);
            self.bytes.fetch_sub(known.bytes() as u64, Ordering::Relaxed);
        }
    }

    fn load(&self, group: u16, key: &[u8], versions: SavedVersions) -> Result<(), String> {
        let hash = hash(key);
        let sorted = versions.is_sorted_by(|a, b| a.0 > b.0);
        let whole = versions.iter().all(|(_, bytes)| self.layout.unpack(bytes).is_some());
        if key_group(hash) != group || versions.is_empty() || versions.len() > VERSIONS_MAX || !sorted || !whole {
            return Err("a key is of another key group, or its versions are none, too many, unsorted or cut".into());
        }
        self.newest.fetch_max(versions[0].0, Ordering::AcqRel);
        let versions = versions.into_iter().map(|(event_time, bytes)| Version { event_time, bytes: bytes.into() });
        let entry = Entry { hash, key: key.into(), versions: versions.collect() };
        self.keys.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(entry.bytes() as u64, Ordering::Relaxed);
        self.write(group as usize).insert_unique(hash, entry, |entry| entry.hash);
        Ok(())
    }
}
