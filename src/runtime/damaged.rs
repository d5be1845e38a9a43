//! A start whose newest checkpoint is damaged or lost: whether it may go on from an older one.
//!
//! | where outputs go | what the start does |
//! |---|---|
//! | files, standard output | goes on from the newest kept checkpoint that is whole: files are cut back to it, and nothing stands twice |
//! | topics or tables as well | refuses, and says which one is whole; with `--allow-older` goes on from it, and with `--allow-repeat` also if outputs have been committed since |
//!
//! That newer ones were lost (a disk that forgets, a backup that was put back) nobody sees in what is left. Topics know it: a marker names an
//! epoch that no checkpoint has, and the writer refuses ([`SinkError::Ahead`](crate::sinks::SinkError::Ahead)) until both flags are given.
//! Where there is no such topic, rows of such epochs are removed from tables, and files are cut back.
//!
//! Whether something was committed since can be asked, but the answer is no proof: a commit that a dead process has sent may reach the
//! brokers later. And it would rarely help, since a decided epoch is committed some milliseconds after its manifest is there.

use std::fmt;

use super::repeats::{Repeats, Seen, Wanted};
use crate::checkpoint::older::newest_whole;
use crate::checkpoint::{CheckpointError, Origin, Place, Store};
use crate::plan::Plan;

impl Wanted {
    /// The checkpoint to go on from, and as which epoch, after the newest was found to be damaged.
    ///
    /// # Errors
    /// If there is none that is whole, or outputs would be repeated that must not be.
    pub fn older(&self, damage: CheckpointError, store: &Store, plan: &Plan) -> anyhow::Result<(Origin, u64)> {
        let keeps = plan.sinks.iter().any(|sink| sink.kind.settings().keeps().is_some()) || !plan.offline.is_empty();
        let own = Place::of(&plan.engine, &plan.folder)?;
        let whole = newest_whole(&own, &plan.name, keeps || self.allow_older)?;
        let Some(origin) = whole.filter(|_| self.allow_older || !keeps) else {
            let whole = newest_whole(&own, &plan.name, true)?.map(|whole| (whole.told().to_string(), whole.epoch()));
            return Err(Damaged { damage, whole }.into());
        };
        let (at, seen) = (origin.epoch(), Seen::outside(&origin, plan)?);
        if seen.is_beyond(at) && !self.allow_repeat {
            return Err(Repeats::of(&origin, seen, plan).of_older().into());
        }
        tracing::warn!(
            %damage,
            from = origin.told(),
            epoch = at,
            "the newest checkpoint is damaged: going on from an older one that is whole"
        );
        Ok((origin, seen.epoch.max(at).max(store.newest_epoch().unwrap_or(0))))
    }

    /// The newest checkpoint that is there, and as which epoch to go on from it, if an older one will do and topics have outputs of
    /// newer ones.
    ///
    /// # Errors
    /// If outputs must not be repeated, or brokers can't be asked.
    pub fn lost(&self, store: &Store, plan: &Plan) -> anyhow::Result<Option<(Origin, u64)>> {
        let newest = if self.allow_older { store.newest()? } else { None };
        let Some(origin) = newest else { return Ok(None) };
        let seen = Seen::in_topics(&origin, plan)?;
        let Some(epoch) = seen.of_this_life.filter(|epoch| *epoch > origin.epoch()) else { return Ok(None) };
        if !self.allow_repeat {
            return Err(Repeats::of(&origin, Seen::of(epoch), plan).of_older().into());
        }
        tracing::warn!(
            from = origin.told(),
            epoch = origin.epoch(),
            committed = epoch,
            "newer checkpoints are lost: going on from an older one, and outputs since are repeated"
        );
        Ok(Some((origin, epoch)))
    }
}

/// A start whose newest checkpoint is damaged.
#[derive(Debug, thiserror::Error)]
pub struct Damaged {
    damage: CheckpointError,
    /// The newest one that is whole, and its epoch.
    whole: Option<(String, u64)>,
}

impl fmt::Display for Damaged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Damaged { damage, whole } = self;
        match whole {
            Some((told, epoch)) => write!(
                f,
                "{damage}. The newest one that is whole is {told} of epoch {epoch}: `--allow-older` goes on from it, or says what \
                 that would repeat"
            ),
            None => write!(f, "{damage}. There is no older checkpoint and no savepoint that is whole"),
        }
    }
}
