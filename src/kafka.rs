//! What sources, sinks and commands on Kafka share: safe settings, errors that a user can act on, and topics.
//!
//! Every client starts from the same defaults: TLS certificates are checked, no topic comes to be by a misspelt name,
//! positions and delivery are the engine's. A topology may add settings of librdkafka by [`Options`]; those that the
//! engine owns and those that would run code are refused.

use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::client::{Client, ClientContext};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaErrorCode;

pub mod context;
pub mod heard;
pub mod options;

pub use context::{Context, Trouble};
pub use options::{OptionError, Options, Side};

/// What a client could not do.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// An option that is not passed on.
    #[error(transparent)]
    Option(#[from] OptionError),
    /// A file that an option names can't be read.
    #[error("option `{name}`: {path}: {error}")]
    File {
        /// The option.
        name: String,
        /// The file.
        path: String,
        /// What the operating system says.
        error: String,
    },
    /// librdkafka does not take a setting's value.
    #[error("librdkafka does not accept the settings: {0}")]
    Settings(String),
    /// No broker answers.
    #[error("no broker answers at {brokers}: {reason}")]
    Unreachable {
        /// The addresses tried.
        brokers: String,
        /// Why, as far as the client knows.
        reason: String,
    },
    /// The broker does not know who we are, or can't prove who it is.
    #[error("{brokers}: {reason}; check the options {check}")]
    NotTrusted {
        /// The addresses tried.
        brokers: String,
        /// What went wrong.
        reason: String,
        /// The options to look at.
        check: &'static str,
    },
    /// The topic is not there.
    #[error(
        "topic `{topic}` does not exist at {brokers}; create it with `millstream produce FILE... --topic {topic} --create PARTITIONS` or Kafka's `kafka-topics.sh --create --topic {topic} --bootstrap-server {brokers}`"
    )]
    NoTopic {
        /// The topic.
        topic: String,
        /// The addresses asked.
        brokers: String,
    },
    /// The user may not use the topic.
    #[error("topic `{topic}` at {brokers}: not allowed; the user needs the ACLs {acls} on it")]
    NotAllowed {
        /// The topic.
        topic: String,
        /// The addresses asked.
        brokers: String,
        /// The rights needed.
        acls: &'static str,
    },
    /// Anything else that a broker refused.
    #[error("{tried}: {brokers} says: {said}")]
    Refused {
        /// What was tried.
        tried: String,
        /// The addresses asked.
        brokers: String,
        /// The answer.
        said: String,
    },
}

impl ClientError {
    /// True if the same attempt may succeed later: nobody answered.
    pub fn is_transient(&self) -> bool {
        matches!(self, ClientError::Unreachable { .. })
    }
}

/// How long an answer is waited for before the request is made again on a new connection.
pub(crate) const ANSWER_WAIT: Duration = Duration::from_secs(20);

/// Settings of both clients. `name` is what the broker sees: its logs and quotas go by it.
fn client(brokers: &str, name: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", brokers)
        .set("client.id", name)
        .set("allow.auto.create.topics", "false")
        .set("log.connection.close", "false")
        .set("socket.nagle.disable", "true")
        .set("socket.keepalive.enable", "true")
        // A network may swallow what it likes and tell nobody.
        .set("socket.timeout.ms", ANSWER_WAIT.as_millis().to_string())
        // For the number of brokers that are up. Sources, which want to know more, look more often.
        .set("statistics.interval.ms", "5000")
        // A broker that comes back is found within two seconds; the default lets ten go by.
        .set("reconnect.backoff.max.ms", "2000");
    config
}

/// Settings of a consumer in group `group`: committed messages only, checked, started and committed by the engine.
///
/// # Errors
/// The first option that is refused.
pub fn consumer(brokers: &str, group: &str, options: &Options) -> Result<ClientConfig, ClientError> {
    let mut config = client(brokers, &format!("millstream-{group}"));
    config
        .set("group.id", group)
        .set("isolation.level", "read_committed")
        .set("check.crcs", "true")
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("auto.offset.reset", "error")
        .set("enable.partition.eof", "true")
        // A fetch that waits for a message at idle partitions holds up those that have just become free to be fetched.
        .set("fetch.wait.max.ms", "100")
        // Fetching stops when this much waits in memory, for each worker, and goes on so much later when it is used up.
        .set("queued.max.messages.kbytes", "16384")
        .set("fetch.queue.backoff.ms", "10")
        .set("fetch.error.backoff.ms", "200");
    add(config, options, Side::Consumer)
}

