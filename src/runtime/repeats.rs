//! A start that goes back: what would be written again, and that nobody does so by mistake.
//!
//! | where outputs go | after going back to epoch 20 of 45 |
//! |---|---|
//! | Kafka topics | what epochs 21 to 45 wrote stays, and is made again, with the same ids |
//! | Delta tables | the same |
//! | files | are cut back to epoch 20, so that nothing stands twice |
//! | served features, detectors, outcomes | are as they were at epoch 20 |

use std::fmt;

use crate::checkpoint::{Origin, Place, Standing, Store};
use crate::offline;
use crate::plan::Plan;
use crate::sinks::SinkKind;

/// Where a start goes on, if not from its newest checkpoint.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// A savepoint's name, or the place of a checkpoint.
    pub from: Option<String>,
    /// Whether outputs may be written that are there already.
    pub allow_repeat: bool,
    /// Whether an older checkpoint will do if the newest is damaged.
    pub allow_older: bool,
    /// Nodes that may lose what the checkpoint has of them.
    pub allow_drop: Vec<String>,
    /// Feature groups that begin with what a [backfill](crate::backfill) has made.
    pub backfill: Vec<String>,
    /// Sources that may go on without records that are gone.
    pub allow_gap: Vec<String>,
}

impl Wanted {
    /// The checkpoint that is wanted instead of the newest one.
    ///
    /// # Errors
    /// If it is not there, or can't be read.
    pub fn origin(&self, plan: &Plan) -> anyhow::Result<Option<Origin>> {
        let Some(from) = &self.from else { return Ok(None) };
        let own = Place::of(&plan.engine, &plan.folder)?;
        Ok(Some(Origin::find(&own, from, &plan.engine.s3, &plan.name)?))
    }

    /// The epoch as which a job goes on from another checkpoint: none that its outputs have seen is behind it. `None` if it
    /// goes on from its newest one.
    ///
    /// # Errors
    /// If outputs would be repeated that must not be, or a store, a broker or a table can't be asked.
    pub fn epoch(&self, origin: &Origin, store: &mut Store, plan: &Plan) -> anyhow::Result<Option<u64>> {
        let at = origin.epoch();
        let seen = match store.standing(origin)? {
            Standing::There => {
                tracing::info!(from = origin.told(), "the job is there, or has been started from there: it goes on");
                return Ok(None);
            }
            Standing::Elsewhere { epoch, same_life: true } if origin.is_own() => Seen::of(epoch),
            Standing::Elsewhere { epoch, same_life } => {
                let seen = Seen { another_life: !same_life, ..Seen::of(epoch) };
                seen.and(Seen::outside(origin, plan)?)
            }
            Standing::Nowhere => Seen::outside(origin, plan)?,
        };
        let repeats = seen.is_beyond(at);
        if repeats && !self.allow_repeat {
            return Err(Repeats::of(origin, seen, plan).into());
        }
        if repeats {
            tracing::warn!(
                from = origin.told(),
                epoch = at,
                was = seen.epoch,
                "going back: outputs since are repeated"
            );
        } else {
            tracing::info!(from = origin.told(), epoch = at, "going on from there");
        }
        Ok(Some(seen.epoch.max(at)))
    }
}

/// How far the outputs of a job are.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Seen {
    /// The newest epoch of which something may have been written.
    pub epoch: u64,
    /// The newest epoch of the checkpoint's own life of which that is known.
    pub of_this_life: Option<u64>,
    /// Whether another life of the job, before or after a fresh start, has written.
    another_life: bool,
}

impl Seen {
    /// Everything up to an epoch.
    pub fn of(epoch: u64) -> Seen {
        Seen { epoch, ..Seen::default() }
    }

    fn and(self, other: Seen) -> Seen {
        Seen {
            epoch: self.epoch.max(other.epoch),
            of_this_life: self.of_this_life.max(other.of_this_life),
            another_life: self.another_life || other.another_life,
        }
    }

    /// Whether a start from epoch `at` would repeat something.
    pub fn is_beyond(&self, at: u64) -> bool {
        self.epoch > at || self.another_life
    }

    /// What Kafka and the tables know of the job. Nobody is fenced: that is for a start which goes on.
    pub fn outside(origin: &Origin, plan: &Plan) -> anyhow::Result<Seen> {
        let mut seen = Seen::in_topics(origin, plan)?;
        for table in &plan.offline {
            let epoch = offline::committed_epoch(&plan.name, &table.name, &table.table, &plan.folder)?;
            seen = seen.and(Seen::of(epoch.unwrap_or(0)));
        }
        Ok(seen)
    }

    /// What Kafka knows of the job.
    pub fn in_topics(origin: &Origin, plan: &Plan) -> anyhow::Result<Seen> {
        let mut seen = Seen::default();
        for sink in plan.sinks.iter().filter(|sink| sink.kind.settings().commits_after_decision()) {
            let SinkKind::Kafka(kafka) = &sink.kind else { continue };
            for worker in 0..=usize::from(u16::MAX) {
                let committed = kafka.committed(&plan.name, &sink.name, worker)?;
                // An earlier run may have had more workers.
                if committed.is_none() && worker + 1 >= plan.engine.workers {
                    break;
                }
                let Some((epoch, life)) = committed else { continue };
                let is_ours = life == origin.life();
                let of_this_life = is_ours.then_some(epoch);
                seen = seen.and(Seen { epoch, of_this_life, another_life: !is_ours });
            }
        }
        Ok(seen)
    }
}

/// A start that would write again what is there.
#[derive(Debug, thiserror::Error)]
pub struct Repeats {
    from: String,
    at: u64,
    seen: u64,
    another_life: bool,
    /// What keeps what was written.
    kept: Vec<String>,
    /// Whether the newest checkpoint, from which the job would go on otherwise, is damaged.
    older: bool,
}

impl Repeats {
    pub(super) fn of(origin: &Origin, seen: Seen, plan: &Plan) -> Repeats {
        let sinks = plan.sinks.iter();
        let sinks = sinks.filter_map(|sink| Some(format!("{} ({})", sink.path(), sink.kind.settings().keeps()?)));
        let kept = sinks.chain(plan.offline.iter().map(|table| table.path())).collect();
        let (from, at) = (origin.told().to_string(), origin.epoch());
        Repeats { from, at, seen: seen.epoch, another_life: seen.another_life, kept, older: false }
    }

    /// The same, of a start whose newest checkpoint is damaged.
    pub(super) fn of_older(self) -> Repeats {
        Repeats { older: true, ..self }
    }
}

impl fmt::Display for Repeats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Repeats { from, at, seen, another_life, kept, older } = self;
        match another_life {
            true => write!(f, "the job has begun anew since `{from}` (epoch {at}), and is at epoch {seen}. ")?,
            false => write!(f, "the job has gone on from `{from}` (epoch {at}) to epoch {seen}. ")?,
        }
        match kept.is_empty() {
            true => write!(f, "Files would be cut back to there. ")?,
            false => write!(
                f,
                "What it has written since stays, and would be written again, in {}; files would be cut back. ",
                kept.join(", ")
            )?,
        }
        match older {
            true => write!(f, "Allow that with `--allow-repeat`, or restore what is damaged"),
            false => write!(f, "Allow that with `--allow-repeat`, or go on without `--from`"),
        }
    }
}
