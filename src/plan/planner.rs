//! From a topology to a plan: node by node, in an order in which what is read is already planned. A node that is wrong is
//! left out with all that reads it, and the rest goes on, so that one error hides no other.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use arrow::datatypes::{DataType, Schema, SchemaRef};
use millstream_operators::error::ConfigError;
use millstream_operators::key;
use serde::Serialize;

use super::groups::Groups;
use super::lineage::Lineage;
use super::names::{self, Names, Reference, Section, Wanted};
use super::{DetectorPlan, ModelPlan, Node, OfflinePlan, OutcomePlan, Plan, SinkPlan, StreamPlan};
use super::{clashes, engine, texts, warnings};
use crate::sources::SourceKind;
use crate::topology::{Topology, file};

/// The plan while it grows.
pub(super) struct Planner<'t> {
    pub topology: &'t Topology,
    pub folder: &'t Path,
    pub names: Names<'t>,
    pub errors: Vec<ConfigError>,
    pub warnings: Vec<ConfigError>,
    pub streams: Vec<StreamPlan>,
    /// The stream of each name.
    pub by_name: BTreeMap<String, usize>,
    pub groups: Groups,
    pub models: Vec<ModelPlan>,
    pub detectors: Vec<DetectorPlan>,
    pub outcomes: Vec<OutcomePlan>,
    pub sinks: Vec<SinkPlan>,
    pub offline: Vec<OfflinePlan>,
}

/// Plans `topology`; see [`Plan::around`].
pub(super) fn plan(topology: &Topology, folder: &Path, doubtful: &BTreeSet<String>) -> Result<Plan, Vec<ConfigError>> {
    let mut planner = Planner::new(topology, folder, doubtful);
    planner.check_header();
    planner.nodes();
    planner.outputs();
    clashes::refuse(&mut planner);
    planner.finish()
}

impl<'t> Planner<'t> {
    fn new(topology: &'t Topology, folder: &'t Path, doubtful: &BTreeSet<String>) -> Self {
        let mut errors = Vec::new();
        let names = Names::new(topology, doubtful, &mut errors);
        Planner {
            topology,
            folder,
            names,
            errors,
            warnings: Vec::new(),
            streams: Vec::new(),
            by_name: BTreeMap::new(),
            groups: Groups::default(),
            models: Vec::new(),
            detectors: Vec::new(),
            outcomes: Vec::new(),
            sinks: Vec::new(),
            offline: Vec::new(),
        }
    }

    fn check_header(&mut self) {
        let topology = self.topology;
        if topology.version != file::VERSION {
            let message =
                format!("version {} of the format is not known, this build reads {}", topology.version, file::VERSION);
            self.errors.push(ConfigError::new("version", message));
        }
        self.errors.extend(names::refusal(&topology.name).map(|error| error.under("name")));
        if topology.sources.is_empty() && self.names.broken.is_empty() {
            self.errors.push(ConfigError::new("sources", "there is no source, so nothing would ever happen"));
        }
        engine::check(&topology.engine, &mut self.errors);
    }

    /// Plans the nodes of the dataflow.
    fn nodes(&mut self) {
        let references = self.references();
        let order = names::order(&mut self.names, &references, &mut self.errors);
        for name in order {
            let mut reads = references.iter().filter(|reference| reference.reader == name && reference.needed);
            let sound = reads.all(|reference| !self.names.broken.contains(reference.read));
            let planned = sound && !self.names.broken.contains(name) && self.node(name).is_some();
            if !planned {
                self.names.broken.insert(name.to_string());
            }
        }
    }

