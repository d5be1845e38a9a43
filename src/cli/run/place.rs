//! Which process of a job this one is: what the command line, the topology and the supervisor say about it together.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;

use super::{Live, WrongOptions};
use crate::plan::Plan;
use crate::supervisor::{self, Restarts};
use crate::topology::Topology;

/// What a process of a job is told about its place.
pub(super) struct InCluster {
    /// Its number.
    pub process: usize,
    /// Where each process listens.
    pub addresses: Vec<String>,
    /// What all of them know.
    pub secret: String,
    /// How long to wait for the others.
    pub start_timeout: Duration,
    /// How often its supervisor has started the job again, and why; `None` without one.
    pub restarts: Option<Restarts>,
}

/// What this process is for.
pub(super) enum Placed {
    /// It starts so many others.
    Supervisor(usize),
    /// It is one process of a job of several, or the whole job.
    Process(Option<InCluster>),
}

impl Placed {
    /// What this process is for.
    ///
    /// # Errors
    /// If command line and topology don't agree.
    pub fn of(topology: &Topology, options: &Live) -> anyhow::Result<Placed> {
        let refuse = |why: String| Err(WrongOptions(why).into());
        let cluster = topology.engine.cluster.as_ref();
        if let (Some(processes), Some(supervised)) = (options.processes, supervisor::Place::of_this_process()?) {
            let supervisor::Place { process, addresses, secret, restarts } = supervised;
            anyhow::ensure!(addresses.len() == usize::from(processes), "{} is of another job", supervisor::VARIABLE);
            let start_timeout = SUPERVISED_START_TIMEOUT;
            let place = InCluster { process, addresses, secret, start_timeout, restarts: Some(restarts) };
            return Ok(Placed::Process(Some(place)));
        }
        match (options.processes, options.process, cluster) {
            (Some(_), _, Some(_)) => refuse(
                "--processes is for one machine, and the topology names hosts (engine.cluster): use --process on each"
                    .into(),
            ),
            (Some(processes), _, None) => Ok(Placed::Supervisor(processes.into())),
            (None, Some(_), None) => {
                refuse("--process needs the addresses of all processes (engine.cluster.hosts)".into())
            }
            (None, None, Some(cluster)) => refuse(format!(
                "the topology names {} hosts (engine.cluster): say which one this is, --process 0 to {}",
                cluster.hosts.len(),
                cluster.hosts.len() - 1
            )),
            (None, Some(process), Some(cluster)) if process >= cluster.hosts.len() => refuse(format!(
                "there is no process {process}: the topology names {} hosts (engine.cluster.hosts), the first is 0",
                cluster.hosts.len()
            )),
            (None, Some(process), Some(cluster)) => Ok(Placed::Process(Some(InCluster {
                process,
                addresses: cluster.hosts.clone(),
                secret: cluster.secret.0.clone(),
                start_timeout: cluster.start_timeout.duration(),
                restarts: None,
            }))),
            (None, None, None) => Ok(Placed::Process(None)),
        }
    }

    /// How many processes the job has.
    pub fn processes(&self) -> usize {
        match self {
            Placed::Supervisor(processes) => *processes,
            Placed::Process(place) => place.as_ref().map_or(1, |place| place.addresses.len()),
        }
    }
}

/// How long the processes of one machine wait for each other.
const SUPERVISED_START_TIMEOUT: Duration = Duration::from_secs(60);

/// A digest of what runs: all processes of a job run the same program, topology and models.
pub(super) fn digest(plan: &Plan) -> anyhow::Result<[u8; 32]> {
    let mut digest = ring::digest::Context::new(&ring::digest::SHA256);
    digest.update(plan.hash.as_bytes());
    for model in &plan.models {
        digest.update(&std::fs::read(&model.path).with_context(|| format!("read {}", model.path.display()))?);
    }
    let program = std::env::current_exe().context("find this program")?;
    sample(&program, &mut digest).with_context(|| format!("read {}", program.display()))?;
    Ok(digest.finish().as_ref().try_into().expect("SHA-256 has 32 bytes"))
}

/// Adds a program to a digest: its length, and pieces from everywhere in it. Another build differs in them, and reading all of
/// a large program would take as long as the rest of a start.
fn sample(program: &Path, digest: &mut ring::digest::Context) -> std::io::Result<()> {
    const PIECES: u64 = 64;
    let file = std::fs::File::open(program)?;
    let length = file.metadata()?.len();
    digest.update(&length.to_be_bytes());
    let mut piece = vec![0; 16 << 10];
    for number in 0..PIECES {
        let read = file.read_at(&mut piece, length / PIECES * number)?;
        digest.update(&piece[..read]);
    }
    Ok(())
}

/// The address of /metrics of process `process` on a machine that has all of them.
pub(super) fn shifted(address: &str, process: usize) -> String {
    let parsed = address.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse::<u16>().ok()?)));
    match parsed {
        Some((host, port)) if port > 0 => format!("{host}:{}", port.saturating_add(process as u16)),
        _ => address.to_string(),
    }
}
