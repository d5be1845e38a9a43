//! Object storage: S3, and what speaks its protocol. Nothing can be appended and nothing locked; an object appears whole or
//! not at all, and `If-None-Match` makes one only if there is none of its name.
//!
//! An answer can be lost, or say that an object is there because an earlier try of the same request made it. So what is
//! found in its place is given back, and the caller, who knows what it wrote, decides whether it is its own.

use std::collections::VecDeque;
use std::fmt;
use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::{StreamExt as _, TryStreamExt as _};
use object_store::path::Path;
use object_store::{Error, ObjectStore, ObjectStoreExt as _, PutMode, PutOptions, WriteMultipart};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

use super::refusals::told;
use super::{Created, Found, Output, Storage};
use crate::checkpoint::error::CheckpointError;
use crate::failpoint::{self, Point};

/// How long a store that does not answer is waited for at the start.
const START_WAIT: Duration = Duration::from_secs(20);
/// How long to wait before asking again.
const RETRY: Duration = Duration::from_secs(1);
/// How often an object that is said to be there, and is not, is tried again.
const CONFLICTS: usize = 5;
/// How long removals are waited for at the end. What is left is removed by a later start.
const END_WAIT: Duration = Duration::from_secs(5);
/// Bytes of a part of a large object, written or read.
const PART_BYTES: usize = 8 << 20;
/// Parts on their way at once.
const PARTS: usize = 4;

/// The objects of a bucket below a prefix.
pub(in crate::checkpoint) struct Bucket {
    shared: Arc<Shared>,
    removing: Mutex<Vec<JoinHandle<()>>>,
}

struct Shared {
    store: Arc<dyn ObjectStore>,
    /// Where all keys begin: `s3://bucket/prefix`.
    url: String,
    prefix: Path,
    runtime: Runtime,
    complained: AtomicBool,
}

impl fmt::Debug for Bucket {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.shared.url.fmt(to)
    }
}

impl Bucket {
    /// The objects of `store` below `prefix`; `url` is what people know that place by.
    ///
    /// # Errors
    /// If the operating system refuses a thread.
    pub fn new(store: Arc<dyn ObjectStore>, url: String, prefix: Path) -> io::Result<Bucket> {
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(1).thread_name("object-store").enable_all().build()?;
        let shared = Shared { store, url, prefix, runtime, complained: AtomicBool::new(false) };
        Ok(Bucket { shared: Arc::new(shared), removing: Mutex::default() })
    }
}

impl Shared {
    fn path(&self, key: &str) -> Path {
        key.split('/').fold(self.prefix.clone(), |path, part| path.join(part))
    }

    fn name(&self, key: &str) -> String {
        if key.is_empty() { self.url.clone() } else { format!("{}/{key}", self.url) }
    }

    fn failed(&self, doing: &'static str, key: &str, error: Error) -> CheckpointError {
        CheckpointError::Io { doing, path: self.name(key), source: told(error) }
    }

    fn read(&self, key: &str) -> Result<Option<Vec<u8>>, Error> {
        let read = self.runtime.block_on(async { self.store.get(&self.path(key)).await?.bytes().await });
        match read {
            Ok(bytes) => Ok(Some(bytes.to_vec())),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn list(&self, folder: &str) -> Result<Vec<Found>, Error> {
        let path = self.path(folder);
        let found: Vec<_> = self.runtime.block_on(self.store.list(Some(&path)).try_collect())?;
        let found = found.into_iter().filter_map(|meta| {
            let mut below = meta.location.prefix_match(&path)?;
            let name = below.next()?.as_ref().to_string();
            let made = meta.last_modified.timestamp().max(0) as u64;
            below.next().is_none().then_some(Found { name, made })
        });
        Ok(found.collect())
    }
}

impl Storage for Bucket {
    fn name(&self, key: &str) -> String {
        self.shared.name(key)
    }

    fn lock(&self) -> Result<Option<File>, CheckpointError> {
        let begun = Instant::now();
        loop {
            match self.list("manifest") {
                Err(error) if error.may_pass() && begun.elapsed() < START_WAIT => {
                    tracing::warn!(%error, "waiting for the store of the job's state");
                    std::thread::sleep(RETRY);
                }
                listed => return listed.map(|_| None),
            }
        }
    }

    fn list(&self, folder: &str) -> Result<Vec<Found>, CheckpointError> {
        self.shared.list(folder).map_err(|error| self.shared.failed("list", folder, error))
    }

    fn read(&self, key: &str) -> Result<Option<Vec<u8>>, CheckpointError> {
        self.shared.read(key).map_err(|error| self.shared.failed("read", key, error))
    }

    fn stream(&self, key: &str, bytes: u64) -> Result<Box<dyn Read + '_>, CheckpointError> {
        let path = self.shared.path(key);
        Ok(Box::new(Parts {
            shared: &self.shared,
            path,
            asked: 0,
            end: bytes,
            coming: VecDeque::new(),
            part: Vec::new(),
            at: 0,
        }))
    }

    fn create(&self, key: &str, bytes: &[u8]) -> Result<Created, CheckpointError> {
        let path = self.shared.path(key);
        let failed = |error| self.shared.failed("publish", key, error);
        for _ in 0..CONFLICTS {
            let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
            let put = self.shared.store.put_opts(&path, bytes.to_vec().into(), options);
            failpoint::reached(Point::ManifestDrafted);
            let error = match self.shared.runtime.block_on(put) {
                Ok(_) => {
                    failpoint::reached(Point::ManifestPublished);
                    return Ok(Created::New);
                }
                Err(
                    error @ (Error::PermissionDenied { .. } | Error::Unauthenticated { .. } | Error::NotFound { .. }),
                ) => {
                    return Err(failed(error));
                }
                Err(error) => error,
            };
            match self.shared.read(key) {
                Ok(Some(found)) => return Ok(Created::Taken(found)),
                // Two makers at once may both be told to try again.
                Ok(None) if matches!(error, Error::AlreadyExists { .. }) => {}
                Ok(None) | Err(_) => return Ok(Created::Unknown(failed(error))),
            }
        }
        let source = io::Error::new(ErrorKind::TimedOut, "the store says that it is there, and that it is not");
        Ok(Created::Unknown(CheckpointError::Io { doing: "publish", path: self.name(key), source }))
    }

    fn begin(&self, key: &str) -> Result<Box<dyn Output>, CheckpointError> {
        Ok(Box::new(Object { shared: self.shared.clone(), key: key.to_string(), waiting: Vec::new(), upload: None }))
    }

    fn remove(&self, keys: Vec<String>) -> Result<(), CheckpointError> {
        let shared = self.shared.clone();
        let paths: Vec<Result<Path, Error>> = keys.iter().map(|key| Ok(shared.path(key))).collect();
        let task = async move {
            let removed = shared.store.delete_stream(futures_util::stream::iter(paths).boxed());
            let errors = removed
                .filter_map(async |removed| removed.err().filter(|error| !matches!(error, Error::NotFound { .. })));
            let errors: Vec<Error> = errors.collect().await;
            failpoint::reached(Point::FileSwept);
            if let Some(error) = errors.into_iter().next()
                && !shared.complained.swap(true, Ordering::AcqRel)
            {
                let error = shared.failed("remove", "", error);
                tracing::warn!(%error, "files that are not needed could not be removed; a later start will try");
            }
        };
        let mut removing = self.removing.lock().expect("no thread panics with the lock");
        removing.retain(|task| !task.is_finished());
        removing.push(self.shared.runtime.spawn(task));
        Ok(())
    }
}

impl Drop for Bucket {
    fn drop(&mut self) {
        let removing = std::mem::take(&mut *self.removing.lock().expect("no thread panics with the lock"));
        let all = futures_util::future::join_all(removing);
        // What is not removed in that time is removed by a later start.
        _ = self.shared.runtime.block_on(async { tokio::time::timeout(END_WAIT, all).await });
    }
}

/// An object that is being written: at once if it is small, else in parts.
struct Object {
    shared: Arc<Shared>,
    key: String,
    waiting: Vec<u8>,
    upload: Option<WriteMultipart>,
}

impl Object {
    fn written(&self, result: Result<(), Error>) -> Result<(), CheckpointError> {
        result.map_err(|error| self.shared.failed("write", &self.key, error))
    }

