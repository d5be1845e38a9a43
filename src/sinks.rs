//! Sinks: where results go. One kind a connection.
//!
//! A worker encodes rows to [`Records`] and hands them to its [`SinkWriter`], stamped with their epoch. A writer never
//! blocks: what it can't take now it refuses, and the worker tries again. An epoch is done when the writer says that all
//! of it is durable.

use std::borrow::Cow;
use std::sync::{Arc, OnceLock};

use millstream_operators::error::ConfigError;
use millstream_operators::kinds;
use serde::{Deserialize, Serialize};

use crate::runtime::decided::Decided;
use crate::runtime::owned::Owned;

pub mod file;
pub mod kafka;
mod lines;
pub mod memory;
pub mod stdout;

kinds! {
    /// Where results go.
    pub enum SinkKind("sink"): SinkTarget {
        "kafka" => Kafka(kafka::KafkaSink),
        "file" => File(file::FileSink),
        "stdout" => Stdout(stdout::StdoutSink),
        "memory" => Memory(memory::MemorySink),
    }
}

/// Encoded records, packed: record i's value is `values[value_ends[i - 1]..value_ends[i]]`, its key likewise.
#[derive(Debug, Default, Clone, PartialEq, Serialize, Deserialize)]
pub struct Records {
    /// All values, one after the other.
    pub values: Vec<u8>,
    /// Where each value ends.
    pub value_ends: Vec<usize>,
    /// All keys, one after the other. Empty with empty `key_ends` when the sink has no key.
    pub keys: Vec<u8>,
    /// Where each key ends.
    pub key_ends: Vec<usize>,
    /// Header names, the same for every record; empty for a sink without headers.
    pub header_names: Vec<Cow<'static, str>>,
    /// All header values: for each record, each name's value.
    pub headers: Vec<u8>,
    /// Where each header value ends: `len() * header_names.len()` entries.
    pub header_ends: Vec<usize>,
    /// Each record's event time, for the message's timestamp.
    pub event_times: Vec<i64>,
}

impl Records {
    /// The records of several, which have the same headers and all have keys or none, in order.
    pub fn concat<'a>(all: impl IntoIterator<Item = &'a Records>) -> Records {
        let mut whole = Records::default();
        for records in all.into_iter().filter(|records| !records.is_empty()) {
            append(&mut whole.values, &mut whole.value_ends, &records.values, &records.value_ends);
            append(&mut whole.keys, &mut whole.key_ends, &records.keys, &records.key_ends);
            append(&mut whole.headers, &mut whole.header_ends, &records.headers, &records.header_ends);
            whole.event_times.extend_from_slice(&records.event_times);
            whole.header_names.clone_from(&records.header_names);
        }
        whole
    }

    /// The records as bytes, for a checkpoint.
    pub fn to_bytes(&self) -> Vec<u8> {
        postcard::to_allocvec(self).expect("plain data serializes into memory")
    }

    /// Reads what [`to_bytes`](Records::to_bytes) gave.
    ///
    /// # Errors
    /// If the bytes are not whole.
    pub fn from_bytes(bytes: &[u8]) -> Result<Records, String> {
        let records: Records = postcard::from_bytes(bytes).map_err(|error| error.to_string())?;
        let whole = |ends: &[usize], bytes: &[u8]| ends.is_sorted() && ends.last().copied().unwrap_or(0) == bytes.len();
        let (count, headers) = (records.len(), records.header_names.len());
        let keys = records.key_ends.is_empty() || records.key_ends.len() == count;
        let sound = whole(&records.value_ends, &records.values)
            && whole(&records.key_ends, &records.keys)
            && whole(&records.header_ends, &records.headers)
            && keys
            && records.header_ends.len() == count * headers;
        if sound { Ok(records) } else { Err("records do not fit together".to_string()) }
    }

    /// Number of records.
    pub fn len(&self) -> usize {
        self.value_ends.len()
    }
    /// True without any record.
    pub fn is_empty(&self) -> bool {
        self.value_ends.is_empty()
    }
    /// The value of record `i`.
    pub fn value(&self, i: usize) -> &[u8] {
        part(&self.values, &self.value_ends, i)
    }
    /// The key of record `i`; `None` when the sink has no key.
    pub fn key(&self, i: usize) -> Option<&[u8]> {
        (!self.key_ends.is_empty()).then(|| part(&self.keys, &self.key_ends, i))
    }
    /// The value of header `h` of record `i`.
    pub fn header(&self, i: usize, h: usize) -> &[u8] {
        part(&self.headers, &self.header_ends, i * self.header_names.len() + h)
    }
}

