//! `millstream consume`: a topic, readably.

use std::collections::BTreeMap;
use std::io::{BufWriter, ErrorKind, IsTerminal, Write};
use std::process::ExitCode;
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use arrow::temporal_conversions::timestamp_ms_to_datetime;
use clap::{Args, ValueEnum};
use millstream_operators::units::Millis;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Headers};
use rdkafka::types::RDKafkaErrorCode;
use rdkafka::{Message, Offset, TopicPartitionList};
use serde_json::{Value, json};

use super::Run;
use super::broker::Broker;
use crate::kafka::{self, Context};

/// How long one request to the broker may take.
const REQUEST: Duration = Duration::from_secs(10);
/// Without a message for this long, what is buffered is shown.
const SHOW: Duration = Duration::from_millis(50);

/// Prints the messages of a Kafka topic: partition and offset, time, key, value.
#[derive(Debug, Args)]
pub(super) struct Consume {
    /// The topic.
    topic: String,
    #[command(flatten)]
    broker: Broker,
    /// Where to start: `beginning`, `end`, or an offset (of each partition).
    #[arg(long, default_value = "beginning")]
    from: Begin,
    /// Whether to see messages of transactions that are open or were aborted.
    #[arg(long, value_enum, default_value_t = Isolation::Committed)]
    isolation: Isolation,
    /// Prints one JSON object a message, with everything.
    #[arg(long)]
    json: bool,
    /// Shows the headers.
    #[arg(long)]
    headers: bool,
    /// Shows JSON values over several lines.
    #[arg(long)]
    pretty: bool,
    /// Ends after so many messages.
    #[arg(long, value_name = "N")]
    max: Option<u64>,
    /// Ends when no message has come for so long, as in `5s`.
    #[arg(long)]
    timeout: Option<Millis>,
    /// Ends when every message that was there has been shown.
    #[arg(long)]
    until_end: bool,
}

/// Where to start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Begin {
    Beginning,
    End,
    Offset(i64),
}

impl FromStr for Begin {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.parse()) {
            ("beginning", _) => Ok(Begin::Beginning),
            ("end", _) => Ok(Begin::End),
            (_, Ok(offset)) if offset >= 0 => Ok(Begin::Offset(offset)),
            _ => Err("it is `beginning`, `end` or an offset".into()),
        }
    }
}

/// Which messages are seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Isolation {
    /// Those that are committed, or were written without a transaction.
    Committed,
    /// All.
    Uncommitted,
}

