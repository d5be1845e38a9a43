//! What a running source says about itself, and what the runtime tells it, beside the stream of arrivals.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use super::{Positions, Topics};

/// How a source stands with the outside world.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum Connection {
    /// Not there yet: the first contact is being tried, again and again.
    #[default]
    Connecting = 0,
    /// Reading, or waiting for something to read.
    Reading = 1,
    /// It was reading, and now nobody answers. It goes on by itself when somebody does.
    Lost = 2,
    /// It has handed over everything, was told to stop, or failed.
    Ended = 3,
}

/// Shared by a source's threads and the runtime: readiness one way, committed positions the other way.
#[derive(Debug, Default)]
pub struct Status {
    connection: AtomicU8,
    committed: Mutex<Option<Positions>>,
    topics: Mutex<Topics>,
    /// Whether the topics are others than those that were taken last.
    topics_are_new: AtomicBool,
}

impl Status {
    /// How the source stands now. A job is ready when all its sources are [`Reading`](Connection::Reading) or
    /// [`Ended`](Connection::Ended).
    pub fn connection(&self) -> Connection {
        match self.connection.load(Ordering::Relaxed) {
            0 => Connection::Connecting,
            1 => Connection::Reading,
            2 => Connection::Lost,
            _ => Connection::Ended,
        }
    }

    /// Says how the source stands (called by the source); gives how it stood before.
    pub fn set_connection(&self, connection: Connection) -> Connection {
        let before = self.connection();
        self.connection.store(connection as u8, Ordering::Relaxed);
        before
    }

    /// What the source knows of its topics; nothing before its first contact.
    pub fn topics(&self) -> Topics {
        self.topics.lock().expect("no thread panics while it holds the topics").clone()
    }

    /// The same, if it has changed since it was taken last: not at the end of each epoch.
    pub fn take_topics(&self) -> Option<Topics> {
        self.topics_are_new.swap(false, Ordering::AcqRel).then(|| self.topics())
    }

    /// Says what is known of the topics, for the next checkpoint (called by the source, before it hands over anything).
    pub fn set_topics(&self, topics: Topics) {
        *self.topics.lock().expect("no thread panics while it holds the topics") = topics;
        self.topics_are_new.store(true, Ordering::Release);
    }

    /// Tells the source which positions a checkpoint holds. A source whose system has a place for them (a Kafka consumer
    /// group) publishes them for lag tools, soon and without a promise; positions never come back from there.
    pub fn commit(&self, positions: Positions) {
        *self.committed.lock().expect("no thread panics while it holds the positions") = Some(positions);
    }

    /// Takes the newest positions that are not published yet (called by the source).
    pub fn take_committed(&self) -> Option<Positions> {
        self.committed.lock().expect("no thread panics while it holds the positions").take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sources::Topic;

    #[test]
    fn topics_are_taken_when_they_have_changed() {
        let status = Status::default();
        assert_eq!(status.take_topics(), None);
        let topics = |partitions| Topics::from([("t".to_string(), Topic { id: None, partitions })]);
        for partitions in [1, 2] {
            status.set_topics(topics(partitions));
            assert_eq!(status.take_topics(), Some(topics(partitions)));
            assert_eq!(status.take_topics(), None);
        }
        assert_eq!(status.topics(), topics(2), "to look at they are there");
    }
}
