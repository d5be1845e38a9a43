//! Reads the outputs, finds repeats, keeps a sample, and measures latency against the schedule.

use std::fs::File;
use std::io::Write;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hdrhistogram::Histogram;
use millstream_benches::*;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::Message;
use rdkafka::{Offset, TopicPartitionList};

/// Every how many events an output is kept for the check.
const SAMPLE_EVERY: i64 = 97;
/// Events from this number on are not kept.
const SAMPLE_END: i64 = 1_000_000;

/// What the reader has seen.
#[derive(Default)]
pub struct Seen {
    /// Outputs, each event once.
    pub distinct: AtomicU64,
    /// Outputs of an event that had one.
    pub repeated: AtomicU64,
    /// The event whose output, or a later one's, is waited for.
    awaited: AtomicI64,
    /// When that came, in nanoseconds since 1970; 0 before.
    pub came_nanos: AtomicI64,
    schedule: Mutex<Option<Schedule>>,
}

struct Schedule {
    first: u64,
    counted_from: u64,
    start_nanos: i64,
    rate: u64,
    histogram: Histogram<u64>,
}

/// The reading thread.
pub struct Reader {
    /// What it has seen.
    pub shared: Arc<Seen>,
}

impl Reader {
    /// Starts to read the topic of the results from its beginning.
    pub fn start() -> anyhow::Result<Reader> {
        let consumer: BaseConsumer = client()
            .set("group.id", "bench-reader")
            .set("enable.auto.commit", "false")
            .set("isolation.level", variable("ISOLATION", "read_uncommitted"))
            .set("fetch.queue.backoff.ms", "1")
            .set("queued.max.messages.kbytes", "262144")
            .set("auto.offset.reset", "earliest")
            .create()?;
        let mut positions = TopicPartitionList::new();
        for partition in 0..PARTITIONS {
            positions.add_partition_offset(TOPIC_OUT, partition, Offset::Beginning)?;
        }
        consumer.assign(&positions)?;
        let sample = match std::env::var("SAMPLE") {
            Ok(path) => Some(File::create(path)?),
            Err(_) => None,
        };
        let shared = Arc::new(Seen::default());
        let seen = shared.clone();
        std::thread::Builder::new().name("reader".into()).spawn(move || read(&consumer, &seen, sample))?;
        Ok(Reader { shared })
    }

    /// From now on, measures latency: event `first + i` is due at `start_nanos + i / rate`.
    pub fn measure(&self, first: u64, counted_from: u64, start_nanos: i64, rate: u64) {
        let histogram = Histogram::new_with_bounds(1, 120_000_000, 3).expect("three digits up to two minutes");
        let schedule = Schedule { first, counted_from, start_nanos, rate, histogram };
        *self.shared.schedule.lock().expect("the reader does not panic") = Some(schedule);
    }

    /// From now on, waits for the output of event `id` or of a later one: [`Seen::came_nanos`].
    pub fn await_event(&self, id: u64) {
        self.shared.came_nanos.store(0, Relaxed);
        self.shared.awaited.store(id as i64, Relaxed);
    }

    /// Ends the measurement; gives latencies in microseconds.
    pub fn take(&self) -> Histogram<u64> {
        let schedule = self.shared.schedule.lock().expect("the reader does not panic").take();
        schedule.expect("a measurement was begun").histogram
    }
}

fn read(consumer: &BaseConsumer, seen: &Seen, mut sample: Option<File>) {
    let mut ids: Vec<bool> = Vec::new();
    loop {
        let Some(message) = consumer.poll(Duration::from_millis(100)) else { continue };
        let message = message.expect("the results can be read");
        let value = message.payload().unwrap_or_default();
        let at = value.iter().position(u8::is_ascii_digit).expect("a result begins with its id");
        let id = digits(&value[at..]);
        if ids.len() <= id as usize {
            ids.resize(id as usize + 1_000_000, false);
        }
        if std::mem::replace(&mut ids[id as usize], true) {
            seen.repeated.fetch_add(1, Relaxed);
            continue;
        }
        if let Some(sample) = sample.as_mut().filter(|_| id % SAMPLE_EVERY == 0 && id < SAMPLE_END) {
            // A write for each line, so that the sample is whole whenever the bench ends.
            sample.write_all(&[value, b"\n"].concat()).expect("the sample can be written");
        }
        if let Some(schedule) = seen.schedule.lock().expect("the bench does not panic").as_mut()
            && id as u64 >= schedule.counted_from
        {
            let due = schedule.start_nanos + ((id as u64 - schedule.first) * 1_000_000_000 / schedule.rate) as i64;
            schedule.histogram.saturating_record(((now_nanos() - due) / 1_000).max(1) as u64);
        }
        if id >= seen.awaited.load(Relaxed) && seen.came_nanos.load(Relaxed) == 0 {
            seen.came_nanos.store(now_nanos(), Relaxed);
        }
        seen.distinct.fetch_add(1, Relaxed);
    }
}

/// Nanoseconds since 1970.
pub fn now_nanos() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as i64)
}
