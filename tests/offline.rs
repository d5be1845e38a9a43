//! The offline store as its users read it: a table written by the engine, read by DuckDB and by deltalake for Python.

use std::sync::Arc;

use arrow::array::{ArrayRef, Float32Array, Float64Array, ListArray, RecordBatch, StringArray};
use arrow::datatypes::Float64Type;
use millstream::offline::delta::DeltaConfig;
use millstream::offline::{Begin, OfflineConfig, OpenOffline, OpenTable, TableKind, start};
use millstream::provenance::{ModelInfo, Origins};
use millstream::runtime::decided::Decided;
use millstream::sources::Partitions;
use millstream_operators::units::Millis;
use millstream_operators::{Batch, Row};

use super::program::{python, said};

/// Scored rows of partition `partition`: an hour between events, every third feature null.
fn rows(partition: u32, offsets: std::ops::Range<i64>) -> Batch {
    let origins = ["JFK", "EWR", "LGA, \"NY\""];
    let vectors = offsets.clone().map(|o| Some(vec![Some(o as f64), None, Some(0.5)]));
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("origin", Arc::new(StringArray::from_iter_values(offsets.clone().map(|o| origins[o as usize % 3])))),
        ("by_origin.count_1h", {
            Arc::new(Float64Array::from_iter(offsets.clone().map(|o| (o % 3 != 0).then_some(o as f64))))
        }),
        ("features", Arc::new(ListArray::from_iter_primitive::<Float64Type, _, _>(vectors))),
        ("score", Arc::new(Float32Array::from_iter_values(offsets.clone().map(|o| o as f32 / 1000.0)))),
    ];
    let columns = columns.into_iter().map(|(name, column)| (name, column, true));
    let records = RecordBatch::try_from_iter_with_nullable(columns).expect("columns of one length");
    let row = |offset| {
        let event_time = 1_356_998_400_000 + offset * 3_600_000 + i64::from(partition);
        Row { source: 0, partition, offset, event_time, arrived_micros: 0 }
    };
    Batch::new(records, offsets.map(row).collect())
}

#[test]
fn duckdb_and_deltalake_for_python_read_the_table() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = OfflineConfig {
        from: "delay".into(),
        table: TableKind::Delta(DeltaConfig { path: "delay".into() }),
        every: Millis(0),
    };
    let partitions = Arc::new(Partitions::default());
    assert_eq!([partitions.number("flights", 0), partitions.number("flights", 1)], [0, 1]);
    let origins = Origins { partitions, model: Some(ModelInfo { name: "delay".into(), version: "1".into() }) };
    let open = OpenOffline {
        job: "flights".into(),
        topology_hash: "0123".into(),
        folder: folder.path().into(),
        workers: 2,
        tables: vec![OpenTable {
            name: "delay".into(),
            config,
            schema: rows(0, 0..1).records.schema(),
            origins,
            begin: Begin::Anew,
        }],
        decided: Arc::new(Decided::new(u64::MAX / 2)),
        pending: vec![Vec::new()],
    };
    let (offline, feeders) = start(open).expect("starts");
    for epoch in 0..5_i64 {
        for (partition, feeder) in feeders.iter().enumerate() {
            feeder.feed(0, epoch as u64, rows(partition as u32, epoch * 20..epoch * 20 + 20));
            feeder.close(epoch as u64);
        }
    }
    drop(feeders);
    offline.finish().expect("finishes");

    let said = said(python("read_offline.py").arg(folder.path().join("delay")).arg("200"));
    assert!(said.starts_with("200 rows, 2013-01-01"), "{said}");
}
