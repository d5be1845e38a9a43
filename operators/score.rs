//! Scores rows with a model: the batch that arrived is the micro-batch, so a row never waits for others.
//!
//! ```text
//! columns ─▶ input tensors ─▶ Scorer ─▶ score, label ─▶ the same rows with more columns
//!                                └─ a row the model fails on, or answers NaN ─▶ rejects (its neighbours go on)
//! ```
//!
//! The operator is pure: a [`Scorer`] does the arithmetic. The engine's own runs ONNX Runtime; a test's may be a closure.

mod binding;
mod inputs;
mod signature;

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, Float64Array, Int64Array, ListArray, StringArray};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{DataType, SchemaRef};
use arrow::error::ArrowError;

pub use binding::{BindError, Binding, InputBinding, LabelBinding, ROWS_MAX, ScoreOptions, bind};
pub use inputs::Values;
pub use signature::{Classes, Elements, ModelSignature, TensorInfo};

use crate::batch::Batch;
use crate::operator::{Operator, Outputs};
use crate::reject::{Reason, Reject};

/// A model that is ready to score.
pub trait Scorer: Send {
    /// Scores `rows` rows and appends to `scores` one score for each and, if the binding has a label of the model's own,
    /// one label. `inputs` stand in the order of the binding, row-major, `rows x width` values each.
    ///
    /// # Errors
    /// If the model fails on these rows; then nothing has been appended. The caller tries again with fewer rows, to find
    /// the one that fails.
    fn score(&mut self, inputs: &[Values], rows: usize, scores: &mut Scores) -> Result<(), ModelFailed>;
}

/// What a model answered, row by row.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Scores {
    /// One score a row.
    pub scores: Vec<f64>,
    /// One label a row, if the label is an integer output of the model.
    pub ints: Vec<i64>,
    /// One label a row, if the label is a text output of the model.
    pub texts: Vec<String>,
}

impl Scores {
    fn clear(&mut self) {
        self.scores.clear();
        self.ints.clear();
        self.texts.clear();
    }
}

/// The model failed: what the runtime said.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ModelFailed(pub String);

/// Adds `score` (and `label`, and `features`) to every row.
pub struct Score {
    stage: Arc<str>,
    binding: Binding,
    scorer: Box<dyn Scorer>,
    /// Input tensors, kept so that their memory is.
    tensors: Vec<Values>,
    /// Answers for the batch in work, kept so that its memory is.
    scores: Scores,
}

impl Score {
    /// A node named `stage` that scores with `scorer`.
    pub fn new(stage: &str, binding: Binding, scorer: Box<dyn Scorer>) -> Self {
        let tensors = binding.inputs.iter().map(|input| Values::empty(&input.tensor.elements)).collect();
        Score { stage: stage.into(), binding, scorer, tensors, scores: Scores::default() }
    }

    /// The columns of its output.
    pub fn schema(&self) -> &SchemaRef {
        &self.binding.schema
    }

    fn score_batch(&mut self, batch: &Batch, out: &mut Outputs) -> Result<(), ArrowError> {
        let columns: Vec<inputs::Columns> =
            self.binding.inputs.iter().map(|input| inputs::columns(input, &batch.records)).collect::<Result<_, _>>()?;
        if let Some(accepted) = self.refuse(batch, &columns, out) {
            let batch = batch.take(&accepted)?;
            return if batch.is_empty() { Ok(()) } else { self.score_batch(&batch, out) };
        }
        self.scores.clear();
        let mut failed: Vec<(usize, String)> = Vec::new();
        let mut start = 0;
        while start < batch.len() {
            let rows = self.binding.rows_max.min(batch.len() - start);
            self.score_rows(&columns, start, rows, &mut failed);
            start += rows;
        }
        self.give(batch, failed, out)
    }

    /// Rejects the rows that cannot be inputs. The indices of the others, or `None` when all can: the usual case.
    fn refuse(&self, batch: &Batch, columns: &[inputs::Columns], out: &mut Outputs) -> Option<Vec<u32>> {
        let bound = || self.binding.inputs.iter().zip(columns);
        if bound().all(|(input, columns)| inputs::accepts_all(input, columns)) {
            return None;
        }
        let mut accepted = Vec::with_capacity(batch.len());
        for row in 0..batch.len() {
            match bound().find_map(|(input, columns)| inputs::refusal(input, columns, row)) {
                Some((reason, detail)) => out.rejects.push(self.reject(batch, row, reason, detail)),
                None => accepted.push(row as u32),
            }
        }
        (accepted.len() < batch.len()).then_some(accepted)
    }

