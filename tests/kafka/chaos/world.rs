//! The world around a job that dies: somebody who writes events and labels all the time, somebody who reads what is committed.

use std::sync::Mutex;
use std::sync::atomic::AtomicU64;

use rdkafka::Message;
use rdkafka::error::KafkaError;
use serde_json::Value;

use super::super::service::Service;
use super::super::*;
use super::oracle::Oracle;
use crate::program::{Running, Said};
use crate::random::Random;

/// Partitions of the events, and of the labels.
pub const PARTITIONS: i32 = 3;
const OF_LABELS: i32 = 2;

/// The topics of the job, and how many partitions each has.
pub const TOPICS: [(&str, i32); 5] =
    [("events", PARTITIONS), ("labels", OF_LABELS), ("vectors", 2), ("rejects", 1), ("signals", 1)];

/// How many events a job may be behind: then the writer waits, or those who die all the time would have hours to catch up with.
const BEHIND_MAX: u64 = 30_000;

/// The variable of the topology that names the stream of the events: `events` for a job that takes each as it comes.
pub const STREAM: &str = "STREAM";

/// Who writes a job's inputs, and who reads its outputs.
pub struct World {
    writer: Writer,
    vectors: Reader,
    rejects: Reader,
    signals: Reader,
}

/// Inputs that are all written: what they said, and how many there are of each topic.
pub struct Written {
    oracle: Oracle,
    inputs: [(String, i32, u64); 2],
}

impl World {
    /// The world around a job whose topics are there.
    pub fn around(service: &Service, seed: u64) -> World {
        let reader = |name: &str| {
            let partitions = TOPICS.iter().find(|(topic, _)| *topic == name).map_or(1, |(_, partitions)| *partitions);
            Reader::start(&service.brokers, service.topic(name), partitions)
        };
        let (vectors, rejects, signals) = (reader("vectors"), reader("rejects"), reader("signals"));
        let outputs = [vectors.values.clone(), rejects.values.clone()];
        World { writer: Writer::start(service, seed, outputs), vectors, rejects, signals }
    }

    /// How many events there are.
    pub fn written(&self) -> u64 {
        self.writer.written.load(Ordering::Acquire)
    }

    /// How many vectors and dead letters have been read.
    pub fn read(&self) -> usize {
        self.vectors.values.len() + self.rejects.values.len()
    }

    /// Writes no more.
    pub fn stop(&mut self, service: &Service) -> Written {
        self.writer.stop(service)
    }

