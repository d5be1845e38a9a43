//! Kafka topics, written by one idempotent producer a worker.
//!
//! One producer a worker, because then nothing is shared on the way out: a worker's records stay in order, its epochs
//! are counted without a lock that another holds, and each worker can have a transaction of its own.
//!
//! A message's timestamp is the time it is written, not the event's: brokers delete by timestamp, so the results of a
//! replay of last year would be deleted at once, and an event dated in the future would be refused. The event time goes
//! into the header `event_time` (milliseconds since 1970), beside the headers that the records bring.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use millstream_operators::kinds::Kind;
use millstream_operators::units::Millis;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::KafkaError;
use rdkafka::message::{DeliveryResult, Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer, ProducerContext};
use rdkafka::types::RDKafkaErrorCode;
use rdkafka::{ClientContext, Statistics};

use super::{Open, Records, SinkError, SinkTarget, SinkWriter};
use crate::kafka::{self, ClientError, Context, OptionError, Options, Side};
use crate::sources::kafka::no_options;

/// The header with the event time, in milliseconds since 1970.
pub const EVENT_TIME_HEADER: &str = "event_time";
/// How long `open` waits for a broker. One that is away later or longer is backpressure, not an error.
const OPEN_WAIT: Duration = Duration::from_secs(5);
/// How long a writer that is dropped waits for what is on its way.
const DROP_WAIT: Duration = Duration::from_secs(5);
/// Delivery events taken at most in one call, so that the worker gets back to its records.
const EVENTS_AT_ONCE: usize = 16;

/// A Kafka topic, written by an idempotent producer with `acks=all`.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct KafkaSink {
    /// Addresses of some brokers, `host:port`, separated by commas.
    pub brokers: String,
    /// The topic. It must exist.
    pub topic: String,
    /// How long the producer waits to fill a batch. Longer is more throughput and as much more latency.
    #[serde(default = "linger")]
    pub linger: Millis,
    /// Whether records carry headers (`prediction_id`, `epoch`, `event_time`, ...). Rejects always do.
    #[serde(default = "yes")]
    pub headers: bool,
    /// More settings of librdkafka (`security.protocol`, `compression.type` ...). Settings that the engine owns are
    /// refused.
    #[serde(default, skip_serializing_if = "no_options")]
    pub options: Options,
}

fn linger() -> Millis {
    Millis(1)
}
fn yes() -> bool {
    true
}

impl Kind for KafkaSink {
    const EXAMPLE: &'static str = "{ brokers: \"localhost:9092\", topic: predictions }";
}

impl KafkaSink {
    /// A topic, with the defaults of a file.
    pub fn new(brokers: &str, topic: &str) -> Self {
        let (linger, headers) = (linger(), yes());
        KafkaSink { brokers: brokers.into(), topic: topic.into(), linger, headers, options: Options::default() }
    }

    /// What is wrong with the options, without asking a broker.
    pub fn option_errors(&self) -> Vec<OptionError> {
        self.options.errors(Side::Producer)
    }
}

impl SinkTarget for KafkaSink {
    /// Opens a worker's producer and looks for the topic. If no broker answers, the writer is opened all the same: it
    /// takes what its queue holds, then nothing until a broker is there.
    fn open(&self, open: Open) -> Result<Box<dyn SinkWriter>, SinkError> {
        let fail = |error: ClientError| SinkError::Kafka { name: open.name.clone(), detail: error.to_string() };
        let mut config = kafka::producer(&self.brokers, &open.job, &self.options).map_err(fail)?;
        config.set("linger.ms", self.linger.0.max(0).to_string());
        let deliveries = Deliveries::new(Context::new(format!("sink {} of worker {}", open.name, open.worker)));
        let producer: BaseProducer<Deliveries> =
            config.create_with_context(deliveries).map_err(|error| fail(ClientError::Settings(error.to_string())))?;
        let trouble = || {
            (0..EVENTS_AT_ONCE).for_each(|_| producer.poll(Duration::ZERO));
            producer.context().client.take_trouble()
        };
        let deadline = Instant::now() + OPEN_WAIT;
        loop {
            match kafka::partitions(producer.client(), &self.brokers, &self.topic, OPEN_WAIT, trouble) {
                Ok(_) => break,
                // A topic that was created a moment ago may not be known to every broker yet.
                Err(ClientError::NoTopic { .. }) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(250));
                }
                Err(error) if error.is_transient() => {
                    producer.context().client.waiting(&error);
                    break;
                }
                Err(error) => return Err(fail(error)),
            }
        }
        Ok(Box::new(KafkaWriter {
            name: open.name,
            topic: self.topic.clone(),
            brokers: self.brokers.clone(),
            headers: self.headers,
            producer,
            closed: VecDeque::new(),
            durable: None,
        }))
    }
}

