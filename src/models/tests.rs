//! Every family of models that users deploy, by file: `tests/models/*.onnx` with inputs and expected outputs in
//! `*.io.json`, and `tests/models/bad/*.onnx`, which must be refused where `bad.json` says.

use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Float64Array, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Float64Type, Int64Type, Schema, SchemaRef};
use millstream_operators::score::{Score, ScoreOptions, bind};
use millstream_operators::{Batch, Operator, Outputs, Row};
use serde_json::Value;

use super::*;

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/models")
}

fn json(path: PathBuf) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// The rows of an `io.json` as columns: an input of width 1 is a column of its name, a wider one columns `f0`, `f1` ...
fn stream(io: &Value) -> (RecordBatch, Vec<String>) {
    let (mut fields, mut columns, mut features) = (Vec::new(), Vec::<ArrayRef>::new(), Vec::new());
    for (name, input) in io["inputs"].as_object().unwrap() {
        let data = input["data"].as_array().unwrap();
        let width = data.len() / input["shape"][0].as_u64().unwrap() as usize;
        for at in 0..width {
            let cells: Vec<&Value> = data.iter().skip(at).step_by(width).collect();
            let column: ArrayRef = match input["dtype"].as_str().unwrap() {
                "string" => Arc::new(cells.iter().map(|c| c.as_str()).collect::<StringArray>()),
                "bool" => Arc::new(cells.iter().map(|c| c.as_bool()).collect::<BooleanArray>()),
                "int64" | "int32" => Arc::new(cells.iter().map(|c| c.as_i64()).collect::<Int64Array>()),
                _ => Arc::new(cells.iter().map(|c| c.as_f64()).collect::<Float64Array>()),
            };
            let name = if width == 1 { name.clone() } else { format!("f{at}") };
            if width > 1 {
                features.push(name.clone());
            }
            fields.push(Field::new(name, column.data_type().clone(), true));
            columns.push(column);
        }
    }
    (RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap(), features)
}

fn batch(records: RecordBatch) -> Batch {
    let row = |offset| Row { source: 0, partition: 0, offset, event_time: 0, arrived_micros: 0 };
    let rows = (0..records.num_rows() as i64).map(row).collect();
    Batch::new(records, rows)
}

fn score(path: &std::path::Path, records: &RecordBatch, options: &ScoreOptions<'_>) -> Outputs {
    let binding = bind(&inspect(path).unwrap(), options, &records.schema()).unwrap();
    let model = open(path, &binding, false).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let scorer = model.scorer(&binding).unwrap();
    let mut operator = Score::new("model", binding, Box::new(scorer));
    let mut out = Outputs::new(1);
    operator.process(0, batch(records.clone()), &mut out);
    out
}