    /// Leaves a job that reads alone until all has come of what is written that will come: it has said nothing for so long, or has read
    /// everything.
    pub fn settle(&self, written: &Written, running: &mut Running, service: &Service, silence: Duration) {
        let all = written.oracle.expected.len() + written.oracle.poison.len();
        let positions = Committed::of(service);
        let inputs: u64 = written.inputs.iter().map(|(.., count)| count).sum();
        let (mut grown, mut before) = (Instant::now(), (0, 0));
        while running.runs() && grown.elapsed() < silence {
            let now = (self.read(), positions.count(&written.inputs));
            if now.0 >= all && now.1 >= inputs {
                break;
            }
            if now != before {
                (grown, before) = (Instant::now(), now);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Holds all outputs of a job that has ended against what had to come out; gives how many events, dead letters and signals. An error
    /// is a line for each output that is wrong; the table is the last to be looked at.
    pub fn check(self, written: &Written, service: &Service, said: &Said) -> Result<[usize; 3], String> {
        let oracle = &written.oracle;
        let [vectors, rejects, signals] = std::thread::scope(|scope| {
            let reading = [self.vectors, self.rejects, self.signals].map(|reader| scope.spawn(|| reader.finish()));
            reading.map(|reading| reading.join().expect("a reader ends"))
        });
        let (vectors, rejects, signals) = (vectors?, rejects?, signals?);
        let summary: Value = serde_json::from_str(&said.out).map_err(|error| format!("{error}: {}", said.out))?;
        let mut checks = vec![
            ("topic", oracle.check_vectors(vectors.iter().map(Vec::as_slice))),
            ("dead letters", oracle.check_rejects(rejects.iter().map(Vec::as_slice))),
            ("detectors", oracle.watched.check(signals.iter().map(Vec::as_slice))),
            ("outcomes", oracle.check_quality(&summary)),
        ];
        if !service.is_in_bucket() {
            let lines = std::fs::read(service.folder().join("vectors.jsonl")).map_err(|error| error.to_string())?;
            let lines = lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
            checks.push(("file", oracle.check_vectors(lines)));
            // It takes a second or two, and is not needed to find out what is known.
            if checks.iter().all(|(_, checked)| checked.is_ok()) {
                checks.push(("table", oracle.check_table(&service.folder().join("lake"))));
            }
        }
        let wrong = checks.into_iter().filter_map(|(what, checked)| Some(format!("{what}: {}", checked.err()?)));
        let wrong: Vec<String> = wrong.collect();
        if wrong.is_empty() { Ok([vectors.len(), rejects.len(), signals.len()]) } else { Err(wrong.join("\n")) }
    }
}

impl Written {
    /// Whether what a job serves at this address is what the last events have made of it.
    pub fn check_served(&self, address: &str) -> Result<(), String> {
        self.oracle.check_served(address)
    }
}

/// Asks how far a job is by the offsets that it commits for lag tools.
struct Committed(BaseConsumer);

impl Committed {
    fn of(service: &Service) -> Committed {
        Committed(client(&service.brokers).set("group.id", &service.run).create().unwrap())
    }

    /// How many records of the topics the job has read.
    fn count(&self, inputs: &[(String, i32, u64)]) -> u64 {
        let mut list = TopicPartitionList::new();
        inputs.iter().for_each(|(topic, count, _)| _ = list.add_partition_range(topic, 0, count - 1));
        // A broker that is away for a moment comes back.
        let Ok(committed) = self.0.committed_offsets(list, LONG) else { return 0 };
        committed.elements().iter().filter_map(|at| u64::try_from(at.offset().to_raw()?).ok()).sum()
    }
}

/// Writes events at about a thousand a second until it is told to stop, and their labels; waits for a job that is far behind.
struct Writer {
    stop: Arc<AtomicBool>,
    /// How many events there are.
    written: Arc<AtomicU64>,
    thread: Option<JoinHandle<(Oracle, [u64; 2])>>,
}

impl Writer {
    /// Writes to a job whose outputs are these.
    fn start(service: &Service, seed: u64, outputs: [Arc<Values>; 2]) -> Writer {
        let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (asked, count) = (stop.clone(), written.clone());
        let (brokers, topics) = (service.brokers.clone(), ["events", "labels"].map(|name| service.topic(name)));
        // A job that does not tell them apart is sent none twice.
        let oracle = Oracle::new(!service.has(STREAM));
        let read = move || outputs.iter().map(|values| values.len() as u64).sum();
        let thread = std::thread::spawn(move || write_events(&brokers, &topics, oracle, seed, &asked, &count, read));
        Writer { stop, written, thread: Some(thread) }
    }

    fn stop(&mut self, service: &Service) -> Written {
        self.stop.store(true, Ordering::Release);
        let thread = self.thread.take().expect("it is stopped once");
        let (oracle, [again, labels]) = thread.join().expect("the writer ends");
        let events = self.written.load(Ordering::Acquire) + again;
        let inputs = [(service.topic("events"), PARTITIONS, events), (service.topic("labels"), OF_LABELS, labels)];
        Written { oracle, inputs }
    }
}

/// Gives what the events said, how many of them were sent again, and how many labels there are.
fn write_events(
    brokers: &str,
    [events, labels]: &[String; 2],
    mut oracle: Oracle,
    seed: u64,
    stop: &AtomicBool,
    written: &AtomicU64,
    read: impl Fn() -> u64,
) -> (Oracle, [u64; 2]) {
    let (mut random, mut id) = (Random(seed), 0);
    let (mut repeated, mut labelled) = (0, 0);
    let producer: BaseProducer =
        client(brokers).set("enable.idempotence", "true").set("linger.ms", "1").create().unwrap();
    let send = |topic: &str, (partition, value): (i32, String)| {
        let mut record = BaseRecord::<[u8], [u8]>::to(topic).partition(partition).payload(value.as_bytes());
        while let Err((_, back)) = producer.send(record) {
            producer.poll(Duration::from_millis(10));
            record = back;
        }
    };
    while !stop.load(Ordering::Acquire) {
        for _ in 0..20 + random.below(60) {
            id += 1;
            send(events, oracle.event(id, &mut random));
            let (again, due) = (oracle.again(id), oracle.labels.due(id));
            repeated += again.len() as u64;
            labelled += due.len() as u64;
            again.into_iter().for_each(|event| send(events, event));
            due.into_iter().for_each(|label| send(labels, label));
        }
        producer.poll(Duration::ZERO);
        written.store(id, Ordering::Release);
        std::thread::sleep(Duration::from_millis(random.below(90)));
        while id > read() + BEHIND_MAX && !stop.load(Ordering::Acquire) {
            producer.poll(Duration::from_millis(20));
        }
    }
    let last = oracle.labels.due(u64::MAX - 1);
    labelled += last.len() as u64;
    last.into_iter().for_each(|label| send(labels, label));
    producer.flush(LONG).expect("the broker takes the events");
    (oracle, [repeated, labelled])
}

/// What has been read of a topic, by partition.
struct Values(Mutex<Vec<Vec<Vec<u8>>>>);

impl Values {
    /// How many there are.
    fn len(&self) -> usize {
        self.0.lock().unwrap().iter().map(Vec::len).sum()
    }
}

/// Reads what is committed in a topic as it comes, for as long as it lives: nothing that it has once seen can be taken back.
struct Reader {
    brokers: String,
    topic: String,
    stop: Arc<AtomicBool>,
    values: Arc<Values>,
    thread: JoinHandle<()>,
}

impl Reader {
    fn start(brokers: &str, topic: String, partitions: i32) -> Reader {
        let consumer = read_from_beginning(brokers, &topic, partitions);
        let values = Arc::new(Values(Mutex::new(vec![Vec::new(); partitions as usize])));
        let (stop, into) = (Arc::new(AtomicBool::new(false)), values.clone());
        let asked = stop.clone();
        let thread = std::thread::spawn(move || {
            while !asked.load(Ordering::Acquire) {
                // A broker that is away for a moment comes back.
                if let Some(Ok(message)) = consumer.poll(Duration::from_millis(50)) {
                    let value = message.payload().unwrap_or_default().to_vec();
                    into.0.lock().unwrap()[message.partition() as usize].push(value);
                }
            }
        });
        Reader { brokers: brokers.to_owned(), topic, stop, values, thread }
    }

    /// Stops, reads the topic anew from its beginning to its end, and gives what is there; what was read as it came must be.
    fn finish(self) -> Result<Vec<Vec<u8>>, String> {
        self.stop.store(true, Ordering::Release);
        self.thread.join().expect("the reader ends");
        let seen = std::mem::take(&mut *self.values.0.lock().unwrap());
        let all = read_to_end(&self.brokers, &self.topic, seen.len() as i32)?;
        for (partition, (seen, all)) in seen.iter().zip(&all).enumerate() {
            if !all.starts_with(seen) {
                return Err(format!("what was read of partition {partition} of `{}` has changed", self.topic));
            }
        }
        Ok(all.into_iter().flatten().collect())
    }
}

fn read_from_beginning(brokers: &str, topic: &str, partitions: i32) -> BaseConsumer {
    let mut config = client(brokers);
    // The end of a partition is told when a broker that has nothing more has waited for so long.
    config.set("group.id", unique("reader")).set("isolation.level", "read_committed").set("fetch.wait.max.ms", "20");
    let consumer: BaseConsumer = config.set("enable.partition.eof", "true").create().unwrap();
    let mut list = TopicPartitionList::new();
    (0..partitions).for_each(|at| list.add_partition_offset(topic, at, Offset::Beginning).unwrap());
    consumer.assign(&list).unwrap();
    consumer
}

/// All that is committed, by partition.
fn read_to_end(brokers: &str, topic: &str, partitions: i32) -> Result<Vec<Vec<Vec<u8>>>, String> {
    let consumer = read_from_beginning(brokers, topic, partitions);
    let mut all = vec![Vec::new(); partitions as usize];
    let (mut ended, deadline) = (0, Instant::now() + 4 * LONG);
    while ended < partitions && Instant::now() < deadline {
        match consumer.poll(LONG) {
            Some(Ok(message)) => all[message.partition() as usize].push(message.payload().unwrap_or_default().to_vec()),
            Some(Err(KafkaError::PartitionEOF(_))) => ended += 1,
            _ => {}
        }
    }
    if ended < partitions { Err(format!("`{topic}` can't be read to its end")) } else { Ok(all) }
}
