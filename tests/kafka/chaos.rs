//! Exactly once, whatever is killed. A job on a real broker is killed without warning at random moments, while it starts,
//! works, writes its checkpoint or commits, and started again with another number of workers. In the end every input must
//! be accounted for once, in every output, and every value must be what an uninterrupted run would have written.
//!
//! `KILLS=300 SEED=7` (or `make chaos`) runs it longer, or again as it was.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::AtomicU64;

use rdkafka::Message;
use serde_json::Value;

use super::*;
use crate::program::{Running, millstream, root};
use crate::random::{Random, seed, variable};

const PARTITIONS: i32 = 3;
const CARDS: u64 = 40;

/// What the events say, computed as they are written, by the obvious rule: how many there were of the card, and the sum of
/// their amounts. A card's events stand in one partition, so their order is given.
#[derive(Default)]
struct Oracle {
    cards: HashMap<u64, (u64, u64)>,
    /// By id: card, how many with it, sum with it.
    expected: BTreeMap<u64, (u64, u64, u64)>,
    /// Ids of events that can't be decoded, in the order they were written.
    poison: Vec<u64>,
}

impl Oracle {
    /// The next event: its partition and its bytes.
    fn event(&mut self, id: u64, random: &mut Random) -> (i32, String) {
        let card = random.below(CARDS);
        let partition = (card % PARTITIONS as u64) as i32;
        if random.below(50) == 0 {
            self.poison.push(id);
            return (partition, format!("{{\"id\":{id},\"card\":"));
        }
        // Whole numbers: their sums are exact in any order.
        let amount = random.below(1_000);
        let (count, sum) = self.cards.entry(card).or_default();
        (*count, *sum) = (*count + 1, *sum + amount);
        self.expected.insert(id, (card, *count, *sum));
        let at = 1_700_000_000_000 + id;
        (partition, format!("{{\"id\":{id},\"at\":{at},\"card\":{card},\"amount\":{amount}}}"))
    }
}

struct Chaos {
    brokers: String,
    events: String,
    vectors: String,
    rejects: String,
    folder: tempfile::TempDir,
}

impl Chaos {
    fn new() -> Chaos {
        let name = |what| unique(&format!("chaos-{what}"));
        let (events, vectors, rejects) = (name("events"), name("vectors"), name("rejects"));
        let chaos = Chaos { brokers: brokers(), events, vectors, rejects, folder: tempfile::tempdir().unwrap() };
        for (topic, partitions) in [(&chaos.events, PARTITIONS), (&chaos.vectors, 2), (&chaos.rejects, 1)] {
            create(&chaos.brokers, topic, partitions, &[]);
        }
        std::fs::write(chaos.folder.path().join("topology.yaml"), chaos.topology()).unwrap();
        chaos
    }

