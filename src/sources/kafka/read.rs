//! A worker's reader: takes what waits of its partitions, and hands it on as one batch.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use arrow::array::BinaryBuilder;
use crossbeam_channel::Receiver;
use millstream_kafka_batch::{Fetched, Queue, Topic, What};
use millstream_operators::{Messages, Row};
use rdkafka::types::RDKafkaErrorCode;

use super::{Halt, Tracked};
use crate::kafka::Context;
use crate::kafka::heard::Heard;
use crate::sources::{Arrival, Closed, Port};

/// Most messages in a batch.
pub(super) const MESSAGES_MAX: usize = 512;
/// A batch that has reached this many bytes is handed over.
const BYTES_MAX: usize = 256 << 10;
/// How long a reader without messages waits before it looks whether it shall stop, or tell that partitions are idle.
const WAIT: Duration = Duration::from_millis(100);

/// What a reader is made of.
pub(super) struct Reader<'a> {
    pub queue: Queue<Context>,
    pub port: Port,
    pub halt: &'a Halt,
    /// True while the worker takes no more.
    pub paused: &'a AtomicBool,
    pub idle_after: Duration,
    pub inbox: Inbox,
    /// How many things were taken from the queue.
    pub taken: u64,
    /// What was heard last, and how many things will have been taken when all has been that was fetched until then.
    pub heard: (Arc<Heard>, u64),
}

/// Why a reader ended before it was told to.
#[derive(Debug)]
pub(super) enum Broken {
    /// The worker is gone.
    Closed,
    /// The position is not there any more.
    Gone(Arc<Tracked>),
    /// The partition can't be read; going on would skip messages.
    Unreadable(Arc<Tracked>, String),
}

impl From<Closed> for Broken {
    fn from(_: Closed) -> Self {
        Broken::Closed
    }
}

/// What a reader is told.
pub(super) enum Assigned {
    /// A partition becomes its own; it comes before its first message can.
    Partition(Arc<Tracked>),
    /// These were all that there are at the start.
    All,
}

/// A partition of this reader.
struct Partition {
    tracked: Arc<Tracked>,
    /// When its end was reached; counts only while it is at its end.
    ended: Instant,
    told_idle: bool,
}

impl Reader<'_> {
    /// Reads until told to stop.
    ///
    /// # Errors
    /// Why it could not go on; `End` is sent only when there is no error.
    pub fn run(mut self) -> Result<(), Broken> {
        let mut idle_checked = Instant::now();
        while !self.halt.now() {
            self.inbox.adopt();
            self.taken += self.queue.read(WAIT, |fetched| self.inbox.take(fetched)) as u64;
            self.hand_over()?;
            if idle_checked.elapsed() >= WAIT {
                idle_checked = Instant::now();
                self.tell_idle()?;
            }
        }
        if !self.halt.broken.load(Relaxed) {
            self.port.send(Arrival::End)?;
        }
        Ok(())
    }

    /// Hands over positions of new partitions, what was read, and which partitions are read as far as is wanted; then stops at
    /// what can't be read.
    fn hand_over(&mut self) -> Result<(), Broken> {
        for (partition, offset) in self.inbox.new.drain(..) {
            self.port.send(Arrival::Position { partition, offset })?;
        }
        if std::mem::take(&mut self.inbox.has_all) {
            self.port.send(Arrival::Assigned)?;
        }
        if let Some(messages) = self.inbox.batch() {
            self.paused.store(true, Relaxed);
            self.port.send(Arrival::Messages(messages))?;
            self.paused.store(false, Relaxed);
        }
        // After its records: a position says that everything before it has been handed over.
        for at in self.inbox.through.drain(..) {
            let tracked = &self.inbox.partitions[at].tracked;
            self.port.send(Arrival::Position { partition: tracked.number, offset: tracked.until })?;
            tracked.through.store(true, Relaxed);
        }
        self.inbox.broken.take().map_or(Ok(()), Err)
    }

    /// Tells which partitions have no events: not those whose events don't come, or lie in the queue behind others'.
    fn tell_idle(&mut self) -> Result<(), Broken> {
        let waiting = self.queue.waiting() as u64;
        let (heard, through) = &self.heard;
        if self.taken < *through && waiting > 0 {
            return Ok(());
        }
        for Partition { tracked, ended, told_idle } in &mut self.inbox.partitions {
            // A partition that is not read to its end has events.
            let may_be = !*told_idle && tracked.at_end.load(Relaxed);
            if may_be && heard.quiet(&tracked.topic, tracked.partition, *ended) >= self.idle_after {
                *told_idle = true;
                self.port.send(Arrival::Idle(tracked.number))?;
            }
        }
        self.heard = (self.inbox.context.heard(), self.taken + waiting);
        Ok(())
    }
}

