//! The bounded driver: reads files to their end and hands their rows to the workers in event-time order.
//!
//! A live run takes rows as they arrive. A bounded run (a replay, a backfill, a test) has all of them before it and so can
//! do better: it merges the records of all sources by (event time, source, partition, offset) and says itself what time
//! it is. The output is then the same whatever the pace and the number of workers, and right as of every event's time.
//!
//! ```text
//! file ─ read ─ decode ─ (sort) ─┐                ┌─ share of worker 0 ─▶ Records, Records, Advance(time), ...
//! file ─ read ─ decode ─ (sort) ─┼─ merge ─ tick ─┤
//! file ─ read ─ decode ─ (sort) ─┘                └─ share of worker 1 ─▶ Records, Advance(time), ...
//! ```
//!
//! - A *tick* is up to [`TICK_ROWS`] merged records, and more if they are all of one event time: rows of equal event time
//!   never fall into two ticks, so that an operator that sees a whole tick can put updates before reads.
//! - An *epoch* is [`EPOCH_ROWS`] merged records, and on to the next change of event time. Its border depends on the
//!   records alone, not on the clock, the pace or the workers; only a stop ends an epoch early.
//! - A *cut* is what a checkpoint needs at the end of an epoch: for each file, how far it was consumed. For a streamed
//!   file this is the next offset; for a file that is sorted in memory it is the number of records consumed in sorted
//!   order. So a replay that is stopped goes on exactly where it was, as long as its files and their order stay the same.
//!
//! A record that fails to decode goes with the record before it in its file: it takes its place in the merge, so that a
//! reject belongs to one epoch like any row.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use millstream_operators::reject::Reject;
use millstream_operators::{Batch, EventTime};

use crate::sources::file::{Chunk, FileReader, Reading, SourceFile};
use crate::sources::memory::MemoryReader;
use crate::sources::{Partitions, Port, Positions, SourceError};

mod arrive;
mod decoding;
mod feed;
mod gather;
mod merge;
mod pace;
mod progress;
#[cfg(test)]
mod tests;

pub use arrive::read_on_arrival;
pub use decoding::decoding;
pub use pace::Pace;
pub(crate) use pace::Pacer;
pub use progress::Progress;

/// Merged records after which a tick ends.
pub const TICK_ROWS: usize = 1024;
/// Merged records after which an epoch ends.
pub const EPOCH_ROWS: usize = 16 * TICK_ROWS;

/// Turns what was read into typed rows with their event times, in the order of the chunk, and puts what failed into the
/// rejects. An error says that the file as a whole is not of the declared schema.
pub type Decode = Box<dyn FnMut(Chunk, &mut Vec<Reject>) -> Result<Option<Batch>, String> + Send>;

/// What a bounded source reads.
#[derive(Debug, Clone)]
pub enum Input {
    /// Files, each a partition.
    Files(Vec<SourceFile>),
    /// Messages written in the topology: one partition, named like the source.
    Messages(Vec<String>),
}

/// How the records of each input stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InputOrder {
    /// In event-time order, or without an event time: they are streamed in constant memory.
    Sorted,
    /// In any order: they are sorted in memory.
    Unsorted,
}

/// A source of a bounded run.
pub struct ReplaySource {
    /// Its name in the topology.
    pub name: Arc<str>,
    /// What it is the history of, for ids: a topic, or its own name.
    pub stream: Arc<str>,
    /// Its index in the plan: `Row::source`.
    pub source: u16,
    /// What it reads.
    pub input: Input,
    /// How the records stand in it.
    pub order: InputOrder,
    /// Decodes its chunks.
    pub decode: Decode,
    /// A longer record is cut to this many bytes plus one, for the decoder to reject.
    pub message_size_max: usize,
    /// The character between the fields of a CSV file.
    pub delimiter: u8,
    /// Where to go on, from a [`Cut`]; what is not named starts at its beginning.
    pub positions: Positions,
}

/// A bounded run that is about to start.
pub struct Replay {
    /// All sources.
    pub sources: Vec<ReplaySource>,
    /// For each source, in the order of `sources`, one inbox a worker. All are told about time alike.
    pub ports: Vec<Vec<Port>>,
    /// The job's table of partitions.
    pub partitions: Arc<Partitions>,
    /// The epoch to begin with.
    pub first_epoch: u64,
    /// How fast.
    pub pace: Pace,
    /// Set when the job drains: the epoch ends at the next change of event time.
    pub stop: Arc<AtomicBool>,
    /// How far the run has come.
    pub progress: Arc<Progress>,
    /// The cuts of the epochs that were handed over.
    pub cuts: Arc<Cuts>,
}

