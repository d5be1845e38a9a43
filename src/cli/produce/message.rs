//! From the records of a file to messages: the value, the key and the event time of each.

use std::collections::VecDeque;
use std::sync::Arc;

use anyhow::{Context as _, anyhow, bail};
use arrow::array::{Array, ArrayRef, AsArray, BinaryArray, RecordBatch, StringArray};
use arrow::compute::{CastOptions, cast, cast_with_options};
use arrow::csv::ReaderBuilder;
use arrow::datatypes::{DataType, Field, Int64Type, Schema, TimeUnit, TimestampMillisecondType};
use arrow::temporal_conversions::timestamp_ms_to_datetime;
use arrow_json::LineDelimitedWriter;
use millstream_operators::key::KeyColumns;
use millstream_operators::{Batch, Row};
use serde_json::Value;

use super::Unit;
use crate::sources::file::{Chunk, FileFormat, FileReader, Reading, SourceFile};

/// A message that is about to be sent.
#[derive(Debug)]
pub(super) struct Message {
    /// Event time in milliseconds since 1970, if its column was named.
    pub time: Option<i64>,
    pub key: Vec<u8>,
    pub value: Vec<u8>,
    /// About how much of its file it takes.
    pub file_bytes: u64,
}

/// What is taken of a record besides its value.
pub(super) struct Columns<'a> {
    key: &'a [String],
    time: Option<&'a str>,
    unit: Unit,
    /// Texts of CSV that mean null.
    null: &'a [String],
}

impl<'a> Columns<'a> {
    pub fn new(key: &'a [String], time: Option<&'a str>, unit: Unit, null: &'a [String]) -> Self {
        Columns { key, time, unit, null }
    }
}

/// The messages of one file, in its order.
pub(super) struct Messages<'a> {
    columns: &'a Columns<'a>,
    file: &'a SourceFile,
    reader: FileReader,
    /// The types of a CSV file's columns.
    types: Vec<DataType>,
    bytes_before: u64,
    ready: VecDeque<Message>,
}

impl<'a> Messages<'a> {
    /// Opens a file; of a CSV file, finds out the types of its columns by reading all of it.
    pub fn open(file: &'a SourceFile, columns: &'a Columns<'a>) -> anyhow::Result<Self> {
        let types = match file.format {
            FileFormat::Csv => csv_types(file, columns.null)?,
            _ => Vec::new(),
        };
        let reader = FileReader::open(file, reading())?;
        Ok(Messages { columns, file, reader, types, bytes_before: 0, ready: VecDeque::new() })
    }

    /// The next message; `None` at the end of the file.
    pub fn next(&mut self) -> anyhow::Result<Option<Message>> {
        while self.ready.is_empty() {
            let Some(chunk) = self.reader.next_chunk()? else { return Ok(None) };
            let first = chunk.rows().first().map_or(0, |row| row.offset);
            let mut messages = match chunk {
                Chunk::Messages(lines) if lines.header.is_none() => self.lines(&lines.payloads, &lines.rows)?,
                Chunk::Messages(lines) => {
                    let texts = csv_texts(&lines, self.columns.null).with_context(|| self.file.name.to_string())?;
                    self.batch(typed(&texts, &self.types)?, lines.rows)?
                }
                Chunk::Records(records, rows) => self.batch(records, rows)?,
            };
            let bytes = self.reader.bytes_read();
            let share = bytes.saturating_sub(self.bytes_before) / (messages.len() as u64).max(1);
            self.bytes_before = bytes;
            messages.iter_mut().for_each(|message| message.file_bytes = share);
            debug_assert!(!messages.is_empty(), "a chunk from record {first} has records");
            self.ready.extend(messages);
        }
        Ok(self.ready.pop_front())
    }

    /// JSON lines go out as they are; they are parsed only for a key or an event time.
    fn lines(&self, lines: &BinaryArray, rows: &[Row]) -> anyhow::Result<Vec<Message>> {
        let parse = !self.columns.key.is_empty() || self.columns.time.is_some();
        let message = |(line, row): (Option<&[u8]>, &Row)| {
            let value = line.unwrap_or_default().to_vec();
            let mut message = Message { time: None, key: Vec::new(), value, file_bytes: 0 };
            if parse {
                let at = || format!("{}:{}", self.file.name, row.offset + 1);
                let object: Value = serde_json::from_slice(&message.value).with_context(at)?;
                message.time =
                    self.columns.time.map(|c| json_time(&object, c, self.columns.unit)).transpose().with_context(at)?;
                message.key = json_key(&object, self.columns.key).with_context(at)?;
            }
            Ok(message)
        };
        lines.iter().zip(rows).map(message).collect()
    }

