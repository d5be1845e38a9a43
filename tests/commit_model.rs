//! The commit protocol as a model, every interleaving of which is looked at: two partitions, jobs of one or two workers,
//! pipelined epochs, crashes at every step, commits that arrive at the broker after the job has died, starts with
//! another number of workers. The protocol must hold; each of its wrong relatives must not.
//!
//! Model checking by stateright. What the steps are in the code: `src/runtime/checkpoints.rs` (manifest),
//! `src/sinks/kafka/transactional.rs` (transactions, fence, marker, redo).

use stateright::{Checker, HasDiscoveries, Model, Property};

const PARTITIONS: usize = 2;
/// Writers there may ever be: one for each worker.
const WRITERS: usize = 2;
/// Events of a partition.
const EVENTS: u8 = 2;
const CRASHES: u8 = 2;
/// Epochs that may be closed and not decided.
const AHEAD: usize = 2;

/// Records: partition and number of the event. They are numbered from 1.
type Records = Vec<(u8, u8)>;

/// How the protocol differs from the right one.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Wrong {
    Nothing,
    /// Transactions are committed before the manifest.
    CommitFirst,
    /// Transactions bear no marker.
    NoMarker,
    /// Markers are read before the writers are fenced.
    MarkerBeforeFence,
    /// A start does not write decided records again.
    NoRedo,
    /// A manifest forgets records as soon as they are decided.
    ForgetsOutbox,
    /// A start looks after its own writers only, not after those that an earlier run had more.
    LeavesFormerWriters,
    /// A start of a writer that has no marker does not bring one: a marker that is not there may never have been.
    StartsWithoutMarker,
    /// The same, but the first epoch brings one, with or without records.
    FirstEpochBringsMarker,
    /// The checkpoint that a start publishes takes all writers for committed, also those that have not got that far.
    AdoptsForOthers,
}

/// A transaction: its newest epoch and its records.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Transaction {
    through: u8,
    records: Records,
}

/// What a worker has closed and no manifest has yet.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Part {
    positions: Vec<(u8, u8)>,
    records: Records,
}

/// A run of the job.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Run {
    workers: usize,
    /// Events taken of each partition.
    taken: [u8; PARTITIONS],
    /// Records of each worker's open epoch.
    records: [Records; WRITERS],
    /// By worker, the parts of the epochs after the newest manifest.
    parts: [Vec<Part>; WRITERS],
    /// By writer, closed transactions in order.
    transactions: [Vec<Transaction>; WRITERS],
    /// By writer, the newest epoch that is known to be committed.
    committed: [u8; WRITERS],
    /// Whether the writer has closed an epoch.
    closed: [bool; WRITERS],
}

/// A start on its way.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Starting {
    workers: usize,
    fenced: [bool; WRITERS],
    /// The marker as it was read.
    read: [Option<Option<u8>>; WRITERS],
    redone: [bool; WRITERS],
    /// Whether it has published the checkpoint once more, with what is new to it.
    adopted: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Job {
    Down,
    Starting(Starting),
    Running(Run),
    /// A start that can't tell what is committed.
    Refused,
}

