//! Delta Lake tables.
//!
//! A commit carries, beside the files, an application transaction `(job/table, last epoch)`. Redoing a commit finds the
//! transaction there and does nothing, so a commit may be repeated any number of times. Between staging and commit a
//! crash leaves files that no log entry names: garbage, which a later start sweeps.
//!
//! The log is written by atomic create-if-absent, so other writers (compaction, deletes) may work on the table at the same
//! time. A commit is flushed to the device before the job is told of it, so that a loss of power takes no rows of which the
//! job's checkpoint says that they are in the table.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use arrow::array::AsArray;
use arrow::datatypes::{Date32Type, Schema, SchemaRef};
use deltalake::kernel::engine::arrow_conversion::{TryIntoArrow, TryIntoKernel};
use deltalake::kernel::transaction::{CommitBuilder, CommitProperties};
use deltalake::kernel::{Action, Add, Remove, StructType, Transaction};
use deltalake::protocol::{DeltaOperation, SaveMode};
use deltalake::writer::{DeltaWriter, RecordBatchWriter};
use deltalake::{DeltaTable, DeltaTableBuilder, DeltaTableError, ensure_table_uri};
use millstream_operators::Batch;
use millstream_operators::kinds::Kind;

use super::columns::{self, DATE};
use super::contents::{About, Contents};
use super::{Begin, OfflineError};
use crate::failpoint::{self, Point};
use crate::provenance::{Origins, Provenance};

mod begin;
mod flush;
mod sweep;

/// A Delta Lake table, partitioned by the date of the event time (column `date`).
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DeltaConfig {
    /// The table's folder, relative to the topology's folder.
    pub path: String,
}

impl Kind for DeltaConfig {
    const EXAMPLE: &'static str = "{ path: lake/predictions }";
}

/// About what a column of an open file takes beside its encoded pages: dictionary, levels, statistics. Measured over the
/// flights' tables: 50 to 80 KiB.
const OPEN_COLUMN_BYTES: usize = 64 << 10;

/// What a table needs to open.
pub(super) struct Open<'a> {
    /// The table's name in the topology.
    pub name: &'a str,
    /// Name of the job.
    pub job: &'a str,
    /// Hash of the topology, for `commitInfo`.
    pub topology_hash: &'a str,
    /// The table's folder.
    pub path: PathBuf,
    /// The stream's columns.
    pub schema: SchemaRef,
    /// Makes the stream's provenance.
    pub origins: Origins,
    /// What is expected to be there.
    pub begin: Begin,
}

/// What a commit did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Committed {
    /// There was nothing to commit.
    Nothing,
    /// Rows and files are in the table now.
    Rows {
        /// Number of rows.
        rows: u64,
        /// Number of files.
        files: u64,
        /// Times another writer was first.
        conflicts: u64,
    },
    /// The table had the epoch already.
    Repeated,
}

/// What comes into a table: the rows of a stream.
pub(super) struct Feed {
    origins: Origins,
    provenance: Vec<Provenance>,
    /// The stream's columns and its provenance.
    schema: SchemaRef,
}

impl Feed {
    /// Rows with the columns of `stream`.
    pub fn new(stream: &Schema, origins: Origins) -> Feed {
        let provenance = Provenance::available(stream, origins.model.is_some());
        Feed { origins, schema: Provenance::beside(stream, &provenance), provenance }
    }
}

/// An open table: takes rows, stages files, commits.
pub(super) struct Store {
    name: String,
    job: String,
    folder: PathBuf,
    topology_hash: String,
    table: DeltaTable,
    writer: RecordBatchWriter,
    feed: Feed,
    /// The table's columns.
    kept: SchemaRef,
    contents: Contents,
    /// Dates that have an open file.
    dates: BTreeSet<i32>,
    staged: Vec<Add>,
}