/// Adds a packed list to another.
fn append(to: &mut Vec<u8>, to_ends: &mut Vec<usize>, bytes: &[u8], ends: &[usize]) {
    let start = to.len();
    to_ends.extend(ends.iter().map(|end| start + end));
    to.extend_from_slice(bytes);
}

/// Entry `i` of a packed list.
fn part<'a>(bytes: &'a [u8], ends: &[usize], i: usize) -> &'a [u8] {
    let start = if i == 0 { 0 } else { ends[i - 1] };
    &bytes[start..ends[i]]
}

/// One worker's end of a sink. Nothing here blocks for longer than a system call on a local file.
pub trait SinkWriter: Send {
    /// Takes records of `epoch` from `from` on; gives the index of the first record not taken (`records.len()` when all
    /// were taken). Epochs never go back.
    ///
    /// # Errors
    /// If the sink failed for good.
    fn write(&mut self, epoch: u64, records: &Records, from: usize) -> Result<usize, SinkError>;

    /// Says that no more records of `epoch` will come.
    ///
    /// # Errors
    /// If the sink failed for good.
    fn close_epoch(&mut self, epoch: u64) -> Result<(), SinkError>;

    /// The newest closed epoch of which everything is durable. Called often; must be cheap.
    ///
    /// # Errors
    /// If a record could not be delivered.
    fn durable(&mut self) -> Result<Option<u64>, SinkError>;

    /// How much the sink held at the ends of epochs that have become durable since the last call, for checkpoints: (epoch,
    /// length of a file, say). Nothing for a sink that has no such measure.
    fn positions(&mut self) -> Vec<(u64, u64)> {
        Vec::new()
    }
}

/// What a sink needs to open a writer.
pub struct Open {
    /// The sink's name in the topology.
    pub name: String,
    /// Name of the job.
    pub job: String,
    /// The worker that writes.
    pub worker: usize,
    /// Number of workers.
    pub workers: usize,
    /// The folder that relative paths start from.
    pub folder: std::path::PathBuf,
    /// True if the records are dead letters: where one is too large, its value may be cut.
    pub dead_letters: bool,
    /// False when the job starts anew: what an earlier run of another job left may be replaced. True when it goes on
    /// from a checkpoint.
    pub resumed: bool,
    /// What [`SinkWriter::positions`] said for the checkpoint that the job goes on from.
    pub position: Option<u64>,
    /// What a writer needs that commits when an epoch is decided.
    pub commits: Commits,
    /// How large a batch of records the sink's topic takes: the first of its writers asks, for all of them.
    pub batch_bytes: BatchBytes,
}

/// How large a batch of records a topic takes, once somebody has asked; `None` if its brokers did not say.
pub type BatchBytes = Arc<OnceLock<Option<usize>>>;

/// What a writer needs that commits when an epoch is decided.
#[derive(Debug, Clone, Default)]
pub struct Commits {
    /// Tells one life of the job, from a fresh start on, from all others.
    pub id: String,
    /// Tells this start from all others.
    pub start: String,
    /// Says whether this start still has the job.
    pub owned: Owned,
    /// Says which epochs are decided.
    pub decided: Arc<Decided>,
    /// The newest epoch that the checkpoint knows to be committed.
    pub known: u64,
    /// Records of decided epochs that may not be committed, in order.
    pub pending: Vec<(u64, Records)>,
    /// Whether they may be written although it can't be told whether they are there.
    pub may_repeat: bool,
}

