//! The thread that writes all tables: gathers epochs, encodes them when every worker has closed them, commits on time.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arrow::datatypes::SchemaRef;
use millstream_operators::{Batch, Row};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::{Instant, timeout_at};

use super::delta::{Committed, Feed, Open, Store};
use super::pending::PendingRows;
use super::{Begin, OfflineConfig, OfflineError, TableKind};
use crate::failpoint::{self, Flaw};
use crate::metrics::catalogue::*;
use crate::metrics::{CounterHandle, GaugeHandle, HistogramHandle};
use crate::provenance::Origins;
use crate::runtime::decided::Decided;

/// A table's files are closed and staged when the open ones take more than this: the bound of a table's memory between
/// commits.
const OPEN_BYTES_MAX: usize = 64 << 20;

/// A table to open.
#[derive(Debug, Clone)]
pub struct OpenTable {
    /// The table's name in the topology.
    pub name: String,
    /// How it is kept.
    pub config: OfflineConfig,
    /// The columns of the batches it will be fed.
    pub schema: SchemaRef,
    /// Makes the provenance columns, which the table has beside the stream's.
    pub origins: Origins,
    /// What is expected of an earlier run.
    pub begin: Begin,
}

/// What the offline store needs to start.
#[derive(Debug, Clone)]
pub struct OpenOffline {
    /// Name of the job.
    pub job: String,
    /// Hash of the topology: says in every commit which definitions made its rows.
    pub topology_hash: String,
    /// The folder that relative paths start from.
    pub folder: PathBuf,
    /// Number of workers that feed.
    pub workers: usize,
    /// The tables. A feed names a table by its index here.
    pub tables: Vec<OpenTable>,
    /// Says which epochs are decided: only they are committed.
    pub decided: Arc<Decided>,
    /// For each table the decided rows that may not be committed yet, by epoch.
    pub pending: Vec<Vec<(u64, PendingRows)>>,
}

/// How often rows of closed epochs are looked at that wait for a decision.
const DECISION_LOOK: Duration = Duration::from_millis(20);

enum Message {
    Rows { worker: usize, table: usize, epoch: u64, batch: Batch, bytes: u64 },
    Closed { worker: usize, epoch: u64 },
}

/// Figures that the writing thread publishes.
#[derive(Debug, Default)]
struct Shared {
    backlog_bytes: AtomicU64,
    /// For each table the newest durable epoch plus 1; 0 while there is none.
    durable: Vec<AtomicU64>,
}

impl Shared {
    fn durable_epoch(&self) -> Option<u64> {
        self.durable.iter().map(|epoch| epoch.load(Ordering::Acquire)).min()?.checked_sub(1)
    }
}

/// The running offline store.
pub struct Offline {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    /// Keeps the thread at work when the workers have ended: the last epochs may not be decided yet.
    open: Option<UnboundedSender<Message>>,
    result: mpsc::Receiver<Result<(), OfflineError>>,
}

/// One worker's way in. Nothing here blocks or fails; what goes wrong shows in [`Offline::check`].
pub struct Feeder {
    worker: usize,
    sender: UnboundedSender<Message>,
    shared: Arc<Shared>,
}

impl Feeder {
    /// Hands over rows of the open `epoch` for table number `table`. Nothing is copied.
    pub fn feed(&self, table: usize, epoch: u64, batch: Batch) {
        if batch.is_empty() {
            return;
        }
        let batch = Batch { raw: None, ..batch };
        let bytes = (batch.records.get_array_memory_size() + batch.len() * size_of::<Row>()) as u64;
        self.shared.backlog_bytes.fetch_add(bytes, Ordering::Relaxed);
        if self.sender.send(Message::Rows { worker: self.worker, table, epoch, batch, bytes }).is_err() {
            self.shared.backlog_bytes.fetch_sub(bytes, Ordering::Relaxed);
        }
    }

    /// Says that this worker gives no more rows of `epoch` or an earlier one.
    pub fn close(&self, epoch: u64) {
        // An error means that the thread has stopped: `check` tells why.
        let _stopped = self.sender.send(Message::Closed { worker: self.worker, epoch });
    }
}

