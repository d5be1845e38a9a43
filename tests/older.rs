//! A checkpoint that is damaged. A job whose outputs can be cut back goes on from the one before by itself, and writes what a job writes
//! whose checkpoints are whole; the others are in `tests/kafka/older.rs`.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use super::program::{Running, Said, millstream, said};

const TOPOLOGY: &str = r#"
version: 1
name: files
sources:
  events:
    from: { file: { paths: [events.jsonl], sorted: true } }
    schema: { id: int64, at: int64, card: int64, amount: float64 }
    event_time: { column: at }
features:
  card:
    from: events
    key: [card]
    aggregates:
      - { of: amount, ops: [count, sum, stddev], windows: [1h] }
vectors:
  event: { spine: events, join: [{ features: card }] }
sinks:
  lines: { from: event, to: { file: { path: out.jsonl } } }
engine: { epoch: 20ms }
"#;

fn run(folder: &Path) -> Said {
    let mut command = millstream();
    command.arg("run").arg(folder.join("topology.yaml")).args(["--http", "off", "--json"]);
    Running::start(&mut command).end()
}

/// The checkpoints of a job: number and epoch.
fn checkpoints(folder: &Path) -> Vec<(u64, u64)> {
    let listed = said(millstream().args(["checkpoint", "list", "--json"]).arg(folder.join("topology.yaml")));
    let listed: Vec<Value> = serde_json::from_str(&listed).expect("a list");
    let number = |listed: &Value, field: &str| listed[field].as_u64().expect("a number");
    listed.iter().map(|listed| (number(listed, "number"), number(listed, "epoch"))).collect()
}

/// A job that has come to its end, with two checkpoints of different epochs.
fn ended() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let line = |id: u64| {
        let at = 1_700_000_000_000 + id * 1_000;
        format!("{{\"id\":{id},\"at\":{at},\"card\":{},\"amount\":{}.5}}\n", id * 7 % 50, id * 13 % 101)
    };
    std::fs::write(folder.path().join("events.jsonl"), (0..40_000).map(line).collect::<String>()).expect("a file");
    std::fs::write(folder.path().join("topology.yaml"), TOPOLOGY).expect("a file");
    let ended = run(folder.path());
    assert!(ended.status.success(), "{}", ended.err);
    let all = checkpoints(folder.path());
    assert!(all.len() == 2 && all[0].1 < all[1].1, "{all:?}");
    folder
}

/// A copy of a job's folder.
fn copy(folder: &Path) -> tempfile::TempDir {
    let copy = tempfile::tempdir().expect("a folder");
    said(Command::new("cp").arg("-a").arg(folder.join(".")).arg(copy.path()));
    copy
}

/// The newest manifest, and the newest of the segments that it names.
fn newest(folder: &Path) -> [PathBuf; 2] {
    let (number, _) = *checkpoints(folder).last().expect("a checkpoint");
    let path = folder.join(format!("state/manifest/{number}.json"));
    let manifest: Value = serde_json::from_slice(&std::fs::read(&path).expect("a manifest")).expect("JSON");
    let segment = manifest["segments"].as_array().and_then(|all| all.last()?["file"].as_str()).expect("a segment");
    [path, folder.join("state/seg").join(segment)]
}

#[test]
fn outputs_that_are_cut_back_are_those_of_a_job_that_nothing_has_happened_to() {
    let whole = ended();
    let expected = std::fs::read(whole.path().join("out.jsonl")).expect("the output");
    let flip = |bytes: &mut Vec<u8>| *bytes.last_mut().expect("a byte") ^= 4;
    let cut = |bytes: &mut Vec<u8>| bytes.truncate(bytes.len() - 3);
    let empty = |bytes: &mut Vec<u8>| bytes.clear();
    let damages: [(usize, &dyn Fn(&mut Vec<u8>)); 5] = [(0, &flip), (0, &cut), (0, &empty), (1, &flip), (1, &cut)];
    for (number, (file, damage)) in damages.into_iter().enumerate() {
        let job = copy(whole.path());
        let damaged = &newest(job.path())[file];
        let mut bytes = std::fs::read(damaged).expect("a file");
        damage(&mut bytes);
        std::fs::write(damaged, bytes).expect("a file");
        let name = damaged.file_name().and_then(|name| name.to_str()).expect("a name");
        let ended = run(job.path());
        assert!(ended.status.success(), "damage {number}: {}", ended.err);
        let told = ended.err.contains("going on from an older one") && ended.err.contains(name);
        assert!(told, "damage {number}: {}", ended.err);
        let output = std::fs::read(job.path().join("out.jsonl")).expect("the output");
        assert!(output == expected, "damage {number}: {} bytes, not {}", output.len(), expected.len());
        // That was it.
        let again = run(job.path());
        assert!(again.status.success() && !again.err.contains("older"), "damage {number}: {}", again.err);
        assert_eq!(std::fs::read(job.path().join("out.jsonl")).expect("the output"), expected);
    }
}

#[test]
fn a_job_without_a_checkpoint_that_is_whole_says_so() {
    let job = ended();
    let folder = job.path();
    let [_, segment] = newest(folder);
    // The one before names it too.
    std::fs::remove_file(&segment).expect("a file");
    let refused = run(folder);
    assert_eq!(refused.status.code(), Some(5), "{}", refused.err);
    let name = segment.file_name().and_then(|name| name.to_str()).expect("a name");
    let says = [name, "is not there; the checkpoint is damaged", "no older checkpoint and no savepoint that is whole"];
    assert!(says.iter().all(|text| refused.err.contains(text)), "{}", refused.err);
}
