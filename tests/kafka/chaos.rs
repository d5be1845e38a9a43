//! Exactly once, whatever is killed. A job on a real broker dies without warning - at random moments, at each step of the
//! commit protocol, frozen while another copy takes over - and is started again with another number of workers. In the end
//! every input must be accounted for once, in every output, in what detectors and outcomes have come to, and every value must be
//! what an uninterrupted run would have written.
//!
//! Whether the proof proves anything is tested as well: builds with a mistake in the protocol must be found out.
//!
//! `KILLS=300 SEED=7` (or `make chaos`) runs it longer, or again as it was.

use millstream::failpoint::{Flaw, Point};

use super::service::Service;
use super::*;
use crate::random::{Random, seed, variable};
use deaths::{Step, Steps};
use driver::{Chaos, Death};
use troubles::Troubles;
use world::STREAM;

mod cluster;
pub mod deaths;
pub mod driver;
mod frozen;
mod network;
mod oracle;
mod power;
mod slow;
mod storage;
pub mod troubles;
pub mod world;

/// Runs of so many deaths and more have a broker of their own, which fails them, and take some seconds for a death now and then.
pub const MANY: u64 = 20;

/// So many segments may lie side by side. Each run that has made a checkpoint leaves one.
const FILES: usize = 16;
/// How long it takes until the brokers have ended a transaction of a job that has troubles of all kinds.
const ENDED_AFTER: Duration = Duration::from_secs(14);

/// A death of any kind, one of many or of few.
fn death(random: &mut Random, chaos: &mut Chaos, kills: u64) -> Death {
    let pause = Duration::from_millis(random.below(900));
    if kills >= MANY && random.below(20) == 0 {
        chaos.troubles.end();
        return Death::Frozen(ENDED_AFTER + pause);
    }
    match random.below(5) {
        0 => Death::Early(pause),
        1 | 2 => Death::Working(pause),
        _ => Death::Sought(chaos.steps.draw(random)),
    }
}

/// A job with all troubles, or one of few deaths, which has full disks only: a broker of its own takes a while to start.
fn chaos_of(kills: u64, seed: u64) -> Chaos {
    let steps = Steps::of_run(kills, &[]);
    if kills < MANY {
        return Chaos::new(seed).with_steps(steps);
    }
    let (service, troubles) = Troubles::of_all();
    Chaos::of(service, seed).with_steps(steps).with_troubles(troubles)
}

#[test]
fn nothing_is_lost_and_nothing_repeated_however_often_the_job_is_killed() {
    let kills = variable("KILLS").unwrap_or(8);
    let seed = seed();
    let (mut random, mut chaos) = (Random(seed), chaos_of(kills, seed));
    for _ in 0..kills {
        if random.below(3) == 0 {
            chaos.troubles.begin(&mut random);
        }
        let death = death(&mut random, &mut chaos, kills);
        chaos.live(1 + random.below(4), death);
    }
    chaos.finish(1 + random.below(4)).unwrap();
}

/// Threads go on for some milliseconds when one has panicked. They must not find that the model is gone already, which would make
/// dead letters of good events.
#[test]
fn a_panic_takes_nothing_from_threads_that_are_at_work() {
    let mut chaos = Chaos::new(seed());
    for times in 0..variable("KILLS").unwrap_or(8).min(24) {
        chaos.live(2, Death::Sought(Step::panic(Point::MarkerSent, 5 + times % 8)));
    }
    chaos.finish(1).unwrap();
}

#[test]
fn a_job_may_die_at_every_step() {
    let seed = seed();
    let (mut random, mut chaos) = (Random(seed), Chaos::new(seed).with_steps(Steps::without(&[])));
    for point in Point::ALL {
        // Some steps have a reason: an outbox that is not committed, manifests to be swept, segments that are worth a merge.
        match point {
            Point::OutboxSent => chaos.live(2, Death::At(Point::ManifestPublished, 5)),
            Point::BaseMerged => {
                while chaos.service.segments() <= FILES {
                    chaos.live(1, Death::At(Point::ManifestPublished, 3));
                }
            }
            _ => {}
        }
        chaos.live(1 + random.below(3), Death::At(*point, 1));
    }
    chaos.finish(2).unwrap();
}

/// Deaths that bring a mistake to light, and what must be set so that they do.
fn deaths_for(flaw: Flaw) -> (&'static str, &'static [Death]) {
    use Point::{CheckpointGathered, ManifestPublished, TableCommitted, TransactionCommitted};
    const LONGER: Death = Death::Working(Duration::from_millis(1500));
    match flaw {
        // The manifest takes its time, also in the eyes of a machine that is busy.
        Flaw::CommitFirst => ("checkpoint-gathered=sleep:1500", &[Death::At(TransactionCommitted, 10)]),
        Flaw::TableFirst => ("checkpoint-gathered=sleep:4000", &[Death::At(TableCommitted, 1)]),
        Flaw::NoMarker => ("", &[Death::At(TransactionCommitted, 10)]),
        Flaw::NoRedo | Flaw::DropLast | Flaw::NoTableRedo => ("", &[Death::At(ManifestPublished, 6)]),
        Flaw::NoOrder | Flaw::WriteTwice => ("", &[LONGER]),
        // At a start each writer commits one as well.
        Flaw::LoseState | Flaw::LoseSlow | Flaw::SkipOne | Flaw::RepeatOne => {
            ("", &[Death::At(TransactionCommitted, 20), Death::At(TransactionCommitted, 20)])
        }
        Flaw::NoCut => ("checkpoint-gathered=sleep:300", &[Death::At(CheckpointGathered, 3)]),
        Flaw::MarkerBeforeFence | Flaw::NoAsk => unreachable!("it takes two copies of the job"),
        Flaw::NoSync => unreachable!("it takes a loss of power"),
        Flaw::NoRetry => unreachable!("it takes a network that fails"),
    }
}

/// Runs a job with a mistake; what is wrong with its outputs.
fn with_mistake(seed: u64, flaw: Flaw) -> Result<(), String> {
    let (pauses, deaths) = deaths_for(flaw);
    let mut service = Service::new(brokers(), "chaos");
    if flaw == Flaw::RepeatOne {
        // Who lets each event go on once only does no harm by reading one twice.
        service = service.set(STREAM, "events");
    }
    let mut chaos = Chaos::of(service, seed).wrong(flaw);
    chaos.pauses = pauses;
    for death in deaths {
        chaos.live(2, *death);
    }
    chaos.finish(2).map(drop)
}

#[test]
fn every_mistake_is_found_out() {
    let seed = seed();
    for flaw in Flaw::ALL
        .iter()
        .filter(|flaw| !matches!(flaw, Flaw::MarkerBeforeFence | Flaw::NoAsk | Flaw::NoRetry | Flaw::NoSync))
    {
        // On a busy machine a mistake may do no harm now and then.
        let wrong = (0..3).find_map(|more| with_mistake(seed + more, *flaw).err()).expect(flaw.name());
        println!("{}: {}", flaw.name(), wrong.lines().next().unwrap_or_default());
        if *flaw == Flaw::LoseSlow {
            assert!(wrong.contains("detectors: ") && wrong.contains("outcomes: "), "{wrong}");
            assert!(!wrong.contains("topic: "), "{wrong}");
        }
    }
}
