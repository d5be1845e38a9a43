//! One input of the merge: a file as a sequence of records in event-time order.
//!
//! A sorted file is streamed, chunk by chunk, and held to its promise. An unsorted one is decoded whole at the start,
//! an index over its records is sorted, and chunks are gathered along the index.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use millstream_operators::reject::Reject;
use millstream_operators::{Batch, EventTime};

use super::{Decode, InputOrder, Opened, TICK_ROWS, gather, stopped};
use crate::sources::SourceError;

/// A source's decoder.
pub(super) struct Decoding {
    pub name: Arc<str>,
    pub decode: Decode,
}

/// What stands at a place of the merge.
#[derive(Debug)]
pub(super) enum Content {
    /// A row of the chunk's batch.
    Row(usize),
    /// A record that failed.
    Reject(Reject),
}

/// A record's place in the merge, and the record.
#[derive(Debug)]
pub(super) struct Entry {
    pub time: EventTime,
    pub offset: i64,
    pub content: Content,
}

/// Records in order. The rows of `batch` stand in the order of `entries`.
#[derive(Debug, Default)]
pub(super) struct Loaded {
    pub batch: Option<Batch>,
    pub entries: Vec<Entry>,
}

/// An input of the merge.
pub(super) struct Feed {
    /// Index of the source in the replay.
    pub source: usize,
    /// Its number in the table of partitions.
    pub partition: u32,
    /// File or source, as in positions.
    pub name: Arc<str>,
    /// Where to go on when everything up to the head has been consumed.
    pub position: i64,
    /// Size, for the progress.
    pub bytes_total: u64,
    /// The chunk the head stands in.
    pub loaded: Arc<Loaded>,
    /// The head's index in the chunk.
    pub head: usize,
    supply: Supply,
}

enum Supply {
    /// Not read yet, to be sorted.
    Unsorted(Opened),
    /// Streamed; the time of the record before the next chunk.
    Streamed(Opened, EventTime),
    /// Sorted in memory.
    Sorted(Sorted),
}

impl Feed {
    pub fn new(source: usize, opened: Opened, order: InputOrder) -> Feed {
        Feed {
            source,
            partition: opened.partition,
            name: opened.name.clone(),
            position: opened.position,
            bytes_total: opened.bytes_total(),
            loaded: Arc::default(),
            head: 0,
            supply: match order {
                InputOrder::Sorted => Supply::Streamed(opened, EventTime::MIN),
                InputOrder::Unsorted => Supply::Unsorted(opened),
            },
        }
    }

    /// The next record's event time and offset; `None` at the end or before the first [`fill`](Feed::fill).
    pub fn next(&self) -> Option<(EventTime, i64)> {
        self.loaded.entries.get(self.head).map(|entry| (entry.time, entry.offset))
    }

    /// Consumes the next record. True when the chunk is used up and the feed wants to be filled.
    pub fn advance(&mut self) -> bool {
        let entry = &self.loaded.entries[self.head];
        self.position = match &self.supply {
            Supply::Sorted(_) => self.position + 1,
            _ => entry.offset + 1,
        };
        self.head += 1;
        self.head == self.loaded.entries.len()
    }

    /// Loads the next records, if there are any.
    pub fn fill(&mut self, decoding: &mut Decoding, stop: &AtomicBool) -> Result<(), SourceError> {
        if let Supply::Unsorted(opened) = &mut self.supply {
            let sorted = Sorted::load(opened, decoding, self.position, stop)?;
            self.supply = Supply::Sorted(sorted);
        }
        self.head = 0;
        self.loaded = match &mut self.supply {
            Supply::Streamed(opened, last) => Arc::new(stream(opened, decoding, last)?),
            Supply::Sorted(sorted) => {
                Arc::new(sorted.next().map_err(|error| failure(decoding, &self.name, error.to_string()))?)
            }
            Supply::Unsorted(_) => Arc::default(),
        };
        Ok(())
    }

    /// About how many bytes have been consumed.
    pub fn bytes_done(&self) -> u64 {
        match &self.supply {
            Supply::Unsorted(_) => 0,
            Supply::Streamed(opened, _) => opened.bytes_read(),
            Supply::Sorted(sorted) => {
                let share = self.position as f64 / sorted.total.max(1) as f64;
                (self.bytes_total as f64 * share.min(1.0)) as u64
            }
        }
    }
}

fn failure(decoding: &Decoding, file: &str, detail: String) -> SourceError {
    SourceError::File { name: decoding.name.to_string(), path: file.to_string(), detail }
}

