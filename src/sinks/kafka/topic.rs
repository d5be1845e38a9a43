//! A producer for one topic: hands records over, counts what is on its way, and puts errors into words.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::KafkaError;
use rdkafka::message::{DeliveryResult, Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _, ProducerContext};
use rdkafka::types::RDKafkaErrorCode;
use rdkafka::{ClientContext, Statistics};

use super::KafkaSink;
use super::fence::is_fence;
use super::limit::{CUT_HEADER, Limit};
use crate::kafka::{ClientError, Context, Trouble};
use crate::sinks::{Open, Records, SinkError};

/// The header with the event time, in milliseconds since 1970.
pub const EVENT_TIME_HEADER: &str = "event_time";
/// How long a producer that is dropped waits for what is on its way.
const DROP_WAIT: Duration = Duration::from_secs(5);
/// Delivery events taken at most in one call, so that the worker gets back to its records.
const EVENTS_AT_ONCE: usize = 16;

/// A producer and its topic.
pub(super) struct Topic {
    /// The sink's name.
    pub name: String,
    /// The topic.
    pub topic: String,
    /// The brokers, for messages.
    pub brokers: String,
    headers: bool,
    /// The producer.
    pub producer: BaseProducer<Deliveries>,
    /// Whether what is on its way is thrown away with the producer: an open transaction is worth nothing.
    pub discards: bool,
    /// Dead letters are cut to this.
    pub cuts: Option<Limit>,
}

impl Topic {
    /// A producer made from `config`.
    pub fn new(sink: &KafkaSink, open: &Open, config: &ClientConfig) -> Result<Topic, SinkError> {
        let deliveries = Deliveries::new(Context::new(format!("sink {} of worker {}", open.name, open.worker)));
        let producer = config.create_with_context(deliveries).map_err(|error| {
            let detail = ClientError::Settings(error.to_string()).to_string();
            SinkError::Kafka { name: open.name.clone(), detail }
        })?;
        Ok(Topic {
            name: open.name.clone(),
            topic: sink.topic.clone(),
            brokers: sink.brokers.clone(),
            headers: sink.headers || open.dead_letters,
            producer,
            discards: false,
            cuts: None,
        })
    }

    /// Whether a record could not be delivered because the producer's epoch is an old one.
    pub fn is_fenced(&self) -> bool {
        self.producer.context().failure().is_some_and(|(code, _)| is_fence(code))
    }

    /// What the client had to say meanwhile.
    pub fn trouble(&self) -> Option<Trouble> {
        (0..EVENTS_AT_ONCE).for_each(|_| self.producer.poll(Duration::ZERO));
        self.producer.context().client.take_trouble()
    }

    /// Says that no broker answers, unless that was said just now.
    pub fn waiting(&self, error: &ClientError) {
        self.producer.context().client.waiting(error);
    }

    /// Logs a warning, unless there was one just now.
    pub fn warn(&self, message: &str) {
        self.producer.context().client.warn("transaction", message);
    }

    /// Hands records over from `from` on; gives the index of the first that the producer's queue did not take.
    pub fn send(&self, epoch: u64, records: &Records, from: usize) -> Result<usize, SinkError> {
        let mut digits = Vec::with_capacity(20);
        for at in from..records.len() {
            let whole = records.value(at);
            let kept = self.cuts.map_or(whole.len(), |limit| limit.kept(records, at));
            let mut record = BaseRecord::with_opaque_to(&self.topic, epoch as usize).payload(&whole[..kept]);
            if let Some(key) = records.key(at) {
                record = record.key(key);
            }
            if self.headers {
                let cut_from = (kept < whole.len()).then_some(whole.len());
                record = record.headers(headers(records, at, cut_from, &mut digits));
            }
            match self.producer.send::<[u8], [u8]>(record) {
                Ok(()) => {}
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), _)) => {
                    self.producer.context().sent(epoch, at - from);
                    return Ok(at);
                }
                Err((error, _)) => {
                    self.producer.context().sent(epoch, at - from);
                    return Err(self.refused(&error, kept));
                }
            }
        }
        self.producer.context().sent(epoch, records.len().saturating_sub(from));
        Ok(records.len())
    }

    /// Takes delivery reports until there is none or it has been enough for now.
    pub fn take_deliveries(&self) -> Result<(), SinkError> {
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

    /// An error of the sink.
    pub fn error(&self, detail: String) -> SinkError {
        SinkError::Kafka { name: self.name.clone(), detail }
    }

    /// A record that librdkafka does not take.
    fn refused(&self, error: &KafkaError, value_bytes: usize) -> SinkError {
        let (topic, brokers) = (&self.topic, &self.brokers);
        let detail = match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::MessageSizeTooLarge) => {
                format!(
                    "topic `{topic}`: a record of {value_bytes} bytes is too large for the producer; raise `message.max.bytes` \
                     in `options`"
                )
            }
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
            Code::MessageSizeTooLarge if self.cuts.is_some() => {
                format!(
                    "topic `{topic}`: a dead letter of {value_bytes} bytes is larger than its brokers take; the next start cuts \
                     it to what the topic takes then, if the user has the ACL DESCRIBE_CONFIGS, and to `message.max.bytes` in \
                     `options`"
                )
            }
            Code::MessageSizeTooLarge => {
                format!(
                    "topic `{topic}`: a record of {value_bytes} bytes is larger than its brokers take; raise `max.message.bytes` \
                     of the topic"
                )
            }
            code => {
                format!("topic `{topic}` at {brokers}: a record of {value_bytes} bytes could not be delivered: {code}")
            }
        };
        self.error(detail)
    }
}

impl Drop for Topic {
    /// Waits for what is on its way: dropping librdkafka's producer would throw it away.
    fn drop(&mut self) {
        if self.discards {
            return;
        }
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

/// The headers of record `at`, its event time and, if its value is cut, how long that was.
fn headers(records: &Records, at: usize, cut_from: Option<usize>, digits: &mut Vec<u8>) -> OwnedHeaders {
    let mut headers = OwnedHeaders::new_with_capacity(records.header_names.len() + 2);
    for (i, name) in records.header_names.iter().enumerate() {
        headers = headers.insert(Header { key: name.as_ref(), value: Some(records.header(at, i)) });
    }
    let mut number = |headers: OwnedHeaders, key, number: i64| {
        use std::io::Write;
        digits.clear();
        write!(digits, "{number}").expect("a vector takes what is written");
        headers.insert(Header { key, value: Some(&*digits) })
    };
    if let Some(bytes) = cut_from {
        headers = number(headers, CUT_HEADER, bytes as i64);
    }
    match records.event_times.get(at) {
        Some(time) if !records.header_names.iter().any(|name| name == EVENT_TIME_HEADER) => {
            number(headers, EVENT_TIME_HEADER, *time)
        }
        _ => headers,
    }
}

/// Counts what is on its way, by epoch. librdkafka calls it within `poll`.
pub(super) struct Deliveries {
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

    /// Records sent and not acknowledged.
    pub fn outstanding(&self) -> usize {
        self.counts().total
    }

    /// The oldest epoch with a record on its way.
    pub fn oldest(&self) -> Option<u64> {
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
