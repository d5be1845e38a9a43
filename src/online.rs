//! The online store: the newest features of every key, in the engine's own memory, served over HTTP.
//!
//! A feature group publishes a row for each key it touched in an epoch when the epoch closes. The store keeps a few
//! versions of each key, ordered by event time: the newest answers a plain read, an older one a read *as of* a time. A
//! row never replaces one of a later event time, so the order of publishing does not matter.
//!
//! ```text
//! group by_origin ─ epoch closes ─ publish ─▶ 256 shards (a key group each): key -> [newest, ... up to 4 versions]
//!                                                │ sweep: keys older than ttl go        ▲
//!                                                └ save: rows of the keys that changed  └ read: one key, many, as of
//! ```
//!
//! A shard has its own lock, held for one key at a time, and workers own disjoint key groups: publishing waits for a
//! reader of the same shard at most, and for the nanoseconds of one copy. A version is one allocation: the features, packed.
//!
//! Age is counted in event time: against the newest event time of the group, or the time that a read asks for. A replay
//! of old data therefore serves what a live run would have served then.

use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, RwLock};
use std::time::Instant;

use arrow::array::{Array, AsArray};
use arrow::datatypes::{DataType, FieldRef, Schema, SchemaRef};
use arrow::error::ArrowError;
use hashbrown::HashTable;
use millstream_operators::Batch;
use millstream_operators::batch::EventTime;
use millstream_operators::features::VALID_UNTIL;
use millstream_operators::key::{KEY_GROUPS, hash, key_group};
use millstream_operators::units::Millis;

use crate::metrics::catalogue::*;
use crate::metrics::{CounterHandle, GaugeHandle, HistogramHandle};
use row::Layout;

mod carry;
mod read;
mod row;
mod save;

pub use carry::{Packed, carry, fill};
pub use read::{Features, UnknownGroup};
pub use row::{Kind, parse_time, time_text};

/// The column of a published batch that holds the key's text.
pub const KEY: &str = "key";

/// Versions kept of each key. More would let `as_of` reach further back, at the price of memory.
pub const VERSIONS_MAX: usize = 4;

/// Memory of a key beside its text and its versions, and of a version beside its bytes: for the metric.
const KEY_OVERHEAD_BYTES: usize = 64;
const VERSION_OVERHEAD_BYTES: usize = 40;

/// A feature group to serve.
#[derive(Debug, Clone)]
pub struct OnlineGroup {
    /// The group's name in the topology.
    pub name: String,
    /// The columns of the batches it publishes: `key` (text), the features and, as the last, [`VALID_UNTIL`] if it says that.
    pub schema: SchemaRef,
    /// A key without an event for this long is not served any more, and forgotten. `None` keeps it for ever.
    pub ttl: Option<Millis>,
}

/// The store of all groups. Shared by reference: workers publish, HTTP reads.
pub struct OnlineStore {
    groups: Vec<Group>,
    /// The next shard to sweep, over all groups.
    sweep_at: AtomicUsize,
    sweep_seconds: HistogramHandle,
    read_seconds: HistogramHandle,
    unknown_group: CounterHandle,
    unknown_key: CounterHandle,
}

/// A batch that a group can't publish.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The columns are not those the group was declared with.
    #[error("feature group `{group}` published the columns {found}, but the store was told {declared}")]
    Columns {
        /// The group.
        group: String,
        /// The batch's columns.
        found: String,
        /// The columns at start.
        declared: String,
    },
    /// The features can't be kept.
    #[error("feature group `{group}`: {source}")]
    Arrow {
        /// The group.
        group: String,
        /// What Arrow said.
        source: ArrowError,
    },
}

struct Version {
    event_time: EventTime,
    bytes: Box<[u8]>,
}

struct Entry {
    hash: u64,
    key: Box<[u8]>,
    /// Newest first; never empty, at most [`VERSIONS_MAX`].
    versions: Vec<Version>,
}

