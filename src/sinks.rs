//! Sinks: where results go. One kind a connection.
//!
//! A worker encodes rows to [`Records`] and hands them to its [`SinkWriter`], stamped with their epoch. A writer never
//! blocks: what it can't take now it refuses, and the worker tries again. An epoch is done when the writer says that all
//! of it is durable.

use millstream_operators::kinds;

pub mod file;
pub mod kafka;
mod lines;
pub mod memory;
pub mod stdout;

kinds! {
    /// Where results go.
    pub enum SinkKind("sink") {
        "kafka" => Kafka(kafka::KafkaSink),
        "file" => File(file::FileSink),
        "stdout" => Stdout(stdout::StdoutSink),
        "memory" => Memory(memory::MemorySink),
    }
}

impl SinkKind {
    /// Whether one worker writes for all, so that records stand in one order.
    pub fn one_writer(&self) -> bool {
        !matches!(self, SinkKind::Kafka(_))
    }
}

/// Encoded records, packed: record i's value is `values[value_ends[i - 1]..value_ends[i]]`, its key likewise.
#[derive(Debug, Default, Clone)]
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
    pub header_names: Vec<&'static str>,
    /// All header values: for each record, each name's value.
    pub headers: Vec<u8>,
    /// Where each header value ends: `len() * header_names.len()` entries.
    pub header_ends: Vec<usize>,
    /// Each record's event time, for the message's timestamp.
    pub event_times: Vec<i64>,
}

impl Records {
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

    /// How much the sink holds up to the end of the newest durable epoch, for the checkpoint: the length of a file, say.
    /// `None` for a sink that has no such measure.
    fn position(&self) -> Option<u64> {
        None
    }
}

impl SinkKind {
    /// What opens writers of the sink.
    pub fn target(&self) -> &dyn SinkTarget {
        match self {
            SinkKind::Kafka(kafka) => kafka,
            SinkKind::File(file) => file,
            SinkKind::Stdout(stdout) => stdout,
            SinkKind::Memory(memory) => memory,
        }
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
    /// False when the job starts anew: what an earlier run of another job left may be replaced. True when it goes on
    /// from a checkpoint.
    pub resumed: bool,
    /// What [`SinkWriter::position`] said for the checkpoint that the job goes on from.
    pub position: Option<u64>,
}

/// A sink that can be opened.
pub trait SinkTarget {
    /// Opens a worker's writer.
    ///
    /// # Errors
    /// What was tried and what the world said.
    fn open(&self, open: Open) -> Result<Box<dyn SinkWriter>, SinkError>;
}

impl SinkError {
    /// Who failed, for the metrics: `disk`, or `refused` by a broker.
    pub fn kind(&self) -> &'static str {
        match self {
            SinkError::File { .. } => "disk",
            SinkError::Kafka { .. } => "refused",
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
    /// The broker refused or is not there.
    #[error("sink `{name}`: {detail}")]
    Kafka {
        /// The sink.
        name: String,
        /// What was tried and what the broker said.
        detail: String,
    },
}
