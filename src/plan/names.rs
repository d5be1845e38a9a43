//! Names: what may be a name, what a name refers to, and in which order nodes can be built.

use std::collections::{BTreeMap, BTreeSet};

use indexmap::IndexMap;
use millstream_operators::error::ConfigError;

use crate::topology::Topology;

/// Names that a sink's `from` uses for the engine's own streams.
pub(super) const RESERVED: [&str; 2] = ["rejects", "drift"];

/// The sections whose nodes form the dataflow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Section {
    Source,
    Prepare,
    Group,
    Vector,
    Model,
}

impl Section {
    /// As it is called in a sentence.
    pub fn what(self) -> &'static str {
        match self {
            Section::Source => "a source",
            Section::Prepare => "a prepared stream",
            Section::Group => "a feature group",
            Section::Vector => "a vector",
            Section::Model => "a model",
        }
    }

    /// As it is called in a file.
    pub fn key(self) -> &'static str {
        match self {
            Section::Source => "sources",
            Section::Prepare => "prepare",
            Section::Group => "features",
            Section::Vector => "vectors",
            Section::Model => "models",
        }
    }
}

/// What a reference must lead to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    /// A source, prepared stream, vector or model.
    Stream,
    /// A feature group.
    Group,
    /// A model.
    Model,
}

impl Wanted {
    fn what(self) -> &'static str {
        match self {
            Wanted::Stream => "stream",
            Wanted::Group => "feature group",
            Wanted::Model => "model",
        }
    }

    fn fits(self, section: Section) -> bool {
        match self {
            Wanted::Stream => section != Section::Group,
            Wanted::Group => section == Section::Group,
            Wanted::Model => section == Section::Model,
        }
    }
}

/// The nodes of a topology by name.
pub(super) struct Names<'t> {
    nodes: IndexMap<&'t str, Section>,
    /// Names of which nothing more is said: they are wrong themselves, and that has been told.
    pub broken: BTreeSet<String>,
}

impl<'t> Names<'t> {
    /// Collects the names and says which cannot be one. `doubtful` names are wrong already.
    pub fn new(topology: &'t Topology, doubtful: &BTreeSet<String>, errors: &mut Vec<ConfigError>) -> Self {
        let mut names = Names { nodes: IndexMap::new(), broken: doubtful.clone() };
        for (section, keys) in nodes(topology) {
            for name in keys {
                let path = format!("{}.{name}", section.key());
                errors.extend(reserved(name).or_else(|| refusal(name)).map(|error| error.under(&path)));
                if let Some(other) = names.section(name) {
                    let hint = "a name is the identity of a node's state and metrics; give one of them another";
                    let message = format!("`{name}` also stands under `{}`", other.key());
                    errors.push(ConfigError::new(path, message).with_hint(Some(hint.to_string())));
                    names.broken.insert(name.to_string());
                } else {
                    names.nodes.insert(name, section);
                }
            }
        }
        for (section, keys) in ends(topology) {
            let refused = |name: &&str| refusal(name).map(|error| error.under(&format!("{section}.{name}")));
            errors.extend(keys.iter().filter_map(refused));
        }
        names
    }

    /// The section of a node.
    pub fn section(&self, name: &str) -> Option<Section> {
        self.nodes.get(name).copied()
    }

    /// Whether `name` is a node that `wanted` may refer to. If not, the reason is added to `errors`, unless `name` is
    /// broken.
    pub fn refers(&self, path: &str, name: &str, wanted: Wanted, errors: &mut Vec<ConfigError>) -> bool {
        let error = match self.section(name) {
            Some(section) if wanted.fits(section) => return true,
            None if self.broken.contains(name) => return false,
            Some(section) => {
                let hint = match (wanted, section) {
                    (Wanted::Stream, _) => "a feature group is read by `join` in a vector".to_string(),
                    (Wanted::Group, _) => "`features` of a `join` names an entry of `features`".to_string(),
                    (Wanted::Model, _) => "name an entry of `models`".to_string(),
                };
                let message = format!("`{name}` is {}, not a {}", section.what(), wanted.what());
                ConfigError::new(path, message).with_hint(Some(hint))
            }
            None => {
                let known = self.nodes.iter().filter(|(_, section)| wanted.fits(**section)).map(|(name, _)| *name);
                ConfigError::unknown(path, wanted.what(), name, known)
            }
        };
        errors.push(error);
        false
    }
}

fn keys<T>(named: &IndexMap<String, T>) -> Vec<&str> {
    named.keys().map(String::as_str).collect()
}

