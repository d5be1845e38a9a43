//! Records that are gone before a job has read them: it ends with code 3, and goes on without them when it is allowed to, once. What it
//! misses is what it says, its state is kept, and nothing else is lost or repeated.

use std::collections::BTreeMap;

use millstream::metrics::scrape::samples;
use serde_json::{Value, json};

use super::service::{Service, address, get, sum};
use super::*;
use crate::program::{Running, Said, read_summary};

const CARDS: i64 = 10;

/// Event `id` of a card that stands in one partition of two.
fn lines(ids: std::ops::Range<i64>) -> impl Iterator<Item = String> {
    ids.map(|id| format!("{{\"id\":{id},\"at\":{},\"card\":{},\"amount\":1}}", 1_700_000_000_000 + id, id % CARDS))
}

/// A job that has read the first `count` events and was killed.
fn killed_after(count: i64) -> Service {
    let service = Service::chaos(2);
    service.send("events", 2, lines(0..count));
    let mut running = service.run(&["--http", "off"]);
    service.until("vectors", count as usize, &mut running);
    drop(running);
    service
}

fn stop(running: Running) -> Said {
    running.terminate();
    let said = running.end();
    assert!(said.status.success(), "{}", said.err);
    said
}

/// A start that must end with code 3 and name the way out.
fn refused(service: &Service, options: &[&str]) -> String {
    let said = service.run(&[&["--http", "off"], options].concat()).end();
    assert!(said.status.code() == Some(3) && said.err.contains("with `--allow-gap events`"), "{}", said.err);
    said.err
}

/// Each vector must be there once, and have the number of its card's events that were read so far.
fn check(service: &Service, read: impl IntoIterator<Item = i64>) {
    let mut counts: BTreeMap<i64, i64> = BTreeMap::new();
    let expected = read.into_iter().map(|id| {
        let count = counts.entry(id % CARDS).or_default();
        *count += 1;
        (id, *count)
    });
    let expected: BTreeMap<i64, i64> = expected.collect();
    let all = service.consume("vectors");
    let number = |message: &Value, field: &str| message["value"][field].as_f64().unwrap() as i64;
    let found: BTreeMap<i64, i64> = all.iter().map(|at| (number(at, "id"), number(at, "card.count_30d"))).collect();
    assert_eq!((found, all.len()), (expected.clone(), expected.len()));
}

#[test]
fn a_start_that_may_goes_on_behind_records_that_were_removed() {
    let service = killed_after(300);
    let events = service.topic("events");
    // Partition 0 has the even ids: 300 to 358 are removed.
    service.send("events", 2, lines(300..400));
    delete_before(&service.brokers, &events, 0, 180);
    assert!(refused(&service, &[]).contains("there are 180 to 199"));
    let wrong = service.run(&["--allow-gap", "event"]).end();
    assert!(wrong.status.code() == Some(2) && wrong.err.contains("there is no such source"), "{}", wrong.err);

    // It is killed as soon as it has begun: what it has passed it has passed.
    let mut running = service.run(&["--http", "127.0.0.1:0", "--allow-gap", "sources.events"]);
    let at = address(&mut running);
    let page = samples(&get(&at, "/metrics")).unwrap();
    let topic = [("topic", events.as_str()), ("source", "events")];
    assert_eq!(sum(&page, "millstream_source_gaps_total", &topic), 1.0);
    assert_eq!(sum(&page, "millstream_source_missed_offsets_total", &topic), 30.0);
    let log = running.err();
    for told in ["\"from\":150", "\"to\":179", "\"offsets\":30", &format!("\"topic\":\"{events}\"")] {
        assert!(log.contains(told), "{told}: {log}");
    }
    drop(running);
    let mut running = service.run(&["--http", "off"]);
    service.until("vectors", 370, &mut running);
    let summary = read_summary(&stop(running));
    assert_eq!(summary.get("gaps"), None);
    let read = (0..300).chain((300..400).filter(|id| id % 2 == 1 || *id >= 360));
    check(&service, read.clone());

    // It was allowed for that one. The next is another.
    service.send("events", 2, lines(400..420));
    delete_before(&service.brokers, &events, 0, 205);
    refused(&service, &[]);
    let mut running = service.run(&["--http", "off", "--allow-gap", "events"]);
    service.until("vectors", 385, &mut running);
    let missed = json!([{
        "source": "events", "topic": events, "partition": 0, "reason": "removed", "from": 200, "to": 204, "offsets": 5
    }]);
    assert_eq!(read_summary(&stop(running))["gaps"], missed);
    check(&service, read.chain((400..420).filter(|id| id % 2 == 1 || *id >= 410)));
}

#[test]
fn a_topic_that_was_made_anew_is_read_from_its_beginning_by_a_start_that_may() {
    let service = killed_after(100);
    let events = service.topic("events");
    delete(&service.brokers, &events);
    create(&service.brokers, &events, 1, &[]);
    // It has grown past the position of the one before.
    service.send("events", 1, lines(100..170));
    refused(&service, &[]);
    let mut running = service.run(&["--http", "off", "--processes", "2", "--allow-gap", "events"]);
    service.until("vectors", 170, &mut running);
    let gaps = read_summary(&stop(running))["gaps"].clone();
    let missed = |partition: i32| {
        json!({
            "source": "events", "topic": events, "partition": partition, "reason": "made_anew", "from": 50, "to": null,
            "offsets": null
        })
    };
    assert_eq!(gaps, json!([missed(0), missed(1)]));
    service.send("events", 1, lines(170..200));
    let mut running = service.run(&["--http", "off"]);
    service.until("vectors", 200, &mut running);
    stop(running);
    check(&service, 0..200);
}
