//! The file that `--summary` names: what it had stays until the run has ended, then it is replaced in one step. Of a job with a
//! supervisor the first process writes it, or the supervisor if that had no time to.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use crate::summary::Summary;

/// Where the summary goes.
pub(super) struct SummaryFile {
    path: PathBuf,
    /// The file that takes its place; none beside a pipe or a terminal, which is written as it is.
    draft: Option<PathBuf>,
}

/// A file at some time: its number and when it was written, if it was there.
#[derive(Debug, PartialEq)]
pub(super) struct Stamp(Option<(u64, i64, i64)>);

impl SummaryFile {
    /// The file at `path`. Makes sure that it can be written, for hours of work should not end with one that can't, and leaves
    /// it as it is.
    ///
    /// # Errors
    /// If it can't be written.
    pub fn at(path: &Path) -> anyhow::Result<SummaryFile> {
        let cannot = || format!("{} can't be written (--summary)", path.display());
        let is_other = path.metadata().is_ok_and(|found| !found.is_file());
        if is_other {
            OpenOptions::new().append(true).open(path).with_context(cannot)?;
            return Ok(SummaryFile { path: path.into(), draft: None });
        }
        // Of a link, what it leads to is replaced.
        let path = path.canonicalize().unwrap_or_else(|_| path.into());
        let mut name = path.file_name().with_context(cannot)?.to_os_string();
        name.push(format!(".{}.part", std::process::id()));
        let draft = path.with_file_name(name);
        std::fs::write(&draft, "").and_then(|()| std::fs::remove_file(&draft)).with_context(cannot)?;
        Ok(SummaryFile { path, draft: Some(draft) })
    }

    /// What tells the file that is there from one that takes its place. `None` beside a pipe or a terminal, of which nobody can tell.
    pub fn stamp(&self) -> Option<Stamp> {
        self.draft.as_ref()?;
        let found = self.path.metadata().map(|found| (found.ino(), found.mtime(), found.mtime_nsec()));
        Some(Stamp(found.ok()))
    }

    /// Writes the summary.
    ///
    /// # Errors
    /// If it can't be written any more.
    pub fn write(&self, summary: &Summary) -> anyhow::Result<()> {
        let text = serde_json::to_string_pretty(summary).context("write the summary as JSON")?;
        let written = match &self.draft {
            Some(draft) => std::fs::write(draft, text).and_then(|()| std::fs::rename(draft, &self.path)),
            None => {
                OpenOptions::new().append(true).open(&self.path).and_then(|mut file| file.write_all(text.as_bytes()))
            }
        };
        written.with_context(|| format!("write the summary to {}", self.path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_and_a_pipe_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let (path, link) = (folder.path().join("summary.json"), folder.path().join("link"));
        std::fs::write(&path, "of the run before").unwrap();
        std::os::unix::fs::symlink(&path, &link).unwrap();
        let file = SummaryFile::at(&link).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "of the run before");
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 2);
        let before = file.stamp();
        assert!(before.is_some() && before == file.stamp());
        file.write(&Summary { job: "score".into(), ..Summary::default() }).unwrap();
        assert_ne!(file.stamp(), before);
        assert!(std::fs::read_to_string(&path).unwrap().contains("\"job\": \"score\""));
        assert!(link.is_symlink() && std::fs::read_dir(&folder).unwrap().count() == 2);

        SummaryFile::at(Path::new("/dev/null")).unwrap().write(&Summary::default()).unwrap();
        assert!(!Path::new("/dev/null").metadata().unwrap().is_file(), "a device stays one");
        assert!(SummaryFile::at(&path.join("below")).is_err());
        assert!(SummaryFile::at(folder.path()).is_err());
    }
}
