//! What a loss of power leaves: data files are flushed to the device before the log names them, and the log before the job
//! is told that it has committed. The library that writes both flushes nothing, and a checkpoint, which is flushed, would
//! otherwise know of commits that are gone.

use std::fs::File;
use std::io::{ErrorKind, Result};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use deltalake::kernel::{Add, Version};

use crate::offline::OfflineError;

/// Flushes staged files, which stand in folders by date below that of the table.
///
/// # Errors
/// If one can't be flushed.
pub(super) fn data(name: &str, table: &Path, files: &[Add]) -> std::result::Result<(), OfflineError> {
    let mut folders: Vec<&Path> = Vec::new();
    let paths = files.iter().map(|file| Path::new(&file.path));
    for path in paths {
        flushed(name, &table.join(path), flush)?;
        folders.extend(path.parent());
    }
    folders.sort_unstable();
    folders.dedup();
    folders.iter().try_for_each(|folder| flushed(name, &table.join(folder), flush))?;
    // The folder of a date may be new itself.
    if folders.is_empty() { Ok(()) } else { flushed(name, table, flush) }
}

/// Flushes the log's entries of these versions, and the checkpoints of the log that the library has made with them.
///
/// # Errors
/// If one can't be flushed.
pub(super) fn log(
    name: &str,
    table: &Path,
    versions: RangeInclusive<Version>,
) -> std::result::Result<(), OfflineError> {
    let folder = table.join("_delta_log");
    let of_version = |version: Version| ["json", "checkpoint.parquet"].map(|end| format!("{version:020}.{end}"));
    let files: Vec<PathBuf> = versions.flat_map(of_version).map(|file| folder.join(file)).collect();
    files.iter().try_for_each(|file| flushed(name, file, flush_if_there))?;
    flushed(name, &folder.join("_last_checkpoint"), flush_if_there)?;
    flushed(name, &folder, flush)
}

fn flush(path: &Path) -> Result<()> {
    File::open(path)?.sync_all()
}

/// An entry may be cleaned away by another writer once a checkpoint of the log has it.
fn flush_if_there(path: &Path) -> Result<()> {
    flush(path).or_else(|error| if error.kind() == ErrorKind::NotFound { Ok(()) } else { Err(error) })
}

fn flushed(name: &str, path: &Path, flush: fn(&Path) -> Result<()>) -> std::result::Result<(), OfflineError> {
    flush(path).map_err(|source| OfflineError::Path {
        table: name.to_owned(),
        path: path.display().to_string(),
        doing: "flush to the device",
        source,
    })
}
