//! What a run did: the closing summary, for people and, as JSON, for scripts.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::Ordering::Relaxed;

use hdrhistogram::Histogram;
use millstream_operators::reject::Reason;
use serde::Serialize;

use crate::runtime::meter::Meters;
use crate::slow::{ALL, OutcomeCounts, SlowReport};
use crate::sources::Gap;
use crate::supervisor::Restarts;

/// What a run did.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Summary {
    /// Name of the job.
    pub job: String,
    /// How it ended: `end_of_input`, `stopped` or `failed`.
    pub ended: String,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The process's exit code, if it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<u8>,
    /// How often the job's supervisor has started it again, and why. What follows is of the last start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restarts: Option<Restarts>,
    /// The last epoch, durable in every sink.
    pub epoch: u64,
    /// Seconds from start to end.
    pub duration_seconds: f64,
    /// Records that the start has gone on without, since they were gone.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub gaps: Vec<Gap>,
    /// Events in, by source.
    pub events: BTreeMap<String, u64>,
    /// Predictions, by model.
    pub predictions: BTreeMap<String, u64>,
    /// Rejected records, by stage and reason.
    pub rejects: BTreeMap<String, BTreeMap<String, u64>>,
    /// Late records dropped, by source.
    pub late: BTreeMap<String, u64>,
    /// Records dropped by filters, by node.
    pub filtered: BTreeMap<String, u64>,
    /// Records dropped because they had gone on before, by node.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub duplicates: BTreeMap<String, u64>,
    /// Records out, by sink.
    pub sinks: BTreeMap<String, u64>,
    /// Drift signals, by detector.
    pub drift_signals: BTreeMap<String, u64>,
    /// Values that a detector could not use, by detector that met some.
    pub drift_skipped: BTreeMap<String, u64>,
    /// What each outcome has seen, and what stands in its window.
    pub outcomes: BTreeMap<String, OutcomeCounts>,
    /// Quality by outcome and slice (`all` is everything).
    pub quality: BTreeMap<String, BTreeMap<String, Quality>>,
    /// Microseconds from a record's arrival in the process to its sink's writer, by sink.
    pub latency_micros: BTreeMap<String, Latency>,
    /// Largest resident memory of the process.
    pub memory_peak_bytes: u64,
}

/// Quality of predictions whose labels have arrived.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Quality {
    /// Predictions with a label.
    pub joined: u64,
    /// Share of positive labels.
    pub base_rate: Option<f64>,
    /// Area under the ROC curve; none without both classes.
    pub auc: Option<f64>,
    /// Mean log loss.
    pub log_loss: Option<f64>,
    /// Mean squared error of the score.
    pub brier: Option<f64>,
    /// Expected calibration error.
    pub calibration_error: Option<f64>,
}

/// Percentiles of a latency.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Latency {
    /// Number of records.
    pub count: u64,
    /// Median.
    pub p50: u64,
    /// 99th percentile.
    pub p99: u64,
    /// 99.9th percentile.
    pub p999: u64,
    /// Largest.
    pub max: u64,
}

impl Latency {
    /// The percentiles of a histogram.
    pub fn of(histogram: &Histogram<u64>) -> Self {
        Latency {
            count: histogram.len(),
            p50: histogram.value_at_quantile(0.5),
            p99: histogram.value_at_quantile(0.99),
            p999: histogram.value_at_quantile(0.999),
            max: histogram.max(),
        }
    }
}

/// Median and 99th percentile, for people.
impl fmt::Display for Latency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "p50 {:.2} ms, p99 {:.2} ms", self.p50 as f64 / 1e3, self.p99 as f64 / 1e3)
    }
}

impl Summary {
    /// Fills in what the meters have counted. `models` names the streams that are predictions.
    pub fn count(&mut self, meters: &Meters, models: &[&str]) {
        for (name, source) in meters.sources() {
            self.events.insert(name.to_string(), source.records.load(Relaxed));
        }
        for (name, node) in meters.nodes() {
            let name = name.to_string();
            if models.contains(&name.as_str()) {
                self.predictions.insert(name.clone(), node.records_out.load(Relaxed));
            }
            for (reason, count) in Reason::ALL.iter().zip(&node.rejects) {
                let count = count.load(Relaxed);
                if count > 0 {
                    self.rejects.entry(name.clone()).or_default().insert(reason.as_str().into(), count);
                }
            }
            for (totals, count) in [
                (&mut self.late, &node.late),
                (&mut self.filtered, &node.filtered),
                (&mut self.duplicates, &node.duplicates),
            ] {
                if count.load(Relaxed) > 0 {
                    totals.insert(name.clone(), count.load(Relaxed));
                }
            }
        }
        for (name, sink) in meters.sinks() {
            self.sinks.insert(name.to_string(), sink.records.load(Relaxed));
            let latency = sink.latency.lock().expect("no thread panics with the lock");
            self.latency_micros.insert(name.to_string(), Latency::of(&latency));
        }
    }
}

