//! Failpoints: places in the commit protocol where a test has the process die or wait, troubles of its world, and mistakes that
//! a test has it make, to see that they are noticed.
//!
//! Builds with debug assertions only; in a release build nothing is left of them. `MILLSTREAM_FAILPOINTS` says what happens,
//! here: wait for 100 ms whenever a checkpoint is about to be written, die when the third manifest appears, panic when a file has been
//! written to for the first time, find the disk full while there is `/tmp/full`, forget the markers.
//!
//! ```text
//! MILLSTREAM_FAILPOINTS="checkpoint-gathered=sleep:100,manifest-published=kill@3,lines-written=panic@1,disk-full=/tmp/full,no-marker"
//! ```
//! `tests/kafka/chaos.rs` has a job die at each of them.

use std::path::PathBuf;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

macro_rules! names {
    ($(#[$about:meta])* $kind:ident { $($(#[$doc:meta])* $variant:ident = $name:literal,)* }) => {
        $(#[$about])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $kind {
            $($(#[$doc])* $variant,)*
        }

        impl $kind {
            /// All there are.
            pub const ALL: &[$kind] = &[$($kind::$variant),*];

            /// Its name in `MILLSTREAM_FAILPOINTS`.
            pub fn name(self) -> &'static str {
                match self {
                    $($kind::$variant => $name,)*
                }
            }
        }
    };
}

names! {
    /// A place at which a process may die, in the order in which an epoch comes by.
    Point {
        /// The newest checkpoint has been read; nothing has been done with it.
        StateLoaded = "state-loaded",
        /// A start has taken over the job; nothing outside has been told.
        JobTakenOver = "job-taken-over",
        /// A file sink has been cut back to its checkpoint.
        FileCut = "file-cut",
        /// Both transactional ids of a writer are taken: what an earlier run left open is ended.
        WritersFenced = "writers-fenced",
        /// A start knows how far an earlier run had committed.
        MarkerFound = "marker-found",
        /// Decided records of an earlier run have been written again and are not committed.
        OutboxSent = "outbox-sent",
        /// Lines of a file sink are written and may not be durable.
        LinesWritten = "lines-written",
        /// All records of a transaction are acknowledged; it waits for the decision.
        RecordsDrained = "records-drained",
        /// Everything of an epoch is there, and nothing of its checkpoint.
        CheckpointGathered = "checkpoint-gathered",
        /// What has changed is in the segment, durably; no manifest names it.
        BlocksAppended = "blocks-appended",
        /// The manifest is written, under a name that does not count.
        ManifestDrafted = "manifest-drafted",
        /// The manifest is there: the epoch is decided, and nobody has been told.
        ManifestPublished = "manifest-published",
        /// A file that no checkpoint needs is removed, others are still there.
        FileSwept = "file-swept",
        /// The marker is in the transaction, which is not committed.
        MarkerSent = "marker-sent",
        /// A transaction is committed, and nobody has been told.
        TransactionCommitted = "transaction-committed",
        /// The files of a table are complete; no version of the table has them.
        TableStaged = "table-staged",
        /// A new version of a table is there, and nobody has been told.
        TableCommitted = "table-committed",
        /// Changes have been merged into a new base or segment; no manifest names it.
        BaseMerged = "base-merged",
    }
}

names! {
    /// A mistake that the protocol is there to avoid. Each makes it lose or repeat something, or mix it up.
    Flaw {
        /// Transactions are committed before the manifest that decides them.
        CommitFirst = "commit-first",
        /// Tables are committed before the manifest that decides their rows.
        TableFirst = "table-first",
        /// Transactions bear no marker.
        NoMarker = "no-marker",
        /// The marker is read before the transactional ids are taken.
        MarkerBeforeFence = "marker-before-fence",
        /// A start that has taken the transactional ids does not ask whether it still has the job.
        NoAsk = "no-ask",
        /// A start does not write decided records again.
        NoRedo = "no-redo",
        /// A start does not write decided rows of tables again.
        NoTableRedo = "no-table-redo",
        /// The second producer does not wait until the first is acknowledged, and the first is slow, so that the race is lost.
        NoOrder = "no-order",
        /// The last batch of every epoch is not in the outbox.
        DropLast = "drop-last",
        /// Every batch is written twice.
        WriteTwice = "write-twice",
        /// Every other key group's changes are not saved.
        LoseState = "lose-state",
        /// What detectors remember, and outcomes of their keys, is not saved.
        LoseSlow = "lose-slow",
        /// Positions are one too far.
        SkipOne = "skip-one",
        /// A position is one too early.
        RepeatOne = "repeat-one",
        /// A call of a transaction that has had no answer in time is not made again.
        NoRetry = "no-retry",
        /// A file sink is not cut back.
        NoCut = "no-cut",
        /// What a manifest names is not made durable before it.
        NoSync = "no-sync",
    }
}

names! {
    /// A trouble that lasts for as long as there is a file.
    Trouble {
        /// The disk of the state takes half of what is written, and says that it is full.
        DiskFull = "disk-full",
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Action {
    /// Die when it is reached for this time.
    Kill(u64),
    /// Panic at this time, as a bug would.
    Panic(u64),
    /// Wait, always or at this time.
    Sleep(Duration, Option<u64>),
}

#[derive(Debug, Default)]
struct Failpoints {
    points: Vec<(Point, Action, AtomicU64)>,
    flaws: Vec<Flaw>,
    troubles: Vec<(Trouble, PathBuf)>,
}

static SET: LazyLock<Failpoints> = LazyLock::new(|| {
    let text = std::env::var("MILLSTREAM_FAILPOINTS").unwrap_or_default();
    let parsed = parse(&text);
    parsed.unwrap_or_else(|wrong| panic!("MILLSTREAM_FAILPOINTS: `{wrong}` is no failpoint"))
});

/// Reads the variable; an error is the part that is none.
fn parse(text: &str) -> Result<Failpoints, String> {
    let mut set = Failpoints::default();
    for part in text.split(',').filter(|part| !part.is_empty()) {
        let (name, action) = part.split_once('=').unwrap_or((part, ""));
        let point = Point::ALL.iter().find(|point| point.name() == name);
        let flaw = Flaw::ALL.iter().find(|flaw| flaw.name() == name);
        if let Some(trouble) = Trouble::ALL.iter().find(|trouble| trouble.name() == name) {
            set.troubles.push((*trouble, action.into()));
            continue;
        }
        let action = || {
            let (what, at) = action.split_once('@').map_or((action, None), |(what, at)| (what, Some(at)));
            let at = at.map(str::parse).transpose().ok()?;
            match what.split_once(':') {
                None if what == "kill" => Some(Action::Kill(at?)),
                None if what == "panic" => Some(Action::Panic(at?)),
                Some(("sleep", pause)) => Some(Action::Sleep(Duration::from_millis(pause.parse().ok()?), at)),
                _ => None,
            }
        };
        match (point, flaw) {
            (Some(point), _) => {
                set.points.push((*point, action().ok_or(part)?, AtomicU64::new(0)));
            }
            (None, Some(flaw)) if part == name => set.flaws.push(*flaw),
            _ => return Err(part.to_string()),
        }
    }
    Ok(set)
}

/// A place has been reached: whatever is set for it happens.
#[track_caller]
pub fn reached(point: Point) {
    if !cfg!(debug_assertions) {
        return;
    }
    for (_, action, times) in SET.points.iter().filter(|(set, ..)| *set == point) {
        let times = times.fetch_add(1, Ordering::Relaxed) + 1;
        match action {
            Action::Kill(at) if *at == times => {
                tracing::error!(point = point.name(), times, "failpoint: dying");
                std::process::abort();
            }
            Action::Panic(at) if *at == times => panic!("failpoint: {}", point.name()),
            Action::Sleep(pause, at) if at.is_none_or(|at| at == times) => {
                tracing::warn!(point = point.name(), times, ?pause, "failpoint: waiting");
                std::thread::sleep(*pause);
            }
            Action::Kill(_) | Action::Panic(_) | Action::Sleep(..) => {}
        }
    }
}

/// Whether there is the trouble now.
pub fn lasts(trouble: Trouble) -> bool {
    cfg!(debug_assertions) && SET.troubles.iter().any(|(set, path)| *set == trouble && path.exists())
}

/// Whether the mistake is to be made.
pub fn has(flaw: Flaw) -> bool {
    cfg!(debug_assertions) && SET.flaws.contains(&flaw)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_failpoint_is_named() {
        let set =
            parse("table-staged=kill@3,file-cut=panic@1,no-redo,,marker-sent=sleep:20,disk-full=/tmp/full").unwrap();
        let points: Vec<_> = set.points.iter().map(|(point, action, _)| (*point, *action)).collect();
        let expected = [
            (Point::TableStaged, Action::Kill(3)),
            (Point::FileCut, Action::Panic(1)),
            (Point::MarkerSent, Action::Sleep(Duration::from_millis(20), None)),
        ];
        assert_eq!((&points[..], &set.flaws[..]), (&expected[..], &[Flaw::NoRedo][..]));
        assert_eq!(set.troubles, [(Trouble::DiskFull, PathBuf::from("/tmp/full"))]);
        for wrong in
            ["table-staged", "table-staged=kill", "file-cut=panic", "no-redo=kill@1", "nothing", "marker-sent=sleep:x"]
        {
            assert_eq!(parse(&format!("no-cut,{wrong}")).unwrap_err(), wrong);
        }
    }
}
