//! The job's table of partitions, and positions in them.

use std::collections::BTreeMap;
use std::sync::{Arc, RwLock};

/// Next offset to read, by (topic or file, partition).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Positions(pub BTreeMap<(String, i32), i64>);

/// Numbers for (topic or file, partition) pairs, given in order of appearance and valid for this process only: batches
/// carry the number, checkpoints and records the names.
#[derive(Debug, Default)]
pub struct Partitions {
    names: RwLock<Vec<(Arc<str>, i32)>>,
}

impl Partitions {
    /// The number of a partition; a new one gets the next number.
    pub fn number(&self, topic: &str, partition: i32) -> u32 {
        let mut names = self.names.write().expect("no thread panics while it holds the table");
        let found = names.iter().position(|(t, p)| &**t == topic && *p == partition);
        found.unwrap_or_else(|| {
            names.push((topic.into(), partition));
            names.len() - 1
        }) as u32
    }

    /// The topic (or file) and partition of a number that [`number`](Partitions::number) gave.
    ///
    /// # Panics
    /// If the number was never given.
    pub fn name(&self, number: u32) -> (Arc<str>, i32) {
        let names = self.names.read().expect("no thread panics while it holds the table");
        names[number as usize].clone()
    }
}