/// A worker's producer.
struct KafkaWriter {
    name: String,
    topic: String,
    brokers: String,
    headers: bool,
    producer: BaseProducer<Deliveries>,
    /// Epochs that are closed and not durable yet, oldest first.
    closed: VecDeque<u64>,
    durable: Option<u64>,
}

impl SinkWriter for KafkaWriter {
    fn write(&mut self, epoch: u64, records: &Records, from: usize) -> Result<usize, SinkError> {
        self.take_deliveries()?;
        let mut digits = Vec::with_capacity(20);
        for at in from..records.len() {
            let mut record = BaseRecord::with_opaque_to(&self.topic, epoch as usize).payload(records.value(at));
            if let Some(key) = records.key(at) {
                record = record.key(key);
            }
            if self.headers {
                record = record.headers(headers(records, at, &mut digits));
            }
            match self.producer.send::<[u8], [u8]>(record) {
                Ok(()) => {}
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), _)) => {
                    self.producer.context().sent(epoch, at - from);
                    return Ok(at);
                }
                Err((error, _)) => {
                    self.producer.context().sent(epoch, at - from);
                    return Err(self.refused(&error, records.value(at).len()));
                }
            }
        }
        self.producer.context().sent(epoch, records.len().saturating_sub(from));
        Ok(records.len())
    }

    fn close_epoch(&mut self, epoch: u64) -> Result<(), SinkError> {
        self.closed.push_back(epoch);
        Ok(())
    }

    fn durable(&mut self) -> Result<Option<u64>, SinkError> {
        self.take_deliveries()?;
        let open = self.producer.context().oldest();
        while let Some(epoch) = self.closed.pop_front_if(|epoch| open.is_none_or(|open| *epoch < open)) {
            self.durable = Some(epoch);
        }
        Ok(self.durable)
    }
}

impl KafkaWriter {
    /// Takes delivery reports until there is none or it has been enough for now.
    fn take_deliveries(&mut self) -> Result<(), SinkError> {
        let mut before = usize::MAX;
        for _ in 0..EVENTS_AT_ONCE {
            self.producer.poll(Duration::ZERO);
            let left = self.producer.context().outstanding();
            if left == 0 || left == before {
                break;
            }
            before = left;
        }
        match self.producer.context().failure() {
            Some(code) => Err(self.lost(code)),
            None => Ok(()),
        }
    }

    fn error(&self, detail: String) -> SinkError {
        SinkError::Kafka { name: self.name.clone(), detail }
    }

    /// A record that librdkafka does not take.
    fn refused(&self, error: &KafkaError, value_bytes: usize) -> SinkError {
        let (topic, brokers) = (&self.topic, &self.brokers);
        let detail = match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::MessageSizeTooLarge) => too_large(topic, value_bytes),
            Some(RDKafkaErrorCode::UnknownTopic | RDKafkaErrorCode::UnknownTopicOrPartition) => {
                ClientError::NoTopic { topic: topic.clone(), brokers: brokers.clone() }.to_string()
            }
            _ => format!("topic `{topic}`: a record of {value_bytes} bytes could not be queued: {error}"),
        };
        self.error(detail)
    }

    /// A record that could not be delivered, for good.
    fn lost(&self, (code, value_bytes): (RDKafkaErrorCode, usize)) -> SinkError {
        use RDKafkaErrorCode as Code;
        let (topic, brokers) = (self.topic.clone(), self.brokers.clone());
        let detail = match code {
            Code::UnknownTopic | Code::UnknownTopicOrPartition | Code::UnknownPartition => {
                ClientError::NoTopic { topic, brokers }.to_string()
            }
            Code::TopicAuthorizationFailed => {
                ClientError::NotAllowed { topic, brokers, acls: "WRITE and DESCRIBE" }.to_string()
            }
            Code::MessageSizeTooLarge => too_large(&topic, value_bytes),
            code => {
                format!("topic `{topic}` at {brokers}: a record of {value_bytes} bytes could not be delivered: {code}")
            }
        };
        self.error(detail)
    }
}

