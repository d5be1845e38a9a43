//! Taking a transactional id from whoever had it, and who has ended a writer's transactions: another copy of the job, or the brokers, for
//! which they were open too long.
//!
//! To the writer brokers say the same of both: that its epoch is an old one. The [marker](super::marker) tells them apart,
//! since every start commits one that bears its name.

use std::time::{Duration, Instant};

use rdkafka::error::KafkaError;
use rdkafka::producer::Producer as _;
use rdkafka::types::RDKafkaErrorCode;

use super::marker::Marker;
use super::topic::Topic;
use super::transactional::{CALL_WAIT, again, said};
use crate::sinks::SinkError;

/// How long the marker of another copy is waited for: it fences first and commits then. Longer than the thread of the checkpoints
/// takes to see that the state is another's, where copies share it.
const MARKER_WAIT: Duration = Duration::from_secs(10);
/// How long to wait before looking again.
const AGAIN: Duration = Duration::from_millis(200);
/// How long a start waits for the brokers to end what an earlier run left open.
const FENCE_WAIT: Duration = Duration::from_secs(60);
/// How long a producer waits for its transactional id before another is made: so long at first, twice as long then, and so on.
const FENCE_PATIENCE: Duration = Duration::from_millis(50);
/// How many are made. The one after them waits.
const FENCE_TRIES: u32 = 4;
/// How long brokers may take to answer a producer that has had an answer.
const ANSWER_WAIT: Duration = Duration::from_secs(1);

/// Whether an error says that the writer's epoch is an old one.
pub(super) fn is_fence(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode::{Fenced, InvalidProducerEpoch, ProducerFenced};
    matches!(code, Fenced | InvalidProducerEpoch | ProducerFenced)
}

/// The error behind an error of a writer: what a fenced producer says of its records and calls has many faces.
pub(super) fn behind(error: SinkError, topics: [&Topic; 2], marker: &Marker) -> SinkError {
    let is_fenced = |topic: &&Topic| {
        topic.producer.client().fatal_error().is_some_and(|(code, _)| is_fence(code)) || topic.is_fenced()
    };
    let Some(topic) = topics.into_iter().find(is_fenced) else {
        // After a long sleep no broker need have said anything yet: records are too old to be sent, and a producer of which some are
        // takes no more.
        return match marker.is_anothers() {
            Ok(true) => SinkError::TakenOver { name: topics[0].name.clone() },
            Ok(false) | Err(_) => error,
        };
    };
    let deadline = Instant::now() + MARKER_WAIT;
    while Instant::now() < deadline {
        match marker.is_anothers() {
            Ok(true) => return SinkError::TakenOver { name: topic.name.clone() },
            Ok(false) => std::thread::sleep(AGAIN),
            Err(unread) => {
                let detail = format!("its transactions were ended, and it can't be told by whom: {unread}");
                return topic.error(detail);
            }
        }
    }
    topic.error(format!(
        "its transactions were ended, by the brokers or by a start of the job that has ended since: they were open for longer than \
         `transaction_timeout` (the process was stopped, or could not write its checkpoint), or a second start was under way. Their \
         records are not lost; the next start writes them. topic `{}` at {}",
        topic.topic, topic.brokers
    ))
}

/// A producer that has taken the transactional id: whoever had it before can't commit any more, and what it left open is ended.
///
/// Brokers that are asked for an id with an open transaction begin to end it, which takes them some milliseconds, and want to be asked
/// again. librdkafka does so after half a second, most of the time that a start takes; another producer does so at once.
pub(super) fn fenced(id: &str, make: impl Fn() -> Result<Topic, SinkError>) -> Result<Topic, SinkError> {
    let doing = format!("take the transactional id `{id}`");
    let mut tries = 0;
    loop {
        let began = Instant::now();
        let mut topic = make()?;
        topic.discards = true;
        // librdkafka closes the connection by which it had its first answer. While there is none, it asks nobody for the coordinator
        // of transactions, and looks again after half a second; a second question waits for the next connection.
        let answer = topic.producer.client().fetch_metadata(Some(&topic.topic), ANSWER_WAIT);
        tries += 1;
        if answer.is_err() || tries > FENCE_TRIES {
            let deadline = Instant::now() + FENCE_WAIT;
            again(&topic, &doing, Some(deadline), || topic.producer.init_transactions(CALL_WAIT))?;
            return Ok(topic);
        }
        // Brokers that are far away take as long as for other answers.
        match topic.producer.init_transactions(tries * FENCE_PATIENCE + began.elapsed()) {
            Ok(()) => return Ok(topic),
            Err(KafkaError::Transaction(told)) if told.is_retriable() && !told.is_fatal() => {}
            Err(error) => return Err(said(&topic, &doing, &error)),
        }
    }
}
