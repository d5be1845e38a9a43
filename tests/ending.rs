//! How runs end that do not come to their end by themselves: signals in each phase, deadlines, bugs; and what they leave in the file of
//! their summary. What takes too long here waits at a failpoint (`src/failpoint.rs`).

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use super::failures::score;
use super::program::{Running, Said, ask_for, first_address, get, millstream, summary, total, until};

/// Longer than any test.
const FOR_EVER: &str = "sleep:600000";

/// The example with this time to stop in.
fn topology(shutdown_timeout: &str) -> tempfile::TempDir {
    let engine = format!("version: 1\nengine: {{ shutdown_timeout: {shutdown_timeout} }}\n");
    score(&[("version: 1\n", &engine)]).0
}

/// Replays it, with a summary.
fn replay(folder: &Path) -> Command {
    let mut command = millstream();
    command.arg("replay").arg(folder.join("topology.yaml")).arg("--out").arg(folder.join("out")).arg("--json");
    command.arg("--summary").arg(folder.join("summary.json"));
    command
}

/// Replays it without the pages, and something happens at a failpoint.
fn replay_with(folder: &Path, failpoint: &str, action: &str) -> Command {
    let mut command = replay(folder);
    command.args(["--http", "off"]).env("MILLSTREAM_FAILPOINTS", format!("{failpoint}={action}"));
    command
}

/// What stands in the file of the summary.
fn file(folder: &Path) -> Value {
    let text = std::fs::read(folder.join("summary.json")).expect("there is a summary");
    serde_json::from_slice(&text).expect("a summary is JSON")
}

/// A run that ended before its time has this exit code and says this, on standard error and in its summary.
fn failed(said: &Said, folder: &Path, code: i32, why: &str) -> Value {
    assert_eq!(said.status.code(), Some(code), "{}", said.err);
    assert!(said.err.contains(why) && said.out.is_empty(), "{}{}", said.out, said.err);
    let summary = file(folder);
    assert_eq!((&summary["job"], &summary["ended"]), (&"score".into(), &"failed".into()), "{summary}");
    assert_eq!(summary["exit_code"], code, "{summary}");
    assert!(summary["error"].as_str().is_some_and(|error| error.contains(why)), "{summary}");
    summary
}

#[test]
fn a_summary_is_that_of_the_newest_run() {
    let folder = topology("25s");
    let folder = folder.path();
    let printed = summary(replay(folder).args(["--http", "off"]));
    assert_eq!((&printed, printed.get("error")), (&file(folder), None), "both are the same");
    assert_eq!((&printed["ended"], total(&printed["predictions"])), (&"end_of_input".into(), 8));

    std::fs::rename(folder.join("input.jsonl"), folder.join("elsewhere.jsonl")).expect("a file can be moved");
    let said = Running::start(replay(folder).args(["--http", "off"])).end();
    let summary = failed(&said, folder, 1, "source `payments`");
    assert_eq!((total(&summary["events"]), total(&summary["sinks"])), (0, 0), "{summary}");
}

#[test]
fn a_job_that_starts_says_so_and_can_be_stopped() {
    let folder = topology("25s");
    let folder = folder.path();
    let mut command = replay(folder);
    command.args(["--http", "127.0.0.1:0"]).env("MILLSTREAM_FAILPOINTS", format!("state-loaded={FOR_EVER}"));
    let mut running = Running::start(&mut command);
    until(&mut running, "failpoint: waiting");
    let address = first_address(&mut running);
    get(&address, "/livez");
    for path in ["/startupz", "/readyz"] {
        let body = ask_for(&address, "GET", path, 503);
        assert!(body.contains("\"reason\":\"starting\""), "{body}");
    }
    assert!(get(&address, "/metrics").contains("millstream_build_info"));
    assert!(get(&address, "/v1/status").contains("\"stage\":\"starting\""));
    assert!(ask_for(&address, "GET", "/v1/features/a/b", 503).contains("the job is starting"));
    running.terminate();
    failed(&running.end(), folder, 143, "stopped before the job had started");
}

#[test]
fn a_second_signal_ends_a_job_at_once_while_it_closes_its_books() {
    let folder = topology("600s");
    let folder = folder.path();
    let mut running = Running::start(&mut replay_with(folder, "checkpoint-gathered", FOR_EVER));
    // All records are written; the last checkpoint is not.
    until(&mut running, "failpoint: waiting");
    running.terminate();
    until(&mut running, "stopping: finishing the records in flight");
    assert!(running.runs());
    running.terminate();
    let summary = failed(&running.end(), folder, 143, "stopped before the records in flight were finished");
    assert!(total(&summary["events"]) > 0 && total(&summary["sinks"]) > 0, "{summary}");
}

