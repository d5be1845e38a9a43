//! `millstream produce` and `millstream consume`, as a user runs them.

use std::process::{Command, Output};

use rdkafka::message::{Header, OwnedHeaders};
use serde_json::Value;

use super::*;
use crate::command_line::unread;
use crate::program::{records, root};

fn millstream(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_millstream"));
    command.args(args).env("KAFKA_BROKERS", brokers()).output().unwrap()
}

fn stdout(output: Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn stderr(output: Output) -> String {
    assert_eq!(output.status.code(), Some(1));
    String::from_utf8(output.stderr).unwrap()
}

/// A file with this text.
fn file(name: &str, text: &str) -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, text).unwrap();
    (folder, path.to_str().unwrap().to_owned())
}

#[test]
fn files_come_out_of_the_topic_in_event_time_order() {
    let topic = unique("commands");
    let (_lines, lines) = file("a.jsonl", "{\"id\":1,\"at\":30}\n{\"id\":2,\"at\":10}\n");
    let (_table, table) = file("b.csv", "id,at,note\n3,20,\"x, y\"\n4,40,NA\n");
    let args = ["produce", &lines, &table, "--topic", &topic, "--create", "1", "--event-time", "at", "--unit", "s"];
    let said = stdout(millstream(&[&args[..], &["--key", "id", "--null", "NA", "--json"]].concat()));
    let said: Value = serde_json::from_str(&said).unwrap();
    assert_eq!((&said["messages"], &said["partitions"]), (&4.into(), &1.into()));
    assert_eq!(said["first_event_time"], "1970-01-01T00:00:10.000Z");

    let shown = stdout(millstream(&["consume", &topic, "--until-end", "--json"]));
    let shown: Vec<Value> = shown.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let ids: Vec<&Value> = shown.iter().map(|message| &message["value"]["id"]).collect();
    assert_eq!(ids, [2, 3, 1, 4]);
    assert_eq!(shown[1]["key"], "3");
    assert_eq!(shown[1]["value"]["note"], "x, y");
    assert_eq!(shown[3]["value"].get("note"), None);

    let shown = stdout(millstream(&["consume", &topic, "--from", "2", "--max", "1"]));
    assert!(shown.starts_with("0/2  ") && shown.ends_with("  1  {\"id\":1,\"at\":30}\n"), "{shown}");
    assert_eq!(stdout(millstream(&["consume", &topic, "--from", "end", "--until-end"])), "");
}

#[test]
fn a_table_of_parquet_is_sent_row_by_row() {
    let topic = unique("commands");
    let table = root().join("tests/run/files/tips.parquet").display().to_string();
    let said = stdout(millstream(&["produce", &table, "--topic", &topic, "--create", "1", "--key", "zone", "--json"]));
    let said: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(said["messages"], 5);
    let shown = records(&stdout(millstream(&["consume", &topic, "--until-end", "--json"])));
    let shown: Vec<String> = shown.iter().map(|message| format!("{} {}", message["key"], message["value"])).collect();
    // A null is left out; the fourth row's tip is NaN, for which JSON has no word.
    let expected = [
        r#""N" {"at":"2024-03-01T10:02:00Z","tip":1.5,"zone":"N"}"#,
        r#""N" {"at":"2024-03-01T10:08:00Z","tip":2.5,"zone":"N"}"#,
        r#""S" {"at":"2024-03-01T10:09:00Z","zone":"S"}"#,
        r#""N" {"at":"2024-03-01T10:11:00Z","tip":null,"zone":"N"}"#,
        r#""S" {"at":"2024-03-01T10:20:00Z","tip":4.0,"zone":"S"}"#,
    ];
    assert_eq!(shown, expected);
}

