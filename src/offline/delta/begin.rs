//! A table that is already there: are its columns the stream's, and does it hold rows that this run will make again?

use std::collections::HashSet;

use arrow::datatypes::Schema;
use deltalake::DeltaTable;
use deltalake::kernel::engine::arrow_conversion::TryIntoKernel;
use deltalake::kernel::{Remove, StructField, StructType};
use serde_json::Value;

use super::{app_id, failing, retract};
use crate::offline::columns::DATE;
use crate::offline::{Begin, OfflineError};

/// Adds to the table the columns that only the stream has. Columns that only the table has will be null.
///
/// # Errors
/// If the table is partitioned otherwise, a column has another type, or a column that the stream lacks must not be null.
pub(super) async fn reconcile_columns(
    name: &str,
    table: DeltaTable,
    wanted: &Schema,
) -> Result<DeltaTable, OfflineError> {
    let failed = failing(name, "compare the columns");
    let metadata = table.snapshot().map_err(failed)?.metadata();
    let partitions = metadata.partition_columns();
    if partitions.len() != 1 || partitions[0] != DATE {
        let detail = format!("it is partitioned by {partitions:?}, not by `{DATE}`; choose another `path`");
        return Err(OfflineError::Unexpected { table: name.into(), detail });
    }
    let there: StructType = metadata.parse_schema().map_err(|e| failed(e.into()))?;
    let wanted: StructType = wanted.try_into_kernel().map_err(|e| failed(deltalake::DeltaTableError::from(e)))?;
    let wrong =
        |column: &str, detail: String| OfflineError::Column { table: name.into(), column: column.into(), detail };
    let mut new: Vec<StructField> = Vec::new();
    for field in wanted.fields() {
        match there.field(field.name()) {
            None => new.push(field.clone()),
            Some(kept) if kept.data_type() == field.data_type() => {}
            Some(kept) => {
                let (is, has) = (field.data_type(), kept.data_type());
                let detail =
                    format!("it is {is} in the stream, but {has} in the table; rename it or choose another `path`");
                return Err(wrong(field.name(), detail));
            }
        }
    }
    let lacking = there.fields().find(|field| !field.is_nullable() && wanted.field(field.name()).is_none());
    if let Some(field) = lacking {
        let detail = "the table refuses null in it, and the stream does not have it; choose another `path`";
        return Err(wrong(field.name(), detail.into()));
    }
    if new.is_empty() {
        return Ok(table);
    }
    tracing::info!(table = name, columns = ?new.iter().map(StructField::name).collect::<Vec<_>>(), "add columns");
    table.add_columns().with_fields(new).await.map_err(failing(name, "add columns"))
}

/// Brings the table to what [`Begin`] says.
///
/// # Errors
/// If rows of an earlier run are there and must not be, or can't be told apart from others.
pub(super) async fn remove_what_will_be_made_again(
    name: &str,
    job: &str,
    table: &mut DeltaTable,
    begin: Begin,
) -> Result<(), OfflineError> {
    let failed = failing(name, "read the table's log");
    let log = table.log_store();
    let state = table.snapshot().map_err(failed)?;
    let seen = state.transaction_version(&*log, app_id(job, name)).await.map_err(failed)?;
    let Some(seen) = seen.filter(|epoch| *epoch >= 0) else { return Ok(()) };
    let behind = match begin {
        Begin::After(epoch) | Begin::Joining(epoch) if seen <= epoch as i64 => return Ok(()),
        Begin::After(epoch) => epoch as i64,
        Begin::AnewReplacing => -1,
        Begin::Joining(epoch) => {
            let detail = format!(
                "the table has rows of a former life of job `{job}` (up to epoch {seen}), which the job, at epoch {epoch}, \
                 could not tell from its own; remove the table's folder, or choose another `path`"
            );
            return Err(OfflineError::Unexpected { table: name.into(), detail });
        }
        Begin::Anew => {
            let detail = format!(
                "the table has rows of an earlier run of job `{job}` (up to epoch {seen}), but the job starts anew and would \
                 write them twice; restore the job's state folder, remove the table's folder, or choose another `path`"
            );
            return Err(OfflineError::Unexpected { table: name.into(), detail });
        }
    };
    let paths = committed_behind(name, job, table, behind).await?;
    let state = table.snapshot().map_err(failed)?;
    let files: Vec<Remove> = state
        .log_data()
        .into_iter()
        .filter(|file| paths.contains(&*file.path()))
        .map(|file| file.remove_action(true))
        .collect();
    if files.len() < paths.len() {
        let gone = paths.len() - files.len();
        let detail = format!(
            "{gone} of the {} files committed after epoch {behind} were rewritten by another program, so their rows can't \
             be removed; restore the table to the version before them",
            paths.len()
        );
        return Err(OfflineError::Unexpected { table: name.into(), detail });
    }
    tracing::warn!(table = name, files = files.len(), epoch = behind, "remove rows that will be made again");
    retract(job, name, table, files, behind).await
}

/// The files that the job committed with epochs behind `epoch`, and has not removed since: the log is read backwards up to
/// the first commit of the job that is not behind it.
async fn committed_behind(
    name: &str,
    job: &str,
    table: &DeltaTable,
    epoch: i64,
) -> Result<HashSet<String>, OfflineError> {
    let failed = failing(name, "read the table's log");
    let log = table.log_store();
    let mut files = HashSet::new();
    let mut removed = HashSet::new();
    let mut version = table.version();
    while let Some(at) = version {
        // Old entries of the log are cleaned up behind a checkpoint of the table; the newest are always there.
        let Some(bytes) = log.read_commit_entry(at).await.map_err(failed)? else { break };
        let entry = Entry::read(&bytes, job, name);
        if let Some((first, last)) = entry.epochs {
            if last <= epoch {
                break;
            }
            if first <= epoch {
                let detail = format!(
                    "version {at} of the table holds epochs {first} to {last} in one, and the job goes on behind epoch \
                     {epoch}; restore the table to version {} or the job to a later checkpoint",
                    at.saturating_sub(1)
                );
                return Err(OfflineError::Unexpected { table: name.into(), detail });
            }
            files.extend(entry.added);
        } else if entry.retracted {
            removed.extend(entry.removed);
        }
        version = at.checked_sub(1);
    }
    files.retain(|path| !removed.contains(path));
    Ok(files)
}

/// What is of interest in one entry of the log.
#[derive(Default)]
struct Entry {
    /// The epochs, if the entry is a commit of this job.
    epochs: Option<(i64, i64)>,
    /// The job's own removal of rows that were to be made again.
    retracted: bool,
    added: Vec<String>,
    removed: Vec<String>,
}

impl Entry {
    fn read(bytes: &[u8], job: &str, table: &str) -> Entry {
        let mut entry = Entry::default();
        let path = |action: &Value| action["path"].as_str().map(str::to_owned);
        for line in bytes.split(|byte| *byte == b'\n') {
            let Ok(action) = serde_json::from_slice::<Value>(line) else { continue };
            let about = &action["commitInfo"]["millstream"];
            if about["job"] == job && about["table"] == table {
                entry.epochs = about["epochs"][0].as_i64().zip(about["epochs"][1].as_i64());
            }
            entry.retracted |= action["txn"]["appId"] == app_id(job, table);
            entry.added.extend(path(&action["add"]));
            entry.removed.extend(path(&action["remove"]));
        }
        entry
    }
}
