//! Rows as JSON objects, one a row: the hot path of every sink.
//!
//! Each column is looked up once a batch, names are escaped once for ever, and rows are written one after the other into
//! one buffer. Numbers are the shortest text that reads back as the same number; NaN and infinities, which JSON does not
//! have, are null; timestamps are RFC 3339 in UTC with milliseconds; bytes are text where they are UTF-8, else
//! `base64:` and their base64.

use std::io::Write;

use arrow::array::{
    Array, ArrayRef, ArrowPrimitiveType, AsArray, BooleanArray, PrimitiveArray, StringViewArray, StructArray,
};
use arrow::buffer::NullBuffer;
use arrow::datatypes::{
    DataType, Date32Type, Field, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, Schema, TimeUnit,
    TimestampMicrosecondType, TimestampMillisecondType, TimestampNanosecondType, TimestampSecondType, UInt8Type,
    UInt16Type, UInt32Type, UInt64Type,
};
use arrow::util::display::{ArrayFormatter, FormatOptions};

/// Writes rows of one schema.
#[derive(Debug, Clone)]
pub struct JsonWriter {
    /// For each column what stands before its value: `{"a":`, `,"b":` ...
    before: Vec<Vec<u8>>,
}

impl JsonWriter {
    /// For rows with the columns of `schema`, all of which are written.
    pub fn new(schema: &Schema) -> JsonWriter {
        JsonWriter { before: schema.fields().iter().enumerate().map(|(n, field)| before(n, field)).collect() }
    }

    /// Appends each of the `rows` rows of `columns` to `values`, and where it ends to `ends`.
    pub fn write(&self, columns: &[ArrayRef], rows: usize, values: &mut Vec<u8>, ends: &mut Vec<usize>) {
        let columns: Vec<Column<'_>> = columns.iter().map(Column::new).collect();
        ends.reserve(rows);
        for row in 0..rows {
            if columns.is_empty() {
                values.push(b'{');
            }
            for (before, column) in self.before.iter().zip(&columns) {
                values.extend_from_slice(before);
                column.write(row, values);
            }
            values.push(b'}');
            ends.push(values.len());
        }
    }
}

fn before(n: usize, field: &Field) -> Vec<u8> {
    let mut text = vec![if n == 0 { b'{' } else { b',' }];
    write_text(field.name(), &mut text);
    text.push(b':');
    text
}

/// A column, its type known.
struct Column<'a> {
    nulls: Option<&'a NullBuffer>,
    values: Values<'a>,
}

