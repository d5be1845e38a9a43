//! A job whose state lies in a bucket: exactly once however often it is killed, and of two copies one ends. `S3_ENDPOINT` names
//! the store, `deploy/s3.sh up` starts one.

use millstream::failpoint::{Flaw, Point};

use super::chaos::deaths::Steps;
use super::chaos::driver::{Chaos, Death, check_lost, until_waiting};
use super::chaos::world::TOPICS;
use super::service::{ENDPOINT, Service};
use super::*;
use crate::program::Running;
use crate::random::{Random, seed, variable};

/// The job of the chaos tests, with its state in a bucket.
fn service() -> Service {
    Service::new(brokers(), "bucket").in_bucket()
}

#[test]
fn a_job_with_its_state_in_a_bucket_is_killed_and_loses_and_repeats_nothing() {
    let kills = variable("KILLS").unwrap_or(6).min(50);
    let seed = seed();
    // It has no file and no table.
    let never = [Point::FileCut, Point::LinesWritten, Point::TableStaged, Point::TableCommitted];
    let mut random = Random(seed);
    let mut chaos = Chaos::of(service(), seed).with_steps(Steps::of_run(kills, &never));
    for kill in 0..kills {
        if kill % 2 == 1 {
            let step = chaos.steps.draw(&mut random);
            chaos.live(1 + random.below(3), Death::Sought(step));
            continue;
        }
        let before = chaos.service.newest_epoch();
        let mut running = chaos.start(1 + random.below(3), "");
        if random.below(4) > 0 {
            chaos.until_checkpoint(&mut running, before);
        }
        std::thread::sleep(Duration::from_millis(random.below(900)));
        assert!(running.runs(), "run {kill} has ended: {}", running.err());
        if kill % 3 == 0 {
            // Instead of being killed it finds that another copy is there.
            running = chaos.replaced(running, 1 + random.below(3));
        }
        drop(running);
        chaos.died("killed");
    }
    let service = chaos.finish(2).unwrap();
    let contents = service.checkpoint("inspect");
    assert!(contents["epoch"].is_u64() && service.checkpoint("verify")["epoch"] == contents["epoch"], "{contents}");
    assert!(contents["nodes"]["features.card"]["keys"].as_u64().unwrap() > 30, "{contents}");
}

/// A copy without work to do notices too, and `--fresh` ends a copy that runs.
#[test]
fn of_two_copies_at_a_bucket_the_second_takes_over() {
    let service = service().create(TOPICS);
    let event = |id: u64| format!("{{\"id\":{id},\"at\":{},\"card\":1,\"amount\":1}}", 1_700_000_000_000 + id);
    service.send("events", 1, (1..=10).map(event));
    let mut first = service.run(&["--http", "off"]);
    service.until("vectors", 10, &mut first);
    let mut second = service.run(&["--http", "off"]);
    check_lost(&first.end());
    service.send("events", 1, (11..=20).map(event));
    service.until("vectors", 20, &mut second);
    let mut fresh = service.run(&["--http", "off", "--fresh"]);
    check_lost(&second.end());
    // It begins anew, with all events.
    service.until("vectors", 40, &mut fresh);
    fresh.terminate();
    let said = fresh.end();
    assert!(said.status.success(), "{}: {}", said.status, said.err);
}

/// A start that is slow fences writers of the one that has taken over from it meanwhile, and ends. If the other one needs them it is
/// started again by whoever looks after it, and goes on.
#[test]
fn of_two_starts_that_overlap_the_later_one_goes_on() {
    overlap("", &[]).unwrap();
}

/// The same where each process has writers, and one of them the state.
#[test]
fn a_member_asks_whether_the_start_still_has_the_job() {
    overlap("", &["--processes", "2"]).unwrap();
}

#[test]
fn a_start_that_does_not_ask_whether_it_still_has_the_job_is_found_out() {
    println!("{}", overlap(Flaw::NoAsk.name(), &[]).unwrap_err());
}

/// A slow start with a mistake, and another one meanwhile: what is wrong in the end.
fn overlap(flaw: &str, options: &[&str]) -> Result<(), String> {
    let options = [&["--http", "off"], options].concat();
    let event = |id: u64| format!("{{\"id\":{id},\"at\":{},\"card\":1,\"amount\":1}}", 1_700_000_000_000 + id);
    let service = service().create(TOPICS);
    let mut command = service.command();
    command.env("MILLSTREAM_FAILPOINTS", format!("{}=sleep:8000,{flaw}", Point::JobTakenOver.name()));
    let mut first = Running::start(command.arg("run").arg(service.topology()).arg("--json").args(&options));
    until_waiting(&mut first, Point::JobTakenOver);
    let mut second = service.run(&options);
    service.send("events", 1, (1..=10).map(event));
    service.until("vectors", 10, &mut second);
    check_lost(&first.end());
    service.send("events", 1, (11..=20).map(event));
    let deadline = Instant::now() + LONG;
    while service.consume("vectors").len() < 20 {
        if !second.runs() {
            let said = second.end();
            let is_fenced = said.status.code() == Some(1) && said.err.contains("a second start was under way");
            if !is_fenced {
                return Err(format!("{}: {}", said.status, said.err));
            }
            second = service.run(&options);
        }
        assert!(Instant::now() < deadline, "nothing comes: {}", second.err());
    }
    second.terminate();
    let said = second.end();
    assert!(said.status.success(), "{}: {}", said.status, said.err);
    let mut ids: Vec<u64> = service.consume("vectors").iter().filter_map(|one| one["value"]["id"].as_u64()).collect();
    ids.sort_unstable();
    if ids == Vec::from_iter(1..=20) { Ok(()) } else { Err(format!("{ids:?}")) }
}

#[test]
fn a_store_that_is_away_is_waited_for_and_named() {
    let service = service();
    let mut command = service.command();
    // Nobody listens there.
    command.env(ENDPOINT, "http://127.0.0.1:9");
    let said = Running::start(command.arg("run").arg(service.topology()).args(["--http", "off"])).end();
    assert_eq!(said.status.code(), Some(1), "{}", said.err);
    let place = format!("s3://millstream/{}", service.run);
    assert!(said.err.contains("waiting for the store of the job's state"), "{}", said.err);
    let last = said.err.lines().last().unwrap_or_default();
    assert!(last.contains(&format!("list {place}/manifest: nobody answers at the store's address")), "{last}");
    assert!(last.contains("127.0.0.1:9"), "{last}");
}