    /// Rows go out as JSON objects; a null is left out.
    fn batch(&self, records: RecordBatch, rows: Vec<Row>) -> anyhow::Result<Vec<Message>> {
        let mut text = Vec::new();
        let mut writer = LineDelimitedWriter::new(&mut text);
        writer.write(&records).with_context(|| self.file.name.to_string())?;
        writer.finish()?;
        let indices = self.columns.key.iter().map(|name| self.index(&records, name));
        let key = KeyColumns::new(indices.collect::<anyhow::Result<_>>()?);
        let times = self.columns.time.map(|name| self.times(&records, name, &rows)).transpose()?;
        let lines = text.split(|byte| *byte == b'\n').take(rows.len());
        let messages = lines.enumerate().map(|(row, line)| {
            let time = times.as_ref().map(|times| times[row]);
            Message { time, key: Vec::new(), value: line.to_vec(), file_bytes: 0 }
        });
        let mut messages: Vec<Message> = messages.collect();
        if !self.columns.key.is_empty() {
            key.for_each(&Batch::new(records, rows), |row, key| messages[row].key.extend(key.unwrap_or_default()));
        }
        Ok(messages)
    }

    fn index(&self, records: &RecordBatch, name: &str) -> anyhow::Result<usize> {
        records.schema().index_of(name).map_err(|_| {
            let names: Vec<String> = records.schema().fields().iter().map(|field| field.name().clone()).collect();
            anyhow!("{}: there is no column `{name}`; there are {}", self.file.name, names.join(", "))
        })
    }

    /// The event times of rows.
    fn times(&self, records: &RecordBatch, name: &str, rows: &[Row]) -> anyhow::Result<Vec<i64>> {
        let column = records.column(self.index(records, name)?);
        let times = times(column, self.columns.unit).with_context(|| format!("{}: column `{name}`", self.file.name))?;
        match (0..times.len()).find(|row| times[*row].is_none()) {
            Some(row) => {
                let (file, place) = (&self.file.name, rows[row].offset + 1);
                let value = arrow::util::display::array_value_to_string(column, row).unwrap_or_default();
                bail!("{file}:{place}: `{value}` in column `{name}` is not a time (RFC 3339, or a number with --unit)")
            }
            None => Ok(times.into_iter().flatten().collect()),
        }
    }
}

/// Larger records are no Kafka messages any more.
const MESSAGE_SIZE_MAX: usize = 1 << 30;

/// All of a file.
fn reading() -> Reading {
    let source_name = Arc::from("produce");
    Reading { source_name, source: 0, partition: 0, start: 0, message_size_max: MESSAGE_SIZE_MAX, delimiter: b',' }
}

/// A column's times in milliseconds.
fn times(column: &ArrayRef, unit: Unit) -> anyhow::Result<Vec<Option<i64>>> {
    let number = matches!(column.data_type(), DataType::Float64 | DataType::Float32) || column.data_type().is_integer();
    if number {
        let numbers = cast(column, &DataType::Int64)?;
        return Ok(numbers.as_primitive::<Int64Type>().iter().map(|n| n.and_then(|n| millis(n, unit))).collect());
    }
    let stamps = cast(column, &DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into())))?;
    Ok(stamps.as_primitive::<TimestampMillisecondType>().iter().collect())
}

fn millis(number: i64, unit: Unit) -> Option<i64> {
    match unit {
        Unit::S => number.checked_mul(1_000),
        Unit::Ms => Some(number),
        Unit::Us => Some(number.div_euclid(1_000)),
        Unit::Ns => Some(number.div_euclid(1_000_000)),
    }
}

