//! Lines to a local file or to standard output, written by a thread of their own.
//!
//! A worker must not wait for a disk or for a reader of a pipe. It puts whole blocks of lines into a short queue; what the
//! queue does not take, the worker keeps and tries again. The thread writes, and where epochs end it makes durable: once
//! for all ends that stand in the queue, so a slow disk commits fewer, larger epochs instead of falling behind.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};

use super::{Records, SinkError, SinkWriter};
use crate::failpoint::{self, Point};

/// Blocks of lines that wait for the thread.
const QUEUE: usize = 32;

/// Where lines go.
pub(super) trait Target: Write + Send {
    /// Returns when everything that was written will survive a loss of power, as far as the target can promise that.
    fn make_durable(&mut self) -> io::Result<()>;
}

enum Command {
    Write(Vec<u8>),
    /// The end of an epoch.
    End(u64),
}

/// What the thread has done.
#[derive(Debug, Default)]
struct Done {
    /// The newest epoch that is durable.
    epoch: Option<u64>,
    /// Bytes up to the ends of epochs that have become durable.
    lengths: Vec<(u64, u64)>,
    error: Option<io::Error>,
}

/// Hands lines to a thread that writes them.
pub(super) struct LineWriter {
    name: String,
    path: String,
    queue: Option<Sender<Command>>,
    thread: Option<JoinHandle<()>>,
    done: Arc<Mutex<Done>>,
    /// Ends of epochs that the queue did not take yet.
    ends: VecDeque<u64>,
    newest_end: Option<u64>,
}

fn lock(done: &Mutex<Done>) -> MutexGuard<'_, Done> {
    done.lock().expect("no thread panics while it holds what is done")
}

impl LineWriter {
    /// Starts the thread of sink `name`, whose `target` is known to people as `path` and holds `length` bytes.
    pub fn start(name: &str, path: &str, target: impl Target + 'static, length: u64) -> Result<LineWriter, SinkError> {
        let done: Arc<Mutex<Done>> = Arc::default();
        let (queue, commands) = bounded(QUEUE);
        let shared = done.clone();
        let thread = std::thread::Builder::new().name(format!("sink {name}")).spawn(move || {
            if let Err(error) = write_all(target, length, &commands, &shared) {
                lock(&shared).error = Some(error);
            }
        });
        let fail = |source| SinkError::File { name: name.into(), path: path.into(), source };
        Ok(LineWriter {
            thread: Some(thread.map_err(fail)?),
            name: name.into(),
            path: path.into(),
            queue: Some(queue),
            done,
            ends: VecDeque::new(),
            newest_end: None,
        })
    }

    /// The thread's error, as often as it is asked for.
    fn check(&self) -> Result<(), SinkError> {
        let done = lock(&self.done);
        let Some(error) = &done.error else { return Ok(()) };
        let source = match error.raw_os_error() {
            Some(code) => io::Error::from_raw_os_error(code),
            None => io::Error::new(error.kind(), error.to_string()),
        };
        Err(SinkError::File { name: self.name.clone(), path: self.path.clone(), source })
    }

    /// True if the queue took the command. A thread that has ended has said why in `done`.
    fn offer(&self, command: Command) -> bool {
        let Some(queue) = &self.queue else { return false };
        !matches!(queue.try_send(command), Err(TrySendError::Full(_) | TrySendError::Disconnected(_)))
    }

    /// Hands over the ends of epochs that wait; true if none is left.
    fn offer_ends(&mut self) -> bool {
        while let Some(epoch) = self.ends.front() {
            if !self.offer(Command::End(*epoch)) {
                return false;
            }
            self.ends.pop_front();
        }
        true
    }
}

impl SinkWriter for LineWriter {
    fn write(&mut self, _epoch: u64, records: &Records, from: usize) -> Result<usize, SinkError> {
        self.check()?;
        let full = self.queue.as_ref().is_none_or(Sender::is_full);
        if full || !self.offer_ends() || from >= records.len() {
            return Ok(from);
        }
        let mut lines = Vec::with_capacity(records.values.len() + records.len());
        for record in from..records.len() {
            lines.extend_from_slice(records.value(record));
            lines.push(b'\n');
        }
        Ok(if self.offer(Command::Write(lines)) { records.len() } else { from })
    }

    fn close_epoch(&mut self, epoch: u64) -> Result<(), SinkError> {
        self.check()?;
        self.ends.push_back(epoch);
        self.newest_end = Some(epoch);
        self.offer_ends();
        Ok(())
    }

    fn durable(&mut self) -> Result<Option<u64>, SinkError> {
        self.check()?;
        self.offer_ends();
        Ok(lock(&self.done).epoch)
    }

    fn positions(&mut self) -> Vec<(u64, u64)> {
        std::mem::take(&mut lock(&self.done).lengths)
    }
}

impl Drop for LineWriter {
    /// Waits for the thread if it has nothing left to do; a target that blocks must not hold up the end of the job.
    fn drop(&mut self) {
        self.queue = None;
        let idle = {
            let done = lock(&self.done);
            done.error.is_some() || done.epoch == self.newest_end
        };
        if let Some(thread) = self.thread.take().filter(|_| idle) {
            // The thread's errors are in `done`, and it does not panic.
            drop(thread.join());
        }
    }
}

/// The thread: writes until the queue is gone.
fn write_all(
    mut target: impl Target,
    mut length: u64,
    commands: &Receiver<Command>,
    done: &Mutex<Done>,
) -> io::Result<()> {
    // The ends of epochs that are not durable yet, and the lengths there.
    let mut ended: Vec<(u64, u64)> = Vec::new();
    loop {
        let command = match ended.last() {
            Some((epoch, _)) => match commands.try_recv() {
                Ok(command) => command,
                Err(_) => {
                    failpoint::reached(Point::LinesWritten);
                    target.make_durable()?;
                    let mut done = lock(done);
                    done.epoch = Some(*epoch);
                    done.lengths.append(&mut ended);
                    continue;
                }
            },
            None => match commands.recv() {
                Ok(command) => command,
                Err(_) => return target.flush(),
            },
        };
        match command {
            Command::Write(lines) => {
                target.write_all(&lines)?;
                length += lines.len() as u64;
            }
            Command::End(epoch) => ended.push((epoch, length)),
        }
    }
}
