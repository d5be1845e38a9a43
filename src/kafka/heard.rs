//! What a client has heard of its brokers: of which partitions it is known until when that nothing more was there.
//!
//! A partition without events and one whose events do not come look alike to who reads them. But a broker answers a fetch at once
//! when something is there, and after `fetch.wait.max.ms` when nothing is. So while the broker of a partition goes on answering, what
//! has not come is not there. librdkafka's statistics say of each broker when it was last heard, since when it is connected, and
//! which partitions are fetched from it.
//!
//! ```text
//! looks          │    │    │    │    │    │    │    │
//! answers        ········· ─ stall ─ ···············
//! a partition    ●  ● ended                since   until ─▶ quiet = until - since
//! ```

use std::collections::HashMap;
use std::time::{Duration, Instant};

use rdkafka::Statistics;

/// What was known at a look at the statistics. The default knows of nothing.
#[derive(Debug, Default)]
pub struct Heard {
    at: Option<Instant>,
    partitions: HashMap<String, HashMap<i32, Hearing>>,
}

/// How long the broker of a partition has been heard without a pause.
#[derive(Debug, Clone, Copy)]
struct Hearing {
    broker: i32,
    since: Instant,
    until: Instant,
}

impl Heard {
    /// What is known at the look after this one. The client was made at `made`, at the latest.
    pub(super) fn next(&self, made: Instant, statistics: &Statistics) -> Heard {
        let micros = |micros: i64| u64::try_from(micros).ok().map(Duration::from_micros);
        let at = made + micros(statistics.age).unwrap_or_default();
        let ago = |time| at.checked_sub(micros(time)?);
        let mut partitions: HashMap<String, HashMap<i32, Hearing>> = HashMap::new();
        for broker in statistics.brokers.values().filter(|broker| broker.state == "UP") {
            // One that was not heard since the look before may be away, and what it says next may have been on its way for long.
            let heard = ago(broker.rxidle).filter(|heard| self.at.is_none_or(|before| *heard > before));
            let (Some(until), Some(up)) = (heard, ago(broker.stateage)) else { continue };
            for found in broker.toppars.values() {
                let before =
                    self.hearing(&found.topic, found.partition).filter(|before| before.broker == broker.nodeid);
                let since = before.map_or(until, |before| before.since).max(up);
                let hearing = Hearing { broker: broker.nodeid, since, until };
                partitions.entry(found.topic.clone()).or_default().insert(found.partition, hearing);
            }
        }
        Heard { at: Some(at), partitions }
    }

    /// For how long nothing has come to a partition after `ended`, when it was read to its end, although its broker was heard all the
    /// time.
    pub fn quiet(&self, topic: &str, partition: i32, ended: Instant) -> Duration {
        let hearing = self.hearing(topic, partition);
        hearing.map_or(Duration::ZERO, |hearing| hearing.until.saturating_duration_since(hearing.since.max(ended)))
    }

    fn hearing(&self, topic: &str, partition: i32) -> Option<&Hearing> {
        self.partitions.get(topic)?.get(&partition)
    }
}

#[cfg(test)]
mod tests {
    use rdkafka::statistics::{Broker, TopicPartition};

    use super::*;

    const SECOND: i64 = 1_000_000;

    /// Broker 1 with partition 0 of topic `t`, so many microseconds after the client was made; last heard and connected so long ago.
    fn look(age: i64, rxidle: i64, stateage: i64) -> Statistics {
        let of_it = TopicPartition { topic: "t".into(), partition: 0 };
        let toppars = [("t-0".to_string(), of_it)].into();
        let broker = Broker { nodeid: 1, state: "UP".into(), stateage, rxidle, toppars, ..Broker::default() };
        Statistics { age, brokers: [("one".to_string(), broker)].into(), ..Statistics::default() }
    }

    /// How quiet the partition is after each of the looks, in seconds; its end was reached when the client was made.
    fn quiet<const N: usize>(looks: [Statistics; N]) -> [u64; N] {
        let made = Instant::now();
        let mut heard = Heard::default();
        looks.map(|look| {
            heard = heard.next(made, &look);
            heard.quiet("t", 0, made).as_secs()
        })
    }

    #[test]
    fn a_partition_is_quiet_while_its_broker_answers() {
        let answers = |second| look(second * SECOND, 0, second * SECOND);
        assert_eq!(quiet([1, 2, 3, 7].map(answers)), [0, 1, 2, 6]);
        let heard = Heard::default().next(Instant::now(), &answers(1));
        assert_eq!(heard.quiet("t", 1, Instant::now()), Duration::ZERO, "of others nothing is known");
    }

    #[test]
    fn a_broker_that_is_silent_says_nothing_of_its_partitions() {
        let at = |second: i64, silent: i64| look(second * SECOND, silent * SECOND, second * SECOND);
        // It is counted from when it is heard again.
        let looks = [at(1, 0), at(3, 0), at(5, 2), at(9, 6), at(10, 0), at(14, 0)];
        assert_eq!(quiet(looks), [0, 2, 0, 0, 0, 4]);
    }

    #[test]
    fn a_connection_that_was_lost_in_between_begins_anew() {
        let at = |second: i64, up: i64| look(second * SECOND, 0, up * SECOND);
        assert_eq!(quiet([at(1, 1), at(3, 3), at(5, 1), at(6, 2)]), [0, 2, 1, 2]);
        let mut away = look(7 * SECOND, -1, SECOND);
        away.brokers.get_mut("one").unwrap().state = "DOWN".into();
        assert_eq!(quiet([at(1, 1), at(3, 3), away, at(8, 8)]), [0, 2, 0, 0]);
    }

    #[test]
    fn a_partition_that_moves_to_another_broker_begins_anew() {
        let at = |second: i64, id: i32| {
            let mut look = look(second * SECOND, 0, second * SECOND);
            look.brokers.get_mut("one").unwrap().nodeid = id;
            look
        };
        assert_eq!(quiet([at(1, 1), at(3, 1), at(5, 2), at(6, 2)]), [0, 2, 0, 1]);
    }
}