impl Run for Consume {
    fn run(self) -> anyhow::Result<ExitCode> {
        let mut config = kafka::consumer(&self.broker.brokers(), "millstream-consume", &self.broker.options()?)?;
        if self.isolation == Isolation::Uncommitted {
            config.set("isolation.level", "read_uncommitted");
        }
        let consumer = kafka::open_consumer(&config, "consume".into())?;
        let left = self.assign(&consumer)?;
        let out = std::io::stdout();
        let view = View { json: self.json, headers: self.headers, pretty: self.pretty, colour: out.is_terminal() };
        match self.print(&consumer, left, &view, BufWriter::new(out.lock())) {
            // The reader of a pipe has seen enough.
            Err(error) if error.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == ErrorKind::BrokenPipe) => {
            }
            other => other?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Consume {
    /// Assigns every partition; gives the end of each that has messages to show.
    fn assign(&self, consumer: &BaseConsumer<Context>) -> anyhow::Result<BTreeMap<i32, i64>> {
        let brokers = self.broker.brokers();
        let count = kafka::find_partitions(consumer, &brokers, &self.topic, REQUEST)?;
        let (mut list, mut left) = (TopicPartitionList::new(), BTreeMap::new());
        for partition in 0..count {
            let watermarks = consumer.fetch_watermarks(&self.topic, partition, REQUEST);
            let (low, high) = watermarks.map_err(|error| kafka::explain(&error, &brokers, kafka::trouble(consumer)))?;
            let begin = match self.from {
                Begin::Beginning => low,
                Begin::End => high,
                Begin::Offset(offset) => offset.clamp(low, high),
            };
            list.add_partition_offset(&self.topic, partition, Offset::Offset(begin))?;
            if begin < high {
                left.insert(partition, high);
            }
        }
        consumer.assign(&list).with_context(|| format!("assign {count} partitions of `{}`", self.topic))?;
        Ok(left)
    }

    /// Prints until there is a reason to end. `left` holds the partitions that have not been shown to their end.
    fn print(
        &self,
        consumer: &BaseConsumer<Context>,
        mut left: BTreeMap<i32, i64>,
        view: &View,
        mut out: impl Write,
    ) -> anyhow::Result<()> {
        let (mut shown, mut last) = (0, Instant::now());
        loop {
            if self.max.is_some_and(|max| shown >= max) || (self.until_end && left.is_empty()) {
                return Ok(out.flush()?);
            }
            match consumer.poll(SHOW) {
                Some(Ok(message)) => {
                    view.write(&mut out, &message)?;
                    (shown, last) = (shown + 1, Instant::now());
                    let (partition, next) = (message.partition(), message.offset() + 1);
                    if left.get(&partition).is_some_and(|end| next >= *end) {
                        left.remove(&partition);
                    }
                }
                // Markers of transactions stand between the last message and the end.
                Some(Err(KafkaError::PartitionEOF(partition))) => drop(left.remove(&partition)),
                // A broker that is away says so on the log, and is waited for.
                Some(Err(error @ KafkaError::MessageConsumptionFatal(_))) => bail!(error),
                Some(Err(KafkaError::MessageConsumption(RDKafkaErrorCode::AutoOffsetReset))) => {
                    bail!("topic `{}`: messages were deleted while they were read", self.topic)
                }
                Some(Err(_)) | None => out.flush()?,
            }
            if self.timeout.is_some_and(|timeout| last.elapsed() >= timeout.duration()) {
                return Ok(out.flush()?);
            }
        }
    }
}

/// How messages are shown.
struct View {
    json: bool,
    headers: bool,
    pretty: bool,
    colour: bool,
}

impl View {
    fn write(&self, out: &mut impl Write, message: &BorrowedMessage<'_>) -> anyhow::Result<()> {
        if self.json { self.object(out, message) } else { self.line(out, message) }
    }

    /// One JSON object a message.
    fn object(&self, out: &mut impl Write, message: &BorrowedMessage<'_>) -> anyhow::Result<()> {
        let headers: Vec<Value> = headers(message).map(|(name, value)| json!([name, value.map(text)])).collect();
        let time = message.timestamp().to_millis();
        let object = json!({
            "topic": message.topic(), "partition": message.partition(), "offset": message.offset(),
            "timestamp": time, "key": message.key().map(text), "headers": headers,
            "value": message.payload().map(|value| serde_json::from_slice::<Value>(value).unwrap_or_else(|_| text(value).into())),
        });
        Ok(writeln!(out, "{object}")?)
    }

    /// Partition and offset, time, key, headers, value.
    fn line(&self, out: &mut impl Write, message: &BorrowedMessage<'_>) -> anyhow::Result<()> {
        let (dim, plain) = if self.colour { ("\x1b[2m", "\x1b[0m") } else { ("", "") };
        write!(out, "{dim}{}/{}", message.partition(), message.offset())?;
        if let Some(time) = message.timestamp().to_millis().and_then(timestamp_ms_to_datetime) {
            write!(out, "  {}", time.format("%Y-%m-%d %H:%M:%S%.3f"))?;
        }
        if let Some(key) = message.key() {
            write!(out, "  {plain}{}{dim}", text(key))?;
        }
        if self.headers {
            for (name, value) in headers(message) {
                write!(out, "  {name}={}", value.map_or_else(|| "null".into(), text))?;
            }
        }
        write!(out, "{plain}  ")?;
        match message.payload() {
            None => writeln!(out, "null")?,
            Some(value) => match serde_json::from_slice::<Value>(value) {
                Ok(value) if self.pretty => writeln!(out, "\n{value:#}")?,
                _ => writeln!(out, "{}", text(value))?,
            },
        }
        Ok(())
    }
}

fn headers<'a>(message: &'a BorrowedMessage<'_>) -> impl Iterator<Item = (&'a str, Option<&'a [u8]>)> {
    message.headers().into_iter().flat_map(|headers| headers.iter()).map(|header| (header.key, header.value))
}

/// Bytes as text; those that are none in hexadecimal, with `0x` in front.
fn text(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().fold("0x".to_owned(), |hex, byte| hex + &format!("{byte:02x}")),
    }
}
