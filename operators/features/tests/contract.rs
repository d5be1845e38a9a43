//! What a group promises beside its numbers: what it rejects, publishes, forgets and refuses.

use super::*;
use crate::reject::Reason;
use crate::state::StateError;

fn step(key: &'static str, time: i64, amount: f64) -> Step {
    Step { port: 0, key, time, amount: Some(amount), flag: None, city: None }
}

fn compile(json: &str, readers: &[Reader]) -> FeatureGroup {
    FeatureGroup::compile("g", &config(json), &schema(), readers).unwrap()
}

const SUMS: &str = r#"{ "from": "s", "key": ["card"],
    "aggregates": [{ "of": "amount", "ops": ["count", "sum", "stddev", "max"], "windows": ["10s", "1h"] }] }"#;

/// The named feature of every row a group gave on a port.
fn feature(out: &Outputs, port: usize, name: &str) -> Vec<Option<f64>> {
    let all = answers(&out.ports[port], "g").into_iter();
    all.map(|(_, numbers, _)| numbers.into_iter().find(|(known, _)| known == name).unwrap().1).collect()
}

#[test]
fn what_is_wrong_is_said_by_path() {
    let check = |json: &str, expected: &[(&str, &str)]| {
        let errors = FeatureGroup::compile("g", &config(json), &schema(), &[]).err().unwrap_or_default();
        let found: Vec<(&str, &str)> = errors.iter().map(|e| (e.path.as_str(), e.message.as_str())).collect();
        assert_eq!(found, expected, "{json}");
    };
    let with = |aggregate: &str| format!(r#"{{ "from": "s", "key": ["card"], "aggregates": [{aggregate}] }}"#);
    check(
        r#"{ "from": "s", "key": ["crad", "amount"] }"#,
        &[
            ("key[0]", "there is no column `crad`"),
            ("key[1]", "`amount` is Float64: a floating-point number cannot be an entity key"),
            ("aggregates", "the group has no features"),
        ],
    );
    check(
        &with(r#"{ "of": "amonut", "as": "a", "ops": ["sum"], "windows": ["1h"] }"#),
        &[("aggregates[0].of", "there is no column `amonut`")],
    );
    check(
        &with(r#"{ "of": "city", "ops": ["sum"], "windows": ["1h"] }"#),
        &[("aggregates[0].of", "`city` is Utf8, not a number or a boolean")],
    );
    check(
        &with(r#"{ "where": "amount", "ops": ["count"], "windows": ["1h"] }"#),
        &[("aggregates[0].where", "`amount` is Float64, not a condition")],
    );
    check(&with(r#"{ "ops": ["count", "mean"], "windows": ["1h"] }"#), &[("aggregates[0].of", "`mean` needs a value")]);
    check(
        &with(r#"{ "of": "amount * 2", "ops": ["sum"], "windows": ["1h"] }"#),
        &[("aggregates[0].of", "`amount * 2` is an expression, so its features need a name")],
    );
    check(
        &with(r#"{ "of": "amount", "ops": ["sum"], "windows": ["0s", "401d"] }"#),
        &[
            ("aggregates[0].windows[0]", "a window must be longer than zero"),
            ("aggregates[0].windows[1]", "401d is longer than the longest window allowed, 400d"),
        ],
    );
    check(
        &with(r#"{ "ops": [], "windows": [] }"#),
        &[("aggregates[0].ops", "is empty"), ("aggregates[0].windows", "is empty")],
    );
    check(
        &with(r#"{ "ops": ["count"], "windows": ["1h"] }, { "where": "flag", "ops": ["count"], "windows": ["60m"] }"#),
        &[("aggregates", "two features are named `count_1h`")],
    );
    check(
        r#"{ "from": "s", "key": ["card"], "tiles": 7, "ttl": "30m",
            "aggregates": [{ "ops": ["count"], "windows": ["1h"] }] }"#,
        &[
            ("aggregates[0].windows[0]", "1h cannot be cut into 7 tiles of whole milliseconds"),
            ("ttl", "30m is shorter than the longest window or age, 1h"),
        ],
    );
    check(
        r#"{ "from": "s", "key": ["card"], "as_of": { "here": { "column": "town", "max_age": "0s" } } }"#,
        &[("as_of.here.column", "there is no column `town`")],
    );
}

#[test]
fn readers_must_fit_the_key() {
    let spine = |fields: &[(&str, DataType)]| {
        Arc::new(Schema::new(fields.iter().map(|(n, t)| Field::new(*n, t.clone(), true)).collect::<Vec<_>>()))
    };
    let number = spine(&[("card", DataType::Int64)]);
    let check = |readers: &[Reader], path: &str, message: &str| {
        let errors = FeatureGroup::compile("g", &config(SUMS), &schema(), readers).err().unwrap();
        assert_eq!((errors[0].path.as_str(), errors[0].message.as_str()), (path, message));
    };
    let with = |spine: &SchemaRef, on: &[&str]| {
        let on = on.iter().map(|name| name.to_string()).collect();
        Reader { spine: spine.clone(), on, ..reader("v", false, false) }
    };
    check(&[with(&number, &[])], "vectors.v.join.on", "`card` is Int64, but the group's key `card` is Utf8");
    check(&[with(&number, &["payer"])], "vectors.v.join.on", "there is no column `payer`");
    check(&[with(&schema(), &["card", "city"])], "vectors.v.join.on", "2 columns for a key of 1: card");
    let taken = spine(&[("card", DataType::Utf8), ("g.amount_sum_1h", DataType::Float64)]);
    check(&[with(&taken, &[])], "vectors.v.join.features", "the rows have a column `g.amount_sum_1h` already");
    check(
        &[reader("v", true, false), reader("w", true, true)],
        "vectors.w.join",
        "another vector with this spine reads `g` already, and only one can keep it fed",
    );
    let other = Reader { on: vec!["city".into()], ..reader("v", true, false) };
    check(&[other], "vectors.v.join.on", "the spine feeds the group, so it must read by the group's key [\"card\"]");
}

#[test]
fn rows_without_a_key_are_rejected_when_they_update_and_read_nothing_when_they_read() {
    let readers = [reader("feeding", true, false), reader("reading", false, false)];
    let mut group = compile(SUMS, &readers);
    let steps = [step("a", 1000, 1.0), step("b", 1001, 2.0), step("a", 1002, 4.0)];
    let mut columns = batch(&steps, 0).records.columns().to_vec();
    columns[0] = Arc::new(StringArray::from(vec![Some("a"), None, Some("a")]));
    let rows = batch(&steps, 0).rows.to_vec();
    let nulls = Batch::new(RecordBatch::try_new(schema(), columns).unwrap(), rows);
    let mut out = Outputs::new(3);
    for port in [0, 1, 2] {
        group.process(port, nulls.clone(), &mut out);
    }
    let rejects: Vec<(Reason, i64)> = out.rejects.iter().map(|reject| (reject.reason, reject.row.offset)).collect();
    assert_eq!(rejects, [(Reason::MissingKey, 1); 2]);
    assert_eq!(feature(&out, 0, "amount_sum_10s"), [Some(2.0), Some(10.0)]);
    assert_eq!(feature(&out, 1, "amount_sum_10s"), [Some(2.0), None, Some(10.0)]);
    assert_eq!(feature(&out, 1, "amount_count_10s")[1], Some(0.0));
}

#[test]
fn a_row_on_which_an_expression_fails_is_rejected_alone() {
    let json = r#"{ "from": "s", "key": ["card"], "aggregates": [
        { "of": "cast(city as double)", "as": "number", "ops": ["sum"], "windows": ["1h"] }] }"#;
    let mut group = compile(json, &[reader("v", true, false)]);
    let texts = ["1.5", "two", "3"];
    let steps: Vec<Step> =
        texts.iter().zip(0..).map(|(text, time)| Step { city: Some(text), ..step("a", time, 0.0) }).collect();
    let mut out = Outputs::new(2);
    group.process(1, batch(&steps, 0), &mut out);
    assert_eq!(out.rejects.len(), 1);
    assert_eq!((out.rejects[0].reason, out.rejects[0].row.offset), (Reason::ExpressionFailed, 1));
    assert_eq!(feature(&out, 0, "number_sum_1h"), [Some(1.5), Some(4.5)]);
}

#[test]
fn values_that_are_no_numbers_are_left_out() {
    let mut group = compile(SUMS, &[reader("v", true, false)]);
    let values = [1.0, f64::NAN, f64::INFINITY, -1e200, 2.0];
    let steps: Vec<Step> = values.iter().zip(0..).map(|(value, time)| step("a", time, *value)).collect();
    let mut out = Outputs::new(2);
    group.process(1, batch(&steps, 0), &mut out);
    assert_eq!(feature(&out, 0, "amount_sum_10s"), [1.0, 1.0, 1.0, 1.0, 3.0].map(Some));
    assert_eq!(feature(&out, 0, "amount_count_10s")[4], Some(2.0));
}

#[test]
fn keys_changed_in_an_epoch_are_published_once_as_of_their_newest_event() {
    let mut group = compile(SUMS, &[reader("v", false, false)]);
    let mut out = Outputs::new(2);
    let steps = [step("a", 5000, 1.0), step("c|d", 6000, 3.0), step("a", 20_000, 2.0), step("a", 19_000, 7.0)];
    group.process(0, batch(&steps, 0), &mut out);
    group.close_epoch(1, &mut out);
    let published = &out.ports[1][0];
    assert_eq!(published.records.schema(), group.published_schema());
    assert_eq!(published.records.column(0).as_string::<i32>(), &StringArray::from(vec!["a", "c\\|d"]));
    let sums = published.records.column_by_name("amount_sum_10s").unwrap().as_primitive::<Float64Type>();
    assert_eq!(sums.values(), &[9.0, 3.0]);
    let until = published.records.column_by_name("valid_until").unwrap().as_primitive::<Int64Type>();
    assert_eq!(until.values(), &[29_000, 16_000]);
    let origins: Vec<(i64, i64)> = published.rows.iter().map(|row| (row.offset, row.event_time)).collect();
    assert_eq!(origins, [(3, 20_000), (1, 6000)]);
    group.close_epoch(2, &mut out);
    assert_eq!(out.ports[1].len(), 1, "nothing changed since");

    let offline = SUMS.replace("\"from\"", "\"online\": false, \"from\"");
    let mut group = compile(&offline, &[]);
    let mut out = Outputs::new(1);
    group.process(0, batch(&steps, 0), &mut out);
    group.close_epoch(1, &mut out);
    assert!(out.ports[0].is_empty());
}

#[test]
fn keys_without_events_are_forgotten() {
    let mut group = compile(SUMS, &[]);
    let mut out = Outputs::new(1);
    let day = 86_400_000;
    group.process(0, batch(&[step("a", 0, 1.0), step("b", day, 1.0)], 0), &mut out);
    assert_eq!(group.state_size().0, 2);
    group.advance(day, &mut out);
    assert_eq!(group.state_size().0, 2, "keys to publish stay");
    group.close_epoch(1, &mut out);
    group.advance(day + 1, &mut out);
    assert_eq!(group.state_size().0, 1);
    assert!(group.state_size().1 > 100);
    group.advance(i64::MAX, &mut out);
    assert_eq!(group.state_size().0, 1, "the end of the input is not a time");
}

#[test]
fn memory_is_bounded_by_the_windows_behind_the_watermark() {
    for tiles in ["", "\"tiles\": 10,"] {
        let mut group = compile(&SUMS.replace("\"from\"", &format!("{tiles} \"from\"")), &[]);
        let mut out = Outputs::new(1);
        let mut sizes = Vec::new();
        for round in 0..40 {
            let steps: Vec<Step> = (0..100).map(|n| step("a", (round * 100 + n) * 3600, 1.0)).collect();
            group.process(0, batch(&steps, 0), &mut out);
            group.advance(round * 360_000, &mut out);
            sizes.push(group.state_size().1);
        }
        assert!(sizes[39] <= sizes[20], "{sizes:?}");
    }
}

#[test]
fn state_of_another_definition_is_refused() {
    let mut group = compile(SUMS, &[]);
    group.process(0, batch(&[step("a", 0, 1.0)], 0), &mut Outputs::new(1));
    let mut saved = Vec::new();
    group.save_changes(usize::MAX, &mut |key_group, bytes| saved.push((key_group, bytes)));
    let other = [
        SUMS.replace(", \"1h\"", ""),
        SUMS.replace("\"from\"", "\"tiles\": 10, \"from\""),
        r#"{ "from": "s", "key": ["card"], "as_of": { "c": { "column": "city", "max_age": "1h" } } }"#.into(),
    ];
    for json in other {
        let (key_group, bytes) = &saved[0];
        let refused = compile(&json, &[]).load(*key_group, bytes);
        assert!(matches!(refused, Err(StateError::Corrupt { .. })), "{json}: {refused:?}");
    }
}

/// Every value passes through a window of a hundred; the sums are as good as new, even after a value that drowned them.
#[test]
fn sums_do_not_drift_and_deviations_survive_a_large_offset() {
    let json = r#"{ "from": "s", "key": ["card"],
        "aggregates": [{ "of": "amount", "ops": ["sum", "stddev"], "windows": ["100ms"] }] }"#;
    for tiled in [false, true] {
        let json = if tiled { json.replace("\"from\"", "\"tiles\": 20, \"from\"") } else { json.to_string() };
        let mut group = compile(&json, &[reader("v", true, false)]);
        // 5 ms apart, so that both kinds of window cover the same twenty rows.
        let noise = |n: i64| ((n * 7919) % 1000) as f64 / 1000.0;
        let value = |n: i64| if n % 5000 == 4321 { 1e60 } else { 1e9 + noise(n) };
        let steps: Vec<Step> = (0..20_000).map(|n| step("a", n * 5, value(n))).collect();
        let mut out = Outputs::new(2);
        group.process(1, batch(&steps, 0), &mut out);
        let (sums, deviations) = (feature(&out, 0, "amount_sum_100ms"), feature(&out, 0, "amount_stddev_100ms"));
        for n in (19..20_000).filter(|n| n % 5000 < 4321 || n % 5000 > 4341) {
            let window: Vec<f64> = (n as i64 - 19..=n as i64).map(noise).collect();
            let sum = window.iter().sum::<f64>();
            assert!((sums[n].unwrap() - 20e9 - sum).abs() <= 4e-6, "sum at {n}: {:?}", sums[n]);
            let mean = sum / 20.0;
            let deviation = (window.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / 20.0).sqrt();
            // The values themselves are rounded to 1e-7 at this size.
            assert!((deviations[n].unwrap() - deviation).abs() <= 1e-6, "deviation at {n}: {:?}", deviations[n]);
        }
    }
}
