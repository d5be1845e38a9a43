//! The offline store: tables of events, vectors and predictions for training.
//!
//! One thread writes all tables, off the fast lane. Workers hand it batches and say when they have closed an epoch; an
//! epoch counts when every worker has closed it. Rows of counted epochs are encoded into staged Parquet files, which no
//! reader sees; every so often one commit names all staged files of a table, and with it a reader sees whole epochs or
//! nothing of them.
//!
//! ```text
//! worker 0 ─ feed, close ─┐            ┌ epoch 7 closed by all ─ encode ─ staged files ─┐  every 60 s
//! worker 1 ─ feed, close ─┴─ channel ─▶┤ epoch 8 open by worker 1: rows wait             ├─ one commit ─▶ durable_epoch
//!                                      └                                                 ┘  (batch id, epochs, offsets)
//! ```
//!
//! Handing over never blocks. Memory is bounded by the one who feeds: while [`Offline::backlog_bytes`] is above a limit,
//! sources wait.

use millstream_operators::kinds;
use millstream_operators::units::Millis;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

mod columns;
mod contents;
pub mod delta;
pub mod pending;
#[cfg(test)]
mod tests;
mod writer;

pub use writer::{Feeder, Offline, OpenOffline, OpenTable, start};

kinds! {
    /// How a table is kept.
    pub enum TableKind("offline store") {
        "delta" => Delta(delta::DeltaConfig),
    }
}

/// A table that gets every row of a stream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OfflineConfig {
    /// The stream: a source (raw events), vector or model (feature vectors with their predictions).
    pub from: String,
    /// The table.
    pub table: TableKind,
    /// How often rows are committed, at the end of an epoch. Shorter is fresher and gives more, smaller files.
    #[serde(default = "every")]
    pub every: Millis,
}

impl OfflineConfig {
    /// A Delta table in the folder `path` that gets every row of `from`.
    pub fn delta(from: &str, path: &str) -> Self {
        let table = TableKind::Delta(delta::DeltaConfig { path: path.into() });
        OfflineConfig { from: from.into(), table, every: every() }
    }
}

fn every() -> Millis {
    Millis(60_000)
}

/// Whether a table can keep the columns of `stream`: the stream's own and its provenance.
///
/// # Errors
/// The first column that it can't keep, and why.
pub fn check_columns(table: &str, stream: &arrow::datatypes::Schema) -> Result<(), OfflineError> {
    columns::stored_schema(table, stream).map(drop)
}

/// The newest epoch of `job` that table `name` has; `None` before the first, or if there is no table. Relative paths start
/// from `folder`.
///
/// # Errors
/// If the table's log can't be read.
pub fn committed_epoch(
    job: &str,
    name: &str,
    table: &TableKind,
    folder: &std::path::Path,
) -> Result<Option<u64>, OfflineError> {
    let TableKind::Delta(delta) = table;
    let path = folder.join(&delta.path);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| OfflineError::Table {
        table: name.to_owned(),
        doing: "start a runtime",
        source: error.into(),
    })?;
    runtime.block_on(delta::committed_epoch(job, name, &path))
}

/// What a start of the job finds of an earlier one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begin {
    /// The job starts anew and reads live input: rows that an earlier run of the job left in a table are a mistake.
    Anew,
    /// The job starts anew and makes everything again from bounded input: what an earlier run of the job left is removed
    /// from the table (and stays in its history).
    AnewReplacing,
    /// The job goes on behind this epoch, of its checkpoint. Rows of later epochs, which a run that was killed had already
    /// committed, are removed from the table: they will be made again.
    After(u64),
    /// The job goes on behind this epoch, and the table is new to it. Rows that it had committed there in a former life are
    /// left, unless they are of later epochs: the new ones could not be told from them.
    Joining(u64),
}

/// The offline store failed.
#[derive(Debug, thiserror::Error)]
pub enum OfflineError {
    /// A folder or file can't be made, read or written.
    #[error("offline table `{table}`: {path}: {doing}: {source}")]
    Path {
        /// The table's name in the topology.
        table: String,
        /// The folder or file.
        path: String,
        /// What was tried, and what to do.
        doing: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// The table refuses what was tried.
    #[error("offline table `{table}`: {doing}: {source}")]
    Table {
        /// The table's name in the topology.
        table: String,
        /// What was tried.
        doing: &'static str,
        /// What the table format's library said, and why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A column of the stream can't be kept in the table.
    #[error("offline table `{table}`: column `{column}`: {detail}")]
    Column {
        /// The table's name in the topology.
        table: String,
        /// The column.
        column: String,
        /// What is wrong and what to do.
        detail: String,
    },
    /// The table holds what the start of the job does not expect.
    #[error("offline table `{table}`: {detail}")]
    Unexpected {
        /// The table's name in the topology.
        table: String,
        /// What was found and what to do.
        detail: String,
    },
}