impl Drop for KafkaWriter {
    /// Waits for what is on its way: dropping librdkafka's producer would throw it away.
    fn drop(&mut self) {
        let deadline = Instant::now() + DROP_WAIT;
        while self.producer.in_flight_count() > 0 && Instant::now() < deadline {
            // Not `flush`: it waits in steps of 100 ms.
            self.producer.poll(Duration::from_millis(1));
        }
        let left = self.producer.context().outstanding();
        if left > 0 {
            tracing::warn!(sink = %self.name, records = left, "stopped before everything was acknowledged");
        }
    }
}

fn too_large(topic: &str, bytes: usize) -> String {
    format!(
        "topic `{topic}`: a record of {bytes} bytes is too large; raise `message.max.bytes` in `options` and of the topic"
    )
}

/// The headers of record `at`, and its event time.
fn headers(records: &Records, at: usize, digits: &mut Vec<u8>) -> OwnedHeaders {
    let mut headers = OwnedHeaders::new_with_capacity(records.header_names.len() + 1);
    for (i, name) in records.header_names.iter().enumerate() {
        headers = headers.insert(Header { key: name, value: Some(records.header(at, i)) });
    }
    match records.event_times.get(at) {
        Some(time) if !records.header_names.contains(&EVENT_TIME_HEADER) => {
            use std::io::Write;
            digits.clear();
            write!(digits, "{time}").expect("a vector takes what is written");
            headers.insert(Header { key: EVENT_TIME_HEADER, value: Some(&*digits) })
        }
        _ => headers,
    }
}

/// Counts what is on its way, by epoch. librdkafka calls it within `poll`, on the worker's thread: the lock is free.
struct Deliveries {
    client: Context,
    counts: Mutex<Counts>,
}

#[derive(Default)]
struct Counts {
    /// Records sent and not acknowledged; an epoch without any is not in it.
    by_epoch: BTreeMap<u64, usize>,
    total: usize,
    /// The first record that could not be delivered: why, and its size.
    failure: Option<(RDKafkaErrorCode, usize)>,
}

impl Deliveries {
    fn new(client: Context) -> Self {
        Deliveries { client, counts: Mutex::new(Counts::default()) }
    }

    fn counts(&self) -> std::sync::MutexGuard<'_, Counts> {
        self.counts.lock().expect("no thread panics while it counts")
    }

    fn sent(&self, epoch: u64, records: usize) {
        if records > 0 {
            let mut counts = self.counts();
            *counts.by_epoch.entry(epoch).or_default() += records;
            counts.total += records;
        }
    }

    fn outstanding(&self) -> usize {
        self.counts().total
    }

    /// The oldest epoch with a record on its way.
    fn oldest(&self) -> Option<u64> {
        self.counts().by_epoch.first_key_value().map(|(epoch, _)| *epoch)
    }

    fn failure(&self) -> Option<(RDKafkaErrorCode, usize)> {
        self.counts().failure
    }
}

impl ProducerContext for Deliveries {
    /// The record's epoch.
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, epoch: usize) {
        let mut counts = self.counts();
        if let Err((error, message)) = result {
            let code = error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Fail);
            counts.failure.get_or_insert((code, message.payload_len()));
        } else {
            self.client.up();
        }
        counts.total = counts.total.saturating_sub(1);
        let epoch = epoch as u64;
        if let Some(left) = counts.by_epoch.get_mut(&epoch) {
            *left = left.saturating_sub(1);
            if *left == 0 {
                counts.by_epoch.remove(&epoch);
            }
        }
    }
}

impl ClientContext for Deliveries {
    fn log(&self, level: RDKafkaLogLevel, kind: &str, message: &str) {
        self.client.log(level, kind, message);
    }
    fn error(&self, error: KafkaError, reason: &str) {
        self.client.error(error, reason);
    }
    fn stats(&self, statistics: Statistics) {
        self.client.stats(statistics);
    }
}
