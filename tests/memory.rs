//! The memory budget: one that is too small slows a job without stopping it.

use std::path::{Path, PathBuf};

use super::program::{Running, Said, millstream, read_summary};

const ROWS: usize = 30_000;
const NOTE_BYTES: usize = 3_000;

/// A job that carries 90 MB of notes into a table.
fn job(folder: &Path, engine: &str) -> PathBuf {
    let note = "x".repeat(NOTE_BYTES);
    let line = |n: usize| format!("{{\"at\":{},\"id\":{n},\"note\":\"{note}\"}}\n", 1_700_000_000_000 + n);
    std::fs::write(folder.join("notes.jsonl"), (0..ROWS).map(line).collect::<String>()).unwrap();
    let text = format!(
        "version: 1\n\
         name: memory\n\
         sources:\n  \
           notes:\n    \
             from: {{ file: {{ paths: [notes.jsonl], sorted: true }} }}\n    \
             schema: {{ at: int64, id: int64, note: string }}\n    \
             event_time: {{ column: at }}\n\
         offline:\n  \
           notes: {{ from: notes, table: {{ delta: {{ path: lake }} }} }}\n\
         engine: {{ {engine} }}\n"
    );
    let path = folder.join("topology.yaml");
    std::fs::write(&path, text).unwrap();
    path
}

/// Runs it with a disk on which each checkpoint takes a second.
fn run(engine: &str) -> Said {
    let folder = tempfile::tempdir().unwrap();
    let mut command = millstream();
    command.env("MILLSTREAM_FAILPOINTS", "checkpoint-gathered=sleep:1000");
    command.arg("run").arg(job(folder.path(), engine)).args(["--http", "off", "--json"]);
    let said = Running::start(&mut command).end();
    let summary = read_summary(&said);
    assert_eq!((&summary["events"]["notes"], &summary["ended"]), (&ROWS.into(), &"end_of_input".into()), "{summary}");
    said
}

#[test]
fn a_budget_below_what_the_job_has_anyway_stops_nobody() {
    let said = run("epoch: 50ms, memory: 32MiB");
    for told in ["memory is above `engine.memory`", "`engine.memory` is less than the job has without any backlog"] {
        assert!(said.err.contains(told), "{told}: {}", said.err);
    }
}
