//! How large a record of a topic may be, and how much of a dead letter that is larger goes into it.
//!
//! Two have a say: the producer (`message.max.bytes`, of a record by itself) and the topic (`max.message.bytes`, of a batch of
//! records, at best one). An ordinary record that is too large is an error: it says something only as a whole. A dead letter is
//! cut: were it refused, the job would end, and read the message that it is made of again at every start.

use rdkafka::config::ClientConfig;

use crate::kafka;
use crate::sinks::Records;

/// The header of a dead letter that was cut: how many bytes its value had.
pub const CUT_HEADER: &str = "cut_from";

/// What a topic takes if nobody says: Kafka's default.
const TOPIC_BYTES: usize = 1_048_588;
/// librdkafka's default of `batch.size`: larger than what some topics take.
pub(super) const BATCH_SIZE: usize = 1_000_000;
/// librdkafka's default of `message.max.bytes`.
const MESSAGE_BYTES: usize = 1_000_000;
/// A batch without its records.
const BATCH_BYTES: usize = 61;
/// What a record has beside its key, value and headers, at most: lengths, and its place in the batch.
const RECORD_BYTES: usize = 36;
/// What a header has beside its name and value, at most: their lengths.
const HEADER_BYTES: usize = 10;
/// The two headers that the writer adds, the event time and how long a value was: names and numbers.
const ADDED_BYTES: usize = 2 * (HEADER_BYTES + 10 + 20);

/// How large the dead letters of a topic may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Limit {
    /// Bytes of a record, with all that it has.
    record_bytes: usize,
}

impl Limit {
    /// Of a producer with these settings, for a topic that takes batches of so many bytes.
    pub fn new(config: &ClientConfig, topic_bytes: Option<usize>) -> Limit {
        let producer = kafka::number(config, "message.max.bytes").unwrap_or(MESSAGE_BYTES);
        let topic = topic_bytes.unwrap_or(TOPIC_BYTES).saturating_sub(BATCH_BYTES);
        Limit { record_bytes: producer.min(topic) }
    }

    /// How many bytes of the value of record `at` fit.
    pub fn kept(self, records: &Records, at: usize) -> usize {
        let named = records.header_names.iter().enumerate();
        let headers: usize = named.map(|(n, name)| HEADER_BYTES + name.len() + records.header(at, n).len()).sum();
        let beside = RECORD_BYTES + ADDED_BYTES + headers + records.key(at).map_or(0, <[u8]>::len);
        records.value(at).len().min(self.record_bytes.saturating_sub(beside))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A record with a key and a header.
    fn record(value_bytes: usize) -> Records {
        Records {
            values: vec![b'x'; value_bytes],
            value_ends: vec![value_bytes],
            keys: b"key".to_vec(),
            key_ends: vec![3],
            header_names: vec!["reason".into()],
            headers: b"malformed".to_vec(),
            header_ends: vec![9],
            event_times: vec![0],
        }
    }

    fn kept(message_max: &str, topic_bytes: Option<usize>, value_bytes: usize) -> usize {
        let mut config = ClientConfig::new();
        config.set("message.max.bytes", message_max);
        Limit::new(&config, topic_bytes).kept(&record(value_bytes), 0)
    }

    #[test]
    fn the_smaller_of_both_limits_counts() {
        // 36 of the record, 80 of added headers, 25 of its own, 3 of the key.
        assert_eq!(kept("1000", Some(5_000), 5_000), 1_000 - 144);
        assert_eq!(kept("5000", Some(1_000), 5_000), 1_000 - 61 - 144);
        assert_eq!(kept("67108864", None, 2_000_000), TOPIC_BYTES - 61 - 144);
        assert_eq!(kept("5000", Some(5_000), 100), 100, "what fits is whole");
        assert_eq!(kept("1000", Some(100), 100), 0, "headers and key are not cut");
    }
}
