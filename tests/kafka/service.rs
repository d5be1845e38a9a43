//! A job as its operators see it: a topology in a folder of its own, topics that no other test has, `millstream run`, and
//! what is to be seen from outside - topics, log, metrics.

use std::path::{Path, PathBuf};
use std::process::Command;

use millstream::metrics::scrape::Sample;
use serde_json::Value;

use super::chaos::world::TOPICS;
use super::*;
use crate::program::{Running, millstream, root, said};
pub use crate::program::{address, ask_for, get};

/// The variable that says where the store of the state is.
pub const ENDPOINT: &str = "S3_ENDPOINT";

/// A topology of `tests/kafka/topologies` and its topics, which it calls `${RUN}-...`, or one of the repository.
pub struct Service {
    pub brokers: String,
    /// The job's name, and the beginning of its topics' names.
    pub run: String,
    folder: tempfile::TempDir,
    /// More variables of the topology.
    variables: Vec<(&'static str, String)>,
}

impl Service {
    /// The topology `name`, on `brokers`; without topics yet.
    pub fn new(brokers: String, name: &str) -> Service {
        Service::in_folder(tempfile::tempdir().unwrap(), brokers, name)
    }

    /// The topology `chaos` with its topics, of which that of the events has `partitions`.
    pub fn chaos(partitions: i32) -> Service {
        let topics = TOPICS.map(|(topic, usual)| (topic, if topic == "events" { partitions } else { usual }));
        Service::new(brokers(), "chaos").create(topics)
    }

    /// The same in a folder that is there.
    pub fn in_folder(folder: tempfile::TempDir, brokers: String, name: &str) -> Service {
        let service = Service { brokers, run: unique(name), folder, variables: Vec::new() };
        let file = root().join("tests/kafka/topologies").join(format!("{name}.yaml"));
        std::fs::copy(file, service.topology()).unwrap();
        service
    }

    /// A topology of the repository, whose job and topics get names that no other test has.
    pub fn shipped(brokers: String, name: &str) -> Service {
        let folder = tempfile::tempdir().unwrap();
        let service = Service { brokers, run: unique(name), folder, variables: Vec::new() };
        let (example, run) = (root().join("topologies").join(name), &service.run);
        let text = std::fs::read_to_string(example.join("topology.yaml")).unwrap();
        let names = [(format!("\nname: {name}\n"), format!("\nname: {run}\n"))];
        let topics = ["topics: [", "topic: "].map(|before| (before.to_string(), format!("{before}{run}-")));
        let text = names.into_iter().chain(topics).fold(text, |text, (from, to)| {
            assert!(text.contains(&from), "no `{from}` in {name}");
            text.replace(&from, &to)
        });
        std::fs::write(service.topology(), text).unwrap();
        std::fs::copy(example.join("model.onnx"), service.folder().join("model.onnx")).unwrap();
        service
    }

    /// The job on another machine: the same topics, a copy of its folder.
    pub fn copy(&self) -> Service {
        let folder = tempfile::tempdir().unwrap();
        said(Command::new("cp").arg("-a").arg(self.folder().join(".")).arg(folder.path()));
        Service { brokers: self.brokers.clone(), run: self.run.clone(), folder, variables: self.variables.clone() }
    }

    /// Sets a variable of the topology.
    pub fn set(mut self, variable: &'static str, value: &str) -> Service {
        self.variables.push((variable, value.to_string()));
        self
    }

    /// The same with the state in the store of all tests.
    pub fn in_bucket(self) -> Service {
        let endpoint = std::env::var("S3_ENDPOINT").unwrap_or_else(|_| {
            panic!("no store to test with: run `export S3_ENDPOINT=$(deploy/s3.sh up)`, or `make test`, which does it")
        });
        self.set(ENDPOINT, &endpoint).set("AWS_ACCESS_KEY_ID", "test").set("AWS_SECRET_ACCESS_KEY", "test")
    }

    /// Whether its state lies in a bucket.
    pub fn is_in_bucket(&self) -> bool {
        self.has(ENDPOINT)
    }

    /// Creates topics of so many partitions.
    pub fn create<const N: usize>(self, topics: [(&str, i32); N]) -> Service {
        for (topic, partitions) in topics {
            create(&self.brokers, &self.topic(topic), partitions, &[]);
        }
        self
    }

    /// Whether a variable of the topology has a value.
    pub fn has(&self, variable: &str) -> bool {
        self.variables.iter().any(|(name, _)| *name == variable)
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
        let identity = root().join("tests/kafka/topologies/identity.onnx");
        command.env("BROKERS", &self.brokers).env("RUN", &self.run).env("MODEL", model).env("IDENTITY", identity);
        command.env("KAFKA_BROKERS", &self.brokers);
        command.envs(self.variables.iter().cloned());
        command
    }

    /// The epoch of the newest checkpoint, 0 before the first.
    pub fn newest_epoch(&self) -> u64 {
        if self.is_in_bucket() {
            let listed = self.checkpoint("list");
            return listed.as_array().and_then(|all| all.last()?["epoch"].as_u64()).unwrap_or(0);
        }
        // Without a process for each look.
        let Ok(entries) = std::fs::read_dir(self.folder().join("state/manifest")) else { return 0 };
        let epoch = |path: PathBuf| -> Option<u64> {
            let manifest: Value = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
            manifest["epoch"].as_u64()
        };
        entries.filter_map(|entry| epoch(entry.ok()?.path())).max().unwrap_or_default()
    }

    /// How many files there are with changes of state, in its folder.
    pub fn segments(&self) -> usize {
        std::fs::read_dir(self.folder().join("state/seg")).map_or(0, Iterator::count)
    }

    /// What `millstream checkpoint` says; nothing if it fails.
    pub fn checkpoint(&self, what: &str) -> Value {
        let mut command = self.command();
        let said = Running::start(command.args(["checkpoint", what, "--json"]).arg(self.topology())).end();
        serde_json::from_str(&said.out).unwrap_or_default()
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
