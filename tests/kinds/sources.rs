//! The contract of sources: every record comes once and in the order of its partition; the positions that go with what came are
//! those from which a later start gives the rest; what is not there is named; nothing is no error; a bad record stays alone. It
//! goes over the list of sources, so one that is new fails until it has a world to read here.
//!
//! Sources that need a broker are held to it in `tests/kafka/contract.rs`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch};
use arrow::datatypes::Int64Type;
use crossbeam_channel::{Receiver, RecvTimeoutError, bounded};
use indexmap::IndexMap;
use millstream::cluster::Shape;
use millstream::plan::SourcePlan;
use millstream::replay::{Cuts, InputOrder, Pace, Replay, read_on_arrival};
use millstream::sources::file::{FileFormat, FileSource};
use millstream::sources::memory::MemorySource;
use millstream::sources::{Arrival, Partitions, Port, Positions, SourceError, SourceKind, Start, Status, Topics};
use millstream_operators::Batch;
use millstream_operators::decode::{Decoder, DecoderConfig, FormatKind};
use millstream_operators::reject::{Reason, Reject};
use millstream_operators::schema::ColumnType;

/// Longer than any start here takes.
const LONG: Duration = Duration::from_secs(60);
/// Records of a whole read: several ticks of a replay, several chunks of a file.
const RECORDS: i64 = 5_000;
/// Largest record.
const SIZE_MAX: usize = 1_000;
/// The source's name.
const NAME: &str = "numbers";

/// Something that sources of a kind read.
pub trait World {
    /// What it is.
    fn name(&self) -> String;
    /// The folder that relative paths start from.
    fn folder(&self) -> &Path {
        Path::new("")
    }
    /// A source of the records 0 to `count`, each with its number in the column `n`.
    fn numbers(&self, count: i64) -> SourceKind;
    /// A source of the record 0, a record of these bytes and the record 1; `None` if there is no place for bytes that are no
    /// record.
    fn with_bytes(&self, bytes: &[u8]) -> Option<SourceKind>;
    /// A source of what is not there, and what an error must name; `None` if that can't be.
    fn absent(&self) -> Option<(SourceKind, String)>;
}

/// What sources of a kind read.
pub fn worlds(kind: &str) -> Vec<Box<dyn World>> {
    let files = |name: &'static str, format: FileFormat, files: i64| -> Box<dyn World> {
        Box::new(Files { name, format, files, folder: tempfile::tempdir().expect("a folder") })
    };
    match kind {
        "file" => vec![
            files("lines.jsonl", FileFormat::JsonLines, 1),
            files("table.csv", FileFormat::Csv, 1),
            files("table.parquet", FileFormat::Parquet, 1),
            files("part-*.jsonl", FileFormat::JsonLines, 3),
        ],
        "memory" => vec![Box::new(Memory)],
        "kafka" => vec![Box::new(crate::kafka::contract::Topics)],
        other => panic!("the source `{other}` has no world to read: say here how to make one"),
    }
}

/// The kinds with and those without a connector, by their examples.
pub fn kinds(live: bool) -> impl Iterator<Item = &'static str> {
    SourceKind::KINDS.iter().map(|info| info.name).zip(SourceKind::KINDS).filter_map(move |(name, info)| {
        let example = format!("{name}: {}", info.example);
        let kind: SourceKind = serde_saphyr::from_str(&example).expect("the example is taken");
        (kind.settings().connector().is_some() == live).then_some(name)
    })
}

struct Memory;

impl World for Memory {
    fn name(&self) -> String {
        "messages in the topology".into()
    }
    fn numbers(&self, count: i64) -> SourceKind {
        SourceKind::Memory(MemorySource { messages: (0..count).map(record).collect() })
    }
    fn with_bytes(&self, bytes: &[u8]) -> Option<SourceKind> {
        let bytes = String::from_utf8(bytes.to_vec()).expect("a text");
        Some(SourceKind::Memory(MemorySource { messages: vec![record(0), bytes, record(1)] }))
    }
    fn absent(&self) -> Option<(SourceKind, String)> {
        None
    }
}

/// A record in JSON.
pub fn record(number: i64) -> String {
    format!("{{\"n\":{number}}}")
}

struct Files {
    /// Name or glob.
    name: &'static str,
    format: FileFormat,
    /// Among how many files the records are dealt out.
    files: i64,
    folder: tempfile::TempDir,
}

impl Files {
    fn source(&self) -> SourceKind {
        SourceKind::File(FileSource { paths: vec![self.name.into()], sorted: false })
    }

    fn path(&self, file: i64) -> PathBuf {
        self.folder.path().join(self.name.replace('*', &file.to_string()))
    }

