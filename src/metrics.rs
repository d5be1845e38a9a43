//! Metrics: one catalogue of everything the engine says about itself, and the only way to say it.
//!
//! A metric exists in [`catalogue`] first: name, type, labels, unit and help stand in one table, from which come the
//! typed constants that the rest of the engine uses, the `# HELP` and `# TYPE` lines of a scrape, the page
//! `docs/metrics.md` and the check of a scrape against the catalogue ([`scrape::problems`]). A misspelt metric or a
//! missing label does not compile.
//!
//! ```
//! use millstream::metrics::catalogue::SOURCE_RECORDS;
//! // Once, when the source starts; the handle is an atomic behind a pointer.
//! let records = SOURCE_RECORDS.of(["flights", "flights.departures"]);
//! // Once a batch, never once a record.
//! records.increment(256);
//! ```
//!
//! [`install`] must come before the first handle is made: a handle made earlier counts into the void.

use std::fmt;
use std::sync::OnceLock;

use ::metrics::{Key, Label, Level, Metadata, Recorder, SharedString, Unit as CrateUnit, with_recorder};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};

pub mod catalogue;
pub mod latency;
pub mod log;
pub mod process;
pub mod reference;
pub mod scrape;

pub use ::metrics::{Counter as CounterHandle, Gauge as GaugeHandle, Histogram as HistogramHandle};

/// One entry of the catalogue.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Metric {
    /// `millstream_<subsystem>_<what>_<unit>`, a counter with `_total` at its end.
    pub name: &'static str,
    /// Counter, gauge or histogram.
    pub kind: MetricKind,
    /// The labels, in the order of the values given to `of`.
    pub labels: &'static [&'static str],
    /// What one means.
    pub unit: Unit,
    /// The part of a job that emits it.
    pub part: Part,
    /// When the first series appears.
    pub seen: Seen,
    /// What it says, in a sentence or two, for the person who reads the dashboard.
    pub help: &'static str,
}

/// The type of a metric, as Prometheus knows it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum MetricKind {
    /// Only grows; starts again at zero with the process.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts observations in these buckets (upper bounds, in the metric's unit).
    Histogram(&'static [f64]),
}

impl MetricKind {
    /// The name in a `# TYPE` line.
    pub fn as_str(self) -> &'static str {
        match self {
            MetricKind::Counter => "counter",
            MetricKind::Gauge => "gauge",
            MetricKind::Histogram(_) => "histogram",
        }
    }
}

/// The unit of a metric. Base units only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Things: records, rows, files, calls, epochs.
    Count,
    /// Bytes.
    Bytes,
    /// Seconds.
    Seconds,
    /// Seconds since 1970-01-01T00:00:00Z.
    Timestamp,
    /// A share between 0 and 1.
    Ratio,
    /// A number without a unit: a score, a loss, an area.
    Number,
    /// Always 1: the labels are the message.
    Info,
}

/// The part of a job that emits a metric: a job without the part has no series of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// Every job.
    Job,
    /// The workers of the fast lane.
    Workers,
    /// Sources of every kind.
    Sources,
    /// Sources and sinks that speak to Kafka.
    Kafka,
    /// Operators of every kind.
    Operators,
    /// Feature groups served by the online store.
    OnlineStore,
    /// Models.
    Models,
    /// Drift detectors.
    Drift,
    /// Outcomes: predictions joined to labels.
    Outcomes,
    /// Sinks.
    Sinks,
    /// Tables of the offline store.
    OfflineStore,
    /// The HTTP interface.
    Http,
    /// The process, from `/proc`.
    Process,
}

/// When the first series of a metric appears.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// As soon as the job's part runs.
    FromStart,
    /// Once there is something to say: an error, a rejected record, a broker's answer, a label that arrived.
    OnceItHappens,
}

/// A counter of the catalogue with `N` labels.
#[derive(Debug, Clone, Copy)]
pub struct Counter<const N: usize>(Metric);
/// A gauge of the catalogue with `N` labels.
#[derive(Debug, Clone, Copy)]
pub struct Gauge<const N: usize>(Metric);
/// A histogram of the catalogue with `N` labels.
#[derive(Debug, Clone, Copy)]
pub struct Histogram<const N: usize>(Metric);

static METADATA: Metadata<'static> = Metadata::new("millstream", Level::INFO, None);

/// The series of `metric` with these label values.
fn series<const N: usize>(metric: &Metric, values: [&str; N]) -> Key {
    let labels = metric.labels.iter().zip(values).map(|(name, value)| Label::new(*name, value.to_owned()));
    Key::from_parts(metric.name, labels.collect::<Vec<_>>())
}

impl<const N: usize> Counter<N> {
    /// The handle of the series with these label values, in the order of [`Metric::labels`]. Keep it: finding it hashes.
    pub fn of(&self, values: [&str; N]) -> CounterHandle {
        with_recorder(|recorder| recorder.register_counter(&series(&self.0, values), &METADATA))
    }
}

impl<const N: usize> Gauge<N> {
    /// The handle of the series with these label values, in the order of [`Metric::labels`]. Keep it: finding it hashes.
    pub fn of(&self, values: [&str; N]) -> GaugeHandle {
        with_recorder(|recorder| recorder.register_gauge(&series(&self.0, values), &METADATA))
    }
}

impl<const N: usize> Histogram<N> {
    /// The handle of the series with these label values, in the order of [`Metric::labels`]. Keep it: finding it hashes.
    pub fn of(&self, values: [&str; N]) -> HistogramHandle {
        with_recorder(|recorder| recorder.register_histogram(&series(&self.0, values), &METADATA))
    }
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Unit::Count => "count",
            Unit::Bytes => "bytes",
            Unit::Seconds => "seconds",
            Unit::Timestamp => "seconds since 1970",
            Unit::Ratio => "share, 0 to 1",
            Unit::Number => "number",
            Unit::Info => "1",
        })
    }
}

