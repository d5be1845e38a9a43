//! The contract of formats: what is well formed becomes the declared columns, what is not is rejected alone and with its own bytes,
//! and nothing makes a decoder panic. It goes over the list of formats, so one that is new fails until it has a fixture here.

use arrow::array::{Array, AsArray, BinaryArray};
use arrow::datatypes::{Float64Type, Int64Type, TimestampMillisecondType};
use indexmap::IndexMap;
use millstream_operators::decode::csv::CsvFormat;
use millstream_operators::decode::json::JsonFormat;
use millstream_operators::decode::{Decoder, DecoderConfig, FormatKind};
use millstream_operators::reject::{Reason, Reject};
use millstream_operators::schema::{ColumnType, Range};
use millstream_operators::validate::{EventTimeRule, TimeUnit};
use millstream_operators::{Batch, Messages, Row};
use serde_json::{Value, json};

use crate::random::Random;

const NOW: i64 = 1_767_225_600_000;
const SIZE_MAX: usize = 1_000;
const COLUMNS: [(&str, &str); 5] =
    [("id", "int64"), ("amount", "float64"), ("channel", "string?"), ("ok", "bool?"), ("at", "timestamp")];

/// Values of the columns, in their order.
type Values = [Value; 5];

/// A format, and how its records are written.
struct Fixture {
    format: FormatKind,
    write: fn(&Values) -> Vec<u8>,
}

fn fixture(kind: &str) -> Fixture {
    match kind {
        "json" => Fixture { format: FormatKind::Json(JsonFormat::default()), write: write_json },
        "csv" => Fixture { format: FormatKind::Csv(CsvFormat { delimiter: ',' }), write: write_csv },
        other => panic!("the format `{other}` has no fixture: say here how its records are written"),
    }
}

fn write_json(values: &Values) -> Vec<u8> {
    let fields = COLUMNS.iter().zip(values).map(|((name, _), value)| (name.to_string(), value.clone()));
    Value::Object(fields.collect()).to_string().into_bytes()
}

fn write_csv(values: &Values) -> Vec<u8> {
    let field = |value: &Value| match value {
        Value::Null => String::new(),
        Value::String(text) => format!("\"{}\"", text.replace('"', "\"\"")),
        other => other.to_string(),
    };
    values.iter().map(field).collect::<Vec<_>>().join(",").into_bytes()
}

fn decoder(format: &FormatKind) -> Decoder {
    let column = |(name, declared): (&str, &str)| (name.to_string(), declared.parse::<ColumnType>().expect("a type"));
    let config = DecoderConfig {
        stage: "events".into(),
        format: format.clone(),
        columns: IndexMap::from(COLUMNS.map(column)),
        ranges: IndexMap::from([("amount".to_string(), Range { min: Some(0.0), max: Some(1e6) })]),
        checks: vec!["channel <> 'fax' or channel is null".into()],
        event_time: Some(EventTimeRule { column: "at".into(), unit: TimeUnit::Ms }),
        ahead_max_millis: Some(3_600_000),
        message_size_max: SIZE_MAX,
        keep_raw: true,
    };
    Decoder::new(config).expect("a decoder")
}

fn decode(decoder: &mut Decoder, payloads: &[Option<&[u8]>]) -> (Option<Batch>, Vec<Reject>) {
    let row = |offset| Row { source: 1, partition: 2, offset, event_time: 5, arrived_micros: 9 };
    let rows = (0..payloads.len() as i64).map(row).collect();
    let messages = Messages { payloads: BinaryArray::from_iter(payloads.iter().copied()), rows, header: None };
    let mut rejects = Vec::new();
    let batch = decoder.decode(messages, Some(NOW), &mut rejects);
    (batch, rejects)
}

fn good(id: i64) -> Values {
    [json!(id), json!(1.5), json!("web"), json!(true), json!(NOW + id)]
}

/// Decodes a payload between two good records, which must come through; gives why it was rejected, if it was.
fn between(fixture: &Fixture, decoder: &mut Decoder, payload: Option<&[u8]>) -> Option<Reason> {
    let (first, last) = ((fixture.write)(&good(1)), (fixture.write)(&good(2)));
    let (batch, rejects) = decode(decoder, &[Some(&first), payload, Some(&last)]);
    let batch = batch.expect("two good rows");
    let shown = payload.map(String::from_utf8_lossy);
    let offsets: Vec<i64> = batch.rows.iter().map(|row| row.offset).collect();
    let expected: &[i64] = if rejects.is_empty() { &[0, 1, 2] } else { &[0, 2] };
    assert_eq!(offsets, expected, "{shown:?}");
    let ids = batch.records.column(0).as_primitive::<Int64Type>().values();
    assert_eq!((ids[0], ids[ids.len() - 1]), (1, 2), "{shown:?}");
    let kept = batch.raw.as_ref().expect("bytes are kept");
    assert_eq!((kept.value(0), kept.value(kept.len() - 1)), (&first[..], &last[..]), "{shown:?}");
    assert!(rejects.len() <= 1, "{shown:?}: {rejects:?}");
    let reject = rejects.first()?;
    assert_eq!((&*reject.stage, reject.row.offset), ("events", 1), "{shown:?}");
    assert_eq!(reject.payload, payload.unwrap_or_default(), "a reject has its own bytes");
    assert!(!reject.detail.is_empty(), "{shown:?}");
    Some(reject.reason)
}

/// A good record with another value in one column.
fn with(column: usize, value: Value) -> Values {
    let mut values = good(7);
    values[column] = value;
    values
}

