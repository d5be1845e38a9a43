//! Tests of PSI: golden values, windows, what counts as noise, saved state.

use super::histogram::chi_squared_99;
use super::*;
use crate::drift::tests::{golden, stream};

fn numbers(value: &serde_json::Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|n| n.as_f64().unwrap()).collect()
}

fn counts(value: &serde_json::Value) -> Vec<u64> {
    value.as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).collect()
}

fn config(text: &str) -> PsiConfig {
    serde_json::from_str(text).unwrap()
}

#[test]
fn equals_the_reference_figures() {
    for case in golden("twosample/psi.json")["cases"].as_array().unwrap() {
        let deciles = &case["deciles"];
        let mut reference = Counts::empty(numbers(&deciles["inner_edges"]));
        let mut window = reference.clone();
        numbers(&case["ref"]).into_iter().for_each(|value| reference.add(Some(value)));
        numbers(&case["cur"]).into_iter().for_each(|value| window.add(Some(value)));
        assert_eq!(reference.counts, counts(&deciles["ref_counts"]), "{}", case["name"]);
        assert_eq!(window.counts, counts(&deciles["cur_counts"]), "{}", case["name"]);
        for (floor, name) in [(1e-4, "psi_floor_1e_4"), (1e-6, "psi_floor_1e_6")] {
            let (psi, expected) = (compare(&reference, &window, floor).psi, deciles[name].as_f64().unwrap());
            assert!((psi - expected).abs() < 1e-12 * expected.max(1.0), "{} {name}: {psi} {expected}", case["name"]);
        }
    }
}

#[test]
fn frozen_edges_are_numpys_quantiles() {
    for case in golden("twosample/psi.json")["cases"].as_array().unwrap() {
        let expected = numbers(&case["deciles"]["inner_edges"]);
        let frozen = Counts::of_quantiles(&numbers(&case["ref"]), 0, 10);
        assert_eq!(frozen.edges.len(), expected.len(), "{}", case["name"]);
        for (edge, expected) in frozen.edges.iter().zip(expected) {
            assert!((edge - expected).abs() < 1e-12, "{}: {edge} {expected}", case["name"]);
        }
    }
}

#[test]
fn the_noise_point_is_the_chi_squared_quantile() {
    for (freedom, expected) in [(1.0, 6.6349), (2.0, 9.2103), (9.0, 21.666), (19.0, 36.191), (99.0, 134.642)] {
        assert!((chi_squared_99(freedom) / expected - 1.0).abs() < 0.01, "{freedom}");
    }
}

const UNIFORM: &str = r#"{
    "reference": { "histogram": { "edges": [0.25, 0.5, 0.75], "counts": [250, 250, 250, 250] } },
    "window": { "rows": 400 }
}"#;

/// Rows at which the detector fires, with their levels.
fn alarms(detector: &mut Psi, values: impl IntoIterator<Item = (Option<f64>, EventTime)>) -> Vec<(usize, Alarm)> {
    let verdicts = values.into_iter().map(|(value, time)| detector.observe(value, time)).enumerate();
    verdicts
        .filter_map(|(i, verdict)| if let Verdict::Alarm(alarm) = verdict { Some((i, alarm)) } else { None })
        .collect()
}

#[test]
fn a_window_of_rows_fires_at_its_last_row() {
    let mut detector = Psi::new(&config(UNIFORM)).unwrap();
    let quiet = (0..400).map(|i| (Some(f64::from(i % 4) / 4.0), i64::from(i)));
    let shifted = (400..800).map(|i| (Some(f64::from(i % 2) / 4.0), i64::from(i)));
    let found = alarms(&mut detector, quiet.chain(shifted));
    assert_eq!(found.len(), 1);
    let (at, alarm) = &found[0];
    assert_eq!((*at, alarm.level, alarm.threshold), (799, Level::Drift, 0.25));
    let evidence: serde_json::Value = serde_json::from_str(&alarm.evidence).unwrap();
    let window = serde_json::json!({ "from": 400, "to": 799, "count": 400, "counts": [200, 200, 0, 0], "missing": 0 });
    assert_eq!(evidence["window"], window);
    assert_eq!(evidence["reference"]["id"], "199c100b4718ec4d");
    assert_eq!(evidence["expected_without_change"].as_f64().unwrap(), 3.0 * (1.0 / 400.0 + 1.0 / 1000.0));
}

