//! `millstream run` and `millstream replay`: run a topology, live or on its history.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};

use crate::backfill::{self, BackfillError};
use crate::replay::Pace;
use crate::runtime::job::Mode;
use crate::runtime::repeats::Wanted;
use crate::sources::SourceError;
use crate::summary::Summary;
use crate::supervisor::{self, Restarts};
use crate::topology::Topology;
use drive::Drive;
use place::Placed;
use signals::Signals;
use summary_file::SummaryFile;

mod drive;
mod place;
pub(super) mod signals;
mod summary_file;
mod watch;

pub(super) use watch::Stopped;

/// Options that `run` and `replay` share.
#[derive(Debug, Args)]
pub struct Common {
    /// Worker threads; overrides the topology's `engine.workers`.
    #[arg(long)]
    workers: Option<usize>,
    /// Address of /metrics and the other pages; overrides the topology's `engine.http`. `off` serves nothing.
    #[arg(long, value_name = "ADDRESS")]
    http: Option<String>,
    /// Forgets the state of earlier runs and starts anew.
    #[arg(long)]
    fresh: bool,
    /// Lets go of what the checkpoint has of this node, which the topology no longer has or defines otherwise: `card` or
    /// `features.card`. May be given again.
    #[arg(long, value_name = "NODE")]
    allow_drop: Vec<String>,
    /// Writes what the run did to this file, as JSON.
    #[arg(long, value_name = "FILE")]
    summary: Option<PathBuf>,
    /// Prints what the run did as JSON.
    #[arg(long)]
    json: bool,
}

/// Runs a topology until it is stopped (SIGTERM, SIGINT) or its input ends.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// The topology file.
    file: PathBuf,
    #[command(flatten)]
    live: Live,
}

/// What `run` needs besides a topology.
#[derive(Debug, Args)]
pub struct Live {
    #[command(flatten)]
    common: Common,
    /// Goes on from a savepoint of this name, or from the newest checkpoint in a folder (`./folder`) or at
    /// `s3://bucket/prefix`, instead of from the job's newest checkpoint. A job that has been started from there once goes on.
    #[arg(long, value_name = "SAVEPOINT")]
    from: Option<String>,
    /// Has this feature group, which the checkpoint lacks or has otherwise, begin with the records that the job has read before
    /// and its topics still hold, instead of empty: `card` or `features.card`. They are read first, which may take a while:
    /// `millstream backfill` does most of it while the job still runs. May be given again.
    #[arg(long, value_name = "GROUP", conflicts_with = "from")]
    backfill: Vec<String>,
    /// Lets a start write outputs again that are in topics and tables already: those since the savepoint, or the older checkpoint.
    #[arg(long)]
    allow_repeat: bool,
    /// Lets a start whose newest checkpoint is damaged go on from the newest one that is whole, a savepoint as well. Without
    /// `--allow-repeat` only if no output is known to have been committed since.
    #[arg(long)]
    allow_older: bool,
    /// Lets this start of a source go on without records that are gone: removed before they were read, or of a topic that was
    /// made anew since. May be given again. The next start is not allowed to.
    #[arg(long, value_name = "SOURCE")]
    allow_gap: Vec<String>,
    /// Runs the job as N processes on this machine, and starts them again when one of them ends before its time. They serve
    /// /metrics at the ports from `engine.http` on.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64), conflicts_with = "process")]
    processes: Option<u16>,
    /// Runs process I of a job whose topology names the hosts of all of them (`engine.cluster`). The first is process 0.
    #[arg(long, value_name = "I")]
    process: Option<usize>,
}

/// Runs a topology on the history of its sources, in event-time order, without a broker.
#[derive(Debug, Args)]
pub struct ReplayArgs {
    /// The topology file.
    file: PathBuf,
    #[command(flatten)]
    replay: Replay,
}

/// What `replay` needs besides a topology.
#[derive(Debug, Args)]
pub struct Replay {
    #[command(flatten)]
    common: Common,
    /// Folder for what the topology's Kafka sinks and offline tables would get, and for the replay's state.
    #[arg(long, value_name = "FOLDER", default_value = "replay")]
    out: PathBuf,
    /// How many times faster than the events happened; as fast as possible by default.
    #[arg(long, value_name = "FACTOR", value_parser = super::speed)]
    speed: Option<f64>,
}

impl super::Run for RunArgs {
    fn run(self) -> anyhow::Result<ExitCode> {
        let (topology, folder) = super::load(&self.file)?;
        run(topology, folder, &self.live)
    }
}

impl super::Run for ReplayArgs {
    fn run(self) -> anyhow::Result<ExitCode> {
        let (topology, folder) = super::load(&self.file)?;
        replay(topology, folder, &self.replay)
    }
}

/// The command line of a program that holds its topology.
#[derive(Debug, Parser)]
struct Holder {
    #[command(subcommand)]
    command: Held,
}

