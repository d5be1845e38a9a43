//! Who has ended a writer's transactions: another copy of the job, or the brokers, for which they were open too long.
//!
//! To the writer brokers say the same of both: that its epoch is an old one. The [marker](super::marker) tells them apart,
//! since every start commits one that bears its name.

use std::time::{Duration, Instant};

use rdkafka::producer::Producer as _;
use rdkafka::types::RDKafkaErrorCode;

use super::marker::Marker;
use super::topic::Topic;
use crate::sinks::SinkError;

/// How long the marker of another copy is waited for: it fences first and commits then. Longer than the thread of the checkpoints
/// takes to see that the state is another's, where copies share it.
const MARKER_WAIT: Duration = Duration::from_secs(10);
/// How long to wait before looking again.
const AGAIN: Duration = Duration::from_millis(200);

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
        "the brokers have ended a transaction that was open for longer than `transaction_timeout`: the process was stopped, or \
         could not write its checkpoint. Its records are not lost; the next start writes them. topic `{}` at {}",
        topic.topic, topic.brokers
    ))
}
