//! The slow, obvious version: all rows are kept, every answer scans them.

use super::*;

/// Answers to the steps of reading ports, in their order. `feeds` says of a port whether its rows update.
pub struct Reference {
    pub windows: Vec<i64>,
    pub tiles: Option<u32>,
    /// The port whose rows update and read, and whether they read before they update.
    pub feeding: Option<(usize, bool)>,
}

impl Reference {
    /// The answers of the reads among `steps`, which are (offset, step) in the order of processing.
    pub fn answers(&self, steps: &[(usize, Step)]) -> Vec<Answer> {
        let mut updates: Vec<&Step> = Vec::new();
        let mut answers = Vec::new();
        for (offset, step) in steps {
            let feeding = self.feeding.filter(|(port, _)| *port == step.port);
            if feeding.is_some_and(|(_, exclude_self)| exclude_self) {
                answers.push(self.answer(*offset, step, &updates));
                updates.push(step);
            } else if feeding.is_some() || step.port == 0 {
                updates.push(step);
                if feeding.is_some() {
                    answers.push(self.answer(*offset, step, &updates));
                }
            } else {
                answers.push(self.answer(*offset, step, &updates));
            }
        }
        answers
    }

    fn covers(&self, window: i64, read: i64, time: i64) -> bool {
        match self.tiles {
            None => time > read - window && time <= read,
            Some(tiles) => {
                let length = window / i64::from(tiles);
                let (read, time) = (read.div_euclid(length), time.div_euclid(length));
                time > read - i64::from(tiles) && time <= read
            }
        }
    }

    fn answer(&self, offset: usize, read: &Step, updates: &[&Step]) -> Answer {
        // A stable sort: of equal times the one that came last is last.
        let mut rows: Vec<&Step> = updates.iter().copied().filter(|update| update.key == read.key).collect();
        rows.sort_by_key(|row| row.time);
        let mut numbers = Vec::new();
        let covered = |window: i64| rows.iter().filter(move |row| self.covers(window, read.time, row.time));
        for window in &self.windows {
            let all: Vec<(i64, f64)> = covered(*window).map(|row| (row.time, 1.0)).collect();
            numbers.extend(functions("", &["count", "time_since_last"], *window, read.time, &all));
        }
        for window in &self.windows {
            let amounts: Vec<(i64, f64)> = covered(*window).filter_map(|row| Some((row.time, row.amount?))).collect();
            let ops = ["count", "sum", "mean", "min", "max", "range", "stddev", "last", "time_since_last"];
            numbers.extend(functions("amount_", &ops, *window, read.time, &amounts));
        }
        for window in &self.windows {
            let good = covered(*window).filter(|row| row.amount.is_some_and(|amount| amount > 0.0));
            let good: Vec<(i64, f64)> =
                good.filter_map(|row| Some((row.time, f64::from(u8::from(row.flag?))))).collect();
            numbers.extend(functions("good_", &["count", "mean", "last"], *window, read.time, &good));
        }
        let cities = rows.iter().filter(|row| row.city.is_some() && row.time <= read.time);
        let city = cities.max_by_key(|row| row.time).filter(|row| read.time - row.time <= 700).and_then(|row| row.city);
        (offset as i64, numbers, city.map(String::from))
    }
}

/// The functions over (time, value) in the order of time, straight from their definitions.
fn functions(prefix: &str, ops: &[&str], window: i64, now: i64, values: &[(i64, f64)]) -> Vec<(String, Option<f64>)> {
    let n = values.len() as f64;
    let sum: f64 = values.iter().map(|(_, value)| value).sum();
    let mean = sum / n;
    let compute = |op: &str| match op {
        "count" => n,
        "sum" => sum,
        "mean" => mean,
        "min" => values.iter().map(|(_, value)| *value).fold(f64::INFINITY, f64::min),
        "max" => values.iter().map(|(_, value)| *value).fold(f64::NEG_INFINITY, f64::max),
        "range" => {
            let greatest = |differences: f64, (_, value): &(i64, f64)| {
                values.iter().map(|(_, other)| value - other).fold(differences, f64::max)
            };
            values.iter().fold(0.0, greatest)
        }
        "stddev" => (values.iter().map(|(_, value)| (value - mean).powi(2)).sum::<f64>() / n).sqrt(),
        "last" => values[values.len() - 1].1,
        "time_since_last" => (now - values[values.len() - 1].0).max(0) as f64 / 1000.0,
        _ => unreachable!("{op}"),
    };
    let value = |op: &str| (op == "count" || !values.is_empty()).then(|| compute(op));
    let window = crate::units::Millis(window);
    ops.iter().map(|op| (format!("{prefix}{op}_{window}"), value(op))).collect()
}

/// Holds answers against the reference's.
pub fn check(answers: &[Answer], expected: &[Answer]) {
    assert_eq!(answers.len(), expected.len());
    for (answer, expected) in answers.iter().zip(expected) {
        assert_eq!((answer.0, &answer.2), (expected.0, &expected.2));
        assert_eq!(answer.1.len(), expected.1.len());
        for ((name, value), (expected_name, wanted)) in answer.1.iter().zip(&expected.1) {
            assert_eq!(name, expected_name);
            let equal = match (value, wanted) {
                (Some(value), Some(wanted)) => (value - wanted).abs() <= 1e-9 * (1.0 + wanted.abs()),
                _ => value.is_none() && wanted.is_none(),
            };
            assert!(equal, "row {}: {name} is {value:?} instead of {wanted:?}", answer.0);
        }
    }
}
