//! Records of a CSV file: lines, but for a line break inside quotes, which belongs to the record.
//!
//! Only the borders of records are found here; the fields are the decoder's. A quote opens a quoted field only at the
//! start of the field (RFC 4180), so `5" pipe` is ordinary text. A quote that is never closed would swallow the file: a
//! quoted record ends at the size limit at the latest, and then its first line alone counts as the record, which the
//! decoder rejects, and reading goes on with the second.

use std::collections::VecDeque;
use std::sync::Arc;

use super::lines::Lines;

/// The records of a CSV file that are left to read.
pub(super) struct Records {
    lines: Lines,
    /// The names of the columns.
    pub header: Arc<Vec<String>>,
    delimiter: u8,
    size_max: usize,
    /// Lines that were read as part of a record and are not: to be read again.
    again: VecDeque<(i64, Vec<u8>)>,
}

/// Where the text between two quotes leaves a reader.
#[derive(Clone, Copy, PartialEq)]
enum State {
    FieldStart,
    Plain,
    Quoted,
    /// A quote inside quotes: the end of the field, or the first of two that stand for one.
    Quote,
}

impl Records {
    /// The records after the header line.
    pub fn new(mut lines: Lines, delimiter: u8, size_max: usize) -> Result<Records, String> {
        let mut line = Vec::new();
        if lines.next(&mut line, size_max)?.is_none() {
            return Err("is empty; a CSV file starts with a line that names its columns".into());
        }
        if scan(State::FieldStart, &line, delimiter) == State::Quoted {
            return Err("line 1, which names the columns, has a quote that is not closed".into());
        }
        let text =
            std::str::from_utf8(&line).map_err(|_| "line 1, which names the columns, is not UTF-8".to_string())?;
        let header = split(text, delimiter as char);
        if let Some(twice) = header.iter().enumerate().find(|(n, name)| header[..*n].contains(name)) {
            return Err(format!("line 1 names column `{}` twice", twice.1));
        }
        Ok(Records { lines, header: Arc::new(header), delimiter, size_max, again: VecDeque::new() })
    }

    /// About how many bytes of the file have been read.
    pub fn bytes_read(&self) -> u64 {
        self.lines.bytes_read()
    }

    /// Goes forward to line `start`.
    pub fn skip_to(&mut self, start: i64) -> Result<(), String> {
        self.lines.skip_to(start)
    }

    /// Reads the next record into `record` and gives the number of its last line.
    pub fn next(&mut self, record: &mut Vec<u8>) -> Result<Option<i64>, String> {
        let Some(mut last) = self.next_line(record)? else { return Ok(None) };
        if !record.contains(&b'"') {
            return Ok(Some(last));
        }
        let mut state = scan(State::FieldStart, record, self.delimiter);
        let (first, first_length) = (last, record.len());
        let mut more: Vec<(i64, Vec<u8>)> = Vec::new();
        let mut line = Vec::new();
        while state == State::Quoted {
            if record.len() > self.size_max || !self.any_line(&mut line, &mut last)? {
                record.truncate(first_length);
                for line in more.into_iter().rev() {
                    self.again.push_front(line);
                }
                return Ok(Some(first));
            }
            record.push(b'\n');
            record.extend_from_slice(&line);
            state = scan(state, &line, self.delimiter);
            more.push((last, std::mem::take(&mut line)));
        }
        record.truncate(self.size_max + 1);
        Ok(Some(last))
    }

    /// The next line that is not empty.
    fn next_line(&mut self, line: &mut Vec<u8>) -> Result<Option<i64>, String> {
        let mut number = 0;
        while self.any_line(line, &mut number)? {
            if !line.is_empty() {
                return Ok(Some(number));
            }
        }
        Ok(None)
    }

    fn any_line(&mut self, line: &mut Vec<u8>, number: &mut i64) -> Result<bool, String> {
        if let Some((again, text)) = self.again.pop_front() {
            (*number, *line) = (again, text);
            return Ok(true);
        }
        *number = self.lines.line();
        self.lines.next_of_any_length(line, self.size_max)
    }
}

/// The state after `text`, a line that starts in `state`.
fn scan(state: State, text: &[u8], delimiter: u8) -> State {
    text.iter().fold(state, |state, byte| match (state, *byte) {
        (State::Quoted, b'"') => State::Quote,
        (State::Quoted, _) => State::Quoted,
        (State::Quote | State::FieldStart, b'"') => State::Quoted,
        (_, byte) if byte == delimiter => State::FieldStart,
        _ => State::Plain,
    })
}

/// The names of a header line.
fn split(line: &str, delimiter: char) -> Vec<String> {
    let mut names = vec![String::new()];
    let mut state = State::FieldStart;
    for character in line.chars() {
        let name = names.last_mut().expect("there is always a last name");
        state = match (state, character) {
            (State::Quoted, '"') => State::Quote,
            (State::FieldStart, '"') => State::Quoted,
            (State::Quote, '"') => {
                name.push('"');
                State::Quoted
            }
            (State::FieldStart | State::Plain | State::Quote, c) if c == delimiter => {
                names.push(String::new());
                State::FieldStart
            }
            (before, c) => {
                name.push(c);
                if before == State::Quoted { State::Quoted } else { State::Plain }
            }
        };
    }
    names.iter().map(|name| name.trim().to_string()).collect()
}