struct Group {
    name: String,
    ttl_millis: i64,
    layout: Layout,
    /// The columns of a published batch.
    published: SchemaRef,
    key_column: usize,
    /// Whether the last column says until when a row is so.
    has_valid_until: bool,
    /// One a key group.
    shards: Vec<RwLock<HashTable<Entry>>>,
    /// For each shard the keys that were swept and no checkpoint knows of yet.
    expired: Vec<Mutex<Vec<Box<[u8]>>>>,
    /// The newest event time published; `i64::MIN` before the first.
    newest: AtomicI64,
    keys: AtomicU64,
    bytes: AtomicU64,
    metrics: GroupMetrics,
}

struct GroupMetrics {
    rows: CounterHandle,
    old_rows: CounterHandle,
    expired: CounterHandle,
    publish_seconds: HistogramHandle,
    keys: GaugeHandle,
    bytes: GaugeHandle,
}

/// What became of a published row.
enum Kept {
    /// A version of a new key or a known one.
    Yes { new_key: bool },
    /// Older than all versions kept.
    TooOld,
}

impl OnlineStore {
    /// An empty store.
    ///
    /// # Errors
    /// If a group has no text column `key`, or a feature of a type that can't be kept.
    pub fn new(groups: &[OnlineGroup]) -> Result<Self, PublishError> {
        Ok(OnlineStore {
            groups: groups.iter().map(Group::new).collect::<Result<_, _>>()?,
            sweep_at: AtomicUsize::new(0),
            sweep_seconds: ONLINE_STORE_OP_DURATION.of(["sweep"]),
            read_seconds: ONLINE_STORE_OP_DURATION.of(["read"]),
            unknown_group: ONLINE_STORE_ERRORS.of(["read", "unknown_group"]),
            unknown_key: ONLINE_STORE_ERRORS.of(["read", "unknown_key"]),
        })
    }

    /// The number of a group, for [`publish`](OnlineStore::publish).
    pub fn index_of(&self, group: &str) -> Option<usize> {
        self.groups.iter().position(|known| known.name == group)
    }

    /// The groups' names, in the order of the topology.
    pub fn group_names(&self) -> impl Iterator<Item = &str> {
        self.groups.iter().map(|group| group.name.as_str())
    }

    /// Takes the rows of group number `group`: for each its key, its event time and its features. Rows with a null key are
    /// left out. About 2 us a row of 20 features in the debug profile.
    ///
    /// # Errors
    /// If the columns are not the declared ones.
    ///
    /// # Panics
    /// If there is no such group.
    pub fn publish(&self, group: usize, batch: &Batch) -> Result<(), PublishError> {
        self.groups[group].publish(batch)
    }

    /// Forgets the keys of one shard that are older than their group's ttl; shards take turns. Called some ten times a
    /// second, it goes through a group within half a minute and never holds a lock for long.
    pub fn sweep_next(&self) {
        if self.groups.is_empty() {
            return;
        }
        let started = Instant::now();
        let at = self.sweep_at.fetch_add(1, Ordering::Relaxed) % (self.groups.len() * KEY_GROUPS);
        self.groups[at / KEY_GROUPS].sweep(at % KEY_GROUPS);
        self.sweep_seconds.record(started.elapsed().as_secs_f64());
    }

    /// Brings the gauges up to date, at a scrape. `now` is the process's clock in milliseconds since 1970.
    pub fn refresh_metrics(&self, now: EventTime) {
        for group in &self.groups {
            group.metrics.keys.set(group.keys.load(Ordering::Relaxed) as f64);
            group.metrics.bytes.set(group.bytes.load(Ordering::Relaxed) as f64);
            if let Some(newest) = group.newest() {
                let staleness = now.saturating_sub(newest) as f64 / 1e3;
                FEATURE_STALENESS_SECONDS.of([&group.name]).set(staleness.max(0.0));
            }
        }
    }

    /// Keys and approximate bytes of a group.
    ///
    /// # Panics
    /// If there is no such group.
    pub fn size(&self, group: usize) -> (u64, u64) {
        let group = &self.groups[group];
        (group.keys.load(Ordering::Relaxed), group.bytes.load(Ordering::Relaxed))
    }
}

