//! The watch thread of a source: starts the readers, finds partitions, and says how things stand.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crossbeam_channel::{Sender, unbounded};
use millstream_kafka_batch::{Inlet, Queue, watermarks};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::{Offset, TopicPartitionList};

use super::connect::{Begin, Contact};
use super::read::{Assigned, Broken, Inbox, MESSAGES_MAX, Reader};
use super::{Halt, KafkaSource, Tracked};
use crate::cluster::Shape;
use crate::kafka::{ClientError, Context};
use crate::metrics::catalogue;
use crate::sources::{Connection, Partitions, Positions, SourceError, Start, Status, Topics};

/// How long the thread waits for events of the client before it looks at everything else.
const TURN: Duration = Duration::from_millis(100);
const METRICS_EVERY: Duration = Duration::from_secs(1);
/// How soon a partition that was added is found.
const DISCOVER_EVERY: Duration = Duration::from_secs(3);
/// A topic that brokers say is gone for so long was deleted; for a moment, a broker that starts may not know it.
const MISSING_MAX: Duration = Duration::from_secs(15);

/// Reads until the job stops; the first thing that went wrong, if something did.
pub(super) fn run(source: &KafkaSource, consumer: Arc<BaseConsumer<Context>>, start: Start) -> Result<(), SourceError> {
    let Start { name, ports, shape, partitions, stop, status, idle_after, message_size_max, .. } = start;
    let halt = Halt::by(stop);
    let contact = Contact { source, name: &name, consumer: &consumer, halt: &halt };
    let begin = contact.begin(&start.positions, &start.topics)?;
    let paused: Vec<AtomicBool> = ports.iter().map(|_| AtomicBool::new(false)).collect();
    let mut lanes = Vec::new();
    thread::scope(|scope| {
        let mut readers = Vec::new();
        for (port, paused) in ports.into_iter().zip(&paused) {
            let queue = Queue::new(consumer.clone(), MESSAGES_MAX);
            let (assign, assigned) = unbounded();
            lanes.push(Lane { inlet: queue.inlet(), assign });
            let inbox = Inbox::new(assigned, consumer.context().clone(), start.source, message_size_max);
            let (taken, heard) = (0, Default::default());
            let reader = Reader { queue, port, halt: &halt, paused, idle_after, inbox, taken, heard };
            let halt = &halt;
            let run = move || reader.run().inspect_err(|_| halt.broken.store(true, Relaxed));
            readers.push(scope.spawn(run));
        }
        let mut watch = Watch {
            contact: &contact,
            name: &name,
            partitions: &partitions,
            until: start.until,
            fetched: HashSet::new(),
            shape,
            lanes,
            tracked: Vec::new(),
            known: HashMap::new(),
            topics: Topics::new(),
        };
        let watched = match begin {
            Some((begin, topics)) => {
                // Before any position: a checkpoint that has one knows the topic as well.
                status.set_topics(topics.clone());
                watch.topics = topics;
                watch.warn_of_what_is_gone(&begin, &start.positions);
                watch.run(begin, &status, &paused)
            }
            None => Ok(()),
        };
        if watched.is_err() {
            halt.broken.store(true, Relaxed);
        }
        // A scoped thread that panics is a bug: it ends the process like any other.
        let ends =
            readers.into_iter().map(|reader| reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        let ends: Vec<Result<(), Broken>> = ends.collect();
        watched?;
        ends.into_iter().try_for_each(|end| end.or_else(|broken| watch.error(broken)))
    })
}

/// The way to a reader.
struct Lane {
    inlet: Inlet<Context>,
    assign: Sender<Assigned>,
}

/// What the watch thread knows.
struct Watch<'a> {
    contact: &'a Contact<'a>,
    name: &'a str,
    partitions: &'a Partitions,
    /// Where to end, if anywhere.
    until: Option<Positions>,
    /// Numbers of the partitions that librdkafka fetches from.
    fetched: HashSet<u32>,
    shape: Shape,
    lanes: Vec<Lane>,
    /// The partitions that this process reads.
    tracked: Vec<Arc<Tracked>>,
    /// How many partitions of each topic there are, whoever reads them.
    known: HashMap<String, usize>,
    /// What was known of the topics at the first contact.
    topics: Topics,
}