/// Settings of a producer: every message once and in order, acknowledged by all replicas in sync, however long it takes.
///
/// # Errors
/// The first option that is refused.
pub fn producer(brokers: &str, name: &str, options: &Options) -> Result<ClientConfig, ClientError> {
    let mut config = client(brokers, &format!("millstream-{name}"));
    config
        .set("enable.idempotence", "true")
        .set("acks", "all")
        // Java's partitioner: keys land where other clients put them.
        .set("partitioner", "murmur2_random")
        // A broker that is away is no reason to give up: the queue fills, and the engine waits.
        .set("message.timeout.ms", "0")
        .set("queue.buffering.max.messages", "100000")
        .set("queue.buffering.max.kbytes", "65536");
    let mut config = add(config, options, Side::Producer)?;
    if !options.0.contains_key("message.max.bytes") {
        // How large a record may be is the topic's to say; librdkafka's default is less than what a topic takes by default. What
        // the queue can't hold must be refused: it would be waited for without end.
        let queue_kbytes = number(&config, "queue.buffering.max.kbytes").unwrap_or_default();
        let bytes = queue_kbytes.saturating_mul(1024).clamp(1_000, 1_000_000_000);
        config.set("message.max.bytes", bytes.to_string());
    }
    Ok(config)
}

/// A setting that is a number; `None` if it is not there or none.
pub(crate) fn number(config: &ClientConfig, name: &str) -> Option<usize> {
    config.get(name)?.parse().ok()
}

fn add(mut config: ClientConfig, options: &Options, side: Side) -> Result<ClientConfig, ClientError> {
    if let Some(error) = options.errors(side).into_iter().next() {
        return Err(error.into());
    }
    for (name, value) in &options.0 {
        // librdkafka's own error does not say which file.
        if name.ends_with(".location")
            && value != "probe"
            && let Err(error) = std::fs::File::open(value)
        {
            return Err(ClientError::File { name: name.clone(), path: value.clone(), error: error.to_string() });
        }
        config.set(name, value);
    }
    Ok(config)
}

/// A consumer with these settings; `name` is what its log lines say.
///
/// # Errors
/// What librdkafka does not accept.
pub fn open_consumer(config: &ClientConfig, name: String) -> Result<BaseConsumer<Context>, ClientError> {
    config.create_with_context(Context::new(name)).map_err(|error| ClientError::Settings(error.to_string()))
}

/// The number of partitions of `topic`.
///
/// # Errors
/// [`Unreachable`](ClientError::Unreachable) if no broker answers within `wait`, else what the broker says.
pub fn partitions<C: ClientContext>(
    client: &Client<C>,
    brokers: &str,
    topic: &str,
    wait: Duration,
    trouble: impl FnOnce() -> Option<Trouble>,
) -> Result<i32, ClientError> {
    let metadata = client.fetch_metadata(Some(topic), wait).map_err(|error| explain(&error, brokers, trouble()))?;
    let found = metadata.topics().iter().find(|t| t.name() == topic);
    let no_topic = || ClientError::NoTopic { topic: topic.into(), brokers: brokers.into() };
    let found = found.ok_or_else(no_topic)?;
    match found.error().map(RDKafkaErrorCode::from) {
        None if found.partitions().is_empty() => Err(no_topic()),
        None => Ok(i32::try_from(found.partitions().len()).unwrap_or(i32::MAX)),
        Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic) => Err(no_topic()),
        Some(RDKafkaErrorCode::TopicAuthorizationFailed) => {
            let acls = "DESCRIBE and READ (sources) or WRITE (sinks)";
            Err(ClientError::NotAllowed { topic: topic.into(), brokers: brokers.into(), acls })
        }
        Some(RDKafkaErrorCode::LeaderNotAvailable) => {
            let reason = format!("topic `{topic}` has no leader yet");
            Err(ClientError::Unreachable { brokers: brokers.into(), reason })
        }
        Some(code) => {
            let tried = format!("asked for the partitions of topic `{topic}`");
            Err(ClientError::Refused { tried, brokers: brokers.into(), said: code.to_string() })
        }
    }
}

