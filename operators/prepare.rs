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
use crate::expressions::Expression;
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

    /// The columns of its output.
    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn prepare(&self, batch: Batch, out: &mut Outputs) -> Option<Batch> {
        let mut batch = batch;
        if let Some(filter) = &self.filter {
            batch = self.filter(filter, batch, out)?;
        }
        for check in &self.checks {
            batch = self.check(check, batch, out)?;
        }
        for (expression, schema) in &self.derive {
            let evaluated = expression.evaluate_each(&batch.records);
            let mut columns = batch.records.columns().to_vec();
            columns.push(evaluated.values);
            let records = arrow::array::RecordBatch::try_new(schema.clone(), columns);
            batch = batch.with_records(records.expect("the expression was typed over these columns"));
            if !evaluated.failed.is_empty() {
                batch = self.reject(batch, Reason::ExpressionFailed, evaluated.failed, out)?;
            }
        }
        if let Some(select) = &self.select {
            let records = batch.records.project(select).expect("the indices are columns of the schema");
            batch = batch.with_records(records);
        }
        Some(batch)
    }

    fn filter(&self, filter: &Expression, batch: Batch, out: &mut Outputs) -> Option<Batch> {
        let evaluated = filter.evaluate_each(&batch.records);
        let mut batch = batch;
        let mut values = evaluated.values;
        if !evaluated.failed.is_empty() {
            let failed: Vec<usize> = evaluated.failed.iter().map(|(row, _)| *row).collect();
            let others: Vec<u32> = others(batch.len(), &failed);
            let indices = arrow::array::UInt32Array::from(others);
            values = arrow::compute::take(&values, &indices, None).expect("the indices are rows of this batch");
            batch = self.reject(batch, Reason::ExpressionFailed, evaluated.failed, out)?;
        }
        let passes = values.as_boolean();
        if passes.true_count() == batch.len() {
            return Some(batch);
        }
        out.filtered += (batch.len() - passes.true_count()) as u64;
        rows(&batch, passes)
    }

    fn check(&self, check: &Expression, batch: Batch, out: &mut Outputs) -> Option<Batch> {
        let evaluated = check.evaluate_each(&batch.records);
        let passes = evaluated.values.as_boolean();
        if passes.true_count() == batch.len() {
            return Some(batch);
        }
        for row in (0..batch.len()).filter(|row| passes.is_null(*row) || !passes.value(*row)) {
            let failure = evaluated.failed.iter().find(|(failed, _)| *failed == row);
            let (reason, detail) = match failure {
                Some((_, why)) => (Reason::ExpressionFailed, format!("`{}` failed: {why}", check.sql())),
                None => (Reason::CheckFailed, format!("`{}` is not true", check.sql())),
            };
            out.rejects.push(self.rejected(&batch, row, reason, detail));
        }
        rows(&batch, passes)
    }

    /// Rejects some rows; gives the others.
    fn reject(&self, batch: Batch, reason: Reason, failed: Vec<(usize, String)>, out: &mut Outputs) -> Option<Batch> {
        let failing: Vec<usize> = failed.iter().map(|(row, _)| *row).collect();
        for (row, why) in failed {
            out.rejects.push(self.rejected(&batch, row, reason, why));
        }
        let others = others(batch.len(), &failing);
        let batch = batch.take(&others).expect("the indices are rows of this batch");
        (!batch.is_empty()).then_some(batch)
    }

    fn rejected(&self, batch: &Batch, row: usize, reason: Reason, detail: String) -> Reject {
        let payload = batch.raw.as_ref().map(|raw| raw.value(row).to_vec()).unwrap_or_default();
        Reject { stage: self.stage.clone(), reason, detail, payload, row: batch.rows[row] }
    }
}

/// The value, or nothing and one error more.
fn keep<T>(
    result: Result<T, crate::expressions::ExpressionError>,
    path: &str,
    errors: &mut Vec<ConfigError>,
) -> Option<T> {
    result.map_err(|error| errors.push(error.under(path))).ok()
}

/// The rows for which `passes` is true; `None` when there is none.
fn rows(batch: &Batch, passes: &BooleanArray) -> Option<Batch> {
    let indices = (0..batch.len()).filter(|row| passes.is_valid(*row) && passes.value(*row));
    let indices: Vec<u32> = indices.map(|row| row as u32).collect();
    let batch = batch.take(&indices).expect("the indices are rows of this batch");
    (!batch.is_empty()).then_some(batch)
}

/// All rows but `some`, which stand in order.
fn others(rows: usize, some: &[usize]) -> Vec<u32> {
    (0..rows as u32).filter(|row| some.binary_search(&(*row as usize)).is_err()).collect()
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
    fn all_errors_are_told_by_path() {
        let (checks, derive) = (vec!["n".to_string()], map(&[("n", "1"), ("x", "nn + 1")]));
        let select = vec!["tt".to_string()];
        let config = PrepareConfig { filter: Some("n >"), checks: &checks, derive: &derive, select: &select };
        let errors = Prepare::compile("p", &config, &input()).expect_err("everything is wrong");
        let paths: Vec<&str> = errors.iter().map(|error| error.path.as_str()).collect();
        assert_eq!(paths, ["where", "checks[0]", "derive.n", "derive.x", "select[0]"]);
    }
}
