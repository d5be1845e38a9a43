//! The offline store through its front door: feed, close, finish; and what a reader then finds in the folder.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arrow::array::{ArrayRef, AsArray, Float64Array, RecordBatch, new_null_array};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};
use deltalake::kernel::CommitInfo;
use deltalake::{DeltaTable, DeltaTableBuilder, ensure_table_uri};
use millstream_operators::units::Millis;
use millstream_operators::{Batch, Row};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::delta::{Committed, DeltaConfig, Open, Store};
use super::pending::PendingRows;
use super::*;
use crate::provenance::{ModelInfo, Origins};
use crate::runtime::decided::Decided;
use crate::sources::Partitions;

const DAY: i64 = 86_400_000;
const WAIT: Duration = Duration::from_secs(60);

fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![Field::new("card.amount_mean_1h", DataType::Float64, true)]))
}

/// Predictions on events of one partition.
fn origins() -> Origins {
    let partitions = Arc::new(Partitions::default());
    partitions.number("flights", 0);
    Origins { partitions, model: Some(ModelInfo { name: "delay".into(), version: "3".into() }) }
}

/// Rows of partition 0, one a day from 1970-01-01 on.
fn rows(offsets: std::ops::Range<i64>) -> Batch {
    let means: ArrayRef = Arc::new(Float64Array::from_iter_values(offsets.clone().map(|o| o as f64 / 2.0)));
    let records = RecordBatch::try_new(schema(), vec![means]).expect("columns follow the schema");
    let row = |offset| Row { source: 0, partition: 0, offset, event_time: offset * DAY, arrived_micros: 0 };
    Batch::new(records, offsets.map(row).collect())
}

fn open(folder: &Path, begin: Begin, workers: usize) -> OpenOffline {
    let config = OfflineConfig {
        from: "delay".into(),
        table: TableKind::Delta(DeltaConfig { path: "lake/delay".into() }),
        every: Millis(60_000),
    };
    OpenOffline {
        job: "flights".into(),
        topology_hash: "abc".into(),
        folder: folder.into(),
        workers,
        tables: vec![OpenTable { name: "delay".into(), config, schema: schema(), origins: origins(), begin }],
        decided: Arc::new(Decided::new(u64::MAX / 2)),
        pending: vec![Vec::new()],
    }
}

fn store_open(folder: &Path, begin: Begin) -> Open<'static> {
    let path = folder.join("lake/delay");
    Open { name: "delay", job: "flights", topology_hash: "abc", path, schema: schema(), origins: origins(), begin }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(future)
}

fn table(folder: &Path) -> DeltaTable {
    let uri = ensure_table_uri(folder.join("lake/delay").to_string_lossy()).expect("a path");
    block_on(DeltaTableBuilder::from_url(uri).expect("a url").load()).expect("a table")
}

/// The offsets in the table, in order, repeats included.
/// All rows, as the files hold them.
fn rows_of(table: &DeltaTable) -> Vec<RecordBatch> {
    let mut found = Vec::new();
    for uri in table.get_file_uris().expect("loaded") {
        let file = std::fs::File::open(uri.trim_start_matches("file://")).expect("a file of the table");
        let reader =
            ParquetRecordBatchReaderBuilder::try_new(file).and_then(|builder| builder.build()).expect("Parquet");
        found.extend(reader.map(|batch| batch.expect("rows")));
    }
    found
}

fn offsets(table: &DeltaTable) -> Vec<i64> {
    let rows = rows_of(table);
    let mut found: Vec<i64> =
        rows.iter().flat_map(|batch| batch["offset"].as_primitive::<Int64Type>().values()).copied().collect();
    found.sort();
    found
}

fn last_commit(table: &DeltaTable) -> CommitInfo {
    use futures_util::TryStreamExt;
    block_on(table.history(Some(1)).try_collect::<Vec<_>>()).expect("a log").remove(0)
}

