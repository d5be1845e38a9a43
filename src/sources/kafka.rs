//! Kafka topics, by manual assignment.
//!
//! ```text
//!                         one client: one connection to each broker
//!   broker ==fetch==> librdkafka --+-- queue 0 --> reader thread 0 --> port of worker 0   (partitions 0, 2, 4 ...)
//!                                  +-- queue 1 --> reader thread 1 --> port of worker 1   (partitions 1, 3, 5 ...)
//!   watch thread: connects, finds partitions, hands them to the queues; logs, lag, offsets for lag tools
//! ```
//! Batches are natural: a reader hands over what waits, one message when the stream is slow, hundreds when it is not.
//! A full port makes its reader wait, so librdkafka's queue fills and it stops to fetch: nothing grows without a bound.
//! A position that is gone is an error ([`SourceError::Gap`]), never a silent jump. A broker that is away is waited for.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use millstream_operators::error::ConfigError;
use millstream_operators::kinds::Kind;
use rdkafka::consumer::BaseConsumer;

use super::{Connection, Connector, Gap, Positions, SourceError, SourceSettings, Start, Topics};
use crate::kafka::{self, Context, OptionError, Options, Side};
use connect::Contact;

mod connect;
mod gap;
mod read;
mod watch;

/// Kafka topics. Partitions are assigned by hand, offsets live in the checkpoint; the group's offsets are committed for
/// lag tools only.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct KafkaSource {
    /// Addresses of some brokers, `host:port`, separated by commas.
    pub brokers: String,
    /// The topics.
    pub topics: Vec<String>,
    /// Where to start a partition that has no position yet. Partitions that are added later start at their beginning.
    #[serde(default)]
    pub start: StartAt,
    /// More settings of librdkafka (`security.protocol`, `sasl.username` ...). Settings that the engine owns are refused.
    #[serde(default, skip_serializing_if = "no_options")]
    pub options: Options,
}

/// True if there are none, so that a file written from a value does not name them.
pub(crate) fn no_options(options: &Options) -> bool {
    options.0.is_empty()
}

/// Where to start a partition that has no position yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum StartAt {
    /// At the oldest message there is.
    #[default]
    Earliest,
    /// At the end: only messages that come after the start.
    Latest,
}

impl Kind for KafkaSource {
    const EXAMPLE: &'static str = "{ brokers: \"localhost:9092\", topics: [card.txn], start: latest }";
}

impl KafkaSource {
    /// Topics, read from their beginning.
    pub fn new<'a>(brokers: &str, topics: impl IntoIterator<Item = &'a str>) -> Self {
        let topics = topics.into_iter().map(str::to_string).collect();
        KafkaSource { brokers: brokers.into(), topics, start: StartAt::default(), options: Options::default() }
    }
}

impl SourceSettings for KafkaSource {
    fn errors(&self) -> Vec<ConfigError> {
        let brokers = self.brokers.trim().is_empty();
        let brokers = brokers.then(|| ConfigError::new("brokers", "there is no broker to ask"));
        let topics = self.topics.is_empty().then(|| ConfigError::new("topics", "there is no topic to read"));
        let options = self.options.errors(Side::Consumer).into_iter().map(OptionError::at_its_option);
        brokers.into_iter().chain(topics).chain(options).collect()
    }

    fn connector(&self) -> Option<&dyn Connector> {
        Some(self)
    }

    fn topics(&self) -> Option<&[String]> {
        Some(&self.topics)
    }
}

impl Connector for KafkaSource {
    /// Starts the threads and returns at once: brokers may still be away. A topic that does not exist, a position that is
    /// gone and a user who may not read come as errors of the returned thread, as soon as a broker says so.
    fn start(&self, start: Start) -> Result<JoinHandle<Result<(), SourceError>>, SourceError> {
        let name = start.name.clone();
        let consumer = self.consumer(&name, &start.job, start.idle_after)?;
        let (source, status) = (self.clone(), start.status.clone());
        let run = move || {
            let consumer = Arc::new(consumer);
            let result = watch::run(&source, consumer.clone(), start);
            close(consumer);
            status.set_connection(Connection::Ended);
            result
        };
        let thread = thread::Builder::new().name(format!("source-{name}")).spawn(run);
        let detail = |error| format!("no thread to be had: {error}");
        thread.map_err(|error| SourceError::Kafka { name: name.to_string(), detail: detail(error) })
    }

