//! A job goes back to a savepoint, which was made while it ran: what it repeats then is what the documentation says, and nothing is
//! lost. It moves from place to place, and repeats nothing.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};

use super::chaos::world::TOPICS;
use super::service::{Service, address, ask_for};
use super::*;
use crate::program::{Running, Said, python, said};

const CARDS: i64 = 10;

fn service() -> Service {
    Service::new(brokers(), "chaos").create(TOPICS)
}

/// Writes events. A card's stand in one partition, so that their order is given.
fn send(service: &Service, ids: std::ops::Range<i64>) {
    let line = |id| format!("{{\"id\":{id},\"at\":{},\"card\":{},\"amount\":1}}", 1_700_000_000_000 + id, id % CARDS);
    service.send("events", 2, ids.map(line));
}

fn stop(running: Running) -> Said {
    running.terminate();
    let said = running.end();
    assert!(said.status.success(), "{}", said.err);
    said
}

/// How often each id is there; every vector must be that of its event: the number of its card's so far.
fn counted(vectors: impl IntoIterator<Item = Value>) -> BTreeMap<i64, usize> {
    let mut counts = BTreeMap::new();
    for vector in vectors {
        let id = vector["id"].as_i64().unwrap();
        assert_eq!(vector["card.count_30d"].as_i64(), Some(id / CARDS + 1), "{vector}");
        *counts.entry(id).or_default() += 1;
    }
    counts
}

fn in_topic(service: &Service) -> BTreeMap<i64, usize> {
    counted(service.consume("vectors").into_iter().map(|message| message["value"].clone()))
}

fn in_file(service: &Service) -> BTreeMap<i64, usize> {
    let text = std::fs::read_to_string(service.folder().join("vectors.jsonl")).unwrap();
    counted(text.lines().map(|line| serde_json::from_str(line).unwrap()))
}

fn in_table(service: &Service) -> BTreeMap<i64, usize> {
    let mut read = python("print_table.py");
    let rows = said(read.arg(service.folder().join("lake")).args(["id", "card.count_30d"]));
    let rows = rows.lines().map(|row| serde_json::from_str::<[Value; 2]>(row).unwrap());
    counted(rows.map(|[id, count]| json!({ "id": id, "card.count_30d": count })))
}

/// What the topic must have: each id of each range so often.
fn expected<const N: usize>(ranges: [(std::ops::Range<i64>, usize); N]) -> BTreeMap<i64, usize> {
    ranges.into_iter().flat_map(|(ids, times)| ids.map(move |id| (id, times))).collect()
}

/// Runs `millstream checkpoint WHAT TOPOLOGY` with more arguments.
fn checkpoint(service: &Service, what: &str, more: &[&str]) -> Value {
    let said = said(service.command().args(["checkpoint", what]).arg(service.topology()).args(more).arg("--json"));
    serde_json::from_str(&said).unwrap()
}