    /// Scores a range of rows. When the model fails, halves it until the rows that fail stand alone; they get NaN.
    fn score_rows(
        &mut self,
        columns: &[inputs::Columns],
        start: usize,
        rows: usize,
        failed: &mut Vec<(usize, String)>,
    ) {
        for (tensor, columns) in self.tensors.iter_mut().zip(columns) {
            inputs::fill(tensor, columns, start, rows);
        }
        match self.scorer.score(&self.tensors, rows, &mut self.scores) {
            Ok(()) => {}
            Err(_) if rows > 1 => {
                let half = rows / 2;
                self.score_rows(columns, start, half, failed);
                self.score_rows(columns, start + half, rows - half, failed);
            }
            Err(ModelFailed(detail)) => {
                failed.push((start, detail));
                self.scores.scores.push(f64::NAN);
                match self.binding.label {
                    Some(LabelBinding::Int(_)) => self.scores.ints.push(0),
                    Some(LabelBinding::Text(_)) => self.scores.texts.push(String::new()),
                    _ => {}
                }
            }
        }
    }

    /// Gives the rows with their answers, and rejects those without one.
    fn give(&mut self, batch: &Batch, failed: Vec<(usize, String)>, out: &mut Outputs) -> Result<(), ArrowError> {
        let mut columns = self.answer_columns();
        if self.binding.keep_features {
            columns.push(self.feature_lists(batch)?);
        }
        let scored = batch.with_columns(self.binding.schema.clone(), columns)?;
        if self.scores.scores.iter().all(|score| score.is_finite()) {
            out.give(0, scored);
            return Ok(());
        }
        let mut failed = failed.into_iter().peekable();
        let mut answered = Vec::with_capacity(batch.len());
        for (row, score) in self.scores.scores.iter().enumerate() {
            if score.is_finite() {
                answered.push(row as u32);
                continue;
            }
            let detail = match failed.next_if(|(at, _)| *at == row) {
                Some((_, detail)) => format!("the model failed: {detail}"),
                None => format!("the model answered {score}"),
            };
            out.rejects.push(self.reject(batch, row, Reason::ModelFailed, detail));
        }
        out.give(0, scored.take(&answered)?);
        Ok(())
    }

    fn answer_columns(&mut self) -> Vec<ArrayRef> {
        let scores = self.scores.scores.clone();
        let label: Option<ArrayRef> = match &self.binding.label {
            Some(LabelBinding::Threshold(threshold)) => {
                Some(Arc::new(scores.iter().map(|score| i64::from(score >= threshold)).collect::<Int64Array>()))
            }
            Some(LabelBinding::Int(_)) => Some(Arc::new(Int64Array::from(self.scores.ints.clone()))),
            Some(LabelBinding::Text(_)) => Some(Arc::new(StringArray::from_iter_values(&self.scores.texts))),
            None => None,
        };
        let mut columns: Vec<ArrayRef> = vec![Arc::new(Float64Array::from(scores))];
        columns.extend(label);
        columns
    }

    fn feature_lists(&self, batch: &Batch) -> Result<ArrayRef, ArrowError> {
        let (width, values) = inputs::feature_values(&self.binding.inputs, &batch.records)?;
        let field = match self.binding.schema.field_with_name("features")?.data_type() {
            DataType::List(field) => field.clone(),
            other => return Err(ArrowError::SchemaError(format!("features is {other}, not a list"))),
        };
        let offsets = OffsetBuffer::from_lengths(std::iter::repeat_n(width, batch.len()));
        Ok(Arc::new(ListArray::try_new(field, offsets, Arc::new(values), None)?))
    }

    fn reject(&self, batch: &Batch, row: usize, reason: Reason, mut detail: String) -> Reject {
        const DETAIL_MAX: usize = 300;
        if let Some((cut, _)) = detail.char_indices().nth(DETAIL_MAX) {
            detail.truncate(cut);
        }
        let payload = match &batch.raw {
            Some(raw) if raw.is_valid(row) => raw.value(row).to_vec(),
            _ => Vec::new(),
        };
        Reject {
            stage: self.stage.clone(),
            reason,
            detail,
            payload,
            event_time: batch.rows[row].happened(),
            row: batch.rows[row],
        }
    }
}

