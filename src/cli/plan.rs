//! `millstream plan`: what a start of the job with this file would make of its newest checkpoint. Works beside a running job,
//! and writes nothing.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::{Run, print, print_json};
use crate::change::{Change, NodeChange, Verdict};
use crate::checkpoint::Place;
use crate::checkpoint::report::{self, Which};

/// The exit code of a start that would be refused.
const REFUSED: u8 = 5;

/// Compares a topology file with the job's newest checkpoint: what `run` would keep, begin and drop. Exit code 5 if `run`
/// would refuse because something would be lost.
#[derive(Debug, Args)]
pub(super) struct Plan {
    /// The topology file.
    file: PathBuf,
    /// Says what a start with the same option would do.
    #[arg(long, value_name = "NODE")]
    allow_drop: Vec<String>,
    /// Says what a start with the same option would do.
    #[arg(long, value_name = "GROUP")]
    backfill: Vec<String>,
    /// Prints JSON.
    #[arg(long)]
    json: bool,
}

impl Run for Plan {
    fn run(self) -> anyhow::Result<ExitCode> {
        let (topology, folder) = super::load(&self.file)?;
        let plan = super::plan(&topology, &folder, &self.file)?;
        let place = Place::of(&topology.engine, &folder)?;
        let Some(checkpoint) = report::checkpoint(&place, Which::Newest, &plan.name)? else {
            match self.json {
                true => print_json(&json!({ "epoch": null, "nodes": [], "run": "starts", "refused": null }))?,
                false => print(&format!("{}: there is no checkpoint; `run` starts the job\n", place.name()))?,
            }
            return Ok(ExitCode::SUCCESS);
        };
        let mut change = Change::between(&checkpoint, &plan, topology.is_bounded())?;
        change.backfill(&self.backfill, &plan)?;
        change.measure(&checkpoint)?;
        let refused = change.permit(&self.allow_drop).err().map(|refused| refused.to_string());
        match self.json {
            true => print_json(&json!({
                "epoch": change.epoch,
                "nodes": change.nodes,
                "run": if refused.is_some() { "refuses" } else { "goes on" },
                "refused": refused,
            }))?,
            false => print(&text(&change, refused.as_deref()))?,
        }
        Ok(if refused.is_some() { ExitCode::from(REFUSED) } else { ExitCode::SUCCESS })
    }
}

fn text(change: &Change, refused: Option<&str>) -> String {
    let mut text = format!("checkpoint of epoch {}\n", change.epoch);
    let width = change.nodes.iter().map(|node| node.node.len()).max().unwrap_or(0);
    for NodeChange { node, verdict, because, has, loses } in &change.nodes {
        let verdict = match verdict {
            Verdict::Keep => "keep",
            Verdict::New => "new",
            Verdict::Extend => "extend",
            Verdict::Recompute => "recompute",
            Verdict::Backfill => "backfill",
            Verdict::Replace => "replace",
            Verdict::Drop => "drop",
        };
        let has = has.as_ref().map(ToString::to_string).unwrap_or_default();
        let lost = match loses {
            Some(loses) if *loses.to_string() != has => format!("; loses {loses}"),
            Some(_) => "; would be lost".to_string(),
            None => String::new(),
        };
        let others: Vec<&str> = because.iter().map(String::as_str).filter(|cause| cause != node).collect();
        let because = match others.is_empty() {
            true => String::new(),
            false => format!("; because of {}", others.join(", ")),
        };
        text += format!("  {verdict:9}  {node:width$}  {has}{lost}{because}").trim_end();
        text += "\n";
    }
    match refused {
        Some(refused) => text + &format!("`run` refuses: {refused}\n"),
        None => text + "`run` goes on\n",
    }
}