/// The newest checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Manifest {
    epoch: u8,
    positions: [u8; PARTITIONS],
    /// By writer: epochs with records that may not be committed.
    outbox: [Vec<(u8, Records)>; WRITERS],
    committed: [u8; WRITERS],
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct State {
    job: Job,
    manifest: Manifest,
    /// What a reader of committed records sees of each partition.
    out: [Vec<u8>; PARTITIONS],
    marker: [Option<u8>; WRITERS],
    /// A commit that a dead run has sent and the broker has not got yet.
    late: [Option<Transaction>; WRITERS],
    crashes: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Action {
    Start(usize),
    Fence(usize),
    ReadMarker(usize),
    Redo(usize),
    Adopt,
    Run,
    Take(usize),
    Close(usize),
    Publish,
    Commit(usize),
    LateCommit(usize),
    Crash,
}

struct Protocol(Wrong);

impl Protocol {
    /// The writers that a start must look after.
    fn writers(&self, starting: &Starting) -> std::ops::Range<usize> {
        let all = if self.0 == Wrong::LeavesFormerWriters { starting.workers } else { WRITERS };
        0..all
    }

    fn may_commit(&self, state: &State, run: &Run, writer: usize) -> bool {
        let first = run.transactions[writer].first();
        first.is_some_and(|first| first.through <= state.manifest.epoch || self.0 == Wrong::CommitFirst)
    }

    /// A transaction becomes visible, with its marker.
    fn commit(&self, state: &mut State, writer: usize, transaction: &Transaction) {
        for (partition, number) in &transaction.records {
            state.out[*partition as usize].push(*number);
        }
        if self.0 != Wrong::NoMarker {
            state.marker[writer] = Some(transaction.through);
        }
    }

    fn starting_actions(&self, starting: &Starting, actions: &mut Vec<Action>) {
        let writers = self.writers(starting);
        for writer in writers.clone() {
            let (fenced, read) = (starting.fenced[writer], starting.read[writer].is_some());
            let marker_first = self.0 == Wrong::MarkerBeforeFence;
            match (fenced, read) {
                (false, false) if marker_first => actions.push(Action::ReadMarker(writer)),
                (false, _) => actions.push(Action::Fence(writer)),
                (true, false) => actions.push(Action::ReadMarker(writer)),
                (true, true) if !starting.redone[writer] => actions.push(Action::Redo(writer)),
                (true, true) => {}
            }
        }
        if writers.into_iter().all(|writer| starting.redone[writer]) {
            actions.push(Action::Run);
        }
        if !starting.adopted {
            actions.push(Action::Adopt);
        }
    }

    fn running_actions(&self, state: &State, run: &Run, actions: &mut Vec<Action>) {
        for (partition, taken) in run.taken.iter().enumerate() {
            if *taken < EVENTS {
                actions.push(Action::Take(partition));
            }
        }
        for worker in 0..run.workers {
            // Closing empty epochs without end is of no interest.
            let behind = run.parts.iter().any(|parts| parts.len() > run.parts[worker].len());
            let something = behind || !run.closed[worker] || !run.records[worker].is_empty();
            if something && run.parts[worker].len() < AHEAD {
                actions.push(Action::Close(worker));
            }
        }
        if (0..run.workers).all(|worker| !run.parts[worker].is_empty()) {
            actions.push(Action::Publish);
        }
        let writers = (0..run.workers).filter(|writer| self.may_commit(state, run, *writer));
        actions.extend(writers.map(Action::Commit));
    }

    /// Writes decided records again that the marker does not know of; `None` if that can't be told.
    fn redo(&self, state: &mut State, writer: usize, read: Option<u8>) -> Option<()> {
        let known = state.manifest.committed[writer];
        let outbox = state.manifest.outbox[writer].clone();
        if read.is_none() && known > 0 && !outbox.is_empty() && self.0 != Wrong::NoMarker {
            return None;
        }
        let done = read.unwrap_or(0).max(known);
        let missing: Vec<_> = outbox.into_iter().filter(|(epoch, _)| *epoch > done).collect();
        let records: Records = missing.into_iter().flat_map(|(_, records)| records).collect();
        let unmarked = matches!(self.0, Wrong::StartsWithoutMarker | Wrong::FirstEpochBringsMarker);
        if self.0 != Wrong::NoRedo && (!records.is_empty() || !unmarked) {
            self.commit(state, writer, &Transaction { through: state.manifest.epoch, records });
        }
        Some(())
    }

    /// The checkpoint once more: of writers that have got that far it says so, and their outputs are forgotten.
    fn adopt(&self, manifest: &mut Manifest, starting: &Starting) {
        for writer in (0..WRITERS).filter(|writer| starting.redone[*writer] || self.0 == Wrong::AdoptsForOthers) {
            manifest.committed[writer] = manifest.epoch;
            manifest.outbox[writer].clear();
        }
    }

    fn close(&self, state: &State, run: &mut Run, worker: usize) {
        let records = std::mem::take(&mut run.records[worker]);
        let owned = (0..PARTITIONS).filter(|partition| partition % run.workers == worker);
        let positions = owned.map(|partition| (partition as u8, run.taken[partition])).collect();
        run.parts[worker].push(Part { positions, records: records.clone() });
        let epoch = state.manifest.epoch + run.parts[worker].len() as u8;
        let first = !std::mem::replace(&mut run.closed[worker], true);
        if !records.is_empty() || (first && self.0 == Wrong::FirstEpochBringsMarker) {
            run.transactions[worker].push(Transaction { through: epoch, records });
        } else if run.transactions[worker].is_empty() {
            // Nothing to commit: it counts as soon as it is decided.
            run.committed[worker] = epoch;
        }
    }

    fn publish(&self, state: &mut State, run: &mut Run) {
        let manifest = &mut state.manifest;
        manifest.epoch += 1;
        for writer in 0..WRITERS {
            manifest.committed[writer] = run.committed[writer].min(manifest.epoch);
            let committed = manifest.committed[writer];
            let forgets = self.0 == Wrong::ForgetsOutbox;
            manifest.outbox[writer].retain(|(epoch, _)| *epoch > committed && !forgets);
        }
        for writer in 0..run.workers {
            let part = run.parts[writer].remove(0);
            part.positions.iter().for_each(|(partition, taken)| manifest.positions[*partition as usize] = *taken);
            if !part.records.is_empty() && manifest.epoch > run.committed[writer] && self.0 != Wrong::ForgetsOutbox {
                manifest.outbox[writer].push((manifest.epoch, part.records));
            }
        }
    }
}

impl Model for Protocol {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            job: Job::Down,
            manifest: Manifest::default(),
            out: Default::default(),
            marker: [None; WRITERS],
            late: Default::default(),
            crashes: 0,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for writer in 0..WRITERS {
            if state.late[writer].is_some() {
                actions.push(Action::LateCommit(writer));
            }
        }
        match &state.job {
            Job::Down => actions.extend((1..=WRITERS).map(Action::Start)),
            Job::Starting(starting) => self.starting_actions(starting, actions),
            Job::Running(run) => self.running_actions(state, run, actions),
            Job::Refused => {}
        }
        if state.crashes < CRASHES && matches!(state.job, Job::Starting(_) | Job::Running(_)) {
            actions.push(Action::Crash);
        }
    }

    fn next_state(&self, before: &State, action: Action) -> Option<State> {
        let mut state = before.clone();
        let job = std::mem::replace(&mut state.job, Job::Down);
        state.job = match (job, action) {
            (Job::Down, Action::Start(workers)) => Job::Starting(Starting {
                workers,
                fenced: [false; WRITERS],
                read: [None; WRITERS],
                redone: [false; WRITERS],
                adopted: false,
            }),
            (Job::Starting(mut starting), Action::Fence(writer)) => {
                starting.fenced[writer] = true;
                state.late[writer] = None;
                Job::Starting(starting)
            }
            (Job::Starting(mut starting), Action::ReadMarker(writer)) => {
                starting.read[writer] = Some(state.marker[writer]);
                Job::Starting(starting)
            }
            (Job::Starting(mut starting), Action::Redo(writer)) => {
                starting.redone[writer] = true;
                match self.redo(&mut state, writer, starting.read[writer].flatten()) {
                    Some(()) => Job::Starting(starting),
                    None => Job::Refused,
                }
            }
            (Job::Starting(mut starting), Action::Adopt) => {
                starting.adopted = true;
                self.adopt(&mut state.manifest, &starting);
                Job::Starting(starting)
            }
            (Job::Starting(starting), Action::Run) => Job::Running(Run {
                workers: starting.workers,
                taken: state.manifest.positions,
                records: Default::default(),
                parts: Default::default(),
                transactions: Default::default(),
                // What was decided before is committed by now, or was by somebody who knew.
                committed: [state.manifest.epoch; WRITERS],
                closed: [false; WRITERS],
            }),
            (Job::Running(mut run), action) => {
                self.run(&mut state, &mut run, &action);
                if action == Action::Crash { Job::Down } else { Job::Running(run) }
            }
            (job, Action::LateCommit(writer)) => {
                self.late(&mut state, writer);
                job
            }
            (_, Action::Crash) => {
                state.crashes += 1;
                Job::Down
            }
            (job, _) => job,
        };
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("each once and in order", |_, state: &State| {
                state.out.iter().all(|seen| seen.iter().zip(1..).all(|(number, expected)| *number == expected))
            }),
            Property::always("a start can tell", |_, state: &State| state.job != Job::Refused),
            Property::eventually("all arrive", |_, state: &State| {
                state.out.iter().all(|seen| seen.len() >= usize::from(EVENTS))
            }),
        ]
    }
}