/// The settings of a sink.
pub trait SinkTarget {
    /// Opens a worker's writer.
    ///
    /// # Errors
    /// What was tried and what the world said.
    fn open(&self, open: Open) -> Result<Box<dyn SinkWriter>, SinkError>;

    /// What is wrong with the settings without asking the world; paths start below the kind's name.
    fn errors(&self) -> Vec<ConfigError> {
        Vec::new()
    }

    /// Whether one worker writes for all, so that records stand in one order.
    fn one_writer(&self) -> bool {
        true
    }

    /// Whether the sink commits an epoch after it was decided, from the checkpoint if need be. Otherwise it is durable
    /// before the decision.
    fn commits_after_decision(&self) -> bool {
        false
    }

    /// The file that it writes, relative to the topology's folder: a start cuts it back to its checkpoint.
    fn file(&self) -> Option<&str> {
        None
    }

    /// What keeps records that a job which goes back to an earlier checkpoint writes again, as a person calls it: a topic.
    fn keeps(&self) -> Option<String> {
        None
    }

    /// What makes it another sink when it changes, beside its file. Checkpoints have a digest of it.
    fn identity(&self) -> serde_json::Value {
        serde_json::Value::Null
    }
}

impl SinkError {
    /// Who failed, for the metrics: `disk`, or `refused` by a broker.
    pub fn kind(&self) -> &'static str {
        match self {
            SinkError::File { .. } => "disk",
            SinkError::TakenOver { .. } | SinkError::Ahead { .. } | SinkError::Kafka { .. } => "refused",
        }
    }
}

/// A sink that failed.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// A file can't be written.
    #[error("sink `{name}`: {path}: {source}")]
    File {
        /// The sink.
        name: String,
        /// The file.
        path: String,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// Another copy of the job writes.
    #[error(
        "sink `{name}`: another copy of this job has taken over its transactions (same job name, sink and worker); this one ends"
    )]
    TakenOver {
        /// The sink.
        name: String,
    },
    /// It has outputs of epochs that the newest checkpoint does not know of.
    #[error(
        "sink `{name}`: epoch {committed} is committed to topic `{topic}`, but the newest checkpoint that is there is of epoch {decided}: \
         newer ones were removed or lost, or an older state was restored. Put the newest state back; or go on from this one with \
         `--allow-older --allow-repeat`, which writes again what was written since, or start anew with `--fresh`"
    )]
    Ahead {
        /// The sink.
        name: String,
        /// Where it writes.
        topic: String,
        /// The newest epoch that is committed there.
        committed: u64,
        /// The newest epoch of the job's state.
        decided: u64,
    },
    /// The broker refused or is not there.
    #[error("sink `{name}`: {detail}")]
    Kafka {
        /// The sink.
        name: String,
        /// What was tried and what the broker said.
        detail: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records(first: usize, count: usize, has_keys: bool) -> Records {
        let mut records = Records { header_names: vec!["id".into(), "epoch".into()], ..Records::default() };
        for n in first..first + count {
            let texts = [format!("value {n}"), n.to_string(), "7".to_string()].map(String::into_bytes);
            append(&mut records.values, &mut records.value_ends, &texts[0], &[texts[0].len()]);
            if has_keys {
                append(&mut records.keys, &mut records.key_ends, &texts[1], &[texts[1].len()]);
            }
            append(&mut records.headers, &mut records.header_ends, &texts[1], &[texts[1].len()]);
            append(&mut records.headers, &mut records.header_ends, &texts[2], &[1]);
            records.event_times.push(n as i64);
        }
        records
    }

    #[test]
    fn records_of_several_are_the_same_records() {
        for has_keys in [true, false] {
            let some = [records(0, 3, has_keys), records(3, 9, has_keys), Records::default()];
            let whole = Records::concat(&some);
            assert_eq!(whole, records(0, 12, has_keys));
            assert_eq!((whole.value(10), whole.header(10, 0)), (&b"value 10"[..], &b"10"[..]));
            assert_eq!(Records::from_bytes(&whole.to_bytes()), Ok(whole));
        }
        assert_eq!(Records::concat(&[]), Records::default());
    }
}
