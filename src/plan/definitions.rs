//! What a checkpoint has to know of a plan: which nodes have state or an effect, and what each is defined as.
//!
//! A node of the dataflow is defined by its own text and by what it reads, up to the sources: a feature that was computed
//! from other rows is another feature. A sink is defined by where it writes alone: what is on its way there is encoded already.

use std::collections::BTreeMap;
use std::path::Path;

use super::planner::digest;
use super::{DetectorPlan, GroupPlan, Node, OfflinePlan, OutcomePlan, Plan, SinkPlan};
use crate::offline::TableKind;
use crate::sinks::SinkKind;

impl Plan {
    /// Digests of the definitions of all nodes that have state or an effect, by section and name.
    pub fn definitions(&self) -> BTreeMap<String, String> {
        let sources =
            self.sources().map(|(stream, source)| (source_path(&stream.name), digest(&(), &source.kind.kind_name())));
        let keyed = self.keyed().map(|(path, hash)| (path, hash.to_string()));
        let shapes = self.groups.iter().filter(|group| group.is_first());
        let shapes = shapes.map(|group| (group.shape_path(), group.hash.clone()));
        let online = self.groups.iter().filter(|group| group.online);
        let online = online.map(|group| (group.online_path(), group.hash.clone()));
        let detectors = self.detectors.iter().map(|detector| (detector.path(), detector.hash.clone()));
        let outcomes = self.outcomes.iter().map(|outcome| (outcome.path(), outcome.hash.clone()));
        let sinks = self.sinks.iter().map(|sink| (sink.path(), self.sink_digest(&sink.kind)));
        let tables = self.offline.iter().map(|table| (table.path(), self.table_digest(&table.table)));
        let texts = [(TEXTS.to_string(), self.hash.clone())];
        sources
            .chain(texts)
            .chain(keyed)
            .chain(shapes)
            .chain(online)
            .chain(detectors)
            .chain(outcomes)
            .chain(sinks)
            .chain(tables)
            .collect()
    }

    /// The nodes whose state lies with the workers, by key group, and the digests of their definitions.
    pub fn keyed(&self) -> impl Iterator<Item = (String, &str)> {
        let deduplicated = self.streams.iter().filter_map(|stream| match &stream.node {
            Node::Deduplicate { hash, .. } => Some((prepare_path(&stream.name), hash.as_str())),
            Node::Source(_) | Node::Prepare { .. } | Node::Read { .. } | Node::Score { .. } => None,
        });
        deduplicated.chain(self.groups.iter().map(|group| (group.path(), group.hash.as_str())))
    }

    /// A sink is where it writes and when it commits.
    fn sink_digest(&self, kind: &SinkKind) -> String {
        match kind.settings().file() {
            Some(path) => digest(&kind.kind_name(), &self.beside_state(path)),
            None => digest(&kind.kind_name(), &kind.settings().identity()),
        }
    }

    /// A table is where it lies: rows on their way there know their columns and their model.
    fn table_digest(&self, kind: &TableKind) -> String {
        match kind {
            TableKind::Delta(delta) => digest(&kind.kind_name(), &self.beside_state(&delta.path)),
        }
    }

    /// A path as seen from the folder that the state folder is in, so that both may be moved together.
    fn beside_state(&self, path: &str) -> String {
        let state = self.folder.join(&self.engine.state);
        let whole = self.folder.join(path);
        let inside = state.parent().and_then(|around| whole.strip_prefix(around).ok());
        inside.unwrap_or(Path::new(path)).to_string_lossy().into_owned()
    }
}

/// The name of the state that has the nodes' texts, as digests.
pub const TEXTS: &str = "topology.texts";

/// The section and name of source `name`.
pub fn source_path(name: &str) -> String {
    format!("sources.{name}")
}

/// The section and name of the prepared stream `name`, which is also the name of its state if it has some.
pub fn prepare_path(name: &str) -> String {
    format!("prepare.{name}")
}

impl GroupPlan {
    /// Its section and name, which is also the name of its state.
    pub fn path(&self) -> String {
        format!("features.{}", self.name)
    }
}

impl GroupPlan {
    /// Whether it is the first instance of its group.
    pub fn is_first(&self) -> bool {
        !self.name.contains('#')
    }

    /// The path of its group's first instance.
    pub fn first_path(&self) -> String {
        format!("features.{}", self.name.split('#').next().unwrap_or_default())
    }

    /// The name of the state that says what stands where in its state.
    pub fn shape_path(&self) -> String {
        format!("{}.shape", self.path())
    }

    /// The name of the state of its served features.
    pub fn online_path(&self) -> String {
        format!("{}.online", self.path())
    }
}

impl DetectorPlan {
    /// Its section and name, which is also the name of its state.
    pub fn path(&self) -> String {
        format!("drift.{}", self.name)
    }
}

impl OutcomePlan {
    /// Its section and name, which is also the name of its state.
    pub fn path(&self) -> String {
        format!("outcomes.{}", self.name)
    }
}

impl SinkPlan {
    /// Its section and name.
    pub fn path(&self) -> String {
        format!("sinks.{}", self.name)
    }
}

impl OfflinePlan {
    /// Its section and name.
    pub fn path(&self) -> String {
        format!("offline.{}", self.name)
    }
}
