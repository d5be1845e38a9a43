//! Messages that are good, bad and anything: what becomes a row, what is rejected, and why.

use arrow::array::{Float64Array, Int64Array, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::{Float64Type, Int64Type, TimestampMillisecondType};
use proptest::prelude::*;

use super::*;
use crate::validate::TimeUnit;

const NOW: EventTime = 1_767_225_600_000;

fn config(format: FormatKind) -> DecoderConfig {
    let column = |name: &str, declared: &str| (name.to_string(), declared.parse::<ColumnType>().unwrap());
    DecoderConfig {
        stage: "card".into(),
        format,
        columns: IndexMap::from([
            column("id", "int64"),
            column("amount", "float64"),
            column("channel", "string?"),
            column("ok", "bool?"),
            column("ts", "timestamp"),
        ]),
        ranges: IndexMap::from([("amount".to_string(), Range { min: Some(0.0), max: Some(1e6) })]),
        checks: vec!["channel <> 'fax' or channel is null".into()],
        event_time: Some(EventTimeRule { column: "ts".into(), unit: TimeUnit::Ms }),
        ahead_max_millis: Some(3_600_000),
        message_size_max: 1_000,
        keep_raw: true,
    }
}

fn json() -> Decoder {
    Decoder::new(config(FormatKind::default())).unwrap()
}

fn messages<'a>(payloads: impl IntoIterator<Item = Option<&'a [u8]>>) -> Messages {
    let payloads: BinaryArray = payloads.into_iter().collect();
    let row = |offset| Row { source: 1, partition: 2, offset, event_time: 5, arrived_micros: 9 };
    Messages { rows: (0..payloads.len() as i64).map(row).collect(), payloads, header: None }
}