/// The nodes of the dataflow: they share one name space.
fn nodes(topology: &Topology) -> [(Section, Vec<&str>); 5] {
    [
        (Section::Source, keys(&topology.sources)),
        (Section::Prepare, keys(&topology.prepare)),
        (Section::Group, keys(&topology.features)),
        (Section::Vector, keys(&topology.vectors)),
        (Section::Model, keys(&topology.models)),
    ]
}

/// What nothing reads: each section has names of its own, so that a sink may be called like its stream.
fn ends(topology: &Topology) -> [(&'static str, Vec<&str>); 4] {
    [
        ("drift", keys(&topology.drift)),
        ("outcomes", keys(&topology.outcomes)),
        ("sinks", keys(&topology.sinks)),
        ("offline", keys(&topology.offline)),
    ]
}

/// Why a node of the dataflow cannot be called `name`: a sink's `from` could not tell it from the engine's own stream.
fn reserved(name: &str) -> Option<ConfigError> {
    let message = format!("`{name}` is the name of a stream of the engine's own");
    let error = ConfigError::new("", message).with_hint(Some("choose another name".to_string()));
    RESERVED.contains(&name).then_some(error)
}

/// Why `name` cannot be a name, if it cannot.
pub(super) fn refusal(name: &str) -> Option<ConfigError> {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '-';
    let starts_well = name.starts_with(|c: char| c.is_ascii_lowercase());
    if starts_well && name.len() <= 63 && name.chars().all(allowed) {
        return None;
    }
    let rule = "a name starts with a small letter and goes on with small letters, digits, `_` and `-`, 63 at most";
    Some(ConfigError::new("", format!("`{name}` cannot be a name")).with_hint(Some(rule.to_string())))
}

/// A reference of one node to another.
pub(super) struct Reference<'t> {
    /// The node that reads.
    pub reader: &'t str,
    /// The node that is read.
    pub read: &'t str,
    /// Where the reference stands.
    pub path: String,
    /// False if the reader is sound even when what it reads is not: it only has to come later.
    pub needed: bool,
}

/// The nodes in an order in which each comes after all that it reads; nodes of a cycle, and what reads them, are left
/// out and become broken.
pub(super) fn order<'t>(
    names: &mut Names<'t>,
    references: &[Reference<'t>],
    errors: &mut Vec<ConfigError>,
) -> Vec<&'t str> {
    let mut by_reader: BTreeMap<&str, Vec<&Reference<'t>>> = BTreeMap::new();
    for reference in references {
        by_reader.entry(reference.reader).or_default().push(reference);
    }
    let mut search = Search { by_reader, done: IndexMap::new(), open: Vec::new(), cycles: Vec::new() };
    for name in names.nodes.keys() {
        search.visit(name);
    }
    for cycle in &search.cycles {
        errors.push(cycle_error(cycle));
        names.broken.extend(cycle.iter().map(|reference| reference.reader.to_string()));
    }
    search.done.keys().copied().collect()
}

/// A depth-first search that notes every cycle it runs into.
struct Search<'r, 't> {
    by_reader: BTreeMap<&'t str, Vec<&'r Reference<'t>>>,
    done: IndexMap<&'t str, ()>,
    /// The references from the start to the node in work.
    open: Vec<&'r Reference<'t>>,
    cycles: Vec<Vec<&'r Reference<'t>>>,
}

impl<'t> Search<'_, 't> {
    fn visit(&mut self, name: &'t str) {
        if self.done.contains_key(name) {
            return;
        }
        if let Some(start) = self.open.iter().position(|reference| reference.reader == name) {
            self.cycles.push(self.open[start..].to_vec());
            return;
        }
        for reference in self.by_reader.get(name).cloned().unwrap_or_default() {
            self.open.push(reference);
            self.visit(reference.read);
            self.open.pop();
        }
        self.done.insert(name, ());
    }
}

fn cycle_error(cycle: &[&Reference]) -> ConfigError {
    let steps: Vec<String> = cycle.iter().map(|step| format!("`{}` reads `{}`", step.reader, step.read)).collect();
    let path = cycle.first().map(|step| step.path.clone()).unwrap_or_default();
    // A vector's read of a group makes the group wait for the vector's spine.
    let through_group = cycle.iter().any(|step| step.path.starts_with("vectors.") && step.path.contains(".join["));
    let hint = match through_group {
        true => "a feature group cannot be read by a stream that has been through it; read it once, in one vector",
        false => "a stream can only read what comes before it",
    };
    ConfigError::new(path, format!("this is a cycle: {}", steps.join(", "))).with_hint(Some(hint.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        for good in ["a", "card_txn", "fraud-v3", &"a".repeat(63)] {
            assert_eq!(refusal(good), None, "{good}");
        }
        for bad in ["", "A", "9a", "a b", "a.b", "é", &"a".repeat(64)] {
            assert!(refusal(bad).is_some(), "{bad}");
        }
    }
}
