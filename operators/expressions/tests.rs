//! Expressions on a small batch: values, nulls, and errors that say what to do.

use std::sync::Arc;

use arrow::array::{AsArray, BooleanArray, Float64Array, Int64Array, StringArray, TimestampMillisecondArray};
use arrow::datatypes::{Field, Int64Type};
use proptest::prelude::*;

use super::*;

fn batch() -> RecordBatch {
    let ts = TimestampMillisecondArray::from(vec![1_767_225_600_007, 1_767_229_200_000, 0]).with_timezone("UTC");
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("amount", Arc::new(Float64Array::from(vec![Some(3.5), None, Some(-1.0)]))),
        ("card.mean_24h", Arc::new(Float64Array::from(vec![2.0, 0.0, 4.0]))),
        ("Country", Arc::new(StringArray::from(vec![Some("DE"), Some("fr"), None]))),
        ("n", Arc::new(Int64Array::from(vec![1, 0, 2]))),
        ("ts", Arc::new(ts)),
        ("flag", Arc::new(BooleanArray::from(vec![Some(true), Some(false), None]))),
    ];
    RecordBatch::try_from_iter(columns).unwrap()
}

#[track_caller]
fn check(sql: &str, expected: impl Array + 'static) {
    let batch = batch();
    let expression = Expression::compile(sql, &batch.schema()).unwrap_or_else(|error| panic!("{sql}: {error}"));
    let values = expression.evaluate(&batch).unwrap_or_else(|error| panic!("{sql}: {error}"));
    let expected: ArrayRef = Arc::new(expected);
    assert_eq!(&values, &expected, "{sql}");
    assert_eq!(expression.data_type(), expected.data_type(), "{sql}");
}

#[track_caller]
fn check_error(sql: &str, expected: &str) {
    match Expression::compile(sql, &batch().schema()) {
        Ok(expression) => panic!("{sql} compiles as {}", expression.data_type()),
        Err(error) => assert_eq!(error.to_string(), expected, "{sql}"),
    }
}

#[test]
fn scalar_sql_is_evaluated() {
    check("amount / nullif(card.mean_24h, 0)", Float64Array::from(vec![Some(1.75), None, Some(-0.25)]));
    check("\"card.mean_24h\" * 2", Float64Array::from(vec![4.0, 0.0, 8.0]));
    check("Country = 'DE'", BooleanArray::from(vec![Some(true), Some(false), None]));
    check("\"Country\" in ('DE', 'FR')", BooleanArray::from(vec![Some(true), Some(false), None]));
    check("UPPER(coalesce(Country, 'x'))", StringArray::from(vec!["DE", "FR", "X"]));
    check("substr(Country, 1, 1)", StringArray::from(vec![Some("D"), Some("f"), None]));
    check("Country || '!'", StringArray::from(vec![Some("DE!"), Some("fr!"), None]));
    check("position('E' in Country)", Int64Array::from(vec![Some(2), Some(0), None]));
    check("case when amount > 0 then 1 else 0 end", Int64Array::from(vec![1, 0, 0]));
    check("amount between 1 and 5 or amount is null", BooleanArray::from(vec![true, true, false]));
    check("extract(hour from ts)", Int64Array::from(vec![0, 1, 0]));
    check("date_part('year', ts)", Int64Array::from(vec![2026, 2026, 1970]));
    check("cast(ts as bigint)", Int64Array::from(vec![1_767_225_600_007, 1_767_229_200_000, 0]));
    let days = TimestampMillisecondArray::from(vec![1_767_225_600_000, 1_767_225_600_000, 0]).with_timezone("UTC");
    check("date_trunc('day', ts)", days);
    check("n % 2 = 0", BooleanArray::from(vec![false, true, true]));
    check("flag", BooleanArray::from(vec![Some(true), Some(false), None]));
    check("'fixed'", StringArray::from(vec!["fixed"; 3]));
    check("ts > '2020-01-01T00:00:00Z'", BooleanArray::from(vec![true, true, false]));
}

#[test]
fn errors_say_what_to_do() {
    check_error("amonut + 1", "there is no column `amonut` (did you mean `amount`?)");
    check_error("country = 'DE'", "there is no column `country` (did you mean `Country`?)");
    check_error("mean_24h", "there is no column `mean_24h` (did you mean `card.mean_24h`?)");
    check_error("card.mean_25h", "there is no column `card.mean_25h` (did you mean `card.mean_24h`?)");
    check_error("uper(Country)", "there is no function `uper` (did you mean `upper`?)");
    check_error(
        "sum(amount)",
        "`sum` needs many rows, and an expression sees one (aggregate over a window in a feature group, under `features`)",
    );
    check_error(
        "lag(amount) over (order by ts)",
        "`lag` over a window needs many rows, and an expression sees one (aggregate over a window in a feature group, under `features`)",
    );
    check_error(
        "(select 1)",
        "a subquery needs other rows, and an expression sees one (read other streams through a feature group, under `features`)",
    );
    for sql in ["now()", "current_timestamp", "random()", "uuid()", "current_date"] {
        let name = sql.trim_end_matches("()");
        let why = "may answer differently for the same row, so a replay would differ";
        check_error(sql, &format!("`{name}` {why} (use the event's own time and columns)"));
    }
    check_error("", "the expression is empty");
    check_error("amount +", "can't read `amount +` as SQL: expected an expression, found: EOF");
    check_error("amount amount", "can't read `amount amount` as SQL: `amount` is not expected after `amount`");
    check_error("amount + flag", "cannot coerce arithmetic expression float64 + bool to valid types");
    check_error("upper(flag)", "function 'upper' requires String, but received bool");
    check_error("round('x')", "function 'round' failed to match any signature");
    check_error("1 / 0", "divide by zero error");
    check_error("Country ~ 'a('", "the regular expression is wrong: unclosed group");
    check_error(
        "n = Country",
        "`=` stands between int64 and string (say which type is meant: `cast(... as double)` or `cast(... as varchar)`)",
    );
    check_error("n = 'x'", "cast error: Cannot cast string 'x' to value of int64 type");
    check_error("n[1]", "`n[1]` is about a list or a structure, and a column holds one value");
    check_error("$1", "`$1` is a placeholder; write the value");
    let columns = "which no column can hold; a column is bool, int64, float64, string or timestamp";
    check_error("null", &format!("`null` is null, {columns} (say which: `cast(null as double)`)"));
    check_error("*", "can't read `*` as SQL: expected an expression, found: *");
}

