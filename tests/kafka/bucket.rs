//! A job whose state lies in a bucket: exactly once however often it is killed, and of two copies one ends. `S3_ENDPOINT` names
//! the store, `deploy/s3.sh up` starts one.

use std::process::Command;

use serde_json::Value;

use super::chaos::world::{Reader, Writer};
use super::service::Service;
use super::*;
use crate::program::{Running, Said, said};
use crate::random::{Random, seed, variable};

const PARTITIONS: i32 = 3;

/// The job of the chaos tests, with its state in a bucket.
struct Job {
    service: Service,
    endpoint: String,
}

impl Job {
    fn new() -> Job {
        let endpoint = std::env::var("S3_ENDPOINT").unwrap_or_else(|_| {
            panic!("no store to test with: run `export S3_ENDPOINT=$(deploy/s3.sh up)`, or `make test`, which does it")
        });
        let service =
            Service::new(brokers(), "bucket").create([("events", PARTITIONS), ("vectors", 2), ("rejects", 1)]);
        Job { service, endpoint }
    }

    fn command(&self) -> Command {
        let mut command = self.service.command();
        command.env("S3_ENDPOINT", &self.endpoint);
        command.env("AWS_ACCESS_KEY_ID", "test").env("AWS_SECRET_ACCESS_KEY", "test");
        command
    }

    fn start(&self, workers: u64) -> Running {
        let mut command = self.command();
        command.arg("run").arg(self.service.topology()).args(["--http", "off", "--workers", &workers.to_string()]);
        Running::start(&mut command)
    }

    /// What `millstream checkpoint` says.
    fn checkpoint(&self, what: &str) -> Value {
        let said = said(self.command().args(["checkpoint", what, "--json"]).arg(self.service.topology()));
        serde_json::from_str(&said).unwrap()
    }

    /// Waits for a checkpoint that the start before this one has not made.
    fn until_checkpoint(&self, running: &mut Running, before: u64) {
        let deadline = Instant::now() + LONG;
        while self.newest() <= before && running.runs() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The epoch of the newest checkpoint.
    fn newest(&self) -> u64 {
        let listed =
            Running::start(self.command().args(["checkpoint", "list", "--json"]).arg(self.service.topology())).end();
        let listed: Value = serde_json::from_str(&listed.out).unwrap_or_default();
        listed.as_array().and_then(|all| all.last()?["epoch"].as_u64()).unwrap_or(0)
    }
}

/// What a job said that has lost against another copy.
fn check_lost(said: &Said) {
    assert_eq!(said.status.code(), Some(4), "{}", said.err);
    assert!(said.err.contains("another copy of this job has taken over"), "{}", said.err);
}

#[test]
fn a_job_with_its_state_in_a_bucket_is_killed_and_loses_and_repeats_nothing() {
    let kills = variable("KILLS").unwrap_or(6).min(50);
    let seed = seed();
    let mut random = Random(seed);
    let job = Job::new();
    let brokers = &job.service.brokers;
    let writer = Writer::start(brokers.clone(), job.service.topic("events"), seed);
    let vectors = Reader::start(brokers, &job.service.topic("vectors"), 2);
    let rejects = Reader::start(brokers, &job.service.topic("rejects"), 1);
    for kill in 0..kills {
        let before = job.newest();
        let mut running = job.start(1 + random.below(3));
        if random.below(4) > 0 {
            job.until_checkpoint(&mut running, before);
        }
        std::thread::sleep(Duration::from_millis(random.below(900)));
        assert!(running.runs(), "run {kill} has ended: {}", running.err());
        if kill % 3 == 2 {
            // Instead of being killed it finds that another copy is there.
            let mut next = job.start(1 + random.below(3));
            check_lost(&running.end());
            assert!(next.runs(), "{}", next.err());
        }
    }
    let mut running = job.start(2);
    std::thread::sleep(Duration::from_millis(500));
    let oracle = writer.finish();
    let deadline = Instant::now() + 4 * LONG;
    while (vectors.len() < oracle.expected.len() || rejects.len() < oracle.poison.len()) && Instant::now() < deadline {
        assert!(running.runs(), "the last run has ended: {}", running.err());
        std::thread::sleep(Duration::from_millis(100));
    }
    running.terminate();
    let said = running.end();
    assert!(said.status.success(), "{}: {}", said.status, said.err);
    let (vectors, rejects) = (vectors.finish(), rejects.finish());
    oracle.check_vectors(vectors.iter().map(Vec::as_slice)).unwrap_or_else(|wrong| panic!("topic: {wrong}"));
    oracle.check_rejects(rejects.iter().map(Vec::as_slice)).unwrap_or_else(|wrong| panic!("dead letters: {wrong}"));
    let contents = job.checkpoint("inspect");
    assert_eq!(job.checkpoint("verify")["epoch"], contents["epoch"]);
    assert!(contents["nodes"]["features.card"]["keys"].as_u64().unwrap() > 30, "{contents}");
    println!("{kills} kills, {} events: 0 lost, 0 repeated", vectors.len());
}

/// A copy without work to do notices too, and `--fresh` ends a copy that runs.
#[test]
fn of_two_copies_at_a_bucket_the_second_takes_over() {
    let job = Job::new();
    let event = |id: u64| format!("{{\"id\":{id},\"at\":{},\"card\":1,\"amount\":1}}", 1_700_000_000_000 + id);
    job.service.send("events", 1, (1..=10).map(event));
    let mut first = job.start(1);
    job.until_checkpoint(&mut first, 0);
    let mut second = job.start(1);
    check_lost(&first.end());
    job.service.send("events", 1, (11..=20).map(event));
    job.service.until("vectors", 20, &mut second);
    let mut command = job.command();
    command.arg("run").arg(job.service.topology()).args(["--http", "off", "--fresh"]);
    let mut fresh = Running::start(&mut command);
    check_lost(&second.end());
    // It begins anew, with all events.
    job.service.until("vectors", 40, &mut fresh);
    fresh.terminate();
    let said = fresh.end();
    assert!(said.status.success(), "{}: {}", said.status, said.err);
}

#[test]
fn a_store_that_is_away_is_waited_for_and_named() {
    let job = Job::new();
    let mut command = job.command();
    // Nobody listens there.
    command.env("S3_ENDPOINT", "http://127.0.0.1:9");
    let said = Running::start(command.arg("run").arg(job.service.topology()).args(["--http", "off"])).end();
    assert_eq!(said.status.code(), Some(1), "{}", said.err);
    let place = format!("s3://millstream/{}", job.service.run);
    assert!(said.err.contains("waiting for the store of the job's state"), "{}", said.err);
    let last = said.err.lines().last().unwrap_or_default();
    assert!(last.contains(&format!("list {place}/manifest: nobody answers at the store's address")), "{last}");
    assert!(last.contains("127.0.0.1:9"), "{last}");
}