impl Offline {
    /// Memory of rows handed over and not yet encoded. Above a limit of the caller's choice the sources should wait.
    pub fn backlog_bytes(&self) -> u64 {
        self.shared.backlog_bytes.load(Ordering::Relaxed)
    }

    /// The newest epoch of which every table has everything. `None` before the first.
    pub fn durable_epoch(&self) -> Option<u64> {
        self.shared.durable_epoch()
    }

    /// Asks for [`durable_epoch`](Offline::durable_epoch) from another thread.
    pub fn durable(&self) -> impl Fn() -> Option<u64> + Send + 'static {
        let shared = self.shared.clone();
        move || shared.durable_epoch()
    }

    /// Asks whether the thread is still at work. Cheap.
    ///
    /// # Errors
    /// Why it stopped: the job can't go on.
    pub fn check(&self) -> Result<(), OfflineError> {
        // A store that works has no result before it is told to finish.
        self.result.try_recv().unwrap_or(Ok(()))
    }

    /// Commits everything of the decided epochs that all workers have closed, and stops. The feeders must be dropped first. It
    /// takes the time it takes: whoever stops a job says how long that may be.
    ///
    /// # Errors
    /// If a table can't be committed.
    pub fn finish(mut self) -> Result<(), OfflineError> {
        self.open = None;
        // One that has failed before has said why to who [checked](Offline::check).
        let result = self.result.recv().unwrap_or(Ok(()));
        if let Some(thread) = self.thread.take() {
            // The result has come, so the thread is at its end; a panic has ended the process already.
            let _joined = thread.join();
        }
        result
    }
}

