//! Nanoseconds of CPU an event and bytes a key of twenty windowed features, exact and tiled, beside the least a loop could do.
//!
//! Card payments, one a millisecond, over sliding windows of 1 min, 10 min, 1 h and 24 h: count, sum, mean, largest and
//! standard deviation of the amount in each, read right after the event's own update. The loop beside it is that of the
//! benches on Kafka: 60 tiles a window in whole cents, one fixed set of features in a hash map by card number. It knows no
//! batches, no columns, no texts as keys, no late rows and no state to save, and it does the same for both layouts.
//!
//! `cargo bench --workspace --bench features` measures; without `--bench` each case runs over a few events, which shows that it still
//! works. Each line ends with a checksum of the group's and of the loop's last means, which are equal when both are right.
//!
//! A second table tells what epochs of 50 ms cost at 10,000 events a second: bytes of state and blocks an epoch, CPU an event
//! for the work and for giving what changed, and CPU a key for taking all of it up again, each key once with its parts.

#[path = "kafka/cards.rs"]
mod cards;

use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use arrow::array::{AsArray, Float64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Float64Type, Schema, SchemaRef};
use hashbrown::HashMap;
use millstream_operators::features::{Aggregate, FeatureGroup, GroupConfig, Op, Reader};
use millstream_operators::state::rows::Standing;
use millstream_operators::units::Millis;
use millstream_operators::{Batch, Operator, Outputs, Row};

use cards::Card;

const FIRST_MILLIS: i64 = 1_767_225_600_000;
/// Events made before each timed stretch, so that making them is not timed.
const STRETCH: usize = 16_384;
/// Events between two advances of the watermark.
const ADVANCE_EVERY: usize = 1_024;
const MINUTE: i64 = 60_000;

/// Events that are not timed, and events that are.
struct Events {
    warm: usize,
    timed: usize,
}

fn main() {
    let events = match std::env::args().any(|argument| argument == "--bench") {
        true => Events { warm: 20 * STRETCH, timed: 20 * STRETCH },
        false => Events { warm: 0, timed: 1_000 },
    };
    println!(
        "{:>6} {:>8} {:>6} {:>10} {:>10} {:>7} {:>12} {:>10}",
        "", "keys", "rows", "group ns", "loop ns", "ratio", "bytes a key", "state MB"
    );
    for tiles in [Some(60), None] {
        for keys in [1_000, 100_000] {
            for rows in [1, 64, 512] {
                run(tiles, keys, rows, &events);
            }
        }
    }
    println!(
        "\n{:>6} {:>8} {:>12} {:>8} {:>10} {:>10} {:>12} {:>10}",
        "", "keys", "bytes/epoch", "blocks", "work ns", "save ns", "bytes a key", "load ns"
    );
    for (keys, warm) in [(1_000, 600_000), (100_000, 2_000_000)] {
        epochs(keys, &Events { warm: events.warm.min(1) * warm, ..events });
    }
}

/// Events in an epoch, in batches of so many.
const EPOCH: usize = 500;
const EPOCH_BATCH: usize = 50;

/// Lets a group close epochs, and another take up what they leave.
fn epochs(keys: u64, events: &Events) {
    let mut group = group(Some(60));
    let mut standing: BTreeMap<u16, Standing> = BTreeMap::new();
    let (mut working, mut saving) = (Duration::ZERO, Duration::ZERO);
    let (mut bytes, mut blocks, mut count) = (0, 0, 0);
    for (epoch, first) in (0..events.warm + events.timed).step_by(EPOCH).enumerate() {
        let payments: Vec<Payment> = (first..first + EPOCH).map(|i| payment(i as u64, keys)).collect();
        let batches = payments.chunks(EPOCH_BATCH).enumerate();
        let batches: Vec<Batch> = batches.map(|(n, run)| batch(run, first + n * EPOCH_BATCH)).collect();
        let last = payments[EPOCH - 1].time;
        let mut saved = Vec::new();
        let start = cpu_time();
        batches.into_iter().for_each(|batch| group.process(1, batch, &mut Outputs::new(2)));
        group.advance(last - MINUTE, &mut Outputs::new(2));
        group.close_epoch(epoch as u64 + 1, &mut Outputs::new(2));
        let between = cpu_time();
        group.save_changes(usize::MAX, &mut |key_group, bytes| saved.push((key_group, bytes)));
        let end = cpu_time();
        if first >= events.warm {
            (working, saving) = (working + (between - start), saving + (end - between));
            bytes += saved.iter().map(|(_, bytes)| bytes.len()).sum::<usize>();
            (blocks, count) = (blocks + saved.len(), count + 1);
        }
        for (key_group, bytes) in saved {
            standing.entry(key_group).or_default().absorb(&bytes).expect("rows as they were given");
        }
    }
    let saved: Vec<(u16, Vec<u8>)> = standing.into_iter().map(|(of, standing)| (of, standing.finish())).collect();
    let mut back = self::group(Some(60));
    let start = cpu_time();
    saved.iter().for_each(|(of, bytes)| back.load(*of, bytes).expect("rows as they were given"));
    let (loading, known) = (cpu_time() - start, back.state_size().0.max(1) as usize);
    assert_eq!(back.state_size().0, group.state_size().0);
    println!(
        "{:>6} {keys:>8} {:>12} {:>8} {:>10.0} {:>10.0} {:>12} {:>10.0}",
        "tiled",
        bytes / count,
        blocks / count,
        working.as_nanos() as f64 / (count * EPOCH) as f64,
        saving.as_nanos() as f64 / (count * EPOCH) as f64,
        saved.iter().map(|(_, bytes)| bytes.len()).sum::<usize>() / known,
        loading.as_nanos() as f64 / known as f64,
    );
}

