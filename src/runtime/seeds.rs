//! Opens what workers are made of: sinks, models, feeds into the lanes, event times of the checkpoint.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::AtomicI64;

use anyhow::Context as _;
use crossbeam_channel::Receiver;
use millstream_operators::score::Score;
use millstream_operators::watermark::{Late, Watermarks as SourceWatermarks};

use super::board::Board;
use super::clock::now_micros;
use super::crew::Seed;
use super::lanes::Lanes;
use super::output::{Output, OutputContext};
use crate::checkpoint::{Checkpoint, effect_name};
use crate::encode::{Encoder, EncoderConfig, Headers, Value};
use crate::metrics::catalogue::{MODEL_INFO, MODEL_LOADED};
use crate::models::{self, Measured};
use crate::plan::{From, Plan, SinkPlan, SourcePlan};
use crate::provenance::Origins;
use crate::sinks::{BatchBytes, Commits, Open, Records, SinkKind, SinkWriter};
use crate::sources::Arrival;
use crate::topology::LatePolicy;

/// What opens the sinks of a job.
pub struct Opening<'a> {
    /// What runs.
    pub plan: &'a Plan,
    /// Where the job goes on.
    pub from: &'a Checkpoint,
    /// The nodes that are new to a job that goes on.
    pub began: BTreeSet<String>,
    /// What the process's threads share.
    pub board: &'a Board,
    /// Tells this life of the job from all others.
    pub id: String,
    /// Which start of the job it is.
    pub generation: u64,
    /// Tells this start from all others.
    pub start: String,
    /// The first epoch of this run.
    pub first_epoch: u64,
    /// Whether outputs may be written that are there already.
    pub may_repeat: bool,
}

/// The writers of a sink, and their places in the table of durable epochs.
#[derive(Debug, Clone)]
pub struct Writers {
    /// The sink's name.
    pub sink: String,
    /// The place of its first writer.
    pub first_slot: usize,
    /// How many there are.
    pub count: usize,
    /// Whether they commit an epoch after it was decided.
    pub commits_after_decision: bool,
}

/// The writers of all sinks, in the order of the plan.
pub fn writers(plan: &Plan) -> Vec<Writers> {
    let mut first_slot = 0;
    let mut all = Vec::new();
    for sink in &plan.sinks {
        let count = if sink.one_writer() || sink.from == From::Drift { 1 } else { plan.engine.workers };
        let commits_after_decision = sink.kind.settings().commits_after_decision();
        all.push(Writers { sink: sink.name.clone(), first_slot, count, commits_after_decision });
        first_slot += count;
    }
    all
}

