//! Savepoints: checkpoints that are kept under a name, until somebody deletes them.
//!
//! A savepoint is the manifest of a checkpoint, byte for byte, under a name of its own: `savepoint/<name>.json`. Nothing is
//! copied. No segment that it names is removed as long as it is there; the outputs that were on their way then are in those
//! segments too.
//!
//! **It may be made beside a running job**, by anybody who reaches the place, on storage without locks as well. The job looks
//! at the savepoints before it removes a segment, and it removes those of manifest `n` after it has published `n + 2`. So:
//!
//! ```text
//! read the newest manifest n ─▶ make a draft with it ─▶ is n or n + 1 the newest still? ─▶ make the savepoint, drop the draft
//!                                                                        │ no: another draft, of what is the newest now
//! ```
//! Whoever publishes `n + 2` later than that sees the draft or the savepoint. A draft that a crash has left holds back its
//! segments for an hour.

use std::collections::BTreeSet;

use super::error::CheckpointError;
use super::manifest::{Manifest, sequences};
use super::report::{Listed, listed};
use super::start::new_id;
use super::storage::{Created, Found, Place, Storage};

/// Savepoints that a place holds at most: each keeps its segments from being removed.
pub const MOST: usize = 100;
/// Characters of a name.
const NAME_LENGTH_MAX: usize = 64;
/// How often a job may be faster than a savepoint of it.
const TRIES: usize = 20;
/// How old a draft is that nobody works on any more.
const DRAFT_SECONDS: u64 = 3600;

/// The folder of savepoints.
const FOLDER: &str = "savepoint";
/// What the name of a savepoint's file ends with.
const SAVED: &str = ".json";
/// What the name of a draft ends with.
const DRAFT: &str = ".draft";

/// A savepoint that can't be made, found or deleted.
#[derive(Debug, thiserror::Error)]
pub enum SavepointError {
    /// The name can't be one.
    #[error(
        "`{name}` can't be the name of a savepoint: 1 to {NAME_LENGTH_MAX} letters, digits, `-`, `_` and `.`, the first no `.`"
    )]
    Name {
        /// The name.
        name: String,
    },
    /// There is one.
    #[error("there is a savepoint `{name}` already, of epoch {epoch}; take another name, or delete that one first")]
    Taken {
        /// The name.
        name: String,
        /// Its epoch.
        epoch: u64,
    },
    /// There are too many.
    #[error("there are {MOST} savepoints, and each holds on to its files; delete some first")]
    TooMany,
    /// There is nothing to keep.
    #[error("{place}: no job has kept its state here yet, so there is nothing to save")]
    Nothing {
        /// The place.
        place: String,
    },
    /// There is none of the name.
    #[error("{place}: there is no savepoint `{name}`; there {}", there_are(.there))]
    Missing {
        /// The place.
        place: String,
        /// The name.
        name: String,
        /// Those that there are.
        there: Vec<String>,
    },
    /// A folder or bucket that can't be one.
    #[error("`{told}` is no savepoint and no place of one: {detail}")]
    NoPlace {
        /// What was said.
        told: String,
        /// What is wrong with it.
        detail: String,
    },
    /// The job was faster again and again.
    #[error("the job made checkpoints faster than one could be saved; try again")]
    Outrun,
    /// The storage refused, or something in it is damaged.
    #[error("{0}")]
    Checkpoint(#[from] CheckpointError),
}

impl SavepointError {
    /// That there is no savepoint of a name, and which there are.
    ///
    /// # Errors
    /// If the place can't be read.
    pub fn missing(place: &Place, name: &str) -> Result<SavepointError, CheckpointError> {
        let there = names(&*place.0)?.into_iter().collect();
        Ok(SavepointError::Missing { place: place.name(), name: name.to_string(), there })
    }
}

fn there_are(names: &[String]) -> String {
    if names.is_empty() { "is none".to_string() } else { format!("are: {}", names.join(", ")) }
}

/// Whether a savepoint can have this name.
///
/// # Errors
/// If it can't.
pub fn check_name(name: &str) -> Result<(), SavepointError> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let is_name = (1..=NAME_LENGTH_MAX).contains(&name.len()) && !name.starts_with('.') && name.chars().all(is_plain);
    if is_name { Ok(()) } else { Err(SavepointError::Name { name: name.to_string() }) }
}

fn key(name: &str) -> String {
    format!("{FOLDER}/{name}{SAVED}")
}

/// Keeps the newest checkpoint under a name. Works beside a running job.
///
/// # Errors
/// If there is none, the name is taken or can't be one, or the storage refuses.
pub fn save(place: &Place, name: &str) -> Result<Listed, SavepointError> {
    save_newest(place, name, |newest| Manifest::read(&*place.0, newest))
}

