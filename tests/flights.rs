//! The flights of 2013 out of New York, the whole year: every feature of every row against a second computation that shares
//! nothing with the engine, how good the predictions are, how much memory it takes; and the same bytes from other numbers of
//! workers, and the same features whatever the order of the lines in its files. `FLIGHTS_DATA` names the folder of the event
//! files.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::program::{python, records, replay, root, said, sink_files, summary, total};
use super::random::Random;

/// The files of events.
pub const STREAMS: [&str; 5] = ["schedule", "departures", "cancellations", "arrivals", "weather"];
/// The year is run by 2 workers, its first two months by these.
const OTHER_WORKERS: [usize; 2] = [1, 4];
/// Flights of January.
const JANUARY: usize = 26_921;
/// Peak memory of the year's run, whose state is 660,000 predictions and labels that stand for 400 days: it is not to grow
/// with the number of files of the offline store. Measured: 730 to 810 MB, 150 of them for checkpoints.
const MEMORY_MB_MAX: u64 = 900;

/// The folder of the event files.
pub fn year() -> PathBuf {
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

/// Copies the events before a month or day, with the lines of each file in the order that `order` gives them.
pub fn before(end: &str, of: &Path, into: &Path, mut order: impl FnMut(&mut [&str])) {
    for stream in STREAMS {
        let file = format!("{stream}.jsonl");
        let text = fs::read_to_string(of.join(&file)).expect("the event files are text");
        let end = format!(r#"{{"at":"2013-{end}"#);
        // Time comes first in a line.
        let mut lines: Vec<&str> = text.lines().take_while(|line| *line < end.as_str()).collect();
        assert!(!lines.is_empty(), "no {stream} before {end}");
        order(&mut lines);
        fs::write(into.join(&file), lines.join("\n") + "\n").expect("the file can be written");
    }
}

/// Replays the topology; gives its summary and what its sinks wrote.
fn run(data: &Path, workers: usize, out: &Path) -> (Value, BTreeMap<String, String>) {
    run_of(&root().join("topologies/flight_delays/topology.yaml"), data, workers, out)
}

/// The same of another file.
fn run_of(topology: &Path, data: &Path, workers: usize, out: &Path) -> (Value, BTreeMap<String, String>) {
    let summary = summary(replay(topology, workers, out).env("FLIGHTS_DATA", data));
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
        before("03", &year, months.path(), |_| {});
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

/// The topology says that its files are sorted. Files that are not are sorted in memory, and give the same features.
#[test]
fn shuffled_files_give_the_same_predictions() {
    let (year, folder) = (year(), tempfile::tempdir().expect("a folder"));
    let example = root().join("topologies/flight_delays");
    let text = fs::read_to_string(example.join("topology.yaml")).expect("the topology");
    let model = example.join("model.onnx");
    let text = text.replace(", sorted: true", "").replace("onnx: model.onnx", &format!("onnx: {}", model.display()));
    assert!(!text.contains("sorted") && text.contains(&*model.to_string_lossy()));
    let unsorted = folder.path().join("topology.yaml");
    fs::write(&unsorted, text).expect("a file");

    let predictions = |name: &str, topology: &Path, workers: usize, order: &mut dyn FnMut(&mut [&str])| {
        let (data, out) = (folder.path().join(name), folder.path().join(format!("{name}-out")));
        fs::create_dir(&data).expect("a folder");
        before("02", &year, &data, order);
        let (_, sinks) = run_of(topology, &data, workers, &out);
        // An id has the line of the event, which is another now.
        let by_flight = records(&sinks["predictions"]).into_iter().map(|mut record| {
            let fields = record.as_object_mut().expect("a record is an object");
            assert!(fields.remove("prediction_id").is_some());
            (fields["flight_id"].to_string(), record)
        });
        by_flight.collect::<BTreeMap<String, Value>>()
    };
    let mut random = Random(1);
    let mut shuffle = |lines: &mut [&str]| {
        for last in (1..lines.len()).rev() {
            lines.swap(last, random.below(last as u64 + 1) as usize);
        }
    };
    let expected = predictions("sorted", &example.join("topology.yaml"), 1, &mut |_| {});
    let found = predictions("shuffled", &unsorted, 2, &mut shuffle);
    assert_eq!((expected.len(), found.len()), (JANUARY, JANUARY));
    let differ = expected.iter().filter(|(flight, expected)| found[*flight] != **expected);
    let differ: Vec<_> = differ.map(|(flight, expected)| format!("{expected} {}", found[flight])).collect();
    assert!(differ.is_empty(), "{} differ: {}", differ.len(), differ[..differ.len().min(5)].join("\n"));
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