/// Opens all tables and starts the thread. Gives one feeder for each worker; the store finishes when all are dropped.
///
/// # Errors
/// If a table can't be opened.
pub fn start(open: OpenOffline) -> Result<(Offline, Vec<Feeder>), OfflineError> {
    let (sender, receiver) = unbounded_channel();
    let (opened, is_open) = mpsc::channel();
    let (ended, result) = mpsc::channel();
    let shared = Arc::new(Shared {
        backlog_bytes: AtomicU64::new(0),
        durable: open.tables.iter().map(|_| AtomicU64::new(0)).collect(),
    });
    let workers = open.workers;
    let thread_shared = shared.clone();
    let thread_failed = |error: std::io::Error| OfflineError::Table {
        table: "all".into(),
        doing: "start the thread",
        source: error.into(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(thread_failed)?;
    let body = move || {
        runtime.block_on(async move {
            match Writer::open(open, thread_shared).await {
                Err(error) => drop(opened.send(Err(error))),
                Ok(writer) => {
                    drop(opened.send(Ok(())));
                    drop(ended.send(writer.run(receiver).await));
                }
            }
        });
    };
    let thread = std::thread::Builder::new().name("offline".into()).spawn(body).map_err(thread_failed)?;
    match is_open.recv() {
        Ok(result) => result?,
        Err(_) => return Err(thread_failed(std::io::Error::other("it ended before the tables were open"))),
    }
    let feeders =
        (0..workers).map(|worker| Feeder { worker, sender: sender.clone(), shared: shared.clone() }).collect();
    Ok((Offline { open: Some(sender), shared, thread: Some(thread), result }, feeders))
}

/// One table with what waits for it.
struct Table {
    store: Store,
    every: Duration,
    due: Instant,
    /// Rows of epochs that are not closed by all: (worker, rows, bytes), in order of arrival.
    waiting: BTreeMap<u64, Vec<(usize, Batch, u64)>>,
    /// True when rows were encoded since the last commit.
    pending: bool,
    metrics: TableMetrics,
}

struct TableMetrics {
    rows: CounterHandle,
    files: CounterHandle,
    committed: CounterHandle,
    repeated: CounterHandle,
    failed: CounterHandle,
    conflicts: CounterHandle,
    duration: HistogramHandle,
    durable: GaugeHandle,
    last_commit: GaugeHandle,
}

impl TableMetrics {
    fn new(table: &str) -> Self {
        TableMetrics {
            rows: OFFLINE_ROWS.of([table]),
            files: OFFLINE_FILES.of([table]),
            committed: OFFLINE_COMMITS.of([table, "committed"]),
            repeated: OFFLINE_COMMITS.of([table, "repeated"]),
            failed: OFFLINE_COMMITS.of([table, "failed"]),
            conflicts: OFFLINE_COMMIT_CONFLICTS.of([table]),
            duration: OFFLINE_COMMIT_DURATION.of([table]),
            durable: OFFLINE_DURABLE_EPOCH.of([table]),
            last_commit: OFFLINE_LAST_COMMIT.of([table]),
        }
    }

    fn count(&self, committed: Committed, started: Instant) {
        match committed {
            Committed::Nothing => return,
            Committed::Repeated => self.repeated.increment(1),
            Committed::Rows { rows, files, conflicts } => {
                self.rows.increment(rows);
                self.files.increment(files);
                self.committed.increment(1);
                self.conflicts.increment(conflicts);
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                self.last_commit.set(now.as_secs_f64());
            }
        }
        self.duration.record(started.elapsed().as_secs_f64());
    }
}

/// Commits decided rows that an earlier run could not commit any more.
async fn redo(
    store: &mut Store,
    metrics: &TableMetrics,
    pending: Vec<(u64, PendingRows)>,
    decided: u64,
) -> Result<(), OfflineError> {
    let done = store.committed_epoch().await?;
    let missing: Vec<_> = pending.into_iter().filter(|(epoch, _)| done.is_none_or(|done| *epoch > done)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let started = Instant::now();
    // They are rows of the stream as it was: its columns and model may be others now.
    let mut own = None;
    for (epoch, PendingRows { batch, origins }) in missing {
        let before = store.feed(Feed::new(&batch.records.schema(), origins));
        own.get_or_insert(before);
        store.write(epoch, &batch).await?;
    }
    metrics.count(store.commit(decided).await?, started);
    if let Some(own) = own {
        store.feed(own);
    }
    Ok(())
}

struct Writer {
    tables: Vec<Table>,
    /// For each worker the newest epoch it has closed plus 1.
    closed: Vec<u64>,
    shared: Arc<Shared>,
    decided: Arc<Decided>,
    /// One behind the newest epoch whose rows have been encoded.
    encoded: u64,
    backlog: GaugeHandle,
}

impl Writer {
    async fn open(open: OpenOffline, shared: Arc<Shared>) -> Result<Self, OfflineError> {
        let mut tables = Vec::with_capacity(open.tables.len());
        for (number, (table, pending)) in open.tables.iter().zip(open.pending).enumerate() {
            let TableKind::Delta(config) = &table.config.table;
            let mut store = Store::open(Open {
                name: &table.name,
                job: &open.job,
                topology_hash: &open.topology_hash,
                path: open.folder.join(&config.path),
                schema: table.schema.clone(),
                origins: table.origins.clone(),
                begin: table.begin,
            })
            .await?;
            let done = match table.begin {
                Begin::After(epoch) | Begin::Joining(epoch) => epoch,
                Begin::Anew | Begin::AnewReplacing => 0,
            };
            let every = table.config.every.duration();
            let metrics = TableMetrics::new(&table.name);
            if !failpoint::has(Flaw::NoTableRedo) {
                redo(&mut store, &metrics, pending, done).await?;
            }
            if done > 0 {
                shared.durable[number].store(done + 1, Ordering::Release);
            }
            metrics.durable.set(done as f64);
            tables.push(Table {
                store,
                every,
                due: Instant::now() + every,
                waiting: BTreeMap::new(),
                pending: false,
                metrics,
            });
        }
        let backlog = OFFLINE_BACKLOG_BYTES.of([]);
        backlog.set(0.0);
        let closed = vec![shared.durable.first().map_or(0, |epoch| epoch.load(Ordering::Acquire)); open.workers];
        Ok(Writer { tables, closed, shared, decided: open.decided, encoded: 0, backlog })
    }

    /// Until all feeders are gone.
    async fn run(mut self, mut receiver: UnboundedReceiver<Message>) -> Result<(), OfflineError> {
        loop {
            let wake = self.tables.iter().filter(|table| table.pending).map(|table| table.due).min();
            // Without anything to commit there is nothing to wake up for but a message.
            let wake = wake.unwrap_or_else(|| Instant::now() + Duration::from_secs(3600));
            // A decision is no message; and while the backlog holds the sources of a bounded run, no epoch ends that would be one.
            let wake = if self.waits_for_decision() { wake.min(Instant::now() + DECISION_LOOK) } else { wake };
            match timeout_at(wake, receiver.recv()).await {
                Ok(Some(Message::Rows { worker, table, epoch, batch, bytes })) => {
                    self.tables[table].waiting.entry(epoch).or_default().push((worker, batch, bytes));
                    continue;
                }
                Ok(Some(Message::Closed { worker, epoch })) => {
                    self.closed[worker] = self.closed[worker].max(epoch + 1);
                    self.encode().await?;
                }
                Ok(None) => break,
                Err(_elapsed) => self.encode().await?,
            }
            self.backlog.set(self.shared.backlog_bytes.load(Ordering::Relaxed) as f64);
            self.commit_due(Instant::now()).await?;
        }
        self.encode().await?;
        for table in &mut self.tables {
            table.due = Instant::now();
        }
        self.commit_due(Instant::now()).await
    }

    /// One behind the newest epoch that every worker has closed.
    fn closed(&self) -> u64 {
        self.closed.iter().copied().min().unwrap_or(0)
    }

    /// Whether there are rows of closed epochs that can't be encoded yet.
    fn waits_for_decision(&self) -> bool {
        let oldest = self.tables.iter().filter_map(|table| table.waiting.keys().next()).min();
        oldest.is_some_and(|oldest| *oldest < self.closed())
    }

    /// One behind the newest epoch that every worker has closed and that is decided: a table never has rows that a crash
    /// could make again.
    fn complete(&self) -> u64 {
        let closed = self.closed();
        if failpoint::has(Flaw::TableFirst) { closed } else { closed.min(self.decided.epoch() + 1) }
    }

    /// Encodes the rows of complete epochs, epoch by epoch and worker by worker.
    async fn encode(&mut self) -> Result<(), OfflineError> {
        let complete = self.complete();
        self.encoded = complete;
        for table in &mut self.tables {
            let open = table.waiting.split_off(&complete);
            for (epoch, mut rows) in std::mem::replace(&mut table.waiting, open) {
                rows.sort_by_key(|(worker, ..)| *worker);
                for (_, batch, bytes) in rows {
                    let written = table.store.write(epoch, &batch).await;
                    written.inspect_err(|_| table.metrics.failed.increment(1))?;
                    self.shared.backlog_bytes.fetch_sub(bytes, Ordering::Relaxed);
                    if table.store.open_bytes() > OPEN_BYTES_MAX {
                        table.store.stage().await.inspect_err(|_| table.metrics.failed.increment(1))?;
                    }
                }
                table.pending = true;
            }
        }
        Ok(())
    }

    /// Commits the tables whose time has come; a table without new rows has every complete epoch.
    async fn commit_due(&mut self, now: Instant) -> Result<(), OfflineError> {
        // Not what is complete by now: decisions come while rows are encoded, and their rows are not in the files yet.
        let Some(epoch) = self.encoded.checked_sub(1) else { return Ok(()) };
        for (table, durable) in self.tables.iter_mut().zip(&self.shared.durable) {
            if table.pending {
                if table.due > now {
                    continue;
                }
                let started = Instant::now();
                let committed = table.store.commit(epoch).await.inspect_err(|_| table.metrics.failed.increment(1))?;
                table.metrics.count(committed, started);
                table.pending = false;
            }
            table.due = now + table.every;
            durable.store(epoch + 1, Ordering::Release);
            table.metrics.durable.set(epoch as f64);
        }
        Ok(())
    }
}
