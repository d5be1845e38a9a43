//! What runs, as a value: the topology as a user writes it, in YAML or with Rust.
//!
//! A [`Topology`] is plain data: comparable, printable, without spans. `topology::file` reads it from YAML and remembers
//! where everything stood; `plan` resolves names and types and says, by path, what is wrong.
//!
//! Names are identities: the name of a node is the name of its state, its metrics and its place in a checkpoint.

use indexmap::IndexMap;
use millstream_operators::decode::FormatKind;
use millstream_operators::drift::DetectorKind;
use millstream_operators::features::GroupConfig;
use millstream_operators::schema::{ColumnType, Range};
use millstream_operators::units::{Bytes, Millis};
pub use millstream_operators::validate::TimeUnit;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::offline::OfflineConfig;
use crate::sinks::SinkKind;
use crate::sources::SourceKind;

mod build;
pub mod file;
mod history;
pub mod problem;
mod reader;
pub(crate) mod schema;
mod tree;
pub mod variables;

/// Names to their definitions, in the order of the file. Order counts for columns only; two maps with the same entries are equal.
pub type Named<T> = IndexMap<String, T>;

/// A whole topology.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Topology {
    /// Version of the file format. This build reads 1.
    pub version: u32,
    /// Name of the job: labels its metrics, consumer group and checkpoints. As any name in a topology it starts with a
    /// small letter and goes on with small letters, digits, `-` and `_`, 63 at most.
    pub name: String,
    /// Where events come from.
    pub sources: Named<Source>,
    /// Row-wise preparation: checks, filters and expressions.
    #[serde(default, skip_serializing_if = "Named::is_empty")]
    pub prepare: Named<Prepare>,
    /// Feature groups: aggregates by key over windows.
    #[serde(default, skip_serializing_if = "Named::is_empty")]
    pub features: Named<GroupConfig>,
    /// Feature vectors: for each event of the spine, the features of its keys as of its time.
    #[serde(default, skip_serializing_if = "Named::is_empty")]
    pub vectors: Named<Vector>,
    /// Models that score vectors or events.
    #[serde(default, skip_serializing_if = "Named::is_empty")]
    pub models: Named<Model>,
    /// Drift detectors on features, scores and columns.
    #[serde(default, skip_serializing_if = "Named::is_empty")]
    pub drift: Named<Drift>,
    /// Predictions joined to the labels that arrive later.
    #[serde(default, skip_serializing_if = "Named::is_empty")]
    pub outcomes: Named<Outcomes>,
    /// Where results go.
    #[serde(default, skip_serializing_if = "Named::is_empty")]
    pub sinks: Named<Sink>,
    /// Tables of events, vectors and predictions for training.
    #[serde(default, skip_serializing_if = "Named::is_empty")]
    pub offline: Named<OfflineConfig>,
    /// How the job runs.
    #[serde(default)]
    pub engine: Engine,
}

/// A stream of events.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// The connection: `kafka`, `file` or `memory`.
    pub from: SourceKind,
    /// How a message becomes an event. Default: JSON objects.
    #[serde(default)]
    pub format: FormatKind,
    /// The columns and their types: `bool`, `int64`, `float64`, `string` or `timestamp`. A column is required unless its
    /// type ends in `?`, as in `float64?`.
    pub schema: Named<ColumnType>,
    /// Smallest and largest value accepted, by column; an event outside goes to the dead-letter sink.
    #[serde(default, skip_serializing_if = "Named::is_empty")]
    pub ranges: Named<Range>,
    /// When an event happened. Default: the message's own timestamp; one that is more than an hour ahead of the process's
    /// clock is rejected (live runs only).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event_time: Option<EventTimeConfig>,
    /// Conditions every event must meet; an event that fails one goes to the dead-letter sink.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<String>,
    /// Largest message accepted. Larger ones are rejected; too small a limit rejects good events.
    #[serde(default = "message_size_max")]
    pub message_size_max: Bytes,
    /// The same events as bounded files, for replay and backfill.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub history: Option<History>,
}

/// The default of [`Source::message_size_max`].
pub fn message_size_max() -> Bytes {
    Bytes(1 << 20)
}

/// The same events as bounded files.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct History {
    /// A path or glob (`*.jsonl`, `*.csv`, `*.parquet`), relative to the topology's folder.
    pub files: String,
    /// Says that the rows of each file stand in event-time order, so that they are streamed. Otherwise they are sorted
    /// in memory. A row out of order in a file that is said to be sorted is an error that names the line.
    #[serde(default)]
    pub sorted: bool,
}

