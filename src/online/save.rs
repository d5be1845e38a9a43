//! The store in a checkpoint: one blob a key group, so that any number of workers can take it up again.
//!
//! The newest features could be derived from the group's own state, older versions could not; so the store saves what it
//! has. A blob names the columns it was made with: after a change of the group's features it is of no use, and the store
//! starts empty and fills up as keys are touched.

use millstream_operators::key::{hash, key_group};
use millstream_operators::state::StateError;
use serde::{Deserialize, Serialize};
use std::sync::atomic::Ordering;

use super::{Entry, Group, OnlineStore, VERSIONS_MAX, Version, columns_text};

/// Rises when the layout of a row or the shape of a blob changes.
const FORMAT: u32 = 1;

/// Event time and packed features, newest first.
type SavedVersions = Vec<(i64, Vec<u8>)>;

#[derive(Serialize, Deserialize)]
struct Saved {
    format: u32,
    columns: String,
    newest: i64,
    entries: Vec<(Vec<u8>, SavedVersions)>,
}

impl OnlineStore {
    /// Gives every key group of group number `group` that holds a key, as bytes; equal contents give equal bytes.
    ///
    /// # Panics
    /// If there is no such group.
    pub fn save(&self, group: usize, give: &mut dyn FnMut(u16, Vec<u8>)) {
        let group = &self.groups[group];
        for shard in 0..group.shards.len() {
            let saved = group.save(shard);
            if !saved.entries.is_empty() {
                let bytes = postcard::to_allocvec(&saved).expect("plain data serializes into memory");
                give(shard as u16, bytes);
            }
        }
    }

    /// Takes back a key group that [`save`](OnlineStore::save) gave. False when the blob is of other columns: then nothing
    /// of it is taken.
    ///
    /// # Errors
    /// If the bytes do not decode.
    ///
    /// # Panics
    /// If there is no such group.
    pub fn load(&self, group: usize, key_group: u16, bytes: &[u8]) -> Result<bool, StateError> {
        let group = &self.groups[group];
        let saved: Saved = postcard::from_bytes(bytes)
            .map_err(|error| StateError::Corrupt { key_group, detail: error.to_string() })?;
        if saved.format != FORMAT || saved.columns != columns_text(&group.features) {
            return Ok(false);
        }
        group.load(key_group, saved)?;
        Ok(true)
    }
}

impl Group {
    fn save(&self, shard: usize) -> Saved {
        let shard = self.read(shard);
        let versions = |entry: &Entry| entry.versions.iter().map(|v| (v.event_time, v.bytes.to_vec())).collect();
        let mut entries: Vec<_> = shard.iter().map(|entry| (entry.key.to_vec(), versions(entry))).collect();
        entries.sort();
        let newest = self.newest.load(Ordering::Acquire);
        Saved { format: FORMAT, columns: columns_text(&self.features), newest, entries }
    }

    fn load(&self, group: u16, saved: Saved) -> Result<(), StateError> {
        let corrupt = |detail: &str| StateError::Corrupt { key_group: group, detail: detail.to_owned() };
        let mut shard = self.write(group as usize);
        for (key, versions) in saved.entries {
            let hash = hash(&key);
            let sorted = versions.is_sorted_by(|a, b| a.0 > b.0);
            let whole = versions.iter().all(|(_, bytes)| self.layout.unpack(bytes).is_some());
            if key_group(hash) != group || versions.is_empty() || versions.len() > VERSIONS_MAX || !sorted || !whole {
                return Err(corrupt(
                    "a key is of another key group, or its versions are none, too many, unsorted or cut",
                ));
            }
            let versions = versions.into_iter().map(|(event_time, bytes)| Version { event_time, bytes: bytes.into() });
            let entry = Entry { hash, key: key.into(), versions: versions.collect() };
            if let Ok(known) = shard.find_entry(hash, |known| known.hash == hash && known.key == entry.key) {
                let (known, _) = known.remove();
                self.keys.fetch_sub(1, Ordering::Relaxed);
                self.bytes.fetch_sub(known.bytes() as u64, Ordering::Relaxed);
            }
            self.keys.fetch_add(1, Ordering::Relaxed);
            self.bytes.fetch_add(entry.bytes() as u64, Ordering::Relaxed);
            shard.insert_unique(hash, entry, |entry| entry.hash);
        }
        self.newest.fetch_max(saved.newest, Ordering::AcqRel);
        Ok(())
    }
}
