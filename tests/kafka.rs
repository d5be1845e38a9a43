//! Kafka sources and sinks against a real broker: `KAFKA_BROKERS` names it, `deploy/kafka.sh up` starts one. Every test has
//! topics of its own.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use arrow::array::Array;
use crossbeam_channel::{Receiver, RecvTimeoutError, bounded};
use millstream::cluster::Shape;
use millstream::kafka::Options;
use millstream::sources::kafka::{KafkaSource, StartAt};
use millstream::sources::{Arrival, Connector, Partitions, Port, Positions, SourceError, Start, Status, Topics};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{Offset, TopicPartitionList};

mod backfill;
mod bucket;
mod change;
mod chaos;
mod commands;
pub mod contract;
mod drift;
mod gap;
mod hosts;
mod idle;
mod live;
mod metrics;
mod mixed;
mod older;
mod outage;
mod own_broker;
mod processes;
mod proxy;
mod replayed;
mod savepoint;
mod secure;
mod service;
mod shipped;
mod sink;
mod source;
mod workloads;

/// Longer than anything here takes; a test that waits so long has failed.
const LONG: Duration = Duration::from_secs(30);

/// The brokers to test with.
fn brokers() -> String {
    std::env::var("KAFKA_BROKERS").unwrap_or_else(|_| {
        panic!("no Kafka broker to test with: run `export KAFKA_BROKERS=$(deploy/kafka.sh up)`, or `make test`, which does it")
    })
}

/// A topic name that no other test and no other run has.
fn unique(name: &str) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let nanos = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos();
    format!("{name}-{}-{nanos}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

fn client(brokers: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers);
    config
}

fn admin(brokers: &str) -> AdminClient<DefaultClientContext> {
    client(brokers).create().unwrap()
}

/// Waits for an answer to the admin client, and takes it apart with `ok`.
fn ask<T>(question: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(question)
}

fn options() -> AdminOptions {
    AdminOptions::new().request_timeout(Some(LONG)).operation_timeout(Some(LONG))
}

fn create(brokers: &str, topic: &str, partitions: i32, settings: &[(&str, &str)]) {
    // As many replicas as the brokers have by default: their number, one or three.
    let mut new = NewTopic::new(topic, partitions, TopicReplication::Fixed(-1));
    for (name, value) in settings {
        new = new.set(name, value);
    }
    ask(admin(brokers).create_topics([&new], &options())).unwrap().remove(0).unwrap();
}

fn add_partitions(brokers: &str, topic: &str, count: usize) {
    ask(admin(brokers).create_partitions([&NewPartitions::new(topic, count)], &options())).unwrap().remove(0).unwrap();
}

fn delete_before(brokers: &str, topic: &str, partition: i32, offset: i64) {
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, partition, Offset::Offset(offset)).unwrap();
    ask(admin(brokers).delete_records(&list, &options())).unwrap();
}

/// Deletes a topic, and waits until it is gone.
fn delete(brokers: &str, topic: &str) {
    ask(admin(brokers).delete_topics(&[topic], &options())).unwrap().remove(0).unwrap();
    let consumer: BaseConsumer = client(brokers).create().unwrap();
    let deadline = Instant::now() + LONG;
    let is_there = || consumer.fetch_metadata(None, LONG).unwrap().topics().iter().any(|found| found.name() == topic);
    while is_there() {
        assert!(Instant::now() < deadline, "{topic} is still there");
    }
}

/// Writes messages (partition, value) and waits until all are there.
fn write<'a>(brokers: &str, topic: &str, messages: impl IntoIterator<Item = (i32, &'a [u8])>) {
    let stamped = messages.into_iter().enumerate();
    write_at(brokers, topic, stamped.map(|(i, (partition, value))| (partition, value, 1_700_000_000_000 + i as i64)));
}

/// The same with timestamps.
fn write_at<'a>(brokers: &str, topic: &str, messages: impl IntoIterator<Item = (i32, &'a [u8], i64)>) {
    let mut config = client(brokers);
    config.set("message.max.bytes", "4000000").set("linger.ms", "5").set("enable.idempotence", "true");
    let producer: BaseProducer = config.create().unwrap();
    for (partition, value, time) in messages {
        let mut record = BaseRecord::<[u8], [u8]>::to(topic).partition(partition).payload(value).timestamp(time);
        while let Err((error, back)) = producer.send(record) {
            assert_eq!(error.rdkafka_error_code(), Some(rdkafka::types::RDKafkaErrorCode::QueueFull));
            producer.poll(Duration::from_millis(10));
            record = back;
        }
    }
    producer.flush(LONG).unwrap();
}

