//! `millstream run` and `millstream replay`: run a topology, live or on its history.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};

use crate::checkpoint::{Place, Store};
use crate::cluster::{self, Joined, Membership, Shape};
use crate::display::Display;
use crate::http::{self, health::Health};
use crate::metrics::Exporter;
use crate::metrics::catalogue::RESTARTS;
use crate::plan::Plan;
use crate::replay::Pace;
use crate::runtime::job::{Job, Mode};
use crate::runtime::repeats::Wanted;
use crate::runtime::report::{self, Reporter};
use crate::summary::Summary;
use crate::supervisor;
use crate::topology::Topology;
use place::{InCluster, Misplaced, Placed, digest, shifted};

pub(super) mod place;

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
    /// Lets a start write outputs again that are in topics and tables already: those since the savepoint.
    #[arg(long)]
    allow_repeat: bool,
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

fn run(topology: Topology, folder: PathBuf, options: &Live) -> anyhow::Result<ExitCode> {
    let Live { common, from, allow_repeat, .. } = options;
    let wanted = Wanted { from: from.clone(), allow_repeat: *allow_repeat, allow_drop: common.allow_drop.clone() };
    let mode = if topology.is_bounded() { Mode::Bounded(Pace::Fastest) } else { Mode::Live };
    let placed = Placed::of(&topology, options)?;
    if let (Mode::Bounded(_), true) = (mode, placed.processes() > 1) {
        return Err(Misplaced("all sources of this topology are files: one process reads them".into()).into());
    }
    match placed {
        Placed::Supervisor(processes) => supervise(processes),
        Placed::Process(place) => drive(topology, folder, mode, common, &wanted, place),
    }
}

fn supervise(processes: usize) -> anyhow::Result<ExitCode> {
    let signals = Signals::listen()?;
    signals.started();
    let code = supervisor::supervise(processes, &|| signals.received())?;
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}

fn replay(topology: Topology, folder: PathBuf, options: &Replay) -> anyhow::Result<ExitCode> {
    let out = std::path::absolute(&options.out).context("find the folder for the output")?;
    if options.common.fresh && out.exists() {
        remove_output(&out)?;
    }
    std::fs::create_dir_all(&out)
        .with_context(|| format!("{} can't be the folder for the output (--out)", out.display()))?;
    let pace = options.speed.map_or(Pace::Fastest, Pace::Lapse);
    let wanted = Wanted { allow_drop: options.common.allow_drop.clone(), ..Wanted::default() };
    drive(topology.on_history(&out), folder, Mode::Bounded(pace), &options.common, &wanted, None)
}

/// Removes what an earlier replay wrote: its state, its outputs, its tables, and nothing else.
fn remove_output(out: &Path) -> anyhow::Result<()> {
    for name in ["state", "sinks", "offline"] {
        let folder = out.join(name);
        if folder.exists() {
            std::fs::remove_dir_all(&folder).with_context(|| format!("remove {}", folder.display()))?;
        }
    }
    Ok(())
}

