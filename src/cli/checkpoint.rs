//! `millstream checkpoint`: what a job's state folder holds, and whether it is whole; savepoints. Works beside a running job.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::{Run, print, print_json};
use crate::checkpoint::report::{self, Contents, Listed, Which};
use crate::checkpoint::savepoint::{self, SavepointError};
use crate::checkpoint::{CheckpointError, Place, export};
use crate::topology::Engine;

/// Lists, inspects and verifies the checkpoints of a job, and keeps some as savepoints.
#[derive(Debug, Args)]
pub(super) struct Checkpoint {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Lists the checkpoints that are kept and the savepoints, the oldest first.
    List(Where),
    /// Says what stands in a checkpoint: positions, the state of each node, what waits to be committed.
    Inspect(One),
    /// Reads every byte of a checkpoint and holds it against its checksums; exit code 5 if it is damaged.
    Verify(One),
    /// Keeps the newest checkpoint under a name, until it is deleted: a savepoint.
    Save(Named),
    /// Copies a checkpoint with all that it needs to another folder or bucket, and holds every byte against its checksum on
    /// the way. A job starts from there with `--from`, or has it as `engine.state`.
    Export(Export),
    /// Deletes a savepoint. The job removes what only it needed.
    Delete(Named),
}

#[derive(Debug, Args)]
struct Where {
    /// The topology file, or the place of the job's state: a folder, or `s3://bucket/prefix`.
    path: PathBuf,
    /// Prints JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct One {
    #[command(flatten)]
    at: Where,
    /// The checkpoint's epoch; the newest by default.
    #[arg(long, conflicts_with = "name")]
    epoch: Option<u64>,
    /// The savepoint of this name.
    #[arg(long)]
    name: Option<String>,
}

#[derive(Debug, Args)]
struct Export {
    #[command(flatten)]
    one: One,
    /// A folder, or `s3://bucket/prefix`, where no job's state is yet.
    to: String,
}

#[derive(Debug, Args)]
struct Named {
    #[command(flatten)]
    at: Where,
    /// The savepoint's name.
    name: String,
}

impl Run for Checkpoint {
    fn run(self) -> anyhow::Result<ExitCode> {
        match self.what {
            What::List(at) => at.list()?,
            What::Inspect(one) => one.inspect()?,
            What::Verify(one) => one.verify()?,
            What::Export(export) => export.export()?,
            What::Save(named) => named.save()?,
            What::Delete(named) => named.delete()?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Where {
    fn place(&self) -> anyhow::Result<Place> {
        if self.path.is_dir() {
            return Ok(Place::folder(&self.path));
        }
        if self.is_url() {
            let state = self.path.to_string_lossy().into_owned();
            return Ok(Place::of(&Engine { state, ..Engine::default() }, Path::new(""))?);
        }
        let (topology, folder) = super::load(&self.path)?;
        Ok(Place::of(&topology.engine, &folder)?)
    }

    fn is_url(&self) -> bool {
        self.path.starts_with("s3:")
    }

    /// How stores are reached: as the topology says, if it is one.
    fn engine(&self) -> anyhow::Result<Engine> {
        match self.path.is_dir() || self.is_url() {
            true => Ok(Engine::default()),
            false => Ok(super::load(&self.path)?.0.engine),
        }
    }

    fn list(&self) -> anyhow::Result<()> {
        let place = self.place()?;
        let mut all = report::list(&place)?;
        all.extend(savepoint::list(&place)?);
        anyhow::ensure!(!all.is_empty(), nothing(&place));
        self.say(&all, || all.iter().map(line).collect())
    }

    /// Prints a result as JSON or for a person.
    fn say(&self, result: &impl serde::Serialize, text: impl FnOnce() -> String) -> anyhow::Result<()> {
        if self.json { print_json(result) } else { Ok(print(&text())?) }
    }
}

impl One {
    fn which(&self) -> Which<'_> {
        match (&self.name, self.epoch) {
            (Some(name), _) => Which::Named(name),
            (None, Some(epoch)) => Which::Epoch(epoch),
            (None, None) => Which::Newest,
        }
    }

    /// What stands in the checkpoint that is asked for.
    fn contents(&self) -> anyhow::Result<Contents> {
        let place = self.at.place()?;
        match report::read(&place, self.which())? {
            Some(contents) => Ok(contents),
            None => Err(missing(&place, self.which())?),
        }
    }

    fn inspect(&self) -> anyhow::Result<()> {
        let contents = self.contents()?;
        self.at.say(&contents, || text(&contents))
    }

    fn verify(&self) -> anyhow::Result<()> {
        let Contents { listed, .. } = self.contents()?;
        self.at.say(&listed, || format!("whole: {}", line(&listed)))
    }
}

impl Export {
    fn export(&self) -> anyhow::Result<()> {
        let Export { one, to } = self;
        let (from, which) = (one.at.place()?, one.which());
        let target = Place::of(&Engine { state: to.clone(), ..one.at.engine()? }, Path::new(""))?;
        let Some(exported) = export(&from, which, &target)? else { return Err(missing(&from, which)?) };
        one.at.say(&exported, || format!("exported to {}: {}", target.name(), line(&exported)))
    }
}

impl Named {
    fn save(&self) -> anyhow::Result<()> {
        let saved = savepoint::save(&self.at.place()?, &self.name)?;
        self.at.say(&saved, || format!("saved: {}", line(&saved)))
    }

    fn delete(&self) -> anyhow::Result<()> {
        savepoint::delete(&self.at.place()?, &self.name)?;
        self.at.say(&serde_json::json!({ "deleted": self.name }), || format!("deleted: savepoint `{}`\n", self.name))
    }
}

fn nothing(place: &Place) -> String {
    format!("{}: no job has kept its state here", place.name())
}

/// Says that a checkpoint is not there, and which are.
fn missing(place: &Place, which: Which<'_>) -> Result<anyhow::Error, CheckpointError> {
    let there = report::list(place)?;
    Ok(match which {
        Which::Named(name) => SavepointError::missing(place, name)?.into(),
        Which::Epoch(epoch) if !there.is_empty() => {
            let epochs: Vec<String> = there.iter().map(|listed| listed.epoch.to_string()).collect();
            anyhow::anyhow!("there is no checkpoint of epoch {epoch}; there are: {}", epochs.join(", "))
        }
        Which::Epoch(_) | Which::Newest => anyhow::anyhow!(nothing(place)),
    })
}

fn line(listed: &Listed) -> String {
    let Listed { name, number, epoch, job, generation, written, files, bytes } = listed;
    let name = name.as_ref().map(|name| format!("savepoint `{name}`, ")).unwrap_or_default();
    let written = crate::online::time_text(*written as i64 * 1_000);
    format!(
        "{name}{number}: epoch {epoch} of job {job}, start {generation}, written {written}: {files} files, {bytes} bytes\n"
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
