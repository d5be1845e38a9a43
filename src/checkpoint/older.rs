//! A start whose newest checkpoint is damaged, or was lost: the newest one that is whole, and how to go on from it.
//!
//! ```text
//! numbers:    … 93, 94 (whole), 95 (damaged)          savepoint: 70 (whole)
//! a start:                                   └─▶ 96 with the state and positions of 94 ─▶ 97 ─▶ …
//! ```
//! It is one step, other than [going back](super::origin) to a savepoint: the first manifest of the start is the one that goes
//! back. There may be no manifest between that says what the newest one said, for that can't be read; and one that said what the
//! older one says, with its epoch, would be taken up by the next start as if nothing had happened since.

use std::cmp::Reverse;

use super::error::CheckpointError;
use super::manifest::{self, Manifest, Start, sequences};
use super::origin::Origin;
use super::start::prove_fence;
use super::storage::{Created, Place};
use super::{Kept, Progress, Store, assemble, savepoint};

/// The newest checkpoint of `job` at `own` that is whole, of those that are kept, and of the savepoints if `saved`. The newest of
/// all is not asked: it is damaged.
///
/// # Errors
/// If the place can't be read.
pub fn newest_whole(own: &Place, job: &str, saved: bool) -> Result<Option<Origin>, CheckpointError> {
    let storage = &*own.0;
    let mut candidates = Vec::new();
    let mut sequences = sequences(storage)?;
    sequences.pop();
    for sequence in sequences.into_iter().rev() {
        match unless_damaged(Manifest::read(storage, sequence))?.flatten() {
            // What is older is of a life of the job that it has been told to forget.
            Some(manifest) if manifest.epoch == 0 => break,
            Some(manifest) => candidates.push((manifest, format!("checkpoint {sequence}"))),
            None => {}
        }
    }
    for name in if saved { savepoint::names(storage)? } else { Default::default() } {
        let found = unless_damaged(savepoint::find(own, &name))?.flatten();
        candidates.extend(found.map(|(_, manifest)| (manifest, format!("savepoint `{name}`"))));
    }
    // Numbers never go back, whatever the job was told to forget.
    candidates.sort_by_key(|(manifest, _)| Reverse(manifest.sequence));
    for (manifest, told) in candidates.into_iter().filter(|(manifest, _)| manifest.job == job) {
        if unless_damaged(assemble(storage, &manifest))?.is_some() {
            return Ok(Some(Origin::at(own, manifest, told)));
        }
    }
    Ok(None)
}

/// What was read; `None` if it is nothing to go on from. A storage that refuses says nothing about that.
fn unless_damaged<T>(read: Result<T, CheckpointError>) -> Result<Option<T>, CheckpointError> {
    match read {
        Err(error @ CheckpointError::Io { .. }) => Err(error),
        read => Ok(read.ok()),
    }
}

impl Store {
    /// The epoch of the newest manifest, if that can be read.
    pub fn newest_epoch(&self) -> Option<u64> {
        Some(Manifest::read(&*self.place.0, self.sequence).ok()??.epoch)
    }

    /// The newest checkpoint that is there, after it was [loaded](Store::load).
    ///
    /// # Errors
    /// If its manifest can't be read any more.
    pub fn newest(&self) -> Result<Option<Origin>, CheckpointError> {
        let manifest = Manifest::read(&*self.place.0, self.sequence)?;
        Ok(manifest.map(|manifest| Origin::at(&self.place, manifest, format!("checkpoint {}", self.sequence))))
    }

    /// Takes over the job, whose newest checkpoint is damaged or lost, and has it go on from another one as `epoch`. False if there is a
    /// newer one since this start has [looked](Store::load), as in [`take_over`](Store::take_over).
    ///
    /// # Errors
    /// If that is damaged as well, or the storage refuses.
    pub fn take_over_from(&mut self, origin: &Origin, epoch: u64) -> Result<bool, CheckpointError> {
        let sequence = self.sequence + 1;
        let damaged = Manifest::read(&*self.place.0, self.sequence).ok().flatten();
        // The one that can't be read may be the first of a start.
        let generation = damaged.map_or(origin.manifest().generation + 1, |damaged| damaged.generation) + 1;
        self.start.first = sequence;
        self.start.generation = generation;
        self.go_back(origin)?;
        let storage = &*self.place.0;
        let was = origin.manifest();
        let progress = Progress { epoch, ..was.progress() };
        let job = (&*self.job, &*self.id, &*was.topology);
        let manifest = Manifest::new(job, &progress, self.base.clone(), self.closed.clone());
        let start = Start { writer: self.start.writer.clone(), generation, first: sequence };
        let manifest = manifest.with_origin(self.origin.clone()).stamped(sequence, &start);
        let text = manifest.clone().text();
        let is_there = match storage.create(&manifest::key(sequence), &text)? {
            Created::New => true,
            Created::Taken(found) => found == text,
            Created::Unknown(error) => return Err(error),
        };
        if !is_there || sequences(storage)?.pop() != Some(sequence) {
            self.start.first = 0;
            return Ok(false);
        }
        if self.lock.is_none() {
            prove_fence(storage, &manifest)?;
        }
        self.sequence = sequence;
        self.kept = [Kept::of(&manifest, true)].into();
        self.writers = manifest.committed;
        self.looked = std::time::Instant::now();
        Ok(true)
    }
}