/// Records that say what they are wrong in.
fn bad() -> Vec<(Values, Reason)> {
    vec![
        (with(0, Value::Null), Reason::MissingField),
        (with(1, Value::Null), Reason::MissingField),
        (with(4, Value::Null), Reason::MissingField),
        (with(0, json!("seven")), Reason::WrongType),
        (with(0, json!(7.5)), Reason::WrongType),
        (with(1, json!("NaN?")), Reason::WrongType),
        (with(3, json!("maybe")), Reason::WrongType),
        (with(0, json!(1e20)), Reason::OutOfRange),
        (with(1, json!(-1.5)), Reason::OutOfRange),
        (with(2, json!("fax")), Reason::CheckFailed),
        (with(4, json!(NOW + 7_200_000)), Reason::BadEventTime),
        (with(4, json!(-1)), Reason::BadEventTime),
    ]
}

#[test]
fn every_format_gives_the_declared_columns() {
    for kind in FormatKind::KINDS {
        let fixture = fixture(kind.name);
        assert_eq!(fixture.format.kind_name(), kind.name);
        let mut decoder = decoder(&fixture.format);
        let nulls = [json!(-3), json!(0.25), Value::Null, Value::Null, json!("2026-01-01T00:00:01Z")];
        let records = [good(1), nulls, with(2, json!("a \"b\", \u{e9}"))].map(|values| (fixture.write)(&values));
        let (batch, rejects) = decode(&mut decoder, &records.each_ref().map(|record| Some(&record[..])));
        assert_eq!(rejects, [], "{}", kind.name);
        let batch = batch.expect("three rows");
        assert_eq!(batch.records.schema(), *decoder.schema(), "{}", kind.name);
        let column = |index: usize| batch.records.column(index);
        assert_eq!(column(0).as_primitive::<Int64Type>().values(), &[1, -3, 7], "{}", kind.name);
        assert_eq!(column(1).as_primitive::<Float64Type>().values(), &[1.5, 0.25, 1.5], "{}", kind.name);
        let channels: Vec<_> = column(2).as_string::<i32>().iter().collect();
        assert_eq!(channels, [Some("web"), None, Some("a \"b\", \u{e9}")], "{}", kind.name);
        assert_eq!(column(3).as_boolean().iter().collect::<Vec<_>>(), [Some(true), None, Some(true)], "{}", kind.name);
        let times = [NOW + 1, NOW + 1_000, NOW + 7];
        assert_eq!(column(4).as_primitive::<TimestampMillisecondType>().values(), &times, "{}", kind.name);
        assert_eq!(batch.rows.iter().map(|row| row.event_time).collect::<Vec<_>>(), times, "{}", kind.name);

        let (batch, rejects) = decode(&mut decoder, &[]);
        assert!(batch.is_none() && rejects.is_empty(), "{}: nothing comes of nothing", kind.name);
    }
}

#[test]
fn every_format_rejects_a_bad_record_alone_and_with_its_bytes() {
    for kind in FormatKind::KINDS {
        let fixture = fixture(kind.name);
        let mut decoder = decoder(&fixture.format);
        let large = vec![b'1'; SIZE_MAX + 1];
        let bytes: [(Option<&[u8]>, Reason); 4] = [
            (None, Reason::NoValue),
            (Some(b""), Reason::Malformed),
            (Some(&[0xff, 0xfe, 0x00]), Reason::Malformed),
            (Some(&large), Reason::TooLarge),
        ];
        let written: Vec<_> = bad().into_iter().map(|(values, reason)| ((fixture.write)(&values), reason)).collect();
        let written = written.iter().map(|(record, reason)| (Some(&record[..]), *reason));
        let all: Vec<_> = bytes.into_iter().chain(written).collect();
        for (payload, reason) in &all {
            let shown = payload.map(String::from_utf8_lossy);
            assert_eq!(between(&fixture, &mut decoder, *payload), Some(*reason), "{}: {shown:?}", kind.name);
        }
        // All in one batch, as each alone.
        let payloads: Vec<_> = all.iter().map(|(payload, _)| *payload).collect();
        let (batch, rejects) = decode(&mut decoder, &payloads);
        assert!(batch.is_none(), "{}", kind.name);
        let told: Vec<_> = rejects.iter().map(|reject| reject.reason).collect();
        assert_eq!(told, all.iter().map(|(_, reason)| *reason).collect::<Vec<_>>(), "{}", kind.name);
    }
}

#[test]
fn no_bytes_make_a_format_panic_or_touch_their_neighbours() {
    for kind in FormatKind::KINDS {
        let fixture = fixture(kind.name);
        let mut decoder = decoder(&fixture.format);
        let whole = (fixture.write)(&good(7));
        for end in 0..whole.len() {
            between(&fixture, &mut decoder, Some(&whole[..end]));
        }
        assert_eq!(between(&fixture, &mut decoder, Some(&whole)), None, "{}", kind.name);
        let mut random = Random(11);
        for _ in 0..2_000 {
            // A record with some bytes changed, or bytes alone.
            let mut bytes = if random.below(4) > 0 { whole.clone() } else { vec![0; random.below(40) as usize] };
            let changes = if bytes == whole { 1 + random.below(3) } else { bytes.len() as u64 };
            for _ in 0..changes.min(bytes.len() as u64) {
                let at = random.below(bytes.len() as u64) as usize;
                bytes[at] = random.below(256) as u8;
            }
            between(&fixture, &mut decoder, Some(&bytes));
        }
    }
}
