//! What a topology means: names resolved, columns typed, expressions compiled, in the order in which a dataflow is built.
//!
//! ```text
//! Topology (what was written) ─▶ Plan (what it means) ─▶ dataflow (what runs, once a worker)
//! ```
//!
//! Everything that can be wrong with a topology without running it is found here, all at once; a [`Plan`] holds only
//! what is right, so that building operators from it cannot fail. A plan opens no file but the models', to see their
//! inputs.
//!
//! A vector becomes a chain: its spine, a read of each group, and the columns derived from both.
//!
//! ```text
//! spine ─▶ Read card_txn ─▶ Read weather ─▶ Prepare (derive, order of columns) ─▶ the vector
//!               ▲                ▲
//!        card_txn's rows    weather's rows
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use arrow::datatypes::SchemaRef;
use millstream_operators::decode::Decoder;
use millstream_operators::drift::DetectorKind;
use millstream_operators::error::ConfigError;
use millstream_operators::expressions::Expression;
use millstream_operators::features::{FeatureGroup, GroupConfig, Reader};
use millstream_operators::prepare::Prepare;
use millstream_operators::score::Binding;
use millstream_operators::units::Millis;

use self::lineage::Lineage;
use self::texts::Text;
use crate::offline::TableKind;
use crate::provenance::Provenance;
use crate::sinks::SinkKind;
use crate::sources::{Positions, SourceKind};
use crate::topology::{Engine, EventTimeConfig, History, Topology};

mod clashes;
pub mod definitions;
mod engine;
mod groups;
mod lineage;
mod names;
mod outputs;
mod planner;
mod running;
mod sources;
mod streams;
#[cfg(test)]
mod tests;
mod texts;
mod warnings;

/// A topology that can run.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Name of the job.
    pub name: String,
    /// The folder that relative paths start from.
    pub folder: PathBuf,
    /// How the job runs.
    pub engine: Engine,
    /// Digest of all definitions: a change of any node changes it.
    pub hash: String,
    /// Every stream, each after those it reads. A stream's index is its identity within the plan.
    pub streams: Vec<StreamPlan>,
    /// Every instance of a feature group, each after those that its readers come through.
    pub groups: Vec<GroupPlan>,
    /// Every model.
    pub models: Vec<ModelPlan>,
    /// Every drift detector.
    pub detectors: Vec<DetectorPlan>,
    /// Predictions to be joined to labels.
    pub outcomes: Vec<OutcomePlan>,
    /// Every output.
    pub sinks: Vec<SinkPlan>,
    /// Every offline table.
    pub offline: Vec<OfflinePlan>,
    /// The nodes' own texts, by section and name.
    pub texts: BTreeMap<String, Text>,
    /// What is probably not meant, though it can run.
    pub warnings: Vec<ConfigError>,
}

/// A stream of batches of one schema: one edge of the dataflow, read any number of times.
#[derive(Debug, Clone)]
pub struct StreamPlan {
    /// The node's name. A read within a vector is called `vector.group`.
    pub name: String,
    /// The columns.
    pub schema: SchemaRef,
    /// What makes the stream.
    pub node: Node,
    /// The newest model that its rows have been through: an index of [`Plan::models`]. Rows of such a stream have a
    /// prediction id.
    pub model: Option<usize>,
    /// Where its rows and the values of its columns come from.
    pub lineage: Lineage,
}

/// What makes a stream.
#[derive(Debug, Clone)]
pub enum Node {
    /// Events from outside.
    Source(Box<SourcePlan>),
    /// Rows of another stream, checked, filtered and with more columns.
    Prepare {
        /// The stream it reads.
        input: usize,
        /// The operator.
        operator: Prepare,
    },
    /// Rows of another stream, of those that are the same the first.
    Deduplicate {
        /// The stream it reads.
        input: usize,
        /// The columns of the entity key.
        key: Vec<usize>,
        /// The columns that tell the events of a key apart.
        by: Vec<usize>,
        /// How far apart they are at most.
        within: Millis,
        /// Digest of what its state follows from.
        hash: String,
    },
    /// Rows of another stream with the features of their keys.
    Read {
        /// The feature group: an index of [`Plan::groups`].
        group: usize,
        /// Which of its readers.
        reader: usize,
        /// The stream it reads.
        input: usize,
    },
    /// Rows of another stream with a model's answers.
    Score {
        /// The stream it reads.
        input: usize,
        /// The model: an index of [`Plan::models`].
        model: usize,
    },
}

