//! Exactly once, whatever is killed. A job on a real broker dies without warning - at random moments, at each step of the
//! commit protocol, frozen while another copy takes over - and is started again with another number of workers. In the end
//! every input must be accounted for once, in every output, and every value must be what an uninterrupted run would have
//! written.
//!
//! Whether the proof proves anything is tested as well: builds with a mistake in the protocol must be found out.
//!
//! `KILLS=300 SEED=7` (or `make chaos`) runs it longer, or again as it was.

use std::collections::BTreeMap;
use std::path::PathBuf;

use millstream::failpoint::{Flaw, Point};
use serde_json::Value;

use super::service::Service;
use super::*;
use crate::program::Running;
use crate::random::{Random, seed, variable};
use world::{Reader, Writer};

pub mod oracle;
pub mod world;

const PARTITIONS: i32 = 3;

/// How long outputs may not grow before it is clear that nothing more comes.
const SILENCE: Duration = Duration::from_secs(20);
/// The same for a job that is known to be wrong.
const SILENCE_OF_THE_WRONG: Duration = Duration::from_secs(3);

/// How a run of the job ends.
#[derive(Debug, Clone, Copy)]
enum Death {
    /// It is killed so long after its start.
    Early(Duration),
    /// It is killed so long after it has made a checkpoint.
    Working(Duration),
    /// It dies by itself when it comes by for this time.
    At(Point, u64),
}

/// A job, its topics, who writes and who reads.
struct Chaos {
    service: Service,
    writer: Writer,
    vectors: Reader,
    rejects: Reader,
    /// A mistake that it makes in every run.
    flaw: Option<Flaw>,
    /// More that is set for every run but the last.
    pauses: &'static str,
    runs: u64,
    deaths: BTreeMap<String, u64>,
}

impl Chaos {
    fn new(seed: u64, flaw: Option<Flaw>) -> Chaos {
        let service = Service::new(brokers(), "chaos").create([("events", PARTITIONS), ("vectors", 2), ("rejects", 1)]);
        Chaos {
            writer: Writer::start(service.brokers.clone(), service.topic("events"), seed),
            vectors: Reader::start(&service.brokers, &service.topic("vectors"), 2),
            rejects: Reader::start(&service.brokers, &service.topic("rejects"), 1),
            service,
            flaw,
            pauses: "",
            runs: 0,
            deaths: BTreeMap::new(),
        }
    }

    /// The epoch of the newest checkpoint, 0 before the first.
    fn newest_epoch(&self) -> u64 {
        let Ok(entries) = std::fs::read_dir(self.service.folder().join("state/manifest")) else { return 0 };
        let epoch = |path: PathBuf| -> Option<u64> {
            let manifest: Value = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
            manifest["epoch"].as_u64()
        };
        entries.filter_map(|entry| epoch(entry.ok()?.path())).max().unwrap_or_default()
    }

    fn start(&mut self, workers: u64, failpoints: &str) -> Running {
        self.runs += 1;
        let flaw = self.flaw.map_or("", Flaw::name);
        let mut command = self.service.command();
        command.env("MILLSTREAM_FAILPOINTS", format!("{flaw},{failpoints}"));
        command.arg("run").arg(self.service.topology());
        Running::start(command.args(["--workers", &workers.to_string(), "--http", "off"]))
    }

