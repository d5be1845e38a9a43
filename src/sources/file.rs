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
use millstream_operators::error::ConfigError;
use millstream_operators::kinds::Kind;
use millstream_operators::{EventTime, Messages, Row};

use crate::sources::{SourceError, SourceSettings};

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

impl SourceSettings for FileSource {
    fn errors(&self) -> Vec<ConfigError> {
        let none = self.paths.is_empty().then(|| ConfigError::new("paths", "there is no file to read"));
        none.into_iter().collect()
    }
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
                let mut records =
                    csv::Records::new(lines, reading.delimiter, reading.message_size_max).map_err(fail)?;
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

#[cfg(test)]
mod tests {
    use std::fs;

    use arrow::array::{ArrayRef, Int64Array};

    use super::*;

    fn reading(start: i64) -> Reading {
        Reading { source_name: "s".into(), source: 3, partition: 7, start, message_size_max: 20, delimiter: b',' }
    }

    fn open(name: &str, text: &[u8], start: i64) -> (tempfile::TempDir, Result<FileReader, SourceError>) {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(name), text).unwrap();
        let files = find_files("s", folder.path(), &[name.to_string()]).unwrap();
        let reader = FileReader::open(&files[0], reading(start));
        (folder, reader)
    }

    /// Every record of a file as (offset, text).
    fn read(name: &str, text: &[u8], start: i64) -> Vec<(i64, String)> {
        let (_folder, reader) = open(name, text, start);
        let mut reader = reader.unwrap();
        let mut records = Vec::new();
        while let Some(Chunk::Messages(chunk)) = reader.next_chunk().unwrap() {
            for (n, row) in chunk.rows.iter().enumerate() {
                assert_eq!((row.source, row.partition), (3, 7));
                records.push((row.offset, String::from_utf8_lossy(chunk.payloads.value(n)).into_owned()));
            }
        }
        assert_eq!(reader.bytes_read(), reader.bytes_total());
        records
    }

    fn check(name: &str, text: &str, expected: &[(i64, &str)]) {
        let expected: Vec<(i64, String)> = expected.iter().map(|(n, text)| (*n, text.to_string())).collect();
        assert_eq!(read(name, text.as_bytes(), 0), expected, "{text:?}");
        // Going on after any record gives exactly the rest.
        for (n, (offset, _)) in expected.iter().enumerate() {
            assert_eq!(read(name, text.as_bytes(), offset + 1), expected[n + 1..], "{text:?} after {offset}");
        }
    }

    fn check_error(name: &str, text: &str, start: i64, expected: &str) {
        let (_folder, reader) = open(name, text.as_bytes(), start);
        let error = reader.err().expect("opening is refused").to_string();
        assert!(error.contains(expected), "{error}");
    }

    #[test]
    fn lines_are_records_and_keep_their_number() {
        check("a.jsonl", "", &[]);
        check("a.jsonl", "\n\n\n", &[]);
        check("a.jsonl", "{1}\n{2}\n", &[(0, "{1}"), (1, "{2}")]);
        check("a.ndjson", "{1}\r\n\r\n\n{2}", &[(0, "{1}"), (3, "{2}")]);
        check("a.json", "\u{feff}{1}\n{2}\n\n", &[(0, "{1}"), (1, "{2}")]);
    }

    #[test]
    fn a_long_line_is_cut_and_the_next_is_whole() {
        let fits = "x".repeat(20);
        for length in [21, 22, 23, 24, 1000, 700_000] {
            for end in ["\n", "\r\n"] {
                let text = format!("{fits}{end}{}{end}{fits}{end}", "y".repeat(length));
                check("a.jsonl", &text, &[(0, &fits), (1, &"y".repeat(21)), (2, &fits)]);
            }
        }
        check("a.jsonl", &"y".repeat(50), &[(0, &"y".repeat(21))]);
    }

    #[test]
    fn bytes_that_are_not_text_are_handed_over() {
        assert_eq!(read("a.jsonl", b"\xff\xfe\n{2}\n", 0), [(0, "\u{fffd}\u{fffd}".into()), (1, "{2}".into())]);
    }

    #[test]
    fn a_csv_record_may_span_lines_and_has_the_number_of_its_last() {
        check("a.csv", "a,b\n", &[]);
        check("a.csv", "a,b\r\n1,2\r\n\r\n3,4", &[(1, "1,2"), (3, "3,4")]);
        check("a.csv", "a,b\n1,\"x\ny\"\n2,z\n", &[(2, "1,\"x\ny\""), (3, "2,z")]);
        check("a.csv", "a,b\n1,\"x\"\"\n\ny\"\n2,z\n", &[(3, "1,\"x\"\"\n\ny\""), (4, "2,z")]);
        check("a.csv", "a,b\n1,5\" pipe\n2,z\n", &[(1, "1,5\" pipe"), (2, "2,z")]);
    }