/// A source.
#[derive(Debug, Clone)]
pub struct SourcePlan {
    /// Its place among the sources: `Row::source`.
    pub index: u16,
    /// The connection.
    pub kind: SourceKind,
    /// Decodes and validates messages.
    pub decoder: Decoder,
    /// When an event happened; `None` for the message's own timestamp.
    pub event_time: Option<EventTimeConfig>,
    /// Largest message accepted.
    pub message_size_max: usize,
    /// The character between the fields of CSV files.
    pub delimiter: u8,
    /// The same events as bounded files.
    pub history: Option<History>,
    /// Where a [backfill](crate::backfill) ends; `None` for a source that reads on.
    pub until: Option<Positions>,
}

/// An instance of a feature group. A group that one row reads twice, or that several vectors both feed and read, has an
/// instance for each, fed with the same rows: a dataflow cannot send a row through one operator twice.
#[derive(Debug, Clone)]
pub struct GroupPlan {
    /// The group's name; of further instances with `#2`, `#3` ... at the end.
    pub name: String,
    /// Whether its features go to the online store: only those of a first instance do.
    pub online: bool,
    /// The stream whose rows feed it.
    pub input: usize,
    /// The entity key's columns in that stream.
    pub key: Vec<usize>,
    /// Who reads it.
    pub readers: Vec<ReaderPlan>,
    /// Digest of what its state follows from.
    pub hash: String,
    made: groups::Made,
    config: GroupConfig,
    prefix: String,
    input_schema: SchemaRef,
    compiled_readers: Vec<Reader>,
}

/// A read of a feature group.
#[derive(Debug, Clone)]
pub struct ReaderPlan {
    /// The stream whose rows read.
    pub input: usize,
    /// The stream of the same rows with features.
    pub output: usize,
    /// True when the rows are also those that feed the group; they come once, here, and not on the group's own input.
    pub feeds: bool,
    /// The columns of `input` that hold the entity key.
    pub on: Vec<usize>,
}

/// A model.
#[derive(Debug, Clone)]
pub struct ModelPlan {
    /// The node's name.
    pub name: String,
    /// The ONNX file.
    pub path: PathBuf,
    /// The version in every prediction.
    pub version: String,
    /// Digest of the file.
    pub digest: String,
    /// Which columns fill which inputs, and what comes out.
    pub binding: Binding,
    /// Whether it may answer NaN for some finite inputs, and serve nevertheless.
    pub nan_allowed: bool,
}

/// A drift detector on a column.
#[derive(Debug, Clone)]
pub struct DetectorPlan {
    /// The node's name.
    pub name: String,
    /// The stream it watches.
    pub stream: usize,
    /// The column's place in the stream.
    pub column: usize,
    /// The rows it watches; all without it.
    pub condition: Option<Expression>,
    /// The detector, its reference read.
    pub detector: DetectorKind,
    /// Digest of its definition and of all it reads.
    pub hash: String,
}

/// Predictions to be joined to labels.
#[derive(Debug, Clone)]
pub struct OutcomePlan {
    /// The node's name.
    pub name: String,
    /// The model: an index of [`Plan::models`].
    pub model: usize,
    /// The stream of its predictions.
    pub predictions: usize,
    /// Columns of `predictions` that say which label is meant.
    pub prediction_key: Vec<usize>,
    /// The column of `predictions` that holds the score.
    pub score: usize,
    /// Columns of `predictions` to cut the figures by.
    pub slices: Vec<usize>,
    /// The stream of labels.
    pub labels: usize,
    /// Columns of `labels`, in the order of `prediction_key`.
    pub label_key: Vec<usize>,
    /// The label over the columns of `labels`: a number or a boolean.
    pub value: Expression,
    /// How far back predictions count.
    pub window: Millis,
    /// Digest of its definition and of all it reads.
    pub hash: String,
}

/// Where an output's rows come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum From {
    /// A stream.
    Stream(usize),
    /// The records that failed anywhere.
    Rejects,
    /// All drift signals.
    Drift,
}

