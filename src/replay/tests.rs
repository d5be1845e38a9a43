//! Replays of small files, looked at from the workers' side.

use std::fs;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use arrow::array::{Array, ArrayRef, AsArray, BinaryArray, Int64Array, RecordBatch};
use arrow::datatypes::Int64Type;
use millstream_operators::Row;
use millstream_operators::reject::Reason;
use proptest::prelude::*;

use super::*;
use crate::cluster::Shape;
use crate::runtime::time::epoch_of;
use crate::sources::file::{UNTIMED, find_files};
use crate::sources::{Arrival, Start, Topics};

/// Decodes `<event time> <value>`; an event time of `-` is the one of a source without event times.
fn decode(chunk: Chunk, rejects: &mut Vec<Reject>) -> Result<Option<Batch>, String> {
    let (mut values, mut rows, mut raw) = (Vec::new(), Vec::new(), Vec::new());
    let mut take = |time: i64, value: i64, row: &Row, payload: &[u8]| {
        values.push(value);
        rows.push(Row { event_time: time, ..*row });
        raw.push(payload.to_vec());
    };
    match &chunk {
        Chunk::Messages(messages) => {
            for (payload, row) in messages.payloads.iter().map(Option::unwrap_or_default).zip(&messages.rows) {
                let text = String::from_utf8_lossy(payload).replace('-', &UNTIMED.to_string());
                let numbers: Vec<i64> = text.split([' ', ',']).filter_map(|n| n.parse().ok()).collect();
                match numbers[..] {
                    [time, value] => take(time, value, row, payload),
                    _ => rejects.push(Reject {
                        stage: "decode".into(),
                        reason: Reason::Malformed,
                        detail: String::new(),
                        payload: payload.to_vec(),
                        event_time: None,
                        row: *row,
                    }),
                }
            }
        }
        Chunk::Records(records, rows) => {
            let column = |n: usize| records.column(n).as_primitive_opt::<Int64Type>().ok_or("not a number");
            for (n, row) in rows.iter().enumerate() {
                take(column(0)?.value(n), column(1)?.value(n), row, b"");
            }
        }
    }
    let column: ArrayRef = Arc::new(Int64Array::from(values));
    let records = RecordBatch::try_from_iter([("value", column)]).map_err(|error| error.to_string())?;
    let mut batch = Batch::new(records, rows);
    batch.raw = Some(BinaryArray::from_iter_values(raw));
    Ok((!batch.is_empty()).then_some(batch))
}

/// What an inbox was given: (timely time, source, event time, offset, value), the value of a reject being -1.
type Seen = Vec<(u64, u16, i64, i64, i64)>;

struct Run {
    workers: Vec<Seen>,
    cuts: Arc<Cuts>,
    progress: Arc<Progress>,
    result: Result<(), String>,
    ended: bool,
}

impl Run {
    /// All that was seen, in the order of the merge: the workers have contiguous shares of each tick.
    fn all(&self) -> Seen {
        let mut all: Seen = self.workers.iter().flatten().copied().collect();
        all.sort_by_key(|(time, ..)| *time);
        all
    }
    fn values(&self) -> Vec<i64> {
        self.all().iter().map(|(.., value)| *value).collect()
    }
}

struct Setup<'a> {
    folder: &'a Path,
    /// Name of a file or glob, order.
    sources: Vec<(&'a str, InputOrder)>,
    workers: usize,
    pace: Pace,
    from: Option<(u64, Cut)>,
    /// Stops the job when a worker sees this value.
    stop_at: Option<i64>,
}

