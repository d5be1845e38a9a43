//! The rules of STYLE.md that a program can check.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::program::root;

/// Lines of a source file at most: what is longer has two subjects.
const LINES_MAX: usize = 500;

/// What lies at the top, beside what is hidden and what a build or a run leaves.
const TOP: &[&str] = &[
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "Makefile",
    "README.md",
    "STYLE.md",
    "benches",
    "deploy",
    "docs",
    "kafka_batch",
    "operators",
    "proptest-regressions",
    "rustfmt.toml",
    "src",
    "target",
    "tests",
    "topologies",
];

/// What must not be written, where, and what to write instead. The texts are cut, so that they are not here either.
const BANNED: &[(&str, [&str; 2], &str)] = &[
    ("", ["TO", "DO"], "do it, or say in the documentation that it is not done"),
    ("", ["FIX", "ME"], "mend it"),
    ("", ["to", "do!("], "write it"),
    ("", ["unimplem", "ented!("], "write it"),
    ("", ["db", "g!("], "`tracing`"),
    ("", ["#[ign", "ore"], "a test that runs, or none"),
    ("src", ["for_each", "_time("], "`for_each`: the other one changes the order of records"),
    ("src", ["producer.flu", "sh("], "`hurry` and `poll`: a flush waits in steps of 100 ms"),
    ("src", ["serde(unta", "gged"], "a kind by its name: errors would lose their place in the file"),
    ("src", ["serde(ta", "g ="], "a kind by its name: errors would lose their place in the file"),
    ("src", ["unsa", "fe {"], "a function of `kafka_batch`, the one crate that may"),
    ("operators", ["unsa", "fe {"], "nothing: only `kafka_batch` may"),
    ("operators", ["SystemTime::", "now"], "the time of the event: an operator gives the same at any time of day"),
];

/// Source files below `folder`.
fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("a folder can be listed") {
        let path = entry.expect("an entry can be read").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn sources_keep_to_the_rules() {
    let mut files = Vec::new();
    for folder in ["src", "operators", "kafka_batch", "tests", "benches", "topologies"] {
        sources(&root().join(folder), &mut files);
    }
    assert!(files.len() > 100, "only {} files were found", files.len());
    let mut wrong = Vec::new();
    for path in &files {
        let text = std::fs::read_to_string(path).expect("a source file can be read");
        let name = path.strip_prefix(root()).expect("it lies in the project").display();
        let lines = text.lines().count();
        if lines > LINES_MAX {
            wrong.push(format!("{name}: {lines} lines, {LINES_MAX} are allowed"));
        }
        if !text.starts_with("//!") {
            wrong.push(format!("{name}:1: does not say what it is about (`//!`)"));
        }
        for (folder, banned, instead) in BANNED {
            let banned = banned.concat();
            let lines = text.lines().enumerate().filter(|(_, line)| line.contains(&banned));
            let is_subject = path.starts_with(root().join(folder));
            wrong.extend(
                lines
                    .filter(|_| is_subject)
                    .map(|(at, _)| format!("{name}:{}: `{banned}`; instead: {instead}", at + 1)),
            );
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_top_level_is_what_it_is() {
    let entries = std::fs::read_dir(root()).expect("the project's folder");
    let names = entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned());
    let others: BTreeSet<String> =
        names.filter(|name| !name.starts_with('.') && !TOP.contains(&name.as_str())).collect();
    assert!(others.is_empty(), "not of the top level: {others:?}");
}
