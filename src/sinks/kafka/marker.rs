//! Markers: what a writer's last committed transaction says about itself.
//!
//! Each transaction commits, beside its records, an offset of a consumer group that nobody consumes with: the group is the
//! writer's (`<job>.<sink>.<worker>.commits`), the partition is the topic's first, the "offset" is the newest epoch in the
//! transaction, and the metadata is the id of the job's life. The marker becomes visible with the records or not at all, and reading it is one
//! request, however long the job has run.

use std::time::{Duration, Instant};

use rdkafka::Offset;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerGroupMetadata};
use rdkafka::error::KafkaError;
use rdkafka::topic_partition_list::TopicPartitionList;
use rdkafka::types::RDKafkaErrorCode;

use super::KafkaSink;
use crate::kafka::{self, Context};
use crate::sinks::{Open, SinkError};

/// How long the brokers may take to answer.
const WAIT: Duration = Duration::from_secs(30);
/// How long to wait before asking again.
const AGAIN: Duration = Duration::from_millis(100);

/// The partition under which the marker stands: one that every topic has.
const PARTITION: i32 = 0;

/// The group that holds the marker of a sink's writer.
pub(super) fn group(job: &str, sink: &str, worker: usize) -> String {
    format!("{job}.{sink}.{worker}.commits")
}

/// What a marker says: the newest committed epoch and the life of the job. `None` if there is none.
pub(super) fn look(sink: &KafkaSink, job: &str, name: &str, worker: usize) -> Result<Option<(u64, String)>, SinkError> {
    ask(sink, &group(job, name, worker), name).map(|(_, said)| said)
}

/// Asks for the marker in a group.
fn ask(sink: &KafkaSink, group: &str, name: &str) -> Result<(ConsumerGroupMetadata, Option<(u64, String)>), SinkError> {
    let fail = |detail: String| SinkError::Kafka { name: name.to_string(), detail };
    let config =
        kafka::consumer(&sink.brokers, group, &sink.options.common()).map_err(|error| fail(error.to_string()))?;
    let context = Context::new(format!("marker of sink {name}"));
    let consumer: BaseConsumer<Context> =
        config.create_with_context(context).map_err(|error| fail(error.to_string()))?;
    let metadata = consumer.group_metadata().ok_or_else(|| fail("a consumer without a group".to_string()))?;
    let found = committed(&consumer, &sink.topic).map_err(|error| {
        let why = kafka::explain(&error, &sink.brokers, kafka::trouble(&consumer));
        fail(format!("read the marker of group `{group}`: {why}"))
    })?;
    let said = found.elements().iter().find_map(|element| match element.offset() {
        Offset::Offset(epoch) => u64::try_from(epoch).ok().map(|epoch| (epoch, element.metadata().to_string())),
        _ => None,
    });
    Ok((metadata, said))
}

/// A writer's marker.
pub(super) struct Marker {
    /// What `send_offsets_to_transaction` asks for.
    pub group: ConsumerGroupMetadata,
    topic: String,
    id: String,
}

impl Marker {
    /// Finds the marker of a writer, and the newest epoch it names: `None` if this life of the job has committed nothing.
    ///
    /// The writer's transactional ids must have been fenced before, or a transaction of an earlier run might still be
    /// committed after the marker was read.
    pub fn find(sink: &KafkaSink, open: &Open) -> Result<(Marker, Option<u64>), SinkError> {
        let group = group(&open.job, &open.name, open.worker);
        let (group, said) = ask(sink, &group, &open.name)?;
        let epoch = said.filter(|(_, life)| *life == open.commits.id).map(|(epoch, _)| epoch);
        Ok((Marker { group, topic: sink.topic.clone(), id: open.commits.id.clone() }, epoch))
    }

    /// The offsets that say that everything up to `epoch` is committed.
    pub fn offsets(&self, epoch: u64) -> Result<TopicPartitionList, KafkaError> {
        let mut offsets = TopicPartitionList::new();
        offsets.add_partition_offset(&self.topic, PARTITION, Offset::Offset(epoch as i64))?;
        if let Some(mut element) = offsets.find_partition(&self.topic, PARTITION) {
            element.set_metadata(&self.id);
        }
        Ok(offsets)
    }
}

/// Asks for the marker, again and again while the group's coordinator is on its way from one broker to another.
fn committed(consumer: &BaseConsumer<Context>, topic: &str) -> Result<TopicPartitionList, KafkaError> {
    use RDKafkaErrorCode::{CoordinatorLoadInProgress, CoordinatorNotAvailable, NotCoordinator};
    let deadline = Instant::now() + WAIT;
    loop {
        let mut asked = TopicPartitionList::new();
        asked.add_partition(topic, PARTITION);
        let error = match consumer.committed_offsets(asked, WAIT) {
            Ok(found) => return Ok(found),
            Err(error) => error,
        };
        let moving = matches!(
            error.rdkafka_error_code(),
            Some(CoordinatorLoadInProgress | CoordinatorNotAvailable | NotCoordinator)
        );
        if !moving || Instant::now() > deadline {
            return Err(error);
        }
        std::thread::sleep(AGAIN);
    }
}