fn good(id: i64) -> String {
    format!(r#"{{"id": {id}, "amount": 1.5, "channel": "web", "ok": true, "ts": {}}}"#, NOW + id)
}

/// Decodes `payload` between two good messages and expects it, alone, to be rejected.
#[track_caller]
fn rejected(decoder: &mut Decoder, payload: &[u8], reason: Reason, detail: &str) {
    let (first, last) = (good(1), good(2));
    let input = messages([Some(first.as_bytes()), Some(payload), Some(last.as_bytes())]);
    let mut rejects = Vec::new();
    let batch = decoder.decode(input, Some(NOW), &mut rejects).expect("two good rows");
    assert_eq!(batch.records.column(0).as_primitive::<Int64Type>(), &Int64Array::from(vec![1, 2]));
    assert_eq!(batch.rows.iter().map(|row| row.offset).collect::<Vec<_>>(), [0, 2]);
    assert_eq!(batch.raw.as_ref().unwrap().value(1), last.as_bytes());
    assert_eq!(rejects.len(), 1);
    assert_eq!((rejects[0].reason, rejects[0].detail.as_str()), (reason, detail));
    assert_eq!((&rejects[0].payload[..], rejects[0].row.offset, &*rejects[0].stage), (payload, 1, "card"));
}

/// A message like the good ones with `field` in place of the field of the same name, or in addition.
fn with(field: &str) -> String {
    let name = &field[..=field.find(':').unwrap()];
    let fields = [r#""id": 7"#.into(), r#""amount": 1.5"#.into(), format!(r#""ts": {NOW}"#)];
    let mut fields: Vec<String> = fields.into_iter().filter(|other| !other.starts_with(name)).collect();
    fields.push(field.into());
    format!("{{{}}}", fields.join(","))
}

#[test]
fn whole_numbers_are_held_against_ranges_as_whole_numbers() {
    // 2^53 + 1 is no float64: the nearest is 2^53, which is the bound.
    let bound = 9_007_199_254_740_992_i64;
    let mut config = config(FormatKind::default());
    config.ranges.insert("id".into(), Range { min: Some(-0.5), max: Some(bound as f64) });
    let mut decoder = Decoder::new(config).unwrap();
    let now = |id: i64| good(id).replace(&(NOW + id).to_string(), &NOW.to_string());
    for id in [bound + 1, -1] {
        let detail = format!("`id` is {id}, not between -0.5 and {bound}");
        rejected(&mut decoder, now(id).as_bytes(), Reason::OutOfRange, &detail);
    }
    let (mut rejects, texts) = (Vec::new(), [bound, 0].map(now));
    let batch = decoder.decode(messages(texts.iter().map(|text| Some(text.as_bytes()))), Some(NOW), &mut rejects);
    assert_eq!((batch.map(|batch| batch.len()), rejects.len()), (Some(2), 0));
}

#[test]
fn a_reject_bears_its_own_event_time_if_that_could_be_read() {
    let early = good(1).replace(&(NOW + 1).to_string(), "-1");
    let texts = ["{", &good(1).replace("1.5", "-1.5"), &early, &good(2).replace("web", "fax")];
    let mut rejects = Vec::new();
    assert!(json().decode(messages(texts.map(|text| Some(text.as_bytes()))), Some(NOW), &mut rejects).is_none());
    let times: Vec<_> = rejects.iter().map(|reject| (reject.reason, reject.event_time)).collect();
    // The others have what the message said, 5.
    let expected = [
        (Reason::Malformed, Some(5)),
        (Reason::OutOfRange, Some(NOW + 1)),
        (Reason::BadEventTime, Some(5)),
        (Reason::CheckFailed, Some(NOW + 2)),
    ];
    assert_eq!(times, expected);
}

#[test]
fn good_messages_become_rows_in_order() {
    let payloads: Vec<String> = (0..3).map(good).collect();
    let mut rejects = Vec::new();
    let input = messages(payloads.iter().map(|payload| Some(payload.as_bytes())));
    let batch = json().decode(input, Some(NOW), &mut rejects).unwrap();
    assert_eq!((batch.len(), rejects.len()), (3, 0));
    assert_eq!(batch.rows[2], Row { source: 1, partition: 2, offset: 2, event_time: NOW + 2, arrived_micros: 9 });
    assert_eq!(batch.records.schema(), *json().schema());
    assert_eq!(batch.records.column(2).as_string::<i32>().value(1), "web");
    assert!(json().decode(messages([]), None, &mut rejects).is_none());
}

#[test]
fn broken_json_is_malformed() {
    use Reason::Malformed;
    let mut decoder = json();
    let not = "the message is not one JSON object:";
    let mut check = |payload: &str, detail: &str| rejected(&mut decoder, payload.as_bytes(), Malformed, detail);
    check("\u{0}\u{1}", &format!("{not} expected value at line 1 column 1"));
    check(
        r#"{"id": 7, "amount": 1.5, "ts": 17672256"#,
        &format!("{not} EOF while parsing an object at line 1 column 39"),
    );
    check(r#"{"id": 7, "amount"#, &format!("{not} EOF while parsing a string at line 1 column 17"));
    check(r#"{"id": 7 "amount": 1.5}"#, &format!("{not} expected `,` or `}}` at line 1 column 10"));
    check("", "the message is empty");
    check("  ", &format!("{not} EOF while parsing a value at line 1 column 2"));
    check("[]", &format!("{not} invalid type: sequence, expected an object at line 1 column 2"));
    check("null", &format!("{not} invalid type: null, expected an object at line 1 column 4"));
    check("{} {}", &format!("{not} trailing characters at line 1 column 4"));
    check(&with("\"amount\": NaN"), &format!("{not} expected value at line 1 column 40"));
    check(&with("\"amount\": 1e999"), &format!("{not} number out of range at line 1 column 44"));
    check(r#"{"id": 7, "id": 8, "amount": 1, "ts": 1767225600000}"#, "`id` stands twice in the object");
    let deep = with(&format!("\"amount\": {}", "[".repeat(400)));
    check(&deep, &format!("{not} expected value at line 1 column {}", deep.len()));
    rejected(&mut decoder, b"\xff{}", Malformed, "the message is not UTF-8: byte 0 does not belong to a character");
    let inside = [with("\"x\": \"").as_bytes(), b"\xc3\x28\"}"].concat();
    let detail = format!("the message is not UTF-8: byte {} does not belong to a character", inside.len() - 4);
    rejected(&mut decoder, &inside, Malformed, &detail);
}

#[test]
fn fields_that_do_not_fit_say_so() {
    let mut decoder = json();
    let mut check = |field: &str, reason: Reason, detail: &str| {
        rejected(&mut decoder, with(field).as_bytes(), reason, detail);
    };
    check("\"id\": \"7\"", Reason::WrongType, "`id` is the text \"7\", not int64");
    check("\"id\": 1.5", Reason::WrongType, "`id` is the number 1.5, not int64");
    check(
        "\"id\": 9223372036854775808",
        Reason::OutOfRange,
        "`id` is 9.223372036854776e18, which does not fit into int64 exactly",
    );
    check("\"id\": null", Reason::MissingField, "`id` is null; it is not optional");
    check("\"id\": true", Reason::WrongType, "`id` is true, not int64");
    check("\"amount\": \"NaN\"", Reason::WrongType, "`amount` is the text \"NaN\", not float64");
    check("\"amount\": [1, {}]", Reason::WrongType, "`amount` is a list, not float64");
    check("\"amount\": {\"a\": []}", Reason::WrongType, "`amount` is an object, not float64");
    check("\"amount\": -1", Reason::OutOfRange, "`amount` is -1, not between 0 and 1000000");
    check("\"channel\": 5", Reason::WrongType, "`channel` is the number 5, not string");
    check("\"channel\": \"fax\"", Reason::CheckFailed, "`channel <> 'fax' or channel is null` is not true");
    check("\"ok\": 1", Reason::WrongType, "`ok` is the number 1, not bool");
    check("\"ts\": \"noon\"", Reason::WrongType, "`ts` is the text \"noon\", not timestamp");
    check("\"ts\": 0", Reason::BadEventTime, "`ts` is 0, which is not after 1970-01-01T00:00:00Z");
    check("\"ts\": -5", Reason::BadEventTime, "`ts` is -5, which is not after 1970-01-01T00:00:00Z");
    let year_2999 =
        "`ts` is 32472144000000, which is 30704918400000 ms ahead of the clock; at most 3600000 ms are allowed";
    check("\"ts\": \"2999-01-01T00:00:00Z\"", Reason::BadEventTime, year_2999);
    let nanos = "`ts` is 1767225600000000000, which is beyond the year 9999; is its unit right?";
    check("\"ts\": 1767225600000000000", Reason::BadEventTime, nanos);
    rejected(&mut decoder, b"{}", Reason::MissingField, "`id` is missing; it is not optional");
    let long = with(&format!("\"id\": \"{}\"", "\u{e9}".repeat(200)));
    let start = "\u{e9}".repeat(80);
    rejected(&mut decoder, long.as_bytes(), Reason::WrongType, &format!("`id` is the text \"{start}...\", not int64"));
    let large = with(&format!("\"x\": \"{}\"", "x".repeat(1_000)));
    let detail = "the message is larger than 1000 bytes (`message_size_max`)";
    rejected(&mut decoder, large.as_bytes(), Reason::TooLarge, detail);
}

#[test]
fn values_are_taken_as_their_writers_mean_them() {
    let (id, text) = (with("\"id\": 5.0"), with("\"channel\": \"a\\u00e9\\n\""));
    let (time, deep) = (
        with("\"ts\": \"2026-01-01T01:00:00.250+01:00\""),
        with(&format!("\"x\": {}1{}", "[".repeat(300), "]".repeat(300))),
    );
    let payloads = [id, text, time, deep, with("\"amount\": 7"), with("\"amount\": 0.1")];
    let mut rejects = Vec::new();
    let input = messages(payloads.iter().map(|payload| Some(payload.as_bytes())));
    let batch = json().decode(input, None, &mut rejects).unwrap();
    assert_eq!(rejects, []);
    assert_eq!(batch.records.column(0).as_primitive::<Int64Type>().value(0), 5);
    assert_eq!(batch.records.column(2).as_string::<i32>().value(1), "a\u{e9}\n");
    assert!(batch.records.column(2).is_null(0));
    assert_eq!(batch.rows[2].event_time, NOW + 250);
    assert_eq!(batch.records.column(4).as_primitive::<TimestampMillisecondType>().value(2), NOW + 250);
    assert_eq!(batch.records.column(1).as_primitive::<Float64Type>().values()[4..], [7.0, 0.1]);
}

#[test]
fn a_tombstone_has_no_value() {
    let mut rejects = Vec::new();
    assert!(json().decode(messages([None]), None, &mut rejects).is_none());
    assert_eq!((rejects[0].reason, rejects[0].payload.len()), (Reason::NoValue, 0));
}

#[test]
fn extra_fields_are_rejected_where_the_topology_says_so() {
    let format = json::JsonFormat { extra_fields: json::ExtraFields::Reject };
    let mut decoder = Decoder::new(config(FormatKind::Json(format))).unwrap();
    let detail = "`chanel` is not in the schema (did you mean `channel`?)";
    rejected(&mut decoder, with("\"chanel\": 1").as_bytes(), Reason::UnknownField, detail);
}

#[test]
fn bounded_runs_have_no_clock() {
    let payload = with("\"ts\": \"2999-01-01T00:00:00Z\"");
    let mut rejects = Vec::new();
    assert!(json().decode(messages([Some(payload.as_bytes())]), None, &mut rejects).is_some());
}

fn decode_csv(header: Option<&[&str]>, lines: &[&str]) -> (Option<Batch>, Vec<(Reason, String)>) {
    let mut decoder = Decoder::new(config(FormatKind::Csv(csv::CsvFormat { delimiter: ',' }))).unwrap();
    let mut input = messages(lines.iter().map(|line| Some(line.as_bytes())));
    input.header = header.map(|header| Arc::new(header.iter().map(|name| name.to_string()).collect()));
    let mut rejects = Vec::new();
    let batch = decoder.decode(input, None, &mut rejects);
    (batch, rejects.into_iter().map(|reject| (reject.reason, reject.detail)).collect())
}

#[test]
fn csv_is_read_by_header_or_by_the_order_of_the_schema() {
    let header = ["ts", "other", "channel", "amount", "id"];
    let lines = ["1767225600000,x,\"a \"\"b\"\", c\",2.5,7", "2026-01-01T00:00:00Z,,,1e3,8\r\n", "1,\"\",\"\", 5 ,9"];
    let (batch, rejects) = decode_csv(Some(&header), &lines);
    assert_eq!(rejects, []);
    let batch = batch.unwrap();
    let channels = batch.records.column(2).as_string::<i32>();
    assert_eq!(channels, &StringArray::from(vec![Some("a \"b\", c"), None, Some("")]));
    assert_eq!(batch.records.column(1).as_primitive::<Float64Type>(), &Float64Array::from(vec![2.5, 1_000.0, 5.0]));
    assert_eq!(batch.rows[1].event_time, NOW);
    let (batch, rejects) = decode_csv(None, &["7,2.5,web,true,1767225600000", "7,,web,true,1767225600000"]);
    assert_eq!(batch.unwrap().len(), 1);
    assert_eq!(rejects, [(Reason::MissingField, "`amount` is null; it is not optional".into())]);
}

#[test]
fn bad_csv_is_told() {
    let check = |line: &str, reason: Reason, detail: &str| {
        let (batch, rejects) = decode_csv(None, &[line]);
        assert!(batch.is_none());
        assert_eq!(rejects, [(reason, detail.to_string())]);
    };
    check("7,2.5", Reason::Malformed, "the record has 2 fields, not 5");
    check("7,\"2.5", Reason::Malformed, "a quoted field is not closed");
    check("7,\"2\"5,,,1", Reason::Malformed, "a quoted field goes on behind its closing quote");
    check("7,2.5,,,1\n8,2.5,,,1", Reason::Malformed, "the message holds more than one record");
    check("7,NA,,,1", Reason::WrongType, "`amount` is the text \"NA\", not float64");
    check("7,NaN,,,1", Reason::OutOfRange, "`amount` is NaN, not a finite number");
    check("7,inf,,,1", Reason::OutOfRange, "`amount` is inf, not a finite number");
    check("7.5,1,,,1", Reason::WrongType, "`id` is the number 7.5, not int64");
    check("99999999999999999999,1,,,1", Reason::OutOfRange, "`id` is 1e20, which does not fit into int64 exactly");
    check("7,1,,maybe,1", Reason::WrongType, "`ok` is the text \"maybe\", not bool");
}

#[test]
fn typed_rows_are_fitted_and_validated() {
    let records = RecordBatch::try_from_iter([
        ("ts", Arc::new(TimestampMicrosecondArray::from(vec![NOW * 1_000 + 999; 5])) as ArrayRef),
        ("extra", Arc::new(Int64Array::from(vec![0; 5]))),
        ("id", Arc::new(Float64Array::from(vec![Some(1.0), Some(2.5), None, Some(4.0), Some(5.0)]))),
        ("amount", Arc::new(Int64Array::from(vec![10, 10, 10, -10, 10]))),
    ])
    .unwrap();
    let rows = messages([None; 5]).rows;
    let mut rejects = Vec::new();
    let batch = json().accept(records, rows, Some(NOW), &mut rejects).unwrap();
    assert_eq!(batch.records.column(0).as_primitive::<Int64Type>().values(), &[1, 5]);
    assert_eq!(batch.records.schema(), *json().schema());
    assert_eq!((batch.rows[1].offset, batch.rows[1].event_time), (4, NOW));
    let told: Vec<(i64, Reason, &str)> =
        rejects.iter().map(|reject| (reject.row.offset, reject.reason, reject.detail.as_str())).collect();
    assert_eq!(
        told,
        [
            (1, Reason::WrongType, "`id` is float64 that is no int64"),
            (2, Reason::MissingField, "`id` is missing; it is not optional"),
            (3, Reason::OutOfRange, "`amount` is -10, not between 0 and 1000000"),
        ]
    );
    let payload: serde_json::Value = serde_json::from_slice(&rejects[2].payload).unwrap();
    assert_eq!((payload["amount"].as_i64(), payload["id"].as_f64()), (Some(-10), Some(4.0)));
}

#[test]
fn a_timestamp_of_the_message_may_not_be_ahead_of_the_clock_either() {
    let mut config = config(FormatKind::default());
    config.event_time = None;
    let mut decoder = Decoder::new(config).unwrap();
    let payload = good(1);
    let mut messages = messages([Some(payload.as_bytes()); 4]);
    let in_2999 = 32_472_144_000_000;
    for (row, time) in messages.rows.iter_mut().zip([NOW, NOW + 3_600_000, NOW + 3_600_001, in_2999]) {
        row.event_time = time;
    }
    let mut rejects = Vec::new();
    let batch = decoder.decode(messages.clone(), Some(NOW), &mut rejects).unwrap();
    assert_eq!(batch.rows.iter().map(|row| row.offset).collect::<Vec<_>>(), [0, 1]);
    let told: Vec<_> = rejects.iter().map(|r| (r.row.offset, r.reason, r.detail.as_str())).collect();
    let ahead = |time: i64| {
        let by = time - NOW;
        format!(
            "the message's timestamp is {time}, which is {by} ms ahead of the clock; at most 3600000 ms are allowed"
        )
    };
    let (first, second) = (ahead(NOW + 3_600_001), ahead(in_2999));
    assert_eq!(told, [(2, Reason::BadEventTime, &*first), (3, Reason::BadEventTime, &*second)]);

    // A bounded run has no clock.
    rejects.clear();
    assert_eq!(decoder.decode(messages, None, &mut rejects).unwrap().len(), 4);
    assert!(rejects.is_empty());
}

#[test]
fn all_errors_of_a_config_are_told_by_path() {
    let mut config = config(FormatKind::Csv(csv::CsvFormat { delimiter: '"' }));
    config.ranges.insert("chanel".into(), Range { min: Some(1.0), max: None });
    config.ranges.insert("channel".into(), Range { min: Some(1.0), max: None });
    config.ranges.insert("id".into(), Range { min: Some(1.0), max: Some(0.0) });
    config.checks = vec!["amount".into(), "amount > 0".into(), "amonut > 0".into()];
    config.event_time = Some(EventTimeRule { column: "ok".into(), unit: TimeUnit::S });
    let errors: Vec<String> = Decoder::new(config).unwrap_err().iter().map(ToString::to_string).collect();
    assert_eq!(
        errors,
        [
            "ranges.chanel: there is no column `chanel` (did you mean `channel`?)",
            "ranges.channel: `channel` is string?; only numbers have a range",
            "ranges.id: no number is at least 1 and at most 0",
            "checks[0]: `amount` is float64, not a condition (compare it with something, as in `amount > 0`)",
            "checks[2]: there is no column `amonut` (did you mean `amount`?)",
            "event_time.column: `ok` is bool?, not a time (declare it as `timestamp`, or as `int64` with a `unit`)",
            "format.csv.delimiter: `\\\"` can't stand between fields (use one ASCII character that is no quote or line end, as `,` or `;`)",
        ]
    );
}

/// Any message: good, broken, cut off, of wrong types, or no JSON at all.
fn any_message() -> impl Strategy<Value = Option<Vec<u8>>> {
    let value =
        prop_oneof!["-?[0-9]{1,20}", "[0-9]{1,3}\\.[0-9]{1,3}", "\"[a-z\\\\]{0,4}\"", "null|true|\\[\\]|\\{\\}|NaN"];
    let field = ("id|amount|channel|ok|ts|x", value).prop_map(|(name, value)| format!("\"{name}\":{value}"));
    let object = prop::collection::vec(field, 0..6).prop_map(|fields| format!("{{{}}}", fields.join(",")));
    let cut = (0i64..9, 0usize..80).prop_map(|(id, end)| {
        let whole = good(id);
        whole[..end.min(whole.len())].to_string()
    });
    prop_oneof![
        4 => (0i64..9).prop_map(|id| Some(good(id).into_bytes())),
        2 => object.prop_map(|text| Some(text.into_bytes())),
        2 => cut.prop_map(|text| Some(text.into_bytes())),
        1 => prop::collection::vec(any::<u8>(), 0..20).prop_map(Some),
        1 => Just(None),
    ]
}

proptest! {
    #[test]
    fn a_batch_is_decoded_as_each_message_alone(payloads in prop::collection::vec(any_message(), 0..24)) {
        let mut decoder = json();
        let (mut together, mut alone) = (Vec::new(), Vec::new());
        let input = messages(payloads.iter().map(Option::as_deref));
        let batch = decoder.decode(input.clone(), Some(NOW), &mut together);
        let mut parts = Vec::new();
        for index in 0..input.len() {
            let one = Messages { payloads: input.payloads.slice(index, 1), rows: vec![input.rows[index]], header: None };
            parts.extend(json().decode(one, Some(NOW), &mut alone));
        }
        prop_assert_eq!(&together, &alone);
        prop_assert_eq!(batch.as_ref().map_or(0, Batch::len) + together.len(), payloads.len());
        let parts = Batch::concat(&parts).unwrap();
        prop_assert_eq!(batch.is_some(), parts.is_some());
        if let (Some(batch), Some(parts)) = (batch, parts) {
            prop_assert_eq!(&batch.records, &parts.records);
            prop_assert_eq!(&batch.rows, &parts.rows);
            prop_assert_eq!(&batch.raw, &parts.raw);
        }
    }

    #[test]
    fn what_serde_json_reads_is_what_is_decoded(payload in any_message().prop_filter_map("a value", |payload| payload)) {
        let mut config = config(FormatKind::default());
        (config.ranges, config.checks, config.event_time) = Default::default();
        let mut rejects = Vec::new();
        let batch = Decoder::new(config).unwrap().decode(messages([Some(payload.as_slice())]), None, &mut rejects);
        if let Some(batch) = batch {
            let read: serde_json::Value = serde_json::from_slice(&payload).unwrap();
            let column = |index: usize| batch.records.column(index);
            prop_assert_eq!(Some(column(0).as_primitive::<Int64Type>().value(0) as f64), read["id"].as_f64());
            prop_assert_eq!(Some(column(1).as_primitive::<Float64Type>().value(0)), read["amount"].as_f64());
            let channel = column(2).as_string::<i32>();
            prop_assert_eq!(channel.is_valid(0).then(|| channel.value(0)), read["channel"].as_str());
        } else {
            prop_assert_eq!(rejects.len(), 1);
        }
    }

    #[test]
    fn any_csv_is_decoded_or_rejected(lines in prop::collection::vec("[a-z0-9,\"\n.-]{0,30}", 0..8)) {
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        let (batch, rejects) = decode_csv(None, &lines);
        prop_assert_eq!(batch.map_or(0, |batch| batch.len()) + rejects.len(), lines.len());
    }
}
