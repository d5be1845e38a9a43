//! `millstream check`: everything that is wrong with a topology, without running it.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::{Run, folder_of, print, print_json, say, style};
use crate::models;
use crate::plan::Plan;
use crate::topology::Topology;
use crate::topology::file::File;
use millstream_operators::error::ConfigError;

/// Prints every error of a topology file, with its line and a hint; exits with 1 if there is one.
#[derive(Debug, Args)]
pub(super) struct Check {
    /// The topology file.
    file: PathBuf,
    /// Prints errors and warnings as JSON.
    #[arg(long)]
    json: bool,
}

impl Run for Check {
    fn run(self) -> anyhow::Result<ExitCode> {
        let file = File::open(&self.file);
        let planned = file.topology.as_ref().map(|t| Plan::around(t, &folder_of(&self.file), &file.doubtful));
        let (plan, errors) = match planned {
            Some(Ok(plan)) => (Some(plan), Vec::new()),
            Some(Err(errors)) => (None, errors),
            None => (None, Vec::new()),
        };
        let warnings = plan.as_ref().map(warnings).unwrap_or_default();
        let report = file.report(&errors, &warnings);
        let ok = report.errors() == 0;
        if self.json {
            print_json(&json!({ "ok": ok, "problems": report.to_json() }))?;
        } else {
            if !report.problems.is_empty() {
                say(&report.render(style()));
            }
            match file.topology.as_ref().filter(|_| ok) {
                Some(topology) => print(&summary(&self.file.display().to_string(), topology, &warnings))?,
                None => say(&format!("\n{}: {}\n", self.file.display(), counted(report.errors(), "error"))),
            }
        }
        Ok(if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

/// The plan's warnings, and one if its models could not run on this machine.
fn warnings(plan: &Plan) -> Vec<ConfigError> {
    let runtime = match plan.models.first() {
        Some(model) => models::runtime::environment().err().map(|error| {
            ConfigError::new(format!("models.{}.onnx", model.name), format!("the model was not tried: {error}"))
        }),
        None => None,
    };
    plan.warnings.iter().cloned().chain(runtime).collect()
}

fn counted(n: usize, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}

fn summary(file: &str, topology: &Topology, warnings: &[ConfigError]) -> String {
    fn names<T>(named: &indexmap::IndexMap<String, T>) -> String {
        named.keys().map(String::as_str).collect::<Vec<_>>().join(", ")
    }
    let sections = [
        ("sources", names(&topology.sources)),
        ("prepare", names(&topology.prepare)),
        ("features", names(&topology.features)),
        ("vectors", names(&topology.vectors)),
        ("models", names(&topology.models)),
        ("drift", names(&topology.drift)),
        ("outcomes", names(&topology.outcomes)),
        ("sinks", names(&topology.sinks)),
        ("offline", names(&topology.offline)),
    ];
    let mut text = match warnings.len() {
        0 => format!("{file}: ok\n"),
        n => format!("{file}: ok, with {}\n", counted(n, "warning")),
    };
    for (section, names) in sections.iter().filter(|(_, names)| !names.is_empty()) {
        text.push_str(&format!("  {section:9} {names}\n"));
    }
    text
}
