//! A start from another checkpoint than the newest one of the job: a savepoint, or what was exported or lies elsewhere.
//!
//! ```text
//! the job's checkpoints     … epoch 70 ─▶ 71 ─▶ … ─▶ 95 ─┐ the newest
//! savepoint `before`              70                     │
//! a start from it                                        └─▶ 95 with the state and positions of 70 ─▶ 96 ─▶ …
//! ```
//! Numbers never go back. The state of the old epoch becomes that of the newest one, in a manifest of its own, the next of
//! the chain: no marker of a Kafka writer and no transaction of a table is ahead of what comes, so none of it is taken for
//! something that has been committed before. A crash in between leaves the job where it was, or where it was told to go.
//!
//! What it goes on from is copied. A savepoint may be deleted then, and a copy of the job that wakes up late removes only
//! files of its own.
//!
//! A manifest says from which checkpoint its job was started last. So a supervisor may start the job with the same
//! arguments again and again: it goes back once.

use std::path::Path;

use super::error::CheckpointError;
use super::location::Location;
use super::manifest::{Manifest, sequences};
use super::report::{self, Which};
use super::savepoint::SavepointError;
use super::segment::Summary;
use super::storage::Place;
use super::{Base, Checkpoint, Store, assemble, savepoint, transfer};
use crate::topology::S3;

/// A checkpoint that a start is told to go on from.
#[derive(Debug)]
pub struct Origin {
    place: Place,
    manifest: Manifest,
    told: String,
    /// Whether it is a savepoint at the job's own place.
    is_own: bool,
}

/// Where a job stands, beside an [`Origin`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It has not begun here.
    Nowhere,
    /// It has read nothing since that one, or it has been started from that one before.
    There,
    /// It is somewhere else.
    Elsewhere {
        /// Its epoch.
        epoch: u64,
        /// Whether it is the same life of the job, so that what its epoch says of its outputs is all there is to know.
        same_life: bool,
    },
}

impl Origin {
    /// Finds the checkpoint: the savepoint of a name at the job's place `own`, or, if `told` has a `/`, the newest one in a
    /// folder or at `s3://bucket/prefix`.
    ///
    /// # Errors
    /// If it is not there, is not of `job`, is damaged or can't be read.
    pub fn find(own: &Place, told: &str, s3: &S3, job: &str) -> Result<Origin, SavepointError> {
        let (place, which) = match told.contains('/') {
            false => (own.clone(), Which::Named(told)),
            true => {
                let location = Location::parse(told, Path::new(""));
                let location = location.map_err(|detail| SavepointError::NoPlace { told: told.to_string(), detail })?;
                (location.place(s3)?, Which::Newest)
            }
        };
        if let Which::Named(name) = which {
            savepoint::check_name(name)?;
        }
        let Some((_, manifest)) = report::find(&place, which)? else {
            return Err(match which {
                Which::Named(name) => SavepointError::missing(&place, name)?,
                _ => SavepointError::Nothing { place: place.name() },
            });
        };
        manifest.check_job(&*place.0, job)?;
        let is_own = matches!(which, Which::Named(_));
        Ok(Origin { place, manifest, told: told.to_string(), is_own })
    }

    /// A checkpoint at the job's own place.
    pub(super) fn at(own: &Place, manifest: Manifest, told: String) -> Origin {
        Origin { place: own.clone(), manifest, told, is_own: true }
    }

    /// Its manifest.
    pub(super) fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// What the user calls it.
    pub fn told(&self) -> &str {
        &self.told
    }

    /// Its epoch.
    pub fn epoch(&self) -> u64 {
        self.manifest.epoch
    }

    /// The life of the job that it is of.
    pub fn life(&self) -> &str {
        &self.manifest.id
    }

    /// Whether it is a savepoint at the job's own place.
    pub fn is_own(&self) -> bool {
        self.is_own
    }

    /// What tells it from all other checkpoints.
    fn stamp(&self) -> String {
        format!("{}/{}", self.manifest.writer, self.manifest.sequence)
    }

    /// Where the job whose place is `own` stands beside it, and the number of its newest manifest.
    ///
    /// # Errors
    /// If the newest manifest is damaged, of another job or format, or can't be read.
    pub fn standing(&self, own: &Place) -> Result<(Standing, u64), CheckpointError> {
        let storage = &*own.0;
        let newest = loop {
            let Some(sequence) = sequences(storage)?.pop() else { return Ok((Standing::Nowhere, 0)) };
            // One that has gone was removed meanwhile, and there is a newer one.
            if let Some(newest) = Manifest::read(storage, sequence)? {
                break newest;
            }
        };
        if newest.epoch == 0 {
            return Ok((Standing::Nowhere, newest.sequence));
        }
        newest.check_job(storage, &self.manifest.job)?;
        let was = &self.manifest;
        let same_life = newest.id == was.id;
        // Epochs without records may have passed.
        let is_same = same_life && newest.positions == was.positions && newest.definitions == was.definitions;
        let is_there = is_same || newest.origin.as_ref() == Some(&self.stamp());
        let standing = if is_there { Standing::There } else { Standing::Elsewhere { epoch: newest.epoch, same_life } };
        Ok((standing, newest.sequence))
    }

    /// All of it, every byte checked.
    ///
    /// # Errors
    /// If it is damaged or can't be read.
    pub fn checkpoint(&self) -> Result<Checkpoint, CheckpointError> {
        assemble(&*self.place.0, &self.manifest)
    }
}

impl Store {
    /// Where the job stands beside a checkpoint. As after a [load](Store::load), a start can take over only from that.
    ///
    /// # Errors
    /// If the newest manifest is damaged, of another job or format, or can't be read.
    pub fn standing(&mut self, origin: &Origin) -> Result<Standing, CheckpointError> {
        let (standing, newest) = origin.standing(&self.place)?;
        self.sequence = newest;
        Ok(standing)
    }

    /// Brings what a checkpoint needs to the job's place, and has the next one that is published stand on that instead of
    /// the newest one. The job must have been [taken over](Store::take_over).
    ///
    /// # Errors
    /// If it is damaged, or a storage refuses.
    pub fn go_back(&mut self, origin: &Origin) -> Result<(), CheckpointError> {
        let mut bring = |summary: &Summary, prefix: &str| {
            let file = format!("{prefix}{}", self.segment_name());
            self.segments += 1;
            transfer::copy(&*origin.place.0, summary, &*self.place.0, &file)
        };
        let base = origin.manifest.base.as_ref();
        let bring_base = |base: &Base| Ok(Base { segment: bring(&base.segment, "base-")?, ..base.clone() });
        let base = base.map(bring_base).transpose()?;
        let closed: Result<Vec<Summary>, CheckpointError> =
            origin.manifest.segments.iter().map(|segment| bring(segment, "")).collect();
        (self.base, self.closed, self.open) = (base, closed?, None);
        (self.id, self.origin) = (origin.manifest.id.clone(), Some(origin.stamp()));
        Ok(())
    }
}