/// Writes a transaction of so many numbered messages to partition 0.
fn write_transaction(brokers: &str, topic: &str, count: u32) {
    let producer: BaseProducer = client(brokers).set("transactional.id", unique("writer")).create().unwrap();
    producer.init_transactions(LONG).unwrap();
    producer.begin_transaction().unwrap();
    for number in 0..count {
        let number = number.to_string();
        producer.send(BaseRecord::<[u8], [u8]>::to(topic).partition(0).payload(number.as_bytes())).unwrap();
    }
    producer.commit_transaction(LONG).unwrap();
}

/// Writes `count` numbered messages, in turn to each partition.
fn write_numbers(brokers: &str, topic: &str, partitions: i32, numbers: std::ops::Range<u32>) {
    let values: Vec<String> = numbers.clone().map(|n| n.to_string()).collect();
    let partition = |n: u32| (n % partitions as u32) as i32;
    write(brokers, topic, numbers.zip(&values).map(|(n, value)| (partition(n), value.as_bytes())));
}

/// A message as a worker got it.
#[derive(Debug, Clone, PartialEq)]
struct Got {
    worker: usize,
    topic: String,
    partition: i32,
    offset: i64,
    event_time: i64,
    value: Option<Vec<u8>>,
}

/// What a source is started with, beside its brokers and topics.
#[derive(Clone)]
struct Setup {
    workers: usize,
    start: StartAt,
    positions: Positions,
    topics: Topics,
    until: Option<Positions>,
    message_size_max: usize,
    idle_after: Duration,
    options: BTreeMap<String, String>,
}

impl Default for Setup {
    fn default() -> Self {
        Setup {
            workers: 1,
            start: StartAt::Earliest,
            positions: Positions::default(),
            topics: Topics::new(),
            until: None,
            message_size_max: 1 << 20,
            idle_after: Duration::from_secs(3600),
            options: BTreeMap::new(),
        }
    }
}

/// A source that runs, and all that came from it.
struct Source {
    job: String,
    inboxes: Vec<Receiver<Arrival>>,
    partitions: Arc<Partitions>,
    stop: Arc<AtomicBool>,
    status: Arc<Status>,
    thread: JoinHandle<Result<(), SourceError>>,
    got: Vec<Got>,
    positions: Positions,
    idle: Vec<(String, i32)>,
    ended: usize,
    batches: usize,
}

impl Source {
    fn start(brokers: &str, topics: &[&str], setup: Setup) -> Source {
        Source::try_start(brokers, topics, setup).unwrap()
    }

    fn try_start(brokers: &str, topics: &[&str], setup: Setup) -> Result<Source, SourceError> {
        let source = KafkaSource {
            brokers: brokers.into(),
            topics: topics.iter().map(ToString::to_string).collect(),
            start: setup.start,
            options: Options(setup.options),
        };
        let job = unique("job");
        let (senders, inboxes): (Vec<_>, Vec<_>) = (0..setup.workers).map(|_| bounded(8)).unzip();
        let partitions = Arc::new(Partitions::default());
        let (stop, status) = (Arc::new(AtomicBool::new(false)), Arc::new(Status::default()));
        let start = Start {
            name: "events".into(),
            source: 7,
            job: job.as_str().into(),
            folder: PathBuf::new(),
            message_size_max: setup.message_size_max,
            idle_after: setup.idle_after,
            positions: setup.positions,
            topics: setup.topics,
            until: setup.until,
            shape: Shape::single(setup.workers),
            ports: senders.into_iter().map(|sender| Port::new(sender, Box::new(|| {}))).collect(),
            partitions: partitions.clone(),
            stop: stop.clone(),
            status: status.clone(),
        };
        let thread = source.start(start)?;
        Ok(Source {
            job,
            inboxes,
            partitions,
            stop,
            status,
            thread,
            got: Vec::new(),
            positions: Positions::default(),
            idle: Vec::new(),
            ended: 0,
            batches: 0,
        })
    }

