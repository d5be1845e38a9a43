//! The limit line: consume, parse, work, score at the natural batch, produce. One thread, no engine, no durable state.
//!
//! `bare copy|w0|w1`; environment: KAFKA_BROKERS, MODELS (folder of mlp.onnx and lgb.onnx; benches/kafka), ORT_DYLIB_PATH.

use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use hashbrown::HashMap;
use millstream_benches::*;
use ort::session::builder::GraphOptimizationLevel;
use ort::session::{HasSelectedOutputs, OutputSelector, RunOptions, Session};
use ort::value::TensorRef;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::message::Message;
use rdkafka::producer::BaseProducer;
use rdkafka::{Offset, TopicPartitionList};

/// Largest batch.
const BATCH: usize = 256;
/// How often offsets are committed.
const COMMIT_EVERY: Duration = Duration::from_secs(1);

/// A model: its session, the name of its output, its width, the columns of its output.
struct Model {
    session: Session,
    options: RunOptions<HasSelectedOutputs>,
    output: &'static str,
    width: usize,
    columns: usize,
}

impl Model {
    fn open(file: &str, output: &'static str, width: usize, columns: usize) -> anyhow::Result<Model> {
        let library = variable("ORT_DYLIB_PATH", "libonnxruntime.so");
        let environment = ort::init_from(&library)?.with_name("bare").build()?;
        let path = format!("{}/{file}", variable("MODELS", "benches/kafka"));
        let mut builder = Session::builder(&environment)?
            .with_intra_threads(1)
            .and_then(|b| b.with_inter_threads(1))
            .and_then(|b| b.with_intra_op_spinning(false))
            .and_then(|b| b.with_optimization_level(GraphOptimizationLevel::Level3))
            .map_err(|error| anyhow::anyhow!("configure the session: {error}"))?;
        let session = builder.commit_from_file(&path).map_err(|error| anyhow::anyhow!("open {path}: {error}"))?;
        let options = RunOptions::new()?.with_outputs(OutputSelector::no_default().with(output));
        Ok(Model { session, options, output, width, columns })
    }
}

struct Scored {
    id: i64,
    card: i64,
    count_1h: i64,
    mean_24h: f64,
}

fn main() -> anyhow::Result<()> {
    let work = std::env::args().nth(1).unwrap_or_default();
    let mut model = match work.as_str() {
        "copy" => None,
        "w0" => Some(Model::open("mlp.onnx", "p", 32, 1)?),
        "w1" => Some(Model::open("lgb.onnx", "probabilities", 22, 2)?),
        other => bail!("unknown work `{other}`; use copy, w0 or w1"),
    };
    let consumer: BaseConsumer = client()
        .set("group.id", variable("GROUP", "bare"))
        .set("enable.auto.commit", "false")
        .set("auto.offset.reset", "earliest")
        .set("queued.max.messages.kbytes", "65536")
        // A consumer whose queue is full would stop fetching for a second.
        .set("fetch.queue.backoff.ms", "10")
        .create()?;
    let producer: BaseProducer = client()
        .set("enable.idempotence", "true")
        .set("linger.ms", variable("LINGER", "5"))
        .set("partitioner", "murmur2_random")
        .set("queue.buffering.max.messages", "200000")
        .create()?;
    let mut positions = TopicPartitionList::new();
    for partition in 0..PARTITIONS {
        positions.add_partition_offset(TOPIC_IN, partition, Offset::Stored)?;
    }
    consumer.assign(&positions)?;
    let width = model.as_ref().map_or(0, |model| model.width);
    let mut inputs = vec![0f32; BATCH * width];
    let mut rows: Vec<Scored> = Vec::with_capacity(BATCH);
    let mut cards: HashMap<i64, Card> = HashMap::new();
    let mut next = vec![-1i64; PARTITIONS as usize];
    let mut committed = Instant::now();
    loop {
        rows.clear();
        let mut taken = 0;
        while taken < BATCH {
            // The first message of a batch is waited for; the others are taken while they are there.
            let wait = if taken == 0 { Duration::from_millis(50) } else { Duration::ZERO };
            let Some(message) = consumer.poll(wait) else { break };
            let message = message.context("poll")?;
            let value = message.payload().context("a record without a value")?;
            next[message.partition() as usize] = message.offset() + 1;
            taken += 1;
            if model.is_none() {
                send(&producer, TOPIC_OUT, message.key().unwrap_or_default(), value)?;
                continue;
            }
            let event = parse(value).context("a record of another form")?;
            let inputs = &mut inputs[rows.len() * width..(rows.len() + 1) * width];
            let (count_1h, mean_24h) = match work.as_str() {
                "w1" => cards.entry(event.card).or_default().add(event.ts, event.cents, inputs),
                _ => {
                    w0_inputs(&event, inputs);
                    (0, 0.0)
                }
            };
            rows.push(Scored { id: event.id, card: event.card, count_1h, mean_24h });
        }
        if let Some(model) = &mut model {
            score(model, &inputs, &rows, work == "w1", &producer)?;
        }
        producer.poll(Duration::ZERO);
        if committed.elapsed() >= COMMIT_EVERY {
            committed = Instant::now();
            drain(&producer);
            commit(&consumer, &next)?;
        }
    }
}

fn score(model: &mut Model, inputs: &[f32], rows: &[Scored], w1: bool, out: &BaseProducer) -> anyhow::Result<()> {
    if rows.is_empty() {
        return Ok(());
    }
    let shape = [rows.len() as i64, model.width as i64];
    let tensor = TensorRef::from_array_view((shape, &inputs[..rows.len() * model.width]))?;
    let outputs = model.session.run_with_options(ort::inputs!["x" => tensor], &model.options)?;
    let (_, scores) = outputs[model.output].try_extract_tensor::<f32>()?;
    let (mut key, mut value) = (Vec::new(), Vec::new());
    let (mut number, mut mean) = (ryu::Buffer::new(), ryu::Buffer::new());
    for (i, row) in rows.iter().enumerate() {
        let score = number.format(scores[(i + 1) * model.columns - 1]);
        let Scored { id, card, count_1h, mean_24h } = row;
        key.clear();
        value.clear();
        write!(key, "k{card:06}")?;
        match w1 {
            true => {
                let mean = mean.format(*mean_24h);
                write!(value, r#"{{"id":{id},"card":"k{card:06}","score":{score},"count_1h":{count_1h},"#)?;
                write!(value, r#""mean_24h":{mean}}}"#)?;
            }
            false => write!(value, r#"{{"id":{id},"score":{score}}}"#)?,
        }
        send(out, TOPIC_OUT, &key, &value)?;
    }
    Ok(())
}

fn commit(consumer: &BaseConsumer, next: &[i64]) -> anyhow::Result<()> {
    let mut positions = TopicPartitionList::new();
    for (partition, offset) in next.iter().enumerate().filter(|(_, offset)| **offset >= 0) {
        positions.add_partition_offset(TOPIC_IN, partition as i32, Offset::Offset(*offset))?;
    }
    if positions.count() > 0 {
        consumer.commit(&positions, CommitMode::Async)?;
    }
    Ok(())
}
