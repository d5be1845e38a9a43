//! The first contact: waits for a broker, finds the partitions, and decides where each begins.

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use millstream_kafka_batch::topic_id;
use rdkafka::consumer::{BaseConsumer, Consumer};

use super::gap::Found;
use super::{Halt, KafkaSource, StartAt};
use crate::kafka::{self, ClientError, Context};
use crate::sources::{Gap, Positions, SourceError, Topic, Topics};

/// One try to reach a broker.
const TRY: Duration = Duration::from_secs(2);
/// A topic that was created a moment ago may not be known to every broker yet.
const TOPIC_GRACE: Duration = Duration::from_secs(3);
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_LAST: Duration = Duration::from_secs(2);

/// A partition and the offset to begin at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Begin {
    pub topic: String,
    pub partition: i32,
    pub position: i64,
}

/// Asks one source's brokers.
pub(super) struct Contact<'a> {
    pub source: &'a KafkaSource,
    pub name: &'a str,
    pub consumer: &'a BaseConsumer<Context>,
    pub halt: &'a Halt,
}

impl Contact<'_> {
    /// Every partition of every topic with the offset to begin at, and what is known of the topics now, where `known` was at
    /// the `positions`; `None` if the job stopped meanwhile.
    ///
    /// # Errors
    /// A topic that is missing or another one, a position that is gone, a client that is not let in.
    pub fn begin(&self, positions: &Positions, known: &Topics) -> Result<Option<(Vec<Begin>, Topics)>, SourceError> {
        let (mut begin, mut topics) = (Vec::new(), Topics::new());
        for topic in &self.source.topics {
            let Some(count) = self.wait_for_topic(topic)? else { return Ok(None) };
            self.check_count(topic, count, positions)?;
            let resumed: BTreeMap<i32, i64> = of_topic(topic, positions).collect();
            let id = known.get(topic).and_then(|known| known.id.as_deref());
            let id = self.check_id(topic, id, resumed.iter().map(|(partition, position)| (*partition, *position)))?;
            // A checkpoint of an older build does not say how many there were: as many as have a position.
            let with_position = resumed.last_key_value().map(|(last, _)| last + 1);
            let partitions = known.get(topic).map(|known| known.partitions).or(with_position).unwrap_or(count);
            for partition in 0..count {
                let start = if partition < partitions { self.source.start } else { StartAt::Earliest };
                let resumed = resumed.get(&partition).copied();
                let Some(position) = self.position(topic, partition, resumed, start)? else { return Ok(None) };
                begin.push(Begin { topic: topic.clone(), partition, position });
            }
            topics.insert(topic.clone(), Topic { id, partitions });
        }
        Ok(Some((begin, topics)))
    }

    /// Moves positions behind what is gone: see [`Found::pass`].
    ///
    /// # Errors
    /// As [`begin`](Contact::begin), but for positions that are gone.
    pub fn pass_gaps(&self, positions: &mut Positions, topics: &mut Topics) -> Result<Vec<Gap>, SourceError> {
        let mut gaps = Vec::new();
        for topic in &self.source.topics {
            if of_topic(topic, positions).next().is_none() {
                continue;
            }
            let Some(count) = self.wait_for_topic(topic)? else { break };
            let is_known = topics.get(topic).is_some_and(|known| known.id.is_some());
            let id = self.retry(|| match topic_id(self.consumer, topic, TRY) {
                // Whether it is the same topic must not be guessed for want of an answer.
                None if is_known => Err(ClientError::Unreachable {
                    brokers: self.source.brokers.clone(),
                    reason: format!("they do not say the id of topic `{topic}`"),
                }),
                id => Ok(id),
            })?;
            let bounds = (0..count).map(|partition| self.retry(|| self.watermarks(topic, partition)));
            let bounds: Option<Vec<(i64, i64)>> = bounds.collect::<Result<_, SourceError>>()?;
            let (Some(id), Some(partitions)) = (id, bounds) else { break };
            gaps.extend(Found { id, partitions }.pass(self.name, topic, positions, topics));
        }
        Ok(gaps)
    }

    /// The id of a topic, as far as brokers say it, else the one that is `known`. Positions in another topic of the name mean
    /// nothing in this one, whether they exist in it or not.
    ///
    /// # Errors
    /// If it is another one, and something was read of the one that is known.
    pub fn check_id(
        &self,
        topic: &str,
        known: Option<&str>,
        mut positions: impl Iterator<Item = (i32, i64)>,
    ) -> Result<Option<String>, SourceError> {
        let now = topic_id(self.consumer, topic, TRY);
        let (Some(known), Some(id)) = (known, &now) else { return Ok(now.or_else(|| known.map(str::to_owned))) };
        match positions.find(|(_, position)| *position > 0).filter(|_| known != id) {
            Some((partition, position)) => {
                let detail = format!("the topic was made anew: its id was {known} and is {id}");
                Err(self.missed(topic, partition, position, detail))
            }
            None => Ok(now),
        }
    }

    /// The partitions of `topic` beyond the first `known`, each from its beginning; `None` if nobody answers just now.
    ///
    /// # Errors
    /// As [`begin`](Contact::begin).
    pub fn added(&self, topic: &str, known: i32) -> Result<Option<Vec<Begin>>, ClientError> {
        let count = match self.partitions(topic) {
            Ok(count) => count,
            Err(error) if error.is_transient() => return Ok(None),
            Err(error) => return Err(error),
        };
        let begin = (known..count).map(|partition| {
            let (low, _) = self.watermarks(topic, partition)?;
            Ok(Begin { topic: topic.to_owned(), partition, position: low })
        });
        match begin.collect::<Result<Vec<_>, ClientError>>() {
            Ok(begin) => Ok(Some(begin)),
            Err(error) if error.is_transient() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What is there now of a partition whose position is gone, for the error.
    pub fn gap(&self, topic: &str, partition: i32, position: i64) -> SourceError {
        let detail = match self.watermarks(topic, partition) {
            Ok((low, high)) => there(low, high),
            Err(error) => error.to_string(),
        };
        self.missed(topic, partition, position, detail)
    }

    /// The error that records would be missed.
    fn missed(&self, topic: &str, partition: i32, position: i64, detail: String) -> SourceError {
        SourceError::Gap { name: self.name.into(), topic: topic.into(), partition, position, detail }
    }

    fn wait_for_topic(&self, topic: &str) -> Result<Option<i32>, SourceError> {
        let since = Instant::now();
        self.retry(|| match self.partitions(topic) {
            Err(ClientError::NoTopic { topic, brokers }) if since.elapsed() < TOPIC_GRACE => {
                Err(ClientError::Unreachable { brokers, reason: format!("topic `{topic}` is not known yet") })
            }
            other => other,
        })
    }

    /// Where to begin: the position resumed from, if it is still there, else at `start`.
    fn position(
        &self,
        topic: &str,
        partition: i32,
        resumed: Option<i64>,
        start: StartAt,
    ) -> Result<Option<i64>, SourceError> {
        let Some((low, high)) = self.retry(|| self.watermarks(topic, partition))? else { return Ok(None) };
        match (resumed, start) {
            (Some(position), _) if position < low || position > high => {
                Err(self.missed(topic, partition, position, there(low, high)))
            }
            (Some(position), _) => Ok(Some(position)),
            (None, StartAt::Earliest) => Ok(Some(low)),
            (None, StartAt::Latest) => Ok(Some(high)),
        }
    }

    /// A position of a partition that the topic no longer has is a gap, too.
    fn check_count(&self, topic: &str, count: i32, positions: &Positions) -> Result<(), SourceError> {
        match of_topic(topic, positions).find(|(partition, _)| *partition >= count) {
            Some((partition, position)) => {
                let detail = format!("the topic has {count} partitions now: it was made anew");
                Err(self.missed(topic, partition, position, detail))
            }
            None => Ok(()),
        }
    }

    fn partitions(&self, topic: &str) -> Result<i32, ClientError> {
        let client = self.consumer.client();
        kafka::partitions(client, &self.source.brokers, topic, TRY, || kafka::trouble(self.consumer))
    }

    fn watermarks(&self, topic: &str, partition: i32) -> Result<(i64, i64), ClientError> {
        let answer = self.consumer.fetch_watermarks(topic, partition, TRY);
        answer.map_err(|error| kafka::explain(&error, &self.source.brokers, kafka::trouble(self.consumer)))
    }

    /// Tries until somebody answers; `None` if the job stopped meanwhile.
    fn retry<T>(&self, mut attempt: impl FnMut() -> Result<T, ClientError>) -> Result<Option<T>, SourceError> {
        let mut pause = RETRY_FIRST;
        while !self.halt.now() {
            match attempt() {
                Ok(answer) => {
                    self.consumer.context().up();
                    return Ok(Some(answer));
                }
                Err(error) if error.is_transient() => {
                    self.consumer.context().waiting(&error);
                    thread::sleep(pause);
                    pause = (pause * 2).min(RETRY_LAST);
                }
                Err(error) => return Err(SourceError::Kafka { name: self.name.into(), detail: error.to_string() }),
            }
        }
        Ok(None)
    }
}

/// The positions of a topic's partitions.
pub(super) fn of_topic<'a>(topic: &'a str, positions: &'a Positions) -> impl Iterator<Item = (i32, i64)> + 'a {
    let of_topic = positions.0.range((topic.to_owned(), 0)..).take_while(move |((name, _), _)| name == topic);
    of_topic.map(|((_, partition), position)| (*partition, *position))
}

fn there(low: i64, high: i64) -> String {
    if low == high {
        return format!("the partition is empty; its next message will have offset {high}");
    }
    format!("there are {low} to {}", high - 1)
}