impl Protocol {
    fn run(&self, state: &mut State, run: &mut Run, action: &Action) {
        match *action {
            Action::Take(partition) => {
                run.taken[partition] += 1;
                run.records[partition % run.workers].push((partition as u8, run.taken[partition]));
            }
            Action::Close(worker) => self.close(state, run, worker),
            Action::Publish => self.publish(state, run),
            Action::Commit(writer) => {
                let transaction = run.transactions[writer].remove(0);
                self.commit(state, writer, &transaction);
                run.committed[writer] = transaction.through;
            }
            Action::LateCommit(writer) => self.late(state, writer),
            Action::Crash => {
                state.crashes += 1;
                // It may have sent a commit that is still on its way.
                for writer in (0..run.workers).filter(|writer| self.may_commit(state, run, *writer)).collect::<Vec<_>>()
                {
                    state.late[writer] = run.transactions[writer].first().cloned();
                }
            }
            _ => {}
        }
    }

    fn late(&self, state: &mut State, writer: usize) {
        if let Some(transaction) = state.late[writer].take() {
            self.commit(state, writer, &transaction);
        }
    }
}

/// Looks at everything that can happen; gives the number of states and what is violated, with the way there.
fn check(wrong: Wrong) -> (usize, Vec<String>) {
    let checked = Protocol(wrong).checker().finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    let told =
        |(name, path): (&'static str, stateright::Path<State, Action>)| format!("{name}: {:?}", path.into_actions());
    (checked.unique_state_count(), checked.discoveries().into_iter().map(told).collect())
}

#[test]
fn nothing_that_can_happen_breaks_the_protocol() {
    let (states, violated) = check(Wrong::Nothing);
    println!("{states} states");
    assert!(violated.is_empty(), "{violated:#?}");
    assert!(states > 10_000, "{states} states are too few to be everything");
}

#[test]
fn its_wrong_relatives_are_broken() {
    use Wrong::*;
    for wrong in [
        CommitFirst,
        NoMarker,
        MarkerBeforeFence,
        NoRedo,
        ForgetsOutbox,
        LeavesFormerWriters,
        StartsWithoutMarker,
        FirstEpochBringsMarker,
        AdoptsForOthers,
    ] {
        let (states, violated) = check(wrong);
        println!("{wrong:?}: {states} states, {violated:?}");
        assert!(!violated.is_empty(), "{wrong:?} is not found out");
    }
}
