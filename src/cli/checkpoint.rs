//! `millstream checkpoint`: what a job's state folder holds, and whether it is whole. Works beside a running job.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::{Run, print, print_json};
use crate::checkpoint::Place;
use crate::checkpoint::report::{self, Contents, Listed};
use crate::topology::Engine;

/// Lists, inspects and verifies the checkpoints of a job.
#[derive(Debug, Args)]
pub(super) struct Checkpoint {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Lists the checkpoints that are kept, the oldest first.
    List(Where),
    /// Says what stands in a checkpoint: positions, the state of each node, what waits to be committed.
    Inspect(Where),
    /// Reads every byte of a checkpoint and holds it against its checksums; exit code 5 if it is damaged.
    Verify(Where),
}

#[derive(Debug, Args)]
struct Where {
    /// The topology file, or the place of the job's state: a folder, or `s3://bucket/prefix`.
    path: PathBuf,
    /// The checkpoint's epoch; the newest by default.
    #[arg(long)]
    epoch: Option<u64>,
    /// Prints JSON.
    #[arg(long)]
    json: bool,
}

impl Run for Checkpoint {
    fn run(self) -> anyhow::Result<ExitCode> {
        match self.what {
            What::List(at) => at.list()?,
            What::Inspect(at) => at.inspect()?,
            What::Verify(at) => at.verify()?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Where {
    fn place(&self) -> anyhow::Result<Place> {
        if self.path.is_dir() {
            return Ok(Place::folder(&self.path));
        }
        if self.path.starts_with("s3:") {
            let state = self.path.to_string_lossy().into_owned();
            return Ok(Place::of(&Engine { state, ..Engine::default() }, Path::new(""))?);
        }
        let (topology, folder) = super::load(&self.path)?;
        Ok(Place::of(&topology.engine, &folder)?)
    }

    /// What stands in the checkpoint that is asked for.
    fn contents(&self) -> anyhow::Result<Contents> {
        let place = self.place()?;
        if let Some(contents) = report::read(&place, self.epoch)? {
            return Ok(contents);
        }
        let epochs: Vec<String> = kept(&place)?.iter().map(|listed| listed.epoch.to_string()).collect();
        let epoch = self.epoch.unwrap_or_default();
        anyhow::bail!("there is no checkpoint of epoch {epoch}; there are: {}", epochs.join(", "))
    }

    fn list(&self) -> anyhow::Result<()> {
        let all = kept(&self.place()?)?;
        if self.json {
            return print_json(&all);
        }
        Ok(print(&all.iter().map(line).collect::<String>())?)
    }

    fn inspect(&self) -> anyhow::Result<()> {
        let contents = self.contents()?;
        match self.json {
            true => print_json(&contents),
            false => Ok(print(&text(&contents))?),
        }
    }

    fn verify(&self) -> anyhow::Result<()> {
        let contents = self.contents()?;
        match self.json {
            true => print_json(&contents.listed),
            false => Ok(print(&format!("whole: {}", line(&contents.listed)))?),
        }
    }
}

/// The checkpoints that are kept, of which there must be one.
fn kept(place: &Place) -> anyhow::Result<Vec<Listed>> {
    let all = report::list(place)?;
    anyhow::ensure!(!all.is_empty(), "{}: no job has kept its state here", place.name());
    Ok(all)
}

fn line(listed: &Listed) -> String {
    let Listed { number, epoch, job, generation, written, files, bytes } = listed;
    let written = crate::online::time_text(*written as i64 * 1_000);
    format!(
        "{number}: epoch {epoch} of job {job}, start {generation}, written {written}: {files} files, {bytes} bytes\n"
    )
}

fn text(contents: &Contents) -> String {
    let mut text = line(&contents.listed);
    let mut part = |title: &str, lines: Vec<String>| {
        if !lines.is_empty() {
            text += &format!("{title}\n");
            lines.iter().for_each(|line| text += &format!("  {line}\n"));
        }
    };
    let positions = contents.positions.iter();
    let positions =
        positions.flat_map(|(source, at)| at.iter().map(move |(part, next)| format!("{source}: {part} at {next}")));
    part("positions", positions.collect());
    let nodes = contents.nodes.iter();
    part("state", nodes.map(|(name, node)| format!("{name}: {} keys, {} bytes", node.keys, node.bytes)).collect());
    part("files", contents.sinks.iter().map(|(sink, bytes)| format!("{sink}: {bytes} bytes")).collect());
    part("committed", contents.committed.iter().map(|(what, epoch)| format!("{what}: epoch {epoch}")).collect());
    let waiting = contents.outbox.iter().chain(&contents.offline);
    let waiting = waiting.map(|(what, pending)| {
        let (first, last) = pending.epochs.unwrap_or_default();
        format!("{what}: {} bytes of epochs {first} to {last}", pending.bytes)
    });
    part("decided, maybe not committed yet", waiting.collect());
    text
}
