//! The program as its users run it: the command, the files it writes, the summary it gives.

use std::collections::BTreeMap;
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
