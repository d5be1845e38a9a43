//! `millstream check`: everything that is wrong with a topology, without running it.
//!
//! Models are tried on made-up rows as a start would try them, where ONNX Runtime is; elsewhere a warning says that they
//! were not.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::{Run, folder_of, print, print_json, say, style};
use crate::models::{self, ModelError};
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
        let (errors, warnings) = match planned {
            Some(Ok(plan)) => try_models(&plan),
            Some(Err(errors)) => (errors, Vec::new()),
            None => (Vec::new(), Vec::new()),
        };
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

/// Tries the plan's models; gives an error for each that a start would refuse, and the plan's warnings, with one more if
/// models can't be tried on this machine.
fn try_models(plan: &Plan) -> (Vec<ConfigError>, Vec<ConfigError>) {
    let (mut errors, mut warnings) = (Vec::new(), plan.warnings.clone());
    for model in &plan.models {
        let at = format!("models.{}.onnx", model.name);
        match models::open(&model.path, &model.binding, model.nan_allowed) {
            Ok(_) => {}
            Err(ModelError::Runtime(error)) => {
                warnings.push(ConfigError::new(at, format!("the model was not tried: {error}")));
                break;
            }
            Err(error) => errors.push(ConfigError::new(at, error.to_string())),
        }
    }
    (errors, warnings)
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