fn drive(
    mut topology: Topology,
    folder: PathBuf,
    mode: Mode,
    args: &Common,
    wanted: &Wanted,
    place: Option<InCluster>,
) -> anyhow::Result<ExitCode> {
    if let Some(workers) = args.workers {
        topology.engine.workers = workers;
    }
    if let Some(http) = &args.http {
        topology.engine.http = http.clone();
    }
    let (processes, process) = place.as_ref().map_or((1, 0), |place| (place.addresses.len(), place.process));
    let shape = Shape { processes, process, workers: topology.engine.workers };
    // From here on it is the number of all workers.
    topology.engine.workers = topology.engine.workers.saturating_mul(processes);
    let restarts = place.as_ref().and_then(|place| place.restarts);
    if restarts.is_some() {
        topology.engine.http = shifted(&topology.engine.http, process);
    }
    let plan = Plan::new(&topology, &folder).map_err(|errors| {
        let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
        anyhow::anyhow!("{}: {}", topology.name, errors.join("; "))
    })?;
    let plan = Arc::new(plan);
    // What a start forgets it forgets once.
    if args.fresh && shape.is_coordinator() && restarts.unwrap_or(0) == 0 {
        Store::forget(&Place::of(&plan.engine, &plan.folder)?)?;
    }
    if let Some(path) = args.summary.as_ref().filter(|_| shape.is_coordinator()) {
        // Hours of work should not end with a path that can't be written.
        let opened = std::fs::OpenOptions::new().create(true).append(true).open(path);
        opened.with_context(|| format!("{} can't be written (--summary)", path.display()))?;
    }
    let signals = Signals::listen()?;
    let exporter = crate::metrics::install();
    let health = Arc::new(report::health(&plan, shape));
    let mut reporter = Reporter::new(&plan, exporter.clone());
    if restarts.is_some() {
        signals.obey()?;
    }
    RESTARTS.of([]).set(restarts.unwrap_or(0) as f64);
    let joined = match place.filter(|_| processes > 1) {
        None => Joined::default(),
        Some(InCluster { addresses, secret, start_timeout, .. }) => {
            let runs = digest(&plan)?;
            tracing::info!(process, processes, "waiting for the other processes");
            cluster::join(&Membership { shape, addresses, secret, start_timeout, runs })?
        }
    };
    let mut job = match shape.is_coordinator() {
        true => Job::start(plan.clone(), mode, wanted, shape, joined)?,
        false => Job::start_member(plan.clone(), shape, joined)?,
    };
    signals.started();
    let _server = serve(&plan, &job, &health, exporter)?;
    (0..plan.models.len()).for_each(|model| health.set_loaded(model));
    health.set_running();
    let mut display = Display::new(&plan, mode != Mode::Live && shape.is_coordinator());
    let mut deadline = None;
    while !job.ended() {
        job.look_after();
        reporter.report(job.board(), &health);
        job.heartbeats(&health);
        display.show(&job);
        if signals.received() > 0 && deadline.is_none() {
            tracing::info!(timeout = %plan.engine.shutdown_timeout, "stopping: finishing the records in flight");
            job.stop();
            health.set_draining();
            deadline = Some(Instant::now() + plan.engine.shutdown_timeout.duration());
        }
        if job.failing() && deadline.is_none() {
            health.set_draining();
            deadline = Some(Instant::now() + plan.engine.shutdown_timeout.duration());
        }
        if deadline.is_some_and(|deadline| Instant::now() > deadline) || signals.received() > 1 {
            if let Some(error) = job.failure() {
                return Err(error);
            }
            tracing::error!("stopped before the records in flight were finished; the next start repeats them");
            return Ok(ExitCode::from(STOPPED as u8));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let summary = job.finish()?;
    display.close();
    if shape.is_coordinator() {
        finish(&summary, args)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Serves metrics, health and features, unless the address is `off`.
fn serve(plan: &Plan, job: &Job, health: &Arc<Health>, exporter: Exporter) -> anyhow::Result<Option<http::Server>> {
    if plan.engine.http == "off" {
        return Ok(None);
    }
    let about = serde_json::json!({ "job": plan.name, "topology": plan.hash });
    let here = job.board().shape.is_coordinator();
    let serve = http::Serve {
        health: health.clone(),
        exporter,
        online: here.then(|| job.board().online.clone()),
        state: here.then(|| Place::of(&plan.engine, &plan.folder)).transpose()?,
        about: Box::new(move || about.clone()),
    };
    let server = http::start(&plan.engine.http, serve)?;
    tracing::info!(address = %server.address(), "serving metrics, health and features");
    Ok(Some(server))
}

fn finish(summary: &Summary, args: &Common) -> anyhow::Result<()> {
    if let Some(path) = &args.summary {
        let text = serde_json::to_string_pretty(summary).context("write the summary as JSON")?;
        std::fs::write(path, text).with_context(|| format!("write the summary to {}", path.display()))?;
    }
    match args.json {
        true => super::print_json(summary),
        false => {
            super::say(&summary.to_string());
            Ok(())
        }
    }
}

/// The exit code of a job that was stopped before its records were finished.
const STOPPED: i32 = 143;

/// Counts SIGTERM and SIGINT. Before the job has started there is nothing to finish: a signal ends the process.
struct Signals {
    received: Arc<AtomicU8>,
    started: Arc<AtomicBool>,
}

/// Counts a request to stop.
fn count(received: &AtomicU8, started: &AtomicBool) {
    if !started.load(Ordering::Acquire) {
        tracing::info!("stopped before the job had started");
        std::process::exit(STOPPED);
    }
    received.fetch_add(1, Ordering::AcqRel);
}

impl Signals {
    fn listen() -> anyhow::Result<Signals> {
        use tokio::signal::unix::{SignalKind, signal};
        let received = Arc::new(AtomicU8::new(0));
        let started = Arc::new(AtomicBool::new(false));
        let (counted, running) = (received.clone(), started.clone());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let listen = move || {
            runtime.block_on(async move {
                let (Ok(mut term), Ok(mut interrupt)) =
                    (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
                else {
                    return;
                };
                loop {
                    tokio::select! { _ = term.recv() => {}, _ = interrupt.recv() => {} }
                    count(&counted, &running);
                }
            })
        };
        std::thread::Builder::new().name("signals".into()).spawn(listen).context("start the signals' thread")?;
        Ok(Signals { received, started })
    }

    /// Counts what the supervisor says as well.
    fn obey(&self) -> anyhow::Result<()> {
        let (counted, running) = (self.received.clone(), self.started.clone());
        supervisor::obey(move || count(&counted, &running))
    }

    fn started(&self) {
        self.started.store(true, Ordering::Release);
    }

    fn received(&self) -> u8 {
        self.received.load(Ordering::Acquire)
    }
}
