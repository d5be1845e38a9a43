//! `millstream produce`: files into a topic.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use indicatif::{HumanBytes, HumanCount, ProgressBar, ProgressStyle};
use millstream_operators::units::{Millis, PerSecond};
use serde_json::json;

use self::message::{Columns, Message, Messages};
use super::broker::Broker;
use super::{Run, print, print_json, say};
use crate::kafka::{self, ClientError};
use crate::replay::{Pace, Pacer};
use crate::sinks::kafka::{Delivery, KafkaSink};
use crate::sinks::{BatchBytes, Commits, Open, Records, SinkError, SinkTarget, SinkWriter};
use crate::sources::file::{self, SourceFile};

mod message;

/// Records handed to the producer at once.
const BATCH: usize = 512;
/// How long to look for a broker.
const REQUEST: Duration = Duration::from_secs(10);
/// How long to wait for the broker to take or acknowledge something before the progress bar is drawn again.
const PAUSE: Duration = Duration::from_millis(1);

/// Feeds a Kafka topic from files: JSON lines as they are, each row of CSV and Parquet as a JSON object.
#[derive(Debug, Args)]
pub(super) struct Produce {
    /// Files or globs: .jsonl, .ndjson, .json, .csv or .parquet.
    #[arg(required = true)]
    files: Vec<String>,
    /// The topic.
    #[arg(long)]
    topic: String,
    #[command(flatten)]
    broker: Broker,
    /// Columns that make the message's key, with commas between; messages of one key stay in order.
    #[arg(long, value_delimiter = ',')]
    key: Vec<String>,
    /// The column with the event time: messages of all files are sent in its order (they are sorted in memory).
    #[arg(long)]
    event_time: Option<String>,
    /// Unit of an event time that is a number.
    #[arg(long, value_enum, default_value_t = Unit::Ms)]
    unit: Unit,
    /// Messages per second, as in `1000/s`. Default: as fast as the broker takes them.
    #[arg(long, conflicts_with = "speed")]
    rate: Option<PerSecond>,
    /// Plays the events by their event time, this many times as fast as they happened.
    #[arg(long, requires = "event_time", value_parser = super::speed)]
    speed: Option<f64>,
    /// Creates the topic with so many partitions if it does not exist.
    #[arg(long, value_name = "PARTITIONS", value_parser = clap::value_parser!(i32).range(1..=10_000))]
    create: Option<i32>,
    /// A text that stands for null in CSV files, besides the empty one (such as NA).
    #[arg(long, value_name = "TEXT")]
    null: Vec<String>,
    /// Prints the summary as JSON.
    #[arg(long)]
    json: bool,
}

/// The unit of a time that is a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Unit {
    /// Seconds since 1970.
    S,
    /// Milliseconds since 1970.
    Ms,
    /// Microseconds since 1970.
    Us,
    /// Nanoseconds since 1970.
    Ns,
}

