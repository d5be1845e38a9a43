//! Checkpoints: where a stopped job goes on.
//!
//! A checkpoint is everything that a job knew at the end of an epoch: how far each source was read, the state of every
//! node by key group, the slow lane, how long each sink's file was. It lies in the job's state folder as two files:
//!
//! ```text
//! state/lock                 held by the running job, so that there is only one
//! state/seg/<epoch>.seg      the state: blocks of (node, key group, bytes), each with its checksum
//! state/manifest/<epoch>.json  the rest, readable, with the length and the checksum of the segment
//! ```
//!
//! The manifest is the commit point. The segment is written and synced first, then the manifest appears under its name at
//! once and only if there is none of that name. A crash before leaves the checkpoint before; what it leaves behind is
//! swept by the next one. Loading takes the newest manifest and checks every byte; what is wrong with it is an error with
//! the name of the file and the block, never a silent step back to an older one, which would repeat output.

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::metrics::catalogue::{
    CHECKPOINT_BYTES, CHECKPOINT_DURATION, CHECKPOINT_EPOCH, CHECKPOINT_LAST, CHECKPOINTS,
};
use crate::sources::Positions;

mod manifest;
mod segment;

/// The format this build writes, and the newest it reads.
pub const FORMAT: u32 = 1;
/// Checkpoints that are kept.
const KEPT: usize = 2;

/// A node's state by key group.
pub type NodeState = BTreeMap<u16, Vec<u8>>;

/// Newest event times by (topic or file, partition).
pub type EventTimes = BTreeMap<(String, i32), i64>;

/// What a job knew at the end of an epoch. The default is a job that has not begun.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Checkpoint {
    /// The epoch that had ended; 0 for a job that has not begun.
    pub epoch: u64,
    /// How often the job had been started, from 1.
    pub generation: u64,
    /// Digest of the topology's definitions.
    pub topology: String,
    /// Where each source goes on, by its name.
    pub positions: BTreeMap<String, Positions>,
    /// The newest event time of each partition of each source.
    pub event_times: BTreeMap<String, EventTimes>,
    /// How much each sink held, by its name.
    pub sinks: BTreeMap<String, u64>,
    /// Counts that go on over starts.
    pub counters: BTreeMap<String, u64>,
    /// The state of each node, by its name.
    pub nodes: BTreeMap<String, NodeState>,
    /// The slow lane.
    pub slow: Option<Vec<u8>>,
}

/// A checkpoint that can't be written or taken up.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// Another process works with the folder.
    #[error("{folder}: {holder} is running this job; stop it first, or give the job another state folder")]
    Locked {
        /// The state folder.
        folder: String,
        /// The other process.
        holder: String,
    },
    /// The file system refused.
    #[error("{doing} {path}: {source}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// With which file.
        path: String,
        /// What the operating system said.
        source: io::Error,
    },
    /// A file is not what was written.
    #[error("{path}: {detail}; the checkpoint is damaged. Restore the file, or start the job anew with `--fresh`")]
    Corrupt {
        /// The file.
        path: String,
        /// What is wrong with it, and with which block.
        detail: String,
    },
    /// The folder belongs to another job.
    #[error("{path}: this is the state of job `{found}`, not of `{wanted}`; give each job a state folder of its own")]
    OtherJob {
        /// The manifest.
        path: String,
        /// Whose state it is.
        found: String,
        /// Who asked.
        wanted: String,
    },
    /// The topology has changed.
    #[error(
        "{path}: the topology has changed since this checkpoint of epoch {epoch}; \
         put the old definitions back, or start the job anew with `--fresh`"
    )]
    OtherTopology {
        /// The manifest.
        path: String,
        /// Its epoch.
        epoch: u64,
    },
    /// A newer build wrote it.
    #[error("{path}: format {found} was written by a newer Millstream; this one reads format {FORMAT}")]
    Newer {
        /// The manifest.
        path: String,
        /// The format.
        found: u32,
    },
    /// There is a checkpoint of that epoch.
    #[error("{path}: there is a checkpoint of this epoch already; it was not replaced")]
    Exists {
        /// The manifest.
        path: String,
    },
}