/// Where the event time stands and how far events may stray from it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EventTimeConfig {
    /// The column that holds it: a `timestamp`, or an `int64` in `unit`.
    pub column: String,
    /// Unit of an integer column.
    #[serde(default)]
    pub unit: TimeUnit,
    /// How far behind the newest event of its partition an event may be and still be in time. Too small drops good
    /// events as late; too large keeps windows open and memory in use.
    #[serde(default = "lateness")]
    pub lateness: Millis,
    /// What happens to an event that is later than that.
    #[serde(default)]
    pub late: LatePolicy,
    /// How far ahead of the process's clock an event may be before it is rejected (live runs only). Too small rejects
    /// events of hosts with a fast clock; too large lets one bad stamp close every window.
    #[serde(default = "ahead_max")]
    pub ahead_max: Millis,
    /// A partition without events for this long no longer holds the watermark back; while its broker does not answer it has them. Too
    /// short, and events of one that only paused come late; too long, and windows and drift signals wait for one that has no events.
    #[serde(default = "idle_after")]
    pub idle_after: Millis,
}

fn lateness() -> Millis {
    Millis(60_000)
}
/// The default of [`EventTimeConfig::ahead_max`], which sources without an event time of their own have as well.
pub fn ahead_max() -> Millis {
    Millis(3_600_000)
}
fn idle_after() -> Millis {
    Millis(10_000)
}

/// What happens to a late event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LatePolicy {
    /// It is processed as of its own time like any other, and counted as late.
    #[default]
    Keep,
    /// It is dropped and counted.
    Drop,
    /// It goes to the dead-letter sink.
    DeadLetter,
}

/// Preparation of a stream, row by row: first `where`, then `checks`, then `derive`, then `select`, then `deduplicate`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Prepare {
    /// The source or prepared stream it reads.
    pub from: String,
    /// Keeps the rows for which this SQL condition is true; the others are counted as filtered.
    #[serde(default, rename = "where", skip_serializing_if = "Option::is_none")]
    pub filter: Option<String>,
    /// SQL conditions that must be true; a row that fails one goes to the dead-letter sink.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<String>,
    /// New columns by SQL expressions over the columns so far, in the order written.
    #[serde(default, skip_serializing_if = "Named::is_empty")]
    pub derive: Named<String>,
    /// The columns that go on, in this order. Default: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub select: Vec<String>,
    /// Of all events that are the same lets the first go on; the others are dropped and counted. For who sends events may send
    /// some twice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deduplicate: Option<Deduplicate>,
}

/// When two events are the same.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Deduplicate {
    /// Columns of the prepared stream that have the same values in events that are the same: an id, mostly. An event with a
    /// null in one of them goes to the dead-letter sink.
    pub by: Vec<String>,
    /// Columns of the entity key within which `by` is looked at, such as the key of the feature groups behind it. Events of
    /// one key stay in their order, whatever the number of workers; of different keys they may change places. Default: `by`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub key: Vec<String>,
    /// How far apart in event time they are at most. Too short lets through what is sent again later; longer takes memory,
    /// some 100 bytes an event for so long.
    #[serde(default = "within")]
    pub within: Millis,
}

fn within() -> Millis {
    Millis(3_600_000)
}

/// A feature vector: one row for each row of the spine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Vector {
    /// The events to make vectors for (the decision events): a source or prepared stream.
    pub spine: String,
    /// The feature groups to read as of each row's event time. A group's features come as columns `group.feature`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub join: Vec<Join>,
    /// New columns by SQL expressions over the spine's columns and the features, in the order written.
    #[serde(default, skip_serializing_if = "Named::is_empty")]
    pub derive: Named<String>,
}

/// A read of a feature group.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Join {
    /// The feature group.
    pub features: String,
    /// The spine's columns that hold the group's key. Default: columns named like the group's key.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub on: Vec<String>,
    /// Name of this read, in front of its features' names. Default: the group's name. A group that is read twice, say at
    /// the origin and at the destination, needs a name for one of the reads.
    #[serde(default, rename = "as", skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Leaves the spine's own event out of the aggregates when the group is fed by the spine.
    #[serde(default)]
    pub exclude_self: bool,
}

/// A model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// The vector, prepared stream or source to score.
    pub from: String,
    /// The ONNX file, relative to the topology's folder.
    pub onnx: String,
    /// Version written into every prediction. Default: the first 12 digits of the file's SHA-256.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// The columns of the model's one packed input [n, k], in the model's order. Default: the model's inputs by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub features: Vec<String>,
    /// The output that holds the score. Default: `probabilities`, else the only floating-point output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<String>,
    /// Column of the output to take as the score, for outputs of several classes. Default: the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<usize>,
    /// A score at or above this gives label 1, below it label 0. Default: the model's own label, else no label.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threshold: Option<f64>,
    /// Serves a model that answers NaN for some finite inputs, as a logarithm does; such rows go to the dead-letter sink.
    /// By default such a model is refused at the start.
    #[serde(default)]
    pub nan_allowed: bool,
    /// Keeps the feature vector in every prediction, as column `features` (a list of float64 in the model's order).
    #[serde(default)]
    pub keep_features: bool,
}

/// A drift detector on one column of a stream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Drift {
    /// The stream: a source, prepared stream, vector or model.
    pub from: String,
    /// The numeric column to watch, such as `score`.
    pub column: String,
    /// Watches only the rows for which this SQL condition is true: a slice of the stream. Signals name it.
    #[serde(default, rename = "where", skip_serializing_if = "Option::is_none")]
    pub filter: Option<String>,
    /// The detector.
    pub detector: DetectorKind,
}

