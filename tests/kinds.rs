//! What holds for every kind in every list: its settings are documented, its example is one that the engine takes, and it
//! does what its family promises. Sources and formats have files of their own.

use std::collections::BTreeSet;

use millstream::cli::families;
use millstream::offline::TableKind;
use millstream::sinks::SinkKind;
use millstream::sources::SourceKind;
use millstream_operators::decode::FormatKind;
use millstream_operators::drift::{Detector, DetectorKind, Verdict};
use millstream_operators::error::ConfigError;
use millstream_operators::features::Aggregate;

use super::random::Random;

mod formats;
pub mod sources;

/// Reads an example and gives what is wrong with it.
fn wrong_with(family: &str, example: &str) -> Option<String> {
    fn read<T: serde::de::DeserializeOwned>(example: &str, judge: impl FnOnce(T) -> Option<String>) -> Option<String> {
        serde_saphyr::from_str(example).map_or_else(|error| Some(error.to_string()), judge)
    }
    let first = |errors: Vec<ConfigError>| errors.first().map(ToString::to_string);
    match family {
        "source" => read(example, |kind: SourceKind| first(kind.settings().errors())),
        "format" => read(example, |_: FormatKind| None),
        "aggregate" => read(example, |_: Aggregate| None),
        "detector" => read(example, |kind: DetectorKind| kind.settings().build().err().map(|error| error.to_string())),
        "sink" => read(example, |kind: SinkKind| first(kind.settings().errors())),
        "offline store" => read(example, |_: TableKind| None),
        other => panic!("the family `{other}` is not tested here"),
    }
}

#[test]
fn every_kind_is_documented_and_its_example_is_taken() {
    let mut wrong = Vec::new();
    for kind in families().iter().flat_map(|family| &family.kinds) {
        let mut add = |what: String| wrong.push(format!("{} {}: {what}", kind.family, kind.name));
        wrong_with(kind.family, &kind.example).into_iter().for_each(&mut add);
        let fields = kind.settings["properties"].as_object().into_iter().flatten();
        let undocumented = fields.filter(|(_, field)| field["description"].as_str().unwrap_or_default().is_empty());
        undocumented.for_each(|(name, _)| add(format!("`{name}` has no documentation")));
        if kind.settings["description"].as_str().unwrap_or_default().is_empty() {
            add("it has no documentation".into());
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn names_are_unique_within_a_family() {
    for family in families() {
        let names: BTreeSet<_> = family.kinds.iter().map(|kind| kind.name).collect();
        assert_eq!(names.len(), family.kinds.len(), "{}", family.name);
    }
}

/// The detector of each kind's example.
fn detectors() -> Vec<(&'static str, Box<dyn Detector>)> {
    let families = families();
    let kinds = families.into_iter().find(|family| family.name == "detector").expect("a family").kinds;
    let build = |example: &str| serde_saphyr::from_str::<DetectorKind>(example).expect("YAML").settings().build();
    kinds.iter().map(|kind| (kind.name, build(&kind.example).expect("the example builds"))).collect()
}

/// Noise around 10 for `quiet` values, then around 200; now and then a value is missing.
fn values(quiet: usize, all: usize) -> Vec<Option<f64>> {
    let mut random = Random(7);
    let noise = move |n: usize| {
        let level = if n < quiet { 10.0 } else { 200.0 };
        (n % 97 != 5).then(|| level + random.below(1_000) as f64 / 100.0)
    };
    (0..all).map(noise).collect()
}

#[test]
fn every_detector_is_quiet_on_noise_and_tells_a_jump() {
    for ((name, mut detector), (_, mut other)) in detectors().into_iter().zip(detectors()) {
        let verdict = |(value, at): (Option<f64>, i64)| {
            let verdict = detector.observe(value, at);
            assert_eq!(other.observe(value.or(Some(f64::NAN)), at), verdict, "{name} takes NaN for a null, at {at}");
            verdict
        };
        let verdicts: Vec<Verdict> = values(8_000, 12_000).into_iter().zip(0..).map(verdict).collect();
        let alarm = verdicts.iter().position(|verdict| matches!(verdict, Verdict::Alarm(_)));
        assert!(alarm.is_some_and(|at| (8_000..12_000).contains(&at)), "{name}: the first alarm is at {alarm:?}");
    }
}

#[test]
fn every_detector_goes_on_from_what_it_saved() {
    let values = values(8_000, 12_000);
    for ((name, mut whole), (_, mut parts)) in detectors().into_iter().zip(detectors()) {
        for (at, value) in values.iter().enumerate() {
            if at % 1_999 == 1_000 {
                let saved = parts.save();
                parts = detectors().into_iter().find(|(other, _)| *other == name).expect("the same kind").1;
                parts.load(&saved).expect("its own bytes");
            }
            assert_eq!(whole.observe(*value, at as i64), parts.observe(*value, at as i64), "{name} at {at}");
        }
        assert_eq!((whole.statistic(), whole.window_samples()), (parts.statistic(), parts.window_samples()), "{name}");
    }
}
