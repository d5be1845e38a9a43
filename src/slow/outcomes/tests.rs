//! Outcomes against a recomputation from all that was ever given, with labels that come first, late, twice, corrected and
//! taken back; and what is left of an outcome when the window has moved on.

use std::collections::BTreeMap;

use arrow::array::{ArrayRef, Float64Array, RecordBatch, StringArray};
use arrow::datatypes::{Field, Schema};
use millstream_operators::expressions::Expression;
use millstream_operators::units::Millis;
use proptest::prelude::*;

use super::standing::Tally;
use super::*;
use crate::metrics::recorder;
use crate::sources::Partitions as Numbers;

const WINDOW: i64 = 250;
const TOPICS: [&str; 2] = ["b", "a"];
const COUNTRIES: [&str; 3] = ["AT", "CH", "DE"];

#[derive(Debug, Clone, PartialEq)]
enum What {
    Prediction { score: Option<f64>, country: usize },
    Label(Option<f64>),
}

/// An event of a topic; `key` is `None` for a null.
#[derive(Debug, Clone, PartialEq)]
struct Event {
    what: What,
    key: Option<u8>,
    time: i64,
    topic: usize,
    offset: i64,
}

impl Event {
    fn key(&self) -> Option<String> {
        self.key.map(|key| format!("k{key}"))
    }

    /// Its place in the order of events.
    fn place(&self) -> (i64, &str, i64) {
        (self.time, TOPICS[self.topic], self.offset)
    }
}

/// The label column's type, and the plan of an outcome over streams 0 and 1.
fn plan() -> OutcomePlan {
    let labels = Schema::new(vec![Field::new("id", DataType::Utf8, true), Field::new("y", DataType::Float64, true)]);
    OutcomePlan {
        name: "fraudulent".into(),
        predictions: 0,
        prediction_key: vec![0],
        score: 1,
        slices: vec![("country".into(), 2)],
        labels: 1,
        label_key: vec![0],
        value: Expression::compile("y", &labels).expect("it compiles"),
        window: Millis(WINDOW),
        state: "outcomes.fraudulent".into(),
    }
}

/// The batches of an epoch's events. `numbers` are the numbers of the topics' partitions in this process.
fn batches(events: &[Event], numbers: [u32; 2], order: &mut EventOrder) -> BTreeMap<usize, Batch> {
    let mut rows = BTreeMap::new();
    for stream in 0..2 {
        let of_stream = events.iter().filter(|event| usize::from(matches!(event.what, What::Label(_))) == stream);
        let of_stream: Vec<&Event> = of_stream.collect();
        let keys: ArrayRef = Arc::new(of_stream.iter().map(|event| event.key()).collect::<StringArray>());
        let values = of_stream.iter().map(|event| match event.what {
            What::Prediction { score, .. } => score,
            What::Label(value) => value,
        });
        let values: ArrayRef = Arc::new(values.collect::<Float64Array>());
        let countries = of_stream.iter().map(|event| match event.what {
            What::Prediction { country, .. } => Some(COUNTRIES[country]),
            What::Label(_) => None,
        });
        let countries: ArrayRef = Arc::new(countries.collect::<StringArray>());
        let name = if stream == 0 { "score" } else { "y" };
        let columns = vec![("id", keys, true), (name, values, true), ("country", countries, true)];
        let records = RecordBatch::try_from_iter_with_nullable(columns).expect("columns of one length");
        let row = |event: &&Event| Row {
            source: 0,
            partition: numbers[event.topic],
            offset: event.offset,
            event_time: event.time,
            arrived_micros: 0,
        };
        let batch = Batch::new(records, of_stream.iter().map(row).collect());
        rows.insert(stream, order.sort(&batch).expect("a small batch"));
    }
    rows
}

/// The order of events in a process that met the topics in this order, and the topics' numbers.
fn process(met: [usize; 2]) -> (EventOrder, [u32; 2]) {
    let partitions = Arc::new(Numbers::default());
    let mut numbers = [0; 2];
    met.into_iter().for_each(|topic| numbers[topic] = partitions.number(TOPICS[topic], 0));
    (EventOrder::new(partitions), numbers)
}

