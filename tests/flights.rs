//! The flights of 2013 out of New York, the whole year: every feature of every row against a second computation that shares
//! nothing with the engine, how good the predictions are, how much memory it takes; and the same bytes from other numbers of
//! workers. `FLIGHTS_DATA` names the folder of the event files.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::program::{python, replay, root, said, sink_files, summary, total};

const STREAMS: [&str; 5] = ["schedule", "departures", "cancellations", "arrivals", "weather"];
/// The year is run by 2 workers, its first two months by these.
const OTHER_WORKERS: [usize; 2] = [1, 4];
/// Peak memory of the year's run, whose state is 660,000 predictions and labels that stand for 400 days: it is not to grow
/// with the number of files of the offline store. Measured: 730 to 810 MB, 150 of them for checkpoints.
const MEMORY_MB_MAX: u64 = 900;

/// The folder of the event files.
fn year() -> PathBuf {
    let folder = std::env::var_os("FLIGHTS_DATA").map(PathBuf::from).unwrap_or_else(|| {
        let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache");
        std::env::var_os("XDG_CACHE_HOME").map_or_else(home, PathBuf::from).join("millstream/flights")
    });
    for stream in STREAMS {
        let file = folder.join(format!("{stream}.jsonl"));
        assert!(
            file.exists(),
            "{} is not there: run `export FLIGHTS_DATA=$(deploy/flights.sh)`, or `make test`, which does it",
            file.display()
        );
    }
    folder
}

/// Copies the events of January and February.
fn two_months(of: &Path, into: &Path) {
    for stream in STREAMS {
        let file = format!("{stream}.jsonl");
        let text = fs::read_to_string(of.join(&file)).expect("the event files are text");
        let end = text.find(r#"{"at":"2013-03-"#).expect("the year has a March, and time comes first in a line");
        fs::write(into.join(&file), &text[..end]).expect("the file can be written");
    }
}

/// Replays the topology; gives its summary and what its sinks wrote.
fn run(data: &Path, workers: usize, out: &Path) -> (Value, BTreeMap<String, String>) {
    let topology = root().join("topologies/flight_delays/topology.yaml");
    let summary = summary(replay(&topology, workers, out).env("FLIGHTS_DATA", data));
    assert_eq!(summary["ended"], "end_of_input");
    assert_eq!(total(&summary["rejects"]) + total(&summary["late"]), 0, "{}", summary["rejects"]);
    (summary, sink_files(out))
}

#[test]
fn every_feature_of_the_year_and_its_quality() {
    let (year, out) = (year(), tempfile::tempdir().expect("a folder"));
    let (summary, sinks) = run(&year, 2, out.path());
    assert_eq!(summary["events"]["schedule"], 336_776);
    assert_eq!(summary["predictions"]["delay"], 336_776);
    let memory_mb = total(&summary["memory_peak_bytes"]) >> 20;
    assert!(memory_mb <= MEMORY_MB_MAX, "{memory_mb} MB");

    std::thread::scope(|scope| {
        scope.spawn(|| judge(&year, &out.path().join("offline/predictions")));
        let months = tempfile::tempdir().expect("a folder");
        two_months(&year, months.path());
        for workers in OTHER_WORKERS {
            let out = tempfile::tempdir().expect("a folder");
            let (_, of_months) = run(months.path(), workers, out.path());
            for (sink, text) in &of_months {
                let same = sinks[sink].as_bytes().starts_with(text.as_bytes());
                assert!(same, "{sink} with {workers} workers is not how that of 2 workers begins");
            }
            assert_eq!(of_months["predictions"].lines().count(), 51_861);
        }
    });
}

/// Holds the offline table of the year's predictions against the second computation, and against what happened.
fn judge(year: &Path, table: &Path) {
    let agreement = said(python("recompute_flights.py").arg("--data").arg(year).arg("--compare").arg(table));
    assert!(agreement.trim().ends_with("336776 of 336776 rows agree in all 19 features"), "{agreement}");

    // September to December, which the model was not trained on.
    let quality = said(python("judge_flights.py").arg(year).arg(table));
    let auc: f64 = quality.trim().parse().unwrap_or_else(|_| panic!("no AUC: {quality}"));
    assert!((auc - 0.756).abs() <= 0.01, "AUC {auc}");
}
