//! Validation of typed rows: event time, ranges, checks. What does not hold is a failure of that row alone.

use std::fmt;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{DataType, Float64Type, Int64Type, Schema, TimestampMillisecondType};
use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::batch::{EventTime, Row};
use crate::decode::{Failure, Failures};
use crate::error::ConfigError;
use crate::expressions::Expression;
use crate::reject::Reason;
use crate::schema::{ColumnType, Range, Values};

/// The unit of an integer time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum TimeUnit {
    /// Seconds since 1970.
    S,
    /// Milliseconds since 1970.
    #[default]
    Ms,
    /// Microseconds since 1970.
    Us,
    /// Nanoseconds since 1970.
    Ns,
}

impl TimeUnit {
    /// `time` in milliseconds, rounded down; `None` when that does not fit.
    fn millis(self, time: i64) -> Option<EventTime> {
        match self {
            TimeUnit::S => time.checked_mul(1_000),
            TimeUnit::Ms => Some(time),
            TimeUnit::Us => Some(time.div_euclid(1_000)),
            TimeUnit::Ns => Some(time.div_euclid(1_000_000)),
        }
    }
}

/// Where a row's event time stands.
#[derive(Debug, Clone, PartialEq)]
pub struct EventTimeRule {
    /// The column: a timestamp, or an int64 in `unit`.
    pub column: String,
    /// Unit of an int64 column.
    pub unit: TimeUnit,
}

/// What must hold of a row besides its types.
#[derive(Debug, Clone, Copy)]
pub struct Rules<'a> {
    /// Smallest and largest value, by column.
    pub ranges: &'a IndexMap<String, Range>,
    /// SQL conditions.
    pub checks: &'a [String],
    /// Where the event time stands; `None` when the rows have it already.
    pub event_time: Option<&'a EventTimeRule>,
    /// How far ahead of the clock an event time may be, in milliseconds, wherever it stands; `None` for any.
    pub ahead_max_millis: Option<i64>,
}

/// The last millisecond of the year 9999. Later times are errors, and would overflow arithmetic with windows.
const EVENT_TIME_MAX: EventTime = 253_402_300_799_999;

/// Compiled rules.
#[derive(Debug, Clone)]
pub struct Validator {
    event_time: Option<(usize, EventTimeRule)>,
    ahead_max_millis: Option<i64>,
    /// The numeric columns with their names; float64 columns must be finite, whether they have a range or not.
    numbers: Vec<(usize, String, Range)>,
    checks: Vec<Expression>,
}

impl Validator {
    /// Compiles `rules` over declared `columns`, whose Arrow schema is `schema`.
    ///
    /// # Errors
    /// Everything that is wrong, by path: `ranges.x`, `checks[0]`, `event_time.column`.
    pub fn new(
        columns: &IndexMap<String, ColumnType>,
        schema: &Schema,
        rules: &Rules<'_>,
    ) -> Result<Validator, Vec<ConfigError>> {
        let mut errors: Vec<ConfigError> = Vec::new();
        for (name, range) in rules.ranges {
            errors.extend(range_error(name, *range, columns));
        }
        let compiled = rules.checks.iter().enumerate().map(|(n, sql)| {
            Expression::condition(sql, schema).map_err(|error| errors.push(error.under(&format!("checks[{n}]")))).ok()
        });
        let checks = compiled.collect::<Vec<_>>().into_iter().flatten().collect();
        let event_time = rules.event_time.and_then(|rule| match columns.get_full(&rule.column) {
            Some((index, _, declared)) if matches!(declared.values, Values::Timestamp | Values::Int64) => {
                Some((index, rule.clone()))
            }
            Some((_, name, declared)) => {
                let message = format!("`{name}` is {declared}, not a time");
                let hint = "declare it as `timestamp`, or as `int64` with a `unit`";
                errors.push(ConfigError::new("event_time.column", message).with_hint(Some(hint.into())));
                None
            }
            None => {
                let known = columns.keys().map(String::as_str);
                errors.push(ConfigError::unknown("event_time.column", "column", &rule.column, known));
                None
            }
        });
        if !errors.is_empty() {
            return Err(errors);
        }
        let number = |(index, (name, declared)): (usize, (&String, &ColumnType))| {
            let range = rules.ranges.get(name).copied();
            let watched = declared.values == Values::Float64 || range.is_some();
            watched.then(|| (index, name.clone(), range.unwrap_or_default()))
        };
        let numbers = columns.iter().enumerate().filter_map(number).collect();
        Ok(Validator { event_time, ahead_max_millis: rules.ahead_max_millis, numbers, checks })
    }

