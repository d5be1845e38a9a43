//! The nodes' own texts, as digests, and who reads whom: why a definition has changed is told from these.

use std::collections::BTreeMap;

use super::ModelPlan;
use super::planner::digest;
use crate::topology::Topology;

/// A node's own text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Text {
    /// Digest of what it says, without what no state follows from.
    pub digest: String,
    /// The nodes that it reads, by section and name.
    pub reads: Vec<String>,
}

/// The texts of all nodes that state can follow from, by section and name.
pub(super) fn texts(topology: &Topology, models: &[ModelPlan]) -> BTreeMap<String, Text> {
    let path = |name: &str| {
        let section = if topology.sources.contains_key(name) {
            "sources"
        } else if topology.prepare.contains_key(name) {
            "prepare"
        } else if topology.features.contains_key(name) {
            "features"
        } else if topology.vectors.contains_key(name) {
            "vectors"
        } else {
            "models"
        };
        format!("{section}.{name}")
    };
    let text =
        |digest: String, reads: &[&String]| Text { digest, reads: reads.iter().map(|name| path(name)).collect() };
    let mut texts = BTreeMap::new();
    for (name, source) in &topology.sources {
        let says = (&source.schema, &source.event_time, &source.ranges, &source.checks);
        texts.insert(format!("sources.{name}"), text(digest(&(), &says), &[]));
    }
    for (name, prepare) in &topology.prepare {
        texts.insert(format!("prepare.{name}"), text(digest(&(), prepare), &[&prepare.from]));
    }
    for (name, group) in &topology.features {
        let says = (&group.from, &group.key, &group.aggregates, &group.as_of, &group.tiles);
        texts.insert(format!("features.{name}"), text(digest(&(), &says), &[&group.from]));
    }
    for (name, vector) in &topology.vectors {
        let reads: Vec<&String> = vector.join.iter().map(|join| &join.features).chain([&vector.spine]).collect();
        texts.insert(format!("vectors.{name}"), text(digest(&(), vector), &reads));
    }
    for (name, model) in &topology.models {
        let file = models.iter().find(|planned| planned.name == *name).map(|planned| &planned.digest);
        texts.insert(format!("models.{name}"), text(digest(&file, model), &[&model.from]));
    }
    for (name, detector) in &topology.drift {
        texts.insert(format!("drift.{name}"), text(digest(&(), detector), &[&detector.from]));
    }
    for (name, outcome) in &topology.outcomes {
        texts.insert(format!("outcomes.{name}"), text(digest(&(), outcome), &[&outcome.model, &outcome.label]));
    }
    texts
}