impl Operator for Score {
    fn process(&mut self, _port: usize, batch: Batch, out: &mut Outputs) {
        if batch.is_empty() {
            return;
        }
        let rejects_before = out.rejects.len();
        if let Err(e) = self.score_batch(&batch, out) {
            // Only an error of our own gets here; no record may vanish, or count twice, for it.
            out.rejects.truncate(rejects_before);
            let rejects = (0..batch.len()).map(|row| self.reject(&batch, row, Reason::ModelFailed, e.to_string()));
            out.rejects.extend(rejects.collect::<Vec<_>>());
        }
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{AsArray, RecordBatch};
    use arrow::datatypes::{Float64Type, Int64Type};

    use super::*;
    use crate::batch::Row;

    /// Adds up a row; fails on a batch that holds a negative number, and notes how many rows each call had.
    struct Adder {
        calls: Arc<std::sync::Mutex<Vec<usize>>>,
    }

    impl Scorer for Adder {
        fn score(&mut self, inputs: &[Values], rows: usize, scores: &mut Scores) -> Result<(), ModelFailed> {
            self.calls.lock().unwrap().push(rows);
            let Values::Float32(values) = &inputs[0] else { panic!("the binding wants float32") };
            if values.iter().any(|value| *value < 0.0) {
                return Err(ModelFailed("negative".into()));
            }
            scores
                .scores
                .extend(values.chunks_exact(values.len() / rows).map(|row| f64::from(row.iter().sum::<f32>())));
            Ok(())
        }
    }

    fn signature() -> ModelSignature {
        let tensor = |name: &str, dims| TensorInfo { name: name.into(), elements: Elements::Float32, dims };
        ModelSignature {
            inputs: vec![tensor("features", vec![None, Some(2)])],
            outputs: vec![tensor("probabilities", vec![None, Some(1)])],
            aliases: Vec::new(),
            classes: None,
            rows_max: usize::MAX,
            digest: "0123456789abcdef".into(),
        }
    }

    fn batch(a: Vec<Option<f64>>) -> Batch {
        let rows =
            (0..a.len() as i64).map(|offset| Row { source: 0, partition: 0, offset, event_time: 0, arrived_micros: 0 });
        let rows: Vec<Row> = rows.collect();
        let b = Int64Array::from(vec![1; a.len()]);
        let columns: [(&str, ArrayRef); 2] = [("a", Arc::new(Float64Array::from(a))), ("b", Arc::new(b))];
        Batch::new(RecordBatch::try_from_iter_with_nullable(columns.map(|(n, c)| (n, c, true))).unwrap(), rows)
    }

    fn options(features: &[String]) -> ScoreOptions<'_> {
        ScoreOptions { features, threshold: Some(3.0), ..ScoreOptions::default() }
    }

    #[test]
    fn rows_that_fail_or_have_no_answer_are_rejected_and_the_others_scored() {
        let features = ["a".to_string(), "b".to_string()];
        let batch = batch(vec![Some(1.0), None, Some(-1.0), Some(2.0), Some(5.0)]);
        let binding = bind(&signature(), &options(&features), &batch.records.schema()).unwrap();
        let calls = Arc::<std::sync::Mutex<Vec<usize>>>::default();
        let mut score = Score::new("adder", binding, Box::new(Adder { calls: calls.clone() }));
        let mut out = Outputs::new(1);
        score.process(0, batch, &mut out);
        let scored = &out.ports[0][0].records;
        assert_eq!(scored.column_by_name("score").unwrap().as_primitive::<Float64Type>().values(), &[2.0, 3.0, 6.0]);
        assert_eq!(scored.column_by_name("label").unwrap().as_primitive::<Int64Type>().values(), &[0, 1, 1]);
        let rejects: Vec<_> = out.rejects.iter().map(|reject| (reject.row.offset, reject.detail.as_str())).collect();
        assert_eq!(rejects, [(1, "the model answered NaN"), (2, "the model failed: negative")]);
        assert_eq!(*calls.lock().unwrap(), [5, 2, 3, 1, 2], "halved until the row that fails stands alone");
    }

    #[test]
    fn a_large_batch_is_cut_into_calls() {
        let features = ["a".to_string(), "b".to_string()];
        let batch = batch(vec![Some(1.0); 600]);
        let binding = bind(&signature(), &options(&features), &batch.records.schema()).unwrap();
        let calls = Arc::<std::sync::Mutex<Vec<usize>>>::default();
        let mut score = Score::new("adder", binding, Box::new(Adder { calls: calls.clone() }));
        let mut out = Outputs::new(1);
        score.process(0, batch, &mut out);
        assert_eq!(out.ports[0][0].len(), 600);
        assert_eq!(*calls.lock().unwrap(), [256, 256, 88]);
    }

    #[test]
    fn what_does_not_fit_is_refused_with_names_and_types() {
        let schema = batch(vec![]).records.schema();
        let names = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        let refusal = |features: &[&str]| bind(&signature(), &options(&names(features)), &schema).unwrap_err();
        let three = refusal(&["a", "b", "a"]);
        assert_eq!(three.field, "features");
        assert_eq!(
            three.message,
            "the model's input `features` float32[?,2] takes 2 values a row, 3 features are listed"
        );
        let unknown = refusal(&["a", "c"]);
        assert_eq!(
            (unknown.field.as_str(), unknown.message.as_str()),
            ("features[1]", "there is no column `c`; there are a, b")
        );
        let none = refusal(&[]);
        assert_eq!(none.field, "onnx");
        let mut text = signature();
        text.inputs[0].elements = Elements::Text;
        let wrong = bind(&text, &options(&names(&["a", "b"])), &schema).unwrap_err();
        assert_eq!(wrong.message, "column `a` is float64, the model's input `features` string[?,2] wants string");
    }
}
