//! The world around a job that dies: somebody who writes events all the time, somebody who reads what is committed.

use std::sync::Mutex;
use std::sync::atomic::AtomicU64;

use rdkafka::Message;

use super::super::*;
use super::oracle::Oracle;
use crate::random::Random;

/// Writes events at about a thousand a second until it is told to stop.
pub struct Writer {
    stop: Arc<AtomicBool>,
    /// How many there are.
    written: Arc<AtomicU64>,
    thread: JoinHandle<Oracle>,
}

impl Writer {
    pub fn start(brokers: String, topic: String, seed: u64) -> Writer {
        let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (asked, count) = (stop.clone(), written.clone());
        let thread = std::thread::spawn(move || write_events(&brokers, &topic, seed, &asked, &count));
        Writer { stop, written, thread }
    }

    pub fn written(&self) -> u64 {
        self.written.load(Ordering::Acquire)
    }

    /// Stops, and gives what the events said.
    pub fn finish(self) -> Oracle {
        self.stop.store(true, Ordering::Release);
        self.thread.join().expect("the writer ends")
    }
}

fn write_events(brokers: &str, topic: &str, seed: u64, stop: &AtomicBool, written: &AtomicU64) -> Oracle {
    let (mut oracle, mut random, mut id) = (Oracle::default(), Random(seed), 0);
    let producer: BaseProducer =
        client(brokers).set("enable.idempotence", "true").set("linger.ms", "1").create().unwrap();
    while !stop.load(Ordering::Acquire) {
        for _ in 0..20 + random.below(60) {
            id += 1;
            let (partition, value) = oracle.event(id, &mut random);
            let mut record = BaseRecord::<[u8], [u8]>::to(topic).partition(partition).payload(value.as_bytes());
            while let Err((_, back)) = producer.send(record) {
                producer.poll(Duration::from_millis(10));
                record = back;
            }
        }
        producer.poll(Duration::ZERO);
        written.store(id, Ordering::Release);
        std::thread::sleep(Duration::from_millis(random.below(90)));
    }
    producer.flush(LONG).expect("the broker takes the events");
    oracle
}

/// Reads what is committed in a topic as it comes, for as long as it lives: nothing that it has once seen can be taken back.
pub struct Reader {
    stop: Arc<AtomicBool>,
    values: Arc<Mutex<Vec<Vec<u8>>>>,
    thread: JoinHandle<()>,
}

impl Reader {
    pub fn start(brokers: &str, topic: &str, partitions: i32) -> Reader {
        let mut config = client(brokers);
        config.set("group.id", unique("reader")).set("isolation.level", "read_committed");
        let consumer: BaseConsumer = config.create().unwrap();
        let mut list = TopicPartitionList::new();
        (0..partitions).for_each(|at| list.add_partition_offset(topic, at, Offset::Beginning).unwrap());
        consumer.assign(&list).unwrap();
        let (stop, values) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let (asked, into) = (stop.clone(), values.clone());
        let thread = std::thread::spawn(move || {
            while !asked.load(Ordering::Acquire) {
                // A broker that is away for a moment comes back.
                if let Some(Ok(message)) = consumer.poll(Duration::from_millis(50)) {
                    into.lock().unwrap().push(message.payload().unwrap_or_default().to_vec());
                }
            }
        });
        Reader { stop, values, thread }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.values.lock().unwrap().len()
    }

    /// Stops, and gives all that was read.
    pub fn finish(self) -> Vec<Vec<u8>> {
        self.stop.store(true, Ordering::Release);
        self.thread.join().expect("the reader ends");
        std::mem::take(&mut self.values.lock().unwrap())
    }
}