#[test]
fn an_epoch_is_committed_when_every_worker_has_closed_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let (offline, feeders) = start(open(folder.path(), Begin::Anew, 2)).expect("starts");
    assert_eq!(offline.durable_epoch(), None);
    feeders[0].feed(0, 1, rows(0..3));
    feeders[1].feed(0, 1, rows(3..5));
    feeders[1].feed(0, 2, rows(5..9));
    assert!(offline.backlog_bytes() > 0);
    feeders[0].close(1);
    feeders[1].close(2);
    drop(feeders);
    offline.check().expect("at work");
    offline.finish().expect("finishes");

    let table = table(folder.path());
    assert_eq!(offsets(&table), vec![0, 1, 2, 3, 4], "epoch 2 is open by worker 0 and not there");
    let commit = last_commit(&table);
    let id = commit.info["batch_id"].as_str().expect("text");
    assert!(id.starts_with("flights-delay-1-1-"), "{id}");
    let about = &commit.info["millstream"];
    let wanted = serde_json::json!({
        "job": "flights", "table": "delay", "epochs": [1, 1], "rows": 5, "offsets": { "flights": { "0": [0, 4] } },
        "topology_hash": "abc", "models": { "delay": ["3"] },
    });
    assert_eq!(about, &wanted);
    let dates: BTreeSet<String> = table.get_file_uris().expect("loaded").collect();
    assert_eq!(dates.len(), 5, "a file a date");
    assert!(dates.iter().any(|file| file.contains("date=1970-01-05/")), "{dates:?}");
}

#[test]
fn rows_that_are_decided_late_do_not_wait_for_another_epoch() {
    let folder = tempfile::tempdir().expect("a folder");
    let decided = Arc::new(Decided::new(0));
    let open = OpenOffline { decided: decided.clone(), ..open(folder.path(), Begin::Anew, 1) };
    let (offline, feeders) = start(open).expect("starts");
    feeders[0].feed(0, 1, rows(0..2));
    feeders[0].close(1);
    std::thread::sleep(Duration::from_millis(100));
    assert!(offline.backlog_bytes() > 0, "nobody has decided");
    decided.decide(1);
    let deadline = std::time::Instant::now() + WAIT;
    while offline.backlog_bytes() > 0 {
        assert!(std::time::Instant::now() < deadline, "the rows are not encoded");
        std::thread::yield_now();
    }
}

/// An open file takes much memory however few its rows are, and there is one for each date.
#[test]
fn files_of_many_dates_are_closed_before_the_commit() {
    let folder = tempfile::tempdir().expect("a folder");
    let (offline, feeders) = start(open(folder.path(), Begin::Anew, 1)).expect("starts");
    for epoch in 0..50 {
        feeders[0].feed(0, epoch as u64, rows(epoch * 10..epoch * 10 + 10));
        feeders[0].close(epoch as u64);
    }
    let deadline = std::time::Instant::now() + WAIT;
    while offline.backlog_bytes() > 0 {
        assert!(std::time::Instant::now() < deadline, "the rows are not encoded");
        std::thread::yield_now();
    }
    let dates = std::fs::read_dir(folder.path().join("lake/delay")).expect("the table's folder");
    let closed =
        dates.filter(|entry| entry.as_ref().is_ok_and(|entry| entry.file_name().to_string_lossy().contains("date=")));
    assert!((50..500).contains(&closed.count()), "of 500 dates");
    assert_eq!(offline.durable_epoch(), None, "nothing is committed yet");
    drop(feeders);
    offline.finish().expect("finishes");
    assert_eq!(offsets(&table(folder.path())), (0..500).collect::<Vec<_>>());
}

#[test]
fn rows_are_committed_while_running_and_epochs_without_rows_are_durable() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut open = open(folder.path(), Begin::Anew, 1);
    open.tables[0].config.every = Millis(0);
    let (offline, feeders) = start(open).expect("starts");
    let durable = |epoch| {
        let deadline = std::time::Instant::now() + WAIT;
        while offline.durable_epoch() < Some(epoch) {
            assert!(std::time::Instant::now() < deadline, "epoch {epoch} must become durable");
            std::thread::yield_now();
        }
    };
    feeders[0].close(4);
    durable(4);
    feeders[0].feed(0, 5, rows(0..2));
    feeders[0].close(5);
    durable(5);
    assert_eq!(offsets(&table(folder.path())), vec![0, 1]);
    assert_eq!(offline.backlog_bytes(), 0);
    drop(feeders);
    offline.finish().expect("finishes");
}

