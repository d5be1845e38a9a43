//! The merge: takes records from all feeds in order, cuts ticks and epochs, and deals the rows out to the workers.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{SystemTime, UNIX_EPOCH};

use millstream_operators::reject::Reject;
use millstream_operators::{Batch, EventTime};

use super::feed::{Content, Decoding, Feed, Loaded};
use super::pace::{Pace, Pacer};
use super::{Cut, Cuts, EPOCH_ROWS, Progress, TICK_ROWS, gather, stopped};
use crate::runtime::time::{LAST_TICK, time};
use crate::sources::file::UNTIMED;
use crate::sources::{Arrival, Closed, Port, SourceError};

/// What the merge shares with the rest of the process.
pub(super) struct Shared {
    pub stop: Arc<AtomicBool>,
    pub progress: Arc<Progress>,
    pub cuts: Arc<Cuts>,
}

/// A record's place: event time, source, partition, offset; and the feed it is in.
type Key = (EventTime, usize, u32, i64, usize);

/// Neighbours in a feed's chunk that are neighbours in the merge too: entries `from..to`.
struct Run {
    source: usize,
    loaded: Arc<Loaded>,
    from: usize,
    to: usize,
}

/// The run of all sources.
pub(super) struct Merge {
    feeds: Vec<Feed>,
    decoders: Vec<Decoding>,
    /// By source and worker.
    ports: Vec<Vec<Port>>,
    shared: Shared,
    pacer: Pacer,
    heads: BinaryHeap<Reverse<Key>>,
    epoch: u64,
    tick: u64,
    /// The open tick, its number of records and the event time of its last.
    runs: Vec<Run>,
    tick_rows: usize,
    last: EventTime,
    epoch_rows: usize,
}

/// Why the merge ends before the end of its feeds.
enum End {
    Failed(SourceError),
    /// The workers are gone: nobody wants the rest.
    Closed,
}

impl From<SourceError> for End {
    fn from(error: SourceError) -> End {
        End::Failed(error)
    }
}
impl From<Closed> for End {
    fn from(_: Closed) -> End {
        End::Closed
    }
}

impl Merge {
    pub fn new(
        feeds: Vec<Feed>,
        decoders: Vec<Decoding>,
        ports: Vec<Vec<Port>>,
        first_epoch: u64,
        shared: Shared,
    ) -> Merge {
        Merge {
            feeds,
            decoders,
            ports,
            shared,
            pacer: Pacer::new(Pace::Fastest),
            heads: BinaryHeap::new(),
            epoch: first_epoch,
            tick: 0,
            runs: Vec::new(),
            tick_rows: 0,
            last: EventTime::MIN,
            epoch_rows: 0,
        }
    }

    /// Runs to the end of all feeds or the stop of the job.
    pub fn run(mut self, pace: Pace) -> Result<(), SourceError> {
        self.pacer = Pacer::new(pace);
        match self.merge().and_then(|()| self.finish()) {
            Ok(()) | Err(End::Closed) => Ok(()),
            Err(End::Failed(error)) => Err(error),
        }
    }

    fn merge(&mut self) -> Result<(), End> {
        self.advance_all()?;
        for feed in 0..self.feeds.len() {
            self.fill(feed)?;
            self.heads.extend(self.head(feed).map(Reverse));
        }
        while let Some(Reverse(head)) = self.heads.pop() {
            let next = self.heads.peek().map(|Reverse(next)| *next);
            let mut key = Some(head);
            // As long as the feed's records come before those of all others, it needs no look at the others.
            while let Some(this) = key.filter(|this| next.is_none_or(|next| *this < next)) {
                if !self.may_take(this.0)? {
                    return Ok(());
                }
                self.take(this)?;
                key = self.head(this.4);
            }
            self.heads.extend(key.map(Reverse));
        }
        Ok(())
    }

    fn head(&self, feed: usize) -> Option<Key> {
        let Feed { source, partition, .. } = self.feeds[feed];
        self.feeds[feed].next().map(|(time, offset)| (time, source, partition, offset, feed))
    }

    fn fill(&mut self, feed: usize) -> Result<(), SourceError> {
        let decoding = &mut self.decoders[self.feeds[feed].source];
        self.feeds[feed].fill(decoding, &self.shared.stop)
    }

    /// Closes the open tick if a record of event time `time` does not belong to it, and waits until the record is due.
    /// False when the job stops: the record is not taken.
    fn may_take(&mut self, time: EventTime) -> Result<bool, End> {
        // Records without an event time have nothing to be ordered by, so a tick may end between them.
        let border = time != self.last || time == UNTIMED || time == EventTime::MIN;
        if !border {
            return Ok(true);
        }
        if stopped(&self.shared.stop) {
            return Ok(false);
        }
        if self.epoch_rows >= EPOCH_ROWS || self.tick == LAST_TICK - 1 {
            self.close_epoch()?;
        } else if self.tick_rows >= TICK_ROWS {
            self.close_tick()?;
        }
        if self.pacer.must_wait(time) {
            self.close_tick()?;
            return Ok(self.pacer.wait(time, &self.shared.stop));
        }
        Ok(true)
    }