    /// Runs the job until its death.
    fn live(&mut self, workers: u64, death: Death) {
        let failpoint = match death {
            Death::At(point, times) => format!("{},{}=kill@{times}", self.pauses, point.name()),
            Death::Early(_) | Death::Working(_) => self.pauses.to_string(),
        };
        let before = self.newest_epoch();
        let mut running = self.start(workers, &failpoint);
        let until = |running: &mut Running, done: &dyn Fn() -> bool| {
            let deadline = Instant::now() + LONG;
            while running.runs() && !done() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(5));
            }
        };
        let pause = match death {
            Death::Early(pause) => pause,
            Death::Working(pause) => {
                until(&mut running, &|| self.newest_epoch() != before);
                pause
            }
            Death::At(..) => {
                until(&mut running, &|| false);
                Duration::ZERO
            }
        };
        std::thread::sleep(pause);
        let died = !running.runs();
        let expected = matches!(death, Death::At(point, _) if running.err().contains(point.name()));
        assert!(died == expected, "run {} ({death:?}, {workers} workers): {}", self.runs, running.err());
        let name = match death {
            Death::Early(_) => "at the start",
            Death::Working(_) => "at work",
            Death::At(point, _) => point.name(),
        };
        *self.deaths.entry(name.to_string()).or_default() += 1;
        println!("run {}: {workers} workers, {death:?}, {} events written", self.runs, self.writer.written());
    }

    /// A last run, which is left alone until all has come that will come, and is told to stop; then what is wrong with any
    /// of the outputs.
    fn finish(mut self, workers: u64) -> Result<(), String> {
        let silence = if self.flaw.is_some() { SILENCE_OF_THE_WRONG } else { SILENCE };
        let mut running = self.start(workers, "");
        std::thread::sleep(Duration::from_millis(300));
        let oracle = self.writer.finish();
        let all = oracle.expected.len() + oracle.poison.len();
        let (mut grown, mut before) = (Instant::now() + SILENCE, 0);
        // One that was stopped before it reads has not started.
        while (before < all || !running.err().contains("\"reading\"")) && grown.elapsed() < silence {
            let now = self.vectors.len() + self.rejects.len();
            if now > before {
                (grown, before) = (Instant::now(), now);
            }
            if !running.runs() {
                return Err(format!("the last run has ended: {}", running.err()));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        running.terminate();
        let said = running.end();
        if !said.status.success() {
            return Err(format!("the last run: {}: {}", said.status, said.err));
        }
        let about = |what: &'static str| move |wrong: String| format!("{what}: {wrong}");
        let (vectors, rejects) = (self.vectors.finish(), self.rejects.finish());
        oracle.check_vectors(vectors.iter().map(Vec::as_slice)).map_err(about("topic"))?;
        let lines = std::fs::read(self.service.folder().join("vectors.jsonl")).map_err(|error| error.to_string())?;
        let lines = lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        oracle.check_vectors(lines).map_err(about("file"))?;
        oracle.check_table(&self.service.folder().join("lake")).map_err(about("table"))?;
        oracle.check_rejects(rejects.iter().map(Vec::as_slice)).map_err(about("dead letters"))?;
        println!(
            "{} deaths ({}), {} generations, {} events, {} dead letters: 0 lost, 0 repeated",
            self.runs - 1,
            self.deaths.iter().map(|(name, count)| format!("{name} {count}")).collect::<Vec<_>>().join(", "),
            self.runs,
            vectors.len(),
            rejects.len()
        );
        Ok(())
    }
}

/// A death of any kind.
fn death(random: &mut Random) -> Death {
    let pause = Duration::from_millis(random.below(900));
    match random.below(5) {
        0 => Death::Early(pause),
        1 | 2 => Death::Working(pause),
        _ => {
            // Where a run always comes by, and soon; the others have a test of their own.
            let often = [
                Point::StateLoaded,
                Point::FileCut,
                Point::WritersFenced,
                Point::MarkerFound,
                Point::LinesWritten,
                Point::RecordsDrained,
                Point::CheckpointGathered,
                Point::BlocksAppended,
                Point::ManifestDrafted,
                Point::ManifestPublished,
                Point::MarkerSent,
                Point::TransactionCommitted,
                Point::TableStaged,
                Point::TableCommitted,
            ];
            let point = often[random.below(often.len() as u64) as usize];
            let times = match point {
                Point::StateLoaded | Point::FileCut => 1,
                Point::TableStaged | Point::TableCommitted | Point::WritersFenced | Point::MarkerFound => {
                    1 + random.below(2)
                }
                _ => 1 + random.below(12),
            };
            Death::At(point, times)
        }
    }
}

#[test]
fn nothing_is_lost_and_nothing_repeated_however_often_the_job_is_killed() {
    let kills = variable("KILLS").unwrap_or(8);
    let seed = seed();
    let (mut random, mut chaos) = (Random(seed), Chaos::new(seed, None));
    for _ in 0..kills {
        chaos.live(1 + random.below(4), death(&mut random));
    }
    chaos.finish(1 + random.below(4)).unwrap();
}

#[test]
fn a_job_may_die_at_every_step() {
    let seed = seed();
    let (mut random, mut chaos) = (Random(seed), Chaos::new(seed, None));
    for point in Point::ALL {
        // Some steps have a reason: an outbox that is not committed, manifests to be swept, segments that are worth a merge.
        match point {
            Point::OutboxSent => chaos.live(2, Death::At(Point::ManifestPublished, 5)),
            Point::BaseMerged => {
                while chaos.runs < 18 {
                    chaos.live(1, Death::At(Point::MarkerSent, 1));
                }
            }
            _ => {}
        }
        chaos.live(1 + random.below(3), Death::At(*point, 1));
    }
    chaos.finish(2).unwrap();
}

/// A copy of the job is frozen between the decision of an epoch and its commit, another takes over on another machine, and
/// the first wakes up: after that, or while the other starts.
fn take_over(flaw: Option<Flaw>, failpoints_of_the_other: &str) -> Result<(), String> {
    let mut chaos = Chaos::new(seed(), flaw);
    let waits = |running: &mut Running, point: Point| {
        let deadline = Instant::now() + LONG;
        while !(running.err().contains("failpoint: waiting") && running.err().contains(point.name())) {
            assert!(running.runs() && Instant::now() < deadline, "{}", running.err());
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    let mut frozen = chaos.start(2, "records-drained=sleep:1500@20");
    waits(&mut frozen, Point::RecordsDrained);
    // Its epoch is decided while the commit waits.
    std::thread::sleep(Duration::from_millis(500));
    frozen.signal("STOP");
    // The first one's folder stays.
    let copy = chaos.service.copy();
    let _first = std::mem::replace(&mut chaos.service, copy);
    let before = chaos.newest_epoch();
    let mut other = chaos.start(1, failpoints_of_the_other);
    if failpoints_of_the_other.is_empty() {
        let deadline = Instant::now() + LONG;
        while chaos.newest_epoch() == before {
            assert!(other.runs() && Instant::now() < deadline, "{}", other.err());
            std::thread::sleep(Duration::from_millis(5));
        }
    } else {
        waits(&mut other, Point::MarkerFound);
    }
    frozen.signal("CONT");
    if flaw.is_none() {
        let said = frozen.end();
        assert!(!said.status.success() && said.err.contains("another copy of this job has taken over"), "{}", said.err);
    } else {
        std::thread::sleep(Duration::from_secs(5));
        drop(frozen);
    }
    assert!(other.runs(), "{}", other.err());
    drop(other);
    chaos.finish(2)
}

#[test]
fn a_frozen_copy_that_wakes_up_does_no_harm() {
    take_over(None, "").unwrap();
}

#[test]
fn who_reads_the_marker_before_the_fence_is_found_out() {
    let wrong = take_over(Some(Flaw::MarkerBeforeFence), "marker-found=sleep:4000").unwrap_err();
    println!("{}: {wrong}", Flaw::MarkerBeforeFence.name());
}

/// Deaths that bring a mistake to light, and what must be set so that they do.
fn deaths_for(flaw: Flaw) -> (&'static str, &'static [Death]) {
    use Point::{CheckpointGathered, ManifestPublished, TableCommitted, TransactionCommitted};
    const WORKING: Death = Death::Working(Duration::from_millis(400));
    const LONGER: Death = Death::Working(Duration::from_millis(1500));
    match flaw {
        // The manifest takes its time.
        Flaw::CommitFirst => ("checkpoint-gathered=sleep:300", &[Death::At(TransactionCommitted, 10)]),
        Flaw::TableFirst => ("checkpoint-gathered=sleep:300", &[Death::At(TableCommitted, 1)]),
        Flaw::NoMarker => ("", &[Death::At(TransactionCommitted, 10)]),
        Flaw::NoRedo | Flaw::DropLast | Flaw::NoTableRedo => ("", &[Death::At(ManifestPublished, 6)]),
        Flaw::NoOrder | Flaw::WriteTwice => ("", &[LONGER]),
        Flaw::LoseState | Flaw::SkipOne | Flaw::RepeatOne => ("", &[WORKING, WORKING]),
        Flaw::NoCut => ("checkpoint-gathered=sleep:300", &[Death::At(CheckpointGathered, 3)]),
        Flaw::MarkerBeforeFence => unreachable!("it takes two copies of the job"),
    }
}

#[test]
fn every_mistake_is_found_out() {
    let seed = seed();
    for flaw in Flaw::ALL.iter().filter(|flaw| **flaw != Flaw::MarkerBeforeFence) {
        let (pauses, deaths) = deaths_for(*flaw);
        let mut chaos = Chaos::new(seed, Some(*flaw));
        chaos.pauses = pauses;
        for death in deaths {
            chaos.live(2, *death);
        }
        let wrong = chaos.finish(2).expect_err(flaw.name());
        println!("{}: {}", flaw.name(), wrong.lines().next().unwrap_or_default());
    }
}
