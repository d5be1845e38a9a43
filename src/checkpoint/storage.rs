//! Where checkpoints lie: files by key (`manifest/7.json`, `seg/3-1.seg`).
//!
//! The rest of the checkpoint asks for little: that a file appears whole under its name or not at all, that of two who make
//! a file of one name only one succeeds, and that who lists sees all that was made before. A folder of a local disk gives
//! that, and so do stores with conditional puts.

use std::fmt::Debug;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use super::error::CheckpointError;

mod bucket;
mod folder;
mod refusals;

pub(super) use bucket::Bucket;

/// Where a job's checkpoints lie.
#[derive(Debug, Clone)]
pub struct Place(pub(super) Arc<dyn Storage>);

impl Place {
    /// A folder of a local disk. It need not be there yet.
    pub fn folder(path: &Path) -> Place {
        Place(Arc::new(folder::Folder::new(path)))
    }

    /// The objects of a bucket.
    pub(super) fn bucket(bucket: Bucket) -> Place {
        Place(Arc::new(bucket))
    }

    /// Its name, for people.
    pub fn name(&self) -> String {
        self.0.name("")
    }
}

/// Keeps files by key: a folder's name, `/`, and the file's name.
pub(super) trait Storage: Debug + Send + Sync {
    /// What people know a file by.
    fn name(&self, key: &str) -> String;

    /// Makes ready for files. With storage that has locks, the lock: nobody else writes as long as it lives.
    fn lock(&self) -> Result<Option<File>, CheckpointError>;

    /// The files of a folder, in no order; none if there is no such folder.
    fn list(&self, folder: &str) -> Result<Vec<Found>, CheckpointError>;

    /// A small file; `None` if it is not there.
    fn read(&self, key: &str) -> Result<Option<Vec<u8>>, CheckpointError>;

    /// The first `bytes` of a file, from its beginning.
    fn stream(&self, key: &str, bytes: u64) -> Result<Box<dyn Read + '_>, CheckpointError>;

    /// Makes a small file, durably, if there is none of the name.
    ///
    /// # Errors
    /// If it was surely not made.
    fn create(&self, key: &str, bytes: &[u8]) -> Result<Created, CheckpointError>;

    /// Begins a file that nobody else makes; a leftover of the name is replaced.
    fn begin(&self, key: &str) -> Result<Box<dyn Output>, CheckpointError>;

    /// Removes files, now or soon. One that is not there is no error.
    fn remove(&self, keys: Vec<String>) -> Result<(), CheckpointError>;
}

/// A file in a list.
#[derive(Debug, Clone)]
pub(super) struct Found {
    /// Its name in its folder.
    pub name: String,
    /// When it was made, in seconds since 1970 by the clock of the storage.
    pub made: u64,
}

/// What came of making a file.
#[derive(Debug)]
pub(super) enum Created {
    /// It is there.
    New,
    /// There is one of that name, with these bytes. It may be of an earlier try whose answer was lost.
    Taken(Vec<u8>),
    /// It may be there or not, or come yet.
    Unknown(CheckpointError),
}

/// A file that is being written.
pub(super) trait Output: Send {
    /// Appends.
    fn write(&mut self, bytes: &[u8]) -> Result<(), CheckpointError>;

    /// Makes durable what was written.
    fn sync(&mut self) -> Result<(), CheckpointError>;

    /// Whether more can be appended after a [`sync`](Output::sync).
    fn grows(&self) -> bool;

    /// Takes back all but the first `bytes`. False if that is not to be had.
    fn cut(&mut self, bytes: u64) -> bool;
}
