//! Nanoseconds a record in the pure operators, at the batch sizes of an idle and of a loaded stream.
//!
//! `cargo bench -p millstream-operators` measures; without `--bench` every case runs once, which shows that it still works.
//! Each line gives the median and the least of several rounds, because other work on the machine only ever adds time, and
//! a checksum of the results, so that nothing is optimised away.

use std::collections::HashMap;
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{Array, ArrayRef, AsArray, BinaryArray, Float64Array, RecordBatch, StringArray};
use arrow::array::{Int64Array, TimestampMillisecondArray};
use arrow::datatypes::{Float64Type, Int64Type};
use indexmap::IndexMap;
use millstream_operators::decode::{Decoder, DecoderConfig, FormatKind};
use millstream_operators::deduplicate::Deduplicate;
use millstream_operators::expressions::Expression;
use millstream_operators::operator::{Operator, Outputs};
use millstream_operators::schema::{self, ColumnType};
use millstream_operators::validate::{EventTimeRule, TimeUnit};
use millstream_operators::{Batch, Messages, Row};

const ROUNDS: usize = 9;
const ROUND: Duration = Duration::from_millis(60);

fn main() {
    let bench = Bench { measures: std::env::args().any(|argument| argument == "--bench") };
    println!("{:<44} {:>6} {:>12} {:>12}  checksum", "", "rows", "median ns", "least ns");
    for rows in [1, 64, 512] {
        decode(&bench, rows);
        arrow_json_alone(&bench, rows);
    }
    for rows in [1, 1_024] {
        expressions(&bench, rows);
    }
    for rows in [1, 64, 512] {
        deduplicate(&bench, rows);
        map_alone(&bench, rows);
    }
}

struct Bench {
    measures: bool,
}

impl Bench {
    /// Runs `work`, which handles `rows` records a call, and prints a line.
    fn run(&self, name: &str, rows: usize, mut work: impl FnMut() -> f64) {
        let checksum = work();
        let mut rounds = Vec::with_capacity(ROUNDS);
        for _ in 0..if self.measures { ROUNDS } else { 1 } {
            let (start, mut calls) = (Instant::now(), 0u32);
            while calls == 0 || (self.measures && start.elapsed() < ROUND) {
                (0..8).for_each(|_| _ = black_box(work()));
                calls += 8;
            }
            rounds.push(start.elapsed().as_nanos() as f64 / f64::from(calls) / rows as f64);
        }
        rounds.sort_by(f64::total_cmp);
        println!("{name:<44} {rows:>6} {:>12.1} {:>12.1}  {checksum}", rounds[rounds.len() / 2], rounds[0]);
    }
}

fn columns() -> IndexMap<String, ColumnType> {
    let column = |name: &str, declared| (name.to_string(), declared);
    IndexMap::from([
        column("id", ColumnType::INT64),
        column("card", ColumnType::STRING),
        column("merchant", ColumnType::STRING),
        column("amount", ColumnType::FLOAT64),
        column("channel", ColumnType::STRING),
        column("ts", ColumnType::TIMESTAMP),
    ])
}

/// Card payments of about 113 bytes.
fn payments(rows: usize) -> Messages {
    let payment = |n: usize| {
        format!(
            r#"{{"id": {n}, "card": "k{:06}", "merchant": "m{:04}", "amount": {}.{:02}, "channel": "web", "ts": {}}}"#,
            n * 7_919 % 1_000_000,
            n * 31 % 10_000,
            n * 13 % 500,
            n % 100,
            1_767_225_600_000i64 + n as i64,
        )
    };
    let row = |n: usize| Row { source: 0, partition: 0, offset: n as i64, event_time: 1, arrived_micros: 0 };
    let payloads: Vec<String> = (0..rows).map(payment).collect();
    let payloads = BinaryArray::from_iter_values(payloads.iter().map(String::as_bytes));
    Messages { payloads, rows: (0..rows).map(row).collect(), header: None }
}

fn decode(bench: &Bench, rows: usize) {
    let time = EventTimeRule { column: "ts".into(), unit: TimeUnit::Ms };
    let config = DecoderConfig {
        stage: "payments".into(),
        format: FormatKind::default(),
        columns: columns(),
        ranges: IndexMap::new(),
        checks: Vec::new(),
        event_time: Some(time),
        ahead_max_millis: Some(60_000),
        message_size_max: 1 << 20,
        keep_raw: true,
    };
    let (messages, mut rejects) = (payments(rows), Vec::new());
    let mut run = |name: &str, config: DecoderConfig| {
        let mut decoder = Decoder::new(config).expect("the columns are declared");
        bench.run(name, rows, || {
            let batch = decoder.decode(messages.clone(), Some(1_767_225_600_000), &mut rejects);
            let batch = batch.expect("every payment is good");
            sum(&batch.records) + batch.rows[rows - 1].event_time as f64
        });
    };
    run("decode json, 6 columns", config.clone());
    let mut two = config.clone();
    two.columns.retain(|name, _| name == "amount" || name == "ts");
    run("decode json, 2 of 6 columns", two);
    run("decode json, 6 columns and a check", DecoderConfig { checks: vec!["amount >= 0".into()], ..config });
    assert!(rejects.is_empty());
}

