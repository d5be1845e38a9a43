//! How a start takes over a job: it publishes a manifest of its own that says what the newest one said.
//!
//! ```text
//! the copy before:   … 6, 7, 8                       9 is there: it ends
//! this one:                   reads 8, makes 9 of it, goes on with 10, 11 …
//! ```
//! Manifests are created only if they are absent, so there is one chain, and whoever has taken over owns it until another
//! start does. Nothing else is needed to keep two copies apart; the lock of a folder only says so earlier.

use std::time::{Duration, Instant};

use super::error::CheckpointError;
use super::manifest::{self, Manifest, Start, sequences};
use super::storage::{Created, Place, Storage};
use super::{Checkpoint, Kept, Progress, Store, assemble, savepoint, segment};

/// How often a start tries to be faster than the copy that runs.
const TRIES: usize = 100;
/// How often a copy that publishes nothing looks whether another one has taken over.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// What a start has taken over with, and from.
pub(super) struct Claimed {
    /// The manifest that it has published.
    pub manifest: Manifest,
    /// The one before.
    pub before: Option<Manifest>,
}

/// What a start that has taken over can ask where copies share the storage.
#[derive(Debug, Clone)]
pub struct Ownership {
    place: Place,
    writer: String,
}

impl Ownership {
    /// Makes sure that no other start has taken over since.
    ///
    /// # Errors
    /// [`CheckpointError::TakenOver`] if one has, or that the storage does not say.
    pub fn check(&self) -> Result<(), CheckpointError> {
        let storage = &*self.place.0;
        for _ in 0..TRIES {
            let newest = sequences(storage)?.pop().unwrap_or_default();
            // A copy that runs removes what it no longer needs.
            let Some(manifest) = Manifest::read(storage, newest)? else { continue };
            if manifest.writer == self.writer {
                return Ok(());
            }
            return Err(CheckpointError::TakenOver { path: storage.name(&manifest::key(newest)) });
        }
        Err(CheckpointError::TakenOver { path: storage.name("manifest") })
    }
}

/// Publishes the manifest that `next` makes of the newest, as the first of the start `writer`. `read` reads the newest: `None`
/// if it has gone meanwhile.
pub(super) fn claim(
    storage: &dyn Storage,
    writer: &str,
    mut read: impl FnMut(u64) -> Result<Option<Manifest>, CheckpointError>,
    next: impl Fn(Option<&Manifest>) -> Result<Manifest, CheckpointError>,
) -> Result<Claimed, CheckpointError> {
    for _ in 0..TRIES {
        let newest = sequences(storage)?.pop();
        let before = newest.map(&mut read).transpose()?.flatten();
        if newest.is_some() && before.is_none() {
            continue;
        }
        let sequence = newest.unwrap_or(0) + 1;
        let manifest = next(before.as_ref())?;
        let start = Start { writer: writer.to_string(), generation: manifest.generation, first: sequence };
        let manifest = manifest.stamped(sequence, &start);
        let text = manifest.clone().text();
        let is_there = match storage.create(&manifest::key(sequence), &text)? {
            Created::New => true,
            Created::Taken(found) => found == text,
            Created::Unknown(error) => return Err(error),
        };
        // Old manifests are removed: in a place that was free because of that nobody looks for one.
        if is_there && sequences(storage)?.pop() == Some(sequence) {
            return Ok(Claimed { manifest, before });
        }
    }
    Err(CheckpointError::TakenOver { path: storage.name("manifest") })
}

/// Makes sure that a manifest that is there is not made again: with storage that does so two copies could not be told apart.
pub(super) fn prove_fence(storage: &dyn Storage, manifest: &Manifest) -> Result<(), CheckpointError> {
    let key = &manifest::key(manifest.sequence);
    match storage.create(key, &manifest.clone().text())? {
        Created::Taken(_) => Ok(()),
        Created::New => Err(CheckpointError::Unfenced { path: storage.name(key) }),
        Created::Unknown(error) => Err(error),
    }
}

impl Store {
    /// The newest checkpoint, every byte of it checked; `None` if the job has none.
    ///
    /// # Errors
    /// If it is damaged, of another job or of another format, or can't be read; or, after this start has taken over, if
    /// another one has done so since.
    pub fn load(&mut self) -> Result<Option<Checkpoint>, CheckpointError> {
        for _ in 0..TRIES {
            match self.load_newest() {
                // A copy that runs removes what it no longer needs.
                Err(_) if self.start.first == 0 && sequences(&*self.place.0)?.pop() != Some(self.sequence) => {}
                loaded => return loaded,
            }
        }
        Err(CheckpointError::TakenOver { path: self.place.0.name("manifest") })
    }

