//! Kafka topics: exactly once by transactions that follow the checkpoint, or at least once by an idempotent producer.
//!
//! One writer a worker, because then nothing is shared on the way out: a worker's records stay in order, its epochs are
//! counted without a lock that another holds, and each worker has transactions of its own.
//!
//! A message's timestamp is the time it is written, not the event's: brokers delete by timestamp, so the results of a
//! replay of last year would be deleted at once, and an event dated in the future would be refused. The event time goes
//! into the header `event_time` (milliseconds since 1970), beside the headers that the records bring.

use std::time::{Duration, Instant};

use millstream_operators::error::ConfigError;
use millstream_operators::kinds::Kind;
use millstream_operators::units::Millis;
use rdkafka::producer::Producer as _;
use serde::{Deserialize, Serialize};

use super::{Open, SinkError, SinkTarget, SinkWriter};
use crate::kafka::{self, ClientError, OptionError, Options, Side};
use crate::sources::kafka::no_options;
use idempotent::Idempotent;
use limit::Limit;
use topic::Topic;
use transactional::Transactional;

mod fence;
mod idempotent;
mod limit;
mod marker;
mod topic;
mod transactional;

pub use limit::CUT_HEADER;
pub use topic::EVENT_TIME_HEADER;

/// How long `open` waits for a broker. One that is away later or longer is backpressure, not an error.
const OPEN_WAIT: Duration = Duration::from_secs(5);

/// How long a transactional producer keeps a connection that nobody uses.
const IDLE_MAX: Duration = Duration::from_secs(5);

/// What a reader of the topic may rely on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Delivery {
    /// Readers with `isolation.level=read_committed` see every record once, an epoch after the other, whatever crashes.
    /// Others see records within milliseconds, and after a crash some twice, with the same `prediction_id`.
    #[default]
    ExactlyOnce,
    /// All readers see records within milliseconds, and after a crash some twice, with the same `prediction_id`.
    AtLeastOnce,
}

/// A Kafka topic, written with `acks=all`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct KafkaSink {
    /// Addresses of some brokers, `host:port`, separated by commas.
    pub brokers: String,
    /// The topic. It must exist.
    pub topic: String,
    /// `exactly_once` or `at_least_once`. The first needs the user's rights on transactional ids and groups that begin with
    /// the job's name, and is visible to `read_committed` readers when the epoch is committed: `engine.epoch` says how
    /// fresh.
    #[serde(default)]
    pub delivery: Delivery,
    /// How long a transaction may stay open before the broker ends it, which must not happen to a job that lives: longer
    /// than an epoch, its commit and any outage of the brokers that is to be sat out. The brokers' own limit
    /// (`transaction.max.timeout.ms`, by default 15 minutes) must allow it. Too long, and readers wait so long for the
    /// records behind those of a job that died and is not started again.
    #[serde(default = "transaction_timeout")]
    pub transaction_timeout: Millis,
    /// How long the producer waits to fill a batch. Longer is more throughput and as much more latency.
    #[serde(default = "linger")]
    pub linger: Millis,
    /// Whether records carry headers (`prediction_id`, `epoch`, `generation`, `event_time`, ...). Rejects always do.
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
fn transaction_timeout() -> Millis {
    Millis(120_000)
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
        KafkaSink {
            brokers: brokers.into(),
            topic: topic.into(),
            delivery: Delivery::default(),
            transaction_timeout: transaction_timeout(),
            linger: linger(),
            headers: yes(),
            options: Options::default(),
        }
    }
}

impl KafkaSink {
    /// The newest epoch that a writer of sink `name` of `job` has committed, and the life of the job that it says it was;
    /// `None` if it never has, or so long ago that the brokers have forgotten it. A writer that is at work is not disturbed,
    /// and may commit more at once.
    ///
    /// # Errors
    /// If the brokers refuse or do not answer.
    pub fn committed(&self, job: &str, name: &str, worker: usize) -> Result<Option<(u64, String)>, SinkError> {
        marker::look(self, job, name, worker)
    }
}

impl SinkTarget for KafkaSink {
    /// Opens a worker's writer. An `at_least_once` writer is opened even if no broker answers: it takes what its queue
    /// holds, then nothing until a broker is there. An `exactly_once` writer needs the brokers: it ends what an earlier run
    /// left open, and writes what that run had decided but not committed.
    fn open(&self, open: Open) -> Result<Box<dyn SinkWriter>, SinkError> {
        Ok(match self.delivery {
            Delivery::AtLeastOnce => {
                let batch_bytes = self.batch_bytes(&open);
                Box::new(Idempotent::new(self.topic(&open, batch_bytes, None)?))
            }
            Delivery::ExactlyOnce => Box::new(Transactional::open(self, open)?),
        })
    }

