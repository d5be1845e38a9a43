//! Brokers that go away and come back: this test has a broker of its own, put up with `deploy/kafka.sh`.

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::process::Command;

use millstream::sinks::kafka::KafkaSink;
use millstream::sinks::{Open, Records, SinkTarget};
use millstream::sources::Connection;
use millstream_operators::units::Millis;

use super::*;

/// A broker of this test; stopped, and its data deleted, when dropped.
struct Broker {
    port: u16,
    folder: tempfile::TempDir,
}

impl Broker {
    fn up() -> Broker {
        // The controller listens on the port after, so both must be free.
        let free = (0..50).find_map(|_| {
            let port = TcpListener::bind("127.0.0.1:0").ok()?.local_addr().ok()?.port();
            TcpListener::bind(("127.0.0.1", port.checked_add(1)?)).ok().map(|_| port)
        });
        let broker = Broker { port: free.expect("two free ports"), folder: tempfile::tempdir().unwrap() };
        broker.run(&["up"]);
        broker
    }

    fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    fn run(&self, args: &[&str]) {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/kafka.sh");
        let mut command = Command::new(script);
        let command = command.args(args).env("KAFKA_PORT", self.port.to_string()).env("KAFKA_DIR", self.folder.path());
        let output = command.env("KAFKA_NODES", "1").env("KAFKA_HEAP", "256m").output().unwrap();
        assert!(output.status.success(), "kafka.sh {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.run(&["down"]);
    }
}

#[test]
fn a_killed_broker_that_comes_back_costs_time_and_no_message() {
    let broker = Broker::up();
    let (address, topic) = (broker.address(), unique("outage"));
    create(&address, &topic, 2, &[]);
    write_numbers(&address, &topic, 2, 0..1_000);
    let mut source = Source::start(&address, &[&topic], Setup { workers: 2, ..Setup::default() });
    source.until_messages(1_000);
    let sink = KafkaSink {
        brokers: address.clone(),
        topic: topic.clone(),
        linger: Millis(1),
        headers: false,
        options: Options::default(),
    };
    let (name, job, folder) = ("back".to_owned(), "test".to_owned(), PathBuf::new());
    let mut writer =
        sink.open(Open { name, job, worker: 0, workers: 1, folder, resumed: false, position: None }).unwrap();

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
    let (left, result) = source.stop();
    result.unwrap();
    let found: BTreeSet<u32> = numbers(&left.got).into_values().flatten().collect();
    assert_eq!(found, (0..1_500).collect());
}