fn setup<'a>(folder: &'a Path, sources: &[(&'a str, InputOrder)]) -> Setup<'a> {
    Setup { folder, sources: sources.to_vec(), workers: 1, pace: Pace::Fastest, from: None, stop_at: None }
}

fn source(setup: &Setup, index: usize) -> ReplaySource {
    let (pattern, order) = setup.sources[index];
    let name: Arc<str> = format!("s{index}").into();
    let positions = setup.from.as_ref().map(|(_, cut)| cut.positions[&name].clone()).unwrap_or_default();
    ReplaySource {
        input: Input::Files(find_files(&name, setup.folder, &[pattern.to_string()]).unwrap()),
        stream: name.clone(),
        name,
        source: index as u16,
        order,
        decode: Box::new(decode),
        message_size_max: 100,
        delimiter: b',',
        positions,
    }
}

fn run(setup: Setup) -> Run {
    let stop = Arc::new(AtomicBool::new(false));
    let (cuts, progress) = (Arc::new(Cuts::default()), Arc::new(Progress::default()));
    let mut inboxes = Vec::new();
    let mut port = |_| {
        let (sender, inbox) = crossbeam_channel::bounded(1);
        inboxes.push(inbox);
        Port::new(sender, Box::new(|| {}))
    };
    let ports = setup.sources.iter().map(|_| (0..setup.workers).map(&mut port).collect()).collect();
    let replay = Replay {
        sources: (0..setup.sources.len()).map(|n| source(&setup, n)).collect(),
        ports,
        partitions: Arc::default(),
        first_epoch: setup.from.as_ref().map_or(1, |(epoch, _)| epoch + 1),
        pace: setup.pace,
        stop: stop.clone(),
        progress: progress.clone(),
        cuts: cuts.clone(),
    };
    let thread = match replay.start() {
        Ok(thread) => thread,
        Err(error) => {
            let result = Err(error.to_string());
            return Run { workers: Vec::new(), cuts, progress, result, ended: false };
        }
    };
    let stop_at = setup.stop_at;
    let workers: Vec<_> = inboxes
        .into_iter()
        .map(|inbox| {
            let stop = stop.clone();
            std::thread::spawn(move || worker(inbox, &stop, stop_at))
        })
        .collect();
    let workers: Vec<_> = workers.into_iter().map(|worker| worker.join().unwrap()).collect();
    let ended = workers.iter().all(|(_, ended)| *ended);
    let result = thread.join().unwrap().map_err(|error| error.to_string());
    Run { workers: workers.into_iter().map(|(seen, _)| seen).collect(), cuts, progress, result, ended }
}

fn worker(inbox: crossbeam_channel::Receiver<Arrival>, stop: &AtomicBool, stop_at: Option<i64>) -> (Seen, bool) {
    let (mut seen, mut time) = (Vec::new(), 0);
    for arrival in inbox {
        match arrival {
            Arrival::Advance(next) => {
                assert!(next > time, "time goes forward");
                time = next;
            }
            Arrival::Records(batch, rejects) => {
                // Within a source, rows and rejects are in order each; offsets bring them together.
                let mut records: Seen = Vec::new();
                if !batch.is_empty() {
                    let values = batch.records.column(0).as_primitive::<Int64Type>();
                    assert_eq!(batch.raw.as_ref().map(|raw| raw.len()), Some(batch.len()));
                    for (row, value) in batch.rows.iter().zip(values.values()) {
                        assert!(row.arrived_micros > 0);
                        records.push((time, row.source, row.event_time, row.offset, *value));
                        if stop_at == Some(*value) {
                            stop.store(true, Ordering::Relaxed);
                        }
                    }
                }
                assert!(records.is_sorted_by_key(|record| record.2));
                records.extend(rejects.iter().map(|r| (time, r.row.source, i64::MIN, r.row.offset, -1)));
                seen.extend(records);
            }
            Arrival::End => return (seen, true),
            other => panic!("unexpected {other:?}"),
        }
    }
    (seen, false)
}

fn write(folder: &Path, name: &str, records: impl IntoIterator<Item = (i64, i64)>) {
    let lines: Vec<String> = records.into_iter().map(|(time, value)| format!("{time} {value}\n")).collect();
    fs::write(folder.join(name), lines.concat()).unwrap();
}

use InputOrder::{Sorted, Unsorted};

#[test]
fn sources_are_merged_by_event_time() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "a-1.jsonl", [(10, 0), (30, 4), (30, 5)]);
    write(folder.path(), "a-2.jsonl", [(10, 1), (20, 3)]);
    write(folder.path(), "b.jsonl", [(40, 8), (30, 6), (10, 2), (30, 7)]);
    for workers in [1, 2, 3] {
        let run = run(Setup { workers, ..setup(folder.path(), &[("a-*.jsonl", Sorted), ("b.jsonl", Unsorted)]) });
        assert!(run.ended);
        let mut seen = run.all();
        // One tick: what matters is that everything is there once, in the order of event time within each source.
        seen.sort_by_key(|(time, source, event_time, ..)| (*time, *event_time, *source));
        assert_eq!(seen.iter().map(|(.., value)| *value).collect::<Vec<_>>(), (0..9).collect::<Vec<_>>());
        assert_eq!(run.progress.records(), 9);
        assert_eq!(run.progress.event_time(), Some(40));
        assert_eq!(run.progress.bytes_done(), run.progress.bytes_total());
        assert_eq!(run.cuts.newest().map(|(epoch, cut)| (epoch, cut.watermark)), Some((1, 40)));
    }
}

