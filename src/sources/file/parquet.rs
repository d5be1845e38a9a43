//! Rows of a Parquet file, in the order of the file.

use std::fs::File;
use std::path::Path;

use ::parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};
use arrow::array::RecordBatch;

use super::CHUNK_ROWS;

/// The rows of a file that are left to read.
pub(super) struct Rows {
    reader: ParquetRecordBatchReader,
    next: i64,
    total: i64,
}

impl Rows {
    /// Opens a file at row `start`.
    pub fn open(path: &Path, start: i64) -> Result<Rows, String> {
        let file = File::open(path).map_err(|error| error.to_string())?;
        let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(|error| error.to_string())?;
        let total = builder.metadata().file_metadata().num_rows();
        if start > total {
            return Err(format!("has {total} rows, but reading is to go on at row {start}; was the file replaced?"));
        }
        let builder = builder.with_batch_size(CHUNK_ROWS).with_offset(start.max(0) as usize);
        let reader = builder.build().map_err(|error| error.to_string())?;
        Ok(Rows { reader, next: start.max(0), total })
    }

    /// The next rows and the number of the first.
    pub fn next(&mut self) -> Result<Option<(i64, RecordBatch)>, String> {
        let first = self.next;
        let Some(records) = self.reader.next() else { return Ok(None) };
        let records = records.map_err(|error| format!("after row {first}: {error}"))?;
        self.next += records.num_rows() as i64;
        Ok(Some((first, records)))
    }

    /// The share of the rows that has been read, from 0 to 1.
    pub fn share_read(&self) -> f64 {
        if self.total == 0 { 1.0 } else { self.next as f64 / self.total as f64 }
    }
}
