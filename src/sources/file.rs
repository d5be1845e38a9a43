//! Files: JSON lines, CSV or Parquet; one, many or a glob.
//!
//! A [`FileReader`] gives a file as [`Chunk`]s, in the order of the file and in constant memory. What a record's
//! *offset* is depends on the format, and always so that `offset + 1` is where reading goes on:
//!
//! | format            | offset                                                                       |
//! |-------------------|------------------------------------------------------------------------------|
//! | JSON lines        | number of the line, from 0; empty lines are skipped but counted              |
//! | CSV               | the same; the header is line 0; a record over several lines has its last one |
//! | Parquet           | number of the row, from 0                                                    |
//!
//! So a person finds the record of offset `n` at line `n + 1` of the file. Only what stands in the file when it is opened
//! is read: a file that is being appended to is cut at its length, one that shrinks is an error.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{BinaryBuilder, RecordBatch};
use millstream_operators::kinds::Kind;
use millstream_operators::{EventTime, Messages, Row};

use crate::sources::SourceError;

mod csv;
mod lines;
mod parquet;
mod paths;

pub use paths::find_files;

/// Largest number of records in a [`Chunk`].
pub const CHUNK_ROWS: usize = 1024;
/// A chunk of text ends after this many bytes, however few records it has.
const CHUNK_BYTES: usize = 8 << 20;

/// The event time of a record that has none: its source declares no `event_time`, and a file keeps no time for a record.
/// Such records go before all others, in the order of their files.
pub const UNTIMED: EventTime = 0;

/// Files: JSON lines (`.jsonl`, `.ndjson`, `.json`), CSV with a header line (`.csv`) or Parquet (`.parquet`), read once
/// from beginning to end.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FileSource {
    /// Paths or globs, relative to the topology's folder; read in the order of their names.
    pub paths: Vec<String>,
    /// Says that the rows of each file stand in event-time order, so that they are streamed. Otherwise they are sorted
    /// in memory. A row out of order in a file that is said to be sorted is an error that names the line.
    #[serde(default)]
    pub sorted: bool,
}

impl Kind for FileSource {
    const EXAMPLE: &'static str = "{ paths: [\"data/departures-*.jsonl\"] }";
}

/// A file of a source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceFile {
    /// As a person wrote it: relative to the topology's folder where the pattern was. The topic of its positions.
    pub name: Arc<str>,
    /// Where it is.
    pub path: PathBuf,
    /// What it holds, by the end of its name.
    pub format: FileFormat,
}

/// What a file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileFormat {
    /// One JSON object a line.
    JsonLines,
    /// Comma-separated values with a header line.
    Csv,
    /// Parquet.
    Parquet,
}

impl FileFormat {
    /// The format that a file's name ends in.
    pub fn of(path: &Path) -> Option<FileFormat> {
        match path.extension()?.to_str()?.to_ascii_lowercase().as_str() {
            "jsonl" | "ndjson" | "json" => Some(FileFormat::JsonLines),
            "csv" => Some(FileFormat::Csv),
            "parquet" => Some(FileFormat::Parquet),
            _ => None,
        }
    }
}

/// Records of a file, as they were read.
#[derive(Debug)]
pub enum Chunk {
    /// Text, one message a record.
    Messages(Messages),
    /// Columns, which the decoder has yet to hold against the schema, and where each row comes from.
    Records(RecordBatch, Vec<Row>),
}

impl Chunk {
    /// Where each record comes from.
    pub fn rows(&self) -> &[Row] {
        match self {
            Chunk::Messages(messages) => &messages.rows,
            Chunk::Records(_, rows) => rows,
        }
    }
}

/// How to read a file.
#[derive(Debug, Clone)]
pub struct Reading {
    /// The source's name, for errors.
    pub source_name: Arc<str>,
    /// The source's index in the plan: `Row::source`.
    pub source: u16,
    /// The file's number in the job's table of partitions: `Row::partition`.
    pub partition: u32,
    /// The first offset to read.
    pub start: i64,
    /// A longer record is handed over cut to this many bytes plus one, for the decoder to reject.
    pub message_size_max: usize,
    /// The character between the fields of a CSV file.
    pub delimiter: u8,
}