#[test]
fn a_stop_has_one_deadline_for_all_that_it_has_to_finish() {
    let folder = topology("1s");
    let folder = folder.path();
    let mut running = Running::start(&mut replay_with(folder, "checkpoint-gathered", FOR_EVER));
    until(&mut running, "failpoint: waiting");
    running.terminate();
    failed(&running.end(), folder, 143, "stopped before the records in flight were finished");
    // Nothing is lost.
    let printed = summary(replay(folder).args(["--http", "off"]));
    assert_eq!(printed["ended"], "end_of_input");
}

#[test]
fn a_run_at_the_end_of_its_input_takes_the_time_it_takes() {
    // A stop would have a millisecond, in which no table is committed; but nobody has stopped it.
    let engine = "version: 1\nengine: { shutdown_timeout: 1ms }\noffline: { kept: { from: fraud, table: { delta: { path: kept } } } }\n";
    let (folder, _) = score(&[("version: 1\n", engine)]);
    let printed = summary(replay(folder.path()).args(["--http", "off"]));
    assert_eq!((&printed["ended"], total(&printed["predictions"])), (&"end_of_input".into(), 8));
    assert!(folder.path().join("out/offline/kept/_delta_log").exists(), "the table was committed");
}

#[test]
fn a_panic_on_any_thread_ends_the_process_and_is_named() {
    for (failpoint, thread, place) in [
        ("state-loaded", "start", "src/runtime/take_up.rs:"),
        ("checkpoint-gathered", "checkpoints", "src/runtime/checkpoints.rs:"),
        ("lines-written", "sink ", "src/sinks/lines.rs:"),
    ] {
        let folder = topology("25s");
        let said = Running::start(&mut replay_with(folder.path(), failpoint, "panic@1")).end();
        assert_eq!(said.status.code(), Some(70), "{failpoint}: {}", said.err);
        let says = [&format!("\"thread\":\"{thread}"), place, &format!("failpoint: {failpoint}")];
        for text in says {
            assert!(said.err.contains(text), "`{text}` is not in: {}", said.err);
        }
        assert!(said.out.is_empty(), "half a run has a result: {}", said.out);
    }
}

/// A job of files with a supervisor, of which the first process waits before it starts.
fn supervised(folder: &Path, failpoint: &str) -> Running {
    let text = "version: 1\nname: score\nsources:\n  events:\n    from: { file: { paths: [input.jsonl], sorted: true } }\n    \
                schema: { id: string }\nsinks:\n  out: { from: events, to: { file: { path: out.jsonl } } }\n";
    std::fs::write(folder.join("topology.yaml"), text).expect("a file");
    let mut command = millstream();
    command.arg("run").arg(folder.join("topology.yaml")).args(["--processes", "1", "--http", "off", "--json"]);
    command.arg("--summary").arg(folder.join("summary.json")).env("MILLSTREAM_FAILPOINTS", failpoint);
    Running::start(&mut command)
}

/// Kills the process that a supervisor has started last.
fn kill_process(running: &mut Running) {
    until(running, "failpoint: waiting");
    let log = running.err();
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let started = lines.filter(|line| line["message"] == "started").next_back().expect("it has started one");
    let status = Command::new("kill").args(["-s", "KILL", &started["pid"].to_string()]).status();
    assert!(status.expect("kill starts").success(), "{log}");
    until(running, "is started again");
}

#[test]
fn a_job_with_a_supervisor_leaves_a_summary_however_its_processes_end() {
    let folder = topology("25s");
    let folder = folder.path();
    let waits = format!("state-loaded={FOR_EVER}");
    std::fs::write(folder.join("summary.json"), "of the run before").expect("a file");
    let mut running = supervised(folder, &waits);
    kill_process(&mut running);
    // Nobody else is there to write it.
    running.terminate();
    let said = running.end();
    let summary = file(folder);
    assert_eq!((said.status.code(), &summary["ended"]), (Some(137), &"failed".into()), "{}", said.err);
    assert_eq!((&summary["job"], &summary["exit_code"]), (&"score".into(), &137.into()));
    let why = "process 0: signal: 9 (SIGKILL)";
    assert_eq!(summary["error"], format!("{why}; it has left no summary"));
    assert_eq!(summary["restarts"], serde_json::json!({ "count": 0, "newest": [] }));

    let mut running = supervised(folder, &waits);
    kill_process(&mut running);
    while running.err().matches("failpoint: waiting").count() < 2 {
        assert!(running.runs(), "{}", running.err());
    }
    running.terminate();
    let said = running.end();
    let summary = file(folder);
    assert_eq!((said.status.code(), &summary["exit_code"]), (Some(143), &143.into()), "{}", said.err);
    assert_eq!(summary["error"], "stopped before the job had started");
    let ended = &summary["restarts"]["newest"][0];
    assert_eq!((&summary["restarts"]["count"], &ended["code"], &ended["why"]), (&1.into(), &137.into(), &why.into()));

    let said = supervised(folder, "").end();
    assert!(said.status.success(), "{}", said.err);
    let summary = file(folder);
    assert_eq!((&summary["ended"], &summary["restarts"]["count"]), (&"end_of_input".into(), &0.into()));
}
