//! JSON lines in a file.
//!
//! The file's length at the end of an epoch is the sink's position. A job that goes on cuts the file back to the length
//! that its checkpoint recorded and appends, so lines that were written after the checkpoint are not there twice.

use std::fs::{self, File, TryLockError};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use millstream_operators::error::ConfigError;
use millstream_operators::kinds::Kind;

use super::lines::{LineWriter, Target};
use super::{Open, SinkError, SinkTarget, SinkWriter};
use crate::failpoint::{self, Flaw, Point};

/// JSON lines in a file.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FileSink {
    /// The file, relative to the topology's folder. A new job starts it anew; a job that goes on cuts it back to its
    /// checkpoint and appends.
    pub path: String,
}

impl Kind for FileSink {
    const EXAMPLE: &'static str = "{ path: out/predictions.jsonl }";
}

impl SinkTarget for FileSink {
    /// Opens the file, which must be written by one worker only; missing folders are made.
    fn open(&self, open: Open) -> Result<Box<dyn SinkWriter>, SinkError> {
        let path = open.folder.join(&self.path);
        let fail = |source| SinkError::File { name: open.name.clone(), path: path.display().to_string(), source };
        let position = open.position.filter(|_| open.resumed);
        let file = LockedFile::open(&path, position.unwrap_or(0)).map_err(fail)?;
        let writer = LineWriter::start(&open.name, &path.display().to_string(), file, position.unwrap_or(0))?;
        Ok(Box::new(writer))
    }

    fn errors(&self) -> Vec<ConfigError> {
        let unnamed = self.path.is_empty().then(|| ConfigError::new("path", "the file has no name"));
        unnamed.into_iter().collect()
    }

    fn file(&self) -> Option<&str> {
        Some(&self.path)
    }
}

/// A file that no other sink or job writes.
struct LockedFile {
    file: File,
    /// False for a device: it can't be cut, and promises nothing about power.
    regular: bool,
    /// The folder whose entry for the file is not durable yet.
    folder: Option<PathBuf>,
}

impl LockedFile {
    /// Opens the file and cuts it to `length`.
    fn open(path: &Path, length: u64) -> io::Result<LockedFile> {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fs::create_dir_all(folder)?;
        let mut file = File::options().write(true).create(true).truncate(false).open(path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(io::Error::new(io::ErrorKind::ResourceBusy, "another sink or job is writing this file"));
            }
            Err(TryLockError::Error(error)) => return Err(error),
        }
        let metadata = file.metadata()?;
        let regular = metadata.is_file();
        if regular {
            let found = metadata.len();
            if found < length {
                let detail = format!(
                    "the file has {found} bytes, but the checkpoint knows of {length}; it was cut or replaced. \
                     Put it back, or start the job anew"
                );
                return Err(io::Error::new(io::ErrorKind::InvalidData, detail));
            }
            if !failpoint::has(Flaw::NoCut) {
                file.set_len(length)?;
            }
            file.seek(SeekFrom::End(0))?;
            failpoint::reached(Point::FileCut);
        }
        Ok(LockedFile { file, regular, folder: Some(folder.to_path_buf()) })
    }
}