/// The expected values of an output by row and column: a tensor, a list of maps by class, or a list of tensors.
fn expected(name: &str, output: &Value) -> Vec<(String, Vec<Vec<f64>>)> {
    let rows = |rows: &[Value]| -> Vec<Vec<f64>> {
        let row = |row: &Value| match row {
            Value::Object(map) => map.values().map(|v| v.as_f64().unwrap()).collect(),
            _ => row.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect(),
        };
        rows.iter().map(row).collect()
    };
    match output {
        Value::Object(tensor) if tensor["dtype"].as_str().unwrap().starts_with("float") => {
            let data: Vec<f64> = tensor["data"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
            let width = data.len() / tensor["shape"][0].as_u64().unwrap() as usize;
            vec![(name.into(), data.chunks(width).map(<[f64]>::to_vec).collect())]
        }
        Value::Array(list) if list[0].is_object() => vec![(name.into(), rows(list))],
        Value::Array(list) => {
            list.iter().enumerate().map(|(i, t)| (format!("{name}[{i}]"), rows(t.as_array().unwrap()))).collect()
        }
        _ => Vec::new(),
    }
}

#[test]
fn every_good_model_gives_the_expected_scores_and_labels() {
    let index = json(folder().join("index.json"));
    for model in index["models"].as_array().unwrap() {
        let (name, tolerance) = (model["name"].as_str().unwrap(), model["tol"].as_f64().unwrap());
        let path = folder().join(format!("{name}.onnx"));
        let io = json(folder().join(format!("{name}.io.json")));
        let (records, features) = stream(&io);
        let mut compared = 0;
        for (output, rows) in
            io["outputs"].as_object().unwrap().iter().flat_map(|(name, output)| expected(name, output))
        {
            for class in 0..rows[0].len() {
                let options = ScoreOptions {
                    features: &features,
                    output: Some(&output),
                    class: Some(class),
                    ..Default::default()
                };
                let out = score(&path, &records, &options);
                assert!(out.rejects.is_empty(), "{name}: {:?}", out.rejects);
                let scored = &out.ports[0][0].records;
                let scores = scored.column_by_name("score").unwrap().as_primitive::<Float64Type>();
                for (row, expected) in rows.iter().enumerate() {
                    let difference = (scores.value(row) - expected[class]).abs();
                    assert!(
                        difference <= tolerance * expected[class].abs().max(1.0),
                        "{name} {output}[{class}] row {row}"
                    );
                }
                check_labels(name, scored, &io["outputs"]);
                compared += 1;
            }
        }
        assert!(compared > 0, "{name}: nothing was compared");
    }
}

fn check_labels(name: &str, scored: &RecordBatch, outputs: &Value) {
    let expected = outputs.get("label").or_else(|| outputs.get("output_label"));
    let Some(label) = scored.column_by_name("label") else {
        // The only label that is not taken has several columns.
        assert!(expected.is_none_or(|label| label["shape"][1].as_u64() == Some(2)), "{name}: the label is missing");
        return;
    };
    for (row, expected) in expected.unwrap()["data"].as_array().unwrap().iter().enumerate() {
        match expected {
            Value::String(text) => assert_eq!(label.as_string::<i32>().value(row), text, "{name}"),
            _ => assert_eq!(label.as_primitive::<Int64Type>().value(row), expected.as_i64().unwrap(), "{name}"),
        }
    }
}

#[test]
fn every_bad_model_is_refused_where_it_must_be() {
    let features: Vec<String> = (0..4).map(|i| format!("f{i}")).collect();
    let schema: SchemaRef = Arc::new(Schema::new(
        features.iter().map(|name| Field::new(name, DataType::Float64, true)).collect::<Vec<_>>(),
    ));
    for bad in json(folder().join("bad/bad.json")).as_array().unwrap() {
        let (file, stage) = (bad["file"].as_str().unwrap(), bad["must_fail_at"].as_str().unwrap());
        // The pipeline binds by name where the file's fault is a name.
        let options = match file {
            "bad/wrong_input_name.onnx" => ScoreOptions::default(),
            _ => ScoreOptions { features: &features, output: Some("prob"), ..Default::default() },
        };
        let (at, message) = refusal(&folder().join(file), &options, &schema);
        // What a limit of memory would catch when the model runs is seen when its file is read.
        let right = stage.starts_with(at) || (stage == "validation (memory limit)" && at == "load");
        assert!(right, "{file} must fail at {stage}, failed at {at}: {message}");
    }
}

/// Where a model is refused, and why.
fn refusal(path: &std::path::Path, options: &ScoreOptions<'_>, schema: &SchemaRef) -> (&'static str, String) {
    let model = match OnnxModel::read(path) {
        Ok(model) => model,
        Err(e) => return ("load", e.to_string()),
    };
    let binding = match bind(model.signature(), options, schema) {
        Ok(binding) => binding,
        Err(e) => return ("bind", e.to_string()),
    };
    let mut scorer = match model.scorer(&binding) {
        Ok(scorer) => scorer,
        Err(e) => return ("load", e.to_string()),
    };
    match probe::probe(&mut scorer, &binding, false, Duration::from_millis(300)) {
        Ok(()) => ("nowhere", String::new()),
        Err(e) => ("validation", e.to_string()),
    }
}

#[test]
fn refusals_say_what_the_file_is() {
    let cases = [
        ("empty.onnx", "the file is empty"),
        ("text.onnx", "the file is text, not an ONNX model; it starts with \"<"),
        ("truncated.onnx", "field 7 announces 17045 bytes and 8515 are left"),
        ("external_data_path_escape.onnx", "../../../../etc/passwd"),
        ("memory_bomb_160GB.onnx", "160000000000 bytes"),
    ];
    for (file, part) in cases {
        let message = inspect(&folder().join("bad").join(file)).unwrap_err().to_string();
        assert!(message.contains(part), "{message}");
    }
    let message = inspect(&folder().join("nowhere.onnx")).unwrap_err().to_string();
    assert!(message.contains("nowhere.onnx: No such file"), "{message}");
}

#[test]
fn a_model_may_be_allowed_to_answer_nan_and_its_rows_are_rejected() {
    let path = folder().join("bad/nan_output.onnx");
    let names: Vec<String> = (0..4).map(|i| format!("f{i}")).collect();
    let column = |values: Vec<f64>| Arc::new(Float64Array::from(values)) as ArrayRef;
    let columns: Vec<(&str, ArrayRef)> = names.iter().map(|n| (n.as_str(), column(vec![1.0, -1.0, 2.0]))).collect();
    let records = RecordBatch::try_from_iter(columns).unwrap();
    let options = ScoreOptions { features: &names, keep_features: true, threshold: Some(0.5), ..Default::default() };
    let binding = bind(&inspect(&path).unwrap(), &options, &records.schema()).unwrap();
    let scorer = open(&path, &binding, true).unwrap().scorer(&binding).unwrap();
    let mut operator = Score::new("model", binding.clone(), Box::new(scorer));
    let mut out = Outputs::new(1);
    operator.process(0, batch(records), &mut out);
    let scored = &out.ports[0][0];
    assert_eq!(scored.rows.iter().map(|row| row.offset).collect::<Vec<_>>(), [0, 2]);
    assert_eq!(scored.records.column_by_name("label").unwrap().as_primitive::<Int64Type>().values(), &[0, 1]);
    let features = scored.records.column_by_name("features").unwrap().as_list::<i32>().value(1);
    assert_eq!(features.as_primitive::<Float64Type>().values(), &[2.0; 4]);
    assert_eq!(out.rejects.len(), 1);
    assert_eq!((out.rejects[0].row.offset, out.rejects[0].detail.as_str()), (1, "the model answered NaN"));
}

#[test]
fn one_row_the_model_fails_on_does_not_fail_its_neighbours() {
    let path = folder().join("torch_embedding_multi_input.onnx");
    let io = json(folder().join("torch_embedding_multi_input.io.json"));
    let (records, features) = stream(&io);
    let options = ScoreOptions { features: &features, ..Default::default() };
    let good = score(&path, &records, &options);
    let at = records.schema().index_of("user_id").unwrap();
    let mut ids: Vec<Option<i64>> = records.column(at).as_primitive::<Int64Type>().iter().collect();
    (ids[5], ids[11]) = (Some(1_000_000), None);
    let mut columns = records.columns().to_vec();
    columns[at] = Arc::new(Int64Array::from(ids));
    let out = score(&path, &RecordBatch::try_new(records.schema(), columns).unwrap(), &options);
    let reasons: Vec<_> = out.rejects.iter().map(|r| (r.row.offset, r.reason.as_str())).collect();
    assert_eq!(reasons, [(11, "missing_field"), (5, "model_failed")]);
    assert_eq!(out.ports[0][0].len(), 14);
    let scores = |out: &Outputs, row: usize| {
        let column = out.ports[0][0].records.column_by_name("score").unwrap().clone();
        column.as_primitive::<Float64Type>().value(row)
    };
    assert_eq!(scores(&out, 0), scores(&good, 0));
    assert_eq!(scores(&out, 5), scores(&good, 6), "row 5 is gone");
    assert_eq!(scores(&out, 13), scores(&good, 15));
}