#[test]
fn only_decided_epochs_are_committed() {
    let folder = tempfile::tempdir().expect("a folder");
    let decided = Arc::new(Decided::new(0));
    let open = OpenOffline { decided: decided.clone(), ..open(folder.path(), Begin::Anew, 1) };
    let (store, feeders) = start(open).expect("opens");
    for epoch in 1..4 {
        feeders[0].feed(0, epoch as u64, rows(epoch..epoch + 1));
        feeders[0].close(epoch as u64);
    }
    drop(feeders);
    // The workers have ended, and the store waits for what is still to be decided.
    decided.decide(2);
    store.check().expect("it works");
    store.finish().expect("it ends well");
    assert_eq!(offsets(&table(folder.path())), [1, 2]);
}

#[test]
fn decided_rows_of_an_earlier_run_are_committed_once() {
    let folder = tempfile::tempdir().expect("a folder");
    for start_number in 0..2 {
        let row = |n| PendingRows { batch: rows(n..n + 1), origins: origins() };
        let pending = vec![vec![(4, row(4)), (5, row(5))]];
        let open = OpenOffline { pending, ..open(folder.path(), Begin::After(5), 1) };
        let (store, feeders) = start(open).expect("opens");
        drop(feeders);
        store.finish().expect("it ends well");
        assert_eq!(offsets(&table(folder.path())), [4, 5], "start {start_number}");
    }
}

/// The stream has another column and another model now; the rows are of before.
#[test]
fn rows_that_wait_have_the_columns_and_the_model_of_their_run() {
    let folder = tempfile::tempdir().expect("a folder");
    let pending = vec![vec![(4, PendingRows { batch: rows(0..2), origins: origins() })]];
    let mut open = OpenOffline { pending, ..open(folder.path(), Begin::After(4), 1) };
    let fields = [Field::new("wind", DataType::Int64, true), Field::new("mean", DataType::Float64, true)];
    open.tables[0].schema = Arc::new(Schema::new(fields.to_vec()));
    let model = Some(ModelInfo { name: "delay".into(), version: "4".into() });
    open.tables[0].origins = Origins { model, ..origins() };
    let (store, feeders) = start(open).expect("opens");
    let records = RecordBatch::try_from_iter([
        ("wind", Arc::new(arrow::array::Int64Array::from(vec![7])) as ArrayRef),
        ("mean", Arc::new(Float64Array::from(vec![0.5]))),
    ]);
    let row = Row { source: 0, partition: 0, offset: 2, event_time: 2 * DAY, arrived_micros: 0 };
    let later =
        RecordBatch::try_new(Arc::new(Schema::new(fields.to_vec())), records.expect("columns").columns().to_vec());
    feeders[0].feed(0, 5, Batch::new(later.expect("columns"), vec![row]));
    feeders[0].close(5);
    drop(feeders);
    store.finish().expect("it ends well");
    let mut found = Vec::new();
    for batch in rows_of(&table(folder.path())) {
        let text = |name: &str| arrow::compute::cast(&batch[name], &DataType::Utf8).expect("text");
        let columns = ["offset", "model_version", "wind"].map(text);
        found.extend((0..batch.num_rows()).map(|row| {
            columns
                .each_ref()
                .map(|column| column.is_valid(row).then(|| column.as_string::<i32>().value(row).to_string()))
        }));
    }
    found.sort();
    let row = |offset: &str, version: &str, wind: Option<&str>| {
        [Some(offset), Some(version), wind].map(|v| v.map(String::from))
    };
    assert_eq!(found, [row("0", "3", None), row("1", "3", None), row("2", "4", Some("7"))]);
}