    fn write(&self, file: i64, lines: &[&[u8]]) {
        let header: &[u8] = if self.format == FileFormat::Csv { b"n\n" } else { b"" };
        let lines: Vec<u8> = lines.iter().flat_map(|line| [line, b"\n".as_slice()].concat()).collect();
        std::fs::write(self.path(file), [header, &lines].concat()).expect("a file");
    }
}

impl World for Files {
    fn name(&self) -> String {
        self.name.into()
    }
    fn folder(&self) -> &Path {
        self.folder.path()
    }
    fn numbers(&self, count: i64) -> SourceKind {
        for file in 0..self.files {
            let numbers = (0..count).filter(|number| number % self.files == file);
            if self.format == FileFormat::Parquet {
                let column: ArrayRef = Arc::new(Int64Array::from_iter_values(numbers));
                let records = RecordBatch::try_from_iter([("n", column)]).expect("one column");
                let file = std::fs::File::create(self.path(file)).expect("a file");
                let mut writer = parquet::arrow::ArrowWriter::try_new(file, records.schema(), None).expect("a writer");
                writer.write(&records).expect("a file takes rows");
                writer.close().expect("a file is closed");
                continue;
            }
            let csv = self.format == FileFormat::Csv;
            let lines = numbers.map(|number| if csv { number.to_string() } else { record(number) });
            let lines: Vec<String> = lines.collect();
            self.write(file, &lines.iter().map(String::as_bytes).collect::<Vec<_>>());
        }
        self.source()
    }
    fn with_bytes(&self, bytes: &[u8]) -> Option<SourceKind> {
        let csv = self.format == FileFormat::Csv;
        let [first, last] = [0, 1].map(|number| if csv { number.to_string() } else { record(number) });
        if self.format == FileFormat::Parquet {
            return None;
        }
        (1..self.files).for_each(|file| self.write(file, &[]));
        self.write(0, &[first.as_bytes(), bytes, last.as_bytes()]);
        Some(self.source())
    }
    fn absent(&self) -> Option<(SourceKind, String)> {
        let name = format!("nowhere/{}", self.name);
        Some((SourceKind::File(FileSource { paths: vec![name.clone()], sorted: false }), name))
    }
}

/// How a source is read.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Way {
    /// As its records arrive, in a live run.
    Live,
    /// In a bounded run, streamed or sorted in memory.
    Bounded(InputOrder),
}

/// The ways to read a source of a kind: only one that ends has bounded runs.
fn ways(kind: &SourceKind) -> Vec<Way> {
    let bounded = [Way::Bounded(InputOrder::Sorted), Way::Bounded(InputOrder::Unsorted)];
    match kind.settings().connector() {
        Some(_) => vec![Way::Live],
        None => [Way::Live].into_iter().chain(bounded).collect(),
    }
}

/// A record that came: its number, or why it was rejected.
#[derive(Debug, Clone, PartialEq)]
struct Got {
    partition: (String, i32),
    offset: i64,
    number: Result<i64, Reason>,
}

/// A source that is read.
struct Reading {
    source: SourcePlan,
    decoder: Decoder,
    way: Way,
    inbox: Receiver<Arrival>,
    thread: JoinHandle<Result<(), SourceError>>,
    partitions: Arc<Partitions>,
    stop: Arc<AtomicBool>,
    cuts: Arc<Cuts>,
    got: Vec<Got>,
    /// Where a later start goes on, as a live run notes it.
    positions: Positions,
    ended: bool,
}

/// What is left of it.
struct Left {
    got: Vec<Got>,
    positions: Positions,
    result: Result<(), SourceError>,
}

fn plan(kind: &SourceKind) -> SourcePlan {
    let decoder = Decoder::new(DecoderConfig {
        stage: NAME.into(),
        format: FormatKind::default(),
        columns: IndexMap::from([("n".to_string(), ColumnType::INT64)]),
        ranges: IndexMap::new(),
        checks: Vec::new(),
        event_time: None,
        ahead_max_millis: None,
        message_size_max: SIZE_MAX,
        keep_raw: true,
    });
    SourcePlan {
        index: 0,
        kind: kind.clone(),
        decoder: decoder.expect("a decoder"),
        event_time: None,
        message_size_max: SIZE_MAX,
        delimiter: b',',
        history: None,
        until: None,
    }
}

