//! `millstream schema`: the JSON Schema of topology files, for editors.

use std::process::ExitCode;

use clap::Args;

use super::reference::schema_text;
use super::{Run, print};

/// Prints the JSON Schema of topology files, for editors that complete and check YAML.
#[derive(Debug, Args)]
pub(super) struct Schema {
    /// Changes nothing: a schema is JSON.
    #[arg(long)]
    json: bool,
}

impl Run for Schema {
    fn run(self) -> anyhow::Result<ExitCode> {
        print(&schema_text())?;
        Ok(ExitCode::SUCCESS)
    }
}
