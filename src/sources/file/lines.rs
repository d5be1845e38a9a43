//! Lines of a text file, each with its number, without ever holding more of a line than is asked for.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Take};
use std::path::Path;

const BUFFER_BYTES: usize = 256 << 10;
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// The lines of a file that are left to read.
pub(super) struct Lines {
    reader: BufReader<Take<File>>,
    /// Number of the next line.
    line: i64,
    bytes_read: u64,
    length: u64,
}

impl Lines {
    /// Opens a file at its first line.
    pub fn open(path: &Path) -> Result<Lines, String> {
        let file = File::open(path).map_err(|error| error.to_string())?;
        let length = file.metadata().map_err(|error| error.to_string())?.len();
        let mut reader = BufReader::with_capacity(BUFFER_BYTES, file.take(length));
        let start = reader.fill_buf().map_err(|error| error.to_string())?;
        let mark = if start.starts_with(BYTE_ORDER_MARK) { BYTE_ORDER_MARK.len() } else { 0 };
        reader.consume(mark);
        Ok(Lines { reader, line: 0, bytes_read: mark as u64, length })
    }

    /// About how many bytes of the file have been read.
    pub fn bytes_read(&self) -> u64 {
        self.bytes_read
    }

    /// A file that starts with `[` is one JSON array, of which every line would be rejected: better to say so at once.
    pub fn refuse_array(&mut self) -> Result<(), String> {
        let start = self.reader.fill_buf().map_err(|error| error.to_string())?;
        match start.iter().find(|byte| !byte.is_ascii_whitespace()) {
            Some(b'[') => Err("is a JSON array; write one JSON object a line (`jq -c '.[]'` does it)".into()),
            _ => Ok(()),
        }
    }

    /// Goes forward to line `start`.
    pub fn skip_to(&mut self, start: i64) -> Result<(), String> {
        while self.line < start {
            let skipped = self.reader.skip_until(b'\n').map_err(|error| error.to_string())?;
            if skipped == 0 {
                self.refuse_shrunk()?;
                let (has, wanted) = (self.line, start + 1);
                return Err(format!(
                    "has {has} lines, but reading is to go on at line {wanted}; was the file cut or replaced?"
                ));
            }
            self.bytes_read += skipped as u64;
            self.line += 1;
        }
        Ok(())
    }

    /// Reads the next line that is not empty into `line` and gives its number.
    pub fn next(&mut self, line: &mut Vec<u8>, size_max: usize) -> Result<Option<i64>, String> {
        loop {
            let number = self.line;
            if !self.next_of_any_length(line, size_max)? {
                return Ok(None);
            }
            if !line.is_empty() {
                return Ok(Some(number));
            }
        }
    }

    /// Reads the next line into `line`, without its end; false at the end of the file. A line longer than `size_max` is
    /// cut to that plus one.
    pub fn next_of_any_length(&mut self, line: &mut Vec<u8>, size_max: usize) -> Result<bool, String> {
        line.clear();
        // The end of the line may be two bytes beyond the limit and one beyond that says that there is more.
        let limit = size_max as u64 + 3;
        let fail = |error: std::io::Error| error.to_string();
        let read = self.reader.by_ref().take(limit).read_until(b'\n', line).map_err(fail)? as u64;
        self.bytes_read += read;
        if read == 0 {
            self.refuse_shrunk()?;
            return Ok(false);
        }
        if line.last() == Some(&b'\n') {
            line.pop();
        } else if read == limit {
            self.bytes_read += self.reader.skip_until(b'\n').map_err(fail)? as u64;
            line.truncate(size_max + 1);
            self.line += 1;
            return Ok(true);
        }
        if line.last() == Some(&b'\r') {
            line.pop();
        }
        line.truncate(size_max + 1);
        self.line += 1;
        Ok(true)
    }

    /// Number of the next line.
    pub fn line(&self) -> i64 {
        self.line
    }

    fn refuse_shrunk(&self) -> Result<(), String> {
        if self.bytes_read < self.length {
            let (read, length) = (self.bytes_read, self.length);
            return Err(format!(
                "had {length} bytes when it was opened and ends after {read}: it was cut while it was read"
            ));
        }
        Ok(())
    }
}
