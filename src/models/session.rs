//! A loaded model: ONNX Runtime's session behind the engine's [`Scorer`].

use millstream_operators::score::{Binding, LabelBinding, ModelFailed, Scorer, Scores, TensorInfo, Values};
use ort::logging::LogLevel;
use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};
use ort::session::{
    HasSelectedOutputs, NoSelectedOutputs, OutputSelector, RunOptions, Session, SessionInputValue, SessionOutputs,
};
use ort::value::{DynValue, Tensor, TensorRef};

use super::ModelError;
use super::runtime;

/// Scores rows with ONNX Runtime, on the thread that calls it. One for each worker.
pub struct OnnxScorer {
    session: Session,
    options: RunOptions<HasSelectedOutputs>,
    inputs: Vec<TensorInfo>,
    score: String,
    class: Option<usize>,
    label: Option<LabelBinding>,
}

impl OnnxScorer {
    pub(super) fn new(session: Session, binding: &Binding) -> Result<Self, ort::Error> {
        let score = binding.score.name.clone();
        // Only what is asked for is computed and checked: converters declare wrong shapes for outputs nobody reads.
        let mut outputs = OutputSelector::no_default().with(&score);
        if let Some(LabelBinding::Int(label) | LabelBinding::Text(label)) = &binding.label {
            outputs = outputs.with(label);
        }
        Ok(OnnxScorer {
            session,
            options: RunOptions::new()?.with_outputs(outputs),
            inputs: binding.inputs.iter().map(|input| input.tensor.clone()).collect(),
            score,
            class: binding.class,
            label: binding.label.clone(),
        })
    }
}

/// Makes a session of a model: one thread, the caller's.
pub(super) fn session(model: &[u8]) -> Result<Session, ModelError> {
    let environment = runtime::environment()?;
    let load = || -> Result<Session, ort::Error> {
        Session::builder(&environment)?.with_settings()?.commit_from_memory(model)
    };
    load().map_err(|e| ModelError::Load { reason: e.message().to_owned() })
}

trait Settings: Sized {
    fn with_settings(self) -> Result<Self, ort::Error>;
}

impl Settings for SessionBuilder {
    fn with_settings(self) -> Result<Self, ort::Error> {
        let builder = self.with_intra_threads(1)?.with_inter_threads(1)?.with_intra_op_spinning(false)?;
        let builder = builder.with_optimization_level(GraphOptimizationLevel::Level3)?;
        // A row the model fails on is a reject and says why there; a wrong declared shape is warned of at every call.
        Ok(builder.with_log_level(LogLevel::Fatal)?)
    }
}

impl Scorer for OnnxScorer {
    fn score(&mut self, inputs: &[Values], rows: usize, scores: &mut Scores) -> Result<(), ModelFailed> {
        let before = (scores.scores.len(), scores.ints.len(), scores.texts.len());
        let scored = self.run(inputs, rows, scores);
        if scored.is_err() {
            scores.scores.truncate(before.0);
            scores.ints.truncate(before.1);
            scores.texts.truncate(before.2);
        }
        scored
    }
}

impl OnnxScorer {
    fn run(&mut self, inputs: &[Values], rows: usize, scores: &mut Scores) -> Result<(), ModelFailed> {
        let tensors = tensors(&self.inputs, inputs, rows)?;
        let outputs = self.session.run_with_options(tensors.as_slice(), &self.options).map_err(failed)?;
        read_scores(answer(&outputs, &self.score)?, &self.score, self.class, rows, &mut scores.scores)?;
        match &self.label {
            Some(LabelBinding::Int(name)) => {
                let (_, labels) = answer(&outputs, name)?.try_extract_tensor::<i64>().map_err(failed)?;
                one_a_row(name, labels.len(), rows)?;
                scores.ints.extend_from_slice(labels);
            }
            Some(LabelBinding::Text(name)) => {
                let (_, labels) = answer(&outputs, name)?.try_extract_strings().map_err(failed)?;
                one_a_row(name, labels.len(), rows)?;
                scores.texts.extend(labels);
            }
            Some(LabelBinding::Threshold(_)) | None => {}
        }
        Ok(())
    }

    /// One row through the model, all outputs, under options that another thread may use to stop it.
    pub(super) fn run_once(
        &mut self,
        inputs: &[Values],
        options: &RunOptions<NoSelectedOutputs>,
    ) -> Result<(), ModelFailed> {
        let tensors = tensors(&self.inputs, inputs, 1)?;
        self.session.run_with_options(tensors.as_slice(), options).map(|_| ()).map_err(failed)
    }
}

