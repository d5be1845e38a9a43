//! The feature group against a reference that keeps every row and recomputes each answer by scanning all of them.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Float64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Float64Type, Int64Type, Schema, SchemaRef};
use proptest::prelude::*;

use super::{FeatureGroup, GroupConfig, Reader, Shape};
use crate::{Batch, Operator, Outputs, Row};

mod carry;
mod contract;
mod golden;
mod properties;
mod reference;

/// A row of the test's streams, which all have one schema, and the port it comes on.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    port: usize,
    key: &'static str,
    time: i64,
    amount: Option<f64>,
    flag: Option<bool>,
    city: Option<&'static str>,
}

fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("card", DataType::Utf8, true),
        Field::new("amount", DataType::Float64, true),
        Field::new("flag", DataType::Boolean, true),
        Field::new("city", DataType::Utf8, true),
    ]))
}

/// A batch of steps; `first` is the offset of the first of them.
fn batch(steps: &[Step], first: usize) -> Batch {
    let columns: Vec<ArrayRef> = vec![
        Arc::new(steps.iter().map(|step| Some(step.key)).collect::<StringArray>()),
        Arc::new(steps.iter().map(|step| step.amount).collect::<Float64Array>()),
        Arc::new(steps.iter().map(|step| step.flag).collect::<BooleanArray>()),
        Arc::new(steps.iter().map(|step| step.city).collect::<StringArray>()),
    ];
    let row = |(n, step): (usize, &Step)| Row {
        source: step.port as u16,
        partition: 0,
        offset: (first + n) as i64,
        event_time: step.time,
        arrived_micros: 0,
    };
    let records = RecordBatch::try_new(schema(), columns).unwrap();
    Batch::new(records, steps.iter().enumerate().map(row).collect())
}

fn config(json: &str) -> GroupConfig {
    serde_json::from_str(json).unwrap()
}

fn reader(name: &str, feeds: bool, exclude_self: bool) -> Reader {
    Reader { name: name.into(), spine: schema(), on: vec![], exclude_self, feeds }
}

/// All functions over some windows, two measures, a condition, a lookup. Windows in milliseconds.
fn everything(windows: &[i64], tiles: Option<u32>) -> GroupConfig {
    let windows: Vec<String> = windows.iter().map(|window| format!("\"{window}ms\"")).collect();
    let windows = windows.join(", ");
    let tiles = tiles.map_or(String::new(), |tiles| format!("\"tiles\": {tiles},"));
    config(&format!(
        r#"{{ "from": "payments", "key": ["card"], {tiles}
            "as_of": {{ "city_now": {{ "column": "city", "max_age": "700ms" }} }},
            "aggregates": [
              {{ "ops": ["count", "time_since_last"], "windows": [{windows}] }},
              {{ "of": "amount", "ops": ["count", "sum", "mean", "min", "max", "range", "stddev", "last", "time_since_last"],
                 "windows": [{windows}] }},
              {{ "of": "flag", "where": "amount > 0", "as": "good", "ops": ["count", "mean", "last"],
                 "windows": [{windows}] }} ] }}"#
    ))
}

/// An answer: the offset of the row, and its features as text or number; `None` is null.
type Answer = (i64, Vec<(String, Option<f64>)>, Option<String>);

/// The answers in the rows of an output port.
fn answers(batches: &[Batch], group: &str) -> Vec<Answer> {
    let mut answers = Vec::new();
    for batch in batches {
        for row in 0..batch.len() {
            let mut numbers = Vec::new();
            let mut text = None;
            for (field, column) in batch.records.schema().fields().iter().zip(batch.records.columns()) {
                let Some(name) = field.name().strip_prefix(&format!("{group}.")) else { continue };
                let number = match field.data_type() {
                    DataType::Float64 => column.as_primitive::<Float64Type>().value(row),
                    DataType::Int64 => column.as_primitive::<Int64Type>().value(row) as f64,
                    _ => {
                        text = column.is_valid(row).then(|| column.as_string::<i32>().value(row).to_string());
                        continue;
                    }
                };
                numbers.push((name.to_string(), column.is_valid(row).then_some(number)));
            }
            answers.push((batch.rows[row].offset, numbers, text));
        }
    }
    answers
}

/// Rows on ports `ports`; times wander forward by about `pace` a row and back by up to `jitter`.
fn steps(ports: Vec<usize>, pace: i64, jitter: i64) -> impl Strategy<Value = Vec<Step>> {
    let step = (
        prop::sample::select(ports),
        prop::sample::select(vec!["a", "b", "c|d"]),
        0..jitter.max(1),
        prop::option::weighted(0.9, -1000i64..1000),
        prop::option::weighted(0.8, any::<bool>()),
        prop::option::weighted(0.5, prop::sample::select(vec!["Oslo", "Rome", "Łódź"])),
    );
    prop::collection::vec(step, 1..150).prop_map(move |steps| {
        let step = |(n, (port, key, back, cents, flag, city)): (usize, (_, _, i64, Option<i64>, _, _))| {
            let amount = cents.map(|cents| cents as f64 / 100.0);
            Step { port, key, time: n as i64 * pace + back, amount, flag, city }
        };
        steps.into_iter().enumerate().map(step).collect()
    })
}
