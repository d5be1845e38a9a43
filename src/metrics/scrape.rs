//! A scrape held against the catalogue: what is emitted is described, and what is described is emitted.

use std::collections::BTreeMap;

use super::catalogue::CATALOGUE;
use super::{Metric, MetricKind, Part, Seen};

/// One line of a scrape.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// The metric with its suffix: `millstream_model_batch_size_bucket`.
    pub name: String,
    /// Label values by name.
    pub labels: BTreeMap<String, String>,
    /// The value.
    pub value: f64,
}

/// The samples of a scrape, in its order.
///
/// # Errors
/// The first line that is not in the text format.
pub fn samples(text: &str) -> Result<Vec<Sample>, String> {
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.map(|line| sample(line).ok_or_else(|| format!("not a sample: `{line}`"))).collect()
}

fn sample(line: &str) -> Option<Sample> {
    let end = line.find(['{', ' '])?;
    let (name, mut rest) = line.split_at(end);
    let mut labels = BTreeMap::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        while !rest.starts_with('}') {
            let (label, after) = rest.split_once("=\"")?;
            let (value, after) = quoted(after)?;
            labels.insert(label.to_owned(), value);
            rest = after.strip_prefix(',').unwrap_or(after);
        }
        rest = &rest[1..];
    }
    let value = match rest.trim() {
        "+Inf" => f64::INFINITY,
        "-Inf" => f64::NEG_INFINITY,
        number => number.parse().ok()?,
    };
    Some(Sample { name: name.to_owned(), labels, value })
}

/// The text up to the closing quote, without its escapes, and what follows the quote.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => match chars.next()?.1 {
                'n' => value.push('\n'),
                escaped => value.push(escaped),
            },
            c => value.push(c),
        }
    }
    None
}

/// What is wrong with the scrape of a job that has these `parts` ([`Part::Job`], [`Part::Workers`] and [`Part::Process`] are in every job):
/// series the catalogue does not have, other labels or another type than it says, missing help, and metrics of these
/// parts that should be there and are not. Empty when all is well.
pub fn problems(text: &str, parts: &[Part]) -> Vec<String> {
    let samples = match samples(text) {
        Ok(samples) => samples,
        Err(problem) => return vec![problem],
    };
    let mut problems = Vec::new();
    let mut emitted: Vec<&'static str> = Vec::new();
    for sample in &samples {
        let Some((metric, suffix)) = find(&sample.name) else {
            problems.push(format!("`{}` is not in the catalogue", sample.name));
            continue;
        };
        emitted.push(metric.name);
        let mut labels: Vec<&str> = sample.labels.keys().map(String::as_str).collect();
        if suffix == "_bucket" {
            labels.retain(|label| *label != "le");
        }
        let mut wanted = metric.labels.to_vec();
        wanted.sort();
        if labels != wanted {
            problems.push(format!("`{}` has the labels {labels:?}, the catalogue says {wanted:?}", sample.name));
        }
        if metric.kind == MetricKind::Counter && sample.value < 0.0 {
            problems.push(format!("the counter `{}` is negative", sample.name));
        }
    }
    for metric in CATALOGUE {
        let required = metric.seen == Seen::FromStart
            && (matches!(metric.part, Part::Job | Part::Workers | Part::Process) || parts.contains(&metric.part));
        if emitted.contains(&metric.name) {
            let kind = format!("# TYPE {} {}", metric.name, metric.kind.as_str());
            let help = format!("# HELP {} {}", metric.name, metric.help);
            for line in [kind, help] {
                if !text.lines().any(|there| there == line) {
                    problems.push(format!("the line `{line}` is missing"));
                }
            }
        } else if required {
            problems.push(format!("`{}` has no series", metric.name));
        }
    }
    problems.sort();
    problems.dedup();
    problems
}

/// The catalogue's entry of a sample's name, and the suffix a histogram gives it.
fn find(name: &str) -> Option<(&'static Metric, &'static str)> {
    if let Some(metric) = CATALOGUE.iter().find(|metric| metric.name == name) {
        return (!matches!(metric.kind, MetricKind::Histogram(_))).then_some((metric, ""));
    }
    ["_bucket", "_sum", "_count"].into_iter().find_map(|suffix| {
        let base = name.strip_suffix(suffix)?;
        let metric = CATALOGUE.iter().find(|metric| metric.name == base)?;
        matches!(metric.kind, MetricKind::Histogram(_)).then_some((metric, suffix))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::catalogue::*;
    use crate::metrics::latency::Latencies;
    use crate::metrics::{Exporter, recorder};

    #[test]
    fn a_sample_is_read_with_escapes() {
        let read = sample(r#"a_total{x="a \"b\" \\ c",y=""} 1.5e3"#).expect("a sample");
        assert_eq!(read.labels["x"], r#"a "b" \ c"#);
        assert_eq!((read.labels["y"].as_str(), read.value), ("", 1500.0));
        assert!(samples("a{b 3").is_err());
    }

    #[test]
    fn a_scrape_is_held_against_the_catalogue() {
        let recorder = recorder();
        let exporter = Exporter { handle: recorder.handle(), latencies: Latencies::default() };
        ::metrics::with_local_recorder(&recorder, || {
            SINK_RECORDS.of(["out"]).increment(1);
            SINK_BYTES.of(["out"]).increment(10);
            OFFLINE_COMMIT_DURATION.of(["t"]).record(0.5);
            ::metrics::counter!("millstream_unheard_of_total").increment(1);
            ::metrics::counter!("millstream_sink_records_total", "colour" => "red").increment(1);
        });
        exporter.fold();
        let found = problems(&exporter.render(), &[Part::Sinks]);
        let has = |part: &str| found.iter().any(|problem| problem.contains(part));
        assert!(has("`millstream_unheard_of_total` is not in the catalogue"), "{found:?}");
        assert!(has(r#"`millstream_sink_records_total` has the labels ["colour"]"#), "{found:?}");
        assert!(has("`millstream_epoch_current` has no series"), "{found:?}");
        assert!(!has("millstream_offline_commit") && !has("millstream_sink_bytes_total"), "{found:?}");
        assert!(!has("millstream_model"), "a job without models has no metrics of models: {found:?}");
        assert!(!has("process_"), "{found:?}");
    }
}
