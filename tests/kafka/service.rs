//! A job as its operators see it: a topology in a folder of its own, topics that no other test has, `millstream run`, and
//! what is to be seen from outside - topics, log, metrics.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use millstream::metrics::scrape::Sample;
use serde_json::Value;

use super::*;
use crate::program::{Running, millstream, root, said};

/// A topology of `tests/kafka/topologies` and its topics, which it calls `${RUN}-...`.
pub struct Service {
    pub brokers: String,
    /// The job's name, and the beginning of its topics' names.
    pub run: String,
    folder: tempfile::TempDir,
}

impl Service {
    /// The topology `name`, on `brokers`; without topics yet.
    pub fn new(brokers: String, name: &str) -> Service {
        let service = Service { brokers, run: unique(name), folder: tempfile::tempdir().unwrap() };
        let file = root().join("tests/kafka/topologies").join(format!("{name}.yaml"));
        std::fs::copy(file, service.topology()).unwrap();
        service
    }

    /// The job on another machine: the same topics, a copy of its folder.
    pub fn copy(&self) -> Service {
        let folder = tempfile::tempdir().unwrap();
        said(Command::new("cp").arg("-a").arg(self.folder().join(".")).arg(folder.path()));
        Service { brokers: self.brokers.clone(), run: self.run.clone(), folder }
    }

    /// Creates topics of so many partitions.
    pub fn create<const N: usize>(self, topics: [(&str, i32); N]) -> Service {
        for (topic, partitions) in topics {
            create(&self.brokers, &self.topic(topic), partitions, &[]);
        }
        self
    }

    /// The full name of a topic.
    pub fn topic(&self, name: &str) -> String {
        format!("{}-{name}", self.run)
    }

    /// The job's folder.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The job's file.
    pub fn topology(&self) -> PathBuf {
        self.folder().join("topology.yaml")
    }

    /// The program, with all that the topology names.
    pub fn command(&self) -> Command {
        let mut command = millstream();
        let model = root().join("topologies/score/model.onnx");
        command.env("BROKERS", &self.brokers).env("RUN", &self.run).env("MODEL", model);
        command.env("KAFKA_BROKERS", &self.brokers);
        command
    }

    /// Starts the job.
    pub fn run(&self, options: &[&str]) -> Running {
        Running::start(self.command().arg("run").arg(self.topology()).arg("--json").args(options))
    }

    /// Writes messages, in turn to each of so many partitions.
    pub fn send(&self, topic: &str, partitions: usize, lines: impl IntoIterator<Item = String>) {
        let lines: Vec<String> = lines.into_iter().collect();
        let messages = lines.iter().enumerate().map(|(i, line)| ((i % partitions) as i32, line.as_bytes()));
        write(&self.brokers, &self.topic(topic), messages);
    }

    /// Everything in a topic that is committed, as `millstream consume` shows it.
    pub fn consume(&self, topic: &str) -> Vec<Value> {
        let said = said(self.command().args(["consume", &self.topic(topic), "--until-end", "--json"]));
        said.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Waits until a topic has so many messages.
    pub fn until(&self, topic: &str, count: usize, running: &mut Running) {
        let deadline = Instant::now() + LONG;
        while self.consume(topic).len() < count {
            assert!(running.runs(), "it has ended: {}", running.err());
            assert!(Instant::now() < deadline, "{topic} has less than {count} messages: {}", running.err());
        }
    }
}

/// The address a job serves at, from its log.
pub fn address(running: &mut Running) -> String {
    let deadline = Instant::now() + LONG;
    loop {
        let log = running.err();
        let found = log.split_once("\"address\":\"").and_then(|(_, rest)| rest.split_once('"'));
        if let Some((address, _)) = found {
            return address.to_owned();
        }
        assert!(running.runs() && Instant::now() < deadline, "no address is served: {log}");
    }
}

/// The body of `GET path`.
pub fn get(address: &str, path: &str) -> String {
    ask_for(address, "GET", path, 200)
}

/// The body of the answer to a request without one, which must have this status.
pub fn ask_for(address: &str, method: &str, path: &str, status: u16) -> String {
    let mut connection = TcpStream::connect(address).unwrap();
    write!(connection, "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with(&format!("HTTP/1.1 {status}")), "{answer}");
    body.to_owned()
}

/// Scrapes until nothing is wrong with the scrape in the eyes of `wrong`.
pub fn scrape(address: &str, running: &mut Running, wrong: impl Fn(&str) -> Vec<String>) -> String {
    let deadline = Instant::now() + LONG;
    loop {
        let text = get(address, "/metrics");
        let wrong = wrong(&text);
        if wrong.is_empty() {
            return text;
        }
        assert!(running.runs(), "it has ended: {}", running.err());
        assert!(Instant::now() < deadline, "{}\n{text}\n{}", wrong.join("\n"), running.err());
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The sum of the series of a metric that have all of `labels`.
pub fn sum(samples: &[Sample], name: &str, labels: &[(&str, &str)]) -> f64 {
    let has =
        |sample: &&Sample| labels.iter().all(|(label, value)| sample.labels.get(*label).is_some_and(|v| v == value));
    samples.iter().filter(|sample| sample.name == name).filter(has).map(|sample| sample.value).sum()
}