/// The result of an operation on a file, with what was tried.
fn tried<T>(result: io::Result<T>, doing: &'static str, path: &Path) -> Result<T, CheckpointError> {
    result.map_err(|source| CheckpointError::Io { doing, path: path.display().to_string(), source })
}

/// A job's state folder, locked for as long as this lives.
#[derive(Debug)]
pub struct Store {
    folder: PathBuf,
    job: String,
    _lock: File,
}

impl Store {
    /// Takes the state folder of `job`, making it if it is not there.
    ///
    /// # Errors
    /// If another process holds it, or the file system refuses.
    pub fn open(folder: &Path, job: &str) -> Result<Store, CheckpointError> {
        for folder in [folder.join("manifest"), folder.join("seg")] {
            tried(fs::create_dir_all(&folder), "make", &folder)?;
        }
        Ok(Store { folder: folder.to_path_buf(), job: job.to_string(), _lock: lock(folder)? })
    }

    /// Removes all checkpoints of a state folder, and nothing else that may lie there.
    ///
    /// # Errors
    /// If another process holds it, or the file system refuses.
    pub fn forget(folder: &Path) -> Result<(), CheckpointError> {
        if !folder.exists() {
            return Ok(());
        }
        let _lock = lock(folder)?;
        // Manifests go first: a segment without a manifest is nothing.
        for folder in [folder.join("manifest"), folder.join("seg")] {
            match fs::remove_dir_all(&folder) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                result => tried(result, "remove", &folder)?,
            }
        }
        Ok(())
    }

    /// The newest checkpoint, every byte of it checked; `None` if the job has none. `topology` is the digest of the
    /// definitions as they are now.
    ///
    /// # Errors
    /// If it is damaged, of another job, of another topology or of a newer format.
    pub fn load(&self, topology: &str) -> Result<Option<Checkpoint>, CheckpointError> {
        let Some(epoch) = self.epochs()?.pop() else { return Ok(None) };
        let path = self.manifest(epoch);
        let corrupt =
            |path: &Path, detail: String| CheckpointError::Corrupt { path: path.display().to_string(), detail };
        let text = tried(fs::read(&path), "read", &path)?;
        let written = path.display().to_string();
        if let Some(found) = manifest::format(&text).filter(|found| *found > FORMAT) {
            return Err(CheckpointError::Newer { path: written, found });
        }
        let manifest = manifest::Manifest::parse(&text).map_err(|detail| corrupt(&path, detail))?;
        if manifest.job != self.job {
            let (found, wanted) = (manifest.job, self.job.clone());
            return Err(CheckpointError::OtherJob { path: written, found, wanted });
        }
        if manifest.epoch != epoch {
            return Err(corrupt(&path, format!("the manifest is of epoch {}", manifest.epoch)));
        }
        if manifest.topology != topology {
            return Err(CheckpointError::OtherTopology { path: written, epoch });
        }
        let path = self.segment(epoch);
        let bytes = tried(fs::read(&path), "read", &path)?;
        let state = segment::parse(&bytes, &manifest.segment).map_err(|detail| corrupt(&path, detail))?;
        CHECKPOINT_EPOCH.of([]).set(epoch as f64);
        CHECKPOINT_BYTES.of([]).set(bytes.len() as f64);
        Ok(Some(manifest.into_checkpoint(state)))
    }

    /// Makes `checkpoint` the newest, durably, and sweeps what is older than the one before.
    ///
    /// # Errors
    /// If there is one of the same epoch, or the file system refuses: the checkpoint before stays the newest.
    pub fn publish(&self, checkpoint: &Checkpoint) -> Result<(), CheckpointError> {
        let started = Instant::now();
        let written = self.write(checkpoint);
        CHECKPOINTS.of([if written.is_ok() { "ok" } else { "failed" }]).increment(1);
        let bytes = written?;
        CHECKPOINT_DURATION.of([]).record(started.elapsed().as_secs_f64());
        CHECKPOINT_EPOCH.of([]).set(checkpoint.epoch as f64);
        CHECKPOINT_BYTES.of([]).set(bytes as f64);
        CHECKPOINT_LAST.of([]).set(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64());
        Ok(())
    }

    /// Writes and publishes; gives the bytes of the state.
    fn write(&self, checkpoint: &Checkpoint) -> Result<u64, CheckpointError> {
        let path = self.manifest(checkpoint.epoch);
        if path.exists() {
            return Err(CheckpointError::Exists { path: path.display().to_string() });
        }
        let summary = self.write_segment(checkpoint)?;
        let bytes = summary.bytes;
        let text = manifest::Manifest::new(&self.job, checkpoint, summary).text();
        let draft = path.with_extension("tmp");
        let mut file = tried(File::create(&draft), "make", &draft)?;
        tried(file.write_all(&text).and_then(|()| file.sync_all()), "write", &draft)?;
        // A link, unlike a rename, never replaces: two writers can't both believe that theirs is the checkpoint.
        match fs::hard_link(&draft, &path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(CheckpointError::Exists { path: path.display().to_string() });
            }
            result => tried(result, "publish", &path)?,
        }
        self.sync_folder("manifest")?;
        self.sweep(checkpoint.epoch)?;
        Ok(bytes)
    }

    fn write_segment(&self, checkpoint: &Checkpoint) -> Result<segment::Summary, CheckpointError> {
        let path = self.segment(checkpoint.epoch);
        let draft = path.with_extension("tmp");
        let file = tried(File::create(&draft), "make", &draft)?;
        let mut writer = segment::Writer::new(io::BufWriter::with_capacity(1 << 20, file));
        let written = writer.state(&checkpoint.nodes, checkpoint.slow.as_deref()).and_then(|()| writer.finish());
        let (summary, file) = tried(written, "write", &draft)?;
        tried(
            file.into_inner().map_err(io::IntoInnerError::into_error).and_then(|file| file.sync_all()),
            "write",
            &draft,
        )?;
        // An older segment of this name has no manifest, or there would be no second checkpoint of the epoch.
        tried(fs::rename(&draft, &path), "name", &path)?;
        self.sync_folder("seg")?;
        Ok(summary)
    }

    fn sync_folder(&self, name: &str) -> Result<(), CheckpointError> {
        let folder = self.folder.join(name);
        tried(File::open(&folder).and_then(|folder| folder.sync_all()), "sync", &folder)
    }

    /// Removes all but the newest checkpoints, and what crashes have left.
    fn sweep(&self, newest: u64) -> Result<(), CheckpointError> {
        let epochs = self.epochs()?;
        let kept = &epochs[epochs.len().saturating_sub(KEPT)..];
        for old in epochs.iter().filter(|epoch| !kept.contains(epoch)) {
            let path = self.manifest(*old);
            tried(fs::remove_file(&path), "remove", &path)?;
        }
        debug_assert!(kept.contains(&newest), "the newest checkpoint was just published");
        for name in ["manifest", "seg"] {
            let folder = self.folder.join(name);
            for entry in tried(fs::read_dir(&folder), "list", &folder)? {
                let path = tried(entry, "list", &folder)?.path();
                let draft = path.extension().is_some_and(|extension| extension == "tmp");
                let orphan = path.extension().is_some_and(|extension| extension == "seg")
                    && !epoch_of(&path).is_some_and(|epoch| kept.contains(&epoch));
                if draft || orphan {
                    tried(fs::remove_file(&path), "remove", &path)?;
                }
            }
        }
        Ok(())
    }

    /// The epochs that have a manifest, in order.
    fn epochs(&self) -> Result<Vec<u64>, CheckpointError> {
        let folder = self.folder.join("manifest");
        let mut epochs = Vec::new();
        for entry in tried(fs::read_dir(&folder), "list", &folder)? {
            let path = tried(entry, "list", &folder)?.path();
            if path.extension().is_some_and(|extension| extension == "json") {
                epochs.extend(epoch_of(&path));
            }
        }
        epochs.sort_unstable();
        Ok(epochs)
    }

    fn manifest(&self, epoch: u64) -> PathBuf {
        self.folder.join("manifest").join(format!("{epoch}.json"))
    }

    fn segment(&self, epoch: u64) -> PathBuf {
        self.folder.join("seg").join(format!("{epoch}.seg"))
    }
}

fn epoch_of(path: &Path) -> Option<u64> {
    path.file_stem()?.to_str()?.parse().ok()
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

#[cfg(test)]
mod tests;