impl Summary {
    /// Fills in what the slow lane has found.
    pub fn judge(&mut self, slow: &SlowReport) {
        for (name, counts) in &slow.detectors {
            self.drift_signals.insert(name.clone(), counts.warnings + counts.drifts);
            if counts.skipped > 0 {
                self.drift_skipped.insert(name.clone(), counts.skipped);
            }
        }
        self.outcomes = slow.outcomes.clone();
        for (outcome, slices) in &slow.quality {
            let figures = slices.iter().map(|(slice, quality)| {
                let quality = Quality {
                    joined: quality.count,
                    base_rate: quality.base_rate,
                    auc: quality.auc,
                    log_loss: quality.log_loss,
                    brier: quality.brier,
                    calibration_error: quality.calibration_error,
                };
                (slice.clone(), quality)
            });
            self.quality.insert(outcome.clone(), figures.collect());
        }
    }
}

/// Writes the summary for people.
impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {} after {:.1} s, epoch {}", self.job, self.ended, self.duration_seconds, self.epoch)?;
        if let Some(end) = self.restarts.iter().filter_map(|restarts| restarts.newest.back()).next() {
            let count = self.restarts.as_ref().map_or(0, |restarts| restarts.count);
            writeln!(f, "  started again  {count} times, last after {}", end.why)?;
        }
        for gap in &self.gaps {
            writeln!(f, "  missed         {}: {gap}", gap.source)?;
        }
        for (title, counts) in [
            ("events", &self.events),
            ("predictions", &self.predictions),
            ("late", &self.late),
            ("filtered", &self.filtered),
            ("duplicates", &self.duplicates),
            ("written", &self.sinks),
            ("drift signals", &self.drift_signals),
            ("drift skipped", &self.drift_skipped),
        ] {
            if !counts.is_empty() {
                let counts: Vec<String> = counts.iter().map(|(name, count)| format!("{name} {count}")).collect();
                writeln!(f, "  {title:14} {}", counts.join(", "))?;
            }
        }
        for (stage, reasons) in &self.rejects {
            let reasons: Vec<String> = reasons.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
            writeln!(f, "  rejects        {stage}: {}", reasons.join(", "))?;
        }
        for (outcome, counts) in &self.outcomes {
            let OutcomeCounts { predictions, skipped_scores, skipped_keys, labels, standing, .. } = counts;
            writeln!(
                f,
                "  outcomes       {outcome}: {predictions} predictions, {} skipped, {} corrected, {} wait for a label",
                skipped_scores + skipped_keys,
                labels.correction,
                standing.pending
            )?;
        }
        for (outcome, slices) in &self.quality {
            if let Some(all) = slices.get(ALL) {
                let figure = |value: Option<f64>| value.map_or("-".into(), |value| format!("{value:.4}"));
                let (auc, loss, error) = (figure(all.auc), figure(all.log_loss), figure(all.calibration_error));
                let joined = all.joined;
                writeln!(
                    f,
                    "  quality        {outcome}: AUC {auc}, log loss {loss}, calibration error {error} ({joined} labels)"
                )?;
            }
        }
        for (sink, latency) in self.latency_micros.iter().filter(|(_, latency)| latency.count > 0) {
            writeln!(f, "  latency        {sink}: {latency} from arrival to sink")?;
        }
        writeln!(f, "  memory         {} MiB at most", self.memory_peak_bytes >> 20)
    }
}

/// The largest resident memory of this process so far, in bytes; 0 where the system does not say.
pub fn memory_peak_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kilobytes = line.and_then(|line| line.split_whitespace().next()).and_then(|number| number.parse::<u64>().ok());
    kilobytes.unwrap_or(0) * 1024
}