impl Group {
    fn new(declared: &OnlineGroup) -> Result<Self, PublishError> {
        let arrow = |source| PublishError::Arrow { group: declared.name.clone(), source };
        let key_column = declared.schema.index_of(KEY).map_err(arrow)?;
        if declared.schema.field(key_column).data_type() != &DataType::Utf8 {
            return Err(arrow(ArrowError::SchemaError(format!("the column `{KEY}` must be text"))));
        }
        let mut features = declared.schema.fields().to_vec();
        let is_time = |last: &FieldRef| last.name() == VALID_UNTIL && last.data_type() == &DataType::Int64;
        let has_valid_until = features.pop_if(|last| is_time(last)).is_some();
        features.remove(key_column);
        let features = Schema::new(features);
        let name = declared.name.as_str();
        Ok(Group {
            name: declared.name.clone(),
            ttl_millis: declared.ttl.map_or(i64::MAX, |ttl| ttl.0),
            layout: Layout::new(&features).map_err(arrow)?,
            published: declared.schema.clone(),
            key_column,
            has_valid_until,
            shards: (0..KEY_GROUPS).map(|_| RwLock::new(HashTable::new())).collect(),
            expired: (0..KEY_GROUPS).map(|_| Mutex::default()).collect(),
            newest: AtomicI64::new(i64::MIN),
            keys: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            metrics: GroupMetrics {
                rows: ONLINE_STORE_ROWS.of([name]),
                old_rows: ONLINE_STORE_OLD_ROWS.of([name]),
                expired: ONLINE_STORE_EXPIRED.of([name]),
                publish_seconds: ONLINE_STORE_OP_DURATION.of(["publish"]),
                keys: ONLINE_STORE_KEYS.of([name]),
                bytes: ONLINE_STORE_BYTES.of([name]),
            },
        })
    }

    fn newest(&self) -> Option<EventTime> {
        Some(self.newest.load(Ordering::Acquire)).filter(|newest| *newest != i64::MIN)
    }

    fn publish(&self, batch: &Batch) -> Result<(), PublishError> {
        let started = Instant::now();
        if !same_columns(&batch.records.schema(), &self.published) {
            return Err(PublishError::Columns {
                group: self.name.clone(),
                found: columns_text(&batch.records.schema()),
                declared: columns_text(&self.published),
            });
        }
        let mut columns = batch.records.columns().to_vec();
        let valid_until = columns.pop_if(|_| self.has_valid_until);
        let keys = columns.remove(self.key_column);
        let keys = keys.as_string::<i32>();
        let columns = self.layout.columns(&columns, valid_until.as_ref());
        let columns = columns.map_err(|source| PublishError::Arrow { group: self.name.clone(), source })?;
        let mut bytes = Vec::new();
        let (mut taken, mut too_old, mut new_keys, mut newest) = (0, 0, 0, i64::MIN);
        for row in (0..batch.len()).filter(|row| keys.is_valid(*row)) {
            let event_time = batch.rows[row].event_time;
            columns.pack(row, &mut bytes);
            match self.put(keys.value(row).as_bytes(), event_time, &bytes) {
                Kept::Yes { new_key } => new_keys += u64::from(new_key),
                Kept::TooOld => too_old += 1,
            }
            newest = newest.max(event_time);
            taken += 1;
        }
        self.newest.fetch_max(newest, Ordering::AcqRel);
        self.keys.fetch_add(new_keys, Ordering::Relaxed);
        self.metrics.rows.increment(taken);
        self.metrics.old_rows.increment(too_old);
        self.metrics.publish_seconds.record(started.elapsed().as_secs_f64());
        Ok(())
    }