/// An output.
#[derive(Debug, Clone)]
pub struct SinkPlan {
    /// The node's name.
    pub name: String,
    /// The connection.
    pub kind: SinkKind,
    /// What goes out.
    pub from: From,
    /// Provenance columns that stand to the right of the stream's own when `columns` and `key` are evaluated.
    pub provenance: Vec<Provenance>,
    /// The stream's columns and its `provenance`.
    pub input: SchemaRef,
    /// The columns written: one expression over `input` for each field of `schema`.
    pub columns: Vec<Expression>,
    /// Names and types of the columns written.
    pub schema: SchemaRef,
    /// The columns of `input` that make the record's key.
    pub key: Vec<usize>,
}

/// An offline table.
#[derive(Debug, Clone)]
pub struct OfflinePlan {
    /// The node's name.
    pub name: String,
    /// The stream whose rows it gets.
    pub stream: usize,
    /// The table.
    pub table: TableKind,
    /// How often rows are committed.
    pub every: Millis,
    /// Provenance columns written beside the stream's own.
    pub provenance: Vec<Provenance>,
    /// The stream's columns and its `provenance`.
    pub schema: SchemaRef,
}

impl Plan {
    /// The plan of `topology`, whose relative paths start at `folder`.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn new(topology: &Topology, folder: &Path) -> Result<Plan, Vec<ConfigError>> {
        Plan::around(topology, folder, &BTreeSet::new())
    }

    /// The same, where what is wrong is told in one line.
    ///
    /// # Errors
    /// The topology's name and everything that is wrong with it.
    pub fn or_line(topology: &Topology, folder: &Path) -> Result<Plan, String> {
        Plan::new(topology, folder).map_err(|errors| {
            let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
            format!("{}: {}", topology.name, errors.join("; "))
        })
    }

    /// The same for a topology of which some nodes are known to be wrong: nothing is said about the `doubtful` ones and
    /// what depends on them.
    ///
    /// # Errors
    /// Everything else that is wrong with it.
    pub fn around(topology: &Topology, folder: &Path, doubtful: &BTreeSet<String>) -> Result<Plan, Vec<ConfigError>> {
        planner::plan(topology, folder, doubtful)
    }

    /// The sources with their streams, in the order of [`SourcePlan::index`].
    pub fn sources(&self) -> impl Iterator<Item = (&StreamPlan, &SourcePlan)> {
        let mut sources: Vec<_> = self.streams.iter().filter_map(|s| Some((s, s.source()?))).collect();
        sources.sort_by_key(|(_, source)| source.index);
        sources.into_iter()
    }

    /// The name of source number `index`.
    pub fn source_name(&self, index: usize) -> &str {
        self.sources().nth(index).map_or("", |(stream, _)| stream.name.as_str())
    }

    /// The stream called `name`.
    pub fn stream(&self, name: &str) -> Option<usize> {
        self.streams.iter().position(|stream| stream.name == name)
    }

    /// The names of the models, which are the names of their streams.
    pub fn models(&self) -> impl Iterator<Item = &str> {
        self.models.iter().map(|model| model.name.as_str())
    }

    /// The streams that the slow lane needs, each once: those of detectors, predictions and labels.
    pub fn slow_streams(&self) -> Vec<usize> {
        let detectors = self.detectors.iter().map(|detector| detector.stream);
        let outcomes = self.outcomes.iter().flat_map(|outcome| [outcome.predictions, outcome.labels]);
        let streams: BTreeSet<usize> = detectors.chain(outcomes).collect();
        streams.into_iter().collect()
    }
}

impl StreamPlan {
    /// The source, if that is what makes the stream.
    pub fn source(&self) -> Option<&SourcePlan> {
        match &self.node {
            Node::Source(source) => Some(source),
            _ => None,
        }
    }
}

impl GroupPlan {
    /// The group's operator; each worker gets one of its own. Its input ports are the group's rows and then each reader's,
    /// its output ports each reader's and then the published features.
    pub fn operator(&self) -> FeatureGroup {
        self.compile().expect("the plan has compiled the same group from the same columns")
    }

    fn compile(&self) -> Result<FeatureGroup, Vec<ConfigError>> {
        FeatureGroup::compile(&self.prefix, &self.config, &self.input_schema, &self.compiled_readers)
    }
}

impl SinkPlan {
    /// True when all workers' rows go to one writer, because what is written is one file or one screen.
    pub fn one_writer(&self) -> bool {
        self.kind.settings().one_writer()
    }
}
