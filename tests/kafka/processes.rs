//! A job of several processes: whichever of them dies, all start again, and every input is accounted for once.

use std::net::TcpListener;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use super::chaos::MANY;
use super::chaos::deaths::{Deaths, Steps, died_at};
use super::chaos::troubles::Troubles;
use super::chaos::world::{TOPICS, World};
use super::service::{Service, address, get, scrape};
use super::*;
use crate::program::Running;
use crate::random::{Random, seed, variable};

/// The topology of the chaos tests with its topics.
fn service() -> Service {
    Service::new(brokers(), "chaos").create(TOPICS)
}

/// The processes that a supervisor has started so far, by its log: (number, pid, which start).
fn started(log: &str) -> Vec<(u64, u64, u64)> {
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let started = lines.filter(|line| line["message"] == "started");
    started.map(|line| ["process", "pid", "restarts"].map(|field| line[field].as_u64().unwrap()).into()).collect()
}

/// How often processes have begun to read events.
fn reading(log: &str) -> usize {
    let lines = log.lines().filter(|line| line.contains("\"message\":\"reading\""));
    lines.filter(|line| line.contains("\"source\":\"events\"")).count()
}

/// Longer than the silence after which a process is thought gone, and a start.
const LONG: Duration = Duration::from_secs(90);

/// How long a step is waited for that may not come; a start is waited for longer and longer.
const SEARCH: Duration = Duration::from_secs(20);

