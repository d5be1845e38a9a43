//! Two copies of a job: one sleeps, another takes over, and the first wakes up.

use millstream::failpoint::{Flaw, Point};

use super::super::service::Service;
use super::super::*;
use super::driver::{Chaos, Death, check_lost, until_waiting};
use crate::random::seed;

/// How long it takes until the brokers have ended a transaction of such a job. They look once a second.
const ENDED_AFTER: Duration = Duration::from_secs(8);

/// A job whose transactions end early.
fn with_short_transactions(seed: u64) -> Chaos {
    Chaos::of(Service::new(brokers(), "chaos").set("TRANSACTION_TIMEOUT", "6s"), seed)
}

/// A copy of the job is frozen between the decision of an epoch and its commit, another takes over on another machine, and
/// the first wakes up: after that, or while the other starts.
fn take_over(mut chaos: Chaos, failpoints_of_the_other: &str) -> Result<(), String> {
    // On a busy machine as well it is frozen before it sends its marker: brokers say nothing of one that is on its way.
    let mut frozen = chaos.start(2, "records-drained=sleep:5000@20");
    until_waiting(&mut frozen, Point::RecordsDrained);
    // Its epoch is decided while the commit waits.
    std::thread::sleep(Duration::from_millis(500));
    frozen.signal("STOP");
    chaos.move_away();
    let before = chaos.service.newest_epoch();
    let mut other = chaos.start(1, failpoints_of_the_other);
    if failpoints_of_the_other.is_empty() {
        chaos.until_checkpoint(&mut other, before);
    } else {
        until_waiting(&mut other, Point::MarkerFound);
    }
    frozen.signal("CONT");
    if chaos.is_wrong() {
        std::thread::sleep(Duration::from_secs(10));
        drop(frozen);
    } else {
        check_lost(&frozen.end());
    }
    assert!(other.runs(), "{}", other.err());
    drop(other);
    chaos.finish(2).map(drop)
}

#[test]
fn a_frozen_copy_that_wakes_up_does_no_harm() {
    take_over(Chaos::new(seed()), "").unwrap();
}

#[test]
fn who_reads_the_marker_before_the_fence_is_found_out() {
    let chaos = Chaos::new(seed()).wrong(Flaw::MarkerBeforeFence);
    let wrong = take_over(chaos, "marker-found=sleep:8000").unwrap_err();
    println!("{}: {wrong}", Flaw::MarkerBeforeFence.name());
}

/// The brokers have ended its transaction meanwhile, and its replacement has worked.
#[test]
fn a_copy_that_sleeps_for_longer_than_its_transactions_may_is_replaced() {
    let mut chaos = with_short_transactions(seed());
    chaos.live(2, Death::Frozen(ENDED_AFTER));
    chaos.finish(2).unwrap();
}

/// Nobody has taken over: the job ends such that it is started again.
#[test]
fn a_copy_that_sleeps_for_longer_than_its_transactions_may_and_is_alone_is_worth_another_start() {
    let mut chaos = with_short_transactions(seed());
    let mut running = chaos.start(2, "records-drained=sleep:1500@20");
    until_waiting(&mut running, Point::RecordsDrained);
    running.signal("STOP");
    std::thread::sleep(ENDED_AFTER);
    running.signal("CONT");
    let said = running.end();
    // Which of its clients finds out first, and how, is not given.
    assert_eq!(said.status.code(), Some(1), "{}", said.err);
    chaos.finish(2).unwrap();
}
