//! Drift signals on their way out: from the slow lane to the sinks that take them, on a thread of their own, so that a
//! slow sink never holds the slow lane.

use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, unbounded};
use millstream_operators::Batch;
use millstream_operators::operator::{Operator, Outputs};

use super::board::Board;
use super::output::Output;
use crate::checkpoint::Checkpoint;
use crate::plan::{From, Plan};

/// What the slow lane says.
pub enum Signal {
    /// Signals of an epoch.
    Rows(Batch),
    /// No more signals of the epoch will come.
    Close(u64),
}

/// The thread that writes drift signals.
pub struct Signals {
    sender: Sender<Signal>,
    thread: JoinHandle<()>,
}

/// How often deliveries are looked at.
const POLL: Duration = Duration::from_millis(5);

impl Signals {
    /// Opens the sinks that take drift signals and starts the thread.
    ///
    /// # Errors
    /// If a sink can't be opened.
    pub fn start(plan: &Plan, checkpoint: &Checkpoint, board: &Board, first_epoch: u64) -> anyhow::Result<Signals> {
        let mut outputs = Vec::new();
        for (index, sink) in plan.sinks.iter().enumerate().filter(|(_, sink)| sink.from == From::Drift) {
            let workers = plan.engine.workers;
            let output = super::seeds::output(plan, index, 0, workers, checkpoint, board, first_epoch)?;
            outputs.push((sink.name.clone(), output));
        }
        let (sender, receiver) = unbounded();
        let positions = board.signal_positions.clone();
        let write = move || {
            write(&receiver, outputs.iter_mut().map(|(_, output)| output).collect());
            let mut positions = positions.lock().expect("no thread panics with the lock");
            positions.extend(outputs.iter().filter_map(|(name, output)| Some((name.clone(), output.position()?))));
        };
        let thread = std::thread::Builder::new().name("drift signals".into()).spawn(write)?;
        Ok(Signals { sender, thread })
    }

    /// Where the slow lane puts what it says.
    pub fn inlet(&self) -> Sender<Signal> {
        self.sender.clone()
    }

    /// Waits until everything is durable. The slow lane must have ended.
    pub fn finish(self) {
        drop(self.sender);
        // A panic of the thread has ended the process already.
        drop(self.thread.join());
    }
}

fn write(receiver: &Receiver<Signal>, mut outputs: Vec<&mut Output>) {
    let mut nothing = Outputs::new(0);
    loop {
        match receiver.recv_timeout(POLL) {
            Ok(Signal::Rows(batch)) => {
                outputs.iter_mut().for_each(|output| output.process(0, batch.clone(), &mut nothing));
            }
            Ok(Signal::Close(epoch)) => outputs.iter_mut().for_each(|output| output.close_epoch(epoch, &mut nothing)),
            Err(RecvTimeoutError::Timeout) => {
                outputs.iter_mut().for_each(|output| _ = output.poll());
            }
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    while outputs.iter_mut().fold(false, |more, output| output.poll() | more) {
        std::thread::sleep(POLL);
    }
}