    fn topology(&self) -> String {
        let Chaos { brokers, events, vectors, rejects, .. } = self;
        format!(
            "
version: 1
name: {events}
sources:
  events:
    from: {{ kafka: {{ brokers: \"{brokers}\", topics: [{events}], start: earliest }} }}
    schema: {{ id: int64, at: int64, card: int64, amount: float64 }}
    event_time: {{ column: at }}
features:
  card:
    from: events
    key: [card]
    aggregates:
      - {{ ops: [count], windows: [30d] }}
      - {{ of: amount, ops: [sum], windows: [30d] }}
vectors:
  event: {{ spine: events, join: [{{ features: card }}] }}
drift:
  amounts: {{ from: events, column: amount, detector: {{ adwin: {{}} }} }}
sinks:
  vectors:
    from: event
    to: {{ kafka: {{ brokers: \"{brokers}\", topic: {vectors} }} }}
    key: [card]
  rejects:
    from: rejects
    to: {{ kafka: {{ brokers: \"{brokers}\", topic: {rejects} }} }}
  lines: {{ from: event, to: {{ file: {{ path: vectors.jsonl }} }} }}
offline:
  vectors: {{ from: event, table: {{ delta: {{ path: lake }} }}, every: 700ms }}
engine: {{ epoch: 50ms }}
"
        )
    }

    /// The epoch of the newest checkpoint.
    fn newest_epoch(&self) -> Option<u64> {
        let entries = std::fs::read_dir(self.folder.path().join("state/manifest")).ok()?;
        let epoch = |path: PathBuf| -> Option<u64> {
            let manifest: Value = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
            manifest["epoch"].as_u64()
        };
        entries.filter_map(|entry| epoch(entry.ok()?.path())).max()
    }

    fn start(&self, workers: u64) -> Running {
        let mut command = millstream();
        command.arg("run").arg(self.folder.path().join("topology.yaml"));
        Running::start(command.args(["--workers", &workers.to_string(), "--http", "off"]))
    }
}

/// Every committed record of a topic, as a reader sees it that waits for commits: (partition, value).
fn committed(brokers: &str, topic: &str, partitions: i32) -> Vec<(i32, Vec<u8>)> {
    let mut config = client(brokers);
    config
        .set("group.id", unique("reader"))
        .set("isolation.level", "read_committed")
        .set("enable.partition.eof", "true");
    let consumer: BaseConsumer = config.create().unwrap();
    let mut list = TopicPartitionList::new();
    (0..partitions).for_each(|at| list.add_partition_offset(topic, at, Offset::Beginning).unwrap());
    consumer.assign(&list).unwrap();
    let (mut records, mut ended) = (Vec::new(), 0);
    while ended < partitions {
        match consumer.poll(LONG).expect("an answer") {
            Ok(message) => records.push((message.partition(), message.payload().unwrap_or_default().to_vec())),
            Err(rdkafka::error::KafkaError::PartitionEOF(_)) => ended += 1,
            Err(error) => panic!("{error}"),
        }
    }
    records
}

/// Holds vectors against the oracle: each once, with the right values, and in the order of their card.
fn check_vectors<'a>(what: &str, oracle: &Oracle, vectors: impl IntoIterator<Item = (i32, &'a [u8])>) {
    let mut seen = BTreeMap::new();
    let mut counts: HashMap<u64, u64> = HashMap::new();
    for (at, (_, bytes)) in vectors.into_iter().enumerate() {
        let vector: Value =
            serde_json::from_slice(bytes).unwrap_or_else(|error| panic!("{what}: record {at}: {error}"));
        let id = vector["id"].as_u64().unwrap();
        assert_eq!(seen.insert(id, at), None, "{what}: event {id} is there twice, the second time as record {at}");
        let (card, count, sum) = oracle.expected[&id];
        let found = (vector["card.count_30d"].as_u64(), vector["card.amount_sum_30d"].as_f64());
        assert_eq!(found, (Some(count), Some(sum as f64)), "{what}: event {id} of card {card}: {vector}");
        let before = counts.insert(card, count).unwrap_or(0);
        assert!(before < count, "{what}: event {id} of card {card} stands behind a later one");
    }
    let missing: Vec<_> = oracle.expected.keys().filter(|id| !seen.contains_key(id)).take(10).collect();
    assert!(
        missing.is_empty(),
        "{what}: {} of {} events are missing: {missing:?}",
        oracle.expected.len() - seen.len(),
        oracle.expected.len()
    );
}

/// The rows of the offline store, through its own reader in another language.
fn check_table(folder: &Path, oracle: &Oracle) {
    let script = "import sys\nfrom deltalake import DeltaTable\nt = DeltaTable(sys.argv[1]).to_pyarrow_table()\n\
                  rows = sorted(zip(*(t.column(c).to_pylist() for c in ['id', 'card.count_30d', 'card.amount_sum_30d'])))\n\
                  [print(*r) for r in rows]";
    let requirements = root().join("tests/python/requirements.txt");
    let python = Command::new(root().join("deploy/python.sh")).arg(requirements).output().unwrap();
    let python = String::from_utf8(python.stdout).unwrap();
    let said = Command::new(python.trim()).args(["-c", script]).arg(folder).output().unwrap();
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    let expected: String =
        oracle.expected.iter().map(|(id, (_, count, sum))| format!("{id} {count} {sum}.0\n")).collect();
    let found = String::from_utf8(said.stdout).unwrap();
    let (rows, wanted) = (found.lines().count(), expected.lines().count());
    let differing = found.lines().zip(expected.lines()).find(|(found, expected)| found != expected);
    assert!(found == expected, "the table has {rows} rows of {wanted}; the first that differs: {differing:?}");
}

/// Writes events at about a thousand a second until it is told to stop; gives what they said.
fn write_events(brokers: String, topic: String, seed: u64, stop: Arc<AtomicBool>, written: Arc<AtomicU64>) -> Oracle {
    let (mut oracle, mut random, mut id) = (Oracle::default(), Random(seed), 0);
    let producer: BaseProducer =
        client(&brokers).set("enable.idempotence", "true").set("linger.ms", "1").create().unwrap();
    while !stop.load(Ordering::Acquire) {
        for _ in 0..20 + random.below(60) {
            id += 1;
            let (partition, value) = oracle.event(id, &mut random);
            let mut record = BaseRecord::<[u8], [u8]>::to(&topic).partition(partition).payload(value.as_bytes());
            while let Err((_, back)) = producer.send(record) {
                producer.poll(Duration::from_millis(10));
                record = back;
            }
        }
        producer.poll(Duration::ZERO);
        written.store(id, Ordering::Release);
        std::thread::sleep(Duration::from_millis(random.below(90)));
    }
    producer.flush(LONG).expect("the broker takes the events");
    oracle
}

#[test]
fn nothing_is_lost_and_nothing_repeated_however_often_the_job_is_killed() {
    let kills = variable("KILLS").unwrap_or(8);
    let seed = seed();
    let mut random = Random(seed);
    let chaos = Chaos::new();
    let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let writing = {
        let (brokers, topic, stop, written) =
            (chaos.brokers.clone(), chaos.events.clone(), stop.clone(), written.clone());
        std::thread::spawn(move || write_events(brokers, topic, seed, stop, written))
    };
    for kill in 0..kills {
        let workers = 1 + random.below(4);
        let mut running = chaos.start(workers);
        // Some die while they still start, most while they work: on a busy machine a start may take its time.
        let before = chaos.newest_epoch();
        let pause = Duration::from_millis(random.below(900));
        if random.below(4) > 0 {
            let deadline = Instant::now() + LONG;
            while chaos.newest_epoch() == before && running.runs() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        std::thread::sleep(pause);
        assert!(running.runs(), "run {kill} with {workers} workers has ended: {}", running.err());
        println!("kill {kill}: {workers} workers, after {pause:?}, {} events written", written.load(Ordering::Acquire));
        drop(running);
    }
    stop.store(true, Ordering::Release);
    let oracle = writing.join().expect("the writer ends");
    let mut running = chaos.start(1 + random.below(4));
    let deadline = Instant::now() + 4 * LONG;
    while committed(&chaos.brokers, &chaos.vectors, 2).len() < oracle.expected.len()
        || committed(&chaos.brokers, &chaos.rejects, 1).len() < oracle.poison.len()
    {
        assert!(running.runs(), "the last run has ended: {}", running.err());
        if Instant::now() > deadline {
            break;
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    running.terminate();
    let said = running.end();
    assert!(said.status.success(), "{}: {}", said.status, said.err);

    let vectors = committed(&chaos.brokers, &chaos.vectors, 2);
    check_vectors("topic", &oracle, vectors.iter().map(|(partition, bytes)| (*partition, &**bytes)));
    let lines = std::fs::read(chaos.folder.path().join("vectors.jsonl")).unwrap();
    let lines = lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    check_vectors("file", &oracle, lines.map(|line| (0, line)));
    check_table(&chaos.folder.path().join("lake"), &oracle);
    let mut poison: Vec<u64> = committed(&chaos.brokers, &chaos.rejects, 1)
        .iter()
        .map(|(_, bytes)| String::from_utf8_lossy(bytes).split([':', ',']).nth(1).unwrap().parse().unwrap())
        .collect();
    poison.sort_unstable();
    assert_eq!(poison, oracle.poison, "dead letters");
    println!(
        "{kills} kills, {} generations, {} events, {} dead letters: 0 lost, 0 repeated",
        kills + 1,
        oracle.expected.len(),
        poison.len()
    );
}
