//! A world that is not as it should be: files, folders, libraries and addresses. Every failure ends the program with its
//! exit code and a message that names the thing and says what to do; nothing is half done.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::program::{Running, Said, millstream, replay, root, said, summary, total};

/// A folder with the topology `score`, some of its text replaced.
pub fn score(replaced: &[(&str, &str)]) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    let example = root().join("topologies/score");
    for file in ["model.onnx", "input.jsonl"] {
        std::fs::copy(example.join(file), folder.path().join(file)).expect("a copy");
    }
    let mut text = std::fs::read_to_string(example.join("topology.yaml")).expect("the example");
    for (from, to) in replaced {
        assert!(text.contains(from), "{from} is not in the example");
        text = text.replace(from, to);
    }
    let path = folder.path().join("topology.yaml");
    std::fs::write(&path, text).expect("a file");
    (folder, path)
}

fn end(command: &mut Command) -> Said {
    Running::start(command).end()
}

/// Runs a command that must fail with `code` and say all of `says`.
fn fails(command: &mut Command, code: i32, says: &[&str]) {
    let said = end(command);
    assert_eq!(said.status.code(), Some(code), "{}", said.err);
    for text in says {
        assert!(said.err.contains(text), "`{text}` is not in: {}", said.err);
    }
    let reason = |text: &&str| said.err.matches(text).count() > 1;
    let twice = ["Not a directory", "No such file"].into_iter().find(reason);
    assert_eq!((twice, &*said.out), (None, ""), "what is said twice, results of a run that failed: {}", said.err);
}

/// The example replayed into the folder `out` of its own folder.
fn example(folder: &Path, topology: &Path) -> Command {
    replay(topology, 1, &folder.join("out"))
}

#[test]
fn no_library_of_the_model_runtime() {
    let (folder, topology) = score(&[]);
    let absent = folder.path().join("absent.so");
    let mut command = example(folder.path(), &topology);
    let says = ["model `fraud`", absent.to_str().expect("text"), "where no file is", "deploy/onnxruntime.sh"];
    fails(command.env("ORT_DYLIB_PATH", &absent), 1, &says);

    let mut command = example(folder.path(), &topology);
    let text = folder.path().join("input.jsonl");
    fails(command.env("ORT_DYLIB_PATH", &text), 1, &["model `fraud`", "does not load", "deploy/onnxruntime.sh"]);

    // A machine without it can still check a file, but is told what was not checked.
    let mut command = millstream();
    let said = end(command.arg("check").arg(&topology).env("ORT_DYLIB_PATH", &absent));
    assert_eq!(said.status.code(), Some(0), "{}", said.err);
    assert!(said.err.contains("the model was not tried"), "{}", said.err);
}

#[test]
fn a_model_that_is_a_text() {
    let (folder, topology) = score(&[]);
    std::fs::write(folder.path().join("model.onnx"), "not a model\n").expect("a file");
    let says = ["topology.yaml:14", "the file is text, not an ONNX model", "not a model"];
    fails(&mut example(folder.path(), &topology), 2, &says);
}

/// The example with the model `file` of `tests/models/bad` in the place of its own, and more settings of the model.
fn bad_model(file: &str, settings: &str) -> (tempfile::TempDir, PathBuf) {
    let (folder, topology) = score(&[("onnx: model.onnx", &format!("onnx: model.onnx{settings}"))]);
    let model = root().join("tests/models/bad").join(file);
    std::fs::copy(model, folder.path().join("model.onnx")).expect("a copy");
    (folder, topology)
}

/// A start refuses a model after trying it, and `check` says the same before, with the line. (A model whose first run does
/// not end is refused in the same place; to wait for it here would take ten seconds twice.)
#[test]
fn check_tries_models_as_a_start_does() {
    for (file, reason) in [
        ("batch_dependent.onnx", "its rows depend on each other"),
        ("nondeterministic.onnx", "it draws random numbers"),
        ("nan_output.onnx", "set `nan_allowed: true`"),
        ("unknown_op.onnx", "FancyRelu"),
        ("opset_too_new.onnx", "opset"),
        ("dangling_edge.onnx", "nowhere"),
    ] {
        let (folder, topology) = bad_model(file, "");
        fails(&mut example(folder.path(), &topology), 2, &["model `fraud`", reason]);
        fails(millstream().arg("check").arg(&topology), 1, &["topology.yaml:14:11", reason, "1 error"]);
    }
}