    async fn hand_over(&mut self) -> Result<(), Error> {
        if self.upload.is_none() {
            let upload = self.shared.store.put_multipart(&self.shared.path(&self.key)).await?;
            self.upload = Some(WriteMultipart::new_with_chunk_size(upload, PART_BYTES));
        }
        if let Some(upload) = &mut self.upload {
            upload.wait_for_capacity(PARTS).await?;
            upload.write(&std::mem::take(&mut self.waiting));
        }
        Ok(())
    }

    async fn finish(&mut self) -> Result<(), Error> {
        match self.upload.take() {
            Some(mut upload) => {
                upload.write(&std::mem::take(&mut self.waiting));
                upload.finish().await.map(drop)
            }
            None => {
                let bytes = std::mem::take(&mut self.waiting);
                self.shared.store.put(&self.shared.path(&self.key), bytes.into()).await.map(drop)
            }
        }
    }
}

impl Output for Object {
    fn write(&mut self, bytes: &[u8]) -> Result<(), CheckpointError> {
        self.waiting.extend_from_slice(bytes);
        if self.waiting.len() < PART_BYTES {
            return Ok(());
        }
        let shared = self.shared.clone();
        let written = shared.runtime.block_on(self.hand_over());
        self.written(written)
    }

    fn sync(&mut self) -> Result<(), CheckpointError> {
        let shared = self.shared.clone();
        let written = shared.runtime.block_on(self.finish());
        self.written(written)
    }

    fn grows(&self) -> bool {
        false
    }

    fn cut(&mut self, _bytes: u64) -> bool {
        false
    }
}

/// An object that is being read, some parts ahead.
struct Parts<'a> {
    shared: &'a Arc<Shared>,
    path: Path,
    asked: u64,
    end: u64,
    coming: VecDeque<(u64, JoinHandle<Result<Vec<u8>, Error>>)>,
    part: Vec<u8>,
    at: usize,
}

impl Parts<'_> {
    fn ask(&mut self) {
        while self.coming.len() < PARTS && self.asked < self.end {
            let range: Range<u64> = self.asked..self.end.min(self.asked + PART_BYTES as u64);
            let length = range.end - range.start;
            self.asked = range.end;
            let (shared, path) = (self.shared.clone(), self.path.clone());
            let get = async move { shared.store.get_range(&path, range).await.map(|bytes| bytes.to_vec()) };
            self.coming.push_back((length, self.shared.runtime.spawn(get)));
        }
    }
}

impl Read for Parts<'_> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        if self.at == self.part.len() {
            self.ask();
            let Some((length, coming)) = self.coming.pop_front() else { return Ok(0) };
            let part = self.shared.runtime.block_on(coming).map_err(io::Error::other)?.map_err(told)?;
            if (part.len() as u64) < length {
                // The object ends before what was asked for.
                self.end = self.asked;
                self.coming.clear();
            }
            (self.part, self.at) = (part, 0);
        }
        let length = to.len().min(self.part.len() - self.at);
        to[..length].copy_from_slice(&self.part[self.at..self.at + length]);
        self.at += length;
        Ok(length)
    }
}