fn tensors<'v>(
    inputs: &[TensorInfo],
    values: &'v [Values],
    rows: usize,
) -> Result<Vec<SessionInputValue<'v>>, ModelFailed> {
    let tensors = inputs.iter().zip(values).map(|(tensor, values)| input(tensor, values, rows));
    tensors.collect::<Result<_, _>>().map_err(failed)
}

fn failed(error: ort::Error) -> ModelFailed {
    ModelFailed(error.message().to_owned())
}

fn answer<'o>(outputs: &'o SessionOutputs<'_>, name: &str) -> Result<&'o DynValue, ModelFailed> {
    outputs.get(name).ok_or_else(|| ModelFailed(format!("no output `{name}`")))
}

fn one_a_row(name: &str, values: usize, rows: usize) -> Result<(), ModelFailed> {
    if values == rows {
        Ok(())
    } else {
        Err(ModelFailed(format!("output `{name}` has {values} values for {rows} rows")))
    }
}

/// The tensor of an input over the operator's buffer; only text is copied. Open dimensions after the batch take what is there.
fn input<'v>(tensor: &TensorInfo, values: &'v Values, rows: usize) -> Result<SessionInputValue<'v>, ort::Error> {
    let length = match values {
        Values::Float32(v) => v.len(),
        Values::Float64(v) => v.len(),
        Values::Int64(v) => v.len(),
        Values::Int32(v) => v.len(),
        Values::Bool(v) => v.len(),
        Values::Text(v) => v.len(),
    };
    let mut shape = Vec::with_capacity(4);
    shape.push(rows as i64);
    let known: u64 = tensor.dims.iter().skip(1).flatten().product();
    let mut open = (length / rows.max(1)) as i64 / known.max(1) as i64;
    for dim in tensor.dims.iter().skip(1) {
        // A second open dimension has length 1.
        shape.push(dim.map_or_else(|| std::mem::replace(&mut open, 1), |dim| dim as i64));
    }
    Ok(match values {
        Values::Float32(values) => TensorRef::from_array_view((shape, values.as_slice()))?.into(),
        Values::Float64(values) => TensorRef::from_array_view((shape, values.as_slice()))?.into(),
        Values::Int64(values) => TensorRef::from_array_view((shape, values.as_slice()))?.into(),
        Values::Int32(values) => TensorRef::from_array_view((shape, values.as_slice()))?.into(),
        Values::Bool(values) => TensorRef::from_array_view((shape, values.as_slice()))?.into(),
        Values::Text(values) => Tensor::from_string_array((shape, values.as_slice()))?.into(),
    })
}

/// Reads one score a row from an output of any shape whose first dimension is the batch. What counts is the shape of
/// the answer, not the one declared.
fn read_scores(
    value: &DynValue,
    name: &str,
    class: Option<usize>,
    rows: usize,
    into: &mut Vec<f64>,
) -> Result<(), ModelFailed> {
    if let Ok((shape, values)) = value.try_extract_tensor::<f32>() {
        let columns = columns(shape, values.len(), name, class, rows)?;
        into.extend(values.chunks_exact(columns.of).map(|row| f64::from(row[columns.take])));
    } else if let Ok((shape, values)) = value.try_extract_tensor::<f64>() {
        let columns = columns(shape, values.len(), name, class, rows)?;
        into.extend(values.chunks_exact(columns.of).map(|row| row[columns.take]));
    } else {
        let (shape, values) = value.try_extract_tensor::<i64>().map_err(failed)?;
        let columns = columns(shape, values.len(), name, class, rows)?;
        into.extend(values.chunks_exact(columns.of).map(|row| row[columns.take] as f64));
    }
    Ok(())
}

/// Values in a row of an output, and the one to take: `take < of`.
struct Columns {
    of: usize,
    take: usize,
}

fn columns(
    shape: &[i64],
    values: usize,
    name: &str,
    class: Option<usize>,
    rows: usize,
) -> Result<Columns, ModelFailed> {
    if shape.first().copied() != Some(rows as i64) || values == 0 {
        return Err(ModelFailed(format!("output `{name}` has shape {shape:?} for {rows} rows")));
    }
    let of = values / rows;
    let take = class.unwrap_or(of - 1);
    if take >= of {
        return Err(ModelFailed(format!("output `{name}` has {of} columns, class {take} is none of them")));
    }
    Ok(Columns { of, take })
}