#[test]
fn a_model_may_answer_nan_where_that_is_allowed() {
    let (folder, topology) = bad_model("nan_output.onnx", "\n    nan_allowed: true");
    let rows = [
        r#"{"id":"a","amount":1,"balance":1,"age_days":1,"hour":1}"#,
        r#"{"id":"b","amount":1,"balance":1,"age_days":1,"hour":-1}"#,
    ];
    std::fs::write(folder.path().join("input.jsonl"), rows.join("\n")).expect("a file");
    said(millstream().arg("check").arg(&topology));
    let summary = summary(&mut example(folder.path(), &topology));
    assert_eq!((&summary["predictions"]["fraud"], total(&summary["rejects"])), (&1.into(), 1), "{summary}");
}

#[test]
fn a_model_that_lacks_an_input() {
    let (folder, topology) = score(&[("balance, age_days, hour]", "balance, age_days]")]);
    fails(&mut example(folder.path(), &topology), 2, &["topology.yaml:15", "features", "4"]);
}

#[test]
fn output_that_cannot_be_written() {
    let (folder, topology) = score(&[]);
    let file = folder.path().join("file");
    std::fs::write(&file, "").expect("a file");
    let file = file.to_str().expect("text");
    fails(&mut replay(&topology, 1, Path::new(file)), 1, &[file, "--out"]);
    let below = format!("{file}/below");
    fails(&mut replay(&topology, 1, Path::new(&below)), 1, &[&below, "--out"]);
    let mut command = example(folder.path(), &topology);
    fails(command.args(["--summary", &format!("{file}/summary.json")]), 1, &["file/summary.json", "--summary"]);

    let kafka = "{ kafka: { brokers: \"${KAFKA_BROKERS:localhost:9092}\", topic: predictions } }";
    let (folder, topology) = score(&[(kafka, "{ file: { path: model.onnx/below.jsonl } }")]);
    fails(&mut example(folder.path(), &topology), 1, &["sink `predictions`", "model.onnx/below.jsonl"]);
}

#[test]
fn state_that_cannot_be_kept() {
    let file = "from: { file: { paths: [input.jsonl] } }";
    let kafka = "from: { kafka: { brokers: \"${KAFKA_BROKERS:localhost:9092}\", topics: [payments] } }";
    let (_folder, topology) = score(&[(kafka, file), ("version: 1\n", "version: 1\nengine: { state: input.jsonl }\n")]);
    let mut command = millstream();
    let says = ["input.jsonl", "engine.state"];
    fails(command.arg("run").arg(&topology).args(["--http", "off", "--json"]), 1, &says);
}

#[test]
fn input_that_is_not_there() {
    let (folder, topology) = score(&[("input.jsonl", "absent.jsonl")]);
    fails(&mut example(folder.path(), &topology), 1, &["source `payments`", "absent.jsonl"]);
    let (folder, topology) = score(&[("input.jsonl", "2024-*.jsonl")]);
    fails(&mut example(folder.path(), &topology), 1, &["source `payments`", "2024-*.jsonl", "no file matches"]);
    let (folder, topology) = score(&[("input.jsonl", "model.onnx")]);
    fails(&mut example(folder.path(), &topology), 1, &["source `payments`", "model.onnx", ".jsonl"]);
    let absent = folder.path().join("absent.yaml");
    fails(&mut example(folder.path(), &absent), 2, &["absent.yaml", "cannot be read"]);
}

#[test]
fn an_empty_file_is_no_error() {
    let (folder, topology) = score(&[]);
    std::fs::write(folder.path().join("input.jsonl"), "").expect("a file");
    let summary = summary(&mut example(folder.path(), &topology));
    assert_eq!((total(&summary["events"]), total(&summary["sinks"])), (0, 0), "{summary}");
}

