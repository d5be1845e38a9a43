//! `millstream run` on topics, as those who operate it see it: predictions with headers, dead letters with their bytes, a
//! stop and a start between which nothing is lost and nothing repeated, errors that end it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use super::*;
use crate::program::{Running, millstream, read_summary, root, total};

/// A folder with a topology that scores payments, and its topics.
struct Service {
    brokers: String,
    payments: String,
    predictions: String,
    rejects: String,
    folder: tempfile::TempDir,
}

impl Service {
    fn new(brokers: String) -> Service {
        let folder = tempfile::tempdir().unwrap();
        let name = |topic| unique(&format!("live-{topic}"));
        let (payments, predictions, rejects) = (name("payments"), name("predictions"), name("rejects"));
        let service = Service { brokers, payments, predictions, rejects, folder };
        std::fs::write(service.topology(), service.text()).unwrap();
        service
    }

    fn topology(&self) -> PathBuf {
        self.folder.path().join("topology.yaml")
    }

    fn text(&self) -> String {
        let Service { brokers, payments, predictions, rejects, .. } = self;
        let model = root().join("topologies/score/model.onnx");
        let model = model.display();
        format!(
            "
version: 1
name: {payments}
sources:
  payments:
    from: {{ kafka: {{ brokers: \"{brokers}\", topics: [{payments}], start: earliest }} }}
    schema: {{ id: string, amount: float64, balance: float64, age_days: float64, hour: float64 }}
features:
  spent:
    from: payments
    key: [id]
    aggregates:
      - {{ of: amount, ops: [sum], windows: [1h] }}
vectors:
  payment:
    spine: payments
    join:
      - {{ features: spent }}
models:
  fraud: {{ from: payment, onnx: {model}, version: \"7\", features: [amount, balance, age_days, hour] }}
sinks:
  predictions:
    from: fraud
    to: {{ kafka: {{ brokers: \"{brokers}\", topic: {predictions} }} }}
    select: {{ id: id, score: score }}
    key: [id]
  dead_letters:
    from: rejects
    to: {{ kafka: {{ brokers: \"{brokers}\", topic: {rejects} }} }}
"
        )
    }

    fn create_topics(&self) {
        for (topic, partitions) in [(&self.payments, 3), (&self.predictions, 2), (&self.rejects, 1)] {
            create(&self.brokers, topic, partitions, &[]);
        }
    }

    /// Writes payments with `millstream produce`.
    fn produce(&self, ids: std::ops::Range<u32>) {
        let path = self.folder.path().join("payments.jsonl");
        let line = |id| format!("{{\"id\":\"p{id}\",\"amount\":{id}.5,\"balance\":100,\"age_days\":3,\"hour\":12}}\n");
        std::fs::write(&path, ids.map(line).collect::<String>()).unwrap();
        let mut command = millstream();
        command.arg("produce").arg(path).args(["--topic", &self.payments, "--key", "id"]);
        self.said(&mut command);
    }

    fn said(&self, command: &mut Command) -> String {
        let said = Running::start(command.env("KAFKA_BROKERS", &self.brokers)).end();
        assert!(said.status.success(), "{}", said.err);
        said.out
    }

    fn run(&self, workers: usize) -> Running {
        let mut command = millstream();
        command.arg("run").arg(self.topology()).args(["--workers", &workers.to_string(), "--http", "off", "--json"]);
        Running::start(&mut command)
    }

    /// Everything in a topic, as `millstream consume` shows it.
    fn consume(&self, topic: &str) -> Vec<Value> {
        let said = self.said(millstream().args(["consume", topic, "--until-end", "--json"]));
        said.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Holds what `millstream checkpoint` says against what the job did; damages a copy, which must be found.
    fn check_checkpoints(&self) {
        let said = |what: &str, path: &Path| {
            let mut command = millstream();
            Running::start(command.args(["checkpoint", what, "--json"]).arg(path)).end()
        };
        let json = |what| -> Value {
            let said = said(what, &self.topology());
            serde_json::from_str(&said.out).unwrap_or_else(|error| panic!("{error}: {}{}", said.out, said.err))
        };
        let contents = json("inspect");
        assert_eq!(contents["epoch"], json("list").as_array().unwrap().last().unwrap()["epoch"]);
        assert_eq!(
            (&contents["job"], contents["nodes"]["spent"]["keys"].as_u64()),
            (&self.payments.clone().into(), Some(300))
        );
        let taken: i64 = (0..3)
            .map(|at| contents["positions"]["payments"][format!("{}/{at}", self.payments)].as_i64().unwrap())
            .sum();
        assert_eq!(taken, 302);
        assert_eq!(json("verify")["epoch"], contents["epoch"]);

        let copy = self.folder.path().join("copy");
        for folder in ["manifest", "seg"] {
            std::fs::create_dir_all(copy.join(folder)).unwrap();
            for entry in std::fs::read_dir(self.folder.path().join("state").join(folder)).unwrap() {
                let path = entry.unwrap().path();
                std::fs::copy(&path, copy.join(folder).join(path.file_name().unwrap())).unwrap();
            }
        }
        let segment = std::fs::read_dir(copy.join("seg")).unwrap().next().unwrap().unwrap().path();
        let mut bytes = std::fs::read(&segment).unwrap();
        bytes[40] ^= 1;
        std::fs::write(&segment, bytes).unwrap();
        let said = said("verify", &copy);
        assert_eq!(said.status.code(), Some(5), "{}", said.err);
        assert!(said.err.contains(&*segment.to_string_lossy()), "{}", said.err);
    }

    /// Waits until a topic has so many messages.
    fn until(&self, topic: &str, count: usize, running: &mut Running) {
        let deadline = Instant::now() + LONG;
        while self.consume(topic).len() < count {
            assert!(running.runs(), "it has ended: {}", running.err());
            assert!(Instant::now() < deadline, "{topic} has less than {count} messages: {}", running.err());
        }
    }
}

/// The headers of a message.
fn headers(message: &Value) -> BTreeMap<&str, &str> {
    let pairs = message["headers"].as_array().unwrap().iter();
    pairs.map(|pair| (pair[0].as_str().unwrap(), pair[1].as_str().unwrap())).collect()
}

/// Waits for the end of a program that fails; gives what it said.
fn failure(running: Running) -> String {
    let said = running.end();
    assert_eq!(said.status.code(), Some(1), "{}", said.err);
    said.err
}

#[test]
fn a_service_that_is_stopped_goes_on_where_it_was() {
    let service = Service::new(brokers());
    service.create_topics();
    service.produce(0..300);
    let bad: [&[u8]; 2] = [b"\xff\x00 not json", b"{\"id\":\"x\",\"amount\":\"ten\"}"];
    write(&service.brokers, &service.payments, bad.map(|bytes| (1, bytes)));

    let mut running = service.run(2);
    service.until(&service.predictions, 300, &mut running);
    service.until(&service.rejects, 2, &mut running);
    running.terminate();
    let first = read_summary(&running.end());
    assert_eq!((first["ended"].as_str(), total(&first["events"])), (Some("stopped"), 302));

    service.check_checkpoints();

    // What comes while it is down is taken up by the next start, which has another number of workers.
    service.produce(300..500);
    let mut running = service.run(3);
    service.until(&service.predictions, 500, &mut running);
    running.terminate();
    let second = read_summary(&running.end());
    assert_eq!(total(&second["events"]), 200, "{second}");

    let predictions = service.consume(&service.predictions);
    let ids: BTreeMap<&str, u64> = predictions.iter().fold(BTreeMap::new(), |mut ids, message| {
        *ids.entry(message["value"]["id"].as_str().unwrap()).or_default() += 1;
        ids
    });
    assert_eq!((ids.len(), predictions.len()), (500, 500), "each once");
    for message in &predictions {
        let headers = headers(message);
        let id = format!("{}-{}-{}-7", headers["topic"], headers["partition"], headers["offset"]);
        assert_eq!((headers["prediction_id"], headers["model"], headers["model_version"]), (&*id, "fraud", "7"));
        assert_eq!(headers["topic"], service.payments);
        assert_eq!(message["key"], message["value"]["id"]);
        assert!(message["value"]["score"].as_f64().is_some_and(|score| (0.0..=1.0).contains(&score)), "{message}");
    }
    check_dead_letters(&service, &bad);
}

/// Dead letters are the bytes as they came, and headers that say why.
fn check_dead_letters(service: &Service, bad: &[&[u8]]) {
    let consumer: BaseConsumer = client(&service.brokers).set("group.id", unique("live")).create().unwrap();
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(&service.rejects, 0, Offset::Beginning).unwrap();
    consumer.assign(&list).unwrap();
    for bytes in bad {
        let message = consumer.poll(LONG).expect("there are dead letters").unwrap();
        assert_eq!(rdkafka::Message::payload(&message), Some(*bytes));
    }
    let reasons: Vec<Value> = service.consume(&service.rejects);
    let reasons: Vec<_> = reasons.iter().map(|message| headers(message)).collect();
    assert_eq!(reasons.len(), bad.len());
    for (headers, reason) in reasons.iter().zip(["malformed", "wrong_type"]) {
        assert_eq!((headers["stage"], headers["reason"]), ("payments", reason));
        assert_eq!((headers["topic"], headers["partition"]), (&*service.payments, "1"));
    }
}

#[test]
fn an_empty_topic_is_waited_at() {
    let service = Service::new(brokers());
    service.create_topics();
    assert_eq!(service.consume(&service.payments), Vec::<Value>::new());
    let mut running = service.run(2);
    let deadline = Instant::now() + LONG;
    while !running.err().contains("\"reading\"") {
        assert!(running.runs() && Instant::now() < deadline, "{}", running.err());
    }
    running.terminate();
    let summary = read_summary(&running.end());
    assert_eq!((&summary["ended"], total(&summary["events"])), (&"stopped".into(), 0));

    // The positions of the empty partitions were kept: what came while it was down is not skipped.
    service.produce(0..20);
    let mut running = service.run(1);
    service.until(&service.predictions, 20, &mut running);
    running.terminate();
    assert_eq!(total(&read_summary(&running.end())["events"]), 20);
}

#[test]
fn partitions_that_are_added_are_read_from_their_beginning() {
    let service = Service::new(brokers());
    service.create_topics();
    service.produce(0..30);
    let mut running = service.run(2);
    service.until(&service.predictions, 30, &mut running);
    // It takes the job some seconds to find them; by then they have messages.
    add_partitions(&service.brokers, &service.payments, 5);
    let payment = |id| format!("{{\"id\":\"{id}\",\"amount\":1,\"balance\":1,\"age_days\":1,\"hour\":1}}");
    let added: Vec<(i32, String)> = (0..10).map(|n| (3 + n % 2, payment(format!("added-{n}")))).collect();
    write(&service.brokers, &service.payments, added.iter().map(|(partition, value)| (*partition, value.as_bytes())));
    service.until(&service.predictions, 40, &mut running);
    running.terminate();
    let summary = read_summary(&running.end());
    assert_eq!(total(&summary["events"]), 40, "{summary}");

    let predictions = service.consume(&service.predictions);
    let headers: Vec<_> = predictions.iter().map(headers).collect();
    for partition in ["3", "4"] {
        let of_it = headers.iter().filter(|headers| headers["partition"] == partition);
        let mut offsets: Vec<&str> = of_it.map(|headers| headers["offset"]).collect();
        offsets.sort_unstable();
        assert_eq!(offsets, ["0", "1", "2", "3", "4"], "of partition {partition}");
    }
}

#[test]
fn a_topic_that_is_not_there_is_an_error() {
    let service = Service::new(brokers());
    let said = failure(service.run(1));
    assert!(said.contains(&service.payments) || said.contains(&service.predictions), "{said}");
    assert!(said.contains("does not exist"), "{said}");
    assert!(!Path::new(&service.folder.path().join("state/checkpoint")).exists());
}

#[test]
fn a_broker_that_does_not_answer_is_named_and_waited_for() {
    // A port that was free a moment ago.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let service = Service::new(format!("127.0.0.1:{port}"));
    let mut running = service.run(1);
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while !running.err().contains(&service.brokers) {
        assert!(running.runs(), "{}", running.err());
        assert!(std::time::Instant::now() < deadline, "nothing is said about {}: {}", service.brokers, running.err());
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    running.terminate();
    let said = running.end();
    assert!(matches!(said.status.code(), Some(0 | 143)), "{}: {}", said.status, said.err);
}
