//! Cuts a model's input tensors from columns: row-major, in buffers that are kept from call to call.

use arrow::array::{Array, ArrayRef, ArrowPrimitiveType, AsArray, PrimitiveArray, RecordBatch};
use arrow::compute;
use arrow::datatypes::{DataType, Float64Type, Int64Type};
use arrow::error::ArrowError;

use super::binding::InputBinding;
use super::signature::Elements;
use crate::reject::Reason;

/// The values of one input tensor, row-major: `rows x width`.
#[derive(Debug, Clone, PartialEq)]
pub enum Values {
    /// 32-bit floating point; a missing value is NaN.
    Float32(Vec<f32>),
    /// 64-bit floating point; a missing value is NaN.
    Float64(Vec<f64>),
    /// 64-bit integers.
    Int64(Vec<i64>),
    /// 32-bit integers.
    Int32(Vec<i32>),
    /// Booleans.
    Bool(Vec<bool>),
    /// Text.
    Text(Vec<String>),
}

impl Values {
    /// An empty buffer for a tensor of `elements`. A type that is not supported never gets through binding.
    pub fn empty(elements: &Elements) -> Values {
        match elements {
            Elements::Float64 => Values::Float64(Vec::new()),
            Elements::Int64 => Values::Int64(Vec::new()),
            Elements::Int32 => Values::Int32(Vec::new()),
            Elements::Bool => Values::Bool(Vec::new()),
            Elements::Text => Values::Text(Vec::new()),
            Elements::Float32 | Elements::Other(_) => Values::Float32(Vec::new()),
        }
    }
}

/// The columns of one input, in types that [`fill`] reads without further conversion.
pub(super) struct Columns(Vec<ArrayRef>);

/// Reads the columns of `binding` from `records`; only rare types are converted.
///
/// # Errors
/// If Arrow cannot convert a column; binding has ruled that out.
pub(super) fn columns(binding: &InputBinding, records: &RecordBatch) -> Result<Columns, ArrowError> {
    let columns = binding.columns.iter().map(|index| {
        let column = records.column(*index);
        let wanted = match (column.data_type(), &binding.tensor.elements) {
            (DataType::Float64 | DataType::Int64 | DataType::Boolean | DataType::Utf8, _) => return Ok(column.clone()),
            (_, Elements::Text) => DataType::Utf8,
            (_, Elements::Int64 | Elements::Int32) => DataType::Int64,
            _ => DataType::Float64,
        };
        compute::cast(column, &wanted)
    });
    Ok(Columns(columns.collect::<Result<_, _>>()?))
}

/// Why `row` cannot be an input of the model, or `None`. Floating-point inputs take everything: missing becomes NaN.
pub(super) fn refusal(binding: &InputBinding, columns: &Columns, row: usize) -> Option<(Reason, String)> {
    if binding.tensor.elements.floating() {
        return None;
    }
    for column in &columns.0 {
        if column.is_null(row) {
            let detail = format!("the model's input {} takes no missing values", binding.tensor);
            return Some((Reason::MissingField, detail));
        }
        if binding.tensor.elements == Elements::Int32
            && let Some(value) = column.as_primitive_opt::<Int64Type>().map(|values| values.value(row))
            && i32::try_from(value).is_err()
        {
            return Some((Reason::OutOfRange, format!("{value} does not fit the model's input {}", binding.tensor)));
        }
    }
    None
}

/// True when [`refusal`] can refuse no row of these columns: the usual case, found without looking at the rows.
pub(super) fn accepts_all(binding: &InputBinding, columns: &Columns) -> bool {
    match binding.tensor.elements {
        Elements::Float32 | Elements::Float64 => true,
        Elements::Int32 => false,
        _ => columns.0.iter().all(|column| column.null_count() == 0),
    }
}

/// Writes rows `start .. start + rows` into `values`, which keeps its memory from call to call.
pub(super) fn fill(values: &mut Values, columns: &Columns, start: usize, rows: usize) {
    match values {
        Values::Float32(buffer) => numbers(buffer, columns, start, rows, f32::NAN, |v| v as f32, |v| v as f32),
        Values::Float64(buffer) => numbers(buffer, columns, start, rows, f64::NAN, |v| v, |v| v as f64),
        // Nulls and values out of range were refused; floating columns are refused by the binding.
        Values::Int64(buffer) => numbers(buffer, columns, start, rows, 0, |v| v as i64, |v| v),
        Values::Int32(buffer) => numbers(buffer, columns, start, rows, 0, |v| v as i32, |v| v as i32),
        Values::Bool(buffer) => {
            buffer.clear();
            buffer.resize(rows * columns.0.len(), false);
            for (at, column) in columns.0.iter().enumerate() {
                let Some(column) = column.as_boolean_opt() else { continue };
                for row in 0..rows {
                    buffer[row * columns.0.len() + at] = column.value(start + row);
                }
            }
        }
        Values::Text(buffer) => {
            buffer.resize(rows * columns.0.len(), String::new());
            for (at, column) in columns.0.iter().enumerate() {
                let Some(column) = column.as_string_opt::<i32>() else { continue };
                for row in 0..rows {
                    let text = &mut buffer[row * columns.0.len() + at];
                    text.clear();
                    text.push_str(column.value(start + row));
                }
            }
        }
    }
}