/// Lets the group and the loop see the same events, stretch by stretch.
fn run(tiles: Option<u32>, keys: u64, rows: usize, events: &Events) {
    let mut group = group(tiles);
    let mut cards: HashMap<u32, Card> = HashMap::new();
    let (mut group_time, mut loop_time) = (Duration::ZERO, Duration::ZERO);
    let (mut group_mean, mut loop_mean) = (0.0, 0.0);
    let end = events.warm + events.timed;
    for (epoch, first) in (0..end).step_by(STRETCH).enumerate() {
        let stretch: Vec<Payment> = (first..end.min(first + STRETCH)).map(|i| payment(i as u64, keys)).collect();
        let batches: Vec<Batch> =
            stretch.chunks(rows).enumerate().map(|(n, run)| batch(run, first + n * rows)).collect();
        let start = cpu_time();
        for (n, batch) in batches.into_iter().enumerate() {
            let last = batch.rows[batch.len() - 1].event_time;
            let mut out = Outputs::new(2);
            group.process(1, batch, &mut out);
            let vectors = &out.ports[0][0].records;
            let means = vectors.column_by_name("card.amount_mean_24h").expect("a column for each feature");
            group_mean = means.as_primitive::<Float64Type>().value(vectors.num_rows() - 1);
            if n * rows % ADVANCE_EVERY == 0 {
                group.advance(last - MINUTE, &mut out);
            }
        }
        group.close_epoch(epoch as u64 + 1, &mut Outputs::new(2));
        let between = cpu_time();
        let mut inputs = [0f32; 22];
        for payment in &stretch {
            loop_mean = cards.entry(payment.card).or_default().add(payment.time, payment.cents, &mut inputs).1;
            black_box(&inputs);
        }
        if first >= events.warm {
            group_time += between - start;
            loop_time += cpu_time() - between;
        }
    }
    let each = |time: Duration| time.as_nanos() as f64 / events.timed as f64;
    let (group_ns, loop_ns) = (each(group_time), each(loop_time));
    let (known, bytes) = group.state_size();
    println!(
        "{:>6} {keys:>8} {rows:>6} {group_ns:>10.0} {loop_ns:>10.0} {:>7.2} {:>12} {:>10}  {group_mean:.6} {loop_mean:.6}",
        if tiles.is_some() { "tiled" } else { "exact" },
        group_ns / loop_ns,
        bytes / known.max(1),
        bytes / 1_000_000,
    );
}

/// CPU time of this thread, where the system tells it (Linux): what else the machine does counts less. Else the time.
fn cpu_time() -> Duration {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    let scheduled = std::fs::read_to_string("/proc/thread-self/schedstat").ok();
    let nanos = scheduled.and_then(|text| text.split(' ').next()?.parse().ok());
    nanos.map_or_else(|| START.elapsed(), Duration::from_nanos)
}

/// The columns of a payment.
fn schema() -> SchemaRef {
    let (card, amount) = (Field::new("card", DataType::Utf8, false), Field::new("amount", DataType::Float64, false));
    Arc::new(Schema::new(vec![card, amount]))
}

/// A group that is read by the rows that feed it.
fn group(tiles: Option<u32>) -> FeatureGroup {
    let windows = [1, 10, 60, 24 * 60].map(|minutes| Millis(minutes * MINUTE));
    let aggregate = Aggregate::of("amount", [Op::COUNT, Op::SUM, Op::MEAN, Op::MAX, Op::STDDEV], windows);
    let mut config = GroupConfig::new("payments", ["card"]).aggregate(aggregate);
    (config.tiles, config.online) = (tiles, false);
    let reader = Reader { name: "v".into(), spine: schema(), on: vec![], exclude_self: false, feeds: true };
    FeatureGroup::compile("card", &config, &schema(), &[reader]).expect("the columns fit")
}

struct Payment {
    card: u32,
    cents: i64,
    time: i64,
}

/// Payment number `number` of `keys` cards: a function of its number, all digits of which decide.
fn payment(number: u64, keys: u64) -> Payment {
    let mut hash = (number + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    hash = (hash ^ (hash >> 32)).wrapping_mul(0xD6E8_FEB8_6659_FD93);
    hash ^= hash >> 32;
    let cents = 100 + (hash & 0xFFFF) * (hash >> 16 & 0xFFFF) / 8_590;
    Payment { card: ((hash >> 32) % keys) as u32, cents: cents as i64, time: FIRST_MILLIS + number as i64 }
}

fn batch(payments: &[Payment], first: usize) -> Batch {
    let cards: StringArray = payments.iter().map(|payment| Some(format!("k{:06}", payment.card))).collect();
    let amounts: Float64Array = payments.iter().map(|payment| Some(payment.cents as f64 / 100.0)).collect();
    let records = RecordBatch::try_new(schema(), vec![Arc::new(cards), Arc::new(amounts)]).expect("of the schema");
    let row = |(n, payment): (usize, &Payment)| Row {
        source: 0,
        partition: 0,
        offset: (first + n) as i64,
        event_time: payment.time,
        arrived_micros: 0,
    };
    Batch::new(records, payments.iter().enumerate().map(row).collect())
}