    /// Puts a version in its place by event time; of two with one event time the later published counts.
    fn put(&self, key: &[u8], event_time: EventTime, bytes: &[u8]) -> Kept {
        let hash = hash(key);
        let mut shard = self.write(key_group(hash) as usize);
        let Some(entry) = shard.find_mut(hash, |entry| entry.hash == hash && *entry.key == *key) else {
            let versions = vec![Version { event_time, bytes: bytes.into() }];
            let entry = Entry { hash, key: key.into(), versions };
            self.bytes.fetch_add(entry.bytes() as u64, Ordering::Relaxed);
            shard.insert_unique(hash, entry, |entry| entry.hash);
            return Kept::Yes { new_key: true };
        };
        let at = entry.versions.partition_point(|version| version.event_time > event_time);
        let full = entry.versions.len() == VERSIONS_MAX;
        match entry.versions.get_mut(at) {
            Some(version) if version.event_time == event_time => self.overwrite(version, bytes),
            _ if at == VERSIONS_MAX => return Kept::TooOld,
            _ if full => {
                // The oldest version leaves and lends its place, and mostly its memory, to the new one.
                entry.versions[at..].rotate_right(1);
                entry.versions[at].event_time = event_time;
                self.overwrite(&mut entry.versions[at], bytes);
            }
            _ => {
                self.bytes.fetch_add((bytes.len() + VERSION_OVERHEAD_BYTES) as u64, Ordering::Relaxed);
                entry.versions.insert(at, Version { event_time, bytes: bytes.into() });
            }
        }
        Kept::Yes { new_key: false }
    }

    fn overwrite(&self, version: &mut Version, bytes: &[u8]) {
        if version.bytes.len() == bytes.len() {
            version.bytes.copy_from_slice(bytes);
        } else {
            self.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            self.bytes.fetch_sub(version.bytes.len() as u64, Ordering::Relaxed);
            version.bytes = bytes.into();
        }
    }

    fn write(&self, shard: usize) -> std::sync::RwLockWriteGuard<'_, HashTable<Entry>> {
        self.shards[shard].write().expect("no thread panics while it holds a shard")
    }

    fn read(&self, shard: usize) -> std::sync::RwLockReadGuard<'_, HashTable<Entry>> {
        self.shards[shard].read().expect("no thread panics while it holds a shard")
    }

    /// True when a version of `event_time` is older than the ttl at `at`.
    fn is_expired(&self, event_time: EventTime, at: EventTime) -> bool {
        at.saturating_sub(event_time) > self.ttl_millis
    }

    fn sweep(&self, shard: usize) {
        let Some(newest) = self.newest() else { return };
        let (mut keys, mut bytes) = (0, 0);
        let mut swept = Vec::new();
        self.write(shard).retain(|entry| {
            let keep = !self.is_expired(entry.versions[0].event_time, newest);
            if !keep {
                keys += 1;
                bytes += entry.bytes() as u64;
                swept.push(entry.key.clone());
            }
            keep
        });
        self.expired[shard].lock().expect("no thread panics while it holds the list").append(&mut swept);
        self.keys.fetch_sub(keys, Ordering::Relaxed);
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.metrics.expired.increment(keys);
    }
}

impl Entry {
    fn bytes(&self) -> usize {
        let versions = self.versions.iter().map(|version| version.bytes.len() + VERSION_OVERHEAD_BYTES);
        self.key.len() + KEY_OVERHEAD_BYTES + versions.sum::<usize>()
    }
}

/// True when names and types are the same; whether a column may be null does not matter.
fn same_columns(one: &SchemaRef, other: &SchemaRef) -> bool {
    let same = |(a, b): (&FieldRef, &FieldRef)| a.name() == b.name() && a.data_type() == b.data_type();
    std::sync::Arc::ptr_eq(one, other)
        || (one.fields().len() == other.fields().len() && one.fields().iter().zip(other.fields()).all(same))
}

/// Names and types, for errors and to tell whether saved rows fit.
fn columns_text(schema: &Schema) -> String {
    let columns: Vec<String> = schema.fields().iter().map(|f| format!("{} {}", f.name(), f.data_type())).collect();
    columns.join(", ")
}

#[cfg(test)]
mod tests;
