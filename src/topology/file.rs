//! Topology files: YAML text to a [`Topology`], with every error found and every value's place remembered.
//!
//! ```text
//! text ─ tree (spans) ─ variables ─ reader ─▶ Topology ─▶ plan
//!    └─ syntax ──┴─ unset ────┴─ unknown keys, wrong types ──┴─ errors by path ─▶ Report
//! ```

use std::collections::{BTreeSet, HashSet};
use std::path::Path;

use millstream_operators::error::ConfigError;

use super::Topology;
use super::problem::{Problem, Report, Severity};
use super::reader;
use super::tree::{self, NodeId, Tree, Value};
use super::variables::{self, Environment, Substituted};

/// The version of the file format that this build reads.
pub const VERSION: u32 = 1;

/// What was read from a file: the topology as far as it can be made out, and what is wrong so far.
#[derive(Debug)]
pub struct File {
    /// The topology without the values that could not be read; `None` when nothing can be made of the file.
    pub topology: Option<Topology>,
    /// Names of nodes that could not be read whole: what is said about them or what depends on them may be untrue.
    pub doubtful: BTreeSet<String>,
    name: String,
    text: String,
    tree: Option<Tree>,
    substituted: Vec<Substituted>,
    problems: Vec<Problem>,
}

impl File {
    /// Reads the file at `path`. Variables come from the process's environment, `${file:...}` from the file's folder.
    pub fn open(path: &Path) -> File {
        let folder = path.parent().unwrap_or(Path::new("."));
        let environment = Environment { variable: &|name| std::env::var(name).ok(), folder };
        let name = path.display().to_string();
        match std::fs::read(path) {
            Ok(bytes) => File::parse(&name, bytes, &environment),
            Err(error) => {
                let problem = Problem::error(None, format!("cannot be read: {error}"));
                File::broken(name, String::new(), vec![problem])
            }
        }
    }

    /// Reads a topology from the bytes of a file called `name`.
    pub fn parse(name: &str, bytes: Vec<u8>, environment: &Environment) -> File {
        let text = match String::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => {
                let at = error.utf8_error().valid_up_to();
                let text = String::from_utf8_lossy(error.as_bytes()).into_owned();
                let hint = Some("save the file as UTF-8".to_string());
                let problem = Problem::error(Some(at..at), "a byte stands here that is not UTF-8").with_hint(hint);
                return File::broken(name.to_string(), text, vec![problem]);
            }
        };
        let (tree, mut problems) = tree::parse(&text);
        let Some(mut tree) = tree else { return File::broken(name.to_string(), text, problems) };
        if let Some(problem) = other_version(&tree) {
            return File::broken(name.to_string(), text, vec![problem]);
        }
        let mut bad = HashSet::new();
        let (substituted, unset) = variables::substitute(&mut tree, environment, &mut bad);
        let (topology, unread) = reader::read(&tree, &mut bad);
        problems.extend(unset.into_iter().chain(unread));
        let doubtful = doubtful(&tree, &bad);
        File { topology, doubtful, name: name.to_string(), text, tree: Some(tree), substituted, problems }
    }

    fn broken(name: String, text: String, problems: Vec<Problem>) -> File {
        let (topology, doubtful) = (None, BTreeSet::new());
        File { topology, doubtful, name, text, tree: None, substituted: Vec::new(), problems }
    }

    /// True when the file could be read whole: what is left to find is found by planning.
    pub fn is_whole(&self) -> bool {
        self.problems.is_empty()
    }

    /// Everything that is wrong: what was found while reading, and `errors` and `warnings` of planning, at their places
    /// in the file. Warnings say what a whole file lacks, so of a file that could not be read whole they are left out.
    pub fn report(&self, errors: &[ConfigError], warnings: &[ConfigError]) -> Report {
        let planned = errors.iter().map(|error| self.located(error, Severity::Error));
        let meant = warnings.iter().filter(|_| self.is_whole());
        let doubted = meant.map(|warning| self.located(warning, Severity::Warning));
        let problems = self.problems.iter().cloned().chain(planned).chain(doubted).collect();
        Report::new(&self.name, &self.text, problems)
    }

    fn located(&self, error: &ConfigError, severity: Severity) -> Problem {
        let span = self.tree.as_ref().map(|tree| tree.locate(&error.path, &self.text));
        let hint = error.hint.as_deref().map(|hint| self.without_secrets(hint));
        Problem { severity, ..Problem::error(span, self.without_secrets(&error.message)).with_hint(hint) }
    }

    /// A message that shows `${NAME}` where it would show what came from outside the file. Values of one to three
    /// characters stay: they are no secrets, and every word holds them.
    fn without_secrets(&self, message: &str) -> String {
        let long = self.substituted.iter().filter(|s| s.value.chars().count() > 3);
        long.fold(message.to_string(), |text, s| text.replace(&s.value, &s.written))
    }
}