    /// All references between nodes that lead somewhere; what leads nowhere is an error, and its reader is broken.
    fn references(&mut self) -> Vec<Reference<'t>> {
        let topology = self.topology;
        let mut wanted = Vec::new();
        for (name, prepare) in &topology.prepare {
            wanted.push((name, &prepare.from, format!("prepare.{name}.from"), Wanted::Stream));
        }
        for (name, group) in &topology.features {
            wanted.push((name, &group.from, format!("features.{name}.from"), Wanted::Stream));
        }
        for (name, vector) in &topology.vectors {
            wanted.push((name, &vector.spine, format!("vectors.{name}.spine"), Wanted::Stream));
            for (i, join) in vector.join.iter().enumerate() {
                wanted.push((name, &join.features, format!("vectors.{name}.join[{i}].features"), Wanted::Group));
            }
        }
        for (name, model) in &topology.models {
            wanted.push((name, &model.from, format!("models.{name}.from"), Wanted::Stream));
        }
        let mut references = Vec::new();
        // Of two nodes of one name nothing more can be said.
        wanted.retain(|(reader, ..)| !self.names.broken.contains(reader.as_str()));
        for (reader, read, path, what) in wanted {
            if self.names.refers(&path, read, what, &mut self.errors) {
                references.push(Reference { reader: reader.as_str(), read: read.as_str(), path, needed: true });
            } else {
                self.names.broken.insert(reader.to_string());
            }
        }
        // A group's operator also takes the rows that read it, so it comes after every spine that does.
        for (name, vector) in &topology.vectors {
            for (i, join) in vector.join.iter().enumerate() {
                let is_group = self.names.section(&join.features) == Some(Section::Group);
                let known = is_group && self.names.section(&vector.spine).is_some_and(|spine| spine != Section::Group);
                let path = format!("vectors.{name}.join[{i}].features");
                let later = Reference { reader: &join.features, read: &vector.spine, path, needed: false };
                references.extend(known.then_some(later));
            }
        }
        references
    }

    /// Plans one node; `None` if it is wrong.
    fn node(&mut self, name: &'t str) -> Option<()> {
        let before = self.errors.len();
        match self.names.section(name)? {
            Section::Source => self.source(name),
            Section::Prepare => self.prepare(name),
            Section::Group => self.group(name),
            Section::Vector => self.vector(name),
            Section::Model => self.model(name),
        }?;
        (self.errors.len() == before).then_some(())
    }

    fn finish(mut self) -> Result<Plan, Vec<ConfigError>> {
        warnings::warn(&mut self);
        let groups = self.groups.finish(&self.streams, &mut self.errors);
        if !self.errors.is_empty() {
            return Err(self.errors);
        }
        Ok(Plan {
            name: self.topology.name.clone(),
            folder: self.folder.to_path_buf(),
            engine: self.topology.engine.clone(),
            hash: digest(
                &(&self.topology.name, self.models.iter().map(|model| &model.digest).collect::<Vec<_>>()),
                &definitions(self.topology),
            ),
            texts: texts::texts(self.topology, &self.models),
            streams: self.streams,
            groups,
            models: self.models,
            detectors: self.detectors,
            outcomes: self.outcomes,
            sinks: self.sinks,
            offline: self.offline,
            warnings: self.warnings,
        })
    }

    /// Adds a stream; gives its index.
    pub fn add(&mut self, name: &str, schema: SchemaRef, node: Node, lineage: Lineage) -> usize {
        let model = match &node {
            Node::Source(_) => None,
            Node::Score { model, .. } => Some(*model),
            Node::Prepare { input, .. } | Node::Deduplicate { input, .. } | Node::Read { input, .. } => {
                self.streams[*input].model
            }
        };
        self.streams.push(StreamPlan { name: name.to_string(), schema, node, model, lineage });
        self.by_name.insert(name.to_string(), self.streams.len() - 1);
        self.streams.len() - 1
    }

    /// Adds an error, or several.
    pub fn refuse(&mut self, errors: impl IntoIterator<Item = ConfigError>) {
        self.errors.extend(errors);
    }

    /// The stream that a section outside the dataflow refers to; `None`, with an error where it is one, if there is none.
    pub fn stream_at(&mut self, path: &str, name: &str) -> Option<usize> {
        let fits = self.names.refers(path, name, Wanted::Stream, &mut self.errors);
        fits.then(|| self.by_name.get(name).copied()).flatten()
    }
}

/// The digest of a definition and of what it reads. Checkpoints keep it: what is given must be written alike by all builds.
pub(super) fn digest(reads: &impl Serialize, definition: &impl Serialize) -> String {
    // A definition is plain data with texts as keys: it can always be written as JSON.
    let text = serde_json::to_string(&(reads, definition)).unwrap_or_default();
    format!("{:016x}", key::hash(text.as_bytes()))
}

/// The index of the column `name`; with an error at `path` if there is none.
pub(super) fn column(schema: &Schema, name: &str, path: &str) -> Result<usize, ConfigError> {
    let unknown = |_| ConfigError::unknown(path, "column", name, schema.fields().iter().map(|f| f.name().as_str()));
    schema.index_of(name).map_err(unknown)
}

/// The indices of the columns `names`, with an error for each that is not there.
pub(super) fn columns(schema: &Schema, names: &[String], path: &str) -> Result<Vec<usize>, Vec<ConfigError>> {
    let mut errors = Vec::new();
    let found = names
        .iter()
        .enumerate()
        .filter_map(|(i, name)| column(schema, name, &format!("{path}[{i}]")).map_err(|error| errors.push(error)).ok());
    let found = found.collect();
    if errors.is_empty() { Ok(found) } else { Err(errors) }
}

/// A type as a topology file writes it.
pub(super) fn type_name(data_type: &DataType) -> String {
    match data_type {
        DataType::Boolean => "bool".to_string(),
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => "string".to_string(),
        DataType::Timestamp(..) => "timestamp".to_string(),
        DataType::Null => "null".to_string(),
        other => other.to_string().to_lowercase(),
    }
}

/// What state follows from: the topology without what may change from start to start (how it runs, where its results go,
/// and how brokers are reached: passwords are renewed, brokers move).
fn definitions(topology: &Topology) -> Topology {
    let mut definitions = topology.clone();
    definitions.engine = Default::default();
    definitions.sinks.clear();
    definitions.offline.clear();
    for source in definitions.sources.values_mut() {
        if let SourceKind::Kafka(kafka) = &mut source.from {
            kafka.brokers.clear();
            kafka.options = Default::default();
        }
    }
    definitions
}
