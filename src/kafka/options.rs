//! The settings of librdkafka that a topology may give, and why it may not give the others.
//!
//! Settings pass by a list of what is known to be safe, not by a list of what is not: librdkafka has settings that load
//! code, run commands or undo what the engine promises, and gets new ones with every version.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use millstream_operators::error::ConfigError;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize};

/// Settings of librdkafka, by name. Its `Debug` hides the values of secrets.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Options(pub BTreeMap<String, String>);

/// Which client a setting is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Sources.
    Consumer,
    /// Sinks.
    Producer,
}

/// An option that is not passed on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    /// The engine, or safety, decides.
    #[error("option `{name}` can't be set: {why}")]
    Refused {
        /// The option.
        name: String,
        /// Why, and what to do instead.
        why: &'static str,
    },
    /// Not a setting, or one that nobody has looked at.
    #[error("option `{name}` is not one that a {side} takes{hint}", hint = hint.as_ref().map_or(String::new(), |h| format!("; did you mean `{h}`?")))]
    Unknown {
        /// The option.
        name: String,
        /// `source` or `sink`.
        side: &'static str,
        /// The nearest name there is.
        hint: Option<&'static str>,
    },
}

impl OptionError {
    /// The error as one of a connection's settings, at the option.
    pub fn at_its_option(self) -> ConfigError {
        match self {
            OptionError::Refused { name, why } => {
                ConfigError::new(format!("options.{name}"), format!("the option `{name}` can't be set: {why}"))
            }
            OptionError::Unknown { name, side, hint } => {
                let message = format!("`{name}` is not an option that a {side} takes");
                let hint = hint.map(|near| format!("did you mean `{near}`?"));
                ConfigError::new(format!("options.{name}"), message).with_hint(hint)
            }
        }
    }
}

/// Settings that both clients take.
const BOTH: &[&str] = &[
    "broker.address.family",
    "broker.address.ttl",
    "client.dns.lookup",
    "client.id",
    "client.rack",
    "connections.max.idle.ms",
    "enable.ssl.certificate.verification",
    "https.ca.location",
    "message.max.bytes",
    "metadata.max.age.ms",
    "metadata.recovery.rebootstrap.trigger.ms",
    "metadata.recovery.strategy",
    "receive.message.max.bytes",
    "reconnect.backoff.max.ms",
    "reconnect.backoff.ms",
    "retry.backoff.max.ms",
    "retry.backoff.ms",
    "sasl.kerberos.keytab",
    "sasl.kerberos.principal",
    "sasl.kerberos.service.name",
    "sasl.mechanism",
    "sasl.mechanisms",
    "sasl.oauthbearer.client.id",
    "sasl.oauthbearer.client.secret",
    "sasl.oauthbearer.extensions",
    "sasl.oauthbearer.method",
    "sasl.oauthbearer.scope",
    "sasl.oauthbearer.token.endpoint.url",
    "sasl.password",
    "sasl.username",
    "security.protocol",
    "socket.connection.setup.timeout.ms",
    "socket.keepalive.enable",
    "socket.max.fails",
    "socket.nagle.disable",
    "socket.receive.buffer.bytes",
    "socket.send.buffer.bytes",
    "socket.timeout.ms",
    "ssl.ca.location",
    "ssl.ca.pem",
    "ssl.certificate.location",
    "ssl.certificate.pem",
    "ssl.cipher.suites",
    "ssl.crl.location",
    "ssl.curves.list",
    "ssl.endpoint.identification.algorithm",
    "ssl.key.location",
    "ssl.key.password",
    "ssl.key.pem",
    "ssl.keystore.location",
    "ssl.keystore.password",
    "ssl.sigalgs.list",
    "topic.metadata.refresh.interval.ms",
];

/// Settings of sources.
const CONSUMER: &[&str] = &[
    "fetch.error.backoff.ms",
    "fetch.max.bytes",
    "fetch.message.max.bytes",
    "fetch.min.bytes",
    "fetch.queue.backoff.ms",
    "fetch.wait.max.ms",
    "max.partition.fetch.bytes",
    "queued.max.messages.kbytes",
    "queued.min.messages",
];

