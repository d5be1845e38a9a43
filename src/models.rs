//! Models: an ONNX file becomes a [`Scorer`](millstream_operators::score::Scorer), or is refused with a reason.
//!
//! ```text
//! file ─ inspect ─▶ signature ─ bind to the stream's columns ─▶ binding     no ONNX Runtime needed
//!   └─── open ────▶ session ─ probe with made-up rows ──────────▶ scorer     at a start, and by `check` where ONNX Runtime is
//! ```
//!
//! Refused are: files that are no models, weights in other files (a version is one file and its digest), a first run
//! that does not end, rows that depend on each other, and answers that change from call to call. What a hostile file
//! can still do is take memory during its first run: give untrusted models to a process with a memory limit.

mod measured;
mod onnx;
mod probe;
pub mod runtime;
mod session;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use millstream_operators::score::{Binding, ModelSignature, TensorInfo};

pub use measured::Measured;
pub use session::OnnxScorer;

/// Largest model file.
pub const SIZE_BYTES_MAX: u64 = 512 << 20;

/// Longest first run of a model.
const FIRST_RUN_MAX: Duration = Duration::from_secs(10);

/// Why a model cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The file cannot be read.
    #[error("model {}: {source}", .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is no ONNX model, or one that breaks a rule.
    #[error("model {}: {reason}", .path.display())]
    NotServable {
        /// The file.
        path: PathBuf,
        /// Which rule, and what to do.
        reason: String,
    },
    /// ONNX Runtime is not there.
    #[error(transparent)]
    Runtime(#[from] runtime::RuntimeError),
    /// ONNX Runtime does not load the model.
    #[error("ONNX Runtime does not load the model: {reason}")]
    Load {
        /// What it said.
        reason: String,
    },
    /// The model failed on made-up rows.
    #[error("the model was tried and refused: {reason}")]
    Probe {
        /// What it did.
        reason: String,
    },
    /// The model's first run did not end.
    #[error("the model was tried and stopped: one row took longer than {limit:?}")]
    Slow {
        /// The limit.
        limit: Duration,
    },
}

/// A model file that has been read and found to be one.
#[derive(Debug)]
pub struct OnnxModel {
    signature: ModelSignature,
    /// What the runtime loads: the file, without the nodes that were cut off.
    model: Vec<u8>,
}

/// Reads what the model file at `path` declares. Needs no ONNX Runtime.
///
/// # Errors
/// If it cannot be read or is no model that can be served.
pub fn inspect(path: &Path) -> Result<ModelSignature, ModelError> {
    Ok(OnnxModel::read(path)?.signature)
}

/// Reads the model at `path` and tries it with made-up rows, in this process. With `nan_allowed` it may answer NaN for
/// some finite inputs; such rows will be rejected.
///
/// # Errors
/// If the file is no model, ONNX Runtime is missing or does not load it, or it fails its trial: takes too long, draws
/// random numbers, lets rows depend on each other, or answers NaN without leave.
pub fn open(path: &Path, binding: &Binding, nan_allowed: bool) -> Result<OnnxModel, ModelError> {
    let model = OnnxModel::read(path)?;
    probe::probe(&mut model.scorer(binding)?, binding, nan_allowed, FIRST_RUN_MAX)?;
    Ok(model)
}

impl OnnxModel {
    /// Reads a model file.
    ///
    /// # Errors
    /// If it cannot be read or is no model that can be served.
    pub fn read(path: &Path) -> Result<Self, ModelError> {
        let unreadable = |source| ModelError::Unreadable { path: path.to_path_buf(), source };
        let not_servable = |reason: String| ModelError::NotServable { path: path.to_path_buf(), reason };
        let mut file = Vec::new();
        let opened = File::open(path).map_err(unreadable)?;
        opened.take(SIZE_BYTES_MAX + 1).read_to_end(&mut file).map_err(unreadable)?;
        if file.len() as u64 > SIZE_BYTES_MAX {
            return Err(not_servable(format!("it is larger than {} MiB", SIZE_BYTES_MAX >> 20)));
        }
        if file.is_empty() {
            return Err(not_servable("the file is empty".into()));
        }
        if let Some(text) = text_start(&file) {
            return Err(not_servable(format!("the file is text, not an ONNX model; it starts with {text:?}")));
        }
        let digest = digest(&file);
        let length = file.len();
        let declared = onnx::read(file).map_err(|e| {
            not_servable(format!("it is not a whole ONNX model that can be served ({length} bytes): {e}"))
        })?;
        let rows_max = rows_max(&declared.inputs, declared.quantises_batch).map_err(not_servable)?;
        let onnx::Declared { inputs, outputs, aliases, classes, model, .. } = declared;
        Ok(OnnxModel { signature: ModelSignature { inputs, outputs, aliases, classes, rows_max, digest }, model })
    }

    /// What the file declares.
    pub fn signature(&self) -> &ModelSignature {
        &self.signature
    }

    /// A scorer for one worker.
    ///
    /// # Errors
    /// If ONNX Runtime is missing or does not load the model.
    pub fn scorer(&self, binding: &Binding) -> Result<OnnxScorer, ModelError> {
        let session = session::session(&self.model)?;
        OnnxScorer::new(session, binding).map_err(|e| ModelError::Load { reason: e.message().to_owned() })
    }
}

/// The first line of a file that is text: a model never is, its first bytes are field keys.
fn text_start(file: &[u8]) -> Option<String> {
    let head = &file[..file.len().min(256)];
    let text = match std::str::from_utf8(head) {
        Ok(text) => text,
        // The head may end within a character.
        Err(e) if e.error_len().is_none() && e.valid_up_to() > 0 => {
            std::str::from_utf8(&head[..e.valid_up_to()]).ok()?
        }
        Err(_) => return None,
    };
    if text.chars().any(|c| c.is_control() && !c.is_whitespace()) {
        return None;
    }
    let line = text.trim_start_matches('\u{feff}').trim_start().lines().next().unwrap_or_default();
    Some(line.chars().take(60).collect())
}

fn digest(file: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, file);
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Most rows a call may carry, by the batch dimension of the inputs.
fn rows_max(inputs: &[TensorInfo], quantises_batch: bool) -> Result<usize, String> {
    if inputs.is_empty() {
        return Err("the model has no tensor inputs".into());
    }
    let mut rows_max = if quantises_batch { 1 } else { usize::MAX };
    for input in inputs {
        match input.dims.first() {
            None => return Err(format!("the model's input {input} has no batch dimension; export it as [n, width]")),
            Some(Some(1)) => rows_max = 1,
            Some(Some(_)) => {
                return Err(format!(
                    "the model's input {input} has a fixed batch; export it with an open batch dimension"
                ));
            }
            Some(None) => {}
        }
    }
    Ok(rows_max)
}

#[cfg(test)]
mod tests;