/// Reads and decodes one chunk and brings rows and rejects into the order of the file. `last` is the event time of the
/// row before, and becomes that of the chunk's last row. `None` at the end of the file. A record that failed takes the
/// place of the row before it: it may have no time of its own, and so its dead letter stands where the record stood.
fn decode(opened: &mut Opened, decoding: &mut Decoding, last: &mut EventTime) -> Result<Option<Loaded>, SourceError> {
    let Some(chunk) = opened.next_chunk()? else { return Ok(None) };
    let mut rejects = Vec::new();
    let batch = (decoding.decode)(chunk, &mut rejects).map_err(|error| failure(decoding, &opened.name, error))?;
    let rows = batch.as_ref().map(|batch| batch.rows.clone()).unwrap_or_default();
    let mut rejects: VecDeque<Reject> = rejects.into();
    let mut entries = Vec::with_capacity(rows.len() + rejects.len());
    let reject = |mut reject: Reject, time| {
        if time != EventTime::MIN {
            reject.row.event_time = time;
        }
        Entry { time, offset: reject.row.offset, content: Content::Reject(reject) }
    };
    for (n, row) in rows.iter().enumerate() {
        while let Some(failed) = rejects.pop_front_if(|failed| failed.row.offset < row.offset) {
            entries.push(reject(failed, *last));
        }
        *last = row.event_time;
        entries.push(Entry { time: row.event_time, offset: row.offset, content: Content::Row(n) });
    }
    entries.extend(rejects.into_iter().map(|failed| reject(failed, *last)));
    Ok(Some(Loaded { batch, entries }))
}

/// The next records of a file that is said to be sorted.
fn stream(opened: &mut Opened, decoding: &mut Decoding, last: &mut EventTime) -> Result<Loaded, SourceError> {
    let mut before = *last;
    let Some(loaded) = decode(opened, decoding, last)? else { return Ok(Loaded::default()) };
    for entry in &loaded.entries {
        if entry.time < before {
            let (time, line) = (entry.time, entry.offset + 1);
            let detail = format!(
                "event time {time} comes after {before}, but the file is said to be sorted; leave `sorted` out"
            );
            return Err(failure(decoding, &format!("{}:{line}", opened.name), detail));
        }
        before = entry.time;
    }
    Ok(loaded)
}

/// A file that was decoded whole, and an index over its records in event-time order.
struct Sorted {
    batches: Vec<Batch>,
    rejects: Vec<Option<Reject>>,
    /// What is left, in order.
    order: std::vec::IntoIter<Place>,
    /// Number of all records.
    total: usize,
}

/// Ordered by event time, then offset, which is unique in a file.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    time: EventTime,
    offset: i64,
    /// Index of the batch; `None` for a reject.
    batch: Option<u32>,
    row: u32,
}

impl Sorted {
    /// Reads everything and goes to the record after the first `consumed`.
    fn load(
        opened: &mut Opened,
        decoding: &mut Decoding,
        consumed: i64,
        stop: &AtomicBool,
    ) -> Result<Sorted, SourceError> {
        let (mut batches, mut rejects, mut places) = (Vec::new(), Vec::new(), Vec::new());
        let mut last = EventTime::MIN;
        while !stopped(stop) {
            let Some(loaded) = decode(opened, decoding, &mut last)? else { break };
            for Entry { time, offset, content } in loaded.entries {
                let (batch, row) = match content {
                    Content::Row(row) => (Some(batches.len() as u32), row as u32),
                    Content::Reject(reject) => {
                        rejects.push(Some(reject));
                        (None, rejects.len() as u32 - 1)
                    }
                };
                places.push(Place { time, offset, batch, row });
            }
            batches.extend(loaded.batch);
        }
        places.sort_unstable();
        let total = places.len();
        let mut order = places.into_iter();
        if consumed > 0 && !stopped(stop) && order.nth(consumed as usize - 1).is_none() {
            let detail = format!(
                "has {total} records, but {consumed} of them were consumed before; was the file cut or replaced?"
            );
            return Err(failure(decoding, &opened.name, detail));
        }
        Ok(Sorted { batches, rejects, order, total })
    }

    /// The next records in order; none at the end.
    fn next(&mut self) -> Result<Loaded, arrow::error::ArrowError> {
        let places: Vec<Place> = self.order.by_ref().take(TICK_ROWS).collect();
        let mut entries = Vec::with_capacity(places.len());
        let mut picks = Vec::with_capacity(places.len());
        // Only the batches that are picked from: a large file has thousands, and mostly neighbours stand together.
        let (mut picked, mut used) = (BTreeMap::new(), Vec::new());
        for Place { time, offset, batch, row } in places {
            let content = match batch {
                Some(batch) => {
                    let at = *picked.entry(batch).or_insert_with(|| {
                        used.push(&self.batches[batch as usize]);
                        used.len() - 1
                    });
                    picks.push((at, row as usize));
                    Content::Row(picks.len() - 1)
                }
                None => match self.rejects[row as usize].take() {
                    Some(reject) => Content::Reject(reject),
                    None => continue,
                },
            };
            entries.push(Entry { time, offset, content });
        }
        let batch = if picks.is_empty() { None } else { Some(gather::gather(&used, &picks)?) };
        Ok(Loaded { batch, entries })
    }
}
