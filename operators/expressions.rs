//! SQL scalar expressions over the columns of a batch: `amount / nullif(card.mean_24h, 0)`.
//!
//! An expression is parsed, typed, coerced and simplified once, when the topology is checked, and then evaluated on whole
//! batches. It sees one row at a time and nothing but that row: no aggregate, no window, no subquery, no clock and no
//! chance, so a replay gives what the live run gave.
//!
//! ```text
//! text ─ parse ─ names resolved ─ typed and simplified ─ Expression ─ evaluate(batch) ─▶ array
//!          └──────────┴───────────────────┴─▶ ExpressionError { message, hint }
//! ```
//!
//! Names are case-sensitive and exact: `Amount` is the column `Amount` and no other. A feature `mean_24h` of group `card`
//! is a column named `card.mean_24h` and is written so, or in double quotes.

use std::fmt;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, RecordBatch, RecordBatchOptions};
use arrow::compute;
use arrow::datatypes::{DataType, Schema, TimeUnit};
use datafusion_common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion_common::{DFSchema, DataFusionError};
use datafusion_expr::execution_props::ExecutionProps;
use datafusion_expr::physical_planning_context::PhysicalPlanningContext;
use datafusion_expr::simplify::SimplifyContext;
use datafusion_expr::{BinaryExpr, Expr, ExprSchemable, cast};
use datafusion_optimizer::simplify_expressions::ExprSimplifier;
use datafusion_physical_expr::{PhysicalExpr, create_physical_expr, utils::collect_columns};
use datafusion_sql::planner::{ParserOptions, PlannerContext, SqlToRel};

use crate::error::ConfigError;

mod functions;
mod names;

/// Why an expression does not compile, or what failed when it was evaluated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExpressionError {
    /// What is wrong: lower case, no full stop.
    pub message: String,
    /// What to write instead, when there is a good guess.
    pub hint: Option<String>,
}

impl ExpressionError {
    fn new(message: impl Into<String>) -> Self {
        ExpressionError { message: message.into(), hint: None }
    }

    /// The error of the topology's value at `path` that holds the expression.
    pub fn under(self, path: &str) -> ConfigError {
        ConfigError::new(path, self.message).with_hint(self.hint)
    }
}

impl fmt::Display for ExpressionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.hint {
            Some(hint) => write!(f, "{} ({hint})", self.message),
            None => f.write_str(&self.message),
        }
    }
}

impl std::error::Error for ExpressionError {}

/// A compiled expression. Cheap to clone; may be shared between threads.
///
/// ```
/// use std::sync::Arc;
/// use arrow::array::{ArrayRef, Float64Array, RecordBatch};
/// use arrow::datatypes::DataType;
/// use millstream_operators::expressions::Expression;
///
/// let amount: ArrayRef = Arc::new(Float64Array::from(vec![Some(8.0), None]));
/// let batch = RecordBatch::try_from_iter([("amount", amount)])?;
/// let half = Expression::compile("amount / 2", &batch.schema())?;
/// assert_eq!(half.data_type(), &DataType::Float64);
/// assert_eq!(*half.evaluate(&batch)?, Float64Array::from(vec![Some(4.0), None]));
///
/// let error = Expression::compile("amonut / 2", &batch.schema()).unwrap_err();
/// assert_eq!(error.to_string(), "there is no column `amonut` (did you mean `amount`?)");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct Expression {
    sql: Arc<str>,
    data_type: DataType,
    columns: Vec<String>,
    evaluator: Evaluator,
}

#[derive(Debug, Clone)]
enum Evaluator {
    /// The column at this index, as it is.
    Column(usize),
    Physical(Arc<dyn PhysicalExpr>),
}

/// What [`Expression::evaluate_each`] gives.
#[derive(Debug)]
pub struct Evaluated {
    /// One value for each row; null where the row failed.
    pub values: ArrayRef,
    /// The rows that failed, in order, and why.
    pub failed: Vec<(usize, String)>,
}

impl Expression {
    /// Compiles `sql` over the columns of `schema`.
    ///
    /// The type of the result is that of the column when the expression is a plain column, else one of the types a
    /// column can be declared as: whole numbers become int64, others float64, dates and times timestamp.
    ///
    /// # Errors
    /// If the text is not one SQL expression, names a column or function that is not there, does not fit the types, or
    /// asks for more than one row or for the clock.
    pub fn compile(sql: &str, schema: &Schema) -> Result<Expression, ExpressionError> {
        Self::build(sql, schema, |typed, schema| {
            let found = typed.get_type(schema).map_err(ExpressionError::from)?;
            if matches!(typed, Expr::Column(_)) {
                return Ok(typed);
            }
            let declared = declarable(&found).ok_or_else(|| no_value_type(sql, &found))?;
            Ok(if declared == found { typed } else { cast(typed, declared) })
        })
    }

