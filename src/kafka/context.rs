//! What librdkafka says by itself: its log goes to ours, a line per kind and minute; its errors are remembered, for they
//! say why a call timed out. A broker that is away is said at once, then every minute, and when it is back.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::topic_partition_list::TopicPartitionList;
use rdkafka::types::RDKafkaErrorCode;
use rdkafka::{ClientContext, Statistics};

use crate::metrics::catalogue::{KAFKA_BROKERS_UP, KAFKA_CLIENT_ERRORS, KAFKA_COMMIT_ERRORS};

use super::ClientError;
use super::heard::Heard;

/// At most one line of a kind in this time: librdkafka repeats itself for every broker and every try.
const LOG_EVERY: Duration = Duration::from_secs(60);

/// The kind of all lines that say that nobody answers, in whatever words.
const SILENCE: &str = "no_answer";

/// The callbacks of one client.
#[derive(Debug)]
pub struct Context {
    /// What the client is, for the log: source or sink, and its name.
    client: String,
    quiet: Quiet,
    /// The last error of the whole client that says more than that a call timed out.
    last: Mutex<Option<Trouble>>,
    /// Since when no broker has answered; none while one does. `down` is the same for those who ask often.
    down_since: Mutex<Option<Instant>>,
    down: AtomicBool,
    made: Instant,
    heard: Mutex<Arc<Heard>>,
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
        Context {
            client,
            quiet: Quiet::default(),
            last: Mutex::new(None),
            down_since: Mutex::new(None),
            down: AtomicBool::new(false),
            made: Instant::now(),
            heard: Mutex::default(),
        }
    }

    /// What the client has heard of its brokers up to the newest look at its statistics.
    pub fn heard(&self) -> Arc<Heard> {
        self.heard.lock().expect("no thread panics while it looks").clone()
    }

    /// Takes the last error of the client: why it could not do what it was asked.
    pub fn take_trouble(&self) -> Option<Trouble> {
        self.last.lock().expect("no thread panics while it holds the error").take()
    }

    /// True from the moment when no broker answered any more until [`up`](Context::up).
    pub fn is_down(&self) -> bool {
        self.down.load(Ordering::Relaxed)
    }

    /// Says that a broker answered. If none did before, the log says so, and the next outage is said at once again.
    pub fn up(&self) {
        if !self.is_down() {
            return;
        }
        self.down.store(false, Ordering::Relaxed);
        self.quiet.forget(SILENCE);
        if let Some(since) = self.down_since.lock().expect("no thread panics while it holds the time").take() {
            tracing::info!(client = %self.client, away_seconds = since.elapsed().as_secs(), "a broker answers again");
        }
    }

    /// Says that no broker answers, and why.
    pub fn waiting(&self, error: &ClientError) {
        self.set_down();
        self.warn(SILENCE, &format!("waiting: {error}"));
    }

    fn set_down(&self) {
        self.down.store(true, Ordering::Relaxed);
        let mut since = self.down_since.lock().expect("no thread panics while it holds the time");
        since.get_or_insert_with(Instant::now);
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
            RDKafkaErrorCode::AllBrokersDown => self.set_down(),
            _ => {
                let trouble = Trouble { code, reason: tidy(reason) };
                *self.last.lock().expect("no thread panics while it holds the error") = Some(trouble);
            }
        }
        let kind =
            if super::is_silence(code) || super::is_moving(code) { SILENCE.to_owned() } else { format!("{code:?}") };
        if let Some(suppressed) = self.quiet.say(&kind) {
            // librdkafka counts brokers that it has not met yet: `0/2 brokers are down` says that none answers.
            let said = match code {
                RDKafkaErrorCode::AllBrokersDown => "no broker answers; trying again".to_owned(),
                _ => tidy(reason),
            };
            tracing::warn!(client = %self.client, error = ?code, suppressed, "{said}");
        }
    }

    fn stats(&self, statistics: Statistics) {
        let up = statistics.brokers.values().filter(|broker| broker.state == "UP" && broker.nodeid >= 0).count();
        KAFKA_BROKERS_UP.of([&self.client]).set(up as f64);
        let mut heard = self.heard.lock().expect("no thread panics while it looks");
        *heard = Arc::new(heard.next(self.made, &statistics));
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
        self.say_at(kind, Instant::now())
    }

    /// Lets the next line of a kind through.
    fn forget(&self, kind: &str) {
        self.0.lock().expect("no thread panics while it holds the table").remove(kind);
    }

    fn say_at(&self, kind: &str, now: Instant) -> Option<u64> {
        let mut kinds = self.0.lock().expect("no thread panics while it holds the table");
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
        let begin = Instant::now();
        let after = |seconds| begin + Duration::from_secs(seconds);
        assert_eq!(quiet.say_at("a", begin), Some(0));
        assert_eq!((quiet.say_at("a", after(1)), quiet.say_at("a", after(59))), (None, None));
        assert_eq!(quiet.say_at("b", after(2)), Some(0));
        assert_eq!(quiet.say_at("a", after(60)), Some(2));
        quiet.forget("a");
        assert_eq!(quiet.say_at("a", after(61)), Some(0));
    }

    #[test]
    fn whoever_says_that_nobody_answers_says_it_once() {
        let context = Context::new("test".into());
        let down = |code| ClientContext::error(&context, KafkaError::Global(code), "a:1: no route");
        down(RDKafkaErrorCode::BrokerTransportFailure);
        assert!(!context.is_down(), "one of several may be away");
        down(RDKafkaErrorCode::AllBrokersDown);
        assert!(context.is_down());
        assert_eq!(context.quiet.say(SILENCE), None, "it was said");
        context.up();
        assert!(!context.is_down());
        assert_eq!(context.quiet.say(SILENCE), Some(0), "the next time it is said at once");
    }
}
