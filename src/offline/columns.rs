//! Columns of a stream as a table keeps them: types every reader of the table knows, all nullable, and the partition
//! column `date`.

use std::collections::HashSet;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Date32Array, RecordBatch, RecordBatchOptions, new_null_array};
use arrow::compute::{CastOptions, cast, cast_with_options};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef, TimeUnit};
use arrow::error::ArrowError;

use super::OfflineError;

/// The partition column: the UTC date of the event time.
pub(super) const DATE: &str = "date";
/// Provenance columns that every stream must have, to know what a commit holds.
pub(super) const TOPIC: &str = "topic";
pub(super) const PARTITION: &str = "partition";
pub(super) const OFFSET: &str = "offset";
pub(super) const EVENT_TIME: &str = "event_time";

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
/// If a column has a type that tables do not have, appears twice, is named `date`, or a provenance column is missing.
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
    for name in [TOPIC, PARTITION, OFFSET, EVENT_TIME] {
        if stream.column_with_name(name).is_none() {
            return Err(wrong(name, "the stream has no such provenance column".into()));
        }
    }
    Ok(Arc::new(Schema::new(fields)))
}

/// `batch` with the columns of `schema`, by name: cast where the type differs, null where the stream has no such column. A value that the
/// table's type can't hold becomes null.
pub(super) fn conform(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch, ArrowError> {
    let options = CastOptions { safe: true, ..CastOptions::default() };
    let mut columns: Vec<ArrayRef> = Vec::with_capacity(schema.fields().len());
    for field in schema.fields() {
        let column = match batch.column_by_name(field.name()) {
            _ if field.name() == DATE => dates(batch)?,
            Some(column) if column.data_type() == field.data_type() => column.clone(),
            Some(column) => cast_with_options(column, field.data_type(), &options)?,
            None => new_null_array(field.data_type(), batch.num_rows()),
        };
        columns.push(column);
    }
    let rows = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(schema.clone(), columns, &rows)
}

/// The UTC date of each row's event time.
fn dates(batch: &RecordBatch) -> Result<ArrayRef, ArrowError> {
    let times = batch.column_by_name(EVENT_TIME).ok_or_else(|| ArrowError::SchemaError("no event_time".into()))?;
    let millis = match times.data_type() {
        DataType::Timestamp(_, zone) => cast(times, &DataType::Timestamp(TimeUnit::Millisecond, zone.clone()))?,
        _ => times.clone(),
    };
    let millis = cast(&millis, &DataType::Int64)?;
    let days = |millis: i64| millis.div_euclid(MILLIS_PER_DAY) as i32;
    let dates: Date32Array = millis.as_primitive::<Int64Type>().unary(days);
    Ok(Arc::new(dates))
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{Float64Array, Int32Array, Int64Array, ListArray, StringArray, TimestampMillisecondArray};
    use arrow::datatypes::{Float64Type, TimestampMicrosecondType};

    fn provenance() -> Vec<Field> {
        vec![
            Field::new("topic", DataType::Utf8, false),
            Field::new("partition", DataType::Int32, false),
            Field::new("offset", DataType::Int64, false),
            Field::new("event_time", DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into())), false),
        ]
    }

    #[test]
    fn rows_conform_to_what_the_table_keeps() {
        let mut fields = provenance();
        fields.push(Field::new("vector", DataType::new_list(DataType::Float64, true), true));
        let list = ListArray::from_iter_primitive::<Float64Type, _, _>([Some(vec![Some(1.5), None]), None]);
        let columns: Vec<ArrayRef> = vec![
            Arc::new(StringArray::from(vec!["t", "t"])),
            Arc::new(Int32Array::from(vec![0, 0])),
            Arc::new(Int64Array::from(vec![7, 8])),
            Arc::new(TimestampMillisecondArray::from(vec![-1, 86_400_000]).with_timezone("UTC")),
            Arc::new(list),
        ];
        let batch = RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).expect("columns fit");
        let schema = stored_schema("t", &batch.schema()).expect("all types are kept");
        let kept = conform(&batch, &schema).expect("conforms");
        let dates = kept["date"].as_primitive::<arrow::datatypes::Date32Type>();
        assert_eq!(dates.values(), &[-1, 1], "a moment before 1970 is on the day before");
        assert_eq!(kept["event_time"].as_primitive::<TimestampMicrosecondType>().values(), &[-1000, 86_400_000_000]);
        assert_eq!(
            kept["vector"].as_list::<i32>().values().as_ref(),
            &Float64Array::from(vec![Some(1.5), None]) as &dyn Array
        );
    }

    #[test]
    fn columns_that_a_table_cannot_keep_are_named() {
        let check = |field: Field, says: &str| {
            let mut fields = provenance();
            fields.push(field);
            let error = stored_schema("events", &Schema::new(fields)).expect_err("must be refused").to_string();
            assert!(error.contains(says), "{error}");
        };
        check(Field::new("date", DataType::Utf8, true), "column `date`: the table keeps the date of the event time");
        check(Field::new("Offset", DataType::Int64, true), "column `Offset`: the name appears twice");
        check(Field::new("x", DataType::Time32(TimeUnit::Second), true), "column `x`: a table can't keep the type");
        let error =
            stored_schema("events", &Schema::new(provenance()[1..].to_vec())).expect_err("no topic").to_string();
        assert!(error.contains("column `topic`: the stream has no such provenance column"), "{error}");
    }
}