#[test]
fn a_redo_is_a_no_op_and_a_crash_before_the_commit_leaves_the_table_as_it_was() {
    let folder = tempfile::tempdir().expect("a folder");
    block_on(async {
        let mut first = Store::open(store_open(folder.path(), Begin::Anew)).await.expect("opens");
        let mut second = Store::open(store_open(folder.path(), Begin::Anew)).await.expect("opens");
        for store in [&mut first, &mut second] {
            store.write(7, &rows(0..4)).await.expect("writes");
        }
        assert_eq!(first.commit(7).await.expect("commits"), Committed::Rows { rows: 4, files: 4, conflicts: 0 });
        assert_eq!(first.commit(7).await.expect("commits"), Committed::Nothing);
        assert_eq!(second.commit(7).await.expect("sees the first"), Committed::Repeated);
        second.write(8, &rows(4..6)).await.expect("writes");
        second.stage().await.expect("stages");
    });
    let there = table(folder.path());
    assert_eq!((offsets(&there), there.version()), (vec![0, 1, 2, 3], Some(1)), "staged files are not seen");
}

/// A run that gives the table rows of one epoch; then all offsets that the table has.
fn run(folder: &Path, begin: Begin, epoch: u64, range: std::ops::Range<i64>) -> Vec<i64> {
    let (offline, feeders) = start(open(folder, begin, 1)).expect("starts");
    feeders[0].feed(0, epoch, rows(range));
    feeders[0].close(epoch);
    drop(feeders);
    offline.finish().expect("finishes");
    offsets(&table(folder))
}

#[test]
fn a_run_that_was_killed_is_cut_back_to_its_checkpoint() {
    let folder = tempfile::tempdir().expect("a folder");
    let run = |begin, epoch, range| run(folder.path(), begin, epoch, range);
    assert_eq!(run(Begin::Anew, 3, 0..2), [0, 1]);
    assert_eq!(run(Begin::After(3), 5, 2..4), [0, 1, 2, 3]);
    // Killed before its checkpoint: the job goes on behind epoch 3 and cuts other epochs.
    assert_eq!(run(Begin::After(3), 4, 2..3), [0, 1, 2]);
    assert_eq!(run(Begin::After(4), 9, 3..6), [0, 1, 2, 3, 4, 5]);
    assert_eq!(run(Begin::After(3), 4, 2..4), [0, 1, 2, 3], "rows removed once are not looked for again");

    let anew = start(open(folder.path(), Begin::Anew, 1)).err().expect("must not write rows twice").to_string();
    assert!(anew.contains("rows of an earlier run of job `flights` (up to epoch 4)"), "{anew}");
    assert_eq!(run(Begin::AnewReplacing, 1, 0..1), [0]);
    let between = start(open(folder.path(), Begin::After(1), 1));
    assert!(between.is_ok(), "the table is where the checkpoint is");
}

#[test]
fn a_table_that_joins_a_job_takes_no_rows_for_its_own_and_removes_none() {
    let folder = tempfile::tempdir().expect("a folder");
    let run = |begin, epoch, range| run(folder.path(), begin, epoch, range);
    assert_eq!(run(Begin::Joining(6), 7, 0..2), [0, 1], "it was not there");
    // Dropped from the file at epoch 8, it comes back at epoch 20: what it had stays.
    assert_eq!(run(Begin::Joining(20), 21, 2..4), [0, 1, 2, 3]);
    let former =
        start(open(folder.path(), Begin::Joining(5), 1)).err().expect("the rows are of later epochs").to_string();
    assert!(former.contains("rows of a former life of job `flights` (up to epoch 21)"), "{former}");
    assert_eq!(offsets(&table(folder.path())), [0, 1, 2, 3]);
}

#[test]
fn a_commit_across_the_checkpoint_cannot_be_cut() {
    let folder = tempfile::tempdir().expect("a folder");
    let (offline, feeders) = start(open(folder.path(), Begin::Anew, 1)).expect("starts");
    for epoch in 1..=3 {
        feeders[0].feed(0, epoch, rows(epoch as i64..epoch as i64 + 1));
    }
    feeders[0].close(3);
    drop(feeders);
    offline.finish().expect("finishes");
    let error = start(open(folder.path(), Begin::After(2), 1)).err().expect("must be refused").to_string();
    assert!(error.contains("version 1 of the table holds epochs 1 to 3 in one"), "{error}");
}

