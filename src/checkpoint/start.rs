//! How a start takes over a job: it publishes a manifest of its own that says what the newest one said.
//!
//! ```text
//! the copy before:   … 6, 7, 8                       9 is there: it ends
//! this one:                   reads 8, makes 9 of it, goes on with 10, 11 …
//! ```
//! Manifests are created only if they are absent, so there is one chain, and whoever has taken over owns it until another
//! start does. Nothing else is needed to keep two copies apart; the lock of a folder only says so earlier.

use super::error::CheckpointError;
use super::manifest::{self, Manifest, sequences};
use super::segment;
use super::storage::{Created, Place, Storage};
use super::{Progress, Store};

/// How often a start tries to be faster than the copy that runs.
const TRIES: usize = 100;

/// What a start has to say about itself.
pub(super) struct Claimed {
    /// The manifest that it has published.
    pub manifest: Manifest,
    /// The one before, and the files that it names.
    pub before: Option<u64>,
}

/// Publishes the manifest that `next` makes of the newest, as the first of the start `writer`.
pub(super) fn claim(
    storage: &dyn Storage,
    writer: &str,
    next: impl Fn(Option<u64>) -> Result<Option<Manifest>, CheckpointError>,
) -> Result<Claimed, CheckpointError> {
    for _ in 0..TRIES {
        let before = sequences(storage)?.pop();
        let Some(manifest) = next(before)? else { continue };
        let sequence = before.unwrap_or(0) + 1;
        let generation = manifest.generation;
        let manifest = manifest.stamped(sequence, generation, writer);
        let text = manifest.clone().text();
        match storage.create(&manifest::key(sequence), &text)? {
            // Old manifests are removed: in a place that was free because of that nobody looks for one.
            Created::New if sequences(storage)?.pop() == Some(sequence) => return Ok(Claimed { manifest, before }),
            Created::Taken(found) if found == text => return Ok(Claimed { manifest, before }),
            Created::New | Created::Taken(_) => {}
            Created::Unknown(error) => return Err(error),
        }
    }
    Err(CheckpointError::TakenOver { path: storage.name("manifest") })
}

impl Store {
    /// Forgets all checkpoints, and nothing else that may lie there: the next start begins anew. A copy of the job that
    /// still runs ends with its next checkpoint.
    ///
    /// # Errors
    /// If another process holds the place, or it can't be written.
    pub fn forget(place: &Place) -> Result<(), CheckpointError> {
        let storage = &*place.0;
        if sequences(storage)?.is_empty() {
            return Ok(());
        }
        let lock = storage.lock()?;
        let claimed = claim(storage, &new_id(), |_| Ok(Some(first("", "", 0))))?;
        if lock.is_some() {
            let manifests = sequences(storage)?.into_iter().filter(|sequence| *sequence < claimed.manifest.sequence);
            storage.remove(manifests.map(manifest::key).collect())?;
            let segments = storage.list("seg")?.into_iter().filter(|found| found.name.ends_with(".seg"));
            storage.remove(segments.map(|found| segment::key(&found.name)).collect())?;
        }
        Ok(())
    }
}

/// The manifest of a job that has not begun, started for the first time or again.
pub(super) fn first(job: &str, topology: &str, generation: u64) -> Manifest {
    let mut manifest = Manifest::new((job, &new_id(), topology), &Progress::default(), None, Vec::new());
    manifest.generation = generation;
    manifest
}

/// A name that no other start of a job has.
pub(super) fn new_id() -> String {
    use ring::rand::SecureRandom as _;
    let mut bytes = [0_u8; 12];
    // Without randomness the time still tells one start from the next.
    if ring::rand::SystemRandom::new().fill(&mut bytes).is_err() {
        bytes[..8].copy_from_slice(&crate::runtime::clock::now_micros().to_le_bytes());
    }
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
