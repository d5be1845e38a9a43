//! Reading features as JSON.

use std::time::Instant;

use millstream_operators::batch::EventTime;
use millstream_operators::key::{hash, key_group};
use serde_json::{Map, Value};

use super::{Group, OnlineStore};

/// The features of one key at one time.
#[derive(Debug, Clone, PartialEq)]
pub struct Features {
    /// When the event happened that the features follow from.
    pub event_time: EventTime,
    /// From when on a read would find other features if the key has no event until then, `time_since_last` aside; the largest
    /// time if it never would, `None` if that is not known.
    pub valid_until: Option<EventTime>,
    /// Value by feature. NaN and infinite numbers are null: JSON has no word for them.
    pub values: Map<String, Value>,
}

/// There is no such group.
#[derive(Debug, thiserror::Error)]
#[error("there is no feature group `{group}`; there are: {known}")]
pub struct UnknownGroup {
    /// The group asked for.
    pub group: String,
    /// The names of all groups.
    pub known: String,
}

impl OnlineStore {
    /// The features of `keys` in `group`, as of the last event of each, in the order asked for; `None` for a key that is not there, whose newest row is
    /// older than the group's ttl, or of which no version as old as `as_of` is kept. Without `as_of` the newest version
    /// counts.
    ///
    /// # Errors
    /// If there is no such group.
    pub fn read(
        &self,
        group: &str,
        keys: &[&str],
        as_of: Option<EventTime>,
    ) -> Result<Vec<Option<Features>>, UnknownGroup> {
        let started = Instant::now();
        let Some(at) = self.index_of(group) else {
            self.unknown_group.increment(1);
            let known = self.group_names().collect::<Vec<_>>().join(", ");
            return Err(UnknownGroup { group: group.to_owned(), known });
        };
        let found: Vec<_> = keys.iter().map(|key| self.groups[at].features(key.as_bytes(), as_of)).collect();
        self.unknown_key.increment(found.iter().filter(|features| features.is_none()).count() as u64);
        self.read_seconds.record(started.elapsed().as_secs_f64());
        Ok(found)
    }
}

impl Group {
    fn features(&self, key: &[u8], as_of: Option<EventTime>) -> Option<Features> {
        // The lock is held for the copy only.
        let (event_time, bytes) = self.copy(key, as_of)?;
        let (values, valid_until) = self.layout.unpack(&bytes)?;
        Some(Features { event_time, valid_until, values })
    }

    /// A copy of the version to read.
    fn copy(&self, key: &[u8], as_of: Option<EventTime>) -> Option<(EventTime, Vec<u8>)> {
        let at = as_of.or(self.newest())?;
        let hash = hash(key);
        let shard = self.read(key_group(hash) as usize);
        let entry = shard.find(hash, |entry| entry.hash == hash && *entry.key == *key)?;
        let version = match as_of {
            None => entry.versions.first(),
            Some(as_of) => entry.versions.iter().find(|version| version.event_time <= as_of),
        }?;
        (!self.is_expired(version.event_time, at)).then(|| (version.event_time, version.bytes.to_vec()))
    }
}