/// What a reader has taken and not handed over yet.
pub(super) struct Inbox {
    /// What becomes this reader's.
    assigned: Receiver<Assigned>,
    context: Arc<Context>,
    source: u16,
    message_size_max: usize,
    partitions: Vec<Partition>,
    /// Index of a partition by its topic's id and its number.
    found: HashMap<(usize, i32), usize>,
    /// The partition of the message before: mostly also that of the next.
    last: Option<((usize, i32), usize)>,
    /// Partitions that came since the last batch: number and position.
    new: Vec<(u32, i64)>,
    /// All partitions of the start came since the last batch.
    has_all: bool,
    /// Partitions that came since then to where they are to end.
    through: Vec<usize>,
    /// When the batch began, in microseconds since 1970.
    arrived_micros: i64,
    bytes: usize,
    payloads: BinaryBuilder,
    rows: Vec<Row>,
    broken: Option<Broken>,
}

impl Inbox {
    /// An empty inbox for the partitions that come by `assigned`.
    pub fn new(assigned: Receiver<Assigned>, context: Arc<Context>, source: u16, message_size_max: usize) -> Self {
        Inbox {
            assigned,
            context,
            source,
            message_size_max,
            partitions: Vec::new(),
            found: HashMap::new(),
            last: None,
            new: Vec::new(),
            has_all: false,
            through: Vec::new(),
            arrived_micros: 0,
            bytes: 0,
            payloads: BinaryBuilder::new(),
            rows: Vec::new(),
            broken: None,
        }
    }

    /// Takes in the partitions that were assigned since the last time.
    fn adopt(&mut self) {
        for assigned in self.assigned.try_iter() {
            let Assigned::Partition(tracked) = assigned else {
                self.has_all = true;
                continue;
            };
            let position = tracked.position.load(Relaxed);
            self.new.push((tracked.number, position.min(tracked.until)));
            if position >= tracked.until {
                self.through.push(self.partitions.len());
            }
            self.partitions.push(Partition { tracked, ended: Instant::now(), told_idle: false });
        }
    }