impl Opening<'_> {
    /// One seed for each worker of this process; `lanes` are where the coordinator is.
    ///
    /// # Errors
    /// If a sink or a model can't be opened.
    pub fn seeds(
        &self,
        mut lanes: Option<&mut Lanes>,
        inboxes: Vec<Vec<Receiver<Arrival>>>,
    ) -> anyhow::Result<Vec<Seed>> {
        let (plan, board) = (self.plan, self.board);
        let mut tried = Vec::new();
        for model in &plan.models {
            let opened = models::open(&model.path, &model.binding, model.nan_allowed)
                .with_context(|| format!("model `{}`", model.name))?;
            MODEL_INFO.of([&model.name, &model.version, &opened.signature().digest[..8]]).set(1.0);
            MODEL_LOADED.of([&model.name, &model.version]).set(now_micros() as f64 / 1e6);
            tried.push(opened);
        }
        let mut seeds = Vec::new();
        let all_outputs = self.outputs()?;
        for ((worker, inboxes), outputs) in inboxes.into_iter().enumerate().zip(all_outputs) {
            let mut scores = Vec::new();
            for (model, opened) in plan.models.iter().zip(&tried) {
                let scorer = opened.scorer(&model.binding).with_context(|| format!("model `{}`", model.name))?;
                let scorer = Measured::new(&model.name, scorer);
                scores.push(Some(Score::new(&model.name, model.binding.clone(), Box::new(scorer))));
            }
            let watermarks = plan.sources().map(|(stream, source)| watermarks(&stream.name, source, self.from, board));
            seeds.push(Seed {
                inboxes,
                outputs,
                scores,
                slow: lanes.as_deref().and_then(|lanes| lanes.slow_feed(worker)),
                offline: lanes.as_deref_mut().and_then(Lanes::offline_feed),
                watermarks: watermarks.collect(),
                heartbeat: board.heartbeats[worker].clone(),
            });
        }
        Ok(seeds)
    }

    /// The ends of all sinks, by worker and in the order of the plan, but for those of drift signals. They are opened at
    /// once: each asks its brokers some questions, and a start that waited for one after the other would take as much longer.
    fn outputs(&self) -> anyhow::Result<Vec<Vec<Option<Output>>>> {
        std::thread::scope(|scope| {
            let asked: Vec<BatchBytes> = self.plan.sinks.iter().map(|_| BatchBytes::default()).collect();
            let mut opening = Vec::new();
            for worker in self.board.shape.local() {
                let mut of_worker = Vec::new();
                for (index, sink) in self.plan.sinks.iter().enumerate() {
                    let elsewhere = sink.from == From::Drift || (sink.one_writer() && worker > 0);
                    let asked = asked[index].clone();
                    of_worker.push((!elsewhere).then(|| scope.spawn(move || self.output(index, worker, asked))));
                }
                opening.push(of_worker);
            }
            let opened = |opening: std::thread::ScopedJoinHandle<'_, anyhow::Result<Output>>| {
                opening.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            let of_worker =
                |of_worker: Vec<Option<_>>| of_worker.into_iter().map(|one| one.map(opened).transpose()).collect();
            opening.into_iter().map(of_worker).collect()
        })
    }

    /// The end of a sink on one worker; `asked` is shared by the sink's writers.
    ///
    /// # Errors
    /// If the sink can't be opened.
    pub fn output(&self, index: usize, worker: usize, asked: BatchBytes) -> anyhow::Result<Output> {
        let (sink, board) = (&self.plan.sinks[index], self.board);
        let writer = self.writer(sink, worker, asked)?;
        let slot = writers(self.plan)[index].first_slot + worker;
        // By now it has committed what was decided.
        board.durable.set(slot, self.from.progress.epoch, Vec::new());
        let context = OutputContext {
            durable: board.durable.clone(),
            slot,
            commits_after_decision: sink.kind.settings().commits_after_decision(),
            first_epoch: self.first_epoch,
            gates: board.gates.clone(),
            failures: board.failures.clone(),
            meters: board.meters.clone(),
        };
        Ok(Output::new(sink.name.as_str().into(), self.encoder(sink), writer, context))
    }

    fn writer(&self, sink: &SinkPlan, worker: usize, batch_bytes: BatchBytes) -> anyhow::Result<Box<dyn SinkWriter>> {
        self.refuse_foreign_file(sink)?;
        let progress = &self.from.progress;
        let mut pending = Vec::new();
        for (epoch, bytes) in self.from.outbox.get(&(sink.name.clone(), worker as u16)).into_iter().flatten() {
            let records = Records::from_bytes(bytes).map_err(|detail| {
                anyhow::anyhow!("the checkpoint's records of sink `{}`, epoch {epoch}: {detail}", sink.name)
            })?;
            pending.push((*epoch, records));
        }
        let open = Open {
            name: sink.name.clone(),
            job: self.plan.name.clone(),
            worker,
            workers: self.plan.engine.workers,
            folder: self.plan.folder.clone(),
            dead_letters: sink.from == From::Rejects,
            resumed: progress.epoch > 0,
            position: progress.sinks.get(&sink.name).copied(),
            commits: Commits {
                id: self.id.clone(),
                start: self.start.clone(),
                owned: self.board.owned.clone(),
                decided: self.board.decided.clone(),
                known: progress.committed.get(&effect_name(&sink.path(), worker as u16)).copied().unwrap_or(0),
                pending,
                may_repeat: self.may_repeat,
            },
            batch_bytes,
        };
        Ok(sink.kind.settings().open(open)?)
    }

    /// A job that begins may write its files anew, one that goes on would do so to a file that is not its own: that of a sink
    /// that was renamed or dropped, say.
    fn refuse_foreign_file(&self, sink: &SinkPlan) -> anyhow::Result<()> {
        let Some(file) = sink.kind.settings().file().filter(|_| self.began.contains(&sink.path())) else {
            return Ok(());
        };
        let path = self.plan.folder.join(file);
        let bytes = std::fs::metadata(&path).map_or(0, |metadata| metadata.len());
        anyhow::ensure!(
            bytes == 0,
            "sink `{}` is new to the job, but {} is there already with {bytes} bytes; move it away, or give the sink another \
             path",
            sink.name,
            path.display()
        );
        Ok(())
    }

    /// Ends what writers have left that this run does not have: an earlier run had more workers. What they had decided is
    /// committed.
    ///
    /// # Errors
    /// If a sink can't be opened.
    pub fn settle_former_writers(&self) -> anyhow::Result<()> {
        for (sink, writers) in self.plan.sinks.iter().zip(writers(self.plan)) {
            let asked = BatchBytes::default();
            for part in writers.count..=usize::from(u16::MAX) {
                let known = self.from.progress.committed.contains_key(&effect_name(&sink.path(), part as u16));
                if !known || !writers.commits_after_decision {
                    break;
                }
                drop(self.writer(sink, part, asked.clone())?);
            }
        }
        Ok(())
    }
}

impl Opening<'_> {
    fn encoder(&self, sink: &SinkPlan) -> Encoder {
        let (plan, board) = (self.plan, self.board);
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
            generation: self.generation,
        })
    }
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
    for ((topic, partition), newest) in checkpoint.progress.event_times.get(name).into_iter().flatten() {
        watermarks.restore(board.partitions.number(topic, *partition), *newest);
    }
    watermarks
}

/// Heartbeats of `workers` workers that have not stepped yet.
pub fn heartbeats(workers: usize) -> Vec<Arc<AtomicI64>> {
    (0..workers).map(|_| Arc::new(AtomicI64::new(super::clock::now_micros()))).collect()
}