impl Reading {
    fn start(world: &dyn World, kind: &SourceKind, way: Way, positions: &Positions) -> Result<Reading, SourceError> {
        let source = plan(kind);
        let (sender, inbox) = bounded(1);
        let (partitions, stop) = (Arc::<Partitions>::default(), Arc::<AtomicBool>::default());
        let cuts = Arc::<Cuts>::default();
        let start = Start {
            name: NAME.into(),
            source: 0,
            job: "contract".into(),
            folder: world.folder().into(),
            message_size_max: SIZE_MAX,
            idle_after: Duration::from_secs(3_600),
            positions: positions.clone(),
            topics: Topics::new(),
            until: None,
            ports: vec![Port::new(sender, Box::new(|| {}))],
            shape: Shape::single(1),
            partitions: partitions.clone(),
            stop: stop.clone(),
            status: Arc::<Status>::default(),
        };
        let thread = match (source.connector(), way) {
            (Some(connector), _) => connector.start(start)?,
            (None, Way::Live) => read_on_arrival(source.bounded(NAME, world.folder(), positions.clone())?, start)?,
            (None, Way::Bounded(order)) => {
                let mut bounded = source.bounded(NAME, world.folder(), positions.clone())?;
                bounded.order = order;
                let replay = Replay {
                    sources: vec![bounded],
                    ports: vec![start.ports],
                    partitions: partitions.clone(),
                    first_epoch: 1,
                    pace: Pace::Fastest,
                    stop: stop.clone(),
                    progress: Arc::default(),
                    cuts: cuts.clone(),
                };
                replay.start()?
            }
        };
        let decoder = source.decoder.clone();
        let (got, positions, ended) = (Vec::new(), positions.clone(), false);
        Ok(Reading { source, decoder, way, inbox, thread, partitions, stop, cuts, got, positions, ended })
    }

    /// Takes arrivals until `enough`, then stops it and takes what is still on its way. One that ends by itself may do so before.
    fn until(mut self, enough: impl Fn(&Reading) -> bool) -> Left {
        let deadline = Instant::now() + LONG;
        while !self.ended {
            if enough(&self) {
                self.stop.store(true, Ordering::Relaxed);
            }
            match self.inbox.recv_timeout(Duration::from_millis(5)) {
                Ok(arrival) => self.arrive(arrival),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            assert!(Instant::now() < deadline, "it goes on after {} records", self.got.len());
        }
        let result = self.thread.join().expect("no thread of a source panics");
        assert!(self.ended || result.is_err(), "it ends without a word");
        let mut positions = self.positions;
        if let (Way::Bounded(_), None, true) = (self.way, self.source.connector(), result.is_ok()) {
            let (_, cut) = self.cuts.newest().expect("a replay leaves a cut");
            positions = cut.positions[NAME].clone();
        }
        Left { got: self.got, positions, result }
    }

    fn arrive(&mut self, arrival: Arrival) {
        match arrival {
            Arrival::Messages(messages) => {
                let mut rejects = Vec::new();
                let batch = self.decoder.decode(messages, None, &mut rejects);
                self.take(batch, rejects);
            }
            Arrival::Records(batch, rejects) => self.take(Some(batch), rejects),
            Arrival::Position { partition, offset } => {
                let (name, partition) = self.partitions.name(partition);
                self.positions.0.insert((name.to_string(), partition), offset);
            }
            Arrival::Assigned | Arrival::Advance(_) | Arrival::Idle(_) => {}
            Arrival::End => self.ended = true,
        }
    }

    fn take(&mut self, batch: Option<Batch>, rejects: Vec<Reject>) {
        let mut came = Vec::new();
        for batch in batch.iter().filter(|batch| !batch.is_empty()) {
            let numbers = batch.records.column(0).as_primitive::<Int64Type>();
            came.extend(batch.rows.iter().zip(numbers.values()).map(|(row, number)| (*row, Ok(*number))));
        }
        came.extend(rejects.iter().map(|reject| (reject.row, Err(reject.reason))));
        came.sort_by_key(|(row, _)| (row.partition, row.offset));
        for (row, number) in came {
            let (name, partition) = self.partitions.name(row.partition);
            let partition = (name.to_string(), partition);
            self.positions.0.insert(partition.clone(), row.offset + 1);
            self.got.push(Got { partition, offset: row.offset, number });
        }
    }
}

/// Reads from `positions` on until `count` records have come; a source that ends is read to its end.
fn read(world: &dyn World, kind: &SourceKind, way: Way, positions: &Positions, count: usize) -> Left {
    let is_live = kind.settings().connector().is_some();
    let reading = Reading::start(world, kind, way, positions).unwrap_or_else(|error| panic!("{error}"));
    let left = reading.until(|reading| is_live && reading.got.len() >= count);
    left.result.as_ref().unwrap_or_else(|error| panic!("{way:?}: {error}"));
    left
}

/// The numbers, sorted, of records of which each is one.
fn numbers<'a>(got: impl IntoIterator<Item = &'a Got>) -> Vec<i64> {
    let mut numbers: Vec<i64> = got.into_iter().map(|got| got.number.expect("a good record")).collect();
    numbers.sort_unstable();
    numbers
}

