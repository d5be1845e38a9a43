//! Binds a stream's columns to a model's inputs, and the model's outputs to the prediction's columns.
//!
//! ```text
//! features: [a, b, c]      columns a, b, c ─▶ the model's one wide input [n, 3]; other inputs bind by name
//! no features              column x        ─▶ the input `x` [n, 1] or [n]
//! ```

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};

use super::signature::{Classes, Elements, ModelSignature, TensorInfo};
use crate::expressions::type_name;

/// What a topology says about a model, besides its file.
#[derive(Debug, Clone, Copy, Default)]
pub struct ScoreOptions<'a> {
    /// Columns of the packed input, in the model's order.
    pub features: &'a [String],
    /// Name of the output that holds the score.
    pub output: Option<&'a str>,
    /// Column of that output.
    pub class: Option<usize>,
    /// A score at or above it gives label 1.
    pub threshold: Option<f64>,
    /// Whether predictions carry the feature vector.
    pub keep_features: bool,
}

/// Why a model does not fit its stream.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct BindError {
    /// The key of the model's definition that is wrong: `onnx`, `features`, `features[2]`, `output` or `class`.
    pub field: String,
    /// What is wrong, with names and types.
    pub message: String,
    /// What to do.
    pub hint: Option<String>,
}

/// An input of the model and the columns that fill it, row by row.
#[derive(Debug, Clone, PartialEq)]
pub struct InputBinding {
    /// The input.
    pub tensor: TensorInfo,
    /// Indices of the columns in the stream's schema; as many as the input is wide.
    pub columns: Vec<usize>,
}

/// Where a prediction's label comes from.
#[derive(Debug, Clone, PartialEq)]
pub enum LabelBinding {
    /// 1 when the score is at or above the threshold, else 0.
    Threshold(f64),
    /// An `int64` output of the model.
    Int(String),
    /// A text output of the model.
    Text(String),
}

/// A model bound to a stream: what to fill, what to ask for, what comes out.
#[derive(Debug, Clone, PartialEq)]
pub struct Binding {
    /// The inputs, in the graph's order.
    pub inputs: Vec<InputBinding>,
    /// The output that holds the score.
    pub score: TensorInfo,
    /// Column of that output to take; `None` for the last.
    pub class: Option<usize>,
    /// The label, if there is one.
    pub label: Option<LabelBinding>,
    /// Whether predictions carry the feature vector.
    pub keep_features: bool,
    /// Most rows a call may carry.
    pub rows_max: usize,
    /// The prediction's columns: the stream's, then `score` (float64), then `label` (int64 or text) if there is one,
    /// then `features` (list of float64) if asked for.
    pub schema: SchemaRef,
}

/// Most rows in one call of a model. Beyond it a call no longer gets cheaper by the row, but later rows wait longer.
pub const ROWS_MAX: usize = 256;

/// Binds the columns of `schema` to the model described by `signature`.
///
/// # Errors
/// If an input has no column, a type or a width does not fit, or the score's output is not clear.
pub fn bind(signature: &ModelSignature, options: &ScoreOptions<'_>, schema: &SchemaRef) -> Result<Binding, BindError> {
    let inputs = inputs(signature, options.features, schema)?;
    let score = score_output(signature, options)?.clone();
    let label = label(signature, options);
    if options.keep_features
        && let Some(text) = inputs.iter().find(|input| input.tensor.elements == Elements::Text)
    {
        return Err(error(
            "keep_features",
            format!("the model's input {} is text, which has no place in a list of numbers", text.tensor),
            "leave keep_features out; the prediction carries the column itself",
        ));
    }
    let schema = output_schema(schema, label.as_ref(), options.keep_features)?;
    Ok(Binding {
        inputs,
        score,
        class: options.class,
        label,
        keep_features: options.keep_features,
        rows_max: signature.rows_max.clamp(1, ROWS_MAX),
        schema,
    })
}

fn error(field: &str, message: String, hint: &str) -> BindError {
    BindError { field: field.into(), message, hint: (!hint.is_empty()).then(|| hint.into()) }
}