#[derive(Debug, Subcommand)]
enum Held {
    /// Runs the topology until it is stopped (SIGTERM, SIGINT) or its input ends.
    Run(Live),
    /// Runs the topology on the history of its sources, in event-time order, without a broker.
    Replay(Replay),
}

/// Runs a topology built in Rust: the program's arguments are the commands `run` and `replay` with their options, and no
/// file. Relative paths start from `folder`.
///
/// # Errors
/// As the commands of `millstream`.
pub fn run_built(topology: Topology, folder: &Path) -> anyhow::Result<ExitCode> {
    match Holder::parse().command {
        Held::Run(options) => run(topology, folder.to_path_buf(), &options),
        Held::Replay(options) => replay(topology, folder.to_path_buf(), &options),
    }
}

/// The command line is wrong, or does not go with the topology.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct WrongOptions(String);

fn run(topology: Topology, folder: PathBuf, options: &Live) -> anyhow::Result<ExitCode> {
    let Live { common, from, allow_repeat, backfill, .. } = options;
    let wanted = Wanted {
        from: from.clone(),
        allow_repeat: *allow_repeat,
        allow_older: options.allow_older,
        allow_drop: common.allow_drop.clone(),
        backfill: backfill.clone(),
        allow_gap: sources(&topology, &options.allow_gap)?,
    };
    let mode = if topology.is_bounded() { Mode::Bounded(Pace::Fastest) } else { Mode::Live };
    if let (Mode::Bounded(_), false) = (mode, backfill.is_empty()) {
        return Err(BackfillError::Bounded.into());
    }
    let placed = Placed::of(&topology, options)?;
    if let (Mode::Bounded(_), true) = (mode, placed.processes() > 1) {
        return Err(WrongOptions("all sources of this topology are files: one process reads them".into()).into());
    }
    match placed {
        Placed::Supervisor(processes) => {
            // Before there are processes, which would wait for each other meanwhile.
            if !(backfill.is_empty() || common.fresh) {
                backfill::fill(&topology, &folder, backfill)?;
            }
            supervise(&topology.name, processes, common.summary.as_deref())
        }
        Placed::Process(place) => Drive { topology, folder, mode, options: common, wanted, place, output: None }.run(),
    }
}

/// The names of the sources that are `named`, with their section or without.
fn sources(topology: &Topology, named: &[String]) -> Result<Vec<String>, WrongOptions> {
    let name = |named: &String| {
        let name = named.strip_prefix("sources.").unwrap_or(named);
        let is_there = topology.sources.iter().any(|(source, _)| source == name);
        is_there
            .then(|| name.to_string())
            .ok_or_else(|| WrongOptions(format!("--allow-gap {named}: there is no such source")))
    };
    named.iter().map(name).collect()
}

/// Runs a job as several processes. Its summary is there in the end, whatever has become of the process that writes it.
fn supervise(job: &str, processes: usize, summary: Option<&Path>) -> anyhow::Result<ExitCode> {
    let began = Instant::now();
    let signals = Signals::listen()?;
    let file = summary.map(SummaryFile::at).transpose()?;
    let stamp = || file.as_ref().and_then(SummaryFile::stamp);
    let (mut before, mut restarts) = (None, Restarts::default());
    let ended = supervisor::supervise(processes, &|| signals.received(), &mut || before = stamp(), &mut restarts);
    let code = ended.as_ref().map_or(1, |end| u8::try_from(end.code).unwrap_or(1));
    if let Some(file) = file.as_ref().filter(|file| file.stamp().is_some() && file.stamp() == before) {
        let why = ended.as_ref().map_or_else(|error| format!("{error:#}"), |end| end.why.clone());
        file.write(&Summary {
            job: job.to_string(),
            ended: "failed".into(),
            error: Some(format!("{why}; it has left no summary")),
            exit_code: Some(code),
            duration_seconds: began.elapsed().as_secs_f64(),
            restarts: Some(restarts),
            ..Summary::default()
        })?;
    }
    ended.map(|_| ExitCode::from(code))
}

fn replay(topology: Topology, folder: PathBuf, options: &Replay) -> anyhow::Result<ExitCode> {
    if let Some(name) = topology.source_without_history() {
        return Err(SourceError::NoHistory { name: name.into() }.into());
    }
    let output = std::path::absolute(&options.out).context("find the folder for the output")?;
    let pace = options.speed.map_or(Pace::Fastest, Pace::Lapse);
    let drive = Drive {
        topology: topology.on_history(&output),
        folder,
        mode: Mode::Bounded(pace),
        options: &options.common,
        wanted: Wanted { allow_drop: options.common.allow_drop.clone(), ..Wanted::default() },
        place: None,
        output: Some(output),
    };
    drive.run()
}