#[test]
fn rows_of_one_event_time_share_a_tick_and_epochs_depend_on_records_alone() {
    let folder = tempfile::tempdir().unwrap();
    let records = 3 * EPOCH_ROWS as i64;
    write(folder.path(), "a.jsonl", (0..records).map(|n| (1 + n / 700, n)));
    let mut epochs = Vec::new();
    for (order, workers) in [(Sorted, 1), (Sorted, 3), (Unsorted, 2)] {
        let run = run(Setup { workers, ..setup(folder.path(), &[("a.jsonl", order)]) });
        let all = run.all();
        assert_eq!(run.values(), (0..records).collect::<Vec<_>>());
        for pair in all.windows(2) {
            assert!(pair[0].2 != pair[1].2 || pair[0].0 == pair[1].0, "{pair:?}");
        }
        epochs.push(all.iter().map(|(time, ..)| epoch_of(*time)).collect::<Vec<_>>());
    }
    assert!(epochs.windows(2).all(|pair| pair[0] == pair[1]));
    assert_eq!(epochs[0].last(), Some(&3));
}

#[test]
fn records_without_event_time_are_cut_anywhere() {
    let folder = tempfile::tempdir().unwrap();
    let text: String = (0..5000).map(|n| format!("- {n}\n")).collect();
    fs::write(folder.path().join("a.jsonl"), text).unwrap();
    let run = run(setup(folder.path(), &[("a.jsonl", Sorted)]));
    assert_eq!(run.values(), (0..5000).collect::<Vec<_>>());
    assert_eq!(run.all().last().map(|(time, ..)| *time & 0xfffff), Some(4));
}

#[test]
fn rejects_go_with_the_record_before_them() {
    let folder = tempfile::tempdir().unwrap();
    let good = |from: i64| (from..from + 1500).map(|n| format!("{n} {n}\n")).collect::<String>();
    fs::write(folder.path().join("a.jsonl"), format!("x\n{}y\n\nz\n{}w", good(1), good(1501))).unwrap();
    let seen: Vec<Seen> = [Sorted, Unsorted].map(|order| run(setup(folder.path(), &[("a.jsonl", order)])).all()).into();
    assert_eq!(seen[0], seen[1]);
    let rejects: Vec<(u64, i64)> = seen[0].iter().filter(|r| r.4 == -1).map(|r| (r.0 & 0xfffff, r.3)).collect();
    assert_eq!(rejects, [(0, 0), (1, 1501), (1, 1503), (2, 3004)]);
}

#[test]
fn a_row_out_of_order_in_a_sorted_file_names_its_line() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "a.jsonl", (0..3000).map(|n| (if n == 2500 { 7 } else { n }, n)));
    let run = run(setup(folder.path(), &[("a.jsonl", Sorted)]));
    let error = run.result.unwrap_err();
    assert!(!run.ended);
    assert_eq!(
        error,
        "source `s0`: a.jsonl:2501: event time 7 comes after 2499, but the file is said to be sorted; leave `sorted` out"
    );
}

#[test]
fn an_empty_file_ends_at_once() {
    let folder = tempfile::tempdir().unwrap();
    for order in [Sorted, Unsorted] {
        write(folder.path(), "a.jsonl", []);
        let run = run(setup(folder.path(), &[("a.jsonl", order)]));
        assert!(run.ended && run.result.is_ok());
        assert_eq!(run.values(), [] as [i64; 0]);
    }
}

#[test]
fn columns_of_the_wrong_type_name_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let column: ArrayRef = Arc::new(arrow::array::StringArray::from(vec!["x"]));
    let records = RecordBatch::try_from_iter([("t", column)]).unwrap();
    let file = fs::File::create(folder.path().join("a.parquet")).unwrap();
    let mut writer = parquet::arrow::ArrowWriter::try_new(file, records.schema(), None).unwrap();
    writer.write(&records).unwrap();
    writer.close().unwrap();
    let run = run(setup(folder.path(), &[("a.parquet", Unsorted)]));
    assert_eq!(run.result.unwrap_err(), "source `s0`: a.parquet: not a number");
}

#[test]
fn pace_changes_neither_order_nor_epochs() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "a.jsonl", (0..200).map(|n| (n, n)));
    for pace in [Pace::Lapse(10.0), Pace::Rate(millstream_operators::units::PerSecond(10_000.0))] {
        let run = run(Setup { pace, ..setup(folder.path(), &[("a.jsonl", Sorted)]) });
        assert_eq!(run.values(), (0..200).collect::<Vec<_>>());
        assert_eq!(run.cuts.newest().map(|(epoch, _)| epoch), Some(1));
    }
}