    /// Holds the rows of `records` against the rules and sets their event times. Gives the rows that fail, in order,
    /// each with the first rule it breaks: event time, then numbers in the order of the columns, then checks.
    pub(crate) fn validate(&self, records: &RecordBatch, rows: &mut [Row], now: Option<EventTime>) -> Failures {
        let mut failures = Failures::new();
        let clock = now.zip(self.ahead_max_millis);
        match (&self.event_time, clock) {
            (Some((index, rule)), _) => event_times(records.column(*index), rule, rows, clock, &mut failures),
            (None, Some(clock)) => message_times(rows, clock, &mut failures),
            (None, None) => {}
        }
        for (index, name, range) in &self.numbers {
            numbers(records.column(*index), name, *range, &mut failures);
        }
        for check in &self.checks {
            run_check(check, records, &mut failures);
        }
        // The sort is stable, so the first rule broken stands first.
        failures.sort_by_key(|(row, _)| *row);
        failures.dedup_by_key(|(row, _)| *row);
        failures
    }
}

fn range_error(name: &str, range: Range, columns: &IndexMap<String, ColumnType>) -> Option<ConfigError> {
    let path = format!("ranges.{name}");
    let Some(declared) = columns.get(name) else {
        return Some(ConfigError::unknown(path, "column", name, columns.keys().map(String::as_str)));
    };
    if !matches!(declared.values, Values::Int64 | Values::Float64) {
        return Some(ConfigError::new(path, format!("`{name}` is {declared}; only numbers have a range")));
    }
    match (range.min, range.max) {
        (Some(min), Some(max)) if min > max => {
            Some(ConfigError::new(path, format!("no number is at least {min} and at most {max}")))
        }
        (None, None) => Some(ConfigError::new(path, "has neither `min` nor `max`")),
        _ if range.min.is_some_and(f64::is_nan) || range.max.is_some_and(f64::is_nan) => {
            Some(ConfigError::new(path, "NaN is not a bound"))
        }
        _ => None,
    }
}

/// The clock, and how far ahead of it an event may be, in milliseconds.
type Clock = (EventTime, i64);

/// The latest event time that is accepted.
fn latest((now, ahead): Clock) -> EventTime {
    now.saturating_add(ahead).min(EVENT_TIME_MAX)
}

/// Takes the event times of rows from their column.
fn event_times(
    column: &dyn Array,
    rule: &EventTimeRule,
    rows: &mut [Row],
    clock: Option<Clock>,
    failures: &mut Failures,
) {
    let latest = clock.map_or(EVENT_TIME_MAX, latest);
    let timestamps = column.as_primitive_opt::<TimestampMillisecondType>();
    let values = timestamps.map(|array| (array.values(), array.nulls()));
    let integers = column.as_primitive_opt::<Int64Type>().map(|array| (array.values(), array.nulls()));
    let Some((values, nulls)) = values.or(integers) else { return };
    let unit = if timestamps.is_some() { TimeUnit::Ms } else { rule.unit };
    for (index, row) in rows.iter_mut().enumerate() {
        let detail = if nulls.is_some_and(|nulls| nulls.is_null(index)) {
            format!("`{}` is null", rule.column)
        } else {
            match unit.millis(values[index]) {
                Some(time) if (1..=latest).contains(&time) => {
                    row.event_time = time;
                    continue;
                }
                time => wrong_time(rule, values[index], time, clock),
            }
        };
        failures.push((index, Failure::new(Reason::BadEventTime, detail)));
    }
}

