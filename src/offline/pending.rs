//! Rows for a table on their way through a checkpoint: decided, but maybe not committed to the table yet.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::error::ArrowError;
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use millstream_operators::{Batch, Row};
use serde::{Deserialize, Serialize};

use crate::provenance::{ModelInfo, Origins};
use crate::sources::Partitions;

/// A batch as it stands in a checkpoint: partitions by name, for their numbers belong to one run.
#[derive(Serialize, Deserialize)]
struct Pending {
    /// Name and version of the model that made the rows.
    model: Option<(String, String)>,
    partitions: Vec<(String, i32)>,
    /// Source, index in `partitions`, offset, event time, arrival.
    rows: Vec<(u16, u32, i64, i64, i64)>,
    /// The columns as an Arrow IPC stream.
    columns: Vec<u8>,
}

/// Rows that wait for a table.
#[derive(Debug, Clone)]
pub struct PendingRows {
    /// The rows, with the columns that their stream had.
    pub batch: Batch,
    /// Where they come from.
    pub origins: Origins,
}

/// The rows of some batches of one schema as bytes.
///
/// # Errors
/// If Arrow can't write a column.
pub fn encode(batches: &[Batch], origins: &Origins) -> Result<Vec<u8>, ArrowError> {
    let batch = Batch::concat(batches)?.ok_or_else(|| ArrowError::InvalidArgumentError("no batch".into()))?;
    let (mut names, mut index) = (Vec::new(), HashMap::new());
    let mut rows = Vec::with_capacity(batch.len());
    for row in batch.rows.iter() {
        let at = *index.entry(row.partition).or_insert_with(|| {
            let (topic, partition) = origins.partitions.name(row.partition);
            names.push((topic.to_string(), partition));
            names.len() as u32 - 1
        });
        rows.push((row.source, at, row.offset, row.event_time, row.arrived_micros));
    }
    let mut columns = Vec::new();
    let mut writer = StreamWriter::try_new(&mut columns, &batch.records.schema())?;
    writer.write(&batch.records)?;
    writer.finish()?;
    drop(writer);
    let model = origins.model.as_ref().map(|model| (model.name.to_string(), model.version.to_string()));
    let pending = Pending { model, partitions: names, rows, columns };
    Ok(postcard::to_allocvec(&pending).expect("plain data serializes into memory"))
}

/// Reads what [`encode`] gave.
///
/// # Errors
/// What is wrong with the bytes.
pub fn decode(bytes: &[u8], partitions: &Arc<Partitions>) -> Result<PendingRows, String> {
    let pending: Pending = postcard::from_bytes(bytes).map_err(|error| error.to_string())?;
    let numbers: Vec<u32> = pending.partitions.iter().map(|(topic, at)| partitions.number(topic, *at)).collect();
    let mut reader = StreamReader::try_new(&pending.columns[..], None).map_err(|error| error.to_string())?;
    let records = reader.next().ok_or("no columns")?.map_err(|error| error.to_string())?;
    if records.num_rows() != pending.rows.len() {
        return Err(format!("{} rows with the origins of {}", records.num_rows(), pending.rows.len()));
    }
    let row = |(source, at, offset, event_time, arrived_micros): (u16, u32, i64, i64, i64)| {
        let partition = *numbers.get(at as usize).ok_or("a row of a partition without a name")?;
        Ok(Row { source, partition, offset, event_time, arrived_micros })
    };
    let rows: Result<Vec<Row>, String> = pending.rows.into_iter().map(row).collect();
    let model = pending.model.map(|(name, version)| ModelInfo { name: name.into(), version: version.into() });
    let origins = Origins { partitions: partitions.clone(), model };
    Ok(PendingRows { batch: Batch::new(records, rows?), origins })
}

#[cfg(test)]
mod tests {
    use arrow::array::{Float64Array, RecordBatch, StringArray};

    use super::*;

    #[test]
    fn a_batch_comes_back_with_its_origins() {
        let (here, there) = (Arc::new(Partitions::default()), Arc::new(Partitions::default()));
        there.number("elsewhere", 9);
        let partitions = [here.number("flights", 0), here.number("flights", 3)];
        let records = RecordBatch::try_from_iter([
            ("name", Arc::new(StringArray::from(vec![Some("a"), None, Some("c")])) as _),
            ("delay", Arc::new(Float64Array::from(vec![1.0, f64::NAN, -3.0])) as _),
        ])
        .unwrap();
        let row = |i: usize| Row {
            source: 2,
            partition: partitions[i % 2],
            offset: i as i64,
            event_time: 5,
            arrived_micros: 6,
        };
        let batch = Batch::new(records, (0..3).map(row).collect::<Vec<_>>());
        let model = Some(ModelInfo { name: "delay".into(), version: "3".into() });
        let bytes = encode(
            &[batch.slice(0, 1), batch.slice(1, 2)],
            &Origins { partitions: here.clone(), model: model.clone() },
        )
        .unwrap();
        let PendingRows { batch: back, origins } = decode(&bytes, &there).unwrap();
        assert_eq!(origins.model, model);
        assert_eq!(format!("{:?}", back.records), format!("{:?}", batch.records));
        let named = |batch: &Batch, of: &Partitions| -> Vec<_> {
            batch
                .rows
                .iter()
                .map(|row| (of.name(row.partition).0.to_string(), of.name(row.partition).1, row.offset))
                .collect()
        };
        assert_eq!(named(&back, &there), named(&batch, &here));
        assert!((0..bytes.len()).all(|cut| decode(&bytes[..cut], &there).is_err()));
    }

    /// A batch has as many rows as came at once, under a light load one; each as a stream of its own would be kilobytes.
    #[test]
    fn rows_of_many_small_batches_cost_little_more_than_their_values() {
        let names: Vec<String> = (0..30).map(|n| format!("card.amount_mean_{n}m")).collect();
        let one = |i: usize| {
            let column = |_| Arc::new(Float64Array::from(vec![i as f64 / 3.0])) as _;
            let records = RecordBatch::try_from_iter(names.iter().map(|name| (name, column(name)))).unwrap();
            Batch::new(
                records,
                vec![Row { source: 0, partition: 0, offset: i as i64, event_time: 5, arrived_micros: 6 }],
            )
        };
        let partitions = Arc::new(Partitions::default());
        partitions.number("payments", 0);
        let origins = Origins { partitions: partitions.clone(), model: None };
        let batches: Vec<Batch> = (0..1000).map(one).collect();
        let bytes = encode(&batches, &origins).unwrap();
        let alone = encode(&batches[..1], &origins).unwrap();
        assert!(bytes.len() < 1000 * (30 * 8 + 40), "{} bytes a row, {} alone", bytes.len() / 1000, alone.len());
        assert!(alone.len() > 3000, "{}", alone.len());
        let back = decode(&bytes, &partitions).unwrap().batch;
        assert_eq!(back.records, Batch::concat(&batches).unwrap().unwrap().records);
        assert!(encode(&[], &origins).is_err());
    }
}
