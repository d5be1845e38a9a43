//! A folder of a local disk. What is made is synced with its folder; a lock keeps a second copy of the job away.

use std::collections::BTreeSet;
use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use super::{Created, Found, Output, Storage};
use crate::checkpoint::error::{CheckpointError, tried};
use crate::checkpoint::start::new_id;
use crate::failpoint::{self, Flaw, Point, Trouble};

/// Bytes of a long file that are synced at once, so that the sync of an epoch need not wait for all of it.
const SYNC_BYTES: u64 = 8 << 20;

#[derive(Debug)]
pub(super) struct Folder {
    root: PathBuf,
}

impl Folder {
    pub fn new(root: &Path) -> Folder {
        Folder { root: root.to_path_buf() }
    }
}

impl Storage for Folder {
    fn name(&self, key: &str) -> String {
        let path = if key.is_empty() { self.root.clone() } else { self.root.join(key) };
        path.display().to_string()
    }

    fn lock(&self) -> Result<Option<File>, CheckpointError> {
        for folder in [self.root.join("manifest"), self.root.join("seg")] {
            tried(fs::create_dir_all(&folder), "make", &folder)?;
        }
        lock(&self.root).map(Some)
    }

    fn list(&self, folder: &str) -> Result<Vec<Found>, CheckpointError> {
        let folder = self.root.join(folder);
        let entries = match fs::read_dir(&folder) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            entries => tried(entries, "list", &folder)?,
        };
        let mut found = Vec::new();
        for entry in entries {
            let entry = tried(entry, "list", &folder)?;
            let modified = match entry.metadata().and_then(|metadata| metadata.modified()) {
                // It was removed meanwhile.
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                modified => tried(modified, "look at", &entry.path())?,
            };
            let made = modified.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
            found.push(Found { name: entry.file_name().to_string_lossy().into_owned(), made });
        }
        Ok(found)
    }

    fn read(&self, key: &str) -> Result<Option<Vec<u8>>, CheckpointError> {
        let path = self.root.join(key);
        match fs::read(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            read => tried(read.map(Some), "read", &path),
        }
    }

    fn stream(&self, key: &str, bytes: u64) -> Result<Box<dyn Read + '_>, CheckpointError> {
        let path = self.root.join(key);
        let file = tried(File::open(&path), "read", &path)?;
        Ok(Box::new(io::BufReader::with_capacity(1 << 18, file.take(bytes))))
    }

    fn create(&self, key: &str, bytes: &[u8]) -> Result<Created, CheckpointError> {
        let path = self.root.join(key);
        make_parent(&path)?;
        // A name of its own: a draft that a crash has left may be the very file that was published.
        let draft = path.with_extension(format!("{}.tmp", new_id()));
        let created = publish(&draft, &path, bytes);
        // One that stays is swept with what crashes leave.
        _ = fs::remove_file(&draft);
        match created? {
            true => Ok(sync_parent(&path).map_or_else(Created::Unknown, |()| Created::New)),
            false => Ok(Created::Taken(self.read(key)?.unwrap_or_default())),
        }
    }

    fn begin(&self, key: &str) -> Result<Box<dyn Output>, CheckpointError> {
        let path = self.root.join(key);
        make_parent(&path)?;
        let file = tried(File::create(&path), "make", &path)?;
        Ok(Box::new(Appended { file, path, is_named: false, unsynced: 0 }))
    }

    fn remove(&self, keys: Vec<String>) -> Result<(), CheckpointError> {
        for path in keys.iter().map(|key| self.root.join(key)).collect::<BTreeSet<_>>() {
            match fs::remove_file(&path) {
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                result => tried(result, "remove", &path)?,
            }
            failpoint::reached(Point::FileSwept);
        }
        Ok(())
    }
}

/// Writes a file and gives it its name, unless there is one of that name: false then.
fn publish(draft: &Path, path: &Path, bytes: &[u8]) -> Result<bool, CheckpointError> {
    let mut file = tried(File::create_new(draft), "make", draft)?;
    tried(write_all(&mut file, bytes).and_then(|()| file.sync_all()), "write", draft)?;
    failpoint::reached(Point::ManifestDrafted);
    // A link, unlike a rename, never replaces: two writers can't both believe that theirs is the file.
    match fs::hard_link(draft, path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => return Ok(false),
        result => tried(result, "publish", path)?,
    }
    failpoint::reached(Point::ManifestPublished);
    Ok(true)
}

/// A file that is appended to.
struct Appended {
    file: File,
    path: PathBuf,
    /// Whether its name in its folder is durable.
    is_named: bool,
    unsynced: u64,
}

impl Output for Appended {
    fn write(&mut self, bytes: &[u8]) -> Result<(), CheckpointError> {
        tried(write_all(&mut self.file, bytes), "write", &self.path)?;
        self.unsynced += bytes.len() as u64;
        if self.unsynced > SYNC_BYTES {
            self.unsynced = 0;
            tried(self.file.sync_data(), "write", &self.path)?;
        }
        Ok(())
    }

    fn sync(&mut self) -> Result<(), CheckpointError> {
        self.unsynced = 0;
        if failpoint::has(Flaw::NoSync) {
            return Ok(());
        }
        tried(self.file.sync_data(), "write", &self.path)?;
        if !self.is_named {
            sync_parent(&self.path)?;
            self.is_named = true;
        }
        Ok(())
    }

    fn grows(&self) -> bool {
        true
    }

    fn cut(&mut self, bytes: u64) -> bool {
        self.file.set_len(bytes).and_then(|()| self.file.seek(SeekFrom::Start(bytes))).is_ok()
    }
}

/// Makes the folder of a file, durably, if it is not there.
fn make_parent(path: &Path) -> Result<(), CheckpointError> {
    let Some(folder) = path.parent().filter(|folder| !folder.is_dir()) else { return Ok(()) };
    tried(fs::create_dir_all(folder), "make", folder)?;
    sync_parent(folder)
}

fn write_all(file: &mut File, bytes: &[u8]) -> io::Result<()> {
    if failpoint::lasts(Trouble::DiskFull) {
        file.write_all(&bytes[..bytes.len() / 2])?;
        return Err(ErrorKind::StorageFull.into());
    }
    file.write_all(bytes)
}

fn sync_parent(path: &Path) -> Result<(), CheckpointError> {
    let Some(folder) = path.parent() else { return Ok(()) };
    tried(File::open(folder).and_then(|folder| folder.sync_all()), "sync", folder)
}

/// Takes the lock of a state folder and writes who has it.
fn lock(folder: &Path) -> Result<File, CheckpointError> {
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