/// In each partition, numbers and offsets rise.
fn in_order(got: &[Got]) {
    let mut newest = std::collections::BTreeMap::new();
    for got in got {
        let this = (got.offset, got.number.expect("a good record"));
        let before = newest.insert(&got.partition, this);
        assert!(before.is_none_or(|(offset, number)| offset < this.0 && number < this.1), "{before:?}, then {got:?}");
    }
}

/// Holds the sources of a world to the contract.
pub fn check(world: &dyn World) {
    let kind = world.numbers(RECORDS);
    let (whole, all) = ((0..RECORDS).collect::<Vec<_>>(), RECORDS as usize);
    for way in ways(&kind) {
        let what = format!("{}, {way:?}", world.name());
        let left = read(world, &kind, way, &Positions::default(), all);
        assert_eq!(numbers(&left.got), whole, "{what}: each record once");
        in_order(&left.got);

        // Stopped somewhere, and started where it was.
        for stop in [1, 1_500, 4_000] {
            let reading = Reading::start(world, &kind, way, &Positions::default());
            let first = reading.unwrap_or_else(|error| panic!("{error}")).until(|reading| reading.got.len() >= stop);
            first.result.unwrap_or_else(|error| panic!("{what}: {error}"));
            assert!(first.got.len() >= stop, "{what}");
            let second = read(world, &kind, way, &first.positions, all - first.got.len());
            assert_eq!(
                numbers(first.got.iter().chain(&second.got)),
                whole,
                "{what}: stopped after {}",
                first.got.len()
            );
        }

        // Nothing of what came after some record was kept, as after a crash.
        for kept in [1, 2_500, 4_999].iter().filter(|_| way == Way::Live) {
            let (kept, lost) = left.got.split_at(*kept);
            let positions = kept.iter().map(|got| (got.partition.clone(), got.offset + 1)).collect();
            let again = read(world, &kind, way, &Positions(positions), lost.len());
            assert_eq!(numbers(&again.got), numbers(lost), "{what}: the first {} were kept", kept.len());
        }
    }
    nothing(world);
    bad_records(world);
    absent(world);
}

/// What is empty ends, or is waited for, without an error.
fn nothing(world: &dyn World) {
    let kind = world.numbers(0);
    let is_live = kind.settings().connector().is_some();
    for way in ways(&kind) {
        let reading = Reading::start(world, &kind, way, &Positions::default());
        // One that waits says where.
        let left = reading.unwrap_or_else(|error| panic!("{error}"));
        let left = left.until(|reading| is_live && !reading.positions.0.is_empty());
        left.result.unwrap_or_else(|error| panic!("{}, {way:?}, empty: {error}", world.name()));
        assert_eq!(left.got, [], "{}, {way:?}, empty", world.name());
    }
}

/// A record that is none, or too large, costs itself.
fn bad_records(world: &dyn World) {
    for (bytes, reason) in [(b"no record".to_vec(), None), (vec![b'x'; 3 * SIZE_MAX], Some(Reason::TooLarge))] {
        let Some(kind) = world.with_bytes(&bytes) else { continue };
        for way in ways(&kind) {
            let left = read(world, &kind, way, &Positions::default(), 3);
            let came: Vec<_> = left.got.iter().map(|got| got.number).collect();
            let isolated = matches!(came[..], [Ok(0), Err(why), Ok(1)] if reason.is_none_or(|reason| reason == why));
            assert!(isolated, "{}, {way:?}: {came:?}", world.name());
        }
    }
}

/// What is not there is named, at the start or soon after it.
fn absent(world: &dyn World) {
    let Some((kind, name)) = world.absent() else { return };
    for way in ways(&kind) {
        let started = Reading::start(world, &kind, way, &Positions::default());
        let error = started.map_or_else(Some, |reading| reading.until(|_| false).result.err());
        let error = error.unwrap_or_else(|| panic!("{}, {way:?}: {name} is read", world.name())).to_string();
        assert!(error.contains(&name) && error.contains(NAME), "{}, {way:?}: {error}", world.name());
    }
}

#[test]
fn every_source_without_a_broker_keeps_its_contract() {
    let kinds: Vec<_> = kinds(false).collect();
    assert!(!kinds.is_empty());
    kinds.into_iter().flat_map(worlds).for_each(|world| check(&*world));
}
