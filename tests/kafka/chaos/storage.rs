//! The place of the state refuses for a while: a disk that is full, a store that is away or whose answers are lost.
//!
//! A disk that takes nothing is made with a failpoint, since not every machine lets a test mount one.

use super::super::proxy::{Network, Proxy};
use super::super::service::{ENDPOINT, Service};
use super::super::*;
use super::driver::{Chaos, until};
use crate::program::Running;
use crate::random::seed;

/// What a job says of a checkpoint that it could not write and will write again.
const TRIED_AGAIN: &str = "the checkpoint is tried again";

/// Waits until a checkpoint has been refused.
fn until_refused(running: &mut Running) {
    until(running, |running| running.err().contains(TRIED_AGAIN));
    assert!(running.runs() && running.err().contains(TRIED_AGAIN), "{}", running.err());
}

/// A job whose state lies on a disk that is full as long as there is the file, and which waits for so long.
struct OnFullDisk {
    chaos: Chaos,
    full: PathBuf,
    failpoint: String,
    _folder: tempfile::TempDir,
}

impl OnFullDisk {
    fn new(state_timeout: &str) -> OnFullDisk {
        let folder = tempfile::tempdir().unwrap();
        let full = folder.path().join("full");
        let service = Service::new(brokers(), "chaos").set("STATE_TIMEOUT", state_timeout);
        let failpoint = format!("disk-full={}", full.display());
        OnFullDisk { chaos: Chaos::of(service, seed()), full, failpoint, _folder: folder }
    }

    fn fill(&self) {
        std::fs::write(&self.full, "").unwrap();
    }

    fn make_room(&self) {
        std::fs::remove_file(&self.full).unwrap();
    }
}

#[test]
fn a_full_disk_fails_epochs_and_not_the_job() {
    let mut job = OnFullDisk::new("60s");
    let mut running = job.chaos.start(2, &job.failpoint);
    for _ in 0..2 {
        job.chaos.goes_on(&mut running);
        job.fill();
        until_refused(&mut running);
        // What was decided before is committed; then there is nothing more.
        std::thread::sleep(Duration::from_secs(1));
        let (epoch, before) = (job.chaos.service.newest_epoch(), job.chaos.read());
        std::thread::sleep(Duration::from_secs(2));
        assert_eq!((job.chaos.service.newest_epoch(), job.chaos.read()), (epoch, before), "{}", running.err());
        job.make_room();
    }
    job.chaos.goes_on(&mut running);
    // One that is killed meanwhile goes on as well.
    job.fill();
    std::thread::sleep(Duration::from_millis(500));
    drop(running);
    job.chaos.died("with a full disk");
    job.make_room();
    job.chaos.finish(1).unwrap();
}

#[test]
fn a_disk_that_stays_full_ends_the_job_and_a_start_with_room_goes_on() {
    let mut job = OnFullDisk::new("2s");
    let mut running = job.chaos.start(2, &job.failpoint);
    job.chaos.goes_on(&mut running);
    job.fill();
    for _ in 0..2 {
        let said = running.end();
        assert_eq!(said.status.code(), Some(7), "{}", said.err);
        assert!(said.err.contains("state/"), "{}", said.err);
        job.chaos.died("of a full disk");
        // Nor does one begin.
        running = job.chaos.start(1, &job.failpoint);
    }
    drop(running);
    job.make_room();
    job.chaos.finish(3).unwrap();
}

/// What is read while nothing can be decided would be written again: sources wait, whatever the sinks.
#[test]
fn a_full_disk_holds_a_job_without_transactions_as_well() {
    let service = Service::new(brokers(), "lines").create([("events", 1)]);
    let full = service.folder().join("full");
    let mut command = service.command();
    command.env("MILLSTREAM_FAILPOINTS", format!("disk-full={}", full.display()));
    let mut running = Running::start(command.arg("run").arg(service.topology()).args(["--http", "off"]));
    let lines = || std::fs::read_to_string(service.folder().join("lines.jsonl")).map_or(0, |text| text.lines().count());
    let send = |ids: std::ops::RangeInclusive<u32>| service.send("events", 1, ids.map(|id| format!("{{\"id\":{id}}}")));
    send(1..=100);
    until(&mut running, |_| lines() == 100);
    std::fs::write(&full, "").unwrap();
    send(101..=101);
    until_refused(&mut running);
    send(102..=5_000);
    std::thread::sleep(Duration::from_secs(2));
    assert!(lines() <= 101, "{} lines: {}", lines(), running.err());
    std::fs::remove_file(&full).unwrap();
    until(&mut running, |_| lines() == 5_000);
    running.terminate();
    let said = running.end();
    assert!(said.status.success() && lines() == 5_000, "{} lines: {}", lines(), said.err);
}

/// A job whose state lies in a store behind a proxy.
fn behind(proxy: &Proxy, state_timeout: &str) -> Chaos {
    let store = std::env::var(ENDPOINT).unwrap_or_default();
    let service = Service::new(brokers(), "bucket").in_bucket();
    let port = store.rsplit(':').next().and_then(|port| port.trim_end_matches('/').parse().ok());
    proxy.lead_to(port.unwrap_or_else(|| panic!("{ENDPOINT}={store} has no port")));
    let endpoint = format!("http://{}", proxy.address());
    Chaos::of(service.set(ENDPOINT, &endpoint).set("STATE_TIMEOUT", state_timeout), seed())
}

#[test]
fn a_store_that_is_away_while_the_job_runs_costs_time_and_nothing_else() {
    let proxy = Proxy::start();
    let mut chaos = behind(&proxy, "60s");
    let mut running = chaos.start(2, "");
    for network in [Network::Refuses, Network::Stalls, Network::Mute] {
        chaos.goes_on(&mut running);
        proxy.set(network);
        if network == Network::Refuses {
            proxy.cut();
        }
        std::thread::sleep(Duration::from_secs(3));
        // What was asked for on the way is done, and its answer is lost: the job has to find out.
        proxy.cut();
        proxy.set(Network::Works);
    }
    chaos.goes_on(&mut running);
    chaos.finish_with(running).unwrap();
}

#[test]
fn a_store_that_stays_away_ends_the_job_and_a_start_with_it_goes_on() {
    let proxy = Proxy::start();
    let mut chaos = behind(&proxy, "1s");
    let mut running = chaos.start(2, "");
    chaos.goes_on(&mut running);
    proxy.set(Network::Refuses);
    proxy.cut();
    let said = running.end();
    assert_eq!(said.status.code(), Some(1), "{}", said.err);
    assert!(said.err.lines().last().unwrap_or_default().contains("s3://millstream/"), "{}", said.err);
    chaos.died("without a store");
    proxy.set(Network::Works);
    chaos.finish(1).unwrap();
}