fn json_time(object: &Value, column: &str, unit: Unit) -> anyhow::Result<i64> {
    let value = &object[column];
    let time = match value {
        Value::Number(number) => {
            number.as_i64().or_else(|| number.as_f64().map(|n| n as i64)).and_then(|n| millis(n, unit))
        }
        Value::String(text) => times(&(Arc::new(StringArray::from(vec![text.as_str()])) as ArrayRef), unit)?[0],
        _ => None,
    };
    time.ok_or_else(|| anyhow!("`{value}` in `{column}` is not a time (RFC 3339, or a number with --unit)"))
}

/// The key as the engine writes it: values with `|` between. A missing or null value makes an empty key.
fn json_key(object: &Value, columns: &[String]) -> anyhow::Result<Vec<u8>> {
    let mut key = String::new();
    for (n, column) in columns.iter().enumerate() {
        if n > 0 {
            key.push('|');
        }
        match &object[column.as_str()] {
            Value::Null => return Ok(Vec::new()),
            Value::String(text) => {
                for c in text.chars() {
                    if matches!(c, '|' | '\\') {
                        key.push('\\');
                    }
                    key.push(c);
                }
            }
            Value::Array(_) | Value::Object(_) => bail!("`{column}` can't be a key: it is not one value"),
            value => key.push_str(&value.to_string()),
        }
    }
    Ok(key.into_bytes())
}

/// CSV records as columns of text, with nulls.
fn csv_texts(lines: &millstream_operators::Messages, null: &[String]) -> anyhow::Result<RecordBatch> {
    let names = lines.header.as_deref().map(Vec::as_slice).unwrap_or_default();
    let fields: Vec<Field> = names.iter().map(|name| Field::new(name, DataType::Utf8, true)).collect();
    let schema = Arc::new(Schema::new(fields));
    let read = |text: &[u8]| {
        let mut reader = ReaderBuilder::new(schema.clone()).with_batch_size(lines.len().max(1)).build(text)?;
        reader.next().unwrap_or_else(|| Ok(RecordBatch::new_empty(schema.clone())))
    };
    let mut text = Vec::new();
    for line in lines.payloads.iter().flatten() {
        text.extend_from_slice(line);
        text.push(b'\n');
    }
    let records = match read(&text) {
        Ok(records) if records.num_rows() == lines.len() => records,
        _ => {
            // One of them is at fault: find it.
            let lines = lines.payloads.iter().flatten().zip(&lines.rows);
            for (line, row) in lines {
                read(line).with_context(|| format!("line {}", row.offset + 1))?;
            }
            bail!("the records do not fit the header")
        }
    };
    let column = |column: &ArrayRef| -> ArrayRef {
        let values = column.as_string::<i32>().iter();
        let is_null = |text: &&str| text.is_empty() || null.iter().any(|null| null == text);
        Arc::new(values.map(|text| text.filter(|text| !is_null(text))).collect::<StringArray>())
    };
    Ok(RecordBatch::try_new(schema, records.columns().iter().map(column).collect())?)
}

/// The narrowest type that all values of each column of a CSV file have: integer, number, boolean, else text.
fn csv_types(file: &SourceFile, null: &[String]) -> anyhow::Result<Vec<DataType>> {
    let mut reader = FileReader::open(file, reading())?;
    let mut types: Vec<Option<DataType>> = Vec::new();
    while let Some(Chunk::Messages(lines)) = reader.next_chunk()? {
        let texts = csv_texts(&lines, null).with_context(|| file.name.to_string())?;
        types.resize(texts.num_columns(), None);
        for (column, found) in texts.columns().iter().zip(&mut types) {
            for text in column.as_string::<i32>().iter().flatten() {
                *found = Some(wider(found.take(), csv_type(text)));
            }
        }
    }
    Ok(types.into_iter().map(|found| found.unwrap_or(DataType::Utf8)).collect())
}

/// The narrowest type of one text. A number with a leading zero (a code, a postal number) is a text.
fn csv_type(text: &str) -> DataType {
    let digits = text.strip_prefix('-').unwrap_or(text);
    let code = digits.len() > 1 && digits.starts_with('0') && !digits.starts_with("0.");
    let plain = digits.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'.' | b'e' | b'E' | b'-' | b'+'));
    match text {
        "true" | "false" => DataType::Boolean,
        _ if code || !digits.starts_with(|c: char| c.is_ascii_digit()) => DataType::Utf8,
        _ if text.parse::<i64>().is_ok() => DataType::Int64,
        _ if plain && text.parse::<f64>().is_ok_and(f64::is_finite) => DataType::Float64,
        _ => DataType::Utf8,
    }
}