/// An error if the file says that it is of another version than this build reads: nothing else can be said about it.
fn other_version(tree: &Tree) -> Option<Problem> {
    let node = tree.node(tree.get(tree.root, "version")?);
    let Value::Scalar(scalar) = &node.value else { return None };
    let version: u32 = scalar.text.parse().ok().filter(|version| *version != VERSION)?;
    let message = format!("the file is of format version {version}, this build reads version {VERSION}");
    let hint = match version > VERSION {
        true => "use a newer build".to_string(),
        false => format!("write `version: {VERSION}`"),
    };
    Some(Problem::error(Some(node.span.clone()), message).with_hint(Some(hint)))
}

/// The names of all nodes that hold a value which could not be read.
fn doubtful(tree: &Tree, bad: &HashSet<NodeId>) -> BTreeSet<String> {
    let sections = tree.entries(tree.root).iter();
    let named = sections.flat_map(|section| tree.entries(section.value));
    named.filter(|entry| tree.holds_any(entry.value, bad)).map(|entry| entry.key.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::problem::Style;

    const GOOD: &str =
        "version: 1\nname: a\nsources:\n  s:\n    from: { memory: { messages: ['{}'] } }\n    schema: { x: int64 }\n";

    fn parse(text: &str) -> File {
        let variable = |name: &str| (name == "SECRET").then(|| "hunter2".to_string());
        File::parse("t.yaml", text.as_bytes().to_vec(), &Environment { variable: &variable, folder: Path::new(".") })
    }

    #[test]
    fn a_good_file_is_read() {
        let file = parse(GOOD);
        assert!(file.is_whole(), "{}", file.report(&[], &[]));
        assert_eq!(file.topology.map(|t| t.name), Some("a".to_string()));
    }

    #[test]
    fn every_error_is_found_at_once() {
        let text = GOOD.replace("name: a", "nam: a\nname: a\nengine: { workers: many, epoch: 1 year, spin: 1 }");
        let found = parse(&text).report(&[], &[]).render(Style::Plain);
        assert_eq!(found.matches("error:").count(), 4, "{found}");
    }

    #[test]
    fn secrets_are_not_shown() {
        let wrong_value = parse(&format!("{GOOD}engine: {{ workers: \"${{SECRET}}\" }}\n"));
        let found = wrong_value.report(&[], &[]).render(Style::Plain);
        assert!(found.contains("${SECRET}") && !found.contains("hunter2"), "{found}");
        let error = ConfigError::new("name", "`hunter2` is not a name");
        let found = parse(&GOOD.replace("name: a", "name: ${SECRET}")).report(&[error], &[]).render(Style::Plain);
        assert!(found.contains("`${SECRET}` is not a name"), "{found}");
    }

    #[test]
    fn places_are_found_by_path() {
        let file = parse(GOOD);
        let error = |path: &str| ConfigError::new(path, "here");
        let errors = [error("sources.s.schema.x"), error("sources.s.lateness"), error("")];
        let report = file.report(&errors, &[]).to_json();
        let places: Vec<_> = report.as_array().into_iter().flatten().map(|p| (&p["line"], &p["column"])).collect();
        assert_eq!(format!("{places:?}"), "[(Number(1), Number(1)), (Number(4), Number(3)), (Number(6), Number(18))]");
    }
}