/// What a file with these lines hands over on arrival when it is told to end there: the offsets of rows, and of rejects.
fn on_arrival(lines: &str, until: Option<i64>) -> (Vec<i64>, Vec<i64>) {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("a.jsonl"), lines).unwrap();
    let (sender, inbox) = crossbeam_channel::bounded(1);
    let setup = setup(folder.path(), &[("a.jsonl", Unsorted)]);
    let source = source(&setup, 0);
    let Input::Files(files) = &source.input else { panic!("it is a file") };
    let until = until.map(|until| Positions([((files[0].name.to_string(), 0), until)].into()));
    let start = Start {
        name: "s0".into(),
        source: 0,
        job: "job".into(),
        folder: folder.path().into(),
        message_size_max: 100,
        idle_after: std::time::Duration::ZERO,
        positions: Positions::default(),
        topics: Topics::new(),
        until,
        ports: vec![Port::new(sender, Box::new(|| {}))],
        shape: Shape::single(1),
        partitions: Arc::default(),
        stop: Arc::default(),
        status: Arc::default(),
    };
    let thread = read_on_arrival(source, start).unwrap();
    let arrivals: Vec<Arrival> = inbox.into_iter().collect();
    thread.join().unwrap().unwrap();
    match &arrivals[..] {
        [Arrival::Position { partition: 0, offset: 0 }, Arrival::Records(batch, rejects), Arrival::End] => (
            batch.rows.iter().map(|row| row.offset).collect(),
            rejects.iter().map(|reject| reject.row.offset).collect(),
        ),
        [Arrival::End] => Default::default(),
        _ => panic!("{arrivals:?}"),
    }
}

#[test]
fn a_file_beside_a_live_source_is_read_on_arrival() {
    let lines = "9 0\nx\n1 1\ny\n2 2\n";
    assert_eq!(on_arrival(lines, None), (vec![0, 2, 4], vec![1, 3]));
    assert_eq!(on_arrival(lines, Some(5)), (vec![0, 2, 4], vec![1, 3]));
    assert_eq!(on_arrival(lines, Some(3)), (vec![0, 2], vec![1]), "told to end before the fourth record");
    assert_eq!(on_arrival(lines, Some(1)), (vec![0], vec![]));
    assert_eq!(on_arrival(lines, Some(0)), (vec![], vec![]));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// However often a replay is stopped, and wherever, going on from the cut gives every record exactly once, in order.
    #[test]
    fn a_stopped_replay_goes_on_where_it_was(
        times in prop::collection::vec((0..3000i64, prop::bool::weighted(0.02)), 1..6000),
        sorted in any::<bool>(),
        stops in prop::collection::vec(0..6000i64, 1..4),
        workers in 1..4usize,
    ) {
        let folder = tempfile::tempdir().unwrap();
        let mut halves = [String::new(), String::new()];
        let mut times = times;
        if sorted {
            times.sort();
        }
        for (n, (time, bad)) in times.iter().enumerate() {
            // Event times from 1: 0 is the one of records without.
            halves[n % 2] += &if *bad { "bad\n".to_string() } else { format!("{} {n}\n", time + 1) };
        }
        for (n, text) in halves.iter().enumerate() {
            fs::write(folder.path().join(format!("{n}.jsonl")), text).unwrap();
        }
        let order = if sorted { Sorted } else { Unsorted };
        let sources = [("0.jsonl", order), ("[01].jsonl", Unsorted)];
        let whole = run(setup(folder.path(), &sources));
        let mut pieces: Seen = Vec::new();
        let mut from = None;
        for stop_at in stops.iter().map(|stop| Some(*stop)).chain([None]) {
            let piece = run(Setup { workers, from: from.take(), stop_at, ..setup(folder.path(), &sources) });
            prop_assert!(piece.ended && piece.result.is_ok());
            pieces.extend(piece.all());
            from = piece.cuts.newest();
        }
        // The border of a tick may be another, the records are not. A reject has no event time to compare.
        let strip = |seen: &Seen| {
            let mut records: Vec<_> = seen.iter().map(|(_, source, time, offset, value)| (*time, *source, *offset, *value)).collect();
            records.sort();
            records
        };
        prop_assert_eq!(strip(&pieces), strip(&whole.all()));
        let times: Vec<i64> = pieces.iter().filter(|record| record.4 >= 0).map(|record| record.2).collect();
        let mut ticks: Vec<(u64, i64, i64)> = Vec::new();
        for (time, _, event_time, ..) in pieces.iter().filter(|record| record.4 >= 0) {
            match ticks.last_mut() {
                Some((tick, _, last)) if tick == time => *last = *event_time.max(last),
                _ => ticks.push((*time, *event_time, *event_time)),
            }
        }
        prop_assert!(ticks.windows(2).all(|pair| pair[0].2 < pair[1].1), "{:?}", times.len());
    }
}
