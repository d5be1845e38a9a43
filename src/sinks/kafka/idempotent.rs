//! At least once: an idempotent producer. An epoch is durable when the brokers have acknowledged all of it, and only then
//! decided.

use std::collections::VecDeque;

use rdkafka::producer::Producer as _;

use super::topic::Topic;
use crate::sinks::{Records, SinkError, SinkWriter};

/// A worker's idempotent producer.
pub(super) struct Idempotent {
    topic: Topic,
    /// Epochs that are closed and not durable yet, oldest first.
    closed: VecDeque<u64>,
    durable: Option<u64>,
}

impl Idempotent {
    /// A writer into `topic`.
    pub fn new(topic: Topic) -> Self {
        Idempotent { topic, closed: VecDeque::new(), durable: None }
    }
}

impl SinkWriter for Idempotent {
    fn write(&mut self, epoch: u64, records: &Records, from: usize) -> Result<usize, SinkError> {
        self.topic.take_deliveries()?;
        self.topic.send(epoch, records, from)
    }

    fn close_epoch(&mut self, epoch: u64) -> Result<(), SinkError> {
        self.closed.push_back(epoch);
        Ok(())
    }

    fn durable(&mut self) -> Result<Option<u64>, SinkError> {
        self.topic.take_deliveries()?;
        let open = self.topic.producer.context().oldest();
        while let Some(epoch) = self.closed.pop_front_if(|epoch| open.is_none_or(|open| *epoch < open)) {
            self.durable = Some(epoch);
        }
        Ok(self.durable)
    }
}
