//! One process of a job, from its options to its exit code.
//!
//! Nothing is touched before the port of `engine.http` is taken: two jobs that want the same one don't do each other any harm, and
//! whoever asks how the job is gets an answer while it starts, however long that takes.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context as _;

use super::place::{InCluster, digest, shifted};
use super::signals::Signals;
use super::summary_file::SummaryFile;
use super::watch::Watch;
use super::{Common, WrongOptions};
use crate::backfill;
use crate::checkpoint::{Place, Store};
use crate::cli;
use crate::cluster::{self, Joined, Membership, Shape};
use crate::display::Display;
use crate::http::{self, Features, Health};
use crate::metrics::catalogue::RESTARTS;
use crate::metrics::{self, Exporter};
use crate::plan::Plan;
use crate::runtime::board::Board;
use crate::runtime::job::{Job, Mode};
use crate::runtime::repeats::Wanted;
use crate::runtime::report::{self, Reporter};
use crate::summary::Summary;
use crate::topology::Topology;

/// What is to be run, and how.
pub(super) struct Drive<'a> {
    pub topology: Topology,
    /// The folder that the topology's relative paths start from.
    pub folder: PathBuf,
    pub mode: Mode,
    pub options: &'a Common,
    pub wanted: Wanted,
    /// This process's place among the job's; `None` if it is the only one.
    pub place: Option<InCluster>,
    /// The folder that a replay writes to.
    pub output: Option<PathBuf>,
}