impl Watch<'_> {
    fn run(&mut self, begin: Vec<Begin>, status: &Status, paused: &[AtomicBool]) -> Result<(), SourceError> {
        self.assign(begin)?;
        for lane in &self.lanes {
            let _gone = lane.assign.send(Assigned::All);
        }
        status.set_connection(Connection::Reading);
        tracing::info!(source = self.name, partitions = self.tracked.len(), "reading");
        let mut figures = Figures::new(self.name);
        let (mut counted, mut discovered) = (Instant::now(), Instant::now());
        let mut missing: HashMap<String, Instant> = HashMap::new();
        let context = self.contact.consumer.context().clone();
        while !self.contact.halt.now() {
            // Messages go to the readers' queues; what comes here are events, which the context takes.
            let _event = self.contact.consumer.poll(TURN);
            if self.until.is_some() {
                self.end_what_is_through()?;
            }
            if let Some(positions) = status.take_committed() {
                self.commit(&positions, &figures);
            }
            if counted.elapsed() >= METRICS_EVERY {
                counted = Instant::now();
                figures.publish(self.contact.consumer, &self.tracked, paused);
            }
            if discovered.elapsed() >= DISCOVER_EVERY {
                self.discover(&mut missing, status)?;
                discovered = Instant::now();
            }
            let now = if context.is_down() { Connection::Lost } else { Connection::Reading };
            if status.set_connection(now) != now {
                tracing::warn!(source = self.name, connection = ?now, "the connection to the brokers changed");
            }
        }
        figures.publish(self.contact.consumer, &self.tracked, paused);
        Ok(())
    }

    /// Has partitions read: the reader is told first, then its queue, then librdkafka.
    fn assign(&mut self, begin: Vec<Begin>) -> Result<(), SourceError> {
        let fail = |detail: String| SourceError::Kafka { name: self.name.into(), detail };
        let mut list = TopicPartitionList::new();
        for Begin { topic, partition, position } in begin {
            *self.known.entry(topic.clone()).or_default() += 1;
            let Some(until) = self.until(&topic, partition) else { continue };
            let worker = partition.unsigned_abs() as usize % self.shape.total();
            if !self.shape.local().contains(&worker) {
                continue;
            }
            let number = self.partitions.number(&topic, partition);
            let tracked = Arc::new(Tracked::new(topic.as_str().into(), partition, number, position, until));
            let lane = &self.lanes[worker - self.shape.local().start];
            // A reader that has gone says why itself.
            let _gone = lane.assign.send(Assigned::Partition(tracked.clone()));
            self.tracked.push(tracked);
            if position >= until {
                continue;
            }
            lane.inlet.hand_over(&topic, partition).map_err(|error| fail(error.to_string()))?;
            let added = list.add_partition_offset(&topic, partition, Offset::Offset(position));
            added.map_err(|error| fail(format!("{topic}/{partition} at {position}: {error}")))?;
            self.fetched.insert(number);
        }
        // All may be others' to read.
        if list.count() == 0 {
            return Ok(());
        }
        let assigned = self.contact.consumer.incremental_assign(&list);
        assigned.map_err(|error| fail(format!("assign {} partitions: {error}", list.count())))
    }

    /// The first offset of a partition that is not wanted; `None` if nothing of it is.
    fn until(&self, topic: &str, partition: i32) -> Option<i64> {
        let Some(until) = &self.until else { return Some(i64::MAX) };
        until.0.get(&(topic.to_string(), partition)).copied()
    }

    /// A source that ends somewhere reads what there was: it should be known what there is no more.
    fn warn_of_what_is_gone(&self, begin: &[Begin], resumed: &Positions) {
        let is_first = |begin: &&Begin| !resumed.0.contains_key(&(begin.topic.clone(), begin.partition));
        for Begin { topic, partition, position } in begin.iter().filter(is_first).filter(|begin| begin.position > 0) {
            if self.until.is_some() && self.until(topic, *partition).is_some() {
                let source = self.name;
                tracing::warn!(
                    source,
                    topic,
                    partition,
                    first = position,
                    "the records before are gone from the topic"
                );
            }
        }
    }

    /// Has nothing more fetched of partitions that are read as far as is wanted; when all are, the readers are told.
    fn end_what_is_through(&mut self) -> Result<(), SourceError> {
        let mut list = TopicPartitionList::new();
        let is_through = |tracked: &Arc<Tracked>| tracked.through.load(Relaxed);
        for tracked in self.tracked.iter().filter(|tracked| is_through(tracked)) {
            if self.fetched.remove(&tracked.number) {
                list.add_partition(&tracked.topic, tracked.partition);
            }
        }
        if list.count() > 0 {
            let left = self.contact.consumer.incremental_unassign(&list);
            left.map_err(|error| SourceError::Kafka {
                name: self.name.into(),
                detail: format!("leave {} partitions that have been read: {error}", list.count()),
            })?;
        }
        if self.tracked.iter().all(is_through) {
            self.contact.halt.through.store(true, Relaxed);
        }
        Ok(())
    }

    /// Looks for partitions that were added, and for topics that were deleted.
    fn discover(&mut self, missing: &mut HashMap<String, Instant>, status: &Status) -> Result<(), SourceError> {
        for topic in &self.contact.source.topics {
            let known = self.known.get(topic).copied().unwrap_or(0);
            match self.contact.added(topic, i32::try_from(known).unwrap_or(i32::MAX)) {
                Ok(Some(begin)) => {
                    self.contact.consumer.context().up();
                    missing.remove(topic);
                    self.check_id(topic, status)?;
                    if !begin.is_empty() {
                        tracing::info!(source = self.name, topic, added = begin.len(), "partitions were added");
                        self.assign(begin)?;
                    }
                }
                Ok(None) => {}
                Err(error @ ClientError::NoTopic { .. }) => {
                    let since = missing.entry(topic.clone()).or_insert_with(Instant::now);
                    if since.elapsed() >= MISSING_MAX {
                        let detail = format!("it was deleted while it was read: {error}");
                        return Err(SourceError::Kafka { name: self.name.into(), detail });
                    }
                }
                Err(error) => self.contact.consumer.context().warn("discover", &error.to_string()),
            }
        }
        Ok(())
    }

    /// A topic that was made anew while it was read may have grown past a position already: nothing else would show it.
    fn check_id(&mut self, topic: &str, status: &Status) -> Result<(), SourceError> {
        let Some(known) = self.topics.get_mut(topic) else { return Ok(()) };
        let of_it = self.tracked.iter().filter(|tracked| *tracked.topic == *topic);
        let positions = of_it.map(|tracked| (tracked.partition, tracked.position.load(Relaxed)));
        let id = self.contact.check_id(topic, known.id.as_deref(), positions)?;
        match &known.id {
            Some(before) if id.as_ref() != Some(before) => {
                // Another process may have read of it: the next start knows all positions.
                let detail = format!("topic `{topic}` was made anew while it was read");
                Err(SourceError::Kafka { name: self.name.into(), detail })
            }
            None if id.is_some() => {
                known.id = id;
                status.set_topics(self.topics.clone());
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Publishes positions for lag tools. Nothing depends on it: the answer goes to the context's log.
    fn commit(&self, positions: &Positions, figures: &Figures) {
        let mut list = TopicPartitionList::new();
        for tracked in &self.tracked {
            let at = positions.0.get(&(tracked.topic.to_string(), tracked.partition));
            if let Some(position) = at {
                let added = list.add_partition_offset(&tracked.topic, tracked.partition, Offset::Offset(*position));
                if added.is_ok() {
                    figures.committed(tracked, *position);
                }
            }
        }
        if list.count() > 0
            && let Err(error) = self.contact.consumer.commit(&list, CommitMode::Async)
        {
            self.contact.consumer.context().warn("commit", &format!("offsets for lag tools: {error}"));
        }
    }

    /// Why a reader ended. A worker that is gone has its own story to tell.
    fn error(&self, broken: Broken) -> Result<(), SourceError> {
        match broken {
            Broken::Closed => Ok(()),
            Broken::Gone(tracked) => {
                Err(self.contact.gap(&tracked.topic, tracked.partition, tracked.position.load(Relaxed)))
            }
            Broken::Unreadable(tracked, detail) => {
                let detail = format!("{}/{}: {detail}", tracked.topic, tracked.partition);
                Err(SourceError::Kafka { name: self.name.into(), detail })
            }
        }
    }
}

/// The source's metrics.
struct Figures<'a> {
    name: &'a str,
    /// What has been counted of each partition, by its number: records and bytes.
    counted: HashMap<u32, (u64, u64)>,
}

impl<'a> Figures<'a> {
    fn new(name: &'a str) -> Self {
        Figures { name, counted: HashMap::new() }
    }

    fn publish(&mut self, consumer: &BaseConsumer<Context>, tracked: &[Arc<Tracked>], paused: &[AtomicBool]) {
        catalogue::SOURCE_PARTITIONS_ASSIGNED.of([self.name]).set(tracked.len() as f64);
        catalogue::SOURCE_PAUSED.of([self.name]).set(f64::from(u8::from(paused.iter().any(|p| p.load(Relaxed)))));
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_millis() as i64);
        for tracked in tracked {
            self.partition(consumer, tracked, now);
        }
    }

    fn partition(&mut self, consumer: &BaseConsumer<Context>, tracked: &Tracked, now: i64) {
        let (records, bytes) = (tracked.records.load(Relaxed), tracked.bytes.load(Relaxed));
        let (before, bytes_before) = self.counted.insert(tracked.number, (records, bytes)).unwrap_or_default();
        let topic = [self.name, &tracked.topic];
        catalogue::SOURCE_RECORDS.of(topic).increment(records - before);
        catalogue::SOURCE_BYTES.of(topic).increment(bytes - bytes_before);

        let partition = tracked.partition.to_string();
        let labels = [self.name, &*tracked.topic, partition.as_str()];
        let position = tracked.position.load(Relaxed);
        let at_end = tracked.at_end.load(Relaxed);
        catalogue::SOURCE_POSITION.of(labels).set(position as f64);
        if let Some((_, high)) = watermarks(consumer, &tracked.topic, tracked.partition) {
            // The last answer to a fetch may be older than what was read since.
            let lag = if at_end { 0 } else { (high - position).max(0) };
            catalogue::SOURCE_LAG_RECORDS.of(labels).set(lag as f64);
        }
        let read_at = tracked.read_at.load(Relaxed);
        if read_at > 0 {
            let seconds = |since: i64| (now - since).max(0) as f64 / 1000.0;
            catalogue::SOURCE_LAST_RECORD.of(labels).set(read_at as f64 / 1000.0);
            catalogue::SOURCE_IDLE_SECONDS.of(labels).set(if at_end { seconds(read_at) } else { 0.0 });
            let behind = if at_end { 0.0 } else { seconds(tracked.stamped.load(Relaxed)) };
            catalogue::SOURCE_LAG_SECONDS.of(labels).set(behind);
        }
    }

    fn committed(&self, tracked: &Tracked, position: i64) {
        let partition = tracked.partition.to_string();
        let labels = [self.name, &*tracked.topic, partition.as_str()];
        catalogue::SOURCE_COMMITTED_OFFSET.of(labels).set(position as f64);
    }
}