/// The figures and the tally, from all events so far and the end of the window.
fn recompute(events: &[Event], end: i64) -> (BTreeMap<String, Quality>, Tally) {
    let mut seen: Vec<&Event> = Vec::new();
    for event in events.iter().filter(|event| event.key.is_some()) {
        if !seen.contains(&event) {
            seen.push(event);
        }
    }
    let label_of = |key: &Option<u8>| {
        let labels = seen.iter().filter(|event| event.key == *key && matches!(event.what, What::Label(_)));
        let newest = labels.max_by_key(|event| event.place()).filter(|event| event.time > end)?;
        let What::Label(value) = newest.what else { return None };
        value.map(|value| value >= 0.5)
    };
    let mut histograms: BTreeMap<String, Histogram> = BTreeMap::new();
    let (mut tally, mut predicted) = (Tally::default(), Vec::new());
    for event in &seen {
        let What::Prediction { score: Some(score), country } = event.what else { continue };
        if event.time <= end || !score.is_finite() {
            continue;
        }
        predicted.push(event.key);
        tally.predictions += 1;
        match label_of(&event.key) {
            None => tally.pending += 1,
            Some(positive) => {
                for slice in [ALL.to_owned(), format!("country={}", COUNTRIES[country])] {
                    histograms.entry(slice).or_default().add(bin(score), positive, 1);
                }
            }
        }
    }
    let keys: BTreeSet<Option<u8>> = seen.iter().map(|event| event.key).collect();
    let unmatched = keys.iter().filter(|key| label_of(key).is_some() && !predicted.contains(key));
    tally.unmatched_labels = unmatched.count() as u64;
    (histograms.iter().map(|(slice, histogram)| (slice.clone(), histogram.quality())).collect(), tally)
}

/// Events of an epoch: (what, key, how old, topic, whether it comes twice).
fn events() -> impl Strategy<Value = Vec<(What, Option<u8>, i64, usize, bool)>> {
    let score = prop_oneof![
        8 => (0.0..1.0).prop_map(Some),
        1 => Just(None),
        1 => prop_oneof![Just(Some(f64::NAN)), Just(Some(f64::INFINITY))],
    ];
    let what = prop_oneof![
        (score, 0..3usize).prop_map(|(score, country)| What::Prediction { score, country }),
        prop_oneof![4 => (0..2).prop_map(|y| Some(f64::from(y))), 1 => Just(None)].prop_map(What::Label),
    ];
    let key = prop_oneof![12 => (0..8u8).prop_map(Some), 1 => Just(None)];
    // Few times, so that labels of one key often have the same; some are older than the window.
    let age = prop_oneof![6 => 0..5i64, 1 => 20..40i64].prop_map(|age| age * 20);
    proptest::collection::vec((what, key, age, 0..2usize, proptest::bool::weighted(0.1)), 0..12)
}

/// NaN is not equal to itself: what was not judged is told by its text.
fn text(quality: &BTreeMap<String, Quality>) -> String {
    format!("{quality:?}")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn figures_are_those_of_all_that_stands(
        epochs in proptest::collection::vec((events(), 0..120i64), 1..10),
        stop in 0..10usize,
    ) {
        timely::execute_directly(move |worker| {
            let (mut order, mut numbers) = process([0, 1]);
            let mut outcomes = Outcomes::new(worker, &plan(), 1, None).expect("nothing to restore");
            let (mut all, mut now, mut watermark, mut offset) = (Vec::new(), 1_000, 0, 0);
            let mut saved = NodeState::new();
            for (number, (events, passed)) in epochs.into_iter().enumerate() {
                let epoch = number as u64 + 1;
                let mut of_epoch = Vec::new();
                for (what, key, age, topic, twice) in events {
                    offset += 1;
                    let event = Event { what, key, time: now - age, topic, offset };
                    of_epoch.extend(twice.then(|| event.clone()));
                    of_epoch.push(event);
                }
                all.extend(of_epoch.iter().cloned());
                (now, watermark) = (now + passed, watermark.max(now - 100));
                let rows = batches(&of_epoch, numbers, &mut order);
                outcomes.epoch(worker, epoch, &rows, watermark, &mut order).expect("columns are as planned");
                let (quality, tally) = recompute(&all, watermark - WINDOW);
                assert_eq!(text(&outcomes.quality()), text(&quality), "epoch {epoch} of {all:#?}");
                assert_eq!(outcomes.counts().standing, tally, "epoch {epoch} of {all:#?}");
                keep_changes(&mut outcomes, &mut saved);
                if number == stop {
                    // The next process meets the topics in the other order.
                    (order, numbers) = process([1, 0]);
                    outcomes = Outcomes::new(worker, &plan(), epoch + 1, Some(&saved)).expect("its own state");
                    assert_eq!(text(&outcomes.quality()), text(&quality), "after a restart");
                    let mut again = NodeState::new();
                    keep_changes(&mut outcomes, &mut again);
                    assert_eq!(again.keys().collect::<Vec<_>>(), [&HEAD], "what was taken up is no change");
                }
            }
        });
    }
}

/// Adds what has changed to what is saved.
fn keep_changes(outcomes: &mut Outcomes, saved: &mut NodeState) {
    outcomes.save_changes(&mut |key_group, bytes| saved.entry(key_group).or_default().push(bytes));
}

fn prediction(key: u8, score: f64, time: i64) -> Event {
    Event {
        what: What::Prediction { score: Some(score), country: key as usize % 3 },
        key: Some(key),
        time,
        topic: 0,
        offset: time,
    }
}

