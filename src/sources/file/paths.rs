//! From the paths and globs of a topology to the files that are there.

use std::path::{Path, PathBuf};

use super::{FileFormat, SourceFile};
use crate::sources::SourceError;

/// The files that `patterns` (paths or globs, relative to `folder`) name, each once, in the order of their names.
///
/// # Errors
/// A path that is not there, can't be read, is a folder or has an unknown ending; a glob that nothing matches.
pub fn find_files(source: &str, folder: &Path, patterns: &[String]) -> Result<Vec<SourceFile>, SourceError> {
    let mut files: Vec<SourceFile> = Vec::new();
    for pattern in patterns {
        let fail = |detail: String| SourceError::File { name: source.into(), path: pattern.clone(), detail };
        let found = if pattern.contains(['*', '?', '[']) && !folder.join(pattern).exists() {
            matches(folder, pattern).map_err(fail)?
        } else {
            vec![regular(folder.join(pattern)).map_err(fail)?]
        };
        for path in found {
            let name = path.strip_prefix(folder).unwrap_or(&path).to_string_lossy();
            let format = FileFormat::of(&path).ok_or_else(|| SourceError::File {
                name: source.into(),
                path: name.to_string(),
                detail: "is of an unknown format; the name must end in .jsonl, .ndjson, .json, .csv or .parquet".into(),
            })?;
            files.push(SourceFile { name: name.as_ref().into(), path, format });
        }
    }
    files.sort_by(|a, b| a.name.cmp(&b.name));
    files.dedup_by(|a, b| a.path == b.path);
    Ok(files)
}

/// The regular files that match a glob; folders that match are passed over.
fn matches(folder: &Path, pattern: &str) -> Result<Vec<PathBuf>, String> {
    let escaped = glob::Pattern::escape(&folder.to_string_lossy());
    let whole = if Path::new(pattern).is_absolute() { pattern.into() } else { format!("{escaped}/{pattern}") };
    let found = glob::glob(&whole).map_err(|error| format!("is not a glob: {}", error.msg))?;
    let mut files = Vec::new();
    for path in found {
        let path = path.map_err(|error| error.to_string())?;
        if path.is_file() {
            files.push(path);
        }
    }
    if files.is_empty() {
        return Err(format!("no file matches in {}", folder.display()));
    }
    Ok(files)
}

fn regular(path: PathBuf) -> Result<PathBuf, String> {
    let metadata = std::fs::metadata(&path).map_err(|error| error.to_string())?;
    if metadata.is_dir() {
        return Err("is a folder; name the files in it, as in `folder/*.jsonl`".into());
    }
    if !metadata.is_file() {
        return Err("is not a regular file".into());
    }
    Ok(path)
}
