//! The latencies of sinks as a histogram of Prometheus.
//!
//! Workers count the latency of every record in a fine histogram, for the closing summary. To hand each of them to the recorder
//! as well would be a second time of measuring, and cost as much CPU again; so the buckets are made of the fine
//! histogram and written as text. They are those since the start, as of every histogram: `histogram_quantile` over a `rate` gives
//! the quantiles of any stretch of time, over the processes of a job too.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Arc, Mutex};

use hdrhistogram::Histogram;

use super::catalogue::{IN_PROCESS, PROCESSING_LATENCY};

/// The buckets of each sink, by name.
#[derive(Debug, Clone, Default)]
pub struct Latencies {
    sinks: Arc<Mutex<BTreeMap<String, Buckets>>>,
}

/// A histogram as Prometheus has it.
#[derive(Debug, Clone, PartialEq)]
struct Buckets {
    /// How many are at most as large as each of [`IN_PROCESS`].
    at_most: Vec<u64>,
    count: u64,
    sum_seconds: f64,
}

impl Buckets {
    fn of(micros: &Histogram<u64>) -> Buckets {
        let mut at_most = vec![0; IN_PROCESS.len()];
        let mut sum_micros = 0.0;
        for value in micros.iter_recorded() {
            // The histogram has three digits: the middle of what it takes for the same.
            let middle = micros.median_equivalent(value.value_iterated_to());
            let count = value.count_at_value();
            sum_micros += middle as f64 * count as f64;
            if let Some(bucket) = IN_PROCESS.iter().position(|bound| middle as f64 <= bound * 1e6) {
                at_most[bucket] += count;
            }
        }
        let mut below = 0;
        for count in &mut at_most {
            below += *count;
            *count = below;
        }
        Buckets { at_most, count: micros.len(), sum_seconds: sum_micros / 1e6 }
    }
}

impl Latencies {
    /// What `sink` has now.
    pub fn set(&self, sink: &str, micros: &Histogram<u64>) {
        let buckets = Buckets::of(micros);
        let mut sinks = self.sinks.lock().expect("no thread panics with the lock");
        match sinks.get_mut(sink) {
            Some(known) => *known = buckets,
            None => _ = sinks.insert(sink.to_owned(), buckets),
        }
    }

    /// Appends them to a scrape. The names of sinks need no quoting: they are small letters, digits, `_` and `-`.
    pub fn render(&self, text: &mut String) {
        let sinks = self.sinks.lock().expect("no thread panics with the lock");
        if sinks.is_empty() {
            return;
        }
        let (name, help, kind) = (PROCESSING_LATENCY.0.name, PROCESSING_LATENCY.0.help, PROCESSING_LATENCY.0.kind);
        let mut lines = format!("# HELP {name} {help}\n# TYPE {name} {}\n", kind.as_str());
        for (sink, Buckets { at_most, count, sum_seconds }) in sinks.iter() {
            for (bound, at_most) in IN_PROCESS.iter().zip(at_most) {
                writeln!(lines, "{name}_bucket{{sink=\"{sink}\",le=\"{bound}\"}} {at_most}").expect(TAKEN);
            }
            writeln!(lines, "{name}_bucket{{sink=\"{sink}\",le=\"+Inf\"}} {count}").expect(TAKEN);
            writeln!(lines, "{name}_sum{{sink=\"{sink}\"}} {sum_seconds}").expect(TAKEN);
            writeln!(lines, "{name}_count{{sink=\"{sink}\"}} {count}").expect(TAKEN);
        }
        text.push_str(&lines);
        text.push('\n');
    }
}

const TAKEN: &str = "a String takes every write";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::scrape::samples;
    use crate::runtime::meter::no_latencies;

    #[test]
    fn the_buckets_are_those_of_the_fine_histogram() {
        let mut micros = no_latencies();
        for (value, count) in [(1, 2), (150, 5), (2_000, 3), (5_000, 1), (90_000_000, 1)] {
            micros.record_n(value, count).expect("within ten minutes");
        }
        let latencies = Latencies::default();
        let mut text = String::new();
        latencies.render(&mut text);
        assert_eq!(text, "");
        latencies.set("out", &no_latencies());
        latencies.set("out", &micros);
        latencies.render(&mut text);
        let samples = samples(&text).expect("the text format");
        let value = |name: &str, le: Option<&str>| {
            let is = |label: Option<&String>| label.map(String::as_str) == le;
            let found = samples.iter().find(|sample| sample.name.ends_with(name) && is(sample.labels.get("le")));
            found.expect("a sample").value
        };
        let at_most = ["0.000001", "0.0001", "0.0002", "0.002", "0.005", "0.01", "10", "+Inf"]
            .map(|le| value("_bucket", Some(le)));
        // 5,000 microseconds are one of four that the fine histogram takes for the same.
        assert_eq!(at_most, [2.0, 2.0, 7.0, 10.0, 10.0, 11.0, 11.0, 12.0]);
        assert_eq!(value("_count", None), 12.0);
        assert!((value("_sum", None) - 90.01).abs() < 0.1, "{text}");
        assert!(samples.iter().all(|sample| sample.labels["sink"] == "out"));
    }
}