#[test]
fn a_change_that_lasts_is_one_signal_and_one_that_comes_back_is_two() {
    let mut detector = Psi::new(&config(UNIFORM)).unwrap();
    let window = |shifted: bool| (0..400).map(move |i| (Some(f64::from(i % if shifted { 2 } else { 4 }) / 4.0), 0));
    let windows = [false, true, true, true, false, true];
    let found = alarms(&mut detector, windows.into_iter().flat_map(window));
    assert_eq!(found.iter().map(|(at, _)| at + 1).collect::<Vec<_>>(), [800, 2400]);
}

#[test]
fn a_warning_comes_before_drift_and_drift_is_told_after_it() {
    let text = UNIFORM.replace("400 }", "400 }, \"warning\": 0.1");
    let mut detector = Psi::new(&config(&text)).unwrap();
    // The share of the first bin: its own quarter, more, much more, as much, less again, more again.
    let shares = [100, 190, 260, 280, 190, 100, 190];
    let window =
        |first: u32| (0..400).map(move |i| (Some(if i < first { 0.0 } else { f64::from(1 + i % 3) / 4.0 }), 0));
    let found = alarms(&mut detector, shares.into_iter().flat_map(window));
    let levels: Vec<_> = found.iter().map(|(at, alarm)| ((at + 1) / 400, alarm.level, alarm.threshold)).collect();
    let expected = [(2, Level::Warning, 0.1), (3, Level::Drift, 0.25), (7, Level::Warning, 0.1)];
    assert_eq!(levels, expected);
}

#[test]
fn a_column_that_goes_missing_is_drift() {
    let missing = (0..400).map(|i| if i % 3 == 0 { None } else { Some(f64::from(i % 4) / 4.0) });
    let nan = (0..400).map(|i| Some(if i % 3 == 0 { f64::NAN } else { f64::from(i % 4) / 4.0 }));
    let fire = |values: Vec<Option<f64>>| {
        let mut detector = Psi::new(&config(UNIFORM)).unwrap();
        alarms(&mut detector, values.into_iter().map(|value| (value, 0)))
    };
    let found = fire(missing.collect());
    assert_eq!(found.len(), 1);
    assert_eq!(found, fire(nan.collect()), "NaN counts as null");
}

#[test]
fn a_small_sample_gives_a_warning_only() {
    let text = r#"{
        "reference": { "histogram": { "edges": [1,2,3,4,5,6,7,8,9], "counts": [2,2,2,2,2,2,2,2,2,2] } },
        "window": { "rows": 20 }, "threshold": 0.2
    }"#;
    let values = [0, 0, 0, 0, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8, 9].map(|i| (Some(f64::from(i) + 0.5), 0));
    let found = alarms(&mut Psi::new(&config(text)).unwrap(), values);
    assert_eq!(found.len(), 0, "PSI 0.19 is below the threshold");
    let values = [0, 0, 0, 0, 0, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 8, 8, 9].map(|i| (Some(f64::from(i) + 0.5), 0));
    let found = alarms(&mut Psi::new(&config(text)).unwrap(), values);
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].1.level, Level::Warning);
}

#[test]
fn a_window_of_time_is_judged_by_the_first_value_after_it() {
    let text = r#"{
        "reference": { "first": { "values": 100, "bins": 4 } },
        "window": { "time": { "length": "1s", "count_min": 50 } }
    }"#;
    let mut detector = Psi::new(&config(text)).unwrap();
    let reference = (0..100).map(|i| (Some(f64::from(i)), 0));
    let few = (0..49).map(|_| (Some(0.0), 1_500));
    // The last of the window comes late, and counts in it.
    let shifted = (0..60).map(|i| (Some(0.0), 2_000 + i)).chain([(Some(0.0), 1_700)]);
    let found = alarms(&mut detector, reference.chain(few).chain(shifted).chain([(Some(1.0), 9_000)]));
    assert_eq!(found.len(), 1, "the window of 49 values is not judged");
    assert_eq!(found[0].0, 210);
    let evidence: serde_json::Value = serde_json::from_str(&found[0].1.evidence).unwrap();
    assert_eq!(evidence["window"]["from"], 2_000);
    assert_eq!(evidence["window"]["to"], 2_059);
    assert_eq!(evidence["window"]["count"], 61);
}

#[test]
fn a_jump_is_seen_once_and_a_stationary_stream_is_left_alone() {
    let text = r#"{ "reference": { "first": { "values": 1000, "bins": 10 } }, "window": { "rows": 500 } }"#;
    let fire = |name| alarms(&mut Psi::new(&config(text)).unwrap(), stream(name).into_iter().map(|x| (Some(x), 0)));
    assert_eq!(fire("gauss_stationary").len(), 0);
    assert_eq!(fire("gauss_abrupt").iter().filter(|(_, alarm)| alarm.level == Level::Drift).count(), 1);
}