/// Holds the event times that rows have from their messages against the clock.
fn message_times(rows: &[Row], clock: Clock, failures: &mut Failures) {
    let latest = latest(clock);
    for (index, row) in rows.iter().enumerate().filter(|(_, row)| row.event_time > latest) {
        let detail = ahead("the message's timestamp", row.event_time, row.event_time, clock);
        failures.push((index, Failure::new(Reason::BadEventTime, detail)));
    }
}

/// Says how far ahead of the clock a time is that stands as `value` in `name`.
fn ahead(name: &str, value: i64, time: EventTime, (now, ahead_max): Clock) -> String {
    let by = time.saturating_sub(now);
    format!("{name} is {value}, which is {by} ms ahead of the clock; at most {ahead_max} ms are allowed")
}

/// Says what is wrong with a time that stands in the column as `value` and is `time` in milliseconds, if it fits.
fn wrong_time(rule: &EventTimeRule, value: i64, time: Option<EventTime>, clock: Option<Clock>) -> String {
    let name = &rule.column;
    match (time, clock) {
        (Some(time), _) if time <= 0 => format!("`{name}` is {value}, which is not after 1970-01-01T00:00:00Z"),
        (Some(time), Some(clock)) if time <= EVENT_TIME_MAX => ahead(&format!("`{name}`"), value, time, clock),
        _ => format!("`{name}` is {value}, which is beyond the year 9999; is its unit right?"),
    }
}

fn numbers(column: &dyn Array, name: &str, range: Range, failures: &mut Failures) {
    let (min, max) = (range.min.unwrap_or(f64::NEG_INFINITY), range.max.unwrap_or(f64::INFINITY));
    let mut outside = |row: usize, value: &dyn fmt::Display, value_finite: bool| {
        if column.is_valid(row) {
            let detail = match (value_finite, range.min, range.max) {
                (false, _, _) => format!("`{name}` is {value}, not a finite number"),
                (_, Some(min), Some(max)) => format!("`{name}` is {value}, not between {min} and {max}"),
                (_, Some(min), None) => format!("`{name}` is {value}, less than {min}"),
                (_, _, max) => format!("`{name}` is {value}, more than {}", max.unwrap_or(f64::INFINITY)),
            };
            failures.push((row, Failure::new(Reason::OutOfRange, detail)));
        }
    };
    if let Some(floats) = column.as_primitive_opt::<Float64Type>() {
        for (row, value) in floats.values().iter().enumerate() {
            if !(value.is_finite() && *value >= min && *value <= max) {
                outside(row, value, value.is_finite());
            }
        }
    } else if let Some(integers) = column.as_primitive_opt::<Int64Type>() {
        // As integers: beyond 2^53 a float64 takes neighbours for one number.
        let (least, most) = (min.ceil() as i128, max.floor() as i128);
        for (row, value) in integers.values().iter().enumerate() {
            if !(least..=most).contains(&i128::from(*value)) {
                outside(row, value, true);
            }
        }
    }
}

fn run_check(check: &Expression, records: &RecordBatch, failures: &mut Failures) {
    debug_assert_eq!(check.data_type(), &DataType::Boolean);
    let evaluated = check.evaluate_each(records);
    let holds = evaluated.values.as_boolean();
    if holds.true_count() == records.num_rows() {
        return;
    }
    for (row, why) in evaluated.failed {
        let detail = format!("`{}` fails: {why}", check.sql());
        failures.push((row, Failure::new(Reason::ExpressionFailed, detail)));
    }
    // A row that failed is null, not false.
    for row in (0..holds.len()).filter(|row| holds.is_valid(*row) && !holds.value(*row)) {
        failures.push((row, Failure::new(Reason::CheckFailed, format!("`{}` is not true", check.sql()))));
    }
}