#[test]
fn columns_are_added_and_a_changed_type_is_an_error() {
    let folder = tempfile::tempdir().expect("a folder");
    let run = |begin, change: &dyn Fn(&mut Vec<Field>)| {
        let mut fields: Vec<Field> = schema().fields().iter().map(|field| field.as_ref().clone()).collect();
        change(&mut fields);
        let schema = Arc::new(Schema::new(fields));
        let mut open = open(folder.path(), begin, 1);
        open.tables[0].schema = schema.clone();
        let (offline, feeders) = start(open)?;
        let rows = rows(0..1);
        let column = |field: &Arc<Field>| match rows.records.column_by_name(field.name()) {
            Some(column) => column.clone(),
            None => new_null_array(field.data_type(), 1),
        };
        let columns: Vec<ArrayRef> = schema.fields().iter().map(column).collect();
        let Begin::After(epoch) = begin else { panic!("each run goes on") };
        feeders[0].feed(
            0,
            epoch + 1,
            rows.with_records(RecordBatch::try_new(schema, columns).expect("columns follow the schema")),
        );
        feeders[0].close(epoch + 1);
        drop(feeders);
        offline.finish()
    };
    run(Begin::After(0), &|_| ()).expect("makes the table");
    run(Begin::After(1), &|fields| fields.push(Field::new("label", DataType::Int64, true))).expect("adds a column");
    run(Begin::After(2), &|fields| fields[0] = Field::new("label", DataType::Int64, true))
        .expect("writes null for a column it lacks");
    let table = table(folder.path());
    assert_eq!(offsets(&table), [0, 0, 0]);
    let fields = table.snapshot().expect("loaded").schema();
    assert!(fields.field("label").is_some() && fields.field("card.amount_mean_1h").is_some());

    let retype = |fields: &mut Vec<Field>| fields[0] = Field::new("card.amount_mean_1h", DataType::Utf8, true);
    let error = run(Begin::After(3), &retype).expect_err("must be refused").to_string();
    assert!(
        error.contains("column `card.amount_mean_1h`: it is string in the stream, but double in the table"),
        "{error}"
    );
}

#[test]
fn a_folder_that_cannot_be_written_is_an_error_at_the_start() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("lake"), b"a file where the folder should be").expect("writes");
    let error = start(open(folder.path(), Begin::Anew, 1)).err().expect("must be refused").to_string();
    assert!(
        error.contains("offline table `delay`") && error.contains("the table's folder can't be written"),
        "{error}"
    );
}

#[test]
fn only_old_files_that_no_commit_names_are_swept() {
    let folder = tempfile::tempdir().expect("a folder");
    let run = |begin| {
        let (offline, feeders) = start(open(folder.path(), begin, 1)).expect("starts");
        feeders[0].feed(0, 1, rows(0..1));
        feeders[0].close(1);
        drop(feeders);
        offline.finish().expect("finishes");
    };
    run(Begin::Anew);
    // Two versions: the file of the first is removed in the second, and must stay for readers of the first.
    run(Begin::AnewReplacing);
    let date = folder.path().join("lake/delay/date=1970-01-01");
    let old = SystemTime::now() - Duration::from_secs(2 * 86_400);
    for (name, time) in [
        ("part-old.snappy.parquet", old),
        ("part-old.parquet#1", old),
        ("mine.parquet", old),
        ("part-new.parquet", SystemTime::now()),
    ] {
        let file = std::fs::File::create(date.join(name)).expect("a file");
        file.set_modified(time).expect("a time");
    }
    for file in std::fs::read_dir(&date).expect("a folder").flatten() {
        let name = file.file_name().to_string_lossy().into_owned();
        if name.ends_with(".snappy.parquet") {
            std::fs::File::options().append(true).open(file.path()).and_then(|f| f.set_modified(old)).expect("a time");
        }
    }
    let (offline, feeders) = start(open(folder.path(), Begin::After(1), 1)).expect("starts");
    drop(feeders);
    offline.finish().expect("finishes");
    let mut left: Vec<String> = std::fs::read_dir(&date)
        .expect("a folder")
        .flatten()
        .map(|file| file.file_name().to_string_lossy().into_owned())
        .collect();
    left.retain(|name| !name.ends_with(".snappy.parquet"));
    left.sort();
    assert_eq!(left, ["mine.parquet", "part-new.parquet"]);
    assert_eq!(std::fs::read_dir(&date).expect("a folder").count(), 4, "both versions' files are there");
}
