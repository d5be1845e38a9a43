//! Opens what workers are made of: sinks, models, feeds into the lanes, event times of the checkpoint.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicI64;

use anyhow::Context as _;
use crossbeam_channel::Receiver;
use millstream_operators::score::Score;
use millstream_operators::watermark::{Late, Watermarks as SourceWatermarks};

use super::board::{Board, served};
use super::clock::now_micros;
use super::crew::{Left, Seed};
use super::lanes::{Lanes, LanesEnd};
use super::output::{Output, OutputContext};
use crate::checkpoint::Checkpoint;
use crate::encode::{Encoder, EncoderConfig, Headers, Value};
use crate::metrics::catalogue::{MODEL_INFO, MODEL_LOADED};
use crate::models::{Measured, OnnxModel};
use crate::plan::{From, Plan, SinkPlan, SourcePlan};
use crate::provenance::Origins;
use crate::replay::Cuts;
use crate::sinks::{Open, SinkKind};
use crate::sources::Arrival;
use crate::topology::LatePolicy;

/// One seed a worker.
///
/// # Errors
/// If a sink or a model can't be opened.
pub fn seeds(
    plan: &Plan,
    checkpoint: &Checkpoint,
    board: &Board,
    lanes: &mut Lanes,
    inboxes: Vec<Vec<Receiver<Arrival>>>,
    first_epoch: u64,
) -> anyhow::Result<Vec<Seed>> {
    let workers = inboxes.len();
    let mut models = Vec::new();
    for model in &plan.models {
        let opened = OnnxModel::read(&model.path)?;
        opened.probe(&model.binding, true).with_context(|| format!("model `{}`", model.name))?;
        MODEL_INFO.of([&model.name, &model.version, &opened.signature().digest[..8]]).set(1.0);
        MODEL_LOADED.of([&model.name, &model.version]).set(now_micros() as f64 / 1e6);
        models.push(opened);
    }
    let mut seeds = Vec::new();
    for (worker, inboxes) in inboxes.into_iter().enumerate() {
        let mut outputs = Vec::new();
        for (index, sink) in plan.sinks.iter().enumerate() {
            let elsewhere = sink.from == From::Drift || (sink.kind.one_writer() && worker > 0);
            outputs.push(match elsewhere {
                true => None,
                false => Some(output(plan, index, worker, workers, checkpoint, board, first_epoch)?),
            });
        }
        let mut scores = Vec::new();
        for (model, opened) in plan.models.iter().zip(&models) {
            let scorer = opened.scorer(&model.binding).with_context(|| format!("model `{}`", model.name))?;
            let scorer = Measured::new(&model.name, scorer);
            scores.push(Some(Score::new(&model.name, model.binding.clone(), Box::new(scorer))));
        }
        let watermarks = plan.sources().map(|(stream, source)| watermarks(&stream.name, source, checkpoint, board));
        seeds.push(Seed {
            inboxes,
            outputs,
            scores,
            slow: lanes.slow_feed(worker),
            offline: lanes.offline_feed(),
            watermarks: watermarks.collect(),
            heartbeat: board.heartbeats[worker].clone(),
        });
    }
    Ok(seeds)
}

/// How many writers a sink has: the slots it takes in the table of durable epochs.
pub fn writers(sink: &SinkPlan, workers: usize) -> usize {
    if sink.kind.one_writer() || sink.from == From::Drift { 1 } else { workers }
}

/// The end of a sink on one worker.
pub fn output(
    plan: &Plan,
    index: usize,
    worker: usize,
    workers: usize,
    checkpoint: &Checkpoint,
    board: &Board,
    first_epoch: u64,
) -> anyhow::Result<Output> {
    let sink = &plan.sinks[index];
    let open = Open {
        name: sink.name.clone(),
        job: plan.name.clone(),
        worker,
        workers,
        folder: plan.folder.clone(),
        resumed: checkpoint.epoch > 0,
        position: checkpoint.sinks.get(&sink.name).copied(),
    };
    let writer = sink.kind.target().open(open)?;
    let slot: usize = plan.sinks[..index].iter().map(|sink| writers(sink, workers)).sum();
    let context = OutputContext {
        durable: board.durable.clone(),
        slot: slot + worker,
        first_epoch,
        gates: board.gates.clone(),
        failures: board.failures.clone(),
        meters: board.meters.clone(),
    };
    Ok(Output::new(sink.name.as_str().into(), encoder(plan, sink, board), writer, context))
}