#[test]
fn a_job_goes_back_to_a_savepoint_and_repeats_what_it_says() {
    let service = service();
    send(&service, 0..300);
    let mut running = service.run(&["--http", "127.0.0.1:0"]);
    service.until("vectors", 300, &mut running);
    let at = address(&mut running);
    let saved = ask_for(&at, "POST", "/v1/savepoints/before", 201);
    let saved: Value = serde_json::from_str(&saved).unwrap();
    assert_eq!(saved["name"], "before");
    ask_for(&at, "POST", "/v1/savepoints/bef%20ore", 400);
    assert_eq!(checkpoint(&service, "verify", &["--name", "before"])["epoch"], saved["epoch"]);
    stop(running);

    // It is the newest state: nothing is repeated, and nothing need be allowed.
    send(&service, 300..600);
    let mut running = service.run(&["--http", "off", "--from", "before"]);
    service.until("vectors", 600, &mut running);
    drop(running);
    assert_eq!(in_topic(&service), expected([(0..600, 1)]));

    let refused = service.run(&["--http", "off", "--from", "before"]).end();
    assert_eq!(refused.status.code(), Some(5), "{}", refused.err);
    let topic = format!("sinks.vectors (topic `{}`)", service.topic("vectors"));
    for told in [&*topic, "offline.vectors", "`--allow-repeat`", &format!("from `before` (epoch {})", saved["epoch"])] {
        assert!(refused.err.contains(told), "{told}: {}", refused.err);
    }

    // It goes back once, however often it is started like that.
    let back = ["--http", "off", "--from", "before", "--allow-repeat", "--workers", "2"];
    let mut running = service.run(&back);
    service.until("vectors", 900, &mut running);
    drop(running);
    send(&service, 600..900);
    let mut running = service.run(&back);
    service.until("vectors", 1_200, &mut running);
    let said = stop(running);
    assert!(said.err.contains("has been started from there"), "{}", said.err);
    assert_eq!(in_topic(&service), expected([(0..300, 1), (300..600, 2), (600..900, 1)]));
    assert_eq!(in_file(&service), expected([(0..900, 1)]));
    // How much of it the table had when the job was killed is not given, but none of it is lost.
    let table = in_table(&service);
    let is_right = |id: i64| (1..=if (300..600).contains(&id) { 2 } else { 1 }).contains(&table[&id]);
    assert!(table.len() == 900 && (0..900).all(is_right), "{table:?}");
    // Numbers never go back.
    let all = service.consume("vectors");
    let mut epochs: Vec<(i64, u64)> =
        all.iter().map(|message| (message["value"]["id"].as_i64().unwrap(), epoch(message))).collect();
    epochs.sort_unstable();
    let pairs = epochs.chunk_by(|one, other| one.0 == other.0).filter(|pair| pair.len() == 2);
    assert!(pairs.clone().map(|pair| pair[1].1).min() > pairs.map(|pair| pair[0].1).max(), "{epochs:?}");
}

/// The epoch in a message's headers.
fn epoch(message: &Value) -> u64 {
    let header = message["headers"].as_array().unwrap().iter().find(|header| header[0] == "epoch").unwrap();
    header[1].as_str().unwrap().parse().unwrap()
}

#[test]
fn a_job_moves_to_another_folder_and_repeats_nothing() {
    let service = service();
    send(&service, 0..100);
    let mut running = service.run(&["--http", "off"]);
    service.until("vectors", 100, &mut running);
    stop(running);
    let moved = service.folder().join("moved");
    checkpoint(&service, "export", &[moved.to_str().unwrap()]);
    assert_eq!(checkpoint(&service, "list", &[]).as_array().unwrap().last(), Some(&verified(&service, &moved)));

    // Its state is in a new place, and the first start is told where it was.
    let text = std::fs::read_to_string(service.topology()).unwrap();
    std::fs::write(service.topology(), text.replace("engine: {", "engine: { state: elsewhere,")).unwrap();
    let from = ["--http", "off", "--from", moved.to_str().unwrap()];
    send(&service, 100..200);
    let mut running = service.run(&from);
    service.until("vectors", 200, &mut running);
    stop(running);
    assert_eq!(in_topic(&service), expected([(0..200, 1)]));
    assert_eq!(in_file(&service), expected([(0..200, 1)]));

    // At a third place what was exported is old: Kafka knows how far the job has gone since.
    let text = std::fs::read_to_string(service.topology()).unwrap();
    std::fs::write(service.topology(), text.replace("state: elsewhere", "state: third")).unwrap();
    let refused = service.run(&from).end();
    assert!(refused.status.code() == Some(5) && refused.err.contains("--allow-repeat"), "{}", refused.err);
    let mut running = service.run(&[&from[..], &["--allow-repeat"]].concat());
    service.until("vectors", 300, &mut running);
    stop(running);
    assert_eq!(in_topic(&service), expected([(0..100, 1), (100..200, 2)]));
    assert_eq!(in_file(&service), expected([(0..200, 1)]));
    assert_eq!(in_table(&service), expected([(0..100, 1), (100..200, 2)]));
}

/// What `verify` says of the newest checkpoint in a folder.
fn verified(service: &Service, folder: &Path) -> Value {
    let mut command = service.command();
    let said = said(command.args(["checkpoint", "verify", "--json"]).arg(folder));
    let mut listed: Value = serde_json::from_str(&said).unwrap();
    // A copy was written later.
    listed["written"] = checkpoint(service, "list", &[]).as_array().unwrap().last().unwrap()["written"].clone();
    listed
}