fn label(key: u8, positive: bool, time: i64) -> Event {
    Event { what: What::Label(Some(f64::from(u8::from(positive)))), key: Some(key), time, topic: 1, offset: time }
}

#[test]
fn memory_is_that_of_the_window() {
    timely::execute_directly(|worker| {
        let (mut order, numbers) = process([0, 1]);
        let mut outcomes = Outcomes::new(worker, &plan(), 1, None).expect("nothing to restore");
        let mut saved = NodeState::new();
        for epoch in 1..=400_u64 {
            let time = epoch as i64 * 10;
            // 250 keys in turn, two events an epoch, 25 epochs in the window.
            let key = (epoch % 250) as u8;
            let rows = batches(&[prediction(key, 0.5, time), label(key, true, time)], numbers, &mut order);
            outcomes.epoch(worker, epoch, &rows, time, &mut order).expect("columns are as planned");
            keep_changes(&mut outcomes, &mut saved);
            let (cases, due) = outcomes.standing.size();
            assert!(cases <= 50 && due <= 50, "{cases} cases and {due} times in epoch {epoch}");
        }
        assert_eq!(outcomes.counts().standing, Tally { predictions: 25, pending: 0, unmatched_labels: 0 });
        assert_eq!(outcomes.counts().evicted_labelled, 375);
        let merged: usize = saved
            .iter()
            .filter(|(key_group, _)| **key_group != HEAD)
            .map(|(_, parts)| rows::merge(parts.iter().map(Vec::as_slice)).expect("whole rows").len())
            .sum();
        assert!(merged < 4_000, "{merged} bytes for 25 cases");
    });
}

#[test]
fn labels_are_counted_by_what_they_do() {
    timely::execute_directly(|worker| {
        let (mut order, numbers) = process([0, 1]);
        let mut outcomes = Outcomes::new(worker, &plan(), 1, None).expect("nothing to restore");
        let withdrawn = Event { what: What::Label(None), ..label(1, true, 40) };
        let events = [
            [label(1, true, 10), label(2, false, 10)].to_vec(),
            [label(1, false, 30), label(2, false, 30)].to_vec(),
            [label(1, true, 20), withdrawn, Event { key: None, ..label(1, true, 50) }].to_vec(),
            [prediction(2, 0.5, 50), Event { key: None, ..prediction(2, 0.5, 51) }, prediction(3, f64::NAN, 52)]
                .to_vec(),
        ];
        for (epoch, events) in (1..).zip(events) {
            let rows = batches(&events, numbers, &mut order);
            outcomes.epoch(worker, epoch, &rows, 0, &mut order).expect("columns are as planned");
        }
        let counts = outcomes.counts();
        let labels = counts::LabelCounts { new: 2, correction: 1, repeat: 1, withdrawal: 1, stale: 1, skipped: 1 };
        assert_eq!(counts.labels, labels);
        assert_eq!((counts.predictions, counts.skipped_keys, counts.skipped_scores), (1, 1, 1));
        assert_eq!(counts.standing, Tally { predictions: 1, pending: 0, unmatched_labels: 0 });
    });
}

#[test]
fn a_slice_that_the_window_has_left_says_so() {
    let recorder = recorder();
    let scrape = recorder.handle();
    ::metrics::with_local_recorder(&recorder, || {
        timely::execute_directly(|worker| {
            let (mut order, numbers) = process([0, 1]);
            let mut outcomes = Outcomes::new(worker, &plan(), 1, None).expect("nothing to restore");
            let events = [prediction(0, 0.9, 10), label(0, true, 10), prediction(3, 0.1, 10), label(3, false, 10)];
            let rows = batches(&events, numbers, &mut order);
            outcomes.epoch(worker, 1, &rows, 10, &mut order).expect("columns are as planned");
            assert_eq!(outcomes.quality()["country=AT"].auc, Some(1.0));
            outcomes.epoch(worker, 2, &BTreeMap::new(), 10 + WINDOW, &mut order).expect("nothing to take");
            assert!(outcomes.quality().is_empty());
        });
    });
    let text = scrape.render();
    for line in [
        r#"millstream_outcome_joined{outcomes="fraudulent",slice="country=AT"} 0"#,
        r#"millstream_outcome_auc{outcomes="fraudulent",slice="country=AT"} NaN"#,
        r#"millstream_outcome_log_loss{outcomes="fraudulent",slice="all"} NaN"#,
        r#"millstream_outcome_evicted_total{outcomes="fraudulent",what="labelled"} 2"#,
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
}

#[test]
fn damaged_state_is_an_error() {
    timely::execute_directly(|worker| {
        let mut saved = NodeState::new();
        saved.insert(HEAD, vec![vec![255; 3]]);
        let error = Outcomes::new(worker, &plan(), 2, Some(&saved)).err().expect("damaged").to_string();
        assert_eq!(error, "take up the state of outcome `fraudulent`");
    });
}
