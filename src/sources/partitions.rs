//! The job's table of partitions, and positions in them.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock, RwLock};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Next offset to read, by (topic or file, partition).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Positions(pub BTreeMap<(String, i32), i64>);

/// What a source knows of a topic beside its positions, for later starts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Topic {
    /// The id that its brokers gave it: a topic that is made anew under the name has another. `None` if they did not say it.
    pub id: Option<String>,
    /// How many partitions it had when the source began to read it. Those that were added later begin at their beginning.
    pub partitions: i32,
}

/// Topics by name.
pub type Topics = BTreeMap<String, Topic>;

/// A partition by its names, as processes tell each other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Named {
    /// The topic or file, and the partition.
    pub name: (String, i32),
    /// What ids are made of.
    pub stream: (String, i32),
}

/// Asks the process that gives the numbers for one.
pub type Ask = Box<dyn Fn(&str, i32) + Send + Sync>;

/// Numbers for (topic or file, partition) pairs, given in order of appearance and valid for this run only: batches
/// carry the number, checkpoints and records the names. In a job of several processes one of them gives the numbers, and the
/// others [learn](Partitions::learn) them.
///
/// A file has two names. Its own says where a record is found; as the partition of a *stream* it is named after the topic
/// that it is the history of, or after its source, and where it lies does not matter. Ids are made of the second: an
/// event has one id on every machine, and a replay's ids look like those of the topic.
#[derive(Default)]
pub struct Partitions {
    entries: RwLock<Vec<Entry>>,
    ask: OnceLock<Ask>,
}

#[derive(Debug, Clone)]
struct Entry {
    name: (Arc<str>, i32),
    stream: (Arc<str>, i32),
}

/// How often a number or a name that another process has is looked for.
const LOOK: Duration = Duration::from_micros(500);
/// How long at most: the control link finds out sooner that the other process is gone.
const PATIENCE: Duration = Duration::from_secs(60);

impl Partitions {
    /// From now on numbers are given by another process, which `ask` asks, and come by [`learn`](Partitions::learn).
    pub fn follow(&self, ask: Ask) {
        let set = self.ask.set(ask);
        debug_assert!(set.is_ok(), "a table follows one process");
    }

    /// The partitions from number `from` on.
    pub fn since(&self, from: usize) -> Vec<Named> {
        let entries = self.entries.read().expect("no thread panics while it holds the table");
        let named = |(name, partition): &(Arc<str>, i32)| (name.to_string(), *partition);
        let entries = entries.get(from..).unwrap_or_default().iter();
        entries.map(|entry| Named { name: named(&entry.name), stream: named(&entry.stream) }).collect()
    }

    /// Takes up partitions that have got the next numbers.
    pub fn learn(&self, partitions: Vec<Named>) {
        let mut entries = self.entries.write().expect("no thread panics while it holds the table");
        let arc = |(name, partition): (String, i32)| (Arc::from(name), partition);
        entries.extend(partitions.into_iter().map(|named| Entry { name: arc(named.name), stream: arc(named.stream) }));
    }

    /// The number of a partition; a new one gets the next number.
    ///
    /// # Panics
    /// If the process that gives the numbers does not answer.
    pub fn number(&self, topic: &str, partition: i32) -> u32 {
        if let Some(ask) = self.ask.get() {
            if self.find(topic, partition).is_none() {
                ask(topic, partition);
            }
            return wait(|| self.find(topic, partition));
        }
        let mut entries = self.entries.write().expect("no thread panics while it holds the table");
        let found = entries.iter().position(|entry| &*entry.name.0 == topic && entry.name.1 == partition);
        found.unwrap_or_else(|| {
            let name = (Arc::from(topic), partition);
            entries.push(Entry { stream: name.clone(), name });
            entries.len() - 1
        }) as u32
    }

    fn find(&self, topic: &str, partition: i32) -> Option<u32> {
        let entries = self.entries.read().expect("no thread panics while it holds the table");
        let found = entries.iter().position(|entry| &*entry.name.0 == topic && entry.name.1 == partition);
        found.map(|number| number as u32)
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
        self.entry(number).name
    }

    /// What ids are made of: the topic and partition, of a file its stream and its place among the stream's files.
    ///
    /// # Panics
    /// If the number was never given.
    pub fn stream(&self, number: u32) -> (Arc<str>, i32) {
        self.entry(number).stream
    }

    fn entry(&self, number: u32) -> Entry {
        let known = || {
            let entries = self.entries.read().expect("no thread panics while it holds the table");
            entries.get(number as usize).cloned()
        };
        match known() {
            Some(entry) => entry,
            // A row may be here before the word about its partition.
            None if self.ask.get().is_some() => wait(known),
            None => panic!("number {number} was never given to a partition"),
        }
    }
}

impl std::fmt::Debug for Partitions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Partitions").field("entries", &self.entries).finish_non_exhaustive()
    }
}

/// Waits for something that another process says.
fn wait<T>(look: impl Fn() -> Option<T>) -> T {
    let looks = PATIENCE.as_micros() / LOOK.as_micros();
    let seen = (0..looks).find_map(|_| {
        look().or_else(|| {
            std::thread::sleep(LOOK);
            None
        })
    });
    seen.expect("the coordinator tells what it was asked for")
}