enum Values<'a> {
    Null,
    Boolean(&'a BooleanArray),
    Signed(Box<dyn Fn(usize) -> i64 + 'a>),
    Int64(&'a [i64]),
    Unsigned(Box<dyn Fn(usize) -> u64 + 'a>),
    Float32(&'a [f32]),
    Float64(&'a [f64]),
    /// Milliseconds since 1970.
    Timestamp(Box<dyn Fn(usize) -> i64 + 'a>),
    Date(&'a [i32]),
    Text(&'a arrow::array::StringArray),
    LargeText(&'a arrow::array::LargeStringArray),
    TextView(&'a StringViewArray),
    Bytes(Box<dyn Fn(usize) -> &'a [u8] + 'a>),
    List(ListRange<'a>, Box<Column<'a>>),
    Struct(Vec<(Vec<u8>, Column<'a>)>),
    Dictionary(Box<dyn Fn(usize) -> usize + 'a>, Box<Column<'a>>),
    /// Any other type, as Arrow displays it.
    Other(&'a dyn Array),
}

/// Where the list of a row starts and ends among the values of all lists.
type ListRange<'a> = Box<dyn Fn(usize) -> (usize, usize) + 'a>;

fn primitive<T: ArrowPrimitiveType>(array: &ArrayRef) -> &PrimitiveArray<T> {
    array.as_primitive::<T>()
}

/// A column of small integers.
fn signed<T: ArrowPrimitiveType>(array: &ArrayRef) -> Values<'_>
where
    T::Native: Into<i64>,
{
    let values = primitive::<T>(array).values();
    Values::Signed(Box::new(|row| values[row].into()))
}

fn unsigned<T: ArrowPrimitiveType>(array: &ArrayRef) -> Values<'_>
where
    T::Native: Into<u64>,
{
    let values = primitive::<T>(array).values();
    Values::Unsigned(Box::new(|row| values[row].into()))
}

fn timestamp<'a>(array: &'a ArrayRef, unit: TimeUnit) -> Values<'a> {
    let values: &'a [i64] = match unit {
        TimeUnit::Second => primitive::<TimestampSecondType>(array).values(),
        TimeUnit::Millisecond => primitive::<TimestampMillisecondType>(array).values(),
        TimeUnit::Microsecond => primitive::<TimestampMicrosecondType>(array).values(),
        TimeUnit::Nanosecond => primitive::<TimestampNanosecondType>(array).values(),
    };
    Values::Timestamp(match unit {
        TimeUnit::Second => Box::new(|row| values[row].saturating_mul(1_000)),
        TimeUnit::Millisecond => Box::new(|row| values[row]),
        TimeUnit::Microsecond => Box::new(|row| values[row].div_euclid(1_000)),
        TimeUnit::Nanosecond => Box::new(|row| values[row].div_euclid(1_000_000)),
    })
}

fn list(array: &ArrayRef) -> Option<Values<'_>> {
    let (range, values): (ListRange<'_>, &ArrayRef) = match array.data_type() {
        DataType::List(_) => {
            let list = array.as_list::<i32>();
            let ends = list.value_offsets();
            (Box::new(|row| (ends[row] as usize, ends[row + 1] as usize)), list.values())
        }
        DataType::LargeList(_) => {
            let list = array.as_list::<i64>();
            let ends = list.value_offsets();
            (Box::new(|row| (ends[row] as usize, ends[row + 1] as usize)), list.values())
        }
        DataType::FixedSizeList(_, length) => {
            let list = array.as_fixed_size_list();
            let length = *length as usize;
            (Box::new(move |row| (row * length, (row + 1) * length)), list.values())
        }
        _ => return None,
    };
    Some(Values::List(range, Box::new(Column::new(values))))
}

fn structure(array: &StructArray) -> Values<'_> {
    let fields = array.fields().iter().enumerate().map(|(n, field)| before(n, field));
    Values::Struct(fields.zip(array.columns().iter().map(Column::new)).collect())
}

impl<'a> Column<'a> {
    fn new(array: &'a ArrayRef) -> Column<'a> {
        let values = match array.data_type() {
            DataType::Null => Values::Null,
            DataType::Boolean => Values::Boolean(array.as_boolean()),
            DataType::Int8 => signed::<Int8Type>(array),
            DataType::Int16 => signed::<Int16Type>(array),
            DataType::Int32 => signed::<Int32Type>(array),
            DataType::Int64 => Values::Int64(primitive::<Int64Type>(array).values()),
            DataType::UInt8 => unsigned::<UInt8Type>(array),
            DataType::UInt16 => unsigned::<UInt16Type>(array),
            DataType::UInt32 => unsigned::<UInt32Type>(array),
            DataType::UInt64 => unsigned::<UInt64Type>(array),
            DataType::Float32 => Values::Float32(primitive::<Float32Type>(array).values()),
            DataType::Float64 => Values::Float64(primitive::<Float64Type>(array).values()),
            DataType::Timestamp(unit, _) => timestamp(array, *unit),
            DataType::Date32 => Values::Date(primitive::<Date32Type>(array).values()),
            DataType::Utf8 => Values::Text(array.as_string()),
            DataType::LargeUtf8 => Values::LargeText(array.as_string()),
            DataType::Utf8View => Values::TextView(array.as_string_view()),
            DataType::Binary => Values::Bytes(Box::new(|row| array.as_binary::<i32>().value(row))),
            DataType::LargeBinary => Values::Bytes(Box::new(|row| array.as_binary::<i64>().value(row))),
            DataType::BinaryView => Values::Bytes(Box::new(|row| array.as_binary_view().value(row))),
            DataType::Struct(_) => structure(array.as_struct()),
            DataType::Dictionary(_, _) => {
                let dictionary = array.as_any_dictionary();
                let keys = dictionary.normalized_keys();
                Values::Dictionary(Box::new(move |row| keys[row]), Box::new(Column::new(dictionary.values())))
            }
            _ => list(array).unwrap_or(Values::Other(array)),
        };
        Column { nulls: array.nulls(), values }
    }

    fn write(&self, row: usize, out: &mut Vec<u8>) {
        if self.nulls.is_some_and(|nulls| nulls.is_null(row)) {
            out.extend_from_slice(b"null");
            return;
        }
        match &self.values {
            Values::Null => out.extend_from_slice(b"null"),
            Values::Boolean(values) => {
                out.extend_from_slice(if values.value(row) { b"true".as_slice() } else { b"false" });
            }
            Values::Int64(values) => write_number(&values[row], out),
            Values::Signed(value) => write_number(&value(row), out),
            Values::Unsigned(value) => write_number(&value(row), out),
            Values::Float32(values) => write_number(&values[row], out),
            Values::Float64(values) => write_number(&values[row], out),
            Values::Timestamp(millis) => {
                out.push(b'"');
                write_timestamp(millis(row), out);
                out.push(b'"');
            }
            Values::Date(days) => {
                out.push(b'"');
                write_date(i64::from(days[row]), out);
                out.push(b'"');
            }
            Values::Text(values) => write_text(values.value(row), out),
            Values::LargeText(values) => write_text(values.value(row), out),
            Values::TextView(values) => write_text(values.value(row), out),
            Values::Bytes(bytes) => write_bytes(bytes(row), out),
            Values::List(range, values) => write_list(range(row), values, out),
            Values::Struct(columns) => {
                if columns.is_empty() {
                    out.push(b'{');
                }
                for (before, column) in columns {
                    out.extend_from_slice(before);
                    column.write(row, out);
                }
                out.push(b'}');
            }
            Values::Dictionary(key, values) => values.write(key(row), out),
            Values::Other(array) => match ArrayFormatter::try_new(*array, &FormatOptions::default()) {
                Ok(formatter) => write_text(&formatter.value(row).to_string(), out),
                Err(_) => out.extend_from_slice(b"null"),
            },
        }
    }
}

/// A number; NaN and infinities as null.
fn write_number(number: &impl serde::Serialize, out: &mut Vec<u8>) {
    serde_json::to_writer(out, number).expect("a Vec takes every write");
}

/// A text in quotes, escaped.
fn write_text(text: &str, out: &mut Vec<u8>) {
    let plain = |byte: u8| byte >= 0x20 && byte != b'"' && byte != b'\\';
    if text.bytes().all(plain) {
        out.push(b'"');
        out.extend_from_slice(text.as_bytes());
        out.push(b'"');
    } else {
        serde_json::to_writer(out, text).expect("a Vec takes every write");
    }
}

fn write_list((from, to): (usize, usize), values: &Column<'_>, out: &mut Vec<u8>) {
    out.push(b'[');
    for at in from..to {
        if at > from {
            out.push(b',');
        }
        values.write(at, out);
    }
    out.push(b']');
}

/// Bytes as text, or in base64 if they are none.
fn write_bytes(bytes: &[u8], out: &mut Vec<u8>) {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    if let Ok(text) = std::str::from_utf8(bytes) {
        return write_text(text, out);
    }
    out.extend_from_slice(b"\"base64:");
    for three in bytes.chunks(3) {
        let bits = three.iter().enumerate().fold(0u32, |bits, (n, byte)| bits | u32::from(*byte) << (16 - 8 * n));
        for n in 0..4 {
            let digit = DIGITS[(bits >> (18 - 6 * n) & 63) as usize];
            out.push(if n <= three.len() { digit } else { b'=' });
        }
    }
    out.push(b'"');
}

/// `2013-01-31T23:59:59.999Z`.
pub(crate) fn write_timestamp(millis: i64, out: &mut Vec<u8>) {
    let (days, time) = (millis.div_euclid(86_400_000), millis.rem_euclid(86_400_000) as u32);
    write_date(days, out);
    out.push(b'T');
    write_digits(time / 3_600_000, 2, out);
    out.push(b':');
    write_digits(time / 60_000 % 60, 2, out);
    out.push(b':');
    write_digits(time / 1_000 % 60, 2, out);
    out.push(b'.');
    write_digits(time % 1_000, 3, out);
    out.push(b'Z');
}

/// `2013-01-31`, of days since 1970. Years beyond four digits have a sign (ISO 8601).
fn write_date(days: i64, out: &mut Vec<u8>) {
    // Years start in March here, so that the leap day is the last; 400 years have 146,097 days.
    let from_march_0000 = days + 719_468;
    let (era, day) = (from_march_0000.div_euclid(146_097), from_march_0000.rem_euclid(146_097));
    let year_of_era = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day_of_month = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    if (0..=9999).contains(&year) {
        write_digits(year as u32, 4, out);
    } else {
        write!(out, "{year:+07}").expect("a Vec takes every write");
    }
    out.push(b'-');
    write_digits(month as u32, 2, out);
    out.push(b'-');
    write_digits(day_of_month as u32, 2, out);
}

/// The last `digits` digits of a number, most significant first. At most four.
fn write_digits(mut number: u32, digits: usize, out: &mut Vec<u8>) {
    let mut text = [0; 4];
    for place in text[..digits].iter_mut().rev() {
        *place = b'0' + (number % 10) as u8;
        number /= 10;
    }
    out.extend_from_slice(&text[..digits]);
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::*;
    use arrow::datatypes::{Fields, Int32Type};
    use proptest::prelude::*;

    use super::*;

    fn rows(records: &RecordBatch) -> Vec<String> {
        let (mut values, mut ends) = (Vec::new(), Vec::new());
        JsonWriter::new(&records.schema()).write(records.columns(), records.num_rows(), &mut values, &mut ends);
        let mut from = 0;
        let texts = ends.iter().map(|end| {
            let text = String::from_utf8(values[from..*end].to_vec()).unwrap();
            from = *end;
            text
        });
        texts.collect()
    }

    fn check(column: impl Array + 'static, expected: &[&str]) {
        let column: ArrayRef = Arc::new(column);
        let with_one_before = RecordBatch::try_from_iter([("v", column.clone())]).unwrap();
        let expected: Vec<String> = expected.iter().map(|value| format!("{{\"v\":{value}}}")).collect();
        assert_eq!(rows(&with_one_before), expected);
        // A slice starts inside the buffers.
        if column.len() > 1 {
            assert_eq!(rows(&with_one_before.slice(1, column.len() - 1)), expected[1..]);
        }
    }

    #[test]
    fn numbers_are_the_shortest_text_that_reads_back() {
        check(Int64Array::from(vec![Some(i64::MIN), None, Some(7)]), &["-9223372036854775808", "null", "7"]);
        check(UInt64Array::from(vec![u64::MAX]), &["18446744073709551615"]);
        check(Int8Array::from(vec![-5, 5]), &["-5", "5"]);
        check(
            Float64Array::from(vec![0.1, 1.0, 1e300, -0.0, f64::NAN, f64::INFINITY, 1.0 / 3.0]),
            &["0.1", "1.0", "1e+300", "-0.0", "null", "null", "0.3333333333333333"],
        );
        check(Float32Array::from(vec![0.1, f32::NAN]), &["0.1", "null"]);
    }

    #[test]
    fn texts_are_escaped() {
        let texts = vec!["", "plain", "a\"b\\c", "line\nbreak\u{1}", "Zürich ✈"];
        let expected = ["\"\"", "\"plain\"", r#""a\"b\\c""#, r#""line\nbreak\u0001""#, "\"Zürich ✈\""];
        check(StringArray::from(texts.clone()), &expected);
        check(LargeStringArray::from(texts.clone()), &expected);
        check(StringViewArray::from(texts), &expected);
        let dictionary: DictionaryArray<Int32Type> = ["AA", "B\"6", "AA"].into_iter().collect();
        check(dictionary, &["\"AA\"", "\"B\\\"6\"", "\"AA\""]);
    }

    #[test]
    fn bytes_that_are_no_text_are_base64() {
        check(
            BinaryArray::from_vec(vec![b"{\"a\"", b"\xff", b"\xff\xfe", b"\xff\xfe\xfd", b""]),
            &[r#""{\"a\"""#, "\"base64:/w==\"", "\"base64://4=\"", "\"base64://79\"", "\"\""],
        );
    }

    #[test]
    fn times_are_rfc_3339() {
        let millis = vec![0, 1_356_998_400_000, 1_709_210_096_789, -1, 253_402_300_799_999, 253_402_300_800_000];
        check(
            TimestampMillisecondArray::from(millis).with_timezone("UTC"),
            &[
                "\"1970-01-01T00:00:00.000Z\"",
                "\"2013-01-01T00:00:00.000Z\"",
                "\"2024-02-29T12:34:56.789Z\"",
                "\"1969-12-31T23:59:59.999Z\"",
                "\"9999-12-31T23:59:59.999Z\"",
                "\"+010000-01-01T00:00:00.000Z\"",
            ],
        );
        check(TimestampNanosecondArray::from(vec![-1]), &["\"1969-12-31T23:59:59.999Z\""]);
        check(TimestampSecondArray::from(vec![Some(1), None]), &["\"1970-01-01T00:00:01.000Z\"", "null"]);
        check(Date32Array::from(vec![0, -1]), &["\"1970-01-01\"", "\"1969-12-31\""]);
        // The ends of the scale must not panic.
        check(TimestampSecondArray::from(vec![i64::MIN]), &["\"-292275055-05-16T16:47:04.192Z\""]);
    }

    #[test]
    fn nested_values_may_be_null_at_every_level() {
        let list = ListArray::from_iter_primitive::<Float64Type, _, _>(vec![
            Some(vec![Some(1.5), None, Some(f64::NAN)]),
            None,
            Some(vec![]),
        ]);
        check(list, &["[1.5,null,null]", "null", "[]"]);
        let fixed = FixedSizeListArray::from_iter_primitive::<Float64Type, _, _>(
            vec![Some(vec![Some(1.0), Some(2.0)]), Some(vec![Some(3.0), Some(4.0)])],
            2,
        );
        check(fixed, &["[1.0,2.0]", "[3.0,4.0]"]);
        let fields =
            Fields::from(vec![Field::new("a", DataType::Int64, true), Field::new("b\"", DataType::Utf8, true)]);
        let columns: Vec<ArrayRef> =
            vec![Arc::new(Int64Array::from(vec![Some(1), None])), Arc::new(StringArray::from(vec![None, Some("x")]))];
        let nested = StructArray::new(fields, columns, Some(NullBuffer::from(vec![true, true])));
        check(nested, &[r#"{"a":1,"b\"":null}"#, r#"{"a":null,"b\"":"x"}"#]);
        check(NullArray::new(2), &["null", "null"]);
        check(BooleanArray::from(vec![Some(true), Some(false), None]), &["true", "false", "null"]);
    }

    proptest! {
        /// Whatever is written reads back as the same value, with a reader that is not ours.
        #[test]
        fn what_is_written_reads_back(values in prop::collection::vec((any::<f64>(), any::<i64>(), ".*", any::<bool>()), 1..20)) {
            let columns: [(&str, ArrayRef); 3] = [
                ("float \"quoted\"", Arc::new(Float64Array::from_iter(values.iter().map(|v| v.3.then_some(v.0))))),
                ("int", Arc::new(Int64Array::from_iter_values(values.iter().map(|v| v.1)))),
                ("text", Arc::new(StringArray::from_iter_values(values.iter().map(|v| &v.2)))),
            ];
            for (row, (float, int, text, there)) in rows(&RecordBatch::try_from_iter(columns).unwrap()).iter().zip(&values) {
                let object: serde_json::Value = serde_json::from_str(row).unwrap();
                prop_assert_eq!(object["int"].as_i64(), Some(*int));
                prop_assert_eq!(object["text"].as_str(), Some(text.as_str()));
                prop_assert_eq!(object["float \"quoted\""].as_f64(), Some(*float).filter(|f| *there && f.is_finite()));
            }
        }

        /// The calendar agrees with Arrow's.
        #[test]
        fn dates_agree_with_arrow(days in -700_000..2_900_000i32) {
            let mut text = Vec::new();
            write_date(i64::from(days), &mut text);
            let array = Date32Array::from(vec![days]);
            let expected = ArrayFormatter::try_new(&array, &FormatOptions::default()).unwrap().value(0).to_string();
            prop_assert_eq!(String::from_utf8(text).unwrap(), expected);
        }
    }
}
