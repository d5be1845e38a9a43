//! Partitions that have no events, and the time of the others.

use serde_json::{Value, json};

use super::service::Service;
use super::*;
use crate::program::{Running, read_summary, until};

/// When the first event happens, in milliseconds since 1970.
const BEGINNING: u64 = 1_700_000_000_000;
/// A minute of events, one every 100 ms.
const MINUTE: std::ops::Range<u64> = 1..600;

/// Writes events to a partition, the one with the number n 100 ms after the beginning for each.
fn send(service: &Service, partition: i32, ids: std::ops::Range<u64>) {
    let event = |id: u64| {
        let (at, card) = (BEGINNING + 100 * id, 3 + partition);
        format!("{{\"id\":{id},\"at\":{at},\"card\":{card},\"amount\":0.5}}").into_bytes()
    };
    let events: Vec<Vec<u8>> = ids.map(event).collect();
    write(&service.brokers, &service.topic("events"), events.iter().map(|event| (partition, event.as_slice())));
}

/// Writes a label to each of the first partitions.
fn send_labels(service: &Service, at: u64, ids: std::ops::RangeInclusive<u64>) {
    let label = |id| format!("{{\"id\":{id},\"at\":{at},\"large\":1}}");
    service.send("labels", 2, ids.map(label));
}

/// Starts a job with two workers, in so many processes.
fn start(service: &Service, processes: u64) -> Running {
    let (processes, workers) = (processes.to_string(), (2 / processes).to_string());
    let mut running = service.run(&["--processes", &processes, "--workers", &workers, "--http", "off"]);
    until(&mut running, "\"source\":\"events\"");
    until(&mut running, "\"source\":\"labels\"");
    running
}

fn stop(running: Running) -> Value {
    running.terminate();
    read_summary(&running.end())
}

/// How many predictions stand in the window of three seconds.
fn standing(summary: &Value) -> u64 {
    summary["outcomes"]["recent"]["standing"]["predictions"].as_u64().unwrap()
}

/// Those of the last 3 s, of the half second for which more are waited for, and the newest.
const RECENT: std::ops::RangeInclusive<u64> = 30..=37;

/// Each partition has a worker of its own.
#[test]
fn a_partition_that_is_idle_holds_no_other_back_whichever_worker_reads_it() {
    for processes in [1, 2] {
        let service = Service::chaos(2).set("IDLE_AFTER", "1s").set("LATE", "drop");
        // One of two partitions, and all of a source.
        send(&service, 1, 1..2);
        send_labels(&service, BEGINNING, 1..=2);
        let mut running = start(&service, processes);
        service.until("vectors", 1, &mut running);
        std::thread::sleep(Duration::from_millis(2_500));
        send(&service, 0, MINUTE);
        service.until("vectors", 600, &mut running);
        // Behind the events, and not behind the labels.
        send_labels(&service, BEGINNING + 1, 3..=3);
        let read = || committed(&service.brokers, &service.run, &service.topic("labels"));
        let deadline = Instant::now() + LONG;
        while read() != Offset::Offset(2) {
            assert!(Instant::now() < deadline, "{:?}: {}", read(), running.err());
        }
        // The first is behind what the other partition has come to.
        send(&service, 1, 2..3);
        send(&service, 1, 601..602);
        service.until("vectors", 601, &mut running);
        let summary = stop(running);
        assert_eq!(summary["late"], json!({ "events": 1 }), "{processes} processes: {summary}");
        assert_eq!(summary["events"]["labels"], 3, "{processes} processes: {summary}");
        let standing = standing(&summary);
        assert!(RECENT.contains(&standing), "{standing} predictions stand with {processes} processes");
    }
}

#[test]
fn a_partition_without_new_events_is_where_it_was_before_the_stop() {
    let service = Service::chaos(2);
    send(&service, 0, 1..2);
    send(&service, 1, MINUTE);
    // Later than all events.
    send_labels(&service, BEGINNING + 3_600_000, 1..=2);
    let mut running = start(&service, 1);
    service.until("vectors", 600, &mut running);
    assert_eq!(standing(&stop(running)), 600, "the other one holds them");
    let mut running = start(&service, 1);
    send(&service, 0, MINUTE.start + 1..MINUTE.end);
    service.until("vectors", 600 + 598, &mut running);
    let standing = standing(&stop(running));
    assert!(RECENT.contains(&(standing / 2)), "{standing} predictions stand");
}