fn encoder(plan: &Plan, sink: &SinkPlan, board: &Board) -> Encoder {
    let model = match sink.from {
        From::Stream(stream) => plan.model_info(stream),
        From::Rejects | From::Drift => None,
    };
    let with_headers = matches!(&sink.kind, SinkKind::Kafka(kafka) if kafka.headers);
    let headers = match (&sink.kind, sink.from) {
        (SinkKind::Kafka(_), From::Rejects) => Headers::Reject,
        _ if !with_headers => Headers::None,
        _ if model.is_some() => Headers::Prediction,
        _ => Headers::Event,
    };
    Encoder::new(EncoderConfig {
        origins: Origins { partitions: board.partitions.clone(), model },
        provenance: sink.provenance.clone(),
        input: sink.input.clone(),
        columns: sink.columns.clone(),
        schema: sink.schema.clone(),
        key: sink.key.clone(),
        value: if headers == Headers::Reject { Value::Payload } else { Value::Json },
        headers,
    })
}

/// A source's event times, going on from the checkpoint.
fn watermarks(name: &str, source: &SourcePlan, checkpoint: &Checkpoint, board: &Board) -> SourceWatermarks {
    let (lateness, late) = match &source.event_time {
        None => (0, Late::Keep),
        Some(time) => {
            let late = match time.late {
                LatePolicy::Keep => Late::Keep,
                LatePolicy::Drop => Late::Drop,
                LatePolicy::DeadLetter => Late::Reject,
            };
            (time.lateness.0, late)
        }
    };
    let mut watermarks = SourceWatermarks::new(name, lateness, late);
    for ((topic, partition), newest) in checkpoint.event_times.get(name).into_iter().flatten() {
        watermarks.restore(board.partitions.number(topic, *partition), *newest);
    }
    watermarks
}

/// Heartbeats of `workers` workers that have not stepped yet.
pub fn heartbeats(workers: usize) -> Vec<Arc<AtomicI64>> {
    (0..workers).map(|_| Arc::new(AtomicI64::new(super::clock::now_micros()))).collect()
}

impl Board {
    /// The checkpoint at the end of a run.
    pub fn checkpoint(&self, plan: &Plan, left: Vec<Left>, lanes: LanesEnd, cuts: &Cuts, epoch: u64) -> Checkpoint {
        let mut checkpoint = Checkpoint {
            epoch,
            topology: plan.hash.clone(),
            slow: lanes.slow.map(|slow| slow.state),
            ..Checkpoint::default()
        };
        let watermarks: Vec<_> = left.iter().map(|left| left.watermarks.clone()).collect();
        checkpoint.event_times = event_times(plan, self, &watermarks);
        checkpoint.sinks.append(&mut self.signal_positions.lock().expect("no thread panics with the lock"));
        for left in left {
            for ((stream, _), taken) in plan.sources().zip(left.taken) {
                let positions = checkpoint.positions.entry(stream.name.clone()).or_default();
                positions.0.extend(self.named(&taken).0);
            }
            for (node, state) in left.state {
                checkpoint.nodes.entry(node).or_default().extend(state);
            }
            checkpoint.sinks.extend(left.sinks);
        }
        // A bounded run knows better where it goes on: it reads its files in another order than they stand.
        if let Some((_, cut)) = cuts.newest() {
            for (source, positions) in cut.positions {
                checkpoint.positions.insert(source.to_string(), positions);
            }
        }
        for (index, group) in plan.groups.iter().enumerate() {
            let served = checkpoint.nodes.entry(served(&group.name)).or_default();
            self.online.save(index, &mut |key_group, bytes| {
                served.insert(key_group, bytes);
            });
        }
        checkpoint
    }
}

/// Event times by partition's name, of all workers' sources: what a checkpoint keeps.
fn event_times(
    plan: &Plan,
    board: &Board,
    workers: &[Vec<SourceWatermarks>],
) -> BTreeMap<String, BTreeMap<(String, i32), i64>> {
    let mut all: BTreeMap<String, BTreeMap<(String, i32), i64>> = BTreeMap::new();
    for watermarks in workers {
        for ((stream, _), watermarks) in plan.sources().zip(watermarks) {
            let of_source = all.entry(stream.name.clone()).or_default();
            for (number, newest) in watermarks.newest() {
                let (topic, partition) = board.partitions.name(number);
                let known = of_source.entry((topic.to_string(), partition)).or_insert(newest);
                *known = newest.max(*known);
            }
        }
    }
    all
}