impl Write for LockedFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Target for LockedFile {
    fn make_durable(&mut self) -> io::Result<()> {
        if self.regular {
            self.file.sync_data()?;
            if let Some(folder) = self.folder.take() {
                File::open(folder)?.sync_all()?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::sinks::Records;

    fn open(folder: &Path, path: &str, position: Option<u64>) -> Result<Box<dyn SinkWriter>, SinkError> {
        FileSink { path: path.into() }.open(Open {
            name: "out".into(),
            job: "job".into(),
            worker: 0,
            workers: 1,
            folder: folder.into(),
            dead_letters: false,
            resumed: position.is_some(),
            position,
            commits: crate::sinks::Commits::default(),
            batch_bytes: Default::default(),
        })
    }

    /// How much the sink held at the end of the newest durable epoch.
    fn position(writer: &mut dyn SinkWriter) -> Option<u64> {
        writer.positions().last().map(|(_, position)| *position)
    }

    fn records(values: &[&str]) -> Records {
        let mut records = Records::default();
        for value in values {
            records.values.extend_from_slice(value.as_bytes());
            records.value_ends.push(records.values.len());
        }
        records
    }

    /// Calls `step` until it gives something, for some seconds.
    fn until<T>(mut step: impl FnMut() -> Option<T>) -> T {
        let start = Instant::now();
        loop {
            if let Some(found) = step() {
                return found;
            }
            assert!(start.elapsed() < Duration::from_secs(20), "nothing came");
            std::thread::yield_now();
        }
    }

    fn write(writer: &mut dyn SinkWriter, epoch: u64, values: &[&str]) {
        let records = records(values);
        let mut from = 0;
        until(|| {
            from = writer.write(epoch, &records, from).unwrap();
            (from == records.len()).then_some(())
        });
        writer.close_epoch(epoch).unwrap();
        until(|| (writer.durable().unwrap() == Some(epoch)).then_some(()));
    }

    #[test]
    fn an_epoch_is_durable_and_the_next_run_goes_on_behind_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/folder/out.jsonl");
        let text = || fs::read_to_string(&path).unwrap();
        let mut writer = open(folder.path(), "new/folder/out.jsonl", None).unwrap();
        assert_eq!(writer.durable().unwrap(), None);
        write(&mut *writer, 1, &["{1}", "{22}"]);
        assert_eq!((text().as_str(), position(&mut *writer)), ("{1}\n{22}\n", Some(9)));
        // What is not closed is not part of the position.
        writer.write(2, &records(&["lost"]), 0).unwrap();
        assert_eq!(position(&mut *writer), None);
        drop(writer);

        let reopen = |position| until(|| open(folder.path(), "new/folder/out.jsonl", position).ok());
        let mut writer = reopen(Some(9));
        write(&mut *writer, 2, &["{3}"]);
        assert_eq!((text().as_str(), position(&mut *writer)), ("{1}\n{22}\n{3}\n", Some(13)));
        drop(writer);
        // A new job starts anew.
        let mut writer = reopen(None);
        write(&mut *writer, 1, &[]);
        assert_eq!((text().as_str(), position(&mut *writer)), ("", Some(0)));
    }

    #[test]
    fn a_file_that_was_cut_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("out.jsonl"), "{1}\n").unwrap();
        let error = open(folder.path(), "out.jsonl", Some(9)).err().unwrap().to_string();
        assert!(error.contains("has 4 bytes, but the checkpoint knows of 9"), "{error}");
        assert_eq!(fs::read_to_string(folder.path().join("out.jsonl")).unwrap(), "{1}\n");
    }

    #[test]
    fn two_writers_of_one_file_are_one_too_many() {
        let folder = tempfile::tempdir().unwrap();
        let _first = open(folder.path(), "out.jsonl", None).unwrap();
        let error = open(folder.path(), "out.jsonl", None).err().unwrap().to_string();
        assert!(error.contains("another sink or job is writing this file"), "{error}");
    }

    #[test]
    fn what_cannot_be_opened_says_so() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("file"), "").unwrap();
        for path in ["file/out.jsonl", "."] {
            let error = open(folder.path(), path, None).err().unwrap().to_string();
            let named = format!("sink `out`: {}: ", folder.path().join(path).display());
            assert!(error.starts_with(&named) && error.len() > named.len(), "{error}");
        }
    }

    #[test]
    fn a_full_disk_is_an_error_that_stays() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = open(folder.path(), "/dev/full", None).unwrap();
        writer.write(1, &records(&["{1}"]), 0).unwrap();
        let error = until(|| writer.durable().err()).to_string();
        assert!(error.starts_with("sink `out`: /dev/full: No space left on device"), "{error}");
        assert!(writer.write(1, &records(&["{1}"]), 0).is_err());
        assert!(writer.close_epoch(1).is_err());
    }

    #[test]
    fn a_full_queue_refuses_and_nothing_is_lost() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = open(folder.path(), "out.jsonl", None).unwrap();
        let block: Vec<String> = (0..2000).map(|n| format!("{n:0>100}")).collect();
        let block: Vec<&str> = block.iter().map(String::as_str).collect();
        for epoch in 1..=100 {
            let records = records(&block);
            until(|| (writer.write(epoch, &records, 0).unwrap() == records.len()).then_some(()));
            writer.close_epoch(epoch).unwrap();
        }
        until(|| (writer.durable().unwrap() == Some(100)).then_some(()));
        let positions = writer.positions();
        assert_eq!(positions.len(), 100, "one for each epoch, however many became durable at once");
        assert_eq!(positions[99], (100, 100 * 2000 * 101));
        assert_eq!(fs::metadata(folder.path().join("out.jsonl")).unwrap().len(), 100 * 2000 * 101);
    }
}