    /// Compiles a condition: boolean, and false where `sql` is null.
    ///
    /// # Errors
    /// As [`compile`](Expression::compile), and if the expression is not boolean.
    pub fn condition(sql: &str, schema: &Schema) -> Result<Expression, ExpressionError> {
        Self::build(sql, schema, |typed, schema| match typed.get_type(schema).map_err(ExpressionError::from)? {
            DataType::Boolean => Ok(typed.is_true()),
            other => Err(ExpressionError {
                message: format!("`{sql}` is {}, not a condition", type_name(&other)),
                hint: Some("compare it with something, as in `amount > 0`".into()),
            }),
        })
    }

    fn build(
        sql: &str,
        schema: &Schema,
        finish: impl FnOnce(Expr, &DFSchema) -> Result<Expr, ExpressionError>,
    ) -> Result<Expression, ExpressionError> {
        let parsed = names::parse(sql, schema)?;
        let planned_schema = DFSchema::try_from(schema.clone())?;
        let options = ParserOptions { enable_ident_normalization: false, ..ParserOptions::default() };
        let planner = SqlToRel::new_with_options(functions::registry(), options);
        let logical = planner.sql_to_expr(parsed, &planned_schema, &mut PlannerContext::new())?;
        let simplifier =
            ExprSimplifier::new(SimplifyContext::builder().with_schema(Arc::new(planned_schema.clone())).build());
        comparable(&logical, &planned_schema)?;
        let coerced = simplifier.coerce(logical, &planned_schema)?;
        let logical = simplifier.simplify(finish(coerced, &planned_schema)?)?;
        let context = PhysicalPlanningContext::default();
        let physical = create_physical_expr(&logical, &planned_schema, &ExecutionProps::new(), &context)?;
        let data_type = physical.data_type(schema)?;
        let mut indices: Vec<usize> = collect_columns(&physical).iter().map(|column| column.index()).collect();
        indices.sort_unstable();
        let columns = indices.iter().map(|index| schema.field(*index).name().clone()).collect();
        let evaluator = match (&logical, indices.as_slice()) {
            (Expr::Column(_), [index]) => Evaluator::Column(*index),
            _ => Evaluator::Physical(physical),
        };
        let expression = Expression { sql: sql.into(), data_type, columns, evaluator };
        if expression.columns.is_empty() {
            // A constant fails on every row or on none.
            expression.evaluate(&one_row())?;
        }
        Ok(expression)
    }

    /// The type of the result.
    pub fn data_type(&self) -> &DataType {
        &self.data_type
    }

    /// The names of the columns it reads, in the order of the schema; a column that simplification has removed is not
    /// among them.
    pub fn columns(&self) -> &[String] {
        &self.columns
    }

    /// The text it was compiled from.
    pub fn sql(&self) -> &str {
        &self.sql
    }

    /// The values for the rows of `records`, one a row; a plain column is given without a copy.
    ///
    /// # Errors
    /// If a row fails: a whole number divided by zero, an overflow, a text that is no number. Other rows may be good:
    /// [`evaluate_each`](Expression::evaluate_each) tells them apart.
    pub fn evaluate(&self, records: &RecordBatch) -> Result<ArrayRef, ExpressionError> {
        match &self.evaluator {
            Evaluator::Column(index) => match records.columns().get(*index) {
                Some(column) if *column.data_type() == self.data_type => Ok(column.clone()),
                _ => Err(ExpressionError::new(format!("`{}` was compiled for other columns", self.sql))),
            },
            Evaluator::Physical(physical) => Ok(physical.evaluate(records)?.into_array(records.num_rows())?),
        }
    }

    /// The values for the rows of `records`, with the rows that fail told apart.
    ///
    /// A failing batch is halved until the failing rows stand alone, so the result does not depend on what else is in
    /// the batch, and one bad row among n costs about 2 log2 n evaluations.
    pub fn evaluate_each(&self, records: &RecordBatch) -> Evaluated {
        if let Ok(values) = self.evaluate(records) {
            return Evaluated { values, failed: Vec::new() };
        }
        let (mut parts, mut failed) = (Vec::new(), Vec::new());
        self.halve(records, 0, &mut parts, &mut failed);
        let parts: Vec<&dyn Array> = parts.iter().map(|part| &**part).collect();
        let values = compute::concat(&parts).unwrap_or_else(|error| {
            failed = (0..records.num_rows()).map(|row| (row, error.to_string())).collect();
            arrow::array::new_null_array(&self.data_type, records.num_rows())
        });
        Evaluated { values, failed }
    }

    fn halve(
        &self,
        records: &RecordBatch,
        offset: usize,
        parts: &mut Vec<ArrayRef>,
        failed: &mut Vec<(usize, String)>,
    ) {
        match (self.evaluate(records), records.num_rows()) {
            (Ok(values), _) => parts.push(values),
            (Err(error), 0 | 1) => {
                parts.push(arrow::array::new_null_array(&self.data_type, records.num_rows()));
                failed.push((offset, error.message));
            }
            (Err(_), rows) => {
                let half = rows / 2;
                self.halve(&records.slice(0, half), offset, parts, failed);
                self.halve(&records.slice(half, rows - half), offset + half, parts, failed);
            }
        }
    }
}

