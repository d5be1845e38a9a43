//! Columns of a stream as a table keeps them: types every reader of the table knows, all nullable, and the partition
//! column `date`.

use std::collections::HashSet;
use std::sync::Arc;

use arrow::array::{ArrayRef, Date32Array, RecordBatch, RecordBatchOptions, new_null_array};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use arrow::error::ArrowError;
use millstream_operators::{Batch, Row};

use super::OfflineError;

/// The partition column: the UTC date of the event time.
pub(super) const DATE: &str = "date";

const MILLIS_PER_DAY: i64 = 86_400_000;

/// The type a table keeps a column as: timestamps in microseconds UTC, unsigned integers as signed ones, lists with
/// elements named `element`. `None` for a type that tables do not have.
fn stored(data_type: &DataType) -> Option<DataType> {
    Some(match data_type {
        DataType::Boolean | DataType::Int8 | DataType::Int16 | DataType::Int32 | DataType::Int64 => data_type.clone(),
        DataType::Float32 | DataType::Float64 | DataType::Date32 => data_type.clone(),
        DataType::UInt8 => DataType::Int16,
        DataType::UInt16 => DataType::Int32,
        DataType::UInt32 | DataType::UInt64 => DataType::Int64,
        DataType::Float16 => DataType::Float32,
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => DataType::Utf8,
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView => DataType::Binary,
        DataType::Timestamp(_, _) => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
        DataType::Dictionary(_, values) => stored(values)?,
        DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => {
            DataType::List(Arc::new(Field::new("element", stored(item.data_type())?, true)))
        }
        _ => return None,
    })
}

/// The schema of a new table for a stream: `date`, then the stream's columns.
///
/// # Errors
/// If a column has a type that tables do not have, appears twice, or is named `date`.
pub(super) fn stored_schema(table: &str, stream: &Schema) -> Result<SchemaRef, OfflineError> {
    let wrong =
        |column: &str, detail: String| OfflineError::Column { table: table.into(), column: column.into(), detail };
    let mut fields = vec![Field::new(DATE, DataType::Date32, true)];
    let mut names = HashSet::from([DATE.to_owned()]);
    for field in stream.fields() {
        if field.name() == DATE {
            let detail = "the table keeps the date of the event time under this name; rename the stream's column";
            return Err(wrong(DATE, detail.into()));
        }
        // Table formats take names that differ in case only for the same.
        if !names.insert(field.name().to_lowercase()) {
            return Err(wrong(field.name(), "the name appears twice; rename one of the columns".into()));
        }
        let kept = stored(field.data_type()).ok_or_else(|| {
            wrong(field.name(), format!("a table can't keep the type {}; leave the column out", field.data_type()))
        })?;
        fields.push(Field::new(field.name(), kept, true));
    }
    Ok(Arc::new(Schema::new(fields)))
}

/// `batch` with the columns of `schema`, by name: cast where the type differs, null where the stream has no such column, and
/// the dates of the event times. A value that the table's type can't hold becomes null.
pub(super) fn conform(batch: &Batch, schema: &SchemaRef) -> Result<RecordBatch, ArrowError> {
    let options = CastOptions { safe: true, ..CastOptions::default() };
    let mut columns: Vec<ArrayRef> = Vec::with_capacity(schema.fields().len());
    for field in schema.fields() {
        let column = match batch.records.column_by_name(field.name()) {
            _ if field.name() == DATE => dates(&batch.rows),
            Some(column) if column.data_type() == field.data_type() => column.clone(),
            Some(column) => cast_with_options(column, field.data_type(), &options)?,
            None => new_null_array(field.data_type(), batch.len()),
        };
        columns.push(column);
    }
    let rows = RecordBatchOptions::new().with_row_count(Some(batch.len()));
    RecordBatch::try_new_with_options(schema.clone(), columns, &rows)
}

/// The UTC date of each row's event time.
fn dates(rows: &[Row]) -> ArrayRef {
    let days = rows.iter().map(|row| row.event_time.div_euclid(MILLIS_PER_DAY) as i32);
    Arc::new(Date32Array::from_iter_values(days))
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{Array, AsArray, Float64Array, ListArray, TimestampMillisecondArray};
    use arrow::datatypes::{Date32Type, Float64Type, TimestampMicrosecondType};

    #[test]
    fn rows_conform_to_what_the_table_keeps() {
        let list = ListArray::from_iter_primitive::<Float64Type, _, _>([Some(vec![Some(1.5), None]), None]);
        let at: ArrayRef = Arc::new(TimestampMillisecondArray::from(vec![Some(-1), None]).with_timezone("UTC"));
        let columns = [("at", at, true), ("vector", Arc::new(list) as ArrayRef, true)];
        let records = RecordBatch::try_from_iter_with_nullable(columns).expect("columns of one length");
        let row = |event_time| Row { source: 0, partition: 0, offset: 0, event_time, arrived_micros: 0 };
        let batch = Batch::new(records, vec![row(-1), row(86_400_000)]);
        let schema = stored_schema("t", &batch.records.schema()).expect("all types are kept");
        let kept = conform(&batch, &schema).expect("conforms");
        let dates = kept["date"].as_primitive::<Date32Type>();
        assert_eq!(dates.values(), &[-1, 1], "a moment before 1970 is on the day before");
        let at = kept["at"].as_primitive::<TimestampMicrosecondType>();
        assert_eq!((at.value(0), at.is_null(1)), (-1000, true));
        let values = kept["vector"].as_list::<i32>().values();
        assert_eq!(values.as_ref(), &Float64Array::from(vec![Some(1.5), None]) as &dyn Array);
    }

    #[test]
    fn columns_that_a_table_cannot_keep_are_named() {
        let check = |field: Field, says: &str| {
            let fields = vec![Field::new("offset", DataType::Int64, true), field];
            let error = stored_schema("events", &Schema::new(fields)).expect_err("must be refused").to_string();
            assert!(error.contains(says), "{error}");
        };
        check(Field::new("date", DataType::Utf8, true), "column `date`: the table keeps the date of the event time");
        check(Field::new("Offset", DataType::Int64, true), "column `Offset`: the name appears twice");
        check(Field::new("x", DataType::Time32(TimeUnit::Second), true), "column `x`: a table can't keep the type");
    }
}
