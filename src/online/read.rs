//! Reading features as JSON.

use std::time::Instant;

use arrow::array::{RecordBatch, RecordBatchOptions};
use arrow::error::ArrowError;
use arrow_json::WriterBuilder;
use arrow_json::writer::JsonArray;
use millstream_operators::batch::EventTime;
use millstream_operators::key::{hash, key_group};
use serde_json::{Map, Value};

use super::{Group, OnlineStore};

/// The features of one key at one time.
#[derive(Debug, Clone, PartialEq)]
pub struct Features {
    /// When the event happened that the features follow from.
    pub event_time: EventTime,
    /// Value by feature. NaN and infinite numbers are null: JSON has no word for them.
    pub values: Map<String, Value>,
}

/// A read that can't be answered.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// There is no such group.
    #[error("there is no feature group `{group}`; there are: {known}")]
    UnknownGroup {
        /// The group asked for.
        group: String,
        /// The names of all groups.
        known: String,
    },
    /// The rows can't be written as JSON.
    #[error("feature group `{group}`: {source}")]
    Arrow {
        /// The group.
        group: String,
        /// What Arrow said.
        source: ArrowError,
    },
}

impl OnlineStore {
    /// The features of `keys` in `group`, in the order asked for; `None` for a key that is not there, whose newest row is
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
    ) -> Result<Vec<Option<Features>>, ReadError> {
        let started = Instant::now();
        let Some(at) = self.index_of(group) else {
            self.unknown_group.increment(1);
            let known = self.group_names().collect::<Vec<_>>().join(", ");
            return Err(ReadError::UnknownGroup { group: group.to_owned(), known });
        };
        let found = self.groups[at].read_keys(keys, as_of);
        let found = found.map_err(|source| ReadError::Arrow { group: group.to_owned(), source })?;
        self.unknown_key.increment(found.iter().filter(|features| features.is_none()).count() as u64);
        self.read_seconds.record(started.elapsed().as_secs_f64());
        Ok(found)
    }
}

impl Group {
    fn read_keys(&self, keys: &[&str], as_of: Option<EventTime>) -> Result<Vec<Option<Features>>, ArrowError> {
        // The locks are held for the copies only; the JSON is written afterwards, all rows at once.
        let copies: Vec<Option<(EventTime, Vec<u8>)>> =
            keys.iter().map(|key| self.copy(key.as_bytes(), as_of)).collect();
        let rows: Vec<&[u8]> = copies.iter().flatten().map(|(_, bytes)| bytes.as_slice()).collect();
        let mut values = self.to_json(&rows)?.into_iter();
        let features = copies.iter().map(|copy| {
            let (event_time, _) = copy.as_ref()?;
            Some(Features { event_time: *event_time, values: values.next()? })
        });
        Ok(features.collect())
    }

    /// A copy of the version to read.
    fn copy(&self, key: &[u8], as_of: Option<EventTime>) -> Option<(EventTime, Vec<u8>)> {
        let at = as_of.or(self.newest())?;
        let hash = hash(key);
        let shard = self.read(key_group(hash) as usize);
        let entry = shard.find(hash, |entry| entry.hash == hash && *entry.key == *key)?;
        // Another shard may hold a row that is newer than `newest` says: that group is being published right now.
        let version = match as_of {
            None => entry.versions.first(),
            Some(as_of) => entry.versions.iter().find(|version| version.event_time <= as_of),
        }?;
        (!self.expired(version.event_time, at)).then(|| (version.event_time, version.bytes.to_vec()))
    }

    /// Rows as JSON objects.
    fn to_json(&self, rows: &[&[u8]]) -> Result<Vec<Map<String, Value>>, ArrowError> {
        if rows.is_empty() || self.features.fields().is_empty() {
            return Ok(vec![Map::new(); rows.len()]);
        }
        let parser = self.converter.parser();
        let columns = self.converter.convert_rows(rows.iter().map(|row| parser.parse(row)))?;
        let options = RecordBatchOptions::new().with_row_count(Some(rows.len()));
        // Whether a feature may be null is not the reader's business: the declared schema may say no and hold nulls.
        let fields: Vec<_> = self.features.fields().iter().map(|f| f.as_ref().clone().with_nullable(true)).collect();
        let schema = std::sync::Arc::new(arrow::datatypes::Schema::new(fields));
        let batch = RecordBatch::try_new_with_options(schema, columns, &options)?;
        let mut writer = WriterBuilder::new().with_explicit_nulls(true).build::<_, JsonArray>(Vec::new());
        writer.write(&batch)?;
        writer.finish()?;
        serde_json::from_slice(&writer.into_inner()).map_err(|error| ArrowError::JsonError(error.to_string()))
    }
}
