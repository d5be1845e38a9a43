//! Runs one system under test through legs on Apache Kafka and prints one JSON line a leg.
//!
//! `bench NAME KEYS LEGS COMMAND...`, legs separated by commas:
//!
//! - `T<n>`: throughput. n events are loaded while the system stands still (the first leg: before it starts), then it
//!   works; CPU is taken from 30 % to 100 % of the outputs.
//! - `L<rate>x<seconds>`: latency, open loop. Event i is due at start + i / rate and is sent then, whatever the system
//!   does; latency is the reader's clock minus the due time. The first quarter is not counted.
//! - `K<rate>x<seconds>`: recovery. Events come as in `L`; half way the system is killed (SIGKILL) and started again at
//!   once. Measured is the time from the kill to the first output of an event that was sent after it.
//!
//! `bench ratios FILE` puts the rows of a run, which are such lines, beside each other.
//!
//! Environment: KAFKA_BROKERS, SAMPLE (file for every 97th output), LOG (file for the system's output).

mod reader;
mod system;

use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use hdrhistogram::Histogram;
use millstream_benches::*;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::producer::BaseProducer;

use reader::{Reader, now_nanos};
use system::System;

/// Longest time a leg may take.
const LEG: Duration = Duration::from_secs(240);

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [word, file] = arguments.as_slice()
        && word == "ratios"
    {
        let rows = std::fs::read_to_string(file).with_context(|| format!("read {file}"))?;
        print!("{}", ratios::tables(&rows)?);
        return Ok(());
    }
    let [name, keys, legs, command @ ..] = arguments.as_slice() else {
        bail!("usage: bench NAME KEYS LEGS COMMAND..., or bench ratios FILE");
    };
    let mut bench = Bench::new(name, keys.parse().context("KEYS is a number")?, command)?;
    for leg in legs.split(',') {
        match leg.split_at(1) {
            ("T", events) => bench.throughput(events.parse().context("T<events>")?)?,
            ("L", rest) => {
                let (rate, seconds) = rest.split_once('x').context("L<rate>x<seconds>")?;
                bench.latency(rate.parse()?, seconds.parse()?)?;
            }
            ("K", rest) => {
                let (rate, seconds) = rest.split_once('x').context("K<rate>x<seconds>")?;
                bench.recovery(rate.parse()?, seconds.parse()?)?;
            }
            _ => bail!("unknown leg `{leg}`; use T<events>, L<rate>x<seconds> or K<rate>x<seconds>"),
        }
    }
    Ok(())
}

struct Bench {
    name: String,
    keys: u64,
    command: Vec<String>,
    group: String,
    system: Option<System>,
    reader: Reader,
    bulk: BaseProducer,
    live: BaseProducer,
    /// Events below this number have been handed to Kafka.
    next: u64,
}

impl Bench {
    fn new(name: &str, keys: u64, command: &[String]) -> anyhow::Result<Bench> {
        make_topics()?;
        let producer = |linger: &str| -> anyhow::Result<BaseProducer> {
            Ok(client()
                .set("linger.ms", linger)
                .set("partitioner", "murmur2_random")
                .set("enable.idempotence", "true")
                .set("queue.buffering.max.messages", "500000")
                .set("batch.size", "262144")
                .create()?)
        };
        Ok(Bench {
            name: name.into(),
            keys,
            command: command.to_vec(),
            group: format!("{name}-{}", now_nanos() / 1_000_000),
            system: None,
            reader: Reader::start()?,
            bulk: producer("20")?,
            live: producer("1")?,
            next: 0,
        })
    }

