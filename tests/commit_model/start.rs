//! A start of the job: it fences the writers, makes sure that the job is still its own, and writes what was decided.

use super::{Action, Job, Manifest, Protocol, Records, State, Transaction, WRITERS, Wrong};

/// A start on its way.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Starting {
    pub workers: usize,
    pub fenced: [bool; WRITERS],
    /// Whether it has made sure, since then, that the job is its own.
    pub sure: [bool; WRITERS],
    /// The marker as it was read.
    pub read: [Option<Option<u8>>; WRITERS],
    pub redone: [bool; WRITERS],
    /// Whether it has published the checkpoint once more, with what is new to it.
    pub adopted: bool,
}

/// A start from which another one has taken over. It publishes nothing, and does not know it yet.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Former {
    pub starting: Starting,
    /// The newest checkpoint, as it knows it.
    pub manifest: Manifest,
}

/// Whose step it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Who {
    /// The start that has the newest manifest.
    Owner,
    Former,
}

/// A start can't tell what is committed.
pub struct Unsure;

impl Starting {
    fn with(workers: usize) -> Starting {
        let (fenced, sure, redone) = ([false; WRITERS], [false; WRITERS], [false; WRITERS]);
        Starting { workers, fenced, sure, read: [None; WRITERS], redone, adopted: false }
    }
}

/// A step of a start that is the same whoever has the job.
fn take(state: &mut State, starting: &mut Starting, action: &Action) {
    match *action {
        Action::Fence(who, writer) => {
            starting.fenced[writer] = true;
            state.fenced_by[writer] = who;
            state.late[writer] = None;
        }
        Action::MakeSure(_, writer) => starting.sure[writer] = true,
        _ => {}
    }
}

/// The marker of a writer in the eyes of a life of the job.
fn find(state: &State, writer: usize, life: u8) -> Option<u8> {
    state.marker[writer].filter(|(of, _)| *of == life).map(|(_, epoch)| epoch)
}

/// A start takes over: it has the newest manifest.
pub fn begin(manifest: &mut Manifest, workers: usize) -> Job {
    manifest.life += u8::from(manifest.epoch == 0);
    Job::Starting(Starting::with(workers))
}

impl Protocol {
    /// The writers that a start must look after.
    pub fn writers(&self, starting: &Starting) -> std::ops::Range<usize> {
        let all = if self.wrong == Wrong::LeavesFormerWriters { starting.workers } else { WRITERS };
        0..all
    }

    pub fn starting_actions(&self, starting: &Starting, who: Who, actions: &mut Vec<Action>) {
        let writers = self.writers(starting);
        for writer in writers.clone() {
            let (fenced, read) = (starting.fenced[writer], starting.read[writer].is_some());
            let marker_first = self.wrong == Wrong::MarkerBeforeFence;
            match (fenced, read) {
                (false, false) if marker_first => actions.push(Action::ReadMarker(who, writer)),
                (false, _) => actions.push(Action::Fence(who, writer)),
                (true, _) if !starting.sure[writer] => actions.push(Action::MakeSure(who, writer)),
                (true, false) => actions.push(Action::ReadMarker(who, writer)),
                (true, true) if !starting.redone[writer] => actions.push(Action::Redo(who, writer)),
                (true, true) => {}
            }
        }
        if who == Who::Owner && writers.into_iter().all(|writer| starting.redone[writer]) {
            actions.push(Action::Run);
        }
        if !starting.adopted {
            actions.push(Action::Adopt(who));
        }
    }

    /// Writes decided records again that the marker does not know of, by the checkpoint `manifest`.
    pub fn redo(&self, state: &mut State, manifest: &Manifest, writer: usize, read: Option<u8>) -> Result<(), Unsure> {
        let known = manifest.committed[writer];
        let outbox = manifest.outbox[writer].clone();
        if read.is_none() && known > 0 && !outbox.is_empty() && self.wrong != Wrong::NoMarker {
            return Err(Unsure);
        }
        // More is committed than the checkpoint knows of.
        let is_blind = matches!(self.wrong, Wrong::CommitFirst | Wrong::MarkerBeforeFence);
        if read.is_some_and(|read| read > manifest.epoch) && !is_blind {
            return Err(Unsure);
        }
        let done = read.unwrap_or(0).max(known);
        let missing: Vec<_> = outbox.into_iter().filter(|(epoch, _)| *epoch > done).collect();
        let records: Records = missing.into_iter().flat_map(|(_, records)| records).collect();
        let unmarked = matches!(self.wrong, Wrong::StartsWithoutMarker | Wrong::FirstEpochBringsMarker);
        if self.wrong != Wrong::NoRedo && (!records.is_empty() || !unmarked) {
            self.commit(state, manifest.life, writer, &Transaction { through: manifest.epoch, records });
        }
        Ok(())
    }

    /// A step of the start that has the job; where its writer is another's by now, it ends, and is started again.
    pub fn start(&self, state: &mut State, mut starting: Starting, action: &Action) -> Job {
        match *action {
            Action::Redo(Who::Owner, writer) if state.fenced_by[writer] == Who::Former => return Job::Down,
            Action::Redo(Who::Owner, writer) => {
                starting.redone[writer] = true;
                let manifest = state.manifest.clone();
                if self.redo(state, &manifest, writer, starting.read[writer].flatten()).is_err() {
                    return Job::Refused;
                }
            }
            Action::Adopt(Who::Owner) => {
                starting.adopted = true;
                self.adopt(&mut state.manifest, &starting);
            }
            Action::ReadMarker(_, writer) => starting.read[writer] = Some(find(state, writer, state.manifest.life)),
            Action::Overlap(workers) => {
                state.overlaps += 1;
                state.former = Some(Former { starting, manifest: state.manifest.clone() });
                return begin(&mut state.manifest, workers);
            }
            _ => take(state, &mut starting, action),
        }
        Job::Starting(starting)
    }

    /// A step of a start that has lost the job; `None` if it notices.
    pub fn lose(&self, state: &mut State, mut former: Former, action: &Action) -> Option<Former> {
        match *action {
            Action::Redo(_, writer) if state.fenced_by[writer] == Who::Owner => return None,
            Action::Redo(_, writer) => {
                former.starting.redone[writer] = true;
                let read = former.starting.read[writer].flatten();
                self.redo(state, &former.manifest, writer, read).ok()?;
            }
            Action::Adopt(_) => return None,
            Action::MakeSure(..) if self.wrong != Wrong::FencesUnasked => return None,
            Action::ReadMarker(_, writer) => {
                former.starting.read[writer] = Some(find(state, writer, former.manifest.life));
            }
            _ => take(state, &mut former.starting, action),
        }
        Some(former)
    }

    /// The checkpoint once more: of writers that have got that far it says so, and their outputs are forgotten.
    pub fn adopt(&self, manifest: &mut Manifest, starting: &Starting) {
        for writer in (0..WRITERS).filter(|writer| starting.redone[*writer] || self.wrong == Wrong::AdoptsForOthers) {
            manifest.committed[writer] = manifest.epoch;
            manifest.outbox[writer].clear();
        }
    }
}
