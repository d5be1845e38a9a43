//! What a person sees while a topology runs in a terminal: a progress bar for bounded runs with what has come in and gone out
//! and how long predictions take, and now and then the newest prediction. Nothing is drawn when standard error is not a
//! terminal.
//!
//! The latency is that of the closing summary, from a record's arrival in the process to its sink's writer, of the records
//! since the line before. A replay that goes as fast as it can has full inboxes, so most of it is waiting; with
//! `--speed` it is what a live run would have.

use std::io::{IsTerminal, Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use arrow::temporal_conversions::timestamp_ms_to_datetime;
use hdrhistogram::Histogram;
use indicatif::{ProgressBar, ProgressStyle};

use crate::plan::Plan;
use crate::runtime::job::Job;
use crate::runtime::meter::no_latencies;
use crate::summary::Latency;

/// How often a prediction is shown, and a new latency.
const SHOW_EVERY: Duration = Duration::from_millis(700);

/// The display of a run.
pub struct Display {
    bar: ProgressBar,
    /// The file that the predictions go to, if they go to a file.
    predictions: Option<PathBuf>,
    /// The sinks that the predictions go to.
    sinks: Vec<Arc<str>>,
    lately: Lately,
    /// Latency between the last two lines, if anything was written then.
    latency: Option<Latency>,
    shown: Instant,
}

impl Display {
    /// A display for a run that is about to start; bounded runs have a bar.
    pub fn new(plan: &Plan, bounded: bool) -> Self {
        let bar = match bounded && std::io::stderr().is_terminal() {
            true => ProgressBar::new(0),
            false => ProgressBar::hidden(),
        };
        let template = "{bar:32} {percent:>3}%  {prefix}\n{msg}";
        bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
        Display {
            bar,
            predictions: plan.predictions_file(),
            sinks: plan.prediction_sinks().map(|sink| sink.name.as_str().into()).collect(),
            lately: Lately { before: no_latencies() },
            latency: None,
            shown: Instant::now(),
        }
    }

    /// Draws what has changed.
    pub fn show(&mut self, job: &Job) {
        if self.bar.is_hidden() {
            return;
        }
        let progress = job.progress();
        self.bar.set_length(progress.bytes_total());
        self.bar.set_position(progress.bytes_done());
        let time = progress.event_time().and_then(timestamp_ms_to_datetime);
        self.bar.set_prefix(time.map_or(String::new(), |time| time.format("%Y-%m-%d %H:%M").to_string()));
        let is_due = self.shown.elapsed() >= SHOW_EVERY;
        if is_due {
            self.shown = Instant::now();
            self.latency = self.lately.since(job.board().meters.latencies(&self.sinks));
        }
        let out: u64 = job.board().meters.sinks().iter().map(|(_, sink)| sink.records.load(Relaxed)).sum();
        self.bar.set_message(figures(progress.records(), out, self.latency.as_ref()));
        if let Some(line) = self.predictions.as_ref().filter(|_| is_due).and_then(last_line) {
            self.bar.println(line);
        }
    }

    /// Clears the bar.
    pub fn close(&self) {
        self.bar.finish_and_clear();
    }
}

/// The line below the bar; a terminal of 80 columns has room for it.
fn figures(events: u64, records: u64, latency: Option<&Latency>) -> String {
    let latency = latency.map_or(String::new(), |latency| format!(", latency {latency}"));
    format!("{events} events in, {records} records out{latency}")
}

/// What is new in histograms that only grow.
struct Lately {
    before: Histogram<u64>,
}

impl Lately {
    /// What has come since the call before; `None` if nothing has.
    fn since(&mut self, now: Histogram<u64>) -> Option<Latency> {
        let mut new = now.clone();
        new.subtract(&self.before).expect("a histogram of latencies only grows");
        self.before = now;
        (!new.is_empty()).then(|| Latency::of(&new))
    }
}

/// The last whole line of a file that is being written.
fn last_line(path: &PathBuf) -> Option<String> {
    let mut file = std::fs::File::open(path).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(4096))).ok()?;
    let mut tail = Vec::new();
    file.take(4096).read_to_end(&mut tail).ok()?;
    let text = String::from_utf8_lossy(&tail);
    let whole = text.rfind('\n').map(|end| &text[..end])?;
    let line = whole.rsplit('\n').next()?;
    (!line.is_empty()).then(|| line.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_latency_is_that_of_the_records_since_the_line_before() {
        let (mut lately, mut all) = (Lately { before: no_latencies() }, no_latencies());
        assert_eq!(lately.since(all.clone()), None);
        all.record_n(900, 98).expect("within ten minutes");
        // Three digits are kept: 40,000 is one of 32 microseconds.
        all.record_n(40_000, 2).expect("within ten minutes");
        let first = lately.since(all.clone()).expect("a hundred records");
        assert_eq!((first.count, first.to_string()), (100, "p50 0.90 ms, p99 40.03 ms".into()));
        // One more, which is all there is of the time since.
        all.record(2_000).expect("within ten minutes");
        let second = lately.since(all.clone()).expect("one record");
        assert_eq!((second.count, second.p50, second.p99), (1, 2_000, 2_000));
        assert_eq!(lately.since(all), None);
    }

    #[test]
    fn the_line_fits_into_a_terminal() {
        let latency = Latency { count: 1, p50: 12_400, p99: 1_031_250, ..Latency::default() };
        let line = figures(1_027_013, 1_014_006, Some(&latency));
        assert_eq!(line, "1027013 events in, 1014006 records out, latency p50 12.40 ms, p99 1031.25 ms");
        assert!(line.len() < 80);
        assert_eq!(figures(3, 0, None), "3 events in, 0 records out");
    }
}