    fn arrive(&mut self, worker: usize, arrival: Arrival) {
        let name = |number| self.partitions.name(number);
        match arrival {
            Arrival::Messages(messages) => {
                self.batches += 1;
                for (i, row) in messages.rows.iter().enumerate() {
                    let (topic, partition) = name(row.partition);
                    assert_eq!(row.source, 7);
                    let value = messages.payloads.is_valid(i).then(|| messages.payloads.value(i).to_vec());
                    self.positions.0.insert((topic.to_string(), partition), row.offset + 1);
                    let (topic, offset, event_time) = (topic.to_string(), row.offset, row.event_time);
                    self.got.push(Got { worker, topic, partition, offset, event_time, value });
                }
            }
            Arrival::Position { partition, offset } => {
                let (topic, partition) = name(partition);
                self.positions.0.insert((topic.to_string(), partition), offset);
            }
            Arrival::Idle(partition) => {
                let (topic, partition) = name(partition);
                self.idle.push((topic.to_string(), partition));
            }
            Arrival::Assigned => {}
            Arrival::End => self.ended += 1,
            other => panic!("a Kafka source does not send {other:?}"),
        }
    }

    /// Takes arrivals until `enough`; panics if it takes too long or the source ends.
    fn until(&mut self, what: &str, mut enough: impl FnMut(&Source) -> bool) {
        let deadline = Instant::now() + LONG;
        while !enough(self) {
            // One that has ended may have left what is not taken yet with another worker.
            let mut gone = 0;
            for worker in 0..self.inboxes.len() {
                match self.inboxes[worker].recv_timeout(Duration::from_millis(5)) {
                    Ok(arrival) => self.arrive(worker, arrival),
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => gone += 1,
                }
            }
            if gone == self.inboxes.len() && self.thread.is_finished() && !enough(self) {
                let ended = std::mem::replace(&mut self.thread, std::thread::spawn(|| Ok(())));
                panic!("ended before {what}: {:?}", ended.join());
            }
            assert!(Instant::now() < deadline, "no {what} after {} messages", self.got.len());
        }
    }

    fn until_messages(&mut self, count: usize) {
        self.until(&format!("{count} messages"), |source| source.got.len() >= count);
        assert_eq!(self.got.len(), count, "no message twice");
    }

    /// Stops, takes what is left, and gives what the source says at its end.
    fn stop(mut self) -> (Stopped, Result<(), SourceError>) {
        self.stop.store(true, Ordering::Relaxed);
        let workers = self.inboxes.len();
        let ends = self.thread.is_finished();
        if !ends {
            self.until("end", |source| source.ended == workers || source.thread.is_finished());
        }
        let result = self.thread.join().unwrap();
        let topics = self.status.topics();
        (Stopped { got: self.got, positions: self.positions, topics, ended: self.ended }, result)
    }

    /// Waits for the source to fail by itself.
    fn failure(self) -> SourceError {
        let deadline = Instant::now() + LONG;
        while !self.thread.is_finished() {
            assert!(Instant::now() < deadline, "the source goes on");
            let _arrival = self.inboxes[0].recv_timeout(Duration::from_millis(20));
        }
        self.thread.join().unwrap().expect_err("the source fails")
    }
}

/// What is left of a source that has stopped.
struct Stopped {
    got: Vec<Got>,
    positions: Positions,
    topics: Topics,
    ended: usize,
}

/// What a group has committed of partition 0.
fn committed(brokers: &str, group: &str, topic: &str) -> Offset {
    let consumer: BaseConsumer = client(brokers).set("group.id", group).create().unwrap();
    let mut list = TopicPartitionList::new();
    list.add_partition(topic, 0);
    let committed = consumer.committed_offsets(list, LONG).unwrap();
    committed.find_partition(topic, 0).unwrap().offset()
}

/// Every partition's numbers, in the order they came.
fn numbers(got: &[Got]) -> BTreeMap<i32, Vec<u32>> {
    let mut numbers: BTreeMap<i32, Vec<u32>> = BTreeMap::new();
    for message in got {
        let text = String::from_utf8(message.value.clone().unwrap()).unwrap();
        numbers.entry(message.partition).or_default().push(text.parse().unwrap());
    }
    numbers
}