impl Store {
    /// Opens the table, or makes it: checks the folder and the columns, adds new columns, removes what [`Begin`] says, and
    /// sweeps staged files that nothing names.
    ///
    /// # Errors
    /// What was tried and what the world said.
    pub async fn open(open: Open<'_>) -> Result<Self, OfflineError> {
        let name = open.name.to_owned();
        let feed = Feed::new(&open.schema, open.origins);
        let wanted = columns::stored_schema(&name, &feed.schema)?;
        writable(&name, &open.path)?;
        let failed = failing(&name, "open the table");
        let mut table = at(&open.path).map_err(failed)?;
        let mut flushed = 0;
        if table.verify_deltatable_existence().await.map_err(failed)? {
            table.load().await.map_err(failed)?;
            // A job that was killed may have written the newest version and not flushed it.
            flushed = table.version().unwrap_or(0);
            table = begin::reconcile_columns(&name, table, &wanted).await?;
            begin::remove_what_will_be_made_again(&name, open.job, &mut table, open.begin).await?;
            sweep::sweep(&table, &open.path).await.map_err(failing(&name, "sweep staged files"))?;
        } else {
            let kernel: StructType = wanted
                .as_ref()
                .try_into_kernel()
                .map_err(|e| failing(&name, "convert the columns")(DeltaTableError::from(e)))?;
            let create = table.create().with_columns(kernel.fields().cloned()).with_partition_columns([DATE]);
            table = create.await.map_err(failing(&name, "make the table"))?;
        }
        flush::log(&name, &open.path, flushed..=table.version().unwrap_or(flushed))?;
        let kept = arrow_schema(&table).map_err(failed)?;
        let writer = RecordBatchWriter::for_table(&table).map_err(failed)?;
        Ok(Store {
            name,
            job: open.job.to_owned(),
            folder: open.path,
            topology_hash: open.topology_hash.to_owned(),
            table,
            writer,
            feed,
            kept: kept.into(),
            contents: Contents::default(),
            dates: BTreeSet::new(),
            staged: Vec::new(),
        })
    }

    /// The newest epoch of the job that the table has; `None` before the first.
    ///
    /// # Errors
    /// If the log can't be read.
    pub async fn committed_epoch(&self) -> Result<Option<u64>, OfflineError> {
        seen(&self.table, &self.job, &self.name).await
    }

    /// Rows come from another feed from now on; gives the one before.
    pub fn feed(&mut self, feed: Feed) -> Feed {
        std::mem::replace(&mut self.feed, feed)
    }

    /// Encodes rows of a closed epoch.
    ///
    /// # Errors
    /// If a file can't be written.
    pub async fn write(&mut self, epoch: u64, batch: &Batch) -> Result<(), OfflineError> {
        let failed = failing(&self.name, "write rows");
        let Feed { origins, provenance, schema } = &self.feed;
        let whole = origins.beside(batch, schema, provenance, epoch).map_err(|e| failed(e.into()))?;
        let kept = columns::conform(&whole, &self.kept).map_err(|e| failed(e.into()))?;
        self.contents.add(epoch, &batch.rows);
        if let Some(dates) = kept.column_by_name(DATE) {
            // Rows of one date mostly follow each other.
            let runs = dates.as_primitive::<Date32Type>().values().chunk_by(|one, next| one == next);
            self.dates.extend(runs.map(|run| run[0]));
        }
        self.writer.write(kept).await.map_err(failed)
    }

    /// About what the files that are not closed yet take in memory. There is one for each date, and an open file is
    /// large however few its rows are: a year at once would take gigabytes.
    pub fn open_bytes(&self) -> usize {
        self.writer.buffer_len() + self.dates.len() * self.kept.fields().len() * OPEN_COLUMN_BYTES
    }

    /// Closes the files written so far. They are complete, and no reader sees them.
    ///
    /// # Errors
    /// If a file can't be written.
    pub async fn stage(&mut self) -> Result<(), OfflineError> {
        let files = self.writer.flush().await.map_err(failing(&self.name, "close staged files"))?;
        self.staged.extend(files);
        self.dates.clear();
        Ok(())
    }

