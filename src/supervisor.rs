//! `millstream run --processes N`: the processes of a job on this machine, started again together when one of them ends
//! before its time.
//!
//! ```text
//! supervisor ──stdin: "drain"──▶ process 0, 1 … N-1       each runs the same command line
//!            ◀──exit codes──────                          and learns its place from the environment
//! ```
//! A process that ends takes the others with it ([`cluster::LOST`]): the job goes on from its newest checkpoint when all are
//! started again. They are not if the exit code says that nothing would be different the next time. A process whose
//! supervisor is gone ends at once, so that a new supervisor finds none of them at work.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use crate::cluster::{self, handshake};
use crate::exit;

/// The environment variable that tells a process its place.
pub const VARIABLE: &str = "MILLSTREAM_PROCESS";
/// How long to wait before the first new start; twice as long before each further one.
const PAUSE_MIN: Duration = Duration::from_secs(1);
/// The longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// A job that has run so long begins again with the shortest pause.
const GOOD_RUN: Duration = Duration::from_secs(60);
/// How long the others may take to end after one has failed. After one that has done its part they take what they need: the
/// first process has the last checkpoint to write and tables to commit when the others are done, and looks at the clock itself.
const GRACE: Duration = Duration::from_secs(5);
/// Ends of starts that are remembered: a job that fails at each start does so for years.
const ENDS_MAX: usize = 10;
/// How often processes and signals are looked at.
const LOOK: Duration = Duration::from_millis(20);
/// What a process is told that is to drain.
const DRAIN: u8 = b'd';
/// Exit codes after which nothing would be different: docs/exit_codes.md.
const FINAL: [i32; 5] = [0, 2, 3, 4, 5];

/// A process's place, as its supervisor tells it.
#[derive(Clone, Serialize, Deserialize)]
pub struct Place {
    /// Its number.
    pub process: usize,
    /// Where each process listens.
    pub addresses: Vec<String>,
    /// What all of them know.
    pub secret: String,
    /// The starts of the job before this one.
    pub restarts: Restarts,
}

/// How often a job was started again, and why.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Restarts {
    /// How often.
    pub count: u64,
    /// How the starts before ended: the newest, in their order.
    pub newest: VecDeque<End>,
}

impl Restarts {
    fn add(&mut self, end: End) {
        self.count += 1;
        self.newest.push_back(end);
        if self.newest.len() > ENDS_MAX {
            self.newest.pop_front();
        }
    }
}

/// How a start of a job ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct End {
    /// The exit code, as a shell tells it.
    pub code: i32,
    /// Which process ended how.
    pub why: String,
    /// How long the job had run.
    pub seconds: f64,
}

impl Place {
    /// The place of this process, if a supervisor has started it.
    ///
    /// # Errors
    /// If the environment variable says something else.
    pub fn of_this_process() -> anyhow::Result<Option<Place>> {
        let Ok(text) = std::env::var(VARIABLE) else { return Ok(None) };
        let place = serde_json::from_str(&text);
        place.map(Some).with_context(|| format!("{VARIABLE} is for the processes of `--processes`; unset it"))
    }
}

/// Hears what the supervisor says: calls `drain` when the job is to stop, and ends the process when the supervisor is gone.
///
/// # Errors
/// If the operating system refuses a thread.
pub fn obey(drain: impl Fn() + Send + 'static) -> anyhow::Result<()> {
    let listen = move || {
        let mut said = [0];
        while let Ok(1) = std::io::stdin().read(&mut said) {
            if said[0] == DRAIN {
                drain();
            }
        }
        tracing::error!("the supervisor is gone: this process ends as well");
        exit::now(cluster::LOST);
    };
    std::thread::Builder::new().name("supervisor".into()).spawn(listen).context("listen to the supervisor")?;
    Ok(())
}