    fn throughput(&mut self, events: u64) -> anyhow::Result<()> {
        let began = self.reader.shared.distinct.load(Relaxed);
        if let Some(system) = &self.system {
            system.pause()?;
        }
        let (mut key, mut value) = (Vec::new(), Vec::new());
        for i in self.next..self.next + events {
            event(i, self.keys, &mut key, &mut value);
            send(&self.bulk, TOPIC_IN, &key, &value)?;
        }
        drain(&self.bulk);
        self.next += events;
        let start = Instant::now();
        match &self.system {
            Some(system) => system.go_on()?,
            None => self.system = Some(System::start(&self.command, &self.group)?),
        }
        let system = self.system.as_mut().context("a system was just started")?;
        let mut warm = None;
        loop {
            std::thread::sleep(Duration::from_millis(2));
            let done = self.reader.shared.distinct.load(Relaxed) - began;
            if warm.is_none() && done * 10 >= events * 3 {
                warm = Some((system.cpu_seconds()?, start.elapsed(), done));
            }
            if done >= events {
                break;
            }
            if start.elapsed() > LEG {
                bail!("{}: {done} of {events} outputs after {LEG:?}", self.name);
            }
            system.check()?;
        }
        let (cpu, wall) = (system.cpu_seconds()?, start.elapsed());
        let (warm_cpu, warm_wall, warm_done) = warm.context("the leg passed 30 %")?;
        let counted = (events - warm_done) as f64;
        println!(
            r#"{{"name":"{}","keys":{},"leg":"T{events}","repeated":{},"cpu_us_per_event":{:.3},"events_per_second":{:.0},"memory_mb":{}}}"#,
            self.name,
            self.keys,
            self.reader.shared.repeated.load(Relaxed),
            (cpu - warm_cpu) / counted * 1e6,
            counted / (wall - warm_wall).as_secs_f64(),
            system.memory_peak_mb(),
        );
        Ok(())
    }

    fn running(&mut self) -> anyhow::Result<&mut System> {
        self.system.as_mut().context("no system was started")
    }

    /// Starts the system if it does not run yet, and gives it time to come to rest.
    fn settle(&mut self) -> anyhow::Result<()> {
        if self.system.is_none() {
            self.system = Some(System::start(&self.command, &self.group)?);
            std::thread::sleep(Duration::from_secs(3));
        }
        std::thread::sleep(Duration::from_millis(1_500));
        Ok(())
    }

    /// Sends `total` events, each when it is due, and calls `look` with the number sent so far again and again. Gives how
    /// late the generator itself was at worst, in nanoseconds.
    fn offer(
        &mut self,
        start: i64,
        rate: u64,
        total: u64,
        mut look: impl FnMut(&mut Bench, u64) -> anyhow::Result<()>,
    ) -> anyhow::Result<u64> {
        let (mut key, mut value) = (Vec::with_capacity(16), Vec::with_capacity(160));
        let (first, mut sent, mut late_nanos) = (self.next, 0, 0);
        while sent < total {
            let elapsed = (now_nanos() - start).max(0) as u64;
            late_nanos = late_nanos.max(elapsed.saturating_sub(sent * 1_000_000_000 / rate));
            let due = (elapsed * rate / 1_000_000_000).min(total);
            while sent < due {
                event(first + sent, self.keys, &mut key, &mut value);
                send(&self.live, TOPIC_IN, &key, &value)?;
                sent += 1;
            }
            self.next = first + sent;
            look(self, sent)?;
            self.live.poll(Duration::ZERO);
            std::thread::sleep(Duration::from_micros(500));
        }
        Ok(late_nanos)
    }

    /// Waits until there is an output for every event.
    fn await_all(&mut self) -> anyhow::Result<()> {
        let end = Instant::now();
        while self.reader.shared.distinct.load(Relaxed) < self.next {
            if end.elapsed() > Duration::from_secs(60) {
                bail!("{}: outputs are missing a minute after the last event", self.name);
            }
            std::thread::sleep(Duration::from_millis(5));
            self.running()?.check()?;
        }
        Ok(())
    }