fn inputs(signature: &ModelSignature, features: &[String], schema: &Schema) -> Result<Vec<InputBinding>, BindError> {
    let packed = if features.is_empty() { None } else { Some(packed_input(signature, features)?) };
    let mut bound = Vec::with_capacity(signature.inputs.len());
    for (index, tensor) in signature.inputs.iter().enumerate() {
        let names: Vec<(String, &str)> = match packed {
            Some(Packed::One(wide)) if wide == index => {
                features.iter().enumerate().map(|(i, name)| (format!("features[{i}]"), name.as_str())).collect()
            }
            Some(Packed::Each) => vec![(format!("features[{index}]"), features[index].as_str())],
            _ => vec![("onnx".into(), single_column(tensor)?)],
        };
        let columns =
            names.iter().map(|(field, name)| column(field, name, tensor, schema)).collect::<Result<_, _>>()?;
        bound.push(InputBinding { tensor: tensor.clone(), columns });
    }
    Ok(bound)
}

#[derive(Clone, Copy)]
enum Packed {
    /// All features go to the input of this index.
    One(usize),
    /// Every input takes one feature, in order.
    Each,
}

fn packed_input(signature: &ModelSignature, features: &[String]) -> Result<Packed, BindError> {
    let wide: Vec<usize> = (0..signature.inputs.len()).filter(|i| signature.inputs[*i].width() != Some(1)).collect();
    let index = match (wide.as_slice(), signature.inputs.len()) {
        ([index], _) => *index,
        ([], 1) => 0,
        ([], inputs) if inputs == features.len() => return Ok(Packed::Each),
        ([], inputs) => {
            let message = format!(
                "{} features are listed, the model has {inputs} inputs of one value each: {}",
                features.len(),
                list(&signature.inputs)
            );
            return Err(error(
                "features",
                message,
                "list one column for each input in this order, or leave `features` out to bind by name",
            ));
        }
        _ => {
            let message = format!(
                "the model has {} packed inputs, and `features` can fill one: {}",
                wide.len(),
                list(&signature.inputs)
            );
            return Err(error(
                "onnx",
                message,
                "export the model with one packed input, or with one input for each feature",
            ));
        }
    };
    let tensor = &signature.inputs[index];
    match tensor.width() {
        Some(width) if width != features.len() => Err(error(
            "features",
            format!("the model's input {tensor} takes {width} values a row, {} features are listed", features.len()),
            "list the columns the model was trained on, in the order of its training",
        )),
        _ => Ok(Packed::One(index)),
    }
}

fn single_column(tensor: &TensorInfo) -> Result<&str, BindError> {
    match tensor.width() {
        Some(1) | None => Ok(&tensor.name),
        Some(width) => Err(error(
            "onnx",
            format!("the model's input {tensor} takes {width} values a row, and nothing says which columns they are"),
            "list them in `features`, in the order of the model's training",
        )),
    }
}

fn column(field: &str, name: &str, tensor: &TensorInfo, schema: &Schema) -> Result<usize, BindError> {
    let Ok(index) = schema.index_of(name) else {
        let known: Vec<&str> = schema.fields().iter().map(|f| f.name().as_str()).collect();
        let message = if field == "onnx" {
            format!("the model's input {tensor} has no column of that name; there are {}", known.join(", "))
        } else {
            format!("there is no column `{name}`; there are {}", known.join(", "))
        };
        return Err(error(field, message, "name the columns in `features`, or derive a column of that name"));
    };
    let data_type = schema.field(index).data_type();
    if fits(data_type, &tensor.elements) {
        return Ok(index);
    }
    let hint = match &tensor.elements {
        Elements::Int64 | Elements::Int32 => format!("derive a column with cast({name} as bigint)"),
        Elements::Text => format!("derive a column with cast({name} as varchar)"),
        Elements::Bool => "derive a column with a comparison, such as x > 0".into(),
        Elements::Other(other) => format!("export the model with float32 inputs; {other} is not supported"),
        _ => "derive a number from it with an expression".into(),
    };
    Err(error(
        field,
        format!("column `{name}` is {}, the model's input {tensor} wants {}", type_name(data_type), tensor.elements),
        &hint,
    ))
}