#[test]
fn a_pace_is_kept() {
    let lines: String = (0..5).map(|n| format!("{{\"id\":{n},\"at\":{}}}\n", 1_000_000 + n * 100_000)).collect();
    let (_folder, path) = file("a.jsonl", &lines);
    // The fifth is due four tenths of a second after the first: at ten a second, and at a thousand times the speed of events
    // that are 100 s apart.
    let paces: [&[&str]; 2] = [&["--rate", "10/s"], &["--speed", "1000", "--event-time", "at"]];
    for pace in paces {
        let topic = unique("commands");
        let args = ["produce", &path, "--topic", &topic, "--create", "1", "--json"];
        let said: Value = serde_json::from_str(&stdout(millstream(&[&args[..], pace].concat()))).unwrap();
        let seconds = said["seconds"].as_f64().unwrap();
        assert!(said["messages"] == 5 && seconds >= 0.4, "{pace:?}: {said}");
        let shown = records(&stdout(millstream(&["consume", &topic, "--until-end", "--json"])));
        let times: Vec<i64> = shown.iter().map(|message| message["timestamp"].as_i64().unwrap()).collect();
        let ids: Vec<&Value> = shown.iter().map(|message| &message["value"]["id"]).collect();
        assert_eq!(ids, [0, 1, 2, 3, 4]);
        // Each is sent when it is due, not all at the end.
        assert!(times.is_sorted() && times[4] - times[0] >= 100, "{pace:?}: {times:?}");
    }
}

#[test]
fn headers_are_shown_before_the_value() {
    let topic = unique("commands");
    create(&brokers(), &topic, 1, &[]);
    let producer: BaseProducer = client(&brokers()).create().unwrap();
    let headers = OwnedHeaders::new()
        .insert(Header { key: "stage", value: Some("decode") })
        .insert(Header { key: "raw", value: Some(&[0xff_u8, 0][..]) })
        .insert(Header { key: "none", value: None::<&str> });
    let record = BaseRecord::to(&topic).key("k").payload("{\"id\":1}").headers(headers);
    producer.send(record).map_err(|(error, _)| error).unwrap();
    producer.flush(LONG).unwrap();
    let shown = stdout(millstream(&["consume", &topic, "--until-end", "--headers"]));
    assert!(
        shown.starts_with("0/0  ") && shown.ends_with("  k  stage=decode  raw=0xff00  none=null  {\"id\":1}\n"),
        "{shown}"
    );
    let shown = stdout(millstream(&["consume", &topic, "--until-end"]));
    assert!(shown.ends_with("  k  {\"id\":1}\n"), "{shown}");
    let shown = stdout(millstream(&["consume", &topic, "--until-end", "--headers", "--pretty"]));
    assert!(shown.ends_with("  none=null  \n{\n  \"id\": 1\n}\n"), "{shown}");
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let topic = unique("commands");
    let lines: String = (0..20_000).map(|n| format!("{{\"id\":{n}}}\n")).collect();
    let (_folder, path) = file("a.jsonl", &lines);
    let command = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_millstream"));
        command.args(args).env("KAFKA_BROKERS", brokers());
        command
    };
    let produce = ["produce", &path, "--topic", &topic, "--create", "2"];
    assert_eq!(unread(&mut command(&produce)), Some(0));
    assert_eq!(unread(&mut command(&[&produce[..], &["--json"]].concat())), Some(0));
    // More than a pipe holds, so that it is still being written when the reader goes.
    assert_eq!(unread(&mut command(&["consume", &topic, "--until-end"])), Some(0));
    assert_eq!(unread(&mut command(&["consume", &topic, "--until-end", "--json"])), Some(0));
}

#[test]
fn errors_say_what_to_do() {
    let topic = unique("commands");
    let (_folder, path) = file("a.jsonl", "{\"id\":1}\nnot json\n");
    let said = stderr(millstream(&["produce", &path, "--topic", &topic]));
    assert!(said.contains(&format!("topic `{topic}` does not exist")), "{said}");
    let said = stderr(millstream(&["produce", &path, "--topic", &topic, "--create", "1", "--key", "id"]));
    assert!(said.contains("a.jsonl:2: "), "{said}");
    let said = stderr(millstream(&["consume", &topic, "--option", "debug=all"]));
    assert!(said.contains("option `debug` can't be set"), "{said}");
    let said = stderr(millstream(&["consume", &unique("never")]));
    assert!(said.contains("does not exist"), "{said}");
}
