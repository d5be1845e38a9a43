//! The program as its users run it: the command, the files it writes, the summary it gives.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// Longer than any run here takes, on a busy machine and in a debug build.
const LONG: Duration = Duration::from_secs(240);

/// The program with nothing said yet.
pub fn millstream() -> Command {
    Command::new(env!("CARGO_BIN_EXE_millstream"))
}

/// The project's folder.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// What a program that has ended said.
#[derive(Debug)]
pub struct Said {
    pub status: ExitStatus,
    pub out: String,
    pub err: String,
}

/// A program that runs. It ends with the test at the latest.
pub struct Running {
    child: Child,
    out: PathBuf,
    err: PathBuf,
    _folder: tempfile::TempDir,
}

impl Running {
    /// Starts `command`, keeping what it says.
    pub fn start(command: &mut Command) -> Running {
        let folder = tempfile::tempdir().expect("a folder");
        let (out, err) = (folder.path().join("out"), folder.path().join("err"));
        let file = |path: &Path| Stdio::from(std::fs::File::create(path).expect("a file"));
        command.stdin(Stdio::null()).stdout(file(&out)).stderr(file(&err));
        Running { child: command.spawn().expect("the program starts"), out, err, _folder: folder }
    }

    /// Sends SIGTERM.
    pub fn terminate(&self) {
        self.signal("TERM");
    }

    /// Sends a signal.
    pub fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        let status = Command::new("kill").args(["-s", name, &id]).status().expect("kill starts");
        assert!(status.success(), "no process {id}");
    }

    /// Whether it still runs.
    pub fn runs(&mut self) -> bool {
        self.child.try_wait().expect("a child can be asked").is_none()
    }

    /// What it has said so far, on standard error.
    pub fn err(&self) -> String {
        std::fs::read_to_string(&self.err).expect("the program's output")
    }

    /// Waits for its end.
    pub fn end(mut self) -> Said {
        let deadline = Instant::now() + LONG;
        while self.runs() {
            assert!(Instant::now() < deadline, "the program goes on: {}", self.err());
            std::thread::sleep(Duration::from_millis(10));
        }
        let status = self.child.wait().expect("a child can be asked");
        let said = |path| std::fs::read_to_string(path).expect("the program's output");
        Said { status, out: said(&self.out), err: said(&self.err) }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It has ended already, or the test has failed.
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

/// Waits until a program has said something; it must be at work then.
pub fn until(running: &mut Running, said: &str) {
    let deadline = Instant::now() + LONG;
    while !running.err().contains(said) {
        assert!(running.runs() && Instant::now() < deadline, "it does not say `{said}`: {}", running.err());
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The address that a job serves at, from its log; it may be starting.
pub fn first_address(running: &mut Running) -> String {
    until(running, "\"address\":\"");
    let log = running.err();
    let found = log.split_once("\"address\":\"").and_then(|(_, rest)| rest.split_once('"'));
    found.expect("a line is written in one piece").0.to_owned()
}

/// The address that a job serves at, when it has started.
pub fn address(running: &mut Running) -> String {
    let address = first_address(running);
    until_well(&address, "/startupz", running);
    address
}

/// Waits until `GET path` says that all is well.
pub fn until_well(address: &str, path: &str, running: &mut Running) {
    let deadline = Instant::now() + LONG;
    while answer(address, "GET", path).0 != 200 {
        assert!(running.runs() && Instant::now() < deadline, "{path} is not well: {}", running.err());
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The body of `GET path`.
pub fn get(address: &str, path: &str) -> String {
    ask_for(address, "GET", path, 200)
}

/// The body of the answer to a request without one, which must have this status.
pub fn ask_for(address: &str, method: &str, path: &str, status: u16) -> String {
    let (found, body) = answer(address, method, path);
    assert_eq!(found, status, "{method} {path}: {body}");
    body
}

/// The status and the body of the answer to a request without one; 0 if there is none.
fn answer(address: &str, method: &str, path: &str) -> (u16, String) {
    let mut answer = String::new();
    let asked = TcpStream::connect(address).and_then(|mut connection| {
        write!(connection, "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
        connection.read_to_string(&mut answer)
    });
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
    match (asked, status, answer.split_once("\r\n\r\n")) {
        (Ok(_), Some(status), Some((_, body))) => (status, body.to_owned()),
        (asked, ..) => (0, format!("{asked:?}: {answer}")),
    }
}

/// Python with what the scripts of the tests need installed.
fn interpreter() -> Command {
    let requirements = root().join("tests/python/requirements.txt");
    let interpreter = said(Command::new(root().join("deploy/python.sh")).arg(requirements));
    Command::new(interpreter.trim())
}

/// A Python script of the tests, to be started.
pub fn python(script: &str) -> Command {
    let mut command = interpreter();
    command.arg(root().join("tests/python").join(script));
    command
}

/// Runs a command to its end, which must be a good one, and gives what it printed.
pub fn said(command: &mut Command) -> String {
    let said = Running::start(command).end();
    assert!(said.status.success(), "{command:?}: {}{}", said.out, said.err);
    said.out
}

/// `millstream replay TOPOLOGY` into the folder `out`, without the pages.
pub fn replay(topology: &Path, workers: usize, out: &Path) -> Command {
    let mut command = millstream();
    command.arg("replay").arg(topology).arg("--workers").arg(workers.to_string()).arg("--out").arg(out);
    command.args(["--http", "off", "--json"]);
    command
}

/// Runs a command to its end, which must be a good one, and gives its summary.
pub fn summary(command: &mut Command) -> Value {
    read_summary(&Running::start(command).end())
}

/// The summary of a program that must have ended well.
pub fn read_summary(said: &Said) -> Value {
    assert!(said.status.success(), "{}: {}", said.status, said.err);
    serde_json::from_str(&said.out).unwrap_or_else(|error| panic!("the summary is no JSON: {error}: {}", said.out))
}

/// The part of a summary that must not depend on the machine, the time or the number of workers.
pub fn lasting(summary: &Value) -> Value {
    let mut summary = summary.clone();
    let fields = summary.as_object_mut().expect("a summary is an object");
    for changing in ["duration_seconds", "latency_micros", "memory_peak_bytes"] {
        assert!(fields.remove(changing).is_some(), "no {changing} in the summary");
    }
    summary
}

/// The files that the sinks of a replay wrote, by the sinks' names.
pub fn sink_files(out: &Path) -> BTreeMap<String, String> {
    let entries = std::fs::read_dir(out.join("sinks")).expect("the replay has written its sinks");
    let files = entries.map(|entry| {
        let path = entry.expect("a readable folder").path();
        let name = path.file_stem().expect("a file").to_string_lossy().into_owned();
        (name, std::fs::read_to_string(&path).expect("a sink writes text"))
    });
    files.collect()
}

/// The lines of a sink's file, as JSON.
pub fn records(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect()
}

/// The sum of the numbers of a part of the summary, however deep.
pub fn total(part: &Value) -> u64 {
    match part {
        Value::Object(entries) => entries.values().map(total).sum(),
        number => number.as_u64().unwrap_or(0),
    }
}