    fn load_newest(&mut self) -> Result<Option<Checkpoint>, CheckpointError> {
        let storage = &*self.place.0;
        if self.start.first == 0 {
            let Some(newest) = sequences(storage)?.pop() else { return Ok(None) };
            self.sequence = newest;
        }
        let path = storage.name(&manifest::key(self.sequence));
        let Some(manifest) = Manifest::read(storage, self.sequence)? else {
            return Err(CheckpointError::Corrupt { path, detail: "is gone".to_string() });
        };
        if self.start.first > 0 && manifest.writer != self.start.writer {
            return Err(CheckpointError::TakenOver { path });
        }
        if manifest.epoch == 0 {
            return Ok(None);
        }
        manifest.check_job(storage, &self.job)?;
        assemble(storage, &manifest).map(Some)
    }

    /// Takes over the job: from now on this start makes its checkpoints, and a copy that made them ends. False if that copy
    /// has made one since this start has [loaded](Store::load), which then has to be done again.
    ///
    /// # Errors
    /// If other copies are always faster, the storage refuses, or can't tell two copies apart.
    pub fn take_over(&mut self) -> Result<bool, CheckpointError> {
        if self.start.first > 0 {
            return Ok(true);
        }
        let storage = &*self.place.0;
        let read = |newest| Manifest::read(storage, newest);
        let Claimed { manifest, before } = claim(storage, &self.start.writer, read, |before| {
            let generation = before.map_or(0, |before| before.generation) + 1;
            match before.filter(|before| before.epoch > 0) {
                Some(before) => {
                    before.check_job(storage, &self.job)?;
                    Ok(before.clone().of_generation(generation))
                }
                None => Ok(first(&self.job, &self.topology, generation).with_writers_of(before)),
            }
        })?;
        if self.lock.is_none() {
            prove_fence(storage, &manifest)?;
        }
        let is_loaded = before.as_ref().map_or(0, |before| before.sequence) == self.sequence;
        self.kept = before.iter().chain([&manifest]).map(|manifest| Kept::of(manifest, true)).collect();
        self.sequence = manifest.sequence;
        (self.start.first, self.start.generation) = (manifest.sequence, manifest.generation);
        (self.id, self.origin) = (manifest.id, manifest.origin);
        self.writers = manifest.committed;
        (self.base, self.closed) = (manifest.base, manifest.segments);
        self.looked = Instant::now();
        Ok(is_loaded)
    }

    /// Looks, now and then, whether another copy has taken over: one that has nothing to publish would not notice.
    ///
    /// # Errors
    /// If one has.
    pub fn look(&mut self) -> Result<(), CheckpointError> {
        if self.lock.is_some() || self.looked.elapsed() < LOOK_EVERY {
            return Ok(());
        }
        self.looked = Instant::now();
        let key = manifest::key(self.sequence + 1);
        // Storage that is away is noticed by the next checkpoint.
        let found = self.place.0.read(&key).ok().flatten();
        match found.map(|text| Manifest::parse(&text)) {
            Some(Ok(manifest)) if manifest.writer == self.start.writer => Ok(()),
            Some(_) => Err(CheckpointError::TakenOver { path: self.place.0.name(&key) }),
            None => Ok(()),
        }
    }

    /// What tells later whether another start has taken over; `None` where a lock keeps others away.
    pub fn ownership(&self) -> Option<Ownership> {
        let owned = || Ownership { place: self.place.clone(), writer: self.start.writer.clone() };
        self.lock.is_none().then(owned)
    }

    /// Forgets all checkpoints but savepoints, and nothing else that may lie there: the next start begins anew. A copy of the job that
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
        // Whatever stands there, and be it damaged.
        let any = |newest| Ok(Manifest::read(storage, newest).ok().flatten().or_else(|| Some(first("", "", 0))));
        let claimed = claim(storage, &new_id(), any, |before| Ok(first("", "", 0).with_writers_of(before)))?;
        if lock.is_some() {
            let manifests = sequences(storage)?.into_iter().filter(|sequence| *sequence < claimed.manifest.sequence);
            storage.remove(manifests.map(manifest::key).collect())?;
            let needed = savepoint::needed(storage)?;
            let segments = storage.list("seg")?.into_iter();
            let segments = segments.filter(|found| found.name.ends_with(".seg") && !needed.contains(&found.name));
            storage.remove(segments.map(|found| segment::key(&found.name)).collect())?;
        }
        Ok(())
    }
}

/// The manifest of a job that has not begun, started for the first time or again.
pub(super) fn first(job: &str, topology: &str, generation: u64) -> Manifest {
    Manifest::new((job, &new_id(), topology), &Progress::default(), None, Vec::new()).of_generation(generation)
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