/// Predictions joined to their labels, and the quality that follows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Outcomes {
    /// The model whose predictions are judged.
    pub model: String,
    /// The stream of labels.
    pub label: String,
    /// Columns, present on both sides, that say which label belongs to which prediction.
    pub on: Vec<String>,
    /// SQL expression over the label's columns that gives 1 (positive), 0 (negative), or null (no label yet).
    pub value: String,
    /// How far back predictions count, in event time: older ones leave the figures and the memory. Labels that come
    /// later than this find nothing.
    pub window: Millis,
    /// Columns of the prediction to cut the figures by.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub slices: Vec<String>,
}

/// An output.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Sink {
    /// What goes out: a node's name, or `rejects` (the dead letters), `drift` (all drift signals).
    pub from: String,
    /// The connection: `kafka`, `file`, `stdout` or `memory`.
    pub to: SinkKind,
    /// The columns to write, in this order, by SQL expressions over the stream's columns and its provenance
    /// (`topic`, `partition`, `offset`, `event_time`, `epoch`; of a model also `prediction_id`, `model`,
    /// `model_version`). Default: all columns, and of a model its provenance.
    #[serde(default, skip_serializing_if = "Named::is_empty")]
    pub select: Named<String>,
    /// Columns of the record's key. Default: the source message's key is not kept; the record has no key.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub key: Vec<String>,
}

/// How the job runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Engine {
    /// Worker threads of the fast lane, in each process. More than the cores there are makes everything slower.
    pub workers: usize,
    /// The hosts of a job of several processes. Without it, the job is one process, or `run --processes N` on one machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster: Option<Cluster>,
    /// Length of an epoch: the unit of checkpoint and commit. Shorter is fresher for readers of committed output, down to
    /// about 50 ms; shorter still, and disk and brokers do nothing else. Longer is cheaper where the same keys change again
    /// and again.
    pub epoch: Millis,
    /// Where the job's state lies, so that a stopped job goes on: a folder, relative to the topology's folder, or
    /// `s3://bucket/prefix`. A bucket makes every checkpoint as slow as the store: choose an `epoch` of a second or so.
    pub state: String,
    /// The store of an `s3://` state. The environment says the rest: `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, ...
    #[serde(skip_serializing_if = "S3::is_default")]
    pub s3: S3,
    /// Resident memory above which sources wait, until what they have given is through: the rest stays in Kafka and in the
    /// files. By default four fifths of what the machine or the container has. Too small, and a job that has more without any
    /// backlog goes on slowly, and says so; too large, and a backlog may have the process killed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Bytes>,
    /// How long the place of the state may refuse (a full disk, a store that does not answer) before the job ends. The sources
    /// are held meanwhile. A sink's `transaction_timeout` must be longer, or its transactions end first, and the job with them.
    pub state_timeout: Millis,
    /// Address of `/metrics`, `/livez`, `/readyz` and `/v1/features`.
    pub http: String,
    /// Longest time a stop may take to finish the records in flight.
    pub shutdown_timeout: Millis,
    /// How long a worker without records spins before it sleeps, in microseconds. 0 saves power and costs some tens
    /// of microseconds of latency.
    pub spin_micros: u64,
}

/// The processes of a job on several hosts: each is started with `run --process I`, with the same file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Cluster {
    /// Where each process listens for the others, `host:port`, in the order of their numbers; the first is the coordinator, which
    /// has the state. Addresses of a private network: what goes between processes is not encrypted.
    pub hosts: Vec<String>,
    /// What all processes know and nobody else, at least 16 characters: `${CLUSTER_SECRET}`.
    pub secret: Secret,
    /// How long a process waits for the others. Shorter than the slowest of them takes to start, and the job never starts;
    /// longer, and a host that is missing is noticed late.
    #[serde(default = "Cluster::start_timeout")]
    pub start_timeout: Millis,
}

impl Cluster {
    fn start_timeout() -> Millis {
        Millis(60_000)
    }
}

/// A text that nobody should read in a log.
#[derive(Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Secret(pub String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

/// A store that speaks the protocol of S3.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct S3 {
    /// Address of the store, such as `http://127.0.0.1:9000`; without it `AWS_ENDPOINT_URL`, or AWS. `http` sends everything in
    /// the clear.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// Region of the bucket; without it `AWS_REGION`, or `us-east-1`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
}

impl S3 {
    /// True if nothing is set.
    pub fn is_default(&self) -> bool {
        *self == S3::default()
    }
}

impl Default for Engine {
    fn default() -> Self {
        Engine {
            workers: 1,
            cluster: None,
            epoch: Millis(200),
            state: "state".into(),
            s3: S3::default(),
            memory: None,
            state_timeout: Millis(60_000),
            http: "127.0.0.1:9464".into(),
            shutdown_timeout: Millis(25_000),
            spin_micros: 100,
        }
    }
}