/// Renders the metrics of this process as a scrape.
#[derive(Debug, Clone)]
pub struct Exporter {
    handle: PrometheusHandle,
    /// The latencies of sinks.
    pub latencies: latency::Latencies,
}

impl Exporter {
    /// The scrape: the text format of Prometheus, version 0.0.4, with the sinks' latencies and the process's own figures at
    /// the end.
    pub fn render(&self) -> String {
        let mut text = self.handle.render();
        self.latencies.render(&mut text);
        process::render(&mut text);
        text
    }

    /// Moves the observations of histograms into their buckets. Until then each observation takes 8 bytes: the
    /// job's loop calls this every second, whether somebody scrapes or not.
    pub fn fold(&self) {
        self.handle.run_upkeep();
    }
}

/// Makes the recorder of this process, once; later calls give the same one (several jobs of one process share it).
///
/// # Panics
/// If another library has set a global recorder: then nothing the engine says could be read.
pub fn install() -> Exporter {
    static EXPORTER: OnceLock<Exporter> = OnceLock::new();
    let exporter = EXPORTER.get_or_init(|| {
        let recorder = recorder();
        let handle = recorder.handle();
        ::metrics::set_global_recorder(recorder).expect("nothing else in the process records metrics");
        Exporter { handle, latencies: latency::Latencies::default() }
    });
    exporter.clone()
}

/// A recorder with the catalogue's buckets and help. Tests put it in place for their thread with
/// `metrics::with_local_recorder`.
pub fn recorder() -> PrometheusRecorder {
    let mut builder = PrometheusBuilder::new();
    for metric in catalogue::CATALOGUE {
        if let MetricKind::Histogram(buckets) = metric.kind {
            let matcher = Matcher::Full(metric.name.to_owned());
            builder = builder.set_buckets_for_metric(matcher, buckets).expect("the catalogue has no empty buckets");
        }
    }
    let recorder = builder.build_recorder();
    for metric in catalogue::CATALOGUE.iter().filter(|metric| metric.part != Part::Process) {
        describe(&recorder, metric);
    }
    recorder
}

fn describe(recorder: &PrometheusRecorder, metric: &Metric) {
    let unit = match metric.unit {
        Unit::Bytes => Some(CrateUnit::Bytes),
        Unit::Seconds | Unit::Timestamp => Some(CrateUnit::Seconds),
        Unit::Count => Some(CrateUnit::Count),
        Unit::Ratio | Unit::Number | Unit::Info => None,
    };
    let (name, help) = (metric.name.into(), SharedString::const_str(metric.help));
    match metric.kind {
        MetricKind::Counter => recorder.describe_counter(name, unit, help),
        MetricKind::Gauge => recorder.describe_gauge(name, unit, help),
        MetricKind::Histogram(_) => recorder.describe_histogram(name, unit, help),
    }
}

#[cfg(test)]
mod tests {
    use super::catalogue::*;
    use super::*;

    #[test]
    fn names_follow_the_convention() {
        for metric in CATALOGUE {
            let Metric { name, kind, unit, part, .. } = *metric;
            let base = name.strip_suffix("_total").unwrap_or(name);
            assert!(name.starts_with(if part == Part::Process { "process_" } else { "millstream_" }), "{name}");
            assert_eq!(kind == MetricKind::Counter, name.ends_with("_total"), "{name}: only counters end in _total");
            let ends = match unit {
                Unit::Bytes => base.ends_with("_bytes"),
                Unit::Seconds => base.ends_with("_seconds"),
                Unit::Timestamp => base.ends_with("_timestamp_seconds") || base == "process_start_time_seconds",
                Unit::Ratio => base.ends_with("_ratio"),
                Unit::Info => base.ends_with("_info"),
                Unit::Count | Unit::Number => !base.ends_with("_seconds") && !base.ends_with("_bytes"),
            };
            assert!(ends, "{name}: the unit stands at the end");
            assert!(metric.help.ends_with('.'), "{name}: help is a sentence");
            if let MetricKind::Histogram(buckets) = kind {
                assert!(buckets.is_sorted_by(|a, b| a < b) && !buckets.is_empty(), "{name}: buckets rise");
            }
        }
        let mut names: Vec<_> = CATALOGUE.iter().map(|metric| metric.name).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), CATALOGUE.len(), "each name once");
    }

    #[test]
    fn a_scrape_has_help_type_labels_and_fixed_buckets() {
        let recorder = recorder();
        let exporter = Exporter { handle: recorder.handle(), latencies: latency::Latencies::default() };
        ::metrics::with_local_recorder(&recorder, || {
            SOURCE_RECORDS.of(["flights", "departures"]).increment(3);
            EPOCH_CURRENT.of([]).set(7.0);
            HTTP_REQUEST_DURATION.of(["/metrics"]).record(0.0015);
        });
        exporter.fold();
        let text = exporter.render();
        assert!(text.contains("# TYPE millstream_source_records_total counter"), "{text}");
        assert!(text.contains(r#"millstream_source_records_total{source="flights",topic="departures"} 3"#), "{text}");
        assert!(text.contains("millstream_epoch_current 7"), "{text}");
        assert!(
            text.contains(r#"millstream_http_request_duration_seconds_bucket{route="/metrics",le="0.001"} 0"#),
            "{text}"
        );
        assert!(
            text.contains(r#"millstream_http_request_duration_seconds_bucket{route="/metrics",le="0.005"} 1"#),
            "{text}"
        );
        assert!(text.contains("process_resident_memory_bytes "), "{text}");
    }
}
