//! What a start of the job takes in its state folder: the lock, a number, and at the first start a name for its life.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::Path;

use super::error::{CheckpointError, tried};

/// Counts a start of the job, durably.
pub(super) fn next_generation(folder: &Path) -> Result<u64, CheckpointError> {
    let path = folder.join("generation");
    let last = match fs::read_to_string(&path) {
        Ok(text) => text.trim().parse::<u64>().map_err(|_| CheckpointError::Corrupt {
            path: path.display().to_string(),
            detail: format!("`{}` is not a number", text.trim()),
        })?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
        Err(source) => return Err(CheckpointError::Io { doing: "read", path: path.display().to_string(), source }),
    };
    let draft = path.with_extension("tmp");
    let mut file = tried(File::create(&draft), "make", &draft)?;
    tried(writeln!(file, "{}", last + 1).and_then(|()| file.sync_all()), "write", &draft)?;
    tried(fs::rename(&draft, &path), "name", &path)?;
    tried(File::open(folder).and_then(|folder| folder.sync_all()), "sync", folder)?;
    Ok(last + 1)
}

/// A name that no other life of a job has.
pub(super) fn new_id() -> String {
    use ring::rand::SecureRandom as _;
    let mut bytes = [0_u8; 12];
    // Without randomness the time still tells one start from the next.
    if ring::rand::SystemRandom::new().fill(&mut bytes).is_err() {
        bytes[..8].copy_from_slice(&crate::runtime::clock::now_micros().to_le_bytes());
    }
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Takes the lock of a state folder and writes who has it.
pub(super) fn lock(folder: &Path) -> Result<File, CheckpointError> {
    let path = folder.join("lock");
    let opened = File::options().read(true).write(true).create(true).truncate(false).open(&path);
    let mut file = tried(opened, "open", &path)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            // Only for the message: the lock itself is the operating system's.
            let read = file.read_to_string(&mut holder).is_ok() && !holder.trim().is_empty();
            let holder = if read { holder.trim().to_string() } else { "another process".to_string() };
            return Err(CheckpointError::Locked { folder: folder.display().to_string(), holder });
        }
        Err(TryLockError::Error(source)) => {
            return Err(CheckpointError::Io { doing: "lock", path: path.display().to_string(), source });
        }
    }
    let named = file.set_len(0).and_then(|()| file.rewind());
    let named = named.and_then(|()| writeln!(file, "process {}", std::process::id()));
    tried(named, "write", &path)?;
    Ok(file)
}