    /// Takes one thing; breaks off when the batch is full.
    fn take(&mut self, fetched: Fetched<'_>) -> ControlFlow<()> {
        let Some(at) = self.find(fetched.topic, fetched.partition) else { return ControlFlow::Continue(()) };
        let partition = &mut self.partitions[at];
        let tracked = &partition.tracked;
        if tracked.position.load(Relaxed) >= tracked.until {
            return ControlFlow::Continue(());
        }
        match fetched.what {
            // Those before it have been compacted away.
            What::Message { .. } if fetched.offset >= tracked.until => {
                tracked.position.store(tracked.until, Relaxed);
                self.through.push(at);
            }
            What::Message { timestamp, value, .. } => {
                if self.rows.is_empty() {
                    self.arrived_micros = now_micros();
                }
                let now_ms = self.arrived_micros / 1000;
                // One byte more than allowed is enough for the decoder to see that it is too many.
                let value = value.map(|value| &value[..value.len().min(self.message_size_max.saturating_add(1))]);
                let event_time = if timestamp >= 0 { timestamp } else { now_ms };
                self.payloads.append_option(value);
                self.rows.push(Row {
                    source: self.source,
                    partition: tracked.number,
                    offset: fetched.offset,
                    event_time,
                    arrived_micros: self.arrived_micros,
                });
                let bytes = value.map_or(0, <[u8]>::len);
                self.bytes += bytes;
                partition.told_idle = false;
                tracked.position.store(fetched.offset + 1, Relaxed);
                // One thread writes them: no need for the price of an atomic addition.
                tracked.records.store(tracked.records.load(Relaxed) + 1, Relaxed);
                tracked.bytes.store(tracked.bytes.load(Relaxed) + bytes as u64, Relaxed);
                tracked.stamped.store(event_time, Relaxed);
                tracked.read_at.store(now_ms, Relaxed);
                tracked.at_end.store(false, Relaxed);
                if fetched.offset + 1 >= tracked.until {
                    self.through.push(at);
                }
                if self.rows.len() >= MESSAGES_MAX || self.bytes >= BYTES_MAX {
                    return ControlFlow::Break(());
                }
            }
            What::End => {
                // Transaction markers have offsets, too: the end can lie beyond the last message.
                tracked.position.store(fetched.offset, Relaxed);
                tracked.at_end.store(true, Relaxed);
                partition.ended = Instant::now();
                if fetched.offset >= tracked.until {
                    self.through.push(at);
                } else if tracked.until != i64::MAX {
                    // There was more once: nobody should wait for it.
                    tracked.position.store(tracked.until, Relaxed);
                    self.broken = Some(Broken::Gone(tracked.clone()));
                    return ControlFlow::Break(());
                }
            }
            What::Error { code, text } => {
                self.broken = broken(tracked, code, text, &self.context);
                if self.broken.is_some() {
                    return ControlFlow::Break(());
                }
            }
        }
        ControlFlow::Continue(())
    }

    /// The index of a partition. One that is not known has been assigned while this reader waited.
    fn find(&mut self, topic: Topic<'_>, partition: i32) -> Option<usize> {
        let key = (topic.id(), partition);
        if let Some((_, at)) = self.last.filter(|(last, _)| *last == key) {
            return Some(at);
        }
        let at = self.found.get(&key).copied().or_else(|| {
            self.adopt();
            let name = topic.name();
            self.partitions.iter().position(|p| *p.tracked.topic == *name && p.tracked.partition == partition)
        })?;
        self.found.insert(key, at);
        self.last = Some((key, at));
        Some(at)
    }

    /// What was taken, as one batch.
    fn batch(&mut self) -> Option<Messages> {
        if self.rows.is_empty() {
            return None;
        }
        // The next batch is likely as large as this one.
        let (len, bytes) = (self.rows.len(), std::mem::take(&mut self.bytes));
        let mut payloads = std::mem::replace(&mut self.payloads, BinaryBuilder::with_capacity(len, bytes));
        let rows = std::mem::replace(&mut self.rows, Vec::with_capacity(len));
        Some(Messages { payloads: payloads.finish(), rows, header: None })
    }
}

/// What an error of a partition means: `None` if librdkafka goes on by itself and skips nothing.
fn broken(tracked: &Arc<Tracked>, code: RDKafkaErrorCode, text: &str, context: &Context) -> Option<Broken> {
    use RDKafkaErrorCode::{AutoOffsetReset, BadCompression, BadMessage, InvalidMessage, NotImplemented};
    use RDKafkaErrorCode::{InvalidMessageSize, MessageSizeTooLarge, OffsetOutOfRange, TopicAuthorizationFailed};
    let unreadable = |what: &str| {
        let next = tracked.position.load(Relaxed);
        Some(Broken::Unreadable(tracked.clone(), format!("{what} at or after offset {next}: {text} ({code})")))
    };
    match code {
        AutoOffsetReset | OffsetOutOfRange => Some(Broken::Gone(tracked.clone())),
        TopicAuthorizationFailed => unreadable("not allowed any more (ACL READ)"),
        BadMessage | InvalidMessage | BadCompression | NotImplemented => unreadable("a damaged message"),
        MessageSizeTooLarge | InvalidMessageSize => {
            unreadable("a message larger than `receive.message.max.bytes` in `options`")
        }
        _ => {
            context.warn("partition", &format!("{}/{}: {text} ({code})", tracked.topic, tracked.partition));
            None
        }
    }
}

fn now_micros() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
}
