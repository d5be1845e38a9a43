//! From a source's decoder to what decodes its files, whatever their format.

use millstream_operators::decode::csv::CsvFormat;
use millstream_operators::decode::{Decoder, FormatKind};
use millstream_operators::error::ConfigError;
use millstream_operators::reject::Reject;

use super::Decode;
use crate::sources::file::Chunk;

/// Decodes the files of a bounded source with its `decoder`. CSV files of a source of another format are decoded as comma-
/// separated values; Parquet needs no format. Event times are not held against the clock: a replay is about the past.
///
/// # Errors
/// If the columns can't be read from CSV.
pub fn decoding(decoder: &Decoder) -> Result<Decode, ConfigError> {
    let mut csv = match decoder.reads_header() {
        true => decoder.clone(),
        false => decoder.with_format(&FormatKind::Csv(CsvFormat { delimiter: ',' }))?,
    };
    let mut decoder = decoder.clone();
    Ok(Box::new(move |chunk, rejects: &mut Vec<Reject>| {
        Ok(match chunk {
            Chunk::Messages(messages) if messages.header.is_some() => csv.decode(messages, None, rejects),
            Chunk::Messages(messages) => decoder.decode(messages, None, rejects),
            Chunk::Records(records, rows) => decoder.accept(records, rows, None, rejects),
        })
    }))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use arrow::array::AsArray;
    use arrow::datatypes::Float64Type;
    use indexmap::IndexMap;
    use millstream_operators::decode::DecoderConfig;
    use millstream_operators::schema::ColumnType;

    use super::*;
    use crate::sources::file::{FileReader, Reading, find_files};

    #[test]
    fn one_source_may_have_files_of_all_formats() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("a.jsonl"), "{\"x\": 1.5}\n{\"x\": \n").unwrap();
        fs::write(folder.path().join("b.csv"), "y,x\nno,2.5\nno,maybe\n").unwrap();
        let column: arrow::array::ArrayRef = std::sync::Arc::new(arrow::array::Float32Array::from(vec![3.5]));
        let records = arrow::array::RecordBatch::try_from_iter([("x", column)]).unwrap();
        let file = fs::File::create(folder.path().join("c.parquet")).unwrap();
        let mut writer = parquet::arrow::ArrowWriter::try_new(file, records.schema(), None).unwrap();
        writer.write(&records).unwrap();
        writer.close().unwrap();
        let decoder = Decoder::new(DecoderConfig {
            stage: "s".into(),
            format: FormatKind::default(),
            columns: IndexMap::from([("x".to_string(), "float64".parse::<ColumnType>().unwrap())]),
            ranges: IndexMap::new(),
            checks: Vec::new(),
            event_time: None,
            ahead_max_millis: None,
            message_size_max: 1 << 20,
            keep_raw: false,
        })
        .unwrap();
        let mut decode = decoding(&decoder).unwrap();
        let (mut values, mut rejects) = (Vec::new(), Vec::new());
        for file in find_files("s", folder.path(), &["*".to_string()]).unwrap() {
            let (source_name, message_size_max) = ("s".into(), 1 << 20);
            let reading = Reading { source_name, source: 0, partition: 0, start: 0, message_size_max, delimiter: b',' };
            let mut reader = FileReader::open(&file, reading).unwrap();
            while let Some(chunk) = reader.next_chunk().unwrap() {
                let batch = decode(chunk, &mut rejects).unwrap().unwrap();
                values.extend_from_slice(batch.records.column(0).as_primitive::<Float64Type>().values());
            }
        }
        assert_eq!((values, rejects.len()), (vec![1.5, 2.5, 3.5], 2));
    }
}