/// An open file, read chunk by chunk.
pub struct FileReader {
    reading: Reading,
    file: Arc<str>,
    length: u64,
    format: Format,
}

enum Format {
    JsonLines(lines::Lines),
    Csv(csv::Records),
    Parquet(parquet::Rows),
}

impl FileReader {
    /// Opens `file` and goes to the record where reading starts.
    ///
    /// # Errors
    /// If the file can't be opened, is not what its name says, or ends before the start.
    pub fn open(file: &SourceFile, reading: Reading) -> Result<FileReader, SourceError> {
        let fail = |detail: String| failure(&reading, &file.name, detail);
        let metadata = std::fs::metadata(&file.path).map_err(|error| fail(error.to_string()))?;
        let format = match file.format {
            FileFormat::Parquet => Format::Parquet(parquet::Rows::open(&file.path, reading.start).map_err(fail)?),
            FileFormat::JsonLines => {
                let mut lines = lines::Lines::open(&file.path).map_err(fail)?;
                lines.refuse_array().map_err(fail)?;
                lines.skip_to(reading.start).map_err(fail)?;
                Format::JsonLines(lines)
            }
            FileFormat::Csv => {
                let lines = lines::Lines::open(&file.path).map_err(fail)?;
                let mut records = csv::Records::new(lines, reading.delimiter, reading.message_size_max).map_err(fail)?;
                records.skip_to(reading.start).map_err(fail)?;
                Format::Csv(records)
            }
        };
        Ok(FileReader { reading, file: file.name.clone(), length: metadata.len(), format })
    }

    /// The next records, at most [`CHUNK_ROWS`]; `None` at the end of the file.
    ///
    /// # Errors
    /// If the file can't be read or has shrunk.
    pub fn next_chunk(&mut self) -> Result<Option<Chunk>, SourceError> {
        let Self { reading, format, .. } = self;
        let chunk = match format {
            Format::JsonLines(lines) => {
                let size_max = reading.message_size_max;
                messages(reading, None, |record| lines.next(record, size_max))
            }
            Format::Csv(records) => {
                let header = records.header.clone();
                messages(reading, Some(header), |record| records.next(record))
            }
            Format::Parquet(rows) => rows.next().map(|found| {
                found.map(|(first, records)| {
                    let rows = (0..records.num_rows() as i64).map(|n| row(reading, first + n)).collect();
                    Chunk::Records(records, rows)
                })
            }),
        };
        chunk.map_err(|detail| failure(&self.reading, &self.file, detail))
    }

    /// Size of the file in bytes when it was opened.
    pub fn bytes_total(&self) -> u64 {
        self.length
    }

    /// About how many of its bytes have been read.
    pub fn bytes_read(&self) -> u64 {
        match &self.format {
            Format::JsonLines(lines) => lines.bytes_read(),
            Format::Csv(records) => records.bytes_read(),
            Format::Parquet(rows) => (self.length as f64 * rows.share_read()) as u64,
        }
    }
}

fn failure(reading: &Reading, file: &str, detail: String) -> SourceError {
    SourceError::File { name: reading.source_name.to_string(), path: file.to_string(), detail }
}

/// The origin of a record; its event time and time of arrival are set later.
fn row(reading: &Reading, offset: i64) -> Row {
    Row { source: reading.source, partition: reading.partition, offset, event_time: UNTIMED, arrived_micros: 0 }
}

/// Collects a chunk of text from `next`, which writes a record into the buffer and gives its offset.
fn messages(
    reading: &Reading,
    header: Option<Arc<Vec<String>>>,
    mut next: impl FnMut(&mut Vec<u8>) -> Result<Option<i64>, String>,
) -> Result<Option<Chunk>, String> {
    let mut payloads = BinaryBuilder::new();
    let (mut rows, mut record, mut bytes) = (Vec::new(), Vec::new(), 0);
    while rows.len() < CHUNK_ROWS && bytes < CHUNK_BYTES {
        let Some(offset) = next(&mut record)? else { break };
        payloads.append_value(&record);
        bytes += record.len();
        rows.push(row(reading, offset));
    }
    let chunk = Messages { payloads: payloads.finish(), rows, header };
    Ok((!chunk.is_empty()).then_some(Chunk::Messages(chunk)))
}
