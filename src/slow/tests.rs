//! The slow lane as workers feed it: epochs, their order, and what a restart takes up.

use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, RecordBatch};
use crossbeam_channel::unbounded;
use millstream_operators::batch::Row;
use millstream_operators::drift::page_hinkley::PageHinkleyConfig;

use super::*;
use crate::runtime::ledger::Ledger;
use crate::sources::Partitions;

/// A detector that cannot use NaN, and that signals a rise of the level.
fn plan() -> SlowPlan {
    let config = PageHinkleyConfig { threshold: 5.0, min_instances: 5, ..PageHinkleyConfig::default() };
    let detector = DetectorPlan {
        name: "level".into(),
        stream: 0,
        stream_name: "payments".into(),
        column: 0,
        column_name: "amount".into(),
        condition: None,
        config: DetectorKind::PageHinkley(config),
        state: "drift.level".into(),
    };
    SlowPlan { workers: 2, detectors: vec![detector], outcomes: Vec::new() }
}

/// Rows of partition `partition`, with these (event time, value).
fn rows(partition: u32, values: &[(i64, f64)]) -> Batch {
    let amounts: ArrayRef = Arc::new(values.iter().map(|(_, value)| Some(*value)).collect::<Float64Array>());
    let records = RecordBatch::try_from_iter([("amount", amounts)]).expect("one column");
    let row = |(event_time, _): &(i64, f64)| Row {
        source: 0,
        partition,
        offset: *event_time,
        event_time: *event_time,
        arrived_micros: 0,
    };
    Batch::new(records, values.iter().map(row).collect())
}

/// Feeds epochs of values, each value to a worker by `worker_of`, and gives the report and the texts of the signals.
fn run(
    plan: SlowPlan,
    states: &BTreeMap<String, NodeState>,
    first_epoch: u64,
    epochs: &[&[(i64, f64)]],
    worker_of: impl Fn(usize) -> usize,
) -> Ran {
    let partitions = Arc::new(Partitions::default());
    let numbers = [partitions.number("payments", 0), partitions.number("payments", 1)];
    let (sender, signals) = unbounded();
    let (words, heard) = unbounded();
    let ledger = Ledger::new(0, first_epoch - 1, words);
    let lane = SlowLane::start(plan, states, first_epoch, sender, ledger, partitions).expect("it starts");
    let feed = lane.feed();
    for (epoch, values) in (first_epoch..).zip(epochs) {
        for (i, value) in values.iter().enumerate() {
            let batch = rows(numbers[worker_of(i)], &[*value]);
            feed.send(Feed::Rows { stream: 0, epoch, batch }).expect("the lane listens");
        }
        for worker in 0..2 {
            feed.send(Feed::Close { worker, epoch, watermark: 0 }).expect("the lane listens");
        }
    }
    (0..2).for_each(|worker| feed.send(Feed::End { worker }).expect("the lane listens"));
    drop(feed);
    let report = lane.finish().expect("it ends well");
    let texts = signals.try_iter().filter_map(|signal| match signal {
        Signal::Rows(batch) => Some(format!("{:?}", batch.records)),
        Signal::Close(_) => None,
    });
    let mut states = states.clone();
    for (_, part) in heard.try_iter().flat_map(|word| word.parts) {
        for block in part.state {
            states.entry(block.name.to_string()).or_default().entry(block.part).or_default().push(block.bytes);
        }
    }
    Ran { report, signals: texts.collect(), states }
}

/// What came of a run: also the states with all changes.
struct Ran {
    report: SlowReport,
    signals: Vec<String>,
    states: BTreeMap<String, NodeState>,
}

/// No state.
fn none() -> BTreeMap<String, NodeState> {
    BTreeMap::new()
}

/// Twenty quiet values, then a rise.
fn values() -> Vec<(i64, f64)> {
    (0..40).map(|i| (1_000 + i, if i < 20 { 0.0 } else { 3.0 })).collect()
}

#[test]
fn signals_do_not_depend_on_who_brought_the_rows() {
    let values = values();
    let Ran { report, signals: one, .. } = run(plan(), &none(), 1, &[&values], |_| 0);
    assert_eq!(one.len(), 1, "{one:?}");
    assert_eq!(report.detectors["level"].drifts, 1);
    let mut shuffled = values.clone();
    shuffled.reverse();
    let other = run(plan(), &none(), 1, &[&shuffled], |i| i % 2).signals;
    // The offsets of the rows are the same, and so is all that a signal says.
    assert_eq!(one, other);
}

#[test]
fn a_restart_goes_on() {
    let values = values();
    let (before, after) = values.split_at(21);
    let whole = run(plan(), &none(), 1, &[before, after], |_| 0);
    let first = run(plan(), &none(), 1, &[before], |_| 0);
    assert_eq!(first.signals, Vec::<String>::new());
    let second = run(plan(), &first.states, 2, &[after], |_| 0);
    assert_eq!((&second.signals, &second.states), (&whole.signals, &whole.states));
    let anew = run(plan(), &none(), 2, &[after], |_| 0);
    assert_eq!(anew.signals, Vec::<String>::new(), "without its state it sees a level that never changed");
}

#[test]
fn what_a_detector_cannot_use_is_counted() {
    let values = [(1, 0.5), (2, f64::NAN), (3, f64::INFINITY), (4, 0.5)];
    let report = run(plan(), &none(), 1, &[&values], |_| 0).report;
    let counts = DetectorCounts { values: 4, skipped: 2, warnings: 0, drifts: 0 };
    assert_eq!(report.detectors["level"], counts);
}

#[test]
fn damaged_state_is_an_error() {
    let (sender, _signals) = unbounded();
    let (words, _heard) = unbounded();
    let states = [("drift.level".to_string(), NodeState::from([(0, vec![vec![9, 9]])]))].into();
    let ledger = Ledger::new(0, 0, words);
    let error = SlowLane::start(plan(), &states, 1, sender, ledger, Arc::default()).err().expect("it is refused");
    assert_eq!(error.to_string(), "take up the state of detector `level`");
}
