//! Rows of several batches as one batch.

use std::sync::Arc;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::compute::{interleave, interleave_record_batch};
use arrow::datatypes::Schema;
use arrow::error::ArrowError;
use millstream_operators::Batch;

/// The rows at `picks` (index of the batch, index of the row), in that order. All batches are of one schema.
///
/// # Errors
/// If a column of text grows beyond 2 GiB, or the batches differ.
pub(super) fn gather(batches: &[&Batch], picks: &[(usize, usize)]) -> Result<Batch, ArrowError> {
    if let Some((batch, from)) = contiguous(picks) {
        return Ok(batches[batch].slice(from, picks.len()));
    }
    let records: Vec<&RecordBatch> = batches.iter().map(|batch| &batch.records).collect();
    let records = interleave_record_batch(&records, picks)?;
    let rows = picks.iter().map(|(batch, row)| batches[*batch].rows[*row]).collect();
    let raws: Option<Vec<&dyn Array>> =
        batches.iter().map(|batch| batch.raw.as_ref().map(|raw| raw as &dyn Array)).collect();
    let raw = match raws {
        Some(raws) => Some(interleave(&raws, picks)?.as_binary::<i32>().clone()),
        None => None,
    };
    Ok(Batch { records, rows: Arc::new(rows), raw })
}

/// The batch and first row of picks that are neighbours in one batch: nothing has to be copied.
fn contiguous(picks: &[(usize, usize)]) -> Option<(usize, usize)> {
    let (batch, from) = *picks.first()?;
    let neighbours = picks.iter().enumerate().all(|(n, pick)| *pick == (batch, from + n));
    neighbours.then_some((batch, from))
}

/// A batch without rows, for rejects that come alone. Its columns mean nothing.
pub(super) fn nothing() -> Batch {
    Batch::new(RecordBatch::new_empty(Arc::new(Schema::empty())), Vec::new())
}
