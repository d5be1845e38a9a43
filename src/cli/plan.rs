//! `millstream plan`: what a start of the job with this file would make of its newest checkpoint, or of the one it is told to go on
//! from. Works beside a running job, and writes nothing.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::{Run, print, print_json};
use crate::change::{Change, NodeChange, Verdict};
use crate::checkpoint::report::{self, Which};
use crate::checkpoint::{Checkpoint, Origin, Place, Standing};
use crate::topology::S3;

/// The exit code of a start that would be refused.
const REFUSED: u8 = 5;

/// Compares a topology file with the job's newest checkpoint, or with a savepoint: what `run` would keep, begin and drop. Exit code 5 if `run`
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
    /// Says what a start with the same option would do: from a savepoint of this name, or from the newest checkpoint in a folder
    /// (`./folder`) or at `s3://bucket/prefix`.
    #[arg(long, value_name = "SAVEPOINT")]
    from: Option<String>,
    /// Prints JSON.
    #[arg(long)]
    json: bool,
}

impl Run for Plan {
    fn run(self) -> anyhow::Result<ExitCode> {
        let (topology, folder) = super::load(&self.file)?;
        let plan = super::plan(&topology, &folder, &self.file)?;
        let place = Place::of(&topology.engine, &folder)?;
        let Beginning { from, goes_back, checkpoint } =
            Beginning::find(&place, self.from.as_deref(), &topology.engine.s3, &plan.name)?;
        let Some(checkpoint) = checkpoint else {
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
                "from": from,
                "goes_back_from": goes_back,
                "nodes": change.nodes,
                "run": if refused.is_some() { "refuses" } else { "goes on" },
                "refused": refused,
            }))?,
            false => print(&text(&change, (from.as_deref(), goes_back), refused.as_deref()))?,
        }
        Ok(if refused.is_some() { ExitCode::from(REFUSED) } else { ExitCode::SUCCESS })
    }
}

/// Where a start would go on.
struct Beginning {
    /// The checkpoint that is wanted instead of the newest one, if the job is not there yet.
    from: Option<String>,
    /// The epoch of the newest checkpoint, if that is another one.
    goes_back: Option<u64>,
    checkpoint: Option<Checkpoint>,
}

impl Beginning {
    fn find(own: &Place, from: Option<&str>, s3: &S3, job: &str) -> anyhow::Result<Beginning> {
        if let Some(from) = from {
            let origin = Origin::find(own, from, s3, job)?;
            let goes_back = match origin.standing(own)?.0 {
                Standing::There => None,
                Standing::Nowhere => Some(None),
                Standing::Elsewhere { epoch, .. } => Some(Some(epoch)),
            };
            if let Some(goes_back) = goes_back {
                let checkpoint = Some(origin.checkpoint()?);
                return Ok(Beginning { from: Some(from.to_string()), goes_back, checkpoint });
            }
        }
        Ok(Beginning { from: None, goes_back: None, checkpoint: report::checkpoint(own, Which::Newest, job)? })
    }
}

fn text(change: &Change, (from, goes_back): (Option<&str>, Option<u64>), refused: Option<&str>) -> String {
    let mut text = format!("checkpoint of epoch {}", change.epoch);
    text += &from.map(|from| format!(", `{from}`")).unwrap_or_default();
    text += &goes_back.map(|epoch| format!("; the job is at epoch {epoch}, and goes back")).unwrap_or_default();
    text += "\n";
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
        None if goes_back.is_some() => text + "`run` goes on from there, if it may repeat outputs (`--allow-repeat`)\n",
        None => text + "`run` goes on\n",
    }
}
