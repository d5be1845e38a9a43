//! Partitions that have no events, and the time of the others.

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

/// Writes a label to each partition.
fn send_labels(service: &Service, at: u64) {
    let label = |id: u64| format!("{{\"id\":{id},\"at\":{at},\"large\":1}}");
    service.send("labels", 2, [label(1), label(2)]);
}

fn start(service: &Service) -> Running {
    let mut running = service.run(&["--workers", "2", "--http", "off"]);
    until(&mut running, "\"source\":\"events\"");
    until(&mut running, "\"source\":\"labels\"");
    running
}

/// Stops a job; how many predictions stand in its window of three seconds.
fn stop(running: Running) -> u64 {
    running.terminate();
    let summary = read_summary(&running.end());
    summary["outcomes"]["recent"]["standing"]["predictions"].as_u64().unwrap()
}

/// Those of the last 3 s, and of the half second for which more are waited for. The newest event has no later one.
const RECENT: std::ops::RangeInclusive<u64> = 30..=36;

/// Each partition has a worker of its own.
#[test]
fn a_partition_that_is_idle_holds_no_other_back_whichever_worker_reads_it() {
    let service = Service::chaos(2).set("IDLE_AFTER", "1s");
    // One of two partitions, and all of a source.
    send(&service, 1, 1..2);
    send_labels(&service, BEGINNING);
    let mut running = start(&service);
    service.until("vectors", 1, &mut running);
    std::thread::sleep(Duration::from_millis(2_500));
    send(&service, 0, MINUTE);
    service.until("vectors", 600, &mut running);
    let standing = stop(running);
    assert!(RECENT.contains(&standing), "{standing} predictions stand");
}

#[test]
fn a_partition_without_new_events_is_where_it_was_before_the_stop() {
    let service = Service::chaos(2);
    send(&service, 0, 1..2);
    send(&service, 1, MINUTE);
    // Later than all events.
    send_labels(&service, BEGINNING + 3_600_000);
    let mut running = start(&service);
    service.until("vectors", 600, &mut running);
    assert_eq!(stop(running), 600, "the other one holds them");
    let mut running = start(&service);
    send(&service, 0, MINUTE.start + 1..MINUTE.end);
    service.until("vectors", 600 + 598, &mut running);
    let standing = stop(running);
    assert!(RECENT.contains(&(standing / 2)), "{standing} predictions stand");
}