/// Waits for something that a job says.
fn until(running: &mut Running, what: &str, done: impl Fn(&str) -> bool) {
    let deadline = Instant::now() + LONG;
    while !done(&running.err()) {
        assert!(running.runs(), "it has ended before {what}: {}", running.err());
        assert!(Instant::now() < deadline, "never {what}: {}", running.err());
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn signal(pid: u64, name: &str) {
    // It may have ended already, with another one.
    _ = Command::new("kill").args(["-s", name, &pid.to_string()]).stderr(Stdio::null()).status();
}

fn exists(pid: u64) -> bool {
    let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // One that has ended and was not waited for is a zombie.
    !state.is_empty() && !state.contains(") Z ")
}

/// Leaves a job alone until all has come that will come, stops it, and holds its outputs against what had to come out. Gives the number
/// of events.
fn finish(mut world: World, service: &Service, mut running: Running) -> usize {
    // One that was stopped before it reads has not started.
    until(&mut running, "it reads", |log| reading(log) > 0);
    let written = world.stop(service);
    world.settle(&written, &mut running, service, LONG);
    running.terminate();
    let said = running.end();
    assert!(said.status.success(), "{}", said.err);
    let summary: Value = serde_json::from_str(&said.out).unwrap();
    assert_eq!(summary["ended"], "stopped", "{summary}");
    let [events, ..] = world.check(&written, service, &said).unwrap();
    events
}

/// Kills a process of a supervisor's job sometime, and waits until the job is started again. `died` of its processes have died at
/// their step: one may come by it after all, at each start before all read.
fn kill_one(running: &mut Running, processes: u64, died: usize, random: &mut Random) -> String {
    // Sometimes while they start, sometimes at work.
    if random.below(3) > 0 {
        let before = reading(&running.err());
        let all_read = |log: &str| reading(log) >= before.max(processes as usize);
        until(running, "all read", |log| all_read(log) || died_at(log).len() > died);
    }
    std::thread::sleep(Duration::from_millis(random.below(1_200)));
    let all = started(&running.err());
    let (number, pid, restarts) = all[all.len() - 1 - random.below(processes) as usize];
    signal(pid, "KILL");
    until(running, "the job is started again", |log| started(log).last().unwrap().2 > restarts);
    format!("process {number} of {processes}")
}

/// Waits until a process has died at the step that all of them were started with, and the job is started again: true if that happens
/// before long.
fn dies_at_step(running: &mut Running, before: usize) -> bool {
    let deadline = Instant::now() + SEARCH;
    while died_at(&running.err()).len() <= before {
        assert!(running.runs(), "it has ended: {}", running.err());
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let restarts = started(&running.err()).last().unwrap().2;
    until(running, "the job is started again", |log| started(log).last().unwrap().2 > restarts);
    true
}

/// Ends a supervisor: by a kill, with which its processes die, or not.
fn end(running: Running, random: &mut Random) -> Option<&'static str> {
    if random.below(2) == 0 {
        running.terminate();
        running.end();
        return None;
    }
    let last = started(&running.err());
    drop(running);
    let gone = Instant::now() + LONG;
    while last.iter().any(|(_, pid, _)| exists(*pid)) {
        assert!(Instant::now() < gone, "processes outlive their supervisor");
        std::thread::sleep(Duration::from_millis(5));
    }
    Some("supervisor")
}

#[test]
fn whichever_process_is_killed_nothing_is_lost_and_nothing_repeated() {
    let kills = variable("KILLS").unwrap_or(5).div_ceil(2);
    let seed = seed();
    let mut random = Random(seed);
    let (service, mut troubles) = match kills {
        ..MANY => (service(), Troubles::of_disk()),
        _ => {
            let (service, troubles) = Troubles::of_all();
            (service.create(TOPICS), troubles)
        }
    };
    let world = World::around(&service, seed);
    let (mut deaths, mut steps) = (Deaths::default(), Steps::of_run(kills, &[]));
    let (mut generations, mut killed) = (0, 0);
    while killed < kills {
        // Another supervisor, of another number of processes and workers. Of most of them the processes die by themselves, whichever
        // comes by first, after each start.
        let (processes, workers) = (1 + random.below(3), 1 + random.below(2));
        let step = (random.below(3) > 0).then(|| steps.draw(&mut random));
        let dying = step.map_or(String::new(), |step| step.to_string());
        let mut running = supervise(&service, processes, workers, &format!("{},{dying}", troubles.failpoint()));
        let mut at_step = 0;
        for _ in 0..1 + random.below(3) {
            if random.below(3) == 0 {
                troubles.begin(&mut random);
            }
            let starts = started(&running.err()).len();
            until(&mut running, "they were all started", |log| {
                let started = started(log).len();
                started > 0 && started >= starts && started as u64 % processes == 0
            });
            let name = match step {
                Some(step) if dies_at_step(&mut running, at_step) => step.point.name().to_owned(),
                _ => kill_one(&mut running, processes, at_step, &mut random),
            };
            at_step = died_at(&running.err()).len();
            killed += 1;
            println!("kill {killed}: {name}, {processes} x {workers}");
            deaths.count(&name);
        }
        generations += started(&running.err()).last().unwrap().2 + 1;
        end(running, &mut random).into_iter().for_each(|name| deaths.count(name));
    }
    troubles.end();
    let mut running = service.run(&["--processes", "2", "--workers", "2", "--http", "off"]);
    generations += 1;
    until(&mut running, "both read", |log| reading(log) >= 2);
    let events = finish(world, &service, running);
    print!("{}{}", deaths.table(&steps), troubles.told());
    println!("{killed} kills, {generations} generations, {events} events: 0 lost, 0 repeated");
}

/// Starts the processes of a job, all with the same failpoints.
fn supervise(service: &Service, processes: u64, workers: u64, failpoints: &str) -> Running {
    let (processes, workers) = (processes.to_string(), workers.to_string());
    let mut command = service.command();
    command.env("MILLSTREAM_FAILPOINTS", failpoints);
    command.arg("run").arg(service.topology()).args(["--json", "--http", "off"]);
    Running::start(command.args(["--processes", &processes, "--workers", &workers]))
}

/// A process of a job at hosts, with failpoints.
fn process(service: &Service, number: usize, failpoints: &str) -> Running {
    let mut command = service.command();
    command.env("MILLSTREAM_FAILPOINTS", failpoints).arg("run").arg(service.topology()).arg("--json");
    Running::start(command.args(["--process", &number.to_string(), "--http", "off"]))
}

/// Records that are decided and not committed are the business of the writer's process. Until it has done it, no checkpoint may say that
/// it is done: also not the one that a start with more workers publishes at once.
#[test]
fn a_member_that_dies_before_it_has_caught_up_loses_nothing() {
    const SECRET: &str = "a-secret-of-the-test";
    let service = &service();
    let world = World::around(service, seed());
    let (file, hosts) = (std::fs::read(service.topology()).unwrap(), hosts(3));
    at_hosts(service, &hosts[..2], SECRET);
    // An epoch is decided, and nobody has been told.
    let dying = [process(service, 0, "manifest-published=kill@12"), process(service, 1, "")];
    for said in dying.map(Running::end) {
        assert!(!said.status.success() && said.err.contains("\"reading\""), "{}", said.err);
    }
    std::fs::write(service.topology(), file).unwrap();
    at_hosts(service, &hosts, SECRET);
    // The first takes up its own records, the second dies before it has.
    let late = "writers-fenced=sleep:4000,marker-found=kill@1";
    let dying = [process(service, 0, ""), process(service, 1, late), process(service, 2, "")];
    for said in dying.map(Running::end) {
        assert!(!said.status.success() && !said.err.contains("\"reading\""), "{}", said.err);
    }
    let [first, second, third] = [0, 1, 2].map(|number| process(service, number, ""));
    let events = finish(world, service, first);
    assert!(events > 0);
    for member in [second, third] {
        assert!(member.end().status.success());
    }
}

#[test]
fn a_process_that_stands_still_is_noticed() {
    let service = service();
    service.send("events", 3, (1..=300).map(event));
    let mut running = service.run(&["--processes", "2", "--http", "off"]);
    service.until("vectors", 300, &mut running);
    let member = started(&running.err())[1].1;
    signal(member, "STOP");
    until(&mut running, "the job is started again", |log| started(log).iter().any(|(.., restarts)| *restarts > 0));
    assert!(running.err().contains("it has said nothing for 15 s"), "{}", running.err());
    service.send("events", 3, (301..=600).map(event));
    service.until("vectors", 600, &mut running);
    running.terminate();
    let said = running.end();
    assert!(said.status.success(), "{}", said.err);
    assert_eq!(service.consume("vectors").len(), 600);
}

fn event(id: usize) -> String {
    let card = id % 7;
    format!("{{\"id\":{id},\"at\":{},\"card\":{card},\"amount\":1}}", 1_700_000_000_000_i64 + id as i64)
}

/// Addresses of so many hosts, which are this one.
fn hosts(count: usize) -> Vec<String> {
    let ports: Vec<TcpListener> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    ports.iter().map(|port| port.local_addr().unwrap().to_string()).collect()
}

/// The topology with two hosts.
fn with_hosts(service: &Service, secret: &str) {
    at_hosts(service, &hosts(2), secret);
}

/// The topology with hosts that listen at these addresses.
pub fn at_hosts(service: &Service, hosts: &[String], secret: &str) {
    let text = std::fs::read_to_string(service.topology()).unwrap();
    let text = text.replace("engine: {", &format!("engine: {{ cluster: {{ hosts: {hosts:?}, secret: {secret} }},"));
    assert!(text.contains("cluster"), "{text}");
    std::fs::write(service.topology(), text).unwrap();
}

#[test]
fn hosts_share_a_job_and_only_the_first_has_its_state() {
    let service = service();
    with_hosts(&service, "a-secret-of-the-test");
    // The other host has the file and nothing else.
    let other = service.copy();
    service.send("events", 3, (1..=3_000).map(event));
    let mut first = service.run(&["--process", "0", "--workers", "2", "--http", "127.0.0.1:0"]);
    let mut second = other.run(&["--process", "1", "--workers", "2", "--http", "127.0.0.1:0"]);
    service.until("vectors", 3_000, &mut first);
    // Both have worked, and the first serves all.
    let at = address(&mut second);
    let worked = scrape(&at, &mut second, |text| {
        let taken =
            text.lines().find(|line| line.starts_with("millstream_operator_records_in_total{operator=\"card\"}"));
        let taken = taken.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).unwrap_or(0.0);
        if taken > 0.0 { vec![] } else { vec!["process 1 has no card".to_string()] }
    });
    assert!(worked.contains("millstream_up_since"), "{worked}");
    let at = address(&mut first);
    for card in 0..7 {
        let body = get(&at, &format!("/v1/features/card/{card}"));
        assert!(body.contains("card.count_30d") || body.contains("count_30d"), "{body}");
    }
    // A stop of any of them is one of the job.
    second.terminate();
    let (said, also) = (first.end(), second.end());
    assert!(said.status.success() && also.status.success(), "{}\n{}", said.err, also.err);
    let summary: Value = serde_json::from_str(&said.out).unwrap();
    assert_eq!((&summary["events"]["events"], &summary["sinks"]["vectors"]), (&json!(3_000), &json!(3_000)));
    assert!(service.folder().join("state").exists() && !other.folder().join("state").exists());

    // The same state, in one process, or as many as one likes.
    let plain = std::fs::read_to_string(service.topology()).unwrap();
    let plain: Vec<&str> = plain.lines().filter(|line| !line.starts_with("engine")).collect();
    std::fs::write(service.topology(), plain.join("\n")).unwrap();
    service.send("events", 3, (3_001..=3_500).map(event));
    let mut alone = service.run(&["--workers", "3", "--http", "off"]);
    service.until("vectors", 3_500, &mut alone);
    alone.terminate();
    assert!(alone.end().status.success());
    let counts =
        service.consume("vectors").iter().filter_map(|vector| vector["value"]["card.count_30d"].as_u64()).max();
    assert_eq!(counts, Some(500), "3,500 events of seven cards");
}

#[test]
fn a_failure_in_any_process_is_the_failure_of_the_job() {
    let service =
        Service::new(brokers(), "chaos").create([("events", 3), ("labels", 2), ("vectors", 2), ("signals", 1)]);
    with_hosts(&service, "a-secret-of-the-test");
    let other = service.copy();
    let first = service.run(&["--process", "0", "--http", "off"]);
    let second = other.run(&["--process", "1", "--http", "off"]);
    for said in [first.end(), second.end()] {
        assert_eq!(said.status.code(), Some(1), "{}", said.err);
        assert!(said.err.contains("-rejects` does not exist"), "{}", said.err);
    }
}

#[test]
fn processes_with_different_secrets_do_not_find_each_other() {
    let service = service();
    with_hosts(&service, "\"${SECRET}\", start_timeout: 2s");
    let other = service.copy();
    let run = |service: &Service, process: &str, secret: &str| {
        let mut command = service.command();
        command.env("SECRET", secret).arg("run").arg(service.topology());
        Running::start(command.args(["--process", process, "--http", "off"]))
    };
    let (first, second) = (run(&service, "0", "one secret of many"), run(&other, "1", "another of them all"));
    let (first, second) = (first.end(), second.end());
    assert!(first.err.contains("after 2 s these processes are not there: 1"), "{}", first.err);
    assert!(second.err.contains("the other side has another secret (engine.cluster.secret)"), "{}", second.err);
    assert!(!service.folder().join("state").exists(), "nothing is taken over by half a job");
}