/// Settings of sinks.
const PRODUCER: &[&str] = &[
    "batch.num.messages",
    "batch.size",
    "compression.codec",
    "compression.level",
    "compression.type",
    "delivery.timeout.ms",
    "max.in.flight",
    "max.in.flight.requests.per.connection",
    "message.timeout.ms",
    "partitioner",
    "queue.buffering.max.kbytes",
    "queue.buffering.max.messages",
    "request.timeout.ms",
    "sticky.partitioning.linger.ms",
];

const OFFSETS: &str = "offsets live in the job's checkpoint, and the engine commits them for lag tools";
const DELIVERY: &str = "the engine's delivery guarantee rests on it";
const MEMBERSHIP: &str =
    "partitions are assigned by the engine, not by a consumer group; the group is named after the job";
const CODE: &str = "it makes the process load foreign code";
const OWN_FIELD: &str = "it has a field of its own";
const CALLBACKS: &str = "the engine's own callbacks use it";

/// Settings that are refused, and why.
const REFUSED: &[(&str, &str)] = &[
    ("acks", DELIVERY),
    (
        "allow.auto.create.topics",
        "a misspelt topic would come to be; create it with `millstream produce --create` or Kafka's tools",
    ),
    ("auto.commit.enable", OFFSETS),
    ("auto.commit.interval.ms", OFFSETS),
    (
        "auto.offset.reset",
        "a position that is gone is an error, never a silent jump; `start` says where a new partition begins",
    ),
    ("bootstrap.servers", "it is the field `brokers`"),
    ("check.crcs", "damaged messages must be noticed"),
    ("debug", "it may write payloads and secrets to the log"),
    ("enable.auto.commit", OFFSETS),
    ("enable.auto.offset.store", OFFSETS),
    ("enable.gapless.guarantee", DELIVERY),
    ("enable.idempotence", DELIVERY),
    ("enable.partition.eof", CALLBACKS),
    ("enable.random.seed", CALLBACKS),
    ("enable.sasl.oauthbearer.unsecure.jwt", "it accepts tokens that anybody can forge"),
    ("group.id", MEMBERSHIP),
    ("group.instance.id", MEMBERSHIP),
    ("group.protocol", MEMBERSHIP),
    ("interceptors", CODE),
    ("isolation.level", "sources read committed messages only: an aborted one was never meant to be seen"),
    ("linger.ms", OWN_FIELD),
    ("log.queue", CALLBACKS),
    ("log_level", CALLBACKS),
    ("max.poll.interval.ms", MEMBERSHIP),
    ("message.send.max.retries", DELIVERY),
    ("metadata.broker.list", "it is the field `brokers`"),
    ("opaque", CODE),
    ("partition.assignment.strategy", MEMBERSHIP),
    ("plugin.library.paths", CODE),
    ("queue.buffering.max.ms", "it is the field `linger`"),
    ("queuing.strategy", DELIVERY),
    ("request.required.acks", DELIVERY),
    ("retries", DELIVERY),
    ("sasl.kerberos.kinit.cmd", "it runs a shell command; keep the ticket fresh outside of the process"),
    ("session.timeout.ms", MEMBERSHIP),
    ("ssl.engine.id", CODE),
    ("ssl.engine.location", CODE),
    ("ssl.providers", CODE),
    ("transaction.timeout.ms", DELIVERY),
    ("transactional.id", DELIVERY),
];

/// Values that take protection away.
const UNSAFE_VALUES: &[(&str, &str, &str)] = &[
    (
        "enable.ssl.certificate.verification",
        "false",
        "anybody could pretend to be the broker; put the broker's authority into `ssl.ca.location`",
    ),
    (
        "ssl.endpoint.identification.algorithm",
        "none",
        "any certificate of the authority would do for any host; give the broker's certificate its names",
    ),
];