    /// Adds the head of a feed to the open tick.
    fn take(&mut self, (time, source, _, _, feed): Key) -> Result<(), End> {
        let loaded = &self.feeds[feed].loaded;
        let at = self.feeds[feed].head;
        match self.runs.last_mut() {
            Some(run) if run.to == at && Arc::ptr_eq(&run.loaded, loaded) => run.to += 1,
            _ => self.runs.push(Run { source, loaded: loaded.clone(), from: at, to: at + 1 }),
        }
        self.last = time;
        self.tick_rows += 1;
        self.epoch_rows += 1;
        self.pacer.count();
        if self.feeds[feed].advance() {
            self.fill(feed)?;
        }
        Ok(())
    }

    /// Hands the open tick over, each worker a contiguous share of it, and opens the next.
    fn close_tick(&mut self) -> Result<(), End> {
        if self.tick_rows == 0 {
            return Ok(());
        }
        self.hand_over()?;
        self.tick += 1;
        self.advance_all()?;
        Ok(())
    }

    fn hand_over(&mut self) -> Result<(), End> {
        let runs = std::mem::take(&mut self.runs);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros() as i64;
        let (rows, workers) = (self.tick_rows, self.ports.first().map_or(0, Vec::len));
        for worker in 0..workers {
            let shares = share(&runs, rows * worker / workers, rows * (worker + 1) / workers);
            for (source, share) in shares {
                let name = &self.decoders[source].name;
                let (mut batch, mut rejects) = share.finish().map_err(|error| SourceError::File {
                    name: name.to_string(),
                    path: "merge".into(),
                    detail: error.to_string(),
                })?;
                for row in Arc::make_mut(&mut batch.rows) {
                    row.arrived_micros = now;
                }
                for reject in &mut rejects {
                    reject.row.arrived_micros = now;
                }
                self.ports[source][worker].send(Arrival::Records(batch, rejects))?;
            }
        }
        let done = self.feeds.iter().map(Feed::bytes_done).sum();
        self.shared.progress.handed_over(rows as u64, self.last, done);
        self.tick_rows = 0;
        Ok(())
    }

    /// Closes the open tick and with it the open epoch, and opens the next.
    fn close_epoch(&mut self) -> Result<(), End> {
        self.cut()?;
        self.epoch += 1;
        self.tick = 0;
        self.epoch_rows = 0;
        self.advance_all()?;
        Ok(())
    }

    /// Hands over what is left of the open epoch, and notes how far each feed was consumed. The cut is there before a
    /// worker can learn that the epoch is over.
    fn cut(&mut self) -> Result<(), End> {
        if self.tick_rows > 0 {
            self.hand_over()?;
        }
        let mut cut = Cut { watermark: self.last, ..Cut::default() };
        for decoding in &self.decoders {
            cut.positions.entry(decoding.name.clone()).or_default();
        }
        for feed in &self.feeds {
            let positions = cut.positions.entry(self.decoders[feed.source].name.clone()).or_default();
            positions.0.insert((feed.name.to_string(), 0), feed.position);
        }
        self.shared.cuts.put(self.epoch, cut);
        Ok(())
    }

    fn advance_all(&self) -> Result<(), Closed> {
        self.send_all(|| Arrival::Advance(time(self.epoch, self.tick)))
    }

    fn send_all(&self, arrival: impl Fn() -> Arrival) -> Result<(), Closed> {
        self.ports.iter().flatten().try_for_each(|port| port.send(arrival()))
    }

    /// The end closes the open epoch, which may be empty.
    fn finish(&mut self) -> Result<(), End> {
        self.cut()?;
        if !stopped(&self.shared.stop) {
            self.shared.progress.finish();
        }
        self.send_all(|| Arrival::End)?;
        Ok(())
    }
}

/// A worker's records of one source and tick.
#[derive(Default)]
struct Share<'a> {
    batches: Vec<&'a Batch>,
    picks: Vec<(usize, usize)>,
    rejects: Vec<Reject>,
}

impl<'a> Share<'a> {
    fn add(&mut self, loaded: &'a Loaded, from: usize, to: usize) {
        for entry in &loaded.entries[from..to] {
            match (&entry.content, &loaded.batch) {
                (Content::Row(row), Some(batch)) => {
                    if self.batches.last().is_none_or(|last| !std::ptr::eq(*last, batch)) {
                        self.batches.push(batch);
                    }
                    self.picks.push((self.batches.len() - 1, *row));
                }
                (Content::Row(_), None) => unreachable!("a row stands in the batch of its chunk"),
                (Content::Reject(reject), _) => self.rejects.push(reject.clone()),
            }
        }
    }

    fn finish(self) -> Result<(Batch, Vec<Reject>), arrow::error::ArrowError> {
        let batch = match self.batches.is_empty() {
            true => gather::nothing(),
            false => gather::gather(&self.batches, &self.picks)?,
        };
        Ok((batch, self.rejects))
    }
}

/// The records `from..to` of a tick, by source.
fn share(runs: &[Run], from: usize, to: usize) -> BTreeMap<usize, Share<'_>> {
    let mut shares: BTreeMap<usize, Share<'_>> = BTreeMap::new();
    let mut start = 0;
    for run in runs {
        let length = run.to - run.from;
        let (first, last) = (from.saturating_sub(start), to.saturating_sub(start).min(length));
        if first < last {
            shares.entry(run.source).or_default().add(&run.loaded, run.from + first, run.from + last);
        }
        start += length;
    }
    shares
}