/// The library's reader of whole batches, which checks less, on the same messages.
fn arrow_json_alone(bench: &Bench, rows: usize) {
    let builder = arrow_json::ReaderBuilder::new(schema::arrow_schema(&columns())).with_batch_size(rows);
    let mut decoder = builder.build_decoder().expect("the columns are declared");
    let messages = payments(rows);
    bench.run("  arrow-json alone, 6 columns", rows, || {
        for payload in messages.payloads.iter().flatten() {
            decoder.decode(payload).expect("every payment is good");
        }
        sum(&decoder.flush().expect("every payment is good").expect("there are payments"))
    });
}

fn expressions(bench: &Bench, rows: usize) {
    let numbers =
        |factor: f64| Arc::new(Float64Array::from_iter_values((0..rows).map(|n| factor * n as f64))) as ArrayRef;
    let times =
        TimestampMillisecondArray::from_iter_values((0..rows as i64).map(|n| 1_767_225_600_000 + n * 1_000_000));
    let records = RecordBatch::try_from_iter([
        ("amount", numbers(0.5)),
        ("card.mean_24h", numbers(0.25)),
        ("country", Arc::new(StringArray::from_iter_values((0..rows).map(|n| ["DE", "FR", "IT"][n % 3]))) as ArrayRef),
        ("ts", Arc::new(times.with_timezone("UTC")) as ArrayRef),
        ("id", Arc::new(Int64Array::from_iter_values(0..rows as i64)) as ArrayRef),
    ])
    .expect("columns of one length");
    for sql in [
        "amount",
        "amount / nullif(card.mean_24h, 0)",
        "amount > 0 and country in ('DE', 'FR')",
        "ln(1 + amount) * 2",
        "extract(hour from ts)",
        "case when country = 'DE' then id else 0 end",
    ] {
        let expression = Expression::compile(sql, &records.schema()).expect("the expression is good");
        bench.run(sql, rows, || {
            let values = expression.evaluate(&records).expect("no row fails");
            column_sum(&values)
        });
    }
}

/// Cards of the events that may be sent twice.
const CARDS: usize = 1_000;
/// How long they may be apart: so many of them are remembered, for one happens a millisecond.
const WITHIN: i64 = 100_000;

/// Events from the number `first` on; every twentieth is one that has been there.
fn events(first: usize, rows: usize) -> Batch {
    let ids = || (first..first + rows).map(|n| if n % 20 == 19 { n - 15 } else { n });
    let cards = StringArray::from_iter_values(ids().map(|id| format!("k{:06}", id * 7_919 % CARDS)));
    let ids = Int64Array::from_iter_values(ids().map(|id| id as i64));
    let columns = [("card", Arc::new(cards) as ArrayRef), ("id", Arc::new(ids) as ArrayRef)];
    let row = |n: usize| Row { source: 0, partition: 0, offset: n as i64, event_time: n as i64, arrived_micros: 0 };
    let records = RecordBatch::try_from_iter(columns).expect("columns of one length");
    Batch::new(records, (first..first + rows).map(row).collect())
}

/// With time that goes on, and what has changed given to a checkpoint every 500 events: 50 ms at 10,000 a second.
fn deduplicate(bench: &Bench, rows: usize) {
    let mut operator = Deduplicate::new("once", vec![0], vec![1], WITHIN);
    let (mut next, mut saved) = (0, 0);
    bench.run("deduplicate by id, of a card", rows, || {
        let mut out = Outputs::new(1);
        operator.process(0, events(next, rows), &mut out);
        next += rows;
        operator.advance(next as i64, &mut out);
        if next - saved >= 500 {
            saved = next;
            while operator.save_changes(1 << 16, &mut |_, bytes| _ = black_box(bytes)) {}
        }
        out.duplicates as f64
    });
}

/// A map that forgets nothing and is in no checkpoint, on the same events.
fn map_alone(bench: &Bench, rows: usize) {
    let (mut seen, mut next) = (HashMap::<(String, i64), i64>::new(), 0);
    bench.run("  a map of (card, id) alone", rows, || {
        let batch = events(next, rows);
        next += rows;
        let cards = batch.records.column(0).as_string::<i32>();
        let ids = batch.records.column(1).as_primitive::<Int64Type>();
        let mut before = |at: usize| seen.insert((cards.value(at).to_string(), ids.value(at)), next as i64).is_some();
        let twice: Vec<u32> = (0..rows).filter(|at| before(*at)).map(|at| at as u32).collect();
        black_box(batch.without(&twice));
        twice.len() as f64
    });
}

fn sum(records: &RecordBatch) -> f64 {
    records.columns().iter().map(column_sum).sum()
}

fn column_sum(column: &ArrayRef) -> f64 {
    let last = column.len() - 1;
    if let Some(floats) = column.as_primitive_opt::<Float64Type>() {
        floats.value(last)
    } else if let Some(integers) = column.as_primitive_opt::<Int64Type>() {
        integers.value(last) as f64
    } else {
        column.len() as f64
    }
}