#[test]
fn a_saved_detector_goes_on() {
    let text = r#"{ "reference": { "first": { "values": 300 } }, "window": { "rows": 250 }, "threshold": 0.05 }"#;
    let values = |i: u64| {
        (!i.is_multiple_of(7)).then_some(((i * 2_654_435_761) % 1_000) as f64 * if i > 900 { 1.5 } else { 1.0 })
    };
    let mut straight = Psi::new(&config(text)).unwrap();
    let mut stopped = straight.clone();
    for i in 0..2_000 {
        if i % 97 == 0 {
            let bytes = stopped.save();
            stopped = Psi::new(&config(text)).unwrap();
            stopped.load(&bytes).unwrap();
        }
        assert_eq!(straight.observe(values(i), i as i64), stopped.observe(values(i), i as i64));
    }
    assert!(straight.statistic().is_some());
}

#[test]
fn state_that_does_not_go_together_is_refused() {
    let mut detector = Psi::new(&config(UNIFORM)).unwrap();
    assert!(detector.load(&[1, 2, 3]).is_err());
    let sound = detector.state.clone();
    let broken = |change: fn(&mut State)| {
        let mut state = sound.clone();
        change(&mut state);
        to_bytes(&state)
    };
    let few_counts = broken(|state| _ = state.window.counts.pop());
    let other_edges = broken(|state| state.window.edges[0] = 0.3);
    let broken_reference =
        broken(|state| state.reference = Frozen::Done(Counts { counts: vec![1], ..Counts::default() }));
    let falling = broken(|state| {
        let edges = vec![3.0, 2.0, 1.0];
        state.window = Counts::empty(edges.clone());
        state.reference = Frozen::Done(Counts { edges, counts: vec![1; 4], missing: 0 });
    });
    let all = [few_counts, other_edges, falling];
    assert!(all.iter().all(|bytes| detector.load(bytes).is_err()));
    assert!(detector.load(&broken_reference).is_err());
    assert_eq!(detector.state, sound, "what is refused changes nothing");
}

#[test]
fn refuses_what_cannot_be_judged() {
    let histogram = |edges: &str, counts: &str| {
        format!(r#"{{"reference": {{"histogram": {{"edges": [{edges}], "counts": [{counts}]}}}}}}"#)
    };
    for (text, option) in [
        (r#"{"reference": {"file": "r.json"}}"#.to_owned(), "reference.file"),
        (r#"{"reference": {"first": {"values": 9}}}"#.to_owned(), "reference.first.values"),
        (r#"{"reference": {"first": {"values": 1000001}}}"#.to_owned(), "reference.first.values"),
        (r#"{"reference": {"first": {"bins": 1}}}"#.to_owned(), "reference.first.bins"),
        (r#"{"window": {"rows": 0}}"#.to_owned(), "window.rows"),
        (r#"{"window": {"time": {"length": "0s"}}}"#.to_owned(), "window.time.length"),
        (r#"{"floor": 0}"#.to_owned(), "floor"),
        (r#"{"threshold": -1}"#.to_owned(), "threshold"),
        (r#"{"warning": 0.3}"#.to_owned(), "warning"),
        (histogram("2, 1", "1, 1, 1"), "reference.histogram.edges"),
        (histogram("1", "1"), "reference.histogram.counts"),
        (histogram("1", "0, 0"), "reference.histogram.counts"),
        (histogram("1", "18446744073709551615, 1"), "reference.histogram.counts"),
    ] {
        assert_eq!(Psi::new(&config(&text)).unwrap_err().option, option, "{text}");
    }
}

#[test]
fn a_reference_file_is_read_as_a_histogram() {
    let file = config(r#"{"reference": {"file": "r.json"}}"#);
    assert_eq!(file.reference_file(), Some("r.json"));
    let read = file.with_reference(r#"{"edges": [0.5], "counts": [10, 10]}"#).unwrap();
    assert!(Psi::new(&read).is_ok());
    let error = file.with_reference("{}").unwrap_err();
    assert!(error.to_string().starts_with("reference.file: it does not hold a histogram like"), "{error}");
    let error = file.with_reference(r#"{"edges": [0.5], "counts": [10]}"#).unwrap_err();
    assert_eq!(error.to_string(), "reference.file: its `counts`: 1 edges make 2 bins, not 1");
}