fn numbers<T: Copy>(
    buffer: &mut Vec<T>,
    columns: &Columns,
    start: usize,
    rows: usize,
    missing: T,
    of_float: impl Fn(f64) -> T,
    of_int: impl Fn(i64) -> T,
) {
    let width = columns.0.len();
    buffer.resize(rows * width, missing);
    for (at, column) in columns.0.iter().enumerate() {
        let cells = buffer.iter_mut().skip(at).step_by(width.max(1));
        match column.data_type() {
            DataType::Float64 => {
                primitive(cells, column.as_primitive::<Float64Type>(), start, rows, missing, &of_float)
            }
            DataType::Int64 => primitive(cells, column.as_primitive::<Int64Type>(), start, rows, missing, &of_int),
            DataType::Boolean => {
                let column = column.as_boolean();
                for (row, cell) in cells.enumerate() {
                    let valid = column.is_valid(start + row);
                    *cell = if valid { of_int(i64::from(column.value(start + row))) } else { missing };
                }
            }
            // Text in a number's place: the binding refuses it.
            _ => cells.for_each(|cell| *cell = missing),
        }
    }
}

fn primitive<'b, T: Copy + 'b, P: ArrowPrimitiveType>(
    cells: impl Iterator<Item = &'b mut T>,
    column: &PrimitiveArray<P>,
    start: usize,
    rows: usize,
    missing: T,
    convert: &impl Fn(P::Native) -> T,
) {
    let values = &column.values()[start..start + rows];
    if column.null_count() == 0 {
        for (cell, value) in cells.zip(values) {
            *cell = convert(*value);
        }
    } else {
        for (row, (cell, value)) in cells.zip(values).enumerate() {
            *cell = if column.is_valid(start + row) { convert(*value) } else { missing };
        }
    }
}

/// The feature vectors of all rows as one flat column, row-major, in the order of `bindings`; missing stays null.
///
/// # Errors
/// If Arrow cannot convert a column; binding has ruled that out.
pub(super) fn feature_values(
    bindings: &[InputBinding],
    records: &RecordBatch,
) -> Result<(usize, PrimitiveArray<Float64Type>), ArrowError> {
    let indices: Vec<usize> = bindings.iter().flat_map(|binding| binding.columns.iter().copied()).collect();
    let columns = indices
        .iter()
        .map(|index| match records.column(*index).data_type() {
            DataType::Float64 => Ok(records.column(*index).clone()),
            _ => compute::cast(records.column(*index), &DataType::Float64),
        })
        .collect::<Result<Vec<_>, _>>()?;
    let columns: Vec<_> = columns.iter().map(|column| column.as_primitive::<Float64Type>()).collect();
    let rows = records.num_rows();
    let mut flat = arrow::array::Float64Builder::with_capacity(rows * columns.len());
    for row in 0..rows {
        for column in &columns {
            flat.append_option(column.is_valid(row).then(|| column.value(row)));
        }
    }
    Ok((columns.len(), flat.finish()))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{BooleanArray, Float64Array, Int64Array};

    use super::*;

    #[test]
    fn missing_values_become_nan_and_rows_stand_side_by_side() {
        let columns = Columns(vec![
            Arc::new(Float64Array::from(vec![Some(1.0), None, Some(3.0)])),
            Arc::new(Float64Array::from(vec![4.0, 5.0, 6.0])),
        ]);
        let mut values = Values::Float32(vec![9.0; 100]);
        fill(&mut values, &columns, 1, 2);
        let Values::Float32(values) = values else { panic!("the type stays") };
        assert_eq!(values.len(), 4);
        assert!(values[0].is_nan());
        assert_eq!(values[1..], [5.0, 3.0, 6.0]);
    }

    #[test]
    fn integers_and_booleans_become_numbers() {
        let columns =
            Columns(vec![Arc::new(Int64Array::from(vec![7, -7])), Arc::new(BooleanArray::from(vec![true, false]))]);
        let mut values = Values::Int64(Vec::new());
        fill(&mut values, &columns, 0, 2);
        assert_eq!(values, Values::Int64(vec![7, 1, -7, 0]));
    }
}
