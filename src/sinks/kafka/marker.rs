//! Markers: what a writer's last committed transaction says about itself.
//!
//! Each transaction commits, beside its records, an offset of a consumer group that nobody consumes with: the group is the
//! writer's (`<job>.<sink>.<worker>.commits`), the partition is the topic's first, the "offset" is the newest epoch of the records in
//! the transaction, and the metadata is the id of the job's life and, after a space, that of the start. The marker becomes visible
//! with the records or not at all, and reading it is one request, however long the job has run.

use std::time::{Duration, Instant};

use rdkafka::Offset;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerGroupMetadata};
use rdkafka::error::KafkaError;
use rdkafka::topic_partition_list::TopicPartitionList;

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
    let (_, said) = ask(sink, &group(job, name, worker), name)?;
    Ok(said.map(|(epoch, names)| (epoch, life(&names).to_string())))
}

/// The life of the job in a marker's names.
fn life(names: &str) -> &str {
    names.split_once(' ').map_or(names, |(life, _)| life)
}

/// Asks for the marker in a group: its newest epoch, and its names.
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
    sink: KafkaSink,
    sink_name: String,
    group_name: String,
    /// The job's life and the start.
    names: String,
    /// Those of the marker that was there.
    names_before: String,
}

impl Marker {
    /// Finds the marker of a writer, and the newest epoch it names: `None` if this life of the job has committed nothing.
    ///
    /// The writer's transactional ids must have been fenced before, or a transaction of an earlier run might still be
    /// committed after the marker was read.
    pub fn find(sink: &KafkaSink, open: &Open) -> Result<(Marker, Option<u64>), SinkError> {
        let (sink_name, group_name) = (open.name.clone(), group(&open.job, &open.name, open.worker));
        let (group, said) = ask(sink, &group_name, &sink_name)?;
        let (epoch, names_before) = said.unwrap_or_default();
        let is_of_this_life = life(&names_before) == open.commits.id;
        let names = format!("{} {}", open.commits.id, open.commits.start);
        let marker = Marker { group, sink: sink.clone(), sink_name, group_name, names, names_before };
        Ok((marker, is_of_this_life.then_some(epoch)))
    }

    /// Whether another start has committed a marker since this one began.
    ///
    /// # Errors
    /// If the brokers do not say.
    pub fn is_anothers(&self) -> Result<bool, SinkError> {
        let (_, said) = ask(&self.sink, &self.group_name, &self.sink_name)?;
        Ok(said.is_some_and(|(_, names)| names != self.names && names != self.names_before))
    }

    /// The offsets that say that everything up to `epoch` is committed.
    pub fn offsets(&self, epoch: u64) -> Result<TopicPartitionList, KafkaError> {
        let mut offsets = TopicPartitionList::new();
        offsets.add_partition_offset(&self.sink.topic, PARTITION, Offset::Offset(epoch as i64))?;
        if let Some(mut element) = offsets.find_partition(&self.sink.topic, PARTITION) {
            element.set_metadata(&self.names);
        }
        Ok(offsets)
    }
}

/// Asks for the marker, again and again while the group's coordinator is on its way from one broker to another.
fn committed(consumer: &BaseConsumer<Context>, topic: &str) -> Result<TopicPartitionList, KafkaError> {
    let deadline = Instant::now() + WAIT;
    loop {
        let mut asked = TopicPartitionList::new();
        asked.add_partition(topic, PARTITION);
        let error = match consumer.committed_offsets(asked, WAIT) {
            Ok(found) => return Ok(found),
            Err(error) => error,
        };
        let moving = error.rdkafka_error_code().is_some_and(kafka::is_moving);
        if !moving || Instant::now() > deadline {
            return Err(error);
        }
        std::thread::sleep(AGAIN);
    }
}