impl Drive<'_> {
    /// Runs it to its end.
    ///
    /// # Errors
    /// Why it has failed. The summary's file, if there is one, then says so too.
    pub fn run(mut self) -> anyhow::Result<ExitCode> {
        let began = Instant::now();
        let shape = self.settle();
        let plan = Arc::new(self.plan()?);
        let health = Arc::new(report::health(&plan, shape));
        let exporter = metrics::install();
        let reporter = Reporter::new(&plan, exporter.clone());
        let online: Features = Arc::default();
        let _server = serve(&plan, shape, health.clone(), exporter, online.clone())?;
        if let Some(output) = &self.output {
            prepare(output, self.options.fresh)?;
        }
        let file = self.options.summary.as_ref().filter(|_| shape.is_coordinator());
        let file = file.map(|path| SummaryFile::at(path)).transpose()?;
        let signals = Signals::listen()?;
        let restarts = self.place.as_ref().and_then(|place| place.restarts.clone());
        if restarts.is_some() {
            signals.obey()?;
        }
        RESTARTS.of([]).set(restarts.as_ref().map_or(0, |restarts| restarts.count) as f64);
        let display = Display::new(&plan, self.mode != Mode::Live && shape.is_coordinator());
        let mut watch = Watch { plan: plan.clone(), signals, health, reporter, display, board: None, deadline: None };
        let options = self.options;
        let begun = |board: &Board| {
            if shape.is_coordinator() {
                _ = online.set(board.online.clone());
            }
        };
        match watch.through(self.start(plan.clone(), shape), begun) {
            Ok(_) if !shape.is_coordinator() => Ok(ExitCode::SUCCESS),
            Ok(summary) => {
                let summary = Summary { restarts, ..summary };
                watch.display.close();
                file.map_or(Ok(()), |file| file.write(&summary))?;
                match options.json {
                    true => cli::print_json(&summary)?,
                    false => cli::say(&summary.to_string()),
                }
                Ok(ExitCode::SUCCESS)
            }
            Err(error) => {
                let summary = Summary {
                    ended: "failed".into(),
                    error: Some(cli::with_causes(&error)),
                    exit_code: Some(cli::exit_code(&error)),
                    duration_seconds: began.elapsed().as_secs_f64(),
                    restarts,
                    ..watch.sum_up()
                };
                // What made the job fail is more than that nobody can read it there.
                if let Some(Err(error)) = file.map(|file| file.write(&summary)) {
                    tracing::error!(error = format!("{error:#}"), "no summary");
                }
                Err(error)
            }
        }
    }

    /// Has the options change the topology; gives how the workers are spread over processes.
    fn settle(&mut self) -> Shape {
        let Drive { topology, options, place, .. } = self;
        if let Some(workers) = options.workers {
            topology.engine.workers = workers;
        }
        if let Some(http) = &options.http {
            topology.engine.http = http.clone();
        }
        let (processes, process) = place.as_ref().map_or((1, 0), |place| (place.addresses.len(), place.process));
        let shape = Shape { processes, process, workers: topology.engine.workers };
        // From here on it is the number of all workers.
        topology.engine.workers = topology.engine.workers.saturating_mul(processes);
        if place.as_ref().is_some_and(|place| place.restarts.is_some()) {
            topology.engine.http = shifted(&topology.engine.http, process);
        }
        shape
    }

    /// What runs. The file was right when it was read: what is wrong now, the options have brought.
    fn plan(&self) -> Result<Plan, WrongOptions> {
        Plan::or_line(&self.topology, &self.folder).map_err(WrongOptions)
    }

    /// What starts the job; it waits for other processes, for brokers and for stores.
    fn start(self, plan: Arc<Plan>, shape: Shape) -> impl FnOnce() -> anyhow::Result<Job> + Send + 'static {
        let Drive { mut topology, mode, mut wanted, place, .. } = self;
        topology.engine.workers = shape.workers;
        let restarts = place.as_ref().and_then(|place| place.restarts.as_ref());
        // What a start forgets it forgets once.
        let is_first = restarts.is_none_or(|restarts| restarts.count == 0);
        let forget = self.options.fresh && shape.is_coordinator() && is_first;
        // Nor does it lose more than it was once allowed to.
        wanted.allow_gap.retain(|_| is_first);
        move || {
            if forget {
                Store::forget(&Place::of(&plan.engine, &plan.folder)?)?;
            }
            if shape.is_coordinator() && !wanted.backfill.is_empty() {
                backfill::fill(&topology, &plan.folder, &wanted.backfill)?;
            }
            let joined = match place.filter(|_| shape.processes > 1) {
                None => Joined::default(),
                Some(InCluster { addresses, secret, start_timeout, .. }) => {
                    let runs = digest(&plan)?;
                    tracing::info!(shape.process, shape.processes, "waiting for the other processes");
                    cluster::join(&Membership { shape, addresses, secret, start_timeout, runs })?
                }
            };
            match shape.is_coordinator() {
                true => Job::start(plan, mode, &wanted, shape, joined),
                false => Job::start_member(plan, shape, joined),
            }
        }
    }
}

/// Serves metrics and health, and what the job has to serve when it has it, unless the address is `off`.
fn serve(
    plan: &Plan,
    shape: Shape,
    health: Arc<Health>,
    exporter: Exporter,
    online: Features,
) -> anyhow::Result<Option<http::Server>> {
    if plan.engine.http == "off" {
        return Ok(None);
    }
    let about = serde_json::json!({ "job": plan.name, "topology": plan.hash });
    let state = shape.is_coordinator().then(|| Place::of(&plan.engine, &plan.folder)).transpose()?;
    let serve = http::Serve { health, exporter, online, state, about: Box::new(move || about.clone()) };
    let server = http::start(&plan.engine.http, serve)?;
    tracing::info!(address = %server.address(), "serving metrics, health and features");
    Ok(Some(server))
}

/// Makes the folder that a replay writes to. A fresh start removes what an earlier replay wrote: its state, its outputs, its
/// tables, and nothing else.
fn prepare(output: &Path, fresh: bool) -> anyhow::Result<()> {
    for name in ["state", "sinks", "offline"] {
        let folder = output.join(name);
        if fresh && folder.exists() {
            std::fs::remove_dir_all(&folder).with_context(|| format!("remove {}", folder.display()))?;
        }
    }
    std::fs::create_dir_all(output)
        .with_context(|| format!("{} can't be the folder for the output (--out)", output.display()))
}