/// As [`partitions`], again and again for up to `within`: for commands, which have nobody to wait for them. What can't
/// change by waiting is said at once.
///
/// # Errors
/// As [`partitions`].
pub fn find_partitions(
    consumer: &BaseConsumer<Context>,
    brokers: &str,
    topic: &str,
    within: Duration,
) -> Result<i32, ClientError> {
    let deadline = Instant::now() + within;
    loop {
        let wait = Duration::from_secs(1).min(within);
        match partitions(consumer.client(), brokers, topic, wait, || trouble(consumer)) {
            Err(error) if error.is_transient() && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(20));
            }
            other => return other,
        }
    }
}

/// Why the last call of a consumer got no answer: librdkafka says it by events, which somebody has to fetch.
pub fn trouble(consumer: &BaseConsumer<Context>) -> Option<Trouble> {
    for _ in 0..EVENTS_MAX {
        let _event = consumer.poll(Duration::ZERO);
    }
    consumer.context().take_trouble()
}

/// More events than a client has after one call.
const EVENTS_MAX: usize = 200;

/// A call that failed, in words: `trouble` is what the client had to say meanwhile.
pub fn explain(error: &KafkaError, brokers: &str, trouble: Option<Trouble>) -> ClientError {
    let brokers = brokers.to_owned();
    match trouble {
        Some(Trouble { code: RDKafkaErrorCode::Authentication, reason }) => {
            let check = "`sasl.mechanism`, `sasl.username` and `sasl.password`";
            ClientError::NotTrusted { brokers, reason, check }
        }
        Some(Trouble { code: RDKafkaErrorCode::SSL, reason }) => {
            let check = "`security.protocol` and `ssl.ca.location`, and the names in the broker's certificate";
            ClientError::NotTrusted { brokers, reason, check }
        }
        Some(Trouble { reason, .. }) => ClientError::Unreachable { brokers, reason },
        None => match error.rdkafka_error_code() {
            Some(code) if is_moving(code) => {
                let reason = format!("what was asked for is on its way from one broker to another: {code}");
                ClientError::Unreachable { brokers, reason }
            }
            Some(code) if !is_silence(code) => {
                ClientError::Refused { tried: "a request".into(), brokers, said: code.to_string() }
            }
            _ => {
                // A broker that is spoken to without TLS where it expects it hangs up without a word.
                let reason = "no answer in time; if it runs there, check the option `security.protocol`";
                ClientError::Unreachable { brokers, reason: reason.into() }
            }
        },
    }
}

/// True if the code says that nobody answered.
fn is_silence(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode::{AllBrokersDown, BrokerTransportFailure, OperationTimedOut, Resolve, TimedOutQueue};
    let local = matches!(code, AllBrokersDown | BrokerTransportFailure | OperationTimedOut | Resolve | TimedOutQueue);
    local || code == RDKafkaErrorCode::RequestTimedOut
}

/// True if the code says that another broker has the partition or the group, or will have it in a moment: it is asked for again.
pub(crate) fn is_moving(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode::{BrokerNotAvailable, DestroyBroker, ListenerNotFound, NetworkException};
    use RDKafkaErrorCode::{CoordinatorLoadInProgress, CoordinatorNotAvailable, NotCoordinator};
    use RDKafkaErrorCode::{FencedLeaderEpoch, LeaderNotAvailable, NotLeaderForPartition, UnknownLeaderEpoch};
    use RDKafkaErrorCode::{KafkaStorageError, OffsetNotAvailable, ReplicaNotAvailable};
    let broker = matches!(code, BrokerNotAvailable | DestroyBroker | ListenerNotFound | NetworkException);
    let group = matches!(code, CoordinatorLoadInProgress | CoordinatorNotAvailable | NotCoordinator);
    let leader = matches!(code, FencedLeaderEpoch | LeaderNotAvailable | NotLeaderForPartition | UnknownLeaderEpoch);
    broker || group || leader || matches!(code, KafkaStorageError | OffsetNotAvailable | ReplicaNotAvailable)
}

