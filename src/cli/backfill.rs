//! `millstream backfill`: fills feature groups that a changed file brings with what the job has read before.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::run::signals::Signals;
use super::{Run, print, print_json};
use crate::backfill::{self, Filled, Nothing};

/// Fills feature groups that the file has and the job's newest checkpoint lacks, or has otherwise, with the records that the job
/// has read and its topics still hold. Works beside the running job, goes on where it was stopped, and touches nothing of the
/// job: `run --backfill GROUP` takes up what it has made.
#[derive(Debug, Args)]
pub(super) struct Backfill {
    /// The topology file, with the groups as they shall be.
    file: PathBuf,
    /// The feature groups: `card` or `features.card`.
    #[arg(required = true)]
    groups: Vec<String>,
    /// Prints JSON.
    #[arg(long)]
    json: bool,
}

impl Run for Backfill {
    fn run(self) -> anyhow::Result<ExitCode> {
        let (topology, folder) = super::load(&self.file)?;
        let signals = Signals::listen()?;
        let filled = match backfill::Backfill::new(&topology, &folder, &self.groups)? {
            Ok(backfill) => Ok(backfill.run(&|| signals.received() > 0)?),
            Err(nothing) => Err(nothing),
        };
        match self.json {
            true => print_json(&as_json(&filled))?,
            false => print(&self.text(&filled))?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn as_json(filled: &Result<Filled, Nothing>) -> serde_json::Value {
    match filled {
        Ok(Filled { epoch, stopped, records, groups }) => json!({
            "epoch": epoch,
            "ended": if *stopped { "stopped" } else { "filled" },
            "records": records,
            "groups": groups,
        }),
        Err(nothing) => json!({ "epoch": null, "ended": "nothing", "why": nothing.to_string() }),
    }
}

impl Backfill {
    fn text(&self, filled: &Result<Filled, Nothing>) -> String {
        let Filled { epoch, stopped, records, groups } = match filled {
            Ok(filled) => filled,
            Err(nothing) => return format!("{nothing}\n"),
        };
        let mut text = String::new();
        for (source, count) in records {
            text += &format!("{count} records of {source}\n");
        }
        let width = groups.keys().map(String::len).max().unwrap_or(0);
        for (group, contents) in groups {
            text += &format!("  {group:width$}  {contents}\n");
        }
        if *stopped {
            return text + "stopped before it was through: the same command goes on\n";
        }
        let options: Vec<String> = groups.keys().map(|group| format!("--backfill {group}")).collect();
        let (file, options) = (self.file.display(), options.join(" "));
        text + &format!("as of the checkpoint of epoch {epoch}; `millstream run {file} {options}` goes on with it\n")
    }
}
