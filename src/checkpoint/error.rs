//! What can be wrong with a checkpoint.

use std::io;
use std::path::Path;

use super::{FORMAT, FORMAT_OLDEST};

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
    /// A newer build wrote it.
    #[error(
        "{path}: format {found} was written by a newer Millstream; this one reads formats {FORMAT_OLDEST} to {FORMAT}"
    )]
    Newer {
        /// The manifest.
        path: String,
        /// The format.
        found: u32,
    },
    /// An older build wrote it.
    #[error(
        "{path}: format {found} was written by an older Millstream; this one reads formats {FORMAT_OLDEST} to {FORMAT}. \
         Stop the job with the old one, note the positions in the manifest, and start it anew with `--fresh`"
    )]
    Older {
        /// The manifest.
        path: String,
        /// The format.
        found: u32,
    },
    /// Something is there already.
    #[error("{place}: there is a job's state already; choose a place that is empty")]
    NotEmpty {
        /// The place.
        place: String,
    },
    /// Another copy has taken over.
    #[error(
        "{path}: another copy of this job has taken over; this one ends. Run only one, or give them different states"
    )]
    TakenOver {
        /// The manifest that it has published.
        path: String,
    },
    /// The store makes what is there.
    #[error(
        "{path}: the store has made an object anew that was there: it takes no notice of `If-None-Match`, so that two copies of \
         the job could not be told apart. Use a store that does, or a folder"
    )]
    Unfenced {
        /// The object.
        path: String,
    },
}

impl CheckpointError {
    /// True if the next try may succeed although nothing is done about it.
    pub fn may_pass(&self) -> bool {
        let is_away = matches!(self, CheckpointError::Io { source, .. } if source.kind() == io::ErrorKind::TimedOut);
        is_away || self.is_disk_full()
    }

    /// True if room on the disk would have helped.
    pub fn is_disk_full(&self) -> bool {
        use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
        matches!(self, CheckpointError::Io { source, .. } if matches!(source.kind(), StorageFull | QuotaExceeded | FileTooLarge))
    }
}

/// The result of an operation on a file, with what was tried.
pub(super) fn tried<T>(result: io::Result<T>, doing: &'static str, path: &Path) -> Result<T, CheckpointError> {
    result.map_err(|source| CheckpointError::Io { doing, path: path.display().to_string(), source })
}
