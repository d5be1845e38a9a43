//! Fits rows that are typed already to the declared columns.

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, new_null_array};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{DataType, Float64Type, SchemaRef};
use indexmap::IndexMap;

use super::{Failure, Failures};
use crate::expressions::type_name;
use crate::reject::Reason;
use crate::schema::{ColumnType, Values};

/// The declared columns of `records`, by name; a column that is not there is null. Also the rows that don't fit, in
/// order: a required value is missing, or a value is not of the declared type.
pub fn fit(
    records: &RecordBatch,
    columns: &IndexMap<String, ColumnType>,
    schema: &SchemaRef,
) -> (RecordBatch, Failures) {
    let mut failures = Failures::new();
    let arrays = columns.iter().map(|(name, declared)| match records.column_by_name(name) {
        Some(found) => column(name, *declared, found, &mut failures),
        None => {
            let missing = new_null_array(&declared.data_type(), records.num_rows());
            column(name, *declared, &missing, &mut failures)
        }
    });
    let arrays: Vec<ArrayRef> = arrays.collect();
    failures.sort_by_key(|(row, _)| *row);
    failures.dedup_by_key(|(row, _)| *row);
    let fitted = RecordBatch::try_new(schema.clone(), arrays).expect("each column was cast to its declared type");
    (fitted, failures)
}

fn column(name: &str, declared: ColumnType, found: &ArrayRef, failures: &mut Failures) -> ArrayRef {
    let cast = match may_hold(declared.values, found.data_type()) {
        true => exactly(declared, found),
        false => new_null_array(&declared.data_type(), found.len()),
    };
    if cast.null_count() > 0 {
        let bare = ColumnType { optional: false, ..declared };
        for row in (0..cast.len()).filter(|row| cast.is_null(*row)) {
            if found.is_valid(row) && !found.data_type().is_null() {
                let detail = format!("`{name}` is {} that is no {bare}", type_name(found.data_type()));
                failures.push((row, Failure::new(Reason::WrongType, detail)));
            } else if !declared.optional {
                let detail = format!("`{name}` is missing; it is not optional");
                failures.push((row, Failure::new(Reason::MissingField, detail)));
            }
        }
    }
    cast
}

/// True when values of `found` may be values of the declared type: never by reading texts as numbers.
fn may_hold(declared: Values, found: &DataType) -> bool {
    let text = |found: &DataType| matches!(found, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View);
    match (declared, found) {
        (_, DataType::Dictionary(_, values)) => may_hold(declared, values),
        (_, DataType::Null) => true,
        (Values::Bool, found) => *found == DataType::Boolean,
        (Values::Int64, found) => found.is_integer() || found.is_floating(),
        (Values::Float64, found) => found.is_numeric(),
        (Values::String, found) => text(found),
        (Values::Timestamp, DataType::Timestamp(..) | DataType::Date32 | DataType::Date64) => true,
        (Values::Timestamp, found) => found.is_integer() || text(found),
    }
}

/// The values as the declared type; null where that would change the value. Times lose what is finer than milliseconds.
fn exactly(declared: ColumnType, found: &ArrayRef) -> ArrayRef {
    let options = CastOptions { safe: true, ..CastOptions::default() };
    let wanted = declared.data_type();
    let cast = |array: &ArrayRef, to: &DataType| {
        cast_with_options(array, to, &options).unwrap_or_else(|_| new_null_array(to, array.len()))
    };
    if declared.values == Values::Int64 && found.data_type().is_floating() {
        // The cast would cut 1.9 to 1.
        let floats = cast(found, &DataType::Float64);
        let whole = floats.as_primitive::<Float64Type>().unary_opt::<_, Float64Type>(|value| {
            (value.fract() == 0.0 && value.abs() <= super::columns::EXACT_MAX).then_some(value)
        });
        let whole: ArrayRef = std::sync::Arc::new(whole);
        return cast(&whole, &wanted);
    }
    if declared.values == Values::Timestamp && found.data_type().is_integer() {
        return cast(&cast(found, &DataType::Int64), &wanted);
    }
    cast(found, &wanted)
}