#[test]
fn addresses_and_numbers_that_are_none() {
    let (folder, topology) = score(&[]);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let taken = taken.local_addr().expect("an address").to_string();
    for (args, code, says) in [
        (["--http", "nonsense"], 2, "`nonsense` is not an address to listen on"),
        (["--http", taken.as_str()], 1, "another process listens there"),
        (["--workers", "0"], 2, "it must be from 1 to 256"),
        (["--speed", "nan"], 2, "it is a number above 0"),
    ] {
        let mut command = millstream();
        command.arg("replay").arg(&topology).args(args).arg("--out").arg(folder.path().join("out"));
        fails(&mut command, code, &[says]);
    }
}

#[test]
fn a_replay_without_history() {
    let (folder, topology) = score(&[("history: { files: input.jsonl }", "")]);
    fails(&mut example(folder.path(), &topology), 2, &["source `payments` has no history", "history: { files: ... }"]);
    assert!(!folder.path().join("out").exists());
}

/// All files below a folder, and what is in them.
fn contents(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(folder).expect("a folder can be listed") {
        let path = entry.expect("an entry can be read").path();
        match path.is_dir() {
            true => found.extend(contents(&path)),
            false => _ = found.insert(path.clone(), std::fs::read(&path).expect("a file can be read")),
        }
    }
    found
}

#[test]
fn a_start_whose_port_is_taken_has_touched_nothing() {
    let (folder, topology) = score(&[]);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let (out, file) = (folder.path().join("out"), folder.path().join("summary.json"));
    let refused = || {
        let mut command = millstream();
        command.arg("replay").arg(&topology).arg("--out").arg(&out).arg("--fresh").arg("--summary").arg(&file);
        command.arg("--http").arg(taken.local_addr().expect("an address").to_string());
        fails(&mut command, 1, &["another process listens there"]);
    };
    refused();
    assert!(!out.exists() && !file.exists());
    summary(example(folder.path(), &topology).arg("--summary").arg(&file));
    let before = contents(folder.path());
    refused();
    assert!(contents(folder.path()) == before, "a start that was refused has changed something");
}

/// A store of objects of a test's own.
struct Store {
    port: u16,
    folder: tempfile::TempDir,
}

impl Store {
    /// Starts one that takes so many requests, beside those that make its bucket, before it wants to know who asks: it knows
    /// nobody.
    fn up(requests: usize) -> Store {
        let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = free.local_addr().expect("an address").port();
        drop(free);
        let store = Store { port, folder: tempfile::tempdir().expect("a folder") };
        said(store.script("up").env("INITIAL_NO_AUTH_ACTION_COUNT", (3 + requests).to_string()));
        store
    }

    fn script(&self, what: &str) -> Command {
        let mut command = Command::new(root().join("deploy/s3.sh"));
        command.arg(what).env("S3_PORT", self.port.to_string()).env("S3_DIR", self.folder.path());
        command
    }

    /// `millstream checkpoint list` of a place there.
    fn list(&self, place: &str) -> Command {
        let mut command = millstream();
        command.args(["checkpoint", "list", place]).env("AWS_ENDPOINT_URL", format!("http://127.0.0.1:{}", self.port));
        command.env("AWS_ACCESS_KEY_ID", "test").env("AWS_SECRET_ACCESS_KEY", "test");
        command
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        _ = self.script("clean").output();
    }
}

#[test]
fn a_store_of_objects_that_refuses_says_why() {
    let store = Store::up(1);
    let says = ["list s3://no-such-bucket/job/manifest: there is no such bucket; make it"];
    fails(&mut store.list("s3://no-such-bucket/job"), 1, &says);
    let says = ["list s3://millstream/job/manifest: the store refuses it; look at AWS_ACCESS_KEY_ID"];
    fails(&mut store.list("s3://millstream/job"), 1, &says);
    said(&mut store.script("down"));
    let says = ["list s3://millstream/job/manifest: nobody answers at the store's address; look at the endpoint"];
    fails(&mut store.list("s3://millstream/job"), 1, &says);
}