fn wider(a: Option<DataType>, b: DataType) -> DataType {
    match (a, b) {
        (None, b) => b,
        (Some(a), b) if a == b => a,
        (Some(DataType::Int64 | DataType::Float64), DataType::Int64 | DataType::Float64) => DataType::Float64,
        _ => DataType::Utf8,
    }
}

/// Text columns as columns of these types.
fn typed(texts: &RecordBatch, types: &[DataType]) -> anyhow::Result<RecordBatch> {
    let strict = CastOptions { safe: false, ..CastOptions::default() };
    let columns = texts.columns().iter().zip(types).map(|(column, kind)| cast_with_options(column, kind, &strict));
    let schema = texts.schema();
    let fields = schema.fields().iter().zip(types).map(|(field, kind)| Field::new(field.name(), kind.clone(), true));
    let schema = Schema::new(fields.collect::<Vec<_>>());
    Ok(RecordBatch::try_new(Arc::new(schema), columns.collect::<Result<_, _>>()?)?)
}

/// A time as a person reads it.
pub(super) fn timestamp(millis: i64) -> String {
    timestamp_ms_to_datetime(millis)
        .map_or_else(|| millis.to_string(), |time| time.format("%Y-%m-%dT%H:%M:%S%.3fZ").to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &str, text: &str, columns: &Columns) -> Vec<(Option<i64>, String, String)> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        let format = FileFormat::of(&path).unwrap();
        let file = SourceFile { name: name.into(), path, format };
        let mut messages = Messages::open(&file, columns).unwrap();
        let mut found = Vec::new();
        while let Some(message) = messages.next().unwrap() {
            let text = |bytes| String::from_utf8(bytes).unwrap();
            found.push((message.time, text(message.key), text(message.value)));
        }
        found
    }

    #[test]
    fn json_lines_go_out_as_they_are() {
        let key = ["a".to_owned(), "b".to_owned()];
        let columns = Columns::new(&key, Some("t"), Unit::S, &[]);
        let text = "{\"a\": \"x|y\", \"b\":1, \"t\": 5}\n\n{\"t\":\"2013-01-01T00:00:00Z\",\"a\":null}\n";
        let expected = [
            (Some(5_000), r"x\|y|1".to_owned(), r#"{"a": "x|y", "b":1, "t": 5}"#.to_owned()),
            (Some(1_356_998_400_000), String::new(), r#"{"t":"2013-01-01T00:00:00Z","a":null}"#.to_owned()),
        ];
        assert_eq!(check("x.jsonl", text, &columns), expected);
    }

    #[test]
    fn csv_columns_have_the_type_of_all_their_values() {
        let (key, null) = (["code".to_owned()], ["NA".to_owned()]);
        let columns = Columns::new(&key, Some("at"), Unit::Ms, &null);
        let text = "code,n,x,ok,at\n007,1,1,true,2013-01-01T00:00:00Z\n12,NA,2.5,false,2013-01-01 00:00:01\n";
        let expected = [
            r#"{"code":"007","n":1,"x":1.0,"ok":true,"at":"2013-01-01T00:00:00Z"}"#,
            r#"{"code":"12","x":2.5,"ok":false,"at":"2013-01-01 00:00:01"}"#,
        ];
        let found = check("x.csv", text, &columns);
        assert_eq!(found.iter().map(|(_, _, value)| value.as_str()).collect::<Vec<_>>(), expected);
        assert_eq!(found[1].0, Some(1_356_998_401_000));
        assert_eq!(found[0].1, "007");
    }

    #[test]
    fn a_record_that_does_not_fit_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.csv");
        std::fs::write(&path, "a,b\n1,2\n3\n").unwrap();
        let file = SourceFile { name: "x.csv".into(), path, format: FileFormat::Csv };
        let columns = Columns::new(&[], None, Unit::Ms, &[]);
        let error = Messages::open(&file, &columns).err().map(|error| format!("{error:#}")).unwrap();
        assert!(error.starts_with("x.csv: line 3: "), "{error}");
    }
}
