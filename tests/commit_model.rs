//! The commit protocol as a model, every interleaving of which is looked at: two partitions, jobs of one or two workers,
//! pipelined epochs, crashes at every step, commits that arrive at the broker after the job has died, starts with
//! another number of workers, a start from which another one takes over and that goes on until it notices. The protocol
//! must hold; each of its wrong relatives must not.
//!
//! Model checking by stateright. What the steps are in the code: `src/runtime/checkpoints.rs` (manifest),
//! `src/sinks/kafka/transactional.rs` (transactions, fence, marker, redo).

use stateright::{Checker, HasDiscoveries, Model, Property};

use start::{Former, Starting, Who, begin};

mod start;

const PARTITIONS: usize = 2;
/// Writers there may ever be: one for each worker.
const WRITERS: usize = 2;
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
    /// A start that has fenced a writer does not make sure that it still has the job.
    FencesUnasked,
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
    /// A start of a job without a checkpoint begins a new one.
    life: u8,
    epoch: u8,
    positions: [u8; PARTITIONS],
    /// By writer: epochs with records that may not be committed.
    outbox: [Vec<(u8, Records)>; WRITERS],
    committed: [u8; WRITERS],
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct State {
    job: Job,
    former: Option<Former>,
    /// Who has fenced a writer last.
    fenced_by: [Who; WRITERS],
    overlaps: u8,
    manifest: Manifest,
    /// What a reader of committed records sees of each partition.
    out: [Vec<u8>; PARTITIONS],
    /// Life and epoch.
    marker: [Option<(u8, u8)>; WRITERS],
    /// A commit that a dead run has sent and the broker has not got yet.
    late: [Option<Transaction>; WRITERS],
    crashes: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Action {
    Start(usize),
    /// Another start, with so many workers, takes over from one on its way.
    Overlap(usize),
    Fence(Who, usize),
    MakeSure(Who, usize),
    ReadMarker(Who, usize),
    Redo(Who, usize),
    Adopt(Who),
    Run,
    Take(usize),
    Close(usize),
    Publish,
    Commit(usize),
    LateCommit(usize),
    Crash,
}

/// The protocol or one of its relatives, and what happens to it.
struct Protocol {
    wrong: Wrong,
    /// Events of a partition.
    events: u8,
    crashes: u8,
    /// How many starts another one takes over from.
    overlaps: u8,
}

impl Protocol {
    fn may_commit(&self, state: &State, run: &Run, writer: usize) -> bool {
        let first = run.transactions[writer].first();
        first.is_some_and(|first| first.through <= state.manifest.epoch || self.wrong == Wrong::CommitFirst)
    }

    /// A transaction becomes visible, with its marker.
    fn commit(&self, state: &mut State, life: u8, writer: usize, transaction: &Transaction) {
        for (partition, number) in &transaction.records {
            state.out[*partition as usize].push(*number);
        }
        if self.wrong != Wrong::NoMarker {
            state.marker[writer] = Some((life, transaction.through));
        }
    }

    fn running_actions(&self, state: &State, run: &Run, actions: &mut Vec<Action>) {
        for (partition, taken) in run.taken.iter().enumerate() {
            if *taken < self.events {
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

    fn close(&self, state: &State, run: &mut Run, worker: usize) {
        let records = std::mem::take(&mut run.records[worker]);
        let owned = (0..PARTITIONS).filter(|partition| partition % run.workers == worker);
        let positions = owned.map(|partition| (partition as u8, run.taken[partition])).collect();
        run.parts[worker].push(Part { positions, records: records.clone() });
        let epoch = state.manifest.epoch + run.parts[worker].len() as u8;
        let first = !std::mem::replace(&mut run.closed[worker], true);
        if !records.is_empty() || (first && self.wrong == Wrong::FirstEpochBringsMarker) {
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
            let forgets = self.wrong == Wrong::ForgetsOutbox;
            manifest.outbox[writer].retain(|(epoch, _)| *epoch > committed && !forgets);
        }
        for writer in 0..run.workers {
            let part = run.parts[writer].remove(0);
            part.positions.iter().for_each(|(partition, taken)| manifest.positions[*partition as usize] = *taken);
            if !part.records.is_empty() && manifest.epoch > run.committed[writer] && self.wrong != Wrong::ForgetsOutbox
            {
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
            former: None,
            fenced_by: [Who::Owner; WRITERS],
            overlaps: 0,
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
            Job::Starting(starting) => self.starting_actions(starting, Who::Owner, actions),
            Job::Running(run) => self.running_actions(state, run, actions),
            Job::Refused => {}
        }
        if let Some(former) = &state.former {
            self.starting_actions(&former.starting, Who::Former, actions);
        }
        if state.overlaps < self.overlaps && matches!(state.job, Job::Starting(_)) {
            actions.extend((1..=WRITERS).map(Action::Overlap));
        }
        if state.crashes < self.crashes && matches!(state.job, Job::Starting(_) | Job::Running(_)) {
            actions.push(Action::Crash);
        }
    }

    fn next_state(&self, before: &State, action: Action) -> Option<State> {
        let mut state = before.clone();
        if let Action::Fence(Who::Former, _)
        | Action::MakeSure(Who::Former, _)
        | Action::ReadMarker(Who::Former, _)
        | Action::Redo(Who::Former, _)
        | Action::Adopt(Who::Former) = action
        {
            let former = state.former.take()?;
            state.former = self.lose(&mut state, former, &action);
            return Some(state);
        }
        let job = std::mem::replace(&mut state.job, Job::Down);
        state.job = match (job, action) {
            (Job::Down, Action::Start(workers)) => begin(&mut state.manifest, workers),
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
            // It is started again.
            (Job::Running(_), Action::Commit(writer)) if state.fenced_by[writer] == Who::Former => Job::Down,
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
            (Job::Starting(starting), action) => self.start(&mut state, starting, &action),
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
            Property::eventually("all arrive", |protocol: &Protocol, state: &State| {
                state.out.iter().all(|seen| seen.len() >= usize::from(protocol.events))
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
                let life = state.manifest.life;
                self.commit(state, life, writer, &transaction);
                run.committed[writer] = transaction.through;
            }
            Action::LateCommit(writer) => self.late(state, writer),
            Action::Crash => {
                state.crashes += 1;
                // It may have sent a commit that is still on its way.
                let sent =
                    |writer: &usize| state.fenced_by[*writer] == Who::Owner && self.may_commit(state, run, *writer);
                for writer in (0..run.workers).filter(sent).collect::<Vec<_>>() {
                    state.late[writer] = run.transactions[writer].first().cloned();
                }
            }
            _ => {}
        }
    }

    fn late(&self, state: &mut State, writer: usize) {
        if let Some(transaction) = state.late[writer].take() {
            let life = state.manifest.life;
            self.commit(state, life, writer, &transaction);
        }
    }
}

impl Protocol {
    /// A job that is killed as it may be.
    fn killed(wrong: Wrong) -> Protocol {
        Protocol { wrong, events: 2, crashes: 2, overlaps: 0 }
    }

    /// Two starts at once. With two events a partition there are 12 million states.
    fn overlapping(wrong: Wrong) -> Protocol {
        Protocol { wrong, events: 1, crashes: 0, overlaps: 1 }
    }

    /// Looks at everything that can happen; gives the number of states and what is violated, with the way there.
    fn check(self) -> (usize, Vec<String>) {
        let checked = self.checker().finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
        let told = |(name, path): (&'static str, stateright::Path<State, Action>)| {
            format!("{name}: {:?}", path.into_actions())
        };
        (checked.unique_state_count(), checked.discoveries().into_iter().map(told).collect())
    }
}

#[test]
fn nothing_that_can_happen_breaks_the_protocol() {
    for protocol in [Protocol::killed(Wrong::Nothing), Protocol::overlapping(Wrong::Nothing)] {
        let (states, violated) = protocol.check();
        println!("{states} states");
        assert!(violated.is_empty(), "{violated:#?}");
        assert!(states > 10_000, "{states} states are too few to be everything");
    }
}

#[test]
fn its_wrong_relatives_are_broken() {
    use Wrong::*;
    let killed = [
        CommitFirst,
        NoMarker,
        MarkerBeforeFence,
        NoRedo,
        ForgetsOutbox,
        LeavesFormerWriters,
        StartsWithoutMarker,
        FirstEpochBringsMarker,
        AdoptsForOthers,
    ];
    for protocol in killed.map(Protocol::killed).into_iter().chain([Protocol::overlapping(FencesUnasked)]) {
        let wrong = protocol.wrong;
        let (states, violated) = protocol.check();
        println!("{wrong:?}: {states} states, {violated:?}");
        assert!(!violated.is_empty(), "{wrong:?} is not found out");
    }
}
