//! The job's table of partitions, and positions in them.

use std::collections::BTreeMap;
use std::sync::{Arc, RwLock};

/// Next offset to read, by (topic or file, partition).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Positions(pub BTreeMap<(String, i32), i64>);

/// Numbers for (topic or file, partition) pairs, given in order of appearance and valid for this process only: batches
/// carry the number, checkpoints and records the names.
///
/// A file has two names. Its own says where a record is found; as the partition of a *stream* it is named after the topic
/// that it is the history of, or after its source, and where it lies does not matter. Ids are made of the second: an
/// event has one id on every machine, and a replay's ids look like those of the topic.
#[derive(Debug, Default)]
pub struct Partitions {
    entries: RwLock<Vec<Entry>>,
}

#[derive(Debug, Clone)]
struct Entry {
    name: (Arc<str>, i32),
    stream: (Arc<str>, i32),
}

impl Partitions {
    /// The number of a partition; a new one gets the next number.
    pub fn number(&self, topic: &str, partition: i32) -> u32 {
        let mut entries = self.entries.write().expect("no thread panics while it holds the table");
        let found = entries.iter().position(|entry| &*entry.name.0 == topic && entry.name.1 == partition);
        found.unwrap_or_else(|| {
            let name = (Arc::from(topic), partition);
            entries.push(Entry { stream: name.clone(), name });
            entries.len() - 1
        }) as u32
    }

    /// The number of a file that is partition `partition` of `stream`.
    pub fn number_of_file(&self, file: &str, stream: &Arc<str>, partition: i32) -> u32 {
        let number = self.number(file, 0);
        let mut entries = self.entries.write().expect("no thread panics while it holds the table");
        entries[number as usize].stream = (stream.clone(), partition);
        number
    }

    /// The topic (or file) and partition of a number that [`number`](Partitions::number) gave.
    ///
    /// # Panics
    /// If the number was never given.
    pub fn name(&self, number: u32) -> (Arc<str>, i32) {
        let entries = self.entries.read().expect("no thread panics while it holds the table");
        entries[number as usize].name.clone()
    }

    /// What ids are made of: the topic and partition, of a file its stream and its place among the stream's files.
    ///
    /// # Panics
    /// If the number was never given.
    pub fn stream(&self, number: u32) -> (Arc<str>, i32) {
        let entries = self.entries.read().expect("no thread panics while it holds the table");
        entries[number as usize].stream.clone()
    }
}
