//! Row-wise preparation: a filter, checks, new columns, a choice of columns.
//!
//! ```text
//! rows ─ where ─▶ checks ─▶ derive ─▶ select ─▶ rows
//!          │         └──────────┴─ rejects (the row that failed, not its neighbours)
//!          └─ filtered (counted)
//! ```
//!
//! The same operator derives a vector's columns.

use std::sync::Arc;

use arrow::array::{Array, AsArray, BooleanArray};
use arrow::datatypes::{Field, Schema, SchemaRef};
use indexmap::IndexMap;

use crate::batch::Batch;
use crate::error::ConfigError;
use crate::expressions::{Evaluated, Expression, ExpressionError};
use crate::operator::{Operator, Outputs};
use crate::reject::{Reason, Reject};

/// What a preparation does, in SQL.
#[derive(Debug, Clone, Copy)]
pub struct PrepareConfig<'a> {
    /// Rows for which this is not true are dropped and counted.
    pub filter: Option<&'a str>,
    /// Rows for which one of these is not true are rejected.
    pub checks: &'a [String],
    /// New columns, each over the columns before it.
    pub derive: &'a IndexMap<String, String>,
    /// The columns that go on, in this order; all when empty.
    pub select: &'a [String],
}

/// A compiled preparation.
#[derive(Debug, Clone)]
pub struct Prepare {
    stage: Arc<str>,
    filter: Option<Expression>,
    checks: Vec<Expression>,
    derive: Vec<(Expression, SchemaRef)>,
    select: Option<Vec<usize>>,
    schema: SchemaRef,
}

