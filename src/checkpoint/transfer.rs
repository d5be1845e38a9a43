//! Copies checkpoints from one place to another, and holds every byte against its checksum on the way.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::Read as _;

use xxhash_rust::xxh3::Xxh3;

use super::error::CheckpointError;
use super::manifest::{self, sequences};
use super::report::{self, Listed, Which, beside_a_running_job};
use super::segment::{self, Summary, digits};
use super::storage::{Created, Place, Storage};

/// Bytes that are read and written at once.
const CHUNK_BYTES: usize = 1 << 20;

/// Copies a segment and gives it another name.
pub(super) fn copy(
    from: &dyn Storage,
    summary: &Summary,
    to: &dyn Storage,
    file: &str,
) -> Result<Summary, CheckpointError> {
    let copied = copy_bytes(from, summary, to, file);
    copied.inspect_err(|_| {
        // What is left of it is nothing.
        _ = to.remove(vec![segment::key(file)]);
    })
}

fn copy_bytes(from: &dyn Storage, summary: &Summary, to: &dyn Storage, file: &str) -> Result<Summary, CheckpointError> {
    let path = || from.name(&segment::key(&summary.file));
    let mut input = from.stream(&segment::key(&summary.file), summary.bytes)?;
    let mut output = to.begin(&segment::key(file))?;
    let (mut hash, mut bytes, mut chunk) = (Xxh3::new(), 0, vec![0; CHUNK_BYTES]);
    loop {
        let read = input.read(&mut chunk);
        let length = read.map_err(|source| CheckpointError::Io { doing: "read", path: path(), source })?;
        if length == 0 {
            break;
        }
        hash.update(&chunk[..length]);
        bytes += length as u64;
        output.write(&chunk[..length])?;
    }
    if bytes < summary.bytes {
        let detail = format!("ends: the file has {bytes} bytes, but the manifest knows of {}", summary.bytes);
        return Err(CheckpointError::Corrupt { path: path(), detail });
    }
    if digits(hash.digest()) != summary.checksum {
        let detail = "does not have the checksum that the manifest names".to_string();
        return Err(CheckpointError::Corrupt { path: path(), detail });
    }
    output.sync()?;
    Ok(Summary { file: file.to_string(), ..summary.clone() })
}

/// Copies a checkpoint with all that it needs to a place where there is none: the state of the same job there. Works beside
/// a running job. `None` if there is no such checkpoint.
///
/// # Errors
/// If there is a checkpoint at the other place, something is damaged, or a storage refuses.
pub fn export(from: &Place, which: Which<'_>, to: &Place) -> Result<Option<Listed>, CheckpointError> {
    let (source, target) = (&*from.0, &*to.0);
    let _lock = target.lock()?;
    if !sequences(target)?.is_empty() {
        return Err(CheckpointError::NotEmpty { place: to.name() });
    }
    // A running job may remove files meanwhile: what has been copied for one checkpoint is not copied for the next again.
    let copied: RefCell<BTreeMap<String, Summary>> = RefCell::default();
    let name = if let Which::Named(name) = which { Some(name) } else { None };
    let exported = beside_a_running_job(from, which, |found, manifest| {
        for summary in manifest.segments() {
            if copied.borrow().get(&summary.file) != Some(summary) {
                copy(source, summary, target, &summary.file)?;
                copied.borrow_mut().insert(summary.file.clone(), summary.clone());
            }
        }
        match target.create(&manifest::key(manifest.sequence), &manifest.clone().text())? {
            Created::New => Ok((report::listed(found, manifest, name), manifest.files())),
            Created::Taken(_) => Err(CheckpointError::NotEmpty { place: to.name() }),
            Created::Unknown(error) => Err(error),
        }
    })?;
    let Some((listed, needed)) = exported else { return Ok(None) };
    let unneeded = copied.into_inner().into_keys().filter(|file| !needed.contains(file));
    target.remove(unneeded.map(|file| segment::key(&file)).collect())?;
    Ok(Some(listed))
}