/// A client that asks for what concerns topics, and what waits for its answers.
fn admin(config: &ClientConfig) -> Result<(AdminClient<DefaultClientContext>, tokio::runtime::Runtime), ClientError> {
    let admin = config.create().map_err(|error| ClientError::Settings(error.to_string()))?;
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    Ok((admin, runtime.map_err(|error| ClientError::Settings(error.to_string()))?))
}

/// The largest batch of records that `topic` takes, in bytes; `None` if the brokers do not say it within `wait`: the user has
/// not the right to ask (ACL DESCRIBE_CONFIGS), or nobody answers.
pub(crate) fn batch_bytes_max(brokers: &str, options: &Options, topic: &str, wait: Duration) -> Option<usize> {
    let mut config = client(brokers, "millstream");
    config.set("statistics.interval.ms", "0");
    let (admin, runtime) = admin(&add(config, &options.common(), Side::Producer).ok()?).ok()?;
    let options = AdminOptions::new().request_timeout(Some(wait));
    let answers = runtime.block_on(admin.describe_configs([&ResourceSpecifier::Topic(topic)], &options));
    // Its end waits for a thread that looks for it ten times a second: a start of the job need not.
    _ = std::thread::Builder::new().name("kafka-close".into()).spawn(move || drop(admin));
    let settings = answers.ok()?.into_iter().next()?.ok()?;
    settings.get("max.message.bytes")?.value.as_ref()?.parse().ok()
}

/// Creates `topic` with so many partitions and the broker's default of replicas. Gives false if there is one already.
///
/// # Errors
/// What the broker says.
pub fn create_topic(config: &ClientConfig, topic: &str, partitions: i32) -> Result<bool, ClientError> {
    let brokers = config.get("bootstrap.servers").unwrap_or_default();
    let (admin, runtime) = admin(config)?;
    // -1 asks for the default of the broker.
    let new = NewTopic::new(topic, partitions, TopicReplication::Fixed(-1));
    let options = AdminOptions::new().request_timeout(Some(Duration::from_secs(15)));
    let answers = runtime.block_on(admin.create_topics([&new], &options));
    let answers = answers.map_err(|error| explain(&error, brokers, None))?;
    let refused = |code: RDKafkaErrorCode| {
        let tried = format!("create topic `{topic}` with {partitions} partitions");
        ClientError::Refused { tried, brokers: brokers.into(), said: code.to_string() }
    };
    match answers.into_iter().next() {
        Some(Ok(_)) => Ok(true),
        Some(Err((_, RDKafkaErrorCode::TopicAlreadyExists))) => Ok(false),
        Some(Err((_, RDKafkaErrorCode::TopicAuthorizationFailed | RDKafkaErrorCode::ClusterAuthorizationFailed))) => {
            Err(ClientError::NotAllowed { topic: topic.into(), brokers: brokers.into(), acls: "CREATE" })
        }
        Some(Err((_, code))) => Err(refused(code)),
        None => Err(refused(RDKafkaErrorCode::Unknown)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_moves_is_asked_for_again_and_what_is_refused_is_not() {
        use RDKafkaErrorCode::{DestroyBroker, FencedLeaderEpoch, NotCoordinator, OperationTimedOut};
        use RDKafkaErrorCode::{OffsetOutOfRange, TopicAuthorizationFailed, UnsupportedVersion};
        let explained = |code| explain(&KafkaError::MetadataFetch(code), "a:1", None);
        for code in [DestroyBroker, FencedLeaderEpoch, NotCoordinator, OperationTimedOut] {
            assert!(explained(code).is_transient(), "{code}");
        }
        for code in [OffsetOutOfRange, TopicAuthorizationFailed, UnsupportedVersion] {
            assert!(!explained(code).is_transient(), "{code}");
        }
        let moving = "no broker answers at a:1: what was asked for is on its way from one broker to another: ";
        assert!(explained(DestroyBroker).to_string().starts_with(moving), "{}", explained(DestroyBroker));
    }
}