    fn errors(&self) -> Vec<ConfigError> {
        let empty =
            |key: &str, text: &str, message: &str| text.trim().is_empty().then(|| ConfigError::new(key, message));
        let brokers = empty("brokers", &self.brokers, "there is no broker to write to");
        let topic = empty("topic", &self.topic, "the topic has no name");
        let options = self.options.errors(Side::Producer).into_iter().map(OptionError::at_its_option);
        brokers.into_iter().chain(topic).chain(options).collect()
    }

    fn one_writer(&self) -> bool {
        false
    }

    fn commits_after_decision(&self) -> bool {
        self.delivery == Delivery::ExactlyOnce
    }

    fn keeps(&self) -> Option<String> {
        Some(format!("topic `{}`", self.topic))
    }

    /// How brokers are reached may change from start to start.
    fn identity(&self) -> serde_json::Value {
        serde_json::json!([self.topic, self.delivery])
    }
}

impl KafkaSink {
    /// How large a batch of records the topic takes; `None` if the brokers do not say.
    fn batch_bytes(&self, open: &Open) -> Option<usize> {
        let ask = || {
            let bytes = kafka::batch_bytes_max(&self.brokers, &self.options, &self.topic, OPEN_WAIT);
            if bytes.is_none() && open.dead_letters {
                tracing::warn!(
                    sink = open.name,
                    "how much its topic takes is not known (ACL DESCRIBE_CONFIGS): if that is less than Kafka's default, \
                     set `message.max.bytes` in `options`, to which dead letters are cut"
                );
            }
            bytes
        };
        *open.batch_bytes.get_or_init(ask)
    }

    /// A producer for the topic, which takes batches of so many bytes, with transactions if it is given an id for them.
    fn topic(
        &self,
        open: &Open,
        batch_bytes: Option<usize>,
        transactional_id: Option<&str>,
    ) -> Result<Topic, SinkError> {
        let fail = |error: ClientError| SinkError::Kafka { name: open.name.clone(), detail: error.to_string() };
        let mut config = kafka::producer(&self.brokers, &open.job, &self.options).map_err(fail)?;
        config.set("linger.ms", self.linger.0.max(0).to_string());
        let is_free = |option| !self.options.0.contains_key(option);
        if let Some(bytes) = batch_bytes.filter(|bytes| *bytes < limit::BATCH_SIZE && is_free("batch.size")) {
            config.set("batch.size", bytes.max(1).to_string());
        }
        if let Some(id) = transactional_id {
            let timeout = self.transaction_timeout.0.max(1_000);
            config
                .set("transactional.id", id)
                .set("transaction.timeout.ms", timeout.to_string())
                .set("message.timeout.ms", timeout.to_string());
            if is_free("socket.timeout.ms") {
                // librdkafka would wait for an answer until the transaction is over: one that is lost must not cost it.
                let wait = (timeout / 4).clamp(1_000, kafka::ANSWER_WAIT.as_millis() as i64);
                config.set("socket.timeout.ms", wait.to_string());
            }
            if is_free("connections.max.idle.ms") {
                // When the group's coordinator dies, librdkafka may wait for it without end, whatever time it was given, and
                // asks who has taken its place when the next connection comes or goes: it makes sure that one does.
                config.set("connections.max.idle.ms", IDLE_MAX.as_millis().to_string());
            }
        }
        let mut topic = Topic::new(self, open, &config)?;
        topic.cuts = open.dead_letters.then(|| Limit::new(&config, batch_bytes));
        let deadline = Instant::now() + OPEN_WAIT;
        loop {
            match kafka::partitions(topic.producer.client(), &self.brokers, &self.topic, OPEN_WAIT, || topic.trouble())
            {
                Ok(_) => return Ok(topic),
                // A topic that was created a moment ago may not be known to every broker yet.
                Err(ClientError::NoTopic { .. }) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(250));
                }
                Err(error) if error.is_transient() => {
                    topic.waiting(&error);
                    return Ok(topic);
                }
                Err(error) => return Err(fail(error)),
            }
        }
    }
}