impl Prepare {
    /// Compiles `config` over the columns of `input`; `stage` is the node's name, for rejects.
    ///
    /// # Errors
    /// Everything that is wrong, by path: `where`, `checks[0]`, `derive.ratio`, `select[2]`.
    ///
    /// ```
    /// use std::sync::Arc;
    /// use arrow::datatypes::{DataType, Field, Schema};
    /// use indexmap::IndexMap;
    /// use millstream_operators::prepare::{Prepare, PrepareConfig};
    /// let input = Arc::new(Schema::new(vec![Field::new("amount", DataType::Float64, true)]));
    /// let derive = IndexMap::from([("half".to_string(), "amount / 2".to_string())]);
    /// let config = PrepareConfig { filter: Some("amount > 0"), checks: &[], derive: &derive, select: &[] };
    /// let prepare = Prepare::compile("halves", &config, &input)?;
    /// assert_eq!(prepare.schema().field(1).name(), "half");
    /// # Ok::<(), Vec<millstream_operators::error::ConfigError>>(())
    /// ```
    pub fn compile(stage: &str, config: &PrepareConfig<'_>, input: &SchemaRef) -> Result<Self, Vec<ConfigError>> {
        let mut errors = Vec::new();
        let filter = config.filter.and_then(|sql| keep(Expression::condition(sql, input), "where", &mut errors));
        let checks = config.checks.iter().enumerate();
        let checks: Vec<Expression> = checks
            .filter_map(|(i, sql)| keep(Expression::condition(sql, input), &format!("checks[{i}]"), &mut errors))
            .collect();
        let mut schema = input.clone();
        let mut derive = Vec::new();
        for (name, sql) in config.derive {
            let path = format!("derive.{name}");
            if schema.index_of(name).is_ok() {
                let message = format!("there is a column `{name}` already");
                errors
                    .push(ConfigError::new(&path, message).with_hint(Some("give the new column another name".into())));
                continue;
            }
            if let Some(expression) = keep(Expression::compile(sql, &schema), &path, &mut errors) {
                let mut fields: Vec<Arc<Field>> = schema.fields().iter().cloned().collect();
                fields.push(Arc::new(Field::new(name, expression.data_type().clone(), true)));
                schema = Arc::new(Schema::new(fields));
                derive.push((expression, schema.clone()));
            }
        }
        let mut select = Vec::new();
        for (i, name) in config.select.iter().enumerate() {
            match schema.index_of(name) {
                Ok(index) if select.contains(&index) => {
                    errors.push(ConfigError::new(format!("select[{i}]"), format!("column `{name}` stands twice")));
                }
                Ok(index) => select.push(index),
                Err(_) => {
                    let known = schema.fields().iter().map(|field| field.name().as_str());
                    errors.push(ConfigError::unknown(format!("select[{i}]"), "column", name, known));
                }
            }
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        let select = (!config.select.is_empty()).then_some(select);
        if let Some(select) = &select {
            schema = Arc::new(schema.project(select).expect("the indices were just looked up"));
        }
        Ok(Prepare { stage: stage.into(), filter, checks, derive, select, schema })
    }

    /// What decides which rows go on: the filter, then the checks.
    pub fn conditions(&self) -> impl Iterator<Item = &Expression> {
        self.filter.iter().chain(&self.checks)
    }

    /// The new columns, in order.
    pub fn derived(&self) -> impl Iterator<Item = (&str, &Expression)> {
        self.derive
            .iter()
            .filter_map(|(expression, schema)| Some((schema.fields().last()?.name().as_str(), expression)))
    }

    /// Where the columns that go on stand among the input's and the new ones; `None` if all do.
    pub fn selected(&self) -> Option<&[usize]> {
        self.select.as_deref()
    }

    /// The columns of its output.
    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn prepare(&self, mut batch: Batch, out: &mut Outputs) -> Option<Batch> {
        if let Some(filter) = &self.filter {
            batch = self.filter(filter, batch, out)?;
        }
        for check in &self.checks {
            batch = self.check(check, batch, out)?;
        }
        for (expression, schema) in &self.derive {
            let Evaluated { values, failed } = expression.evaluate_each(&batch.records);
            batch =
                batch.with_columns(schema.clone(), vec![values]).expect("the expression was typed over these columns");
            batch = self.reject(expression, batch, failed, out)?;
        }
        if let Some(select) = &self.select {
            let records = batch.records.project(select).expect("the indices are columns of the schema");
            batch = batch.with_records(records);
        }
        Some(batch)
    }

    /// Keeps the rows for which `filter` is true and counts the others.
    fn filter(&self, filter: &Expression, batch: Batch, out: &mut Outputs) -> Option<Batch> {
        let Evaluated { values, failed } = filter.evaluate_each(&batch.records);
        let passes = values.as_boolean();
        if passes.true_count() == batch.len() {
            return Some(batch);
        }
        self.rejects(filter, &batch, failed, out);
        // A row that failed is null, not false, and has been rejected.
        out.filtered += passes.false_count() as u64;
        batch.without(&not_true(passes))
    }

    /// Keeps the rows for which `check` is true and rejects the others.
    fn check(&self, check: &Expression, batch: Batch, out: &mut Outputs) -> Option<Batch> {
        let Evaluated { values, failed } = check.evaluate_each(&batch.records);
        let passes = values.as_boolean();
        if passes.true_count() == batch.len() {
            return Some(batch);
        }
        self.rejects(check, &batch, failed, out);
        for row in (0..batch.len()).filter(|row| passes.is_valid(*row) && !passes.value(*row)) {
            let detail = format!("`{}` is not true", check.sql());
            out.rejects.push(Reject::of_row(&self.stage, Reason::CheckFailed, detail, &batch, row));
        }
        batch.without(&not_true(passes))
    }

    /// Rejects the rows on which `expression` failed; gives the others.
    fn reject(
        &self,
        expression: &Expression,
        batch: Batch,
        failed: Vec<(usize, String)>,
        out: &mut Outputs,
    ) -> Option<Batch> {
        if failed.is_empty() {
            return Some(batch);
        }
        let rows: Vec<u32> = failed.iter().map(|(row, _)| *row as u32).collect();
        self.rejects(expression, &batch, failed, out);
        batch.without(&rows)
    }

    fn rejects(&self, expression: &Expression, batch: &Batch, failed: Vec<(usize, String)>, out: &mut Outputs) {
        for (row, why) in failed {
            let detail = format!("`{}` fails: {why}", expression.sql());
            out.rejects.push(Reject::of_row(&self.stage, Reason::ExpressionFailed, detail, batch, row));
        }
    }
}

/// The value, or nothing and one error more.
fn keep<T>(result: Result<T, ExpressionError>, path: &str, errors: &mut Vec<ConfigError>) -> Option<T> {
    result.map_err(|error| errors.push(error.under(path))).ok()
}

/// The rows for which `passes` is false or null.
fn not_true(passes: &BooleanArray) -> Vec<u32> {
    (0..passes.len()).filter(|row| passes.is_null(*row) || !passes.value(*row)).map(|row| row as u32).collect()
}

impl Operator for Prepare {
    fn process(&mut self, _port: usize, batch: Batch, out: &mut Outputs) {
        if let Some(prepared) = self.prepare(batch, out) {
            out.give(0, prepared);
        }
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{Int64Array, RecordBatch, StringArray};
    use arrow::datatypes::DataType;
    use proptest::prelude::*;

    use super::*;
    use crate::batch::Row;

    fn input() -> SchemaRef {
        let fields = vec![Field::new("n", DataType::Int64, true), Field::new("t", DataType::Utf8, true)];
        Arc::new(Schema::new(fields))
    }

    fn batch(rows: &[(i64, &str)]) -> Batch {
        let n = Int64Array::from_iter_values(rows.iter().map(|(n, _)| *n));
        let t = StringArray::from_iter_values(rows.iter().map(|(_, t)| *t));
        let records = RecordBatch::try_new(input(), vec![Arc::new(n), Arc::new(t)]).expect("two columns");
        let origin = |i| Row { source: 0, partition: 0, offset: i, event_time: 0, arrived_micros: 0 };
        Batch::new(records, (0..rows.len() as i64).map(origin).collect())
    }

    fn map(entries: &[(&str, &str)]) -> IndexMap<String, String> {
        entries.iter().map(|(name, sql)| (name.to_string(), sql.to_string())).collect()
    }

    #[test]
    fn rows_are_filtered_checked_and_derived() {
        let (checks, derive) = (vec!["t <> 'bad'".to_string()], map(&[("twice", "n * 2"), ("again", "twice + 1")]));
        let select = vec!["again".to_string(), "t".to_string()];
        let config = PrepareConfig { filter: Some("n > 0"), checks: &checks, derive: &derive, select: &select };
        let mut prepare = Prepare::compile("p", &config, &input()).expect("it compiles");
        let mut out = Outputs::new(1);
        prepare.process(0, batch(&[(1, "a"), (-1, "b"), (2, "bad"), (3, "c")]), &mut out);
        assert_eq!((out.filtered, out.rejects.len(), out.rejects[0].row.offset), (1, 1, 2));
        let given = &out.ports[0][0];
        assert_eq!(given.records.schema().fields().len(), 2);
        let again = given.records.column(0).as_primitive::<arrow::datatypes::Int64Type>();
        assert_eq!(again.values(), &[3, 7]);
    }

    #[test]
    fn a_row_that_fails_does_not_take_its_neighbours_along() {
        let derive = map(&[("number", "cast(t as bigint)"), ("part", "10 / n")]);
        let config = PrepareConfig { filter: None, checks: &[], derive: &derive, select: &[] };
        let mut prepare = Prepare::compile("p", &config, &input()).expect("it compiles");
        let mut out = Outputs::new(1);
        prepare.process(0, batch(&[(1, "7"), (2, "seven"), (0, "1"), (5, "9")]), &mut out);
        let failed: Vec<i64> = out.rejects.iter().map(|reject| reject.row.offset).collect();
        assert_eq!(failed, [1, 2]);
        assert_eq!(out.ports[0][0].len(), 2);
    }

    #[test]
    fn what_fails_says_where_and_keeps_its_columns() {
        let (checks, derive) = (vec!["t <> 'bad'".to_string()], map(&[("part", "10 / n")]));
        let config = PrepareConfig { filter: Some("10 / n < 9"), checks: &checks, derive: &derive, select: &[] };
        let mut prepare = Prepare::compile("p", &config, &input()).expect("it compiles");
        let mut out = Outputs::new(1);
        prepare.process(0, batch(&[(0, "a"), (1, "b"), (2, "bad"), (3, "c")]), &mut out);
        let told: Vec<(Reason, &str)> = out.rejects.iter().map(|reject| (reject.reason, &*reject.detail)).collect();
        let fails = "`10 / n < 9` fails: divide by zero error";
        assert_eq!(told, [(Reason::ExpressionFailed, fails), (Reason::CheckFailed, "`t <> 'bad'` is not true")]);
        assert_eq!((out.filtered, out.ports[0][0].len()), (1, 1));
        assert_eq!(out.rejects[0].payload, br#"{"n":0,"t":"a"}"#);
    }

    proptest! {
        #[test]
        fn a_batch_is_prepared_as_each_row_alone(rows in prop::collection::vec((-3i64..4, "[0-9x]{0,2}"), 1..30)) {
            let (checks, derive) = (vec!["t <> 'x'".to_string()], map(&[("k", "cast(t as bigint)"), ("q", "k / n")]));
            let config = PrepareConfig { filter: Some("n <> 2"), checks: &checks, derive: &derive, select: &[] };
            let mut prepare = Prepare::compile("p", &config, &input()).expect("it compiles");
            let rows: Vec<(i64, &str)> = rows.iter().map(|(n, t)| (*n, t.as_str())).collect();
            let (mut together, mut alone) = (Outputs::new(1), Outputs::new(1));
            let whole = batch(&rows);
            prepare.process(0, whole.clone(), &mut together);
            (0..whole.len()).for_each(|row| prepare.process(0, whole.slice(row, 1), &mut alone));
            let given = |out: &Outputs| Batch::concat(&out.ports[0]).expect("one schema");
            let (a, b) = (given(&together), given(&alone));
            prop_assert_eq!(a.as_ref().map(|a| (&a.records, &a.rows)), b.as_ref().map(|b| (&b.records, &b.rows)));
            let rejected = |out: &Outputs| {
                let mut rejects: Vec<_> = out.rejects.iter().map(|reject| (reject.row.offset, reject.detail.clone())).collect();
                rejects.sort();
                rejects
            };
            prop_assert_eq!(rejected(&together), rejected(&alone));
            prop_assert_eq!(together.filtered, alone.filtered);
            let left = a.map_or(0, |a| a.len()) + together.rejects.len() + together.filtered as usize;
            prop_assert_eq!(left, rows.len());
        }
    }

    #[test]
    fn all_errors_are_told_by_path() {
        let (checks, derive) = (vec!["n".to_string()], map(&[("n", "1"), ("x", "nn + 1")]));
        let select = vec!["tt".to_string()];
        let config = PrepareConfig { filter: Some("n >"), checks: &checks, derive: &derive, select: &select };
        let errors = Prepare::compile("p", &config, &input()).expect_err("everything is wrong");
        let paths: Vec<&str> = errors.iter().map(|error| error.path.as_str()).collect();
        assert_eq!(paths, ["where", "checks[0]", "derive.n", "derive.x", "select[0]"]);
    }
}