/// Runs `processes` processes of this program with its own arguments until they are done, or will never be; gives how the last start
/// ended. `signals` counts the requests to stop, `starting` is called before each start, and `restarts` is kept.
///
/// # Errors
/// If a process can't be started.
pub fn supervise(
    processes: usize,
    signals: &dyn Fn() -> u8,
    starting: &mut dyn FnMut(),
    restarts: &mut Restarts,
) -> anyhow::Result<End> {
    let mut pause = PAUSE_MIN;
    loop {
        let started = Instant::now();
        starting();
        let (code, why) = Family::start(processes, restarts)?.watch(signals, GRACE);
        let end = End { code, why, seconds: started.elapsed().as_secs_f64() };
        if FINAL.contains(&code) || signals() > 0 {
            return Ok(end);
        }
        if started.elapsed() > GOOD_RUN {
            pause = PAUSE_MIN;
        }
        let why = end.why.as_str();
        tracing::warn!(code, why, seconds = pause.as_secs(), "the job has ended before its time and is started again");
        let paused = Instant::now();
        while paused.elapsed() < pause {
            if signals() > 0 {
                return Ok(end);
            }
            std::thread::sleep(LOOK);
        }
        restarts.add(end);
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// The processes of one start.
struct Family {
    members: Vec<Process>,
}

struct Process {
    child: Child,
    orders: UnixStream,
    status: Option<ExitStatus>,
    /// Whether it had to be killed: that it was says nothing about the job.
    killed: bool,
}

impl Family {
    fn start(processes: usize, restarts: &Restarts) -> anyhow::Result<Family> {
        let addresses = free_addresses(processes).context("find ports for the processes")?;
        let secret: String = handshake::fresh::<16>()?.iter().map(|byte| format!("{byte:02x}")).collect();
        let mut family = Family { members: Vec::new() };
        for process in 0..processes {
            let (addresses, secret) = (addresses.clone(), secret.clone());
            let place = Place { process, addresses, secret, restarts: restarts.clone() };
            let (orders, theirs) = UnixStream::pair().context("make a way to tell a process what to do")?;
            let mut command = Command::new(std::env::current_exe().context("find this program")?);
            command.args(std::env::args_os().skip(1)).env(VARIABLE, serde_json::to_string(&place)?);
            // In a group of its own a process does not hear Ctrl-C twice: from the terminal and from here.
            command.stdin(Stdio::from(OwnedFd::from(theirs))).process_group(0);
            let child = command.spawn().with_context(|| format!("start process {process}"))?;
            tracing::info!(process, pid = child.id(), restarts = restarts.count, "started");
            family.members.push(Process { child, orders, status: None, killed: false });
        }
        Ok(family)
    }

    /// Waits for all of them, tells them to drain, ends those that are left over some time after one has failed. Gives the job's
    /// exit code, and whose it is.
    fn watch(mut self, signals: &dyn Fn() -> u8, grace: Duration) -> (i32, String) {
        let (mut told, mut failed) = (0, None);
        loop {
            for (number, process) in self.members.iter_mut().enumerate().filter(|(_, process)| process.status.is_none())
            {
                process.status = process.child.try_wait().unwrap_or_else(|error| {
                    tracing::error!(process = number, %error, "a process can't be waited for");
                    None
                });
                if let Some(status) = process.status {
                    tracing::info!(process = number, %status, "ended");
                    if !status.success() {
                        failed.get_or_insert_with(Instant::now);
                    }
                }
            }
            if self.members.iter().all(|process| process.status.is_some()) {
                return self.end();
            }
            while told < signals() {
                told += 1;
                // Whoever does not hear it has ended.
                self.members.iter_mut().for_each(|process| _ = process.orders.write_all(&[DRAIN]));
            }
            if failed.is_some_and(|failed: Instant| failed.elapsed() > grace) {
                self.kill();
            }
            std::thread::sleep(LOOK);
        }
    }

    fn kill(&mut self) {
        for process in self.members.iter_mut().filter(|process| process.status.is_none()) {
            // Whoever can't be killed has ended.
            let _ended = process.child.kill();
            process.killed = true;
        }
    }

    /// What the processes' exit codes say about the job: what the coordinator says if it is done, else what one says that has
    /// not only lost another one.
    fn end(&self) -> (i32, String) {
        let speaks = |process: &Process, status: &ExitStatus| !process.killed || status.code().is_some();
        let said = self.members.iter().map(|process| process.status.filter(|status| speaks(process, status)));
        let said: Vec<(usize, ExitStatus)> = said.enumerate().filter_map(|(at, said)| Some((at, said?))).collect();
        let is_done = said.first().filter(|(process, status)| *process == 0 && status.success());
        let has_failed = |said: &&(usize, ExitStatus)| ![0, cluster::LOST].contains(&code(said.1));
        match is_done.or_else(|| said.iter().find(has_failed)) {
            Some((process, status)) => (code(*status), format!("process {process}: {status}")),
            None => (cluster::LOST, "the processes have lost each other".to_string()),
        }
    }
}

/// Processes outlive nobody who has started them.
impl Drop for Family {
    fn drop(&mut self) {
        self.kill();
        self.members.iter_mut().for_each(|process| _ = process.child.wait());
    }
}

/// An exit code, as a shell tells it.
fn code(status: ExitStatus) -> i32 {
    status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1)
}

/// Addresses of the loopback that nobody listens at.
fn free_addresses(count: usize) -> std::io::Result<Vec<String>> {
    let listeners: Vec<TcpListener> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<Result<_, _>>()?;
    listeners.iter().map(|listener| Ok(listener.local_addr()?.to_string())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A family of shells that do this.
    fn family(doing: &[&str]) -> Family {
        let members = doing.iter().map(|doing| {
            let (orders, theirs) = UnixStream::pair().unwrap();
            let mut command = Command::new("sh");
            command.args(["-c", doing]).stdin(Stdio::from(OwnedFd::from(theirs)));
            Process { child: command.spawn().unwrap(), orders, status: None, killed: false }
        });
        Family { members: members.collect() }
    }

    const SHORT: Duration = Duration::from_millis(100);

    #[test]
    fn who_is_done_hurries_nobody() {
        // The first process still has something to write.
        assert_eq!(family(&["sleep 1; exit 0", "exit 0", "exit 0"]).watch(&|| 0, SHORT).0, 0);
        let end = (7, "process 0: exit status: 7".to_string());
        assert_eq!(family(&["sleep 1; exit 7", "exit 0"]).watch(&|| 0, SHORT), end);
    }

    #[test]
    fn who_is_left_over_when_one_has_failed_is_ended_and_its_code_does_not_count() {
        let end = (2, "process 2: exit status: 2".to_string());
        assert_eq!(family(&["exec sleep 600", "exit 0", "exit 2"]).watch(&|| 0, SHORT), end);
        let end = (cluster::LOST, "the processes have lost each other".to_string());
        assert_eq!(family(&["exec sleep 600", "exit 8"]).watch(&|| 0, SHORT), end);
        let (code, why) = family(&["exit 8", "kill -KILL $$"]).watch(&|| 0, SHORT);
        assert!(code == 137 && why.starts_with("process 1: signal: 9"), "{why}");
    }

    #[test]
    fn all_are_told_to_drain() {
        let drains = "test \"$(head -c 1)\" = d";
        assert_eq!(family(&[drains, drains]).watch(&|| 1, SHORT).0, 0);
    }
}