impl Replay {
    /// Opens all files and starts the thread that reads them. It ends after [`Arrival::End`](crate::sources::Arrival::End)
    /// was sent to every worker, or with the error of a file.
    ///
    /// # Errors
    /// If a file can't be opened.
    ///
    /// # Panics
    /// If there is not one list of ports for each source, or a list has not one port for each worker.
    pub fn start(self) -> Result<JoinHandle<Result<(), SourceError>>, SourceError> {
        let Replay { sources, ports, partitions, first_epoch, pace, stop, progress, cuts } = self;
        assert_eq!(sources.len(), ports.len(), "ports for each source");
        assert!(ports.iter().all(|of_source| of_source.len() == ports[0].len()), "a port for each worker");
        let mut feeds = Vec::new();
        let mut decoders = Vec::new();
        for (index, source) in sources.into_iter().enumerate() {
            for reader in open(&source, &partitions)? {
                progress.add_bytes_total(reader.bytes_total());
                feeds.push(feed::Feed::new(index, reader, source.order));
            }
            decoders.push(feed::Decoding { name: source.name, decode: source.decode });
        }
        let merge = merge::Merge::new(feeds, decoders, ports, first_epoch, merge::Shared { stop, progress, cuts });
        let thread = std::thread::Builder::new().name("replay".into()).spawn(move || merge.run(pace));
        thread.map_err(|error| SourceError::File {
            name: "replay".into(),
            path: "thread".into(),
            detail: error.to_string(),
        })
    }
}

/// A reader of one input.
pub(crate) struct Opened {
    /// File or source, as in positions.
    name: Arc<str>,
    /// Its number in the table of partitions.
    partition: u32,
    /// Where its cut says to go on.
    position: i64,
    reader: Reader,
}

enum Reader {
    File(FileReader),
    Memory(MemoryReader),
}

impl Opened {
    fn next_chunk(&mut self) -> Result<Option<Chunk>, SourceError> {
        match &mut self.reader {
            Reader::File(reader) => reader.next_chunk(),
            Reader::Memory(reader) => Ok(reader.next_chunk().map(Chunk::Messages)),
        }
    }
    fn bytes_total(&self) -> u64 {
        match &self.reader {
            Reader::File(reader) => reader.bytes_total(),
            Reader::Memory(reader) => reader.bytes_total(),
        }
    }
    fn bytes_read(&self) -> u64 {
        match &self.reader {
            Reader::File(reader) => reader.bytes_read(),
            Reader::Memory(reader) => reader.bytes_read(),
        }
    }
}

/// Opens the inputs of a source: a streamed one where it goes on, one to sort at its beginning.
fn open(source: &ReplaySource, partitions: &Partitions) -> Result<Vec<Opened>, SourceError> {
    let position = |name: &str| source.positions.0.get(&(name.to_string(), 0)).copied().unwrap_or(0);
    let start = |name: &str| match source.order {
        InputOrder::Sorted => position(name),
        InputOrder::Unsorted => 0,
    };
    let reading = |name: &str, partition: u32| Reading {
        source_name: source.name.clone(),
        source: source.source,
        partition,
        start: start(name),
        message_size_max: source.message_size_max,
        delimiter: source.delimiter,
    };
    let mut opened = Vec::new();
    match &source.input {
        Input::Files(files) => {
            for (place, file) in (0..).zip(files) {
                let partition = partitions.number_of_file(&file.name, &source.stream, place);
                let reader = Reader::File(FileReader::open(file, reading(&file.name, partition))?);
                opened.push(Opened { name: file.name.clone(), partition, position: position(&file.name), reader });
            }
        }
        Input::Messages(messages) => {
            let (name, partition) = (source.name.clone(), partitions.number(&source.name, 0));
            let reader = Reader::Memory(MemoryReader::new(messages.clone(), reading(&name, partition)));
            opened.push(Opened { position: position(&name), name, partition, reader });
        }
    }
    Ok(opened)
}

/// What was consumed at the end of an epoch.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Cut {
    /// Where each source goes on, by the source's name.
    pub positions: BTreeMap<Arc<str>, Positions>,
    /// No record with an event time at or before this comes after the epoch.
    pub watermark: EventTime,
}

/// The cuts of the newest epochs.
#[derive(Debug, Default)]
pub struct Cuts {
    epochs: Mutex<BTreeMap<u64, Cut>>,
}

/// Epochs whose cuts are kept: more than the inboxes of the workers can hold.
const CUTS_MAX: usize = 256;

impl Cuts {
    /// The cut at the end of `epoch`; `None` for an epoch that was not handed over or is long gone.
    pub fn at(&self, epoch: u64) -> Option<Cut> {
        self.epochs.lock().expect("no thread panics while it holds the cuts").get(&epoch).cloned()
    }

    /// The watermark of the cut at the end of `epoch`, if it is kept.
    pub fn watermark(&self, epoch: u64) -> Option<EventTime> {
        let epochs = self.epochs.lock().expect("no thread panics while it holds the cuts");
        epochs.get(&epoch).map(|cut| cut.watermark)
    }

    /// The newest epoch that was handed over whole, and its cut.
    pub fn newest(&self) -> Option<(u64, Cut)> {
        let epochs = self.epochs.lock().expect("no thread panics while it holds the cuts");
        epochs.last_key_value().map(|(epoch, cut)| (*epoch, cut.clone()))
    }

    fn put(&self, epoch: u64, cut: Cut) {
        let mut epochs = self.epochs.lock().expect("no thread panics while it holds the cuts");
        epochs.insert(epoch, cut);
        while epochs.len() > CUTS_MAX {
            epochs.pop_first();
        }
    }
}

fn stopped(stop: &AtomicBool) -> bool {
    stop.load(Ordering::Relaxed)
}
