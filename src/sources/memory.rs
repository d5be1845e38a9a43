//! Records written in the topology: for tests and examples.

use arrow::array::BinaryArray;
use millstream_operators::kinds::Kind;
use millstream_operators::{Messages, Row};

use super::SourceSettings;
use super::file::{CHUNK_ROWS, Reading, UNTIMED};

/// Records written in the topology itself, as JSON texts: for tests and examples.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MemorySource {
    /// The messages, in order.
    pub messages: Vec<String>,
}

impl Kind for MemorySource {
    const EXAMPLE: &'static str = "{ messages: ['{\"id\": 1}', '{\"id\": 2}'] }";
}

impl SourceSettings for MemorySource {}

/// Reads the messages chunk by chunk. The offset of a message is its place in the list, from 0.
pub struct MemoryReader {
    messages: Vec<String>,
    next: usize,
    reading: Reading,
}

impl MemoryReader {
    /// Starts at `reading.start`.
    pub fn new(messages: Vec<String>, reading: Reading) -> Self {
        let next = (reading.start.max(0) as usize).min(messages.len());
        MemoryReader { messages, next, reading }
    }

    /// The next messages, at most [`CHUNK_ROWS`]; `None` at the end.
    pub fn next_chunk(&mut self) -> Option<Messages> {
        let (from, to) = (self.next, self.messages.len().min(self.next + CHUNK_ROWS));
        self.next = to;
        let Reading { source, partition, message_size_max, .. } = self.reading;
        let cut = |text: &String| text.as_bytes()[..text.len().min(message_size_max + 1)].to_vec();
        let payloads = BinaryArray::from_iter_values(self.messages[from..to].iter().map(cut));
        let row = |n: usize| Row { source, partition, offset: n as i64, event_time: UNTIMED, arrived_micros: 0 };
        (from < to).then(|| Messages { payloads, rows: (from..to).map(row).collect(), header: None })
    }

    /// Length of all messages.
    pub fn bytes_total(&self) -> u64 {
        self.messages.iter().map(|text| text.len() as u64).sum()
    }

    /// Length of the messages that have been read.
    pub fn bytes_read(&self) -> u64 {
        self.messages[..self.next].iter().map(|text| text.len() as u64).sum()
    }
}