    /// Commits everything taken so far, of epochs up to `epoch`: one new version of the table, or nothing when the table
    /// has the epoch already.
    ///
    /// # Errors
    /// If the log can't be read or written, or other writers were first too often.
    pub async fn commit(&mut self, epoch: u64) -> Result<Committed, OfflineError> {
        self.stage().await?;
        if self.contents.rows == 0 {
            return Ok(Committed::Nothing);
        }
        let failed = failing(&self.name, "commit");
        self.table.update_state().await.map_err(failed)?;
        let contents = std::mem::take(&mut self.contents);
        let files = std::mem::take(&mut self.staged);
        let app = app_id(&self.job, &self.name);
        let log = self.table.log_store();
        let state = self.table.snapshot().map_err(failed)?;
        let seen = state.transaction_version(&*log, &app).await.map_err(failed)?;
        if seen.is_some_and(|seen| seen >= epoch as i64) {
            // The files hold rows that are in the table already; the sweep of a later start takes them away.
            return Ok(Committed::Repeated);
        }
        let (job, table, topology_hash) = (&self.job, &self.name, &self.topology_hash);
        let about = contents.describe(&About { job, table, topology_hash, origins: &self.feed.origins });
        let properties = CommitProperties::default()
            .with_application_transaction(Transaction::new(&app, epoch as i64))
            .with_metadata(about);
        let file_count = files.len() as u64;
        flush::data(&self.name, &self.folder, &files)?;
        let before = state.version();
        failpoint::reached(Point::TableStaged);
        let operation =
            DeltaOperation::Write { mode: SaveMode::Append, partition_by: Some(vec![DATE.into()]), predicate: None };
        let done = CommitBuilder::from(properties)
            .with_actions(files.into_iter().map(Action::Add).collect())
            .build(Some(state), log, operation)
            .await
            .map_err(failed)?;
        flush::log(&self.name, &self.folder, before..=done.version)?;
        failpoint::reached(Point::TableCommitted);
        Ok(Committed::Rows { rows: contents.rows, files: file_count, conflicts: done.metrics.num_retries })
    }
}

/// The table in a folder, not read yet.
fn at(path: &Path) -> Result<DeltaTable, DeltaTableError> {
    ensure_table_uri(&*path.to_string_lossy()).and_then(DeltaTableBuilder::from_url).and_then(DeltaTableBuilder::build)
}

/// The newest epoch of a job that a table in a folder has; `None` if there is none.
pub(super) async fn committed_epoch(job: &str, name: &str, path: &Path) -> Result<Option<u64>, OfflineError> {
    if !path.exists() {
        return Ok(None);
    }
    let failed = failing(name, "read the table's log");
    let mut table = at(path).map_err(failed)?;
    if !table.verify_deltatable_existence().await.map_err(failed)? {
        return Ok(None);
    }
    table.load().await.map_err(failed)?;
    seen(&table, job, name).await
}

/// The newest epoch of a job that a loaded table has.
async fn seen(table: &DeltaTable, job: &str, name: &str) -> Result<Option<u64>, OfflineError> {
    let failed = failing(name, "read the table's log");
    let state = table.snapshot().map_err(failed)?;
    let seen = state.transaction_version(&*table.log_store(), app_id(job, name)).await.map_err(failed)?;
    Ok(seen.and_then(|epoch| u64::try_from(epoch).ok()))
}

/// The id of the application transaction that tells how far a job's rows are in a table.
fn app_id(job: &str, table: &str) -> String {
    format!("{job}/{table}")
}

/// The columns of a table.
fn arrow_schema(table: &DeltaTable) -> Result<Schema, DeltaTableError> {
    let schema: StructType = table.snapshot()?.metadata().parse_schema()?;
    Ok((&schema).try_into_arrow()?)
}

/// Removes files from the table and says that the job's rows are in it up to `epoch` (-1: none).
async fn retract(
    job: &str,
    name: &str,
    table: &mut DeltaTable,
    files: Vec<Remove>,
    epoch: i64,
) -> Result<(), OfflineError> {
    let failed = failing(name, "remove rows that will be made again");
    let properties =
        CommitProperties::default().with_application_transaction(Transaction::new(app_id(job, name), epoch));
    let log = table.log_store();
    let state = table.snapshot().map_err(failed)?;
    CommitBuilder::from(properties)
        .with_actions(files.into_iter().map(Action::Remove).collect())
        .build(Some(state), log, DeltaOperation::Delete { predicate: None })
        .await
        .map_err(failed)?;
    table.update_state().await.map_err(failed)
}

/// Makes the folder, and a file in it for a moment: a folder that can't be written is an error now, not at the first
/// commit.
fn writable(name: &str, path: &Path) -> Result<(), OfflineError> {
    let refused = |source: std::io::Error| OfflineError::Path {
        table: name.to_owned(),
        path: path.display().to_string(),
        doing: "the table's folder can't be written; set `path` to a folder that can",
        source,
    };
    std::fs::create_dir_all(path).map_err(refused)?;
    let probe = path.join(format!("_probe-{}", std::process::id()));
    std::fs::write(&probe, b"").map_err(refused)?;
    std::fs::remove_file(&probe).map_err(refused)
}

/// Says what was tried when the library failed.
fn failing(table: &str, doing: &'static str) -> impl Fn(DeltaTableError) -> OfflineError + Copy {
    move |error| OfflineError::Table { table: table.to_owned(), doing, source: error.into() }
}