    #[test]
    fn a_quote_that_is_not_closed_costs_one_record() {
        check("a.csv", "a,b\n1,\"x\n2,z\n3,z\n", &[(1, "1,\"x"), (2, "2,z"), (3, "3,z")]);
        let rows: Vec<String> = (2..40).map(|n| format!("{n},z")).collect();
        let mut expected = vec![(1, "1,\"x")];
        expected.extend(rows.iter().enumerate().map(|(n, row)| (n as i64 + 2, row.as_str())));
        check("a.csv", &format!("a,b\n1,\"x\n{}\n", rows.join("\n")), &expected);
    }

    #[test]
    fn the_header_names_the_columns() {
        let (_folder, reader) = open("a.csv", b"id,\"a \"\"b\"\"\", c \n1,2,3\n", 0);
        let Some(Chunk::Messages(chunk)) = reader.unwrap().next_chunk().unwrap() else { panic!("one chunk") };
        assert_eq!(**chunk.header.as_ref().unwrap(), ["id", "a \"b\"", "c"]);
        check_error("a.csv", "", 0, "a.csv: is empty; a CSV file starts with a line that names its columns");
        check_error("a.csv", "a,b,a\n", 0, "names column `a` twice");
        check_error("a.csv", "a,\"b\n", 0, "quote that is not closed");
    }

    #[test]
    fn what_is_not_a_file_of_lines_is_refused() {
        check_error("a.json", " [\n{}]", 0, "source `s`: a.json: is a JSON array; write one JSON object a line");
        check_error("a.jsonl", "{}\n{}\n", 3, "has 2 lines, but reading is to go on at line 4");
        check_error("a.parquet", "not parquet", 0, "a.parquet: ");
        assert_eq!(read("a.jsonl", b"{}\n{}\n", 2), []);
    }

    #[test]
    fn a_file_that_shrinks_is_an_error() {
        let (folder, reader) = open("a.jsonl", "{1}\n".repeat(200_000).as_bytes(), 0);
        let mut reader = reader.unwrap();
        reader.next_chunk().unwrap().unwrap();
        fs::write(folder.path().join("a.jsonl"), "{1}\n").unwrap();
        let error = loop {
            match reader.next_chunk() {
                Ok(chunk) => assert!(chunk.is_some(), "the end came without an error"),
                Err(error) => break error.to_string(),
            }
        };
        assert!(error.contains("it was cut while it was read"), "{error}");
    }

    #[test]
    fn parquet_rows_have_their_number_and_reading_goes_on_anywhere() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.parquet");
        let column: ArrayRef = Arc::new(Int64Array::from_iter_values(0..3000));
        let records = RecordBatch::try_from_iter([("n", column)]).unwrap();
        let file = fs::File::create(&path).unwrap();
        let mut writer = ::parquet::arrow::ArrowWriter::try_new(file, records.schema(), None).unwrap();
        writer.write(&records).unwrap();
        writer.close().unwrap();
        let files = find_files("s", folder.path(), &["*.parquet".into()]).unwrap();
        for start in [0, 1, 1500, 3000] {
            let mut reader = FileReader::open(&files[0], reading(start)).unwrap();
            let mut next = start;
            while let Some(Chunk::Records(records, rows)) = reader.next_chunk().unwrap() {
                let numbers = records.column(0).as_any().downcast_ref::<Int64Array>().unwrap();
                for (row, number) in rows.iter().zip(numbers.values()) {
                    assert_eq!((row.offset, *number), (next, next));
                    next += 1;
                }
            }
            assert_eq!((next, reader.bytes_read()), (3000, reader.bytes_total()));
        }
        assert!(FileReader::open(&files[0], reading(3001)).is_err());
    }

    #[test]
    fn paths_and_globs_are_found_in_the_order_of_names() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("d")).unwrap();
        fs::create_dir(folder.path().join("d/x.jsonl")).unwrap();
        for name in ["d/b.jsonl", "d/a.csv", "d/c.txt", "d/[1].jsonl"] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        let find = |patterns: &[&str]| {
            let patterns: Vec<String> = patterns.iter().map(|p| p.to_string()).collect();
            let found = find_files("s", folder.path(), &patterns).map_err(|error| error.to_string());
            found.map(|files| files.iter().map(|file| file.name.to_string()).collect::<Vec<_>>())
        };
        assert_eq!(find(&["d/*.jsonl", "d/a.csv", "d/b.jsonl"]).unwrap(), ["d/[1].jsonl", "d/a.csv", "d/b.jsonl"]);
        assert_eq!(find(&["d/[1].jsonl"]).unwrap(), ["d/[1].jsonl"]);
        for (pattern, expected) in [
            ("d/none.jsonl", "source `s`: d/none.jsonl: No such file"),
            ("d/*.parquet", "no file matches in"),
            ("d", "is a folder; name the files in it"),
            ("d/c.txt", "is of an unknown format"),
            ("d/***", "is not a glob"),
        ] {
            let error = find(&[pattern]).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }
}
