//! Brokers that go away and come back.

use std::collections::BTreeSet;

use millstream::sinks::kafka::{Delivery, KafkaSink};
use millstream::sinks::{BatchBytes, Commits, Open, Records, SinkTarget};
use millstream::sources::Connection;

use super::own_broker::Broker;
use super::service::Service;
use super::*;
use crate::program::{Running, read_summary, total};

#[test]
fn a_killed_broker_that_comes_back_costs_time_and_no_message() {
    let broker = Broker::plain();
    let (address, topic) = (broker.address(), unique("outage"));
    create(&address, &topic, 2, &[]);
    write_numbers(&address, &topic, 2, 0..1_000);
    let mut source = Source::start(&address, &[&topic], Setup { workers: 2, ..Setup::default() });
    source.until_messages(1_000);
    let new = KafkaSink::new(&address, &topic);
    let sink = KafkaSink { delivery: Delivery::AtLeastOnce, headers: false, ..new };
    let (name, job, folder) = ("back".to_owned(), "test".to_owned(), PathBuf::new());
    let (commits, batch_bytes) = (Commits::default(), BatchBytes::default());
    let (dead_letters, resumed, position) = (false, false, None);
    let open = Open { name, job, worker: 0, workers: 1, folder, dead_letters, resumed, position, commits, batch_bytes };
    let mut writer = sink.open(open).unwrap();

    broker.run(&["kill", "1"]);
    source.until("a lost connection", |source| source.status.connection() == Connection::Lost);
    // What a sink takes while the broker is away is delivered when it is back, each once.
    for n in 1_000..1_500 {
        let value = n.to_string().into_bytes();
        let records =
            Records { value_ends: vec![value.len()], values: value, event_times: vec![0], ..Records::default() };
        assert_eq!(writer.write(1, &records, 0).unwrap(), 1);
    }
    writer.close_epoch(1).unwrap();
    assert_eq!(writer.durable().unwrap(), None);
    assert_eq!(source.got.len(), 1_000);

    broker.run(&["start", "1"]);
    let deadline = Instant::now() + LONG;
    while writer.durable().unwrap() != Some(1) {
        assert!(Instant::now() < deadline, "nothing was acknowledged after the broker came back");
        std::thread::yield_now();
    }
    source.until_messages(1_500);
    source.until("a connection", |source| source.status.connection() == Connection::Reading);
    // A broker that is away holds up no stop, though offsets are on their way to it.
    source.status.commit(Positions([((topic.clone(), 0), 700)].into()));
    broker.run(&["kill", "1"]);
    source.until("a lost connection", |source| source.status.connection() == Connection::Lost);
    source.status.commit(Positions([((topic.clone(), 0), 701)].into()));
    let begin = Instant::now();
    let (left, result) = source.stop();
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
    result.unwrap();
    let found: BTreeSet<u32> = numbers(&left.got).into_values().flatten().collect();
    assert_eq!(found, (0..1_500).collect());
}

#[test]
fn a_job_waits_for_its_only_broker_at_its_start_and_in_the_middle_of_a_run() {
    let broker = Broker::plain();
    let topics = [("payments", 2), ("predictions", 2), ("rejects", 1)];
    let service = Service::new(broker.address(), "live").create(topics);
    let payment = |id| format!("{{\"id\":\"p{id}\",\"amount\":1,\"balance\":1,\"age_days\":1,\"hour\":1}}");
    service.send("payments", 2, (0..500).map(payment));
    broker.run(&["kill", "1"]);
    let mut running = service.run(&["--workers", "2", "--http", "off"]);
    until_told(&mut running, "Connection refused");
    broker.run(&["start", "1"]);
    service.until("predictions", 500, &mut running);

    // Some are read, some written, some in a transaction.
    service.send("payments", 2, (500..20_000).map(payment));
    broker.run(&["kill", "1"]);
    until_told(&mut running, "\"connection\":\"Lost\"");
    broker.run(&["start", "1"]);
    service.send("payments", 2, (20_000..20_500).map(payment));
    service.until("predictions", 20_500, &mut running);
    running.terminate();
    assert_eq!(total(&read_summary(&running.end())["events"]), 20_500);
    let predictions = service.consume("predictions");
    let ids: BTreeSet<&str> = predictions.iter().map(|message| message["value"]["id"].as_str().unwrap()).collect();
    assert_eq!((ids.len(), predictions.len()), (20_500, 20_500), "each once");
}

/// Waits until a job's log says something.
fn until_told(running: &mut Running, what: &str) {
    let deadline = Instant::now() + LONG;
    while !running.err().contains(what) {
        assert!(running.runs() && Instant::now() < deadline, "{}", running.err());
        std::thread::sleep(Duration::from_millis(20));
    }
}