    fn pass_gaps(
        &self,
        name: &str,
        job: &str,
        positions: &mut Positions,
        topics: &mut Topics,
    ) -> Result<Vec<Gap>, SourceError> {
        let consumer = Arc::new(self.consumer(name, job, Duration::MAX)?);
        // A start is ended from outside.
        let halt = Halt::by(Arc::default());
        let gaps = Contact { source: self, name, consumer: &consumer, halt: &halt }.pass_gaps(positions, topics);
        close(consumer);
        gaps
    }
}

impl KafkaSource {
    /// A client for source `name` of `job`, of which it is asked whether partitions have had no events for `idle_after`.
    fn consumer(&self, name: &str, job: &str, idle_after: Duration) -> Result<BaseConsumer<Context>, SourceError> {
        let config = kafka::consumer(&self.brokers, job, &self.options);
        let consumer = config.and_then(|mut config| {
            // A broker has twice the time to answer a fetch in between.
            let fetch = kafka::number(&config, "fetch.wait.max.ms").unwrap_or_default();
            let quarter = (idle_after / 4).clamp(LOOK_MIN, LOOK_MAX).as_millis();
            config.set("statistics.interval.ms", quarter.max(2 * fetch as u128).to_string());
            kafka::open_consumer(&config, format!("source {name}"))
        });
        consumer.map_err(|error| SourceError::Kafka { name: name.to_string(), detail: error.to_string() })
    }
}

/// How often the client's statistics are looked at, at most and at least: what is known of idle partitions is as old as that.
const LOOK_MIN: Duration = Duration::from_millis(250);
const LOOK_MAX: Duration = Duration::from_secs(5);
/// How long the end of a source waits for its client to take leave of the brokers.
const CLOSE_WAIT: Duration = Duration::from_secs(2);

/// Drops the last hold of a client. It takes leave of its brokers, and waits for those that are away however long that is:
/// so it does it on a thread that nobody waits for longer than [`CLOSE_WAIT`].
fn close(consumer: Arc<BaseConsumer<Context>>) {
    let (closed, wait) = crossbeam_channel::bounded::<()>(1);
    let close = move || {
        drop(consumer);
        drop(closed);
    };
    if thread::Builder::new().name("kafka-close".into()).spawn(close).is_ok() {
        // The sender's end is the answer; none in time is as good.
        let _closed = wait.recv_timeout(CLOSE_WAIT);
    }
}

/// A partition that is read: written by its reader, looked at by the watch thread.
#[derive(Debug)]
struct Tracked {
    topic: Arc<str>,
    partition: i32,
    /// In the job's table of partitions.
    number: u32,
    /// The next offset to hand over.
    position: AtomicI64,
    /// The first offset that is not wanted; the largest number there is for a partition that is read on.
    until: i64,
    /// True when everything before `until` has been handed over.
    through: AtomicBool,
    records: AtomicU64,
    bytes: AtomicU64,
    /// When the newest message was read, and the timestamp it bears; milliseconds since 1970, 0 before the first.
    read_at: AtomicI64,
    stamped: AtomicI64,
    /// True while everything there is has been read.
    at_end: AtomicBool,
}

impl Tracked {
    fn new(topic: Arc<str>, partition: i32, number: u32, position: i64, until: i64) -> Self {
        Tracked {
            topic,
            partition,
            number,
            position: AtomicI64::new(position),
            until,
            through: AtomicBool::new(false),
            records: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            read_at: AtomicI64::new(0),
            stamped: AtomicI64::new(0),
            at_end: AtomicBool::new(false),
        }
    }
}

/// When a source's threads are to stop.
#[derive(Debug)]
struct Halt {
    /// By the job: hand over what was begun, say that it was all.
    asked: Arc<AtomicBool>,
    /// Because one of them failed or lost its worker: what was handed over is not all.
    broken: AtomicBool,
    /// Because everything that was wanted has been handed over.
    through: AtomicBool,
}

impl Halt {
    fn by(asked: Arc<AtomicBool>) -> Halt {
        Halt { asked, broken: AtomicBool::new(false), through: AtomicBool::new(false) }
    }

    fn now(&self) -> bool {
        [&*self.asked, &self.broken, &self.through].into_iter().any(|told| told.load(Ordering::Relaxed))
    }
}
