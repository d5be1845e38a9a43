//! What librdkafka says by itself: its log goes to ours, a line per kind and ten seconds; its errors are remembered, for
//! they say why a call timed out.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::topic_partition_list::TopicPartitionList;
use rdkafka::types::RDKafkaErrorCode;
use rdkafka::{ClientContext, Statistics};

use crate::metrics::catalogue::{KAFKA_BROKERS_UP, KAFKA_CLIENT_ERRORS, KAFKA_COMMIT_ERRORS};

/// At most one line of a kind in this time: librdkafka repeats itself for every broker and every try.
const LOG_EVERY: Duration = Duration::from_secs(10);

/// The callbacks of one client.
#[derive(Debug)]
pub struct Context {
    /// What the client is, for the log: source or sink, and its name.
    client: String,
    quiet: Quiet,
    /// The last error of the whole client that says more than that a call timed out.
    last: Mutex<Option<Trouble>>,
    down: AtomicBool,
}

/// An error of the whole client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// Its kind.
    pub code: RDKafkaErrorCode,
    /// What librdkafka says: address, cause.
    pub reason: String,
}

impl Context {
    /// The callbacks of a client called `client` in the log.
    pub fn new(client: String) -> Self {
        Context { client, quiet: Quiet::default(), last: Mutex::new(None), down: AtomicBool::new(false) }
    }

    /// Takes the last error of the client: why it could not do what it was asked.
    pub fn take_trouble(&self) -> Option<Trouble> {
        self.last.lock().expect("no thread panics while it holds the error").take()
    }

    /// True from the moment when no broker answered any more until [`up`](Context::up).
    pub fn is_down(&self) -> bool {
        self.down.load(Ordering::Relaxed)
    }

    /// Says that a broker answered.
    pub fn up(&self) {
        self.down.store(false, Ordering::Relaxed);
    }

    /// Logs a warning of `kind`, unless one of the kind was logged just now.
    pub fn warn(&self, kind: &'static str, message: &str) {
        if let Some(suppressed) = self.quiet.say(kind) {
            tracing::warn!(client = %self.client, kind, suppressed, "{message}");
        }
    }
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, kind: &str, message: &str) {
        use RDKafkaLogLevel::{Alert, Critical, Emerg, Error, Warning};
        // What fails comes as an error as well (`FAIL`, `ERROR`), with the same words.
        if !matches!(level, Emerg | Alert | Critical | Error | Warning) || matches!(kind, "FAIL" | "ERROR") {
            tracing::debug!(client = %self.client, kind, "{message}");
        } else if let Some(suppressed) = self.quiet.say(kind) {
            tracing::warn!(client = %self.client, kind, suppressed, "{message}");
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        let Some(code) = error.rdkafka_error_code().filter(|code| *code != RDKafkaErrorCode::PartitionEOF) else {
            return;
        };
        KAFKA_CLIENT_ERRORS.of([&self.client, &format!("{code:?}")]).increment(1);
        match code {
            RDKafkaErrorCode::AllBrokersDown => self.down.store(true, Ordering::Relaxed),
            _ => {
                let trouble = Trouble { code, reason: tidy(reason) };
                *self.last.lock().expect("no thread panics while it holds the error") = Some(trouble);
            }
        }
        if let Some(suppressed) = self.quiet.say(&format!("{code:?}")) {
            tracing::warn!(client = %self.client, error = ?code, suppressed, "{}", tidy(reason));
        }
    }

    fn stats(&self, statistics: Statistics) {
        let up = statistics.brokers.values().filter(|broker| broker.state == "UP" && broker.nodeid >= 0).count();
        KAFKA_BROKERS_UP.of([&self.client]).set(up as f64);
    }
}

impl ConsumerContext for Context {
    fn commit_callback(&self, result: KafkaResult<()>, _offsets: &TopicPartitionList) {
        if let Err(error) = result {
            KAFKA_COMMIT_ERRORS.of([&self.client]).increment(1);
            self.warn("commit", &format!("offsets for lag tools could not be committed: {error}"));
        }
    }
}

/// librdkafka's reason without its own name for the connection in front and the state of its machinery behind:
/// `localhost:1/bootstrap: Connect to ipv4#127.0.0.1:1 failed: Connection refused (after 0ms in state CONNECT)`.
fn tidy(reason: &str) -> String {
    let reason = reason.split(" (after ").next().unwrap_or(reason);
    match reason.split_once(": ") {
        Some((connection, rest)) if connection.contains('/') => rest.to_owned(),
        _ => reason.to_owned(),
    }
}

/// Lets one line of a kind through in [`LOG_EVERY`], and counts the others.
#[derive(Debug, Default)]
pub struct Quiet(Mutex<HashMap<String, (Instant, u64)>>);

impl Quiet {
    /// The number of lines held back since the last, if a line of this kind may be logged now.
    pub fn say(&self, kind: &str) -> Option<u64> {
        let mut kinds = self.0.lock().expect("no thread panics while it holds the table");
        let now = Instant::now();
        match kinds.get_mut(kind) {
            Some((last, held)) if now.duration_since(*last) < LOG_EVERY => {
                *held += 1;
                None
            }
            Some((last, held)) => {
                *last = now;
                Some(std::mem::take(held))
            }
            None => {
                kinds.insert(kind.to_owned(), (now, 0));
                Some(0)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_lose_the_machinery() {
        let said = "localhost:1/bootstrap: Connect to ipv4#127.0.0.1:1 failed: Connection refused (after 0ms in state CONNECT)";
        assert_eq!(tidy(said), "Connect to ipv4#127.0.0.1:1 failed: Connection refused");
        assert_eq!(tidy("1/1 brokers are down"), "1/1 brokers are down");
    }

    #[test]
    fn a_flood_is_one_line() {
        let quiet = Quiet::default();
        assert_eq!(quiet.say("a"), Some(0));
        assert_eq!(quiet.say("a"), None);
        assert_eq!(quiet.say("b"), Some(0));
    }
}
