//! A batch made ready for a group: rows that cannot be used rejected, values computed, keys looked up. Everything that can
//! be done column by column is done here, once a batch.

use std::sync::Arc;

use arrow::array::{Array, AsArray, Float64Array, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float64Type};
use datafusion_common::DataFusionError;

use super::definition::{Definition, Measure};
use super::summary::Measured;
use crate::batch::Batch;
use crate::expressions::ExpressionError;
use crate::key::KeyColumns;
use crate::operator::Outputs;
use crate::reject::{Reason, Reject};

/// The values of the measures, row by row: those of row `r` are `values[r * measures..][..measures]`.
pub type Values = Vec<Measured>;

/// The rows of a batch that a group can take up, and the values of its measures; the others are rejected. `updates` are
/// the batch's columns as the group's input.
pub fn accept(
    definition: &Definition,
    stage: &Arc<str>,
    keys: &KeyColumns,
    updates: impl Fn(&Batch) -> RecordBatch,
    batch: Batch,
    out: &mut Outputs,
) -> (Batch, Values) {
    let batch = reject_null_keys(stage, keys, batch, out);
    match values(definition, &updates(&batch)) {
        Ok(values) => (batch, values),
        Err(_) => {
            // An expression fails for a whole batch: find the rows on which it does.
            let failing = |row| values(definition, &updates(&batch.slice(row, 1))).err().map(|e| e.to_string());
            let batch = reject_rows(stage, &batch, Reason::ExpressionFailed, failing, out);
            let values = values(definition, &updates(&batch)).unwrap_or_default();
            let complete = values.len() == batch.len() * definition.measures.len();
            if complete { (batch, values) } else { (batch.slice(0, 0), Values::new()) }
        }
    }
}

fn reject_null_keys(stage: &Arc<str>, keys: &KeyColumns, batch: Batch, out: &mut Outputs) -> Batch {
    if !keys.has_nulls(&batch) {
        return batch;
    }
    let mut complete = Vec::with_capacity(batch.len());
    keys.for_each(&batch, |_, key| complete.push(key.is_some()));
    let failing = |row: usize| (!complete[row]).then(|| "a column of the entity key is null".to_string());
    reject_rows(stage, &batch, Reason::MissingKey, failing, out)
}

/// The rows for which `failing` gives no detail; the others are rejected with it.
fn reject_rows(
    stage: &Arc<str>,
    batch: &Batch,
    reason: Reason,
    failing: impl Fn(usize) -> Option<String>,
    out: &mut Outputs,
) -> Batch {
    let mut kept = Vec::with_capacity(batch.len());
    for row in 0..batch.len() {
        let Some(detail) = failing(row) else {
            kept.push(row as u32);
            continue;
        };
        let payload = batch.raw.as_ref().filter(|raw| raw.is_valid(row)).map(|raw| raw.value(row).to_vec());
        let payload = payload.unwrap_or_default();
        out.rejects.push(Reject {
            stage: stage.clone(),
            reason,
            detail,
            payload,
            event_time: batch.rows[row].happened(),
            row: batch.rows[row],
        });
    }
    batch.take(&kept).expect("the indices are rows of the batch")
}

/// The values of every measure for every row.
fn values(definition: &Definition, records: &RecordBatch) -> Result<Values, ExpressionError> {
    let (measures, rows) = (definition.measures.len(), records.num_rows());
    let mut values = vec![Measured::LEFT_OUT; measures * rows];
    for (n, measure) in definition.measures.iter().enumerate() {
        let slots = values.iter_mut().skip(n).step_by(measures);
        match numbers(measure, records)? {
            None => slots.for_each(|slot| *slot = Measured::new(1.0, measure.needs)),
            Some(numbers) => {
                let all_valid = numbers.null_count() == 0;
                for (row, slot) in slots.enumerate() {
                    if all_valid || numbers.is_valid(row) {
                        *slot = Measured::new(numbers.value(row), measure.needs);
                    }
                }
            }
        }
        let Some(condition) = &measure.condition else { continue };
        let counts = condition.evaluate(records)?;
        let counts = counts.as_boolean();
        for (row, slot) in values.iter_mut().skip(n).step_by(measures).enumerate() {
            if counts.is_null(row) || !counts.value(row) {
                *slot = Measured::LEFT_OUT;
            }
        }
    }
    Ok(values)
}

/// The values of a measure as `f64`; `None` for one that counts rows.
fn numbers(measure: &Measure, records: &RecordBatch) -> Result<Option<Float64Array>, ExpressionError> {
    let Some(expression) = &measure.value else { return Ok(None) };
    let column = expression.evaluate(records)?;
    let column = match column.data_type() {
        DataType::Float64 => column,
        _ => cast(&column, &DataType::Float64).map_err(DataFusionError::from)?,
    };
    Ok(Some(column.as_primitive::<Float64Type>().clone()))
}
