//! What the caller's thread does while a job starts, runs and closes its books: it hears signals and looks at the clock.
//!
//! ```text
//! watching:  ── start ──────────────────▶ run ──────────────▶ close ───────────────────────────▶ summary
//! elsewhere: other processes,             workers, lanes,     last rows of the slow lane,
//!            checkpoint, sinks, workers   connectors          last checkpoint, commits of tables
//! a signal:  ends it                      stops it, and has it close within `engine.shutdown_timeout`
//! another:                                ends it             ends it
//! ```
//! What may wait for somebody (a broker, a disk, another process) does so on a thread of its own, so that it is cut short at once.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use crossbeam_channel::{Receiver, bounded};

use super::signals::Signals;
use crate::display::Display;
use crate::http::health::Health;
use crate::plan::Plan;
use crate::runtime::board::Board;
use crate::runtime::job::Job;
use crate::runtime::report::Reporter;
use crate::summary::Summary;

/// How often signals, clock and job are looked at.
const LOOK: Duration = Duration::from_millis(20);
/// What a thread may have that does the work of the program's first one: as much as that.
const STACK_BYTES: usize = 8 << 20;

/// The job did not come to a good end because somebody wanted it to end at once, or it took too long.
#[derive(Debug, thiserror::Error)]
pub(in crate::cli) enum Stopped {
    /// There is nothing to finish.
    #[error("stopped before the job had started")]
    Starting,
    /// There was.
    #[error("stopped before the records in flight were finished; the next start repeats them")]
    InFlight,
}

/// Watches a job.
pub(super) struct Watch {
    pub plan: Arc<Plan>,
    pub signals: Signals,
    pub health: Arc<Health>,
    pub reporter: Reporter,
    pub display: Display,
    /// What the job's threads share, from its start on.
    pub board: Option<Board>,
    /// When a job that stops or fails is ended.
    pub deadline: Option<Instant>,
}

impl Watch {
    /// Watches a job from its start, of which `begun` is told, to its end.
    ///
    /// # Errors
    /// Why it has failed, or [`Stopped`].
    pub fn through(
        &mut self,
        start: impl FnOnce() -> anyhow::Result<Job> + Send + 'static,
        begun: impl FnOnce(&Board),
    ) -> anyhow::Result<Summary> {
        let starting = beside("start", start)?;
        let mut job = loop {
            match result(&starting) {
                Some(started) => break started?,
                None if self.signals.received() > 0 => return Err(Stopped::Starting.into()),
                None => {}
            }
        };
        let board = self.board.insert(job.board().clone()).clone();
        (0..self.plan.models.len()).for_each(|model| self.health.set_loaded(model));
        begun(&board);
        self.health.set_running();
        while !job.ended() {
            job.look_after();
            self.display.show(&job);
            self.look(&board)?;
            std::thread::sleep(LOOK);
        }
        let closing = beside("close", move || job.finish())?;
        loop {
            if let Some(ended) = result(&closing) {
                return ended;
            }
            self.look(&board)?;
        }
    }

    /// What the job has done so far.
    pub fn sum_up(&self) -> Summary {
        let nothing = || Summary { job: self.plan.name.clone(), ..Summary::default() };
        self.board.as_ref().map_or_else(nothing, |board| board.sum_up(&self.plan))
    }

    /// Reports how the job stands, and stops it when it is to stop.
    fn look(&mut self, board: &Board) -> anyhow::Result<()> {
        board.report_steps(&self.health);
        self.reporter.report(board, &self.health);
        let signals = self.signals.received();
        if signals > 0 {
            board.drain();
        }
        // Another process may have been told to stop.
        if self.deadline.is_none() && (board.is_draining() || board.is_failing()) {
            let timeout = self.plan.engine.shutdown_timeout;
            tracing::info!(%timeout, "stopping: finishing the records in flight");
            self.health.set_draining();
            self.deadline = Some(Instant::now() + timeout.duration());
        }
        let is_late = self.deadline.is_some_and(|deadline| Instant::now() > deadline);
        match is_late || signals > 1 {
            true => Err(board.failures.first().unwrap_or_else(|| Stopped::InFlight.into())),
            false => Ok(()),
        }
    }
}

/// Where what came of something arrives.
type Outcome<T> = Receiver<anyhow::Result<T>>;

/// Does something on a thread of its own, which nobody waits for.
fn beside<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<Outcome<T>> {
    let (done, outcome) = bounded(1);
    // Nobody waits any more if the process is ending.
    let run = move || drop(done.send(work()));
    let thread = std::thread::Builder::new().name(name.into()).stack_size(STACK_BYTES).spawn(run);
    thread.with_context(|| format!("start the thread `{name}`"))?;
    Ok(outcome)
}

/// What has come of it, if it has come within a look. A panic of the thread, of which nothing comes, is ending the process.
fn result<T>(outcome: &Outcome<T>) -> Option<anyhow::Result<T>> {
    outcome.recv_timeout(LOOK).ok()
}