impl Run for Produce {
    fn run(self) -> anyhow::Result<ExitCode> {
        let files = file::find_files("produce", Path::new(""), &self.files)?;
        let partitions = self.prepare_topic()?;
        let columns = Columns::new(&self.key, self.event_time.as_deref(), self.unit, &self.null);
        let begin = Instant::now();
        let bar = progress(&files)?;
        let mut feed = Feed::new(self.open()?, self.pace(), &self.key, bar.clone());
        if self.event_time.is_some() {
            for message in sorted(&files, &columns, &bar)? {
                feed.send(message)?;
            }
        } else {
            for file in &files {
                let mut messages = Messages::open(file, &columns)?;
                while let Some(message) = messages.next()? {
                    feed.send(message)?;
                }
            }
        }
        let sent = feed.finish()?;
        bar.finish_and_clear();
        self.report(&sent, partitions, begin.elapsed())?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Produce {
    /// Looks for the topic, creating it if that was asked for; gives its number of partitions.
    fn prepare_topic(&self) -> anyhow::Result<i32> {
        let brokers = &self.broker.brokers();
        let options = self.broker.options()?;
        let asking = kafka::consumer(brokers, "millstream-produce", &options)?;
        let asking = kafka::open_consumer(&asking, "produce".into())?;
        // Asked before anything is created: a consumer knows why a broker does not let it in, an admin client does not.
        match (kafka::find_partitions(&asking, brokers, &self.topic, REQUEST), self.create) {
            (Err(ClientError::NoTopic { .. }), Some(partitions)) => {
                kafka::create_topic(&kafka::producer(brokers, "produce", &options)?, &self.topic, partitions)?;
            }
            (Ok(_), Some(_)) if !self.json => {
                say(&format!("topic `{}` exists already; its partitions stay as they are\n", self.topic));
            }
            (found, _) => return Ok(found?),
        }
        let since = Instant::now();
        loop {
            match kafka::find_partitions(&asking, brokers, &self.topic, REQUEST) {
                // A topic that has just been created is not known to every broker yet.
                Err(ClientError::NoTopic { .. })
                    if self.create.is_some() && since.elapsed() < Duration::from_secs(5) =>
                {
                    std::thread::sleep(Duration::from_millis(100));
                }
                other => return Ok(other?),
            }
        }
    }

    fn open(&self) -> anyhow::Result<Box<dyn SinkWriter>> {
        let sink = KafkaSink {
            delivery: Delivery::AtLeastOnce,
            linger: Millis(5),
            headers: false,
            options: self.broker.options()?,
            ..KafkaSink::new(&self.broker.brokers(), &self.topic)
        };
        let (name, job, folder) = ("produce".to_owned(), "produce".to_owned(), PathBuf::new());
        let commits = Commits::default();
        let open = Open {
            name,
            job,
            worker: 0,
            workers: 1,
            folder,
            dead_letters: false,
            resumed: false,
            position: None,
            commits,
            batch_bytes: BatchBytes::default(),
        };
        sink.open(open).map_err(plain)
    }

    fn pace(&self) -> Pace {
        match (self.rate, self.speed) {
            (Some(rate), _) => Pace::Rate(rate),
            (_, Some(factor)) => Pace::Lapse(factor),
            _ => Pace::Fastest,
        }
    }

    fn report(&self, sent: &Sent, partitions: i32, took: Duration) -> anyhow::Result<()> {
        let (topic, brokers, seconds) = (&self.topic, self.broker.brokers(), took.as_secs_f64());
        if self.json {
            return print_json(&json!({
                "topic": topic, "brokers": brokers, "partitions": partitions, "messages": sent.messages,
                "bytes": sent.bytes, "seconds": seconds,
                "first_event_time": sent.first.map(message::timestamp), "last_event_time": sent.last.map(message::timestamp),
            }));
        }
        let rate = HumanCount((sent.messages as f64 / seconds.max(0.001)) as u64);
        let (messages, bytes) = (HumanCount(sent.messages), HumanBytes(sent.bytes));
        let mut said = format!(
            "{messages} messages ({bytes}) to topic `{topic}` ({partitions} partitions) in {seconds:.1} s: {rate}/s\n"
        );
        if let (Some(first), Some(last)) = (sent.first, sent.last) {
            said += &format!("event time {} to {}\n", message::timestamp(first), message::timestamp(last));
        }
        Ok(print(&said)?)
    }
}

/// The sink's error without the name of a sink: here, there is only one.
fn plain(error: SinkError) -> anyhow::Error {
    match error {
        SinkError::Kafka { detail, .. } => anyhow::Error::msg(detail),
        other => other.into(),
    }
}

/// A bar over the bytes of all files, on a terminal.
fn progress(files: &[SourceFile]) -> anyhow::Result<ProgressBar> {
    let sizes = files.iter().map(|file| std::fs::metadata(&file.path).map_or(0, |metadata| metadata.len()));
    let bar = if std::io::stderr().is_terminal() { ProgressBar::new(sizes.sum()) } else { ProgressBar::hidden() };
    let template = "{bar:32} {percent:>3}%  {msg}  {elapsed} (still {eta})";
    bar.set_style(ProgressStyle::with_template(template)?);
    Ok(bar)
}

/// All messages of all files by event time; those of one time stay in the order of the files.
fn sorted(files: &[SourceFile], columns: &Columns, bar: &ProgressBar) -> anyhow::Result<Vec<Message>> {
    let mut all = Vec::new();
    for file in files {
        bar.set_message(format!("reading {}", file.name));
        let mut messages = Messages::open(file, columns)?;
        while let Some(message) = messages.next()? {
            all.push(message);
        }
    }
    all.sort_by_key(|message| message.time);
    // Sending is what takes time from here on.
    bar.set_length(all.iter().map(|message| message.file_bytes).sum());
    Ok(all)
}

/// What has been sent.
#[derive(Debug, Default)]
struct Sent {
    messages: u64,
    bytes: u64,
    first: Option<i64>,
    last: Option<i64>,
}

/// Sends messages at a pace.
struct Feed {
    writer: Box<dyn SinkWriter>,
    pacer: Pacer,
    keyed: bool,
    records: Records,
    bar: ProgressBar,
    sent: Sent,
}

impl Feed {
    fn new(writer: Box<dyn SinkWriter>, pace: Pace, key: &[String], bar: ProgressBar) -> Self {
        let (records, sent) = (Records::default(), Sent::default());
        Feed { writer, pacer: Pacer::new(pace), keyed: !key.is_empty(), records, bar, sent }
    }

    fn send(&mut self, message: Message) -> anyhow::Result<()> {
        let time = message.time.unwrap_or_default();
        if self.pacer.must_wait(time) {
            // What is due goes out before the wait.
            self.hand_over()?;
            self.pacer.wait(time, &AtomicBool::new(false));
        }
        self.pacer.count();
        self.records.values.extend_from_slice(&message.value);
        self.records.value_ends.push(self.records.values.len());
        if self.keyed {
            self.records.keys.extend_from_slice(&message.key);
            self.records.key_ends.push(self.records.keys.len());
        }
        self.sent.messages += 1;
        self.sent.bytes += message.value.len() as u64;
        self.sent.first = self.sent.first.or(message.time);
        self.sent.last = message.time.or(self.sent.last);
        self.bar.inc(message.file_bytes);
        if self.records.len() >= BATCH { self.hand_over() } else { Ok(()) }
    }

    fn hand_over(&mut self) -> anyhow::Result<()> {
        let mut from = 0;
        while from < self.records.len() {
            from = self.writer.write(0, &self.records, from).map_err(plain)?;
            if from < self.records.len() {
                std::thread::sleep(PAUSE);
            }
        }
        self.records = Records::default();
        if !self.bar.is_hidden() {
            self.bar.set_message(format!("{} messages", HumanCount(self.sent.messages)));
        }
        Ok(())
    }

    /// Sends the rest and waits until the broker has everything.
    fn finish(mut self) -> anyhow::Result<Sent> {
        self.hand_over()?;
        self.writer.close_epoch(0).map_err(plain)?;
        while self.writer.durable().map_err(plain)?.is_none() {
            std::thread::sleep(PAUSE);
        }
        Ok(self.sent)
    }
}