#[test]
fn a_condition_is_boolean_and_false_where_null() {
    let batch = batch();
    let condition = Expression::condition("amount > 0", &batch.schema()).unwrap();
    assert_eq!(condition.evaluate(&batch).unwrap().as_boolean(), &BooleanArray::from(vec![true, false, false]));
    let error = Expression::condition("amount", &batch.schema()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "`amount` is float64, not a condition (compare it with something, as in `amount > 0`)"
    );
}

#[test]
fn a_plain_column_is_given_without_a_copy() {
    let batch = batch();
    let expression = Expression::compile("card.mean_24h", &batch.schema()).unwrap();
    assert!(Arc::ptr_eq(&expression.evaluate(&batch).unwrap(), batch.column(1)));
    assert_eq!(expression.columns(), ["card.mean_24h"]);
    let list = Schema::new(vec![Field::new_list("features", Field::new_list_field(DataType::Float64, true), true)]);
    assert!(Expression::compile("features", &list).is_ok(), "a plain column may have any type");
}

#[test]
fn a_failing_row_is_told_apart() {
    let batch = batch();
    let expression = Expression::compile("6 / n", &batch.schema()).unwrap();
    assert!(expression.evaluate(&batch).is_err());
    let Evaluated { values, failed } = expression.evaluate_each(&batch);
    assert_eq!(values.as_primitive::<Int64Type>(), &Int64Array::from(vec![Some(6), None, Some(3)]));
    assert_eq!(failed, [(1, "divide by zero error".to_string())]);
}

#[test]
fn an_expression_too_deep_for_the_stack_is_refused() {
    let chain = |terms: usize| vec!["n"; terms].join(" + ");
    assert!(Expression::compile(&chain(99), &batch().schema()).is_ok());
    let error = Expression::compile(&chain(101), &batch().schema()).unwrap_err();
    assert!(error.message.contains("too deep"), "{error}");
    let nested = |open: &str, levels: usize| format!("{}n{}", open.repeat(levels), ")".repeat(levels));
    for sql in
        [nested("abs(", 19), nested("coalesce(n, ", 19), nested("1 + (", 20), nested("- (", 20), "- ".repeat(15) + "n"]
    {
        assert!(Expression::compile(&sql, &batch().schema()).is_ok(), "{sql}");
    }
    let error = Expression::compile(&chain(100_000), &batch().schema()).unwrap_err();
    assert!(error.message.contains("at most 500"), "{error}");
    for sql in [
        nested("abs(", 40),
        "(".repeat(100_000),
        "not ".repeat(400) + "flag",
        "- ".repeat(400) + "n",
        "case when ".repeat(90),
    ] {
        assert!(Expression::compile(&sql, &batch().schema()).is_err());
    }
    let list = (0..5_000).map(|n| n.to_string()).collect::<Vec<_>>().join(",");
    assert!(Expression::compile(&format!("n in ({list})"), &batch().schema()).is_ok());
}

proptest! {
    #[test]
    fn what_is_typed_never_panics(sql in "[a-z0-9 ()'\".,*/+<>=-]{0,40}") {
        let _ = Expression::compile(&sql, &batch().schema());
    }

    #[test]
    fn failing_rows_do_not_depend_on_their_neighbours(divisors in prop::collection::vec(-2i64..3, 1..40)) {
        let column: ArrayRef = Arc::new(Int64Array::from(divisors.clone()));
        let records = RecordBatch::try_from_iter([("d", column)]).unwrap();
        let expression = Expression::compile("10 / d", &records.schema()).unwrap();
        let Evaluated { values, failed } = expression.evaluate_each(&records);
        let expected: Vec<Option<i64>> = divisors.iter().map(|d| 10i64.checked_div(*d)).collect();
        prop_assert_eq!(values.as_primitive::<Int64Type>(), &Int64Array::from(expected));
        let zeros: Vec<usize> = (0..divisors.len()).filter(|row| divisors[*row] == 0).collect();
        prop_assert_eq!(failed.iter().map(|(row, _)| *row).collect::<Vec<_>>(), zeros);
    }
}
