//! Answers of others: River's rolling statistics, and the exact integer arithmetic of a card-payments workload.

use std::collections::HashMap;

use super::*;

/// A group fed by its one reader.
fn fed(config: &GroupConfig, schema: &SchemaRef) -> FeatureGroup {
    let reader = Reader { name: "v".into(), spine: schema.clone(), on: vec![], exclude_self: false, feeds: true };
    FeatureGroup::compile("g", config, schema, &[reader]).unwrap()
}

fn rows(times: &[i64]) -> Vec<Row> {
    let row = |(offset, time): (usize, &i64)| Row {
        source: 0,
        partition: 0,
        offset: offset as i64,
        event_time: *time,
        arrived_micros: 0,
    };
    times.iter().enumerate().map(row).collect()
}

fn column(batch: &Batch, name: &str) -> Vec<f64> {
    let column = batch.records.column_by_name(name).unwrap_or_else(|| panic!("no column {name}"));
    let column = arrow::compute::cast(column, &DataType::Float64).unwrap();
    column.as_primitive::<Float64Type>().values().to_vec()
}

fn check_close(what: &str, row: usize, value: f64, expected: f64) {
    let close = (value - expected).abs() <= 1e-9 * expected.abs().max(1e-6);
    assert!(close, "{what} of row {row} is {value} instead of {expected}");
}

/// River 0.26.1, `utils.TimeRolling` over windows `(t - w, t]`.
#[test]
fn rolling_statistics_are_rivers() {
    let text = include_str!("../../../tests/golden/river_time_rolling.csv");
    let lines: Vec<Vec<f64>> =
        text.lines().skip(1).map(|line| line.split(',').map(|number| number.parse().unwrap()).collect()).collect();
    assert_eq!(lines.len(), 400);
    let schema = Arc::new(Schema::new(vec![
        Field::new("key", DataType::Utf8, false),
        Field::new("x", DataType::Float64, false),
    ]));
    let config = config(
        r#"{ "from": "s", "key": ["key"], "aggregates": [
            { "of": "x", "ops": ["mean"], "windows": ["60s"] },
            { "of": "x", "ops": ["count", "sum", "stddev"], "windows": ["300s"] } ] }"#,
    );
    let times: Vec<i64> = lines.iter().map(|line| line[0] as i64 * 1000).collect();
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from(vec!["one"; 400])),
        Arc::new(lines.iter().map(|line| Some(line[1])).collect::<Float64Array>()),
    ];
    let mut out = Outputs::new(2);
    let batch = Batch::new(RecordBatch::try_new(schema.clone(), columns).unwrap(), rows(&times));
    fed(&config, &schema).process(1, batch, &mut out);
    let answers = &out.ports[0][0];
    let [mean, sum] = ["g.x_mean_1m", "g.x_sum_5m"].map(|name| column(answers, name));
    let [count, stddev] = ["g.x_count_5m", "g.x_stddev_5m"].map(|name| column(answers, name));
    for (row, line) in lines.iter().enumerate() {
        check_close("mean", row, mean[row], line[2]);
        check_close("sum", row, sum[row], line[3]);
        // River's variance is the sample's and 0 for one value.
        let n = count[row];
        check_close("variance", row, if n > 1.0 { stddev[row].powi(2) * n / (n - 1.0) } else { 0.0 }, line[4]);
    }
}

/// A payment: card, cents, event time. A generator with splitmix64's finalizer.
fn payment(number: u64, cards: u64, pace: i64) -> (String, i64, i64) {
    let mix = |mut z: u64| {
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    };
    let hash = mix(42u64.wrapping_add((number + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15)));
    let second = mix(hash);
    let cents = 100 + ((second >> 20) & 0xFFFF) * ((second >> 40) & 0xFFFF) / 8_590;
    let time = 1_767_225_600_000 + (number + (hash & 1)) as i64 * pace;
    (format!("k{:06}", (hash >> 20) % cards), cents as i64, time)
}

/// Twenty features over tiles of w/60, against sums in whole cents, which are exact. `pace` is milliseconds an event.
fn check_payments(events: u64, cards: u64, pace: i64) {
    const WINDOWS: [(&str, i64); 4] = [("1m", 60_000), ("10m", 600_000), ("1h", 3_600_000), ("24h", 86_400_000)];
    let schema = Arc::new(Schema::new(vec![
        Field::new("card", DataType::Utf8, false),
        Field::new("amount", DataType::Float64, false),
    ]));
    let config = config(
        r#"{ "from": "s", "key": ["card"], "tiles": 60, "aggregates": [
            { "of": "amount", "ops": ["count", "sum", "mean", "max", "stddev"], "windows": ["1m", "10m", "1h", "24h"] } ] }"#,
    );
    let mut group = fed(&config, &schema);
    let payments: Vec<(String, i64, i64)> = (0..events).map(|number| payment(number, cards, pace)).collect();
    let mut past: HashMap<&str, Vec<(i64, i64)>> = HashMap::new();
    for batch in payments.chunks(257) {
        let columns: Vec<ArrayRef> = vec![
            Arc::new(batch.iter().map(|(card, ..)| Some(card)).collect::<StringArray>()),
            Arc::new(batch.iter().map(|(_, cents, _)| Some(*cents as f64 / 100.0)).collect::<Float64Array>()),
        ];
        let times: Vec<i64> = batch.iter().map(|(.., time)| *time).collect();
        let mut out = Outputs::new(2);
        let records = RecordBatch::try_new(schema.clone(), columns).unwrap();
        group.process(1, Batch::new(records, rows(&times)), &mut out);
        group.advance(times[0] - 60_000, &mut out);
        let answers = &out.ports[0][0];
        let functions = ["count", "sum", "mean", "max", "stddev"];
        let columns =
            WINDOWS.map(|(name, _)| functions.map(|function| column(answers, &format!("g.amount_{function}_{name}"))));
        for (row, (card, cents, time)) in batch.iter().enumerate() {
            let card = past.entry(card).or_default();
            card.push((*time, *cents));
            for ((name, length), columns) in WINDOWS.iter().zip(&columns) {
                let tile = |time: i64| time / (length / 60);
                let covered = card.iter().rev().take_while(|(other, _)| tile(*other) > tile(*time) - 60);
                let expected = in_cents(covered.map(|(_, cents)| *cents));
                for (column, expected) in columns.iter().zip(expected) {
                    check_close(name, row, column[row], expected);
                }
            }
        }
    }
}

/// Count, sum, mean, largest and standard deviation of amounts in cents, from whole numbers.
fn in_cents(cents: impl Iterator<Item = i64>) -> [f64; 5] {
    let (mut n, mut sum, mut squares, mut max) = (0, 0, 0, 0);
    for cents in cents {
        (n, sum, squares, max) = (n + 1, sum + cents, squares + cents * cents, max.max(cents));
    }
    let deviation = ((n * squares - sum * sum) as f64).sqrt() / n as f64;
    [n as f64, sum as f64 / 100.0, sum as f64 / n as f64 / 100.0, max as f64 / 100.0, deviation / 100.0]
}

#[test]
fn payments_at_a_thousand_a_second() {
    check_payments(12_000, 300, 1);
}

/// Sixty hours: every window fills and moves on.
#[test]
fn payments_over_days() {
    check_payments(24_000, 40, 9_000);
}