/// Whether values of a column go into a tensor without losing their meaning. Precision may be lost: that is the model's choice.
fn fits(column: &DataType, elements: &Elements) -> bool {
    match elements {
        Elements::Float32 | Elements::Float64 => column.is_numeric() || *column == DataType::Boolean,
        Elements::Int64 | Elements::Int32 => column.is_integer() || *column == DataType::Boolean,
        Elements::Bool => *column == DataType::Boolean,
        Elements::Text => matches!(column, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View),
        Elements::Other(_) => false,
    }
}

fn score_output<'s>(signature: &'s ModelSignature, options: &ScoreOptions<'_>) -> Result<&'s TensorInfo, BindError> {
    let output = match options.output {
        Some(name) => signature.output(name).ok_or_else(|| {
            error(
                "output",
                format!("the model has no output `{name}`; it has {}", list(&signature.outputs)),
                "name one of these",
            )
        })?,
        None => default_output(signature)?,
    };
    if !matches!(output.elements, Elements::Float32 | Elements::Float64 | Elements::Int64) {
        let message = format!("the output {output} holds no numbers");
        return Err(error("output", message, "name an output of floating-point numbers"));
    }
    if let (Some(class), Some(width)) = (options.class, output.width())
        && class >= width
    {
        let classes = match &signature.classes {
            Some(Classes::Int(labels)) => format!(", the classes {labels:?}"),
            Some(Classes::Text(labels)) => format!(", the classes {labels:?}"),
            None => String::new(),
        };
        let message = format!("class {class} is beyond the output {output}, which has {width} columns{classes}");
        return Err(error("class", message, "classes count from 0"));
    }
    Ok(output)
}

fn default_output(signature: &ModelSignature) -> Result<&TensorInfo, BindError> {
    if let Some(output) = signature.output("probabilities").filter(|o| o.elements.floating()) {
        return Ok(output);
    }
    let floating: Vec<&TensorInfo> = signature.outputs.iter().filter(|o| o.elements.floating()).collect();
    match floating.as_slice() {
        [output] => Ok(output),
        _ => Err(error(
            "output",
            format!("which output is the score? The model has {}", list(&signature.outputs)),
            "name it with `output`",
        )),
    }
}

/// A model's own label: an output that converters call `label` or `output_label`, one value a row.
fn label(signature: &ModelSignature, options: &ScoreOptions<'_>) -> Option<LabelBinding> {
    if let Some(threshold) = options.threshold {
        return Some(LabelBinding::Threshold(threshold));
    }
    let output = signature.output("label").or_else(|| signature.output("output_label"))?;
    if options.output.is_some_and(|score| signature.output(score) == Some(output))
        || output.width().is_some_and(|w| w != 1)
    {
        return None;
    }
    match output.elements {
        Elements::Int64 => Some(LabelBinding::Int(output.name.clone())),
        Elements::Text => Some(LabelBinding::Text(output.name.clone())),
        _ => None,
    }
}

fn output_schema(schema: &Schema, label: Option<&LabelBinding>, keep_features: bool) -> Result<SchemaRef, BindError> {
    let mut added = vec![Field::new("score", DataType::Float64, false)];
    match label {
        Some(LabelBinding::Text(_)) => added.push(Field::new("label", DataType::Utf8, false)),
        Some(_) => added.push(Field::new("label", DataType::Int64, false)),
        None => {}
    }
    if keep_features {
        added.push(Field::new(
            "features",
            DataType::List(Arc::new(Field::new("element", DataType::Float64, true))),
            false,
        ));
    }
    if let Some(taken) = added.iter().find(|field| schema.index_of(field.name()).is_ok()) {
        let message = format!("the stream already has a column `{}`, which a prediction adds", taken.name());
        return Err(error("from", message, "rename it before the model, in a prepared stream"));
    }
    let fields: Vec<_> = schema.fields().iter().cloned().chain(added.into_iter().map(Arc::new)).collect();
    Ok(Arc::new(Schema::new(fields)))
}

fn list(tensors: &[TensorInfo]) -> String {
    tensors.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
