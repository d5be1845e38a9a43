//! Drift signals on their way out: from the slow lane to the sinks that take them, on a thread of their own, so that a
//! slow sink never holds the slow lane.

use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, unbounded};
use millstream_operators::Batch;
use millstream_operators::operator::{Operator, Outputs};

use super::ledger::Ledger;
use super::output::Output;
use super::seeds::Opening;
use crate::plan::From;
use crate::sinks::BatchBytes;

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
    /// Opens the sinks that take drift signals and starts the thread, which leaves their outboxes in `ledger`.
    ///
    /// # Errors
    /// If a sink can't be opened.
    pub fn start(opening: &Opening<'_>, mut ledger: Ledger) -> anyhow::Result<Signals> {
        let mut outputs = Vec::new();
        for (index, _) in opening.plan.sinks.iter().enumerate().filter(|(_, sink)| sink.from == From::Drift) {
            outputs.push(opening.output(index, 0, BatchBytes::default())?);
        }
        let (sender, receiver) = unbounded();
        let entry = ledger.register();
        let write = move || {
            write(&receiver, &mut outputs, &mut ledger, entry);
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

fn write(receiver: &Receiver<Signal>, outputs: &mut [Output], ledger: &mut Ledger, entry: usize) {
    let mut nothing = Outputs::new(0);
    loop {
        match receiver.recv_timeout(POLL) {
            Ok(Signal::Rows(batch)) => {
                outputs.iter_mut().for_each(|output| output.process(0, batch.clone(), &mut nothing));
            }
            Ok(Signal::Close(epoch)) => {
                for output in outputs.iter_mut() {
                    output.close_epoch(epoch, &mut nothing);
                    let (name, records) = (output.name().clone(), output.take_outbox());
                    if !records.is_empty() {
                        ledger.part(epoch).outbox.push((name, 0, records));
                    }
                }
                ledger.closed(entry, epoch);
            }
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
