//! What a person sees while a topology runs in a terminal: a progress bar for bounded runs, and now and then the newest
//! prediction. Nothing is drawn when standard error is not a terminal.

use std::io::{IsTerminal, Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use arrow::temporal_conversions::timestamp_ms_to_datetime;
use indicatif::{ProgressBar, ProgressStyle};

use crate::plan::Plan;
use crate::runtime::job::Job;

/// How often a prediction is shown.
const SHOW_EVERY: Duration = Duration::from_millis(700);

/// The display of a run.
pub struct Display {
    bar: ProgressBar,
    /// The file that the predictions go to, if they go to a file.
    predictions: Option<PathBuf>,
    shown: Instant,
}

impl Display {
    /// A display for a run that is about to start; bounded runs have a bar.
    pub fn new(plan: &Plan, bounded: bool) -> Self {
        let bar = match bounded && std::io::stderr().is_terminal() {
            true => ProgressBar::new(0),
            false => ProgressBar::hidden(),
        };
        let template = "{bar:32} {percent:>3}%  {msg}";
        bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
        Display { bar, predictions: plan.predictions_file(), shown: Instant::now() }
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
        let date = time.map_or(String::new(), |time| time.format("%Y-%m-%d %H:%M").to_string());
        let out: u64 = job.board().meters.sinks().iter().map(|(_, sink)| sink.records.load(Relaxed)).sum();
        self.bar.set_message(format!("{date}  {} events in, {out} records out", progress.records()));
        if self.shown.elapsed() >= SHOW_EVERY {
            self.shown = Instant::now();
            if let Some(line) = self.predictions.as_ref().and_then(last_line) {
                self.bar.println(line);
            }
        }
    }

    /// Clears the bar.
    pub fn close(&self) {
        self.bar.finish_and_clear();
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