/// One row without columns.
fn one_row() -> RecordBatch {
    let options = RecordBatchOptions::new().with_row_count(Some(1));
    RecordBatch::try_new_with_options(Arc::new(Schema::empty()), Vec::new(), &options)
        .expect("a batch without columns has any number of rows")
}

/// Refuses to compare a text with a number: the planner would read every text as a number, and most are none. A text
/// written in the expression is read once, when it is compiled.
fn comparable(logical: &Expr, schema: &DFSchema) -> Result<(), ExpressionError> {
    let mut refused = None;
    logical.apply(|part| {
        if let Expr::BinaryExpr(BinaryExpr { left, op, right }) = part
            && (op.negate().is_some() || op.is_numerical_operators())
            && let (Ok(a), Ok(b)) = (left.get_type(schema), right.get_type(schema))
        {
            let text = |side: &Expr, found: &DataType| found.is_string() && !matches!(side, Expr::Literal(..));
            if text(left, &a) && (b.is_numeric() || b == DataType::Boolean)
                || text(right, &b) && (a.is_numeric() || a == DataType::Boolean)
            {
                refused = Some(ExpressionError {
                    message: format!("`{op}` stands between {} and {}", type_name(&a), type_name(&b)),
                    hint: Some("say which type is meant: `cast(... as double)` or `cast(... as varchar)`".into()),
                });
                return Ok(TreeNodeRecursion::Stop);
            }
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    refused.map_or(Ok(()), Err)
}

/// The declared type that holds every value of `found`; `None` when there is none.
fn declarable(found: &DataType) -> Option<DataType> {
    use DataType::*;
    Some(match found {
        Boolean => Boolean,
        Int8 | Int16 | Int32 | Int64 | UInt8 | UInt16 | UInt32 | UInt64 => Int64,
        Float16 | Float32 | Float64 | Decimal32(..) | Decimal64(..) | Decimal128(..) | Decimal256(..) => Float64,
        Utf8 | LargeUtf8 | Utf8View => Utf8,
        Date32 | Date64 | Timestamp(..) => Timestamp(TimeUnit::Millisecond, Some("UTC".into())),
        _ => return None,
    })
}

/// The type as a topology file names it, else as Arrow does.
pub(crate) fn type_name(found: &DataType) -> String {
    let name = match declarable(found) {
        Some(DataType::Boolean) => "bool",
        Some(DataType::Int64) => "int64",
        Some(DataType::Float64) => "float64",
        Some(DataType::Utf8) => "string",
        Some(DataType::Timestamp(..)) => "timestamp",
        _ if found.is_null() => "null",
        _ => return format!("{found}").to_lowercase(),
    };
    name.into()
}

fn no_value_type(sql: &str, found: &DataType) -> ExpressionError {
    let hint = match found {
        DataType::Null => Some("say which: `cast(null as double)`".into()),
        DataType::Interval(_) | DataType::Duration(_) => {
            Some("a difference of times in milliseconds is `cast(a as bigint) - cast(b as bigint)`".into())
        }
        _ => None,
    };
    let message = format!(
        "`{sql}` is {}, which no column can hold; a column is bool, int64, float64, string or timestamp",
        type_name(found)
    );
    ExpressionError { message, hint }
}

impl From<DataFusionError> for ExpressionError {
    fn from(error: DataFusionError) -> Self {
        let text = match error.find_root() {
            DataFusionError::ArrowError(error, _) => error.to_string(),
            DataFusionError::Plan(text) | DataFusionError::Execution(text) | DataFusionError::NotImplemented(text) => {
                text.clone()
            }
            DataFusionError::SQL(error, _) => error.to_string(),
            other => other.strip_backtrace(),
        };
        ExpressionError::new(plainly(&text))
    }
}

/// What a library says, in our words: one line, our names of types, no list of candidate signatures.
fn plainly(text: &str) -> String {
    let mut lines = text.lines().filter(|line| !line.trim().is_empty());
    let line = match text.contains("regex parse error") {
        true => {
            format!("the regular expression is wrong: {}", lines.next_back().unwrap_or_default().replace("error: ", ""))
        }
        false => lines.next().unwrap_or_default().to_string(),
    };
    let end = [", errors: ", " Substring {", ". Hint: "].iter().filter_map(|mark| line.find(mark)).min();
    let mut line = line[..end.unwrap_or(line.len())].trim_end_matches(['.', ' ']).to_string();
    for prefix in ["Internal error: ", "internal error: ", "External error: ", "Error during planning: "] {
        line = line.strip_prefix(prefix).map(str::to_string).unwrap_or(line);
    }
    for (theirs, ours) in [
        (" (DataType: Boolean)", ""),
        (" (DataType: Utf8)", ""),
        ("Timestamp(ms, \"UTC\")", "timestamp"),
        ("Utf8View", "string"),
        ("Utf8", "string"),
        ("Float64", "float64"),
        ("Int64", "int64"),
        ("Boolean", "bool"),
    ] {
        line = line.replace(theirs, ours);
    }
    let mut letters = line.chars();
    let first = letters.next().map(|letter| letter.to_ascii_lowercase());
    first.into_iter().chain(letters).collect()
}

#[cfg(test)]
mod tests;
