//! Streams as a sink gets to see them.

use arrow::array::{Float64Array, Int64Array, StringArray};
use millstream_operators::Row;
use millstream_operators::reject::{self, Reason, Reject};

use super::*;
use crate::provenance::ModelInfo;
use crate::sources::Partitions;

fn origins(model: bool) -> Origins {
    let partitions = Arc::new(Partitions::default());
    partitions.number("trips", 3);
    let model = model.then(|| ModelInfo { name: "delay".into(), version: "v1".into() });
    Origins { partitions, model }
}

fn row(n: i64) -> Row {
    Row { source: 0, partition: 0, offset: 10 + n, event_time: 1_000 * n, arrived_micros: 0 }
}

fn batch() -> Batch {
    let columns: [(&str, ArrayRef); 3] = [
        ("carrier", Arc::new(StringArray::from(vec![Some("AA"), None, Some("B6")]))),
        ("delay", Arc::new(Float64Array::from(vec![Some(1.5), Some(f64::NAN), None]))),
        ("stops", Arc::new(Int64Array::from(vec![1, 0, 2]))),
    ];
    Batch::new(RecordBatch::try_from_iter(columns).unwrap(), (0..3).map(row).collect())
}

/// An encoder of `batch` with a select of (name, expression) and key columns by name.
fn encoder(batch: &Batch, model: bool, select: &[(&str, &str)], key: &[&str], headers: Headers) -> Encoder {
    let provenance = Provenance::available(&batch.records.schema(), model);
    let input = Provenance::beside(&batch.records.schema(), &provenance);
    let columns: Vec<Expression> = select.iter().map(|(_, sql)| Expression::compile(sql, &input).unwrap()).collect();
    let fields = select.iter().zip(&columns);
    let fields =
        fields.map(|((name, _), column)| arrow::datatypes::Field::new(*name, column.data_type().clone(), true));
    let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
    let key = key.iter().map(|name| input.index_of(name).unwrap()).collect();
    let origins = origins(model);
    Encoder::new(EncoderConfig {
        origins,
        provenance,
        input,
        columns,
        schema,
        key,
        value: Value::Json,
        headers,
        generation: 7,
    })
}

fn values(records: &Records) -> Vec<&str> {
    (0..records.len()).map(|n| std::str::from_utf8(records.value(n)).unwrap()).collect()
}

fn headers(records: &Records, n: usize) -> Vec<(&str, &str)> {
    let text = |h| std::str::from_utf8(records.header(n, h)).unwrap();
    records.header_names.iter().enumerate().map(|(h, name)| (&**name, text(h))).collect()
}

#[test]
fn columns_provenance_and_expressions_are_written_in_their_order() {
    let select = [("id", "prediction_id"), ("late", "delay > 1"), ("carrier", "carrier"), ("at", "event_time")];
    let records = encoder(&batch(), true, &select, &["carrier", "offset"], Headers::None).encode(&batch(), 4);
    assert_eq!(
        values(&records),
        [
            r#"{"id":"trips-3-10-v1","late":true,"carrier":"AA","at":"1970-01-01T00:00:00.000Z"}"#,
            r#"{"id":"trips-3-11-v1","late":true,"carrier":null,"at":"1970-01-01T00:00:01.000Z"}"#,
            r#"{"id":"trips-3-12-v1","late":null,"carrier":"B6","at":"1970-01-01T00:00:02.000Z"}"#,
        ]
    );
    let keys: Vec<_> = (0..3).map(|n| records.key(n)).collect();
    assert_eq!(keys, [Some(b"AA|10".as_slice()), Some(b""), Some(b"B6|12")]);
    assert_eq!(records.event_times, [0, 1_000, 2_000]);
}

#[test]
fn a_row_whose_expression_fails_has_null_there() {
    let select = [("share", "10 / stops"), ("delay", "delay")];
    let records = encoder(&batch(), false, &select, &[], Headers::None).encode(&batch(), 4);
    let expected = [r#"{"share":10,"delay":1.5}"#, r#"{"share":null,"delay":null}"#, r#"{"share":5,"delay":null}"#];
    assert_eq!(values(&records), expected);
    assert_eq!(records.key(0), None);
}

#[test]
fn provenance_that_nothing_reads_is_not_made() {
    let select = [("delay", "delay"), ("carrier", "carrier"), ("stops", "stops")];
    assert!(encoder(&batch(), true, &select, &[], Headers::Prediction).provenance.is_empty());
    let made = encoder(&batch(), true, &[("topic", "topic")], &["model"], Headers::None).provenance;
    let read: Vec<&str> = made.iter().filter(|(_, read)| *read).map(|(provenance, _)| provenance.name()).collect();
    assert_eq!(read, ["model", "topic"]);
}

#[test]
fn headers_say_where_a_record_is_from() {
    let select = [("stops", "stops")];
    let records = encoder(&batch(), true, &select, &[], Headers::Prediction).encode(&batch(), 4);
    assert_eq!(
        headers(&records, 1),
        [
            ("prediction_id", "trips-3-11-v1"),
            ("model", "delay"),
            ("model_version", "v1"),
            ("epoch", "4"),
            ("generation", "7"),
            ("event_time", "1970-01-01T00:00:01.000Z"),
            ("topic", "trips"),
            ("partition", "3"),
            ("offset", "11"),
        ]
    );
    let records = encoder(&batch(), false, &select, &[], Headers::Event).encode(&batch(), 5);
    let names: Vec<&str> = headers(&records, 2).iter().map(|(name, _)| *name).collect();
    assert_eq!(names, Headers::Event.names());
    assert_eq!(records.header(2, 5), b"12");
}

#[test]
fn a_dead_letter_is_the_original_bytes() {
    let reject = |n: i64, payload: &[u8]| Reject {
        stage: "decode".into(),
        reason: Reason::Malformed,
        detail: format!("no. {n}"),
        payload: payload.to_vec(),
        event_time: row(n).happened(),
        row: row(n),
    };
    let batch = reject::to_batch(&[reject(0, b"{\"half"), reject(1, b"\xff\x00"), reject(2, b"")]);
    let mut encoder = encoder(&batch, false, &[("payload", "reason")], &[], Headers::Reject);
    encoder.value = Value::Payload;
    let records = encoder.encode(&batch, 4);
    assert_eq!((0..3).map(|n| records.value(n)).collect::<Vec<_>>(), [b"{\"half".as_slice(), b"\xff\x00", b""]);
    let expected = [
        ("stage", "decode"),
        ("reason", "malformed"),
        ("detail", "no. 1"),
        ("event_time", "1970-01-01T00:00:01.000Z"),
        ("topic", "trips"),
        ("partition", "3"),
        ("offset", "11"),
    ];
    assert_eq!(headers(&records, 1), expected);
    assert_eq!(headers(&records, 0)[3], ("event_time", ""), "a record from a file that could not be read has no time");
}

#[test]
fn an_empty_batch_gives_no_records() {
    let records =
        encoder(&batch(), true, &[("id", "prediction_id")], &[], Headers::Prediction).encode(&batch().slice(0, 0), 4);
    assert!(records.is_empty());
}
