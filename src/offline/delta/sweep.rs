//! Garbage: staged files that a crash left behind before a commit named them.
//!
//! A file is swept when all of this holds: it stands in a folder `date=...` of the table, it is named like a data file
//! (`part-...parquet`, or such a name with an upload's number behind it), the table's log names it neither as there nor as
//! removed (readers of older versions may still want those), and it was last written more than a day ago (another writer
//! may be staging right now).

use std::collections::HashSet;
use std::path::Path;
use std::time::Duration;

use deltalake::{DeltaTable, DeltaTableError};
use futures_util::TryStreamExt;

const AGE_MIN: Duration = Duration::from_secs(86_400);

/// Sweeps the garbage of a table that was just loaded; gives the number of files removed. A file that can't be removed is
/// left where it is.
pub(super) async fn sweep(table: &DeltaTable, folder: &Path) -> Result<usize, DeltaTableError> {
    let candidates = candidates(folder);
    if candidates.is_empty() {
        return Ok(0);
    }
    let state = table.snapshot()?;
    let mut named: HashSet<String> = state.log_data().into_iter().map(|file| file.path().into_owned()).collect();
    let log = table.log_store();
    let removed: Vec<_> = state.all_tombstones(&*log).try_collect().await?;
    named.extend(removed.iter().map(|file| file.path().into_owned()));
    let mut swept = 0;
    for path in candidates.into_iter().filter(|path| !named.contains(path)) {
        if std::fs::remove_file(folder.join(&path)).is_ok() {
            tracing::info!(file = path, "swept a staged file that no commit names");
            swept += 1;
        }
    }
    Ok(swept)
}

/// Data files older than a day, relative to the table's folder.
fn candidates(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for date in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let date_name = date.file_name().to_string_lossy().into_owned();
        if !date_name.starts_with("date=") {
            continue;
        }
        for file in std::fs::read_dir(date.path()).into_iter().flatten().flatten() {
            let name = file.file_name().to_string_lossy().into_owned();
            let written = file.metadata().and_then(|about| about.modified()).ok();
            let age = written.and_then(|written| written.elapsed().ok());
            if name.starts_with("part-") && name.contains(".parquet") && age.is_some_and(|age| age > AGE_MIN) {
                found.push(format!("{date_name}/{name}"));
            }
        }
    }
    found
}
