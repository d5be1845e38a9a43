//! Tries a model on made-up rows before it serves real ones.
//!
//! A model that passes gives for each row a number that depends on that row alone, and the same number every time.
//! Otherwise a replay after a crash, or another batch size, would give other predictions.

use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use millstream_operators::score::{Binding, Elements, Scorer, Scores, Values};

use super::ModelError;
use super::session::OnnxScorer;

/// Rows of the probe.
const ROWS: usize = 8;

/// Largest difference between a row's score alone and among others, relative to the score. Kernels for one row and for
/// many add in another order, which moves the last bits of a float32.
const TOLERANCE: f64 = 1e-5;

/// Probes a model that is bound to `binding`.
///
/// # Errors
/// Says which of the checks failed, on what.
pub(super) fn probe(
    scorer: &mut OnnxScorer,
    binding: &Binding,
    nan_allowed: bool,
    limit: Duration,
) -> Result<(), ModelError> {
    let refused = |reason: String| ModelError::Probe { reason };
    first_run(scorer, binding, limit)?;
    let all: Vec<Probe> = (0..ROWS).map(|row| Probe { row, missing: false }).collect();
    let alone: Vec<Vec<f64>> = all.iter().map(|probe| run(scorer, binding, &[*probe])).collect::<Result<_, _>>()?;
    if let Some(row) = alone.iter().position(|score| !score[0].is_finite())
        && !nan_allowed
    {
        return Err(refused(format!(
            "it answers {} for the inputs {}; guard the inputs in the graph, or set `nan_allowed: true` to serve it and reject such rows",
            alone[row][0],
            describe(&inputs(binding, &[all[row]]))
        )));
    }
    for (row, score) in alone.iter().enumerate() {
        let again = run(scorer, binding, &[all[row]])?;
        if !same(score[0], again[0], 0.0) {
            return Err(refused(format!(
                "it answers {} and then {} for the same row: it draws random numbers",
                score[0], again[0]
            )));
        }
    }
    if binding.rows_max == 1 {
        return Ok(());
    }
    // A row with missing values among the others: it may have no answer, but it may not change theirs.
    let mut mixed = all.clone();
    mixed.push(Probe { row: ROWS, missing: true });
    for batch in [&all, &mixed] {
        let together = run(scorer, binding, batch)?;
        for (row, score) in alone.iter().enumerate() {
            if !same(score[0], together[row], TOLERANCE) {
                return Err(refused(format!(
                    "it answers {} for a row alone and {} for the same row among {}: its rows depend on each other",
                    score[0],
                    together[row],
                    batch.len()
                )));
            }
        }
    }
    Ok(())
}

fn same(a: f64, b: f64, tolerance: f64) -> bool {
    (a.is_nan() && b.is_nan()) || a == b || (a - b).abs() <= tolerance * a.abs().max(1.0)
}

/// A made-up row.
#[derive(Clone, Copy)]
struct Probe {
    row: usize,
    /// Its floating-point values are missing.
    missing: bool,
}

fn run(scorer: &mut OnnxScorer, binding: &Binding, probes: &[Probe]) -> Result<Vec<f64>, ModelError> {
    let mut scores = Scores::default();
    let scored = scorer.score(&inputs(binding, probes), probes.len(), &mut scores);
    scored.map_err(|e| ModelError::Probe { reason: format!("it fails on {} made-up rows: {e}", probes.len()) })?;
    Ok(scores.scores)
}

/// The first run of a model, under a time limit: a small file can ask for any amount of work.
fn first_run(scorer: &mut OnnxScorer, binding: &Binding, limit: Duration) -> Result<(), ModelError> {
    let options =
        Arc::new(ort::session::RunOptions::new().map_err(|e| ModelError::Load { reason: e.message().to_owned() })?);
    let (done, watched) = mpsc::channel::<()>();
    let watch = thread::spawn({
        let options = options.clone();
        move || {
            let late = watched.recv_timeout(limit) == Err(RecvTimeoutError::Timeout);
            late && options.terminate().is_ok()
        }
    });
    let values = inputs(binding, &[Probe { row: 0, missing: false }]);
    let ran = scorer.run_once(&values, &options);
    drop(done);
    let terminated = watch.join().unwrap_or(false);
    match ran {
        Err(_) if terminated => Err(ModelError::Slow { limit }),
        Err(reason) => Err(ModelError::Probe { reason: format!("it fails on a made-up row: {reason}") }),
        Ok(()) => Ok(()),
    }
}

/// Inputs of all signs and some size; identifiers are 0 and 1, which every embedding has.
fn inputs(binding: &Binding, probes: &[Probe]) -> Vec<Values> {
    let tensors = binding.inputs.iter().enumerate();
    tensors
        .map(|(index, input)| {
            let width = input.columns.len();
            let cells = probes.iter().flat_map(|probe| (0..width).map(move |column| (*probe, column + index)));
            let float = |(probe, column): (Probe, usize)| match probe.missing {
                true => f64::NAN,
                false => ((probe.row * 7 + column * 3) % 11) as f64 * 0.37 - 1.85,
            };
            let bit = |(probe, column): (Probe, usize)| (probe.row + column) % 2;
            match input.tensor.elements {
                Elements::Float64 => Values::Float64(cells.map(float).collect()),
                Elements::Int64 => Values::Int64(cells.map(|cell| bit(cell) as i64).collect()),
                Elements::Int32 => Values::Int32(cells.map(|cell| bit(cell) as i32).collect()),
                Elements::Bool => Values::Bool(cells.map(|cell| bit(cell) == 1).collect()),
                Elements::Text => Values::Text(cells.map(|cell| ["a", "b"][bit(cell)].to_owned()).collect()),
                Elements::Float32 | Elements::Other(_) => {
                    Values::Float32(cells.map(|cell| float(cell) as f32).collect())
                }
            }
        })
        .collect()
}

fn describe(values: &[Values]) -> String {
    let text: Vec<String> = values.iter().map(|values| format!("{values:?}")).collect();
    text.join(", ").chars().take(200).collect()
}