/// Keeps the newest checkpoint, of which `read` reads the manifest: `None` if it has gone meanwhile.
pub(super) fn save_newest(
    place: &Place,
    name: &str,
    mut read: impl FnMut(u64) -> Result<Option<Manifest>, CheckpointError>,
) -> Result<Listed, SavepointError> {
    check_name(name)?;
    let storage = &*place.0;
    let there = names(storage)?;
    if there.len() >= MOST && !there.contains(name) {
        return Err(SavepointError::TooMany);
    }
    for _ in 0..TRIES {
        let newest = sequences(storage)?.pop();
        let Some(newest) = newest else { return Err(SavepointError::Nothing { place: place.name() }) };
        let Some(manifest) = read(newest)? else { continue };
        if manifest.epoch == 0 {
            return Err(SavepointError::Nothing { place: place.name() });
        }
        let draft = format!("{FOLDER}/{name}-{}{DRAFT}", new_id());
        let text = manifest.clone().text();
        create(storage, &draft, &text)?;
        let saved = match is_whole(storage, &manifest)? {
            true => Some(create(storage, &key(name), &text)),
            false => None,
        };
        storage.remove(vec![draft])?;
        match saved.transpose()?.map(|found| (found == text, found)) {
            None => {}
            Some((true, _)) => {
                let found = find(place, name)?.map(|(found, _)| found);
                let found = found.unwrap_or_else(|| Found { name: name.to_string(), made: 0 });
                return Ok(listed(&found, &manifest, Some(name)));
            }
            Some((false, found)) => {
                let epoch = Manifest::parse(&found).map_or(0, |manifest| manifest.epoch);
                return Err(SavepointError::Taken { name: name.to_string(), epoch });
            }
        }
    }
    Err(SavepointError::Outrun)
}

/// Makes a file if there is none of the name; gives what is there then.
fn create(storage: &dyn Storage, key: &str, text: &[u8]) -> Result<Vec<u8>, CheckpointError> {
    match storage.create(key, text)? {
        Created::New => Ok(text.to_vec()),
        Created::Taken(found) => Ok(found),
        Created::Unknown(error) => Err(error),
    }
}

/// Whether nothing that a manifest names can have been removed by now.
fn is_whole(storage: &dyn Storage, manifest: &Manifest) -> Result<bool, CheckpointError> {
    let newest = sequences(storage)?.pop();
    let newest = newest.map(|newest| Manifest::read(storage, newest)).transpose()?.flatten();
    // One of epoch 0 is that of a job that was told to forget everything.
    Ok(newest.is_some_and(|newest| newest.epoch > 0 && newest.sequence <= manifest.sequence + 1))
}

/// Deletes a savepoint. What only it needed is removed by the job, sooner or later.
///
/// # Errors
/// If there is none of the name, or the storage refuses.
pub fn delete(place: &Place, name: &str) -> Result<(), SavepointError> {
    check_name(name)?;
    if !names(&*place.0)?.contains(name) {
        return Err(SavepointError::missing(place, name)?);
    }
    Ok(place.0.remove(vec![key(name)])?)
}

/// The savepoints of a place, the oldest first.
///
/// # Errors
/// If one is damaged or can't be read.
pub fn list(place: &Place) -> Result<Vec<Listed>, CheckpointError> {
    let mut all = Vec::new();
    for found in place.0.list(FOLDER)? {
        let Some(name) = found.name.strip_suffix(SAVED) else { continue };
        // One that has gone was deleted meanwhile.
        let Some(manifest) = Manifest::read_file(&*place.0, &key(name))? else { continue };
        all.push(listed(&found, &manifest, Some(name)));
    }
    all.sort_by(|one, other| (one.number, &one.name).cmp(&(other.number, &other.name)));
    Ok(all)
}

/// The names of all savepoints.
pub(super) fn names(storage: &dyn Storage) -> Result<BTreeSet<String>, CheckpointError> {
    let found = storage.list(FOLDER)?;
    Ok(found.iter().filter_map(|found| found.name.strip_suffix(SAVED)).map(str::to_string).collect())
}

/// The file and the manifest of a savepoint.
pub(super) fn find(place: &Place, name: &str) -> Result<Option<(Found, Manifest)>, CheckpointError> {
    let Some(manifest) = Manifest::read_file(&*place.0, &key(name))? else { return Ok(None) };
    let file = format!("{name}{SAVED}");
    let found = place.0.list(FOLDER)?.into_iter().find(|found| found.name == file);
    Ok(found.map(|found| (found, manifest)))
}

/// The files of segments that savepoints need, with those that are being made.
///
/// # Errors
/// If one can't be read: what it needs is not known then.
pub(super) fn needed(storage: &dyn Storage) -> Result<BTreeSet<String>, CheckpointError> {
    needed_by(storage, |key| Manifest::read_file(storage, key))
}

/// The same, of which `read` reads the manifests: `None` if one has gone meanwhile.
pub(super) fn needed_by(
    storage: &dyn Storage,
    mut read: impl FnMut(&str) -> Result<Option<Manifest>, CheckpointError>,
) -> Result<BTreeSet<String>, CheckpointError> {
    loop {
        let mut needed = BTreeSet::new();
        let mut is_all = true;
        for found in storage.list(FOLDER)? {
            let is_draft = found.name.ends_with(DRAFT);
            if !is_draft && !found.name.ends_with(SAVED) {
                continue;
            }
            match read(&format!("{FOLDER}/{}", found.name))? {
                Some(manifest) => needed.extend(manifest.files()),
                // A draft that has gone has perhaps become a savepoint, which was not in the list.
                None => is_all &= !is_draft,
            }
        }
        if is_all {
            return Ok(needed);
        }
    }
}

/// The keys of drafts that nobody works on any more; `now` is a time of the storage's clock that has passed.
pub(super) fn leftovers(storage: &dyn Storage, now: u64) -> Result<Vec<String>, CheckpointError> {
    let is_old = |found: &Found| now.saturating_sub(found.made) > DRAFT_SECONDS;
    let found = storage.list(FOLDER)?.into_iter();
    let left = found.filter(|found| !found.name.ends_with(SAVED) && is_old(found));
    Ok(left.map(|found| format!("{FOLDER}/{}", found.name)).collect())
}