    fn recovery(&mut self, rate: u64, seconds: u64) -> anyhow::Result<()> {
        self.settle()?;
        let (total, mut killed) = (rate * seconds, None);
        self.offer(now_nanos() + 1_000_000, rate, total, |bench, sent| {
            if killed.is_none() && sent >= total / 2 {
                // Dropping kills and waits.
                bench.system = None;
                bench.reader.await_event(bench.next);
                killed = Some((now_nanos(), state_bytes()));
                bench.system = Some(System::start(&bench.command, &bench.group)?);
            }
            Ok(())
        })?;
        self.await_all()?;
        let (killed, state) = killed.context("the leg passed its half")?;
        println!(
            r#"{{"name":"{}","keys":{},"leg":"K{rate}x{seconds}","first_new_output_ms":{:.0},"state_mb":{},"repeated":{}}}"#,
            self.name,
            self.keys,
            (self.reader.shared.came_nanos.load(Relaxed) - killed) as f64 / 1e6,
            state >> 20,
            self.reader.shared.repeated.load(Relaxed),
        );
        Ok(())
    }

    fn latency(&mut self, rate: u64, seconds: u64) -> anyhow::Result<()> {
        let (first, total) = (self.next, rate * seconds);
        self.settle()?;
        let start = now_nanos() + 1_000_000;
        self.reader.measure(first, first + total / 4, start, rate);
        let mut warm = None;
        let late_nanos = self.offer(start, rate, total, |bench, sent| {
            if warm.is_none() && sent >= total / 4 {
                warm = Some((bench.running()?.cpu_seconds()?, sent));
            }
            Ok(())
        })?;
        let cpu = self.running()?.cpu_seconds()?;
        self.await_all()?;
        let (warm_cpu, warm_sent) = warm.context("the leg passed a quarter")?;
        let histogram = self.reader.take();
        println!(
            r#"{{"name":"{}","keys":{},"leg":"L{rate}x{seconds}",{},"repeated":{},"cpu_us_per_event":{:.2},"generator_late_ms":{:.1}}}"#,
            self.name,
            self.keys,
            percentiles(&histogram),
            self.reader.shared.repeated.load(Relaxed),
            (cpu - warm_cpu) / (total - warm_sent) as f64 * 1e6,
            late_nanos as f64 / 1e6,
        );
        Ok(())
    }
}

/// Size of the folder that `STATE` names, with what lies in it.
fn state_bytes() -> u64 {
    fn size(path: &std::path::Path) -> u64 {
        let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
        let sizes = entries.map(|entry| match entry.metadata() {
            Ok(found) if found.is_dir() => size(&entry.path()),
            Ok(found) => found.len(),
            // It was removed a moment ago.
            Err(_) => 0,
        });
        sizes.sum()
    }
    std::env::var("STATE").map_or(0, |folder| size(folder.as_ref()))
}

/// Percentiles in milliseconds of a histogram in microseconds, as JSON members.
fn percentiles(histogram: &Histogram<u64>) -> String {
    let at = |quantile: f64| histogram.value_at_quantile(quantile) as f64 / 1_000.0;
    format!(
        r#""p50_ms":{:.2},"p99_ms":{:.2},"p999_ms":{:.2},"max_ms":{:.2}"#,
        at(0.5),
        at(0.99),
        at(0.999),
        histogram.max() as f64 / 1_000.0
    )
}

/// Deletes and makes the topics, so that every run starts with none of another run's records.
fn make_topics() -> anyhow::Result<()> {
    let admin: AdminClient<DefaultClientContext> = client().create()?;
    let options = AdminOptions::new().operation_timeout(Some(Duration::from_secs(10)));
    wait(admin.delete_topics(&[TOPIC_IN, TOPIC_OUT], &options)).context("delete the topics of the run before")?;
    for _ in 0..100 {
        std::thread::sleep(Duration::from_millis(300));
        let topic = |name| NewTopic::new(name, PARTITIONS, TopicReplication::Fixed(1));
        let made = wait(admin.create_topics(&[topic(TOPIC_IN), topic(TOPIC_OUT)], &options))?;
        if made.iter().all(Result::is_ok) {
            std::thread::sleep(Duration::from_millis(500));
            return Ok(());
        }
    }
    bail!("the topics {TOPIC_IN} and {TOPIC_OUT} could not be made")
}

/// Waits for a future that librdkafka's own thread completes.
fn wait<F: Future>(future: F) -> F::Output {
    let mut future = std::pin::pin!(future);
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    loop {
        if let std::task::Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return output;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