/// Parts of names whose values are secrets.
const SECRETS: &[&str] = &["password", "secret", ".pem"];

impl Options {
    /// The options that both clients take: connection and security.
    pub fn common(&self) -> Options {
        let both = self.0.iter().filter(|(name, _)| BOTH.contains(&name.as_str()));
        Options(both.map(|(name, value)| (name.clone(), value.clone())).collect())
    }

    /// Every option that a client of `side` does not take.
    pub fn errors(&self, side: Side) -> Vec<OptionError> {
        self.0.iter().filter_map(|(name, value)| error(side, name, value)).collect()
    }
}

/// What is wrong with one option, if something is.
fn error(side: Side, name: &str, value: &str) -> Option<OptionError> {
    let refused = |why| Some(OptionError::Refused { name: name.into(), why });
    if let Some((_, why)) = REFUSED.iter().find(|(refused, _)| *refused == name) {
        return refused(why);
    }
    let off = |(n, v, _): &&(&str, &str, &str)| *n == name && v.eq_ignore_ascii_case(value.trim());
    if let Some((_, _, why)) = UNSAFE_VALUES.iter().find(off) {
        return refused(why);
    }
    let (own, word) = match side {
        Side::Consumer => (CONSUMER, "source"),
        Side::Producer => (PRODUCER, "sink"),
    };
    let known = || BOTH.iter().chain(own).copied();
    if known().any(|known| known == name) {
        return None;
    }
    let near = known().map(|known| (strsim::jaro_winkler(known, name), known)).filter(|(likeness, _)| *likeness > 0.85);
    let hint = near.max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, known)| known);
    Some(OptionError::Unknown { name: name.into(), side: word, hint })
}

impl From<BTreeMap<String, String>> for Options {
    fn from(options: BTreeMap<String, String>) -> Self {
        Options(options)
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = self.0.iter().map(|(name, value)| {
            let secret = SECRETS.iter().any(|part| name.contains(part));
            (name, if secret { "***" } else { value.as_str() })
        });
        f.debug_map().entries(shown).finish()
    }
}

impl JsonSchema for Options {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "Options".into()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        BTreeMap::<String, String>::json_schema(generator)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors(side: Side, name: &str, value: &str) -> Vec<String> {
        let options = Options::from(BTreeMap::from([(name.to_owned(), value.to_owned())]));
        options.errors(side).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn safe_options_pass() {
        for (side, name, value) in [
            (Side::Consumer, "security.protocol", "sasl_ssl"),
            (Side::Consumer, "fetch.min.bytes", "1000"),
            (Side::Producer, "compression.type", "zstd"),
            (Side::Producer, "enable.ssl.certificate.verification", "true"),
        ] {
            assert_eq!(errors(side, name, value), [""; 0], "{name}");
        }
    }

    #[test]
    fn refusals_name_the_option_and_the_reason() {
        let said = errors(Side::Consumer, "plugin.library.paths", "x.so");
        assert_eq!(said, ["option `plugin.library.paths` can't be set: it makes the process load foreign code"]);
        let said = errors(Side::Producer, "enable.ssl.certificate.verification", "False");
        assert!(said[0].contains("ssl.ca.location"), "{said:?}");
        let said = errors(Side::Producer, "fetch.min.bytes", "1");
        assert_eq!(said, ["option `fetch.min.bytes` is not one that a sink takes"]);
        let said = errors(Side::Consumer, "sasl.user.name", "me");
        assert_eq!(said, ["option `sasl.user.name` is not one that a source takes; did you mean `sasl.username`?"]);
    }

    #[test]
    fn debug_hides_secrets() {
        let options = Options::from(BTreeMap::from([
            ("sasl.password".to_owned(), "hunter2".to_owned()),
            ("ssl.key.pem".to_owned(), "hunter2".to_owned()),
            ("sasl.username".to_owned(), "me".to_owned()),
        ]));
        let shown = format!("{options:?}");
        assert!(!shown.contains("hunter2") && shown.contains("me"), "{shown}");
    }
}
