//! The flights of 2013 out of New York, the whole year: every feature of every row against a second computation that shares
//! nothing with the engine, and how good the predictions are. `FLIGHTS_DATA` names the folder of the event files.

use std::path::PathBuf;

use super::program::{python, replay, root, said, summary, total};

/// The event files.
fn data() -> PathBuf {
    let folder = std::env::var_os("FLIGHTS_DATA").map(PathBuf::from).unwrap_or_else(|| {
        let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache");
        std::env::var_os("XDG_CACHE_HOME").map_or_else(home, PathBuf::from).join("millstream/flights")
    });
    for stream in ["schedule", "departures", "cancellations", "arrivals", "weather"] {
        let file = folder.join(format!("{stream}.jsonl"));
        assert!(
            file.exists(),
            "{} is not there: run `export FLIGHTS_DATA=$(deploy/flights.sh)`, or `make test`, which does it",
            file.display()
        );
    }
    folder
}

#[test]
fn every_feature_of_the_year_and_its_quality() {
    let data = data();
    let out = tempfile::tempdir().expect("a folder");
    let topology = root().join("topologies/flight_delays/topology.yaml");
    let summary = summary(replay(&topology, 2, out.path()).env("FLIGHTS_DATA", &data));

    assert_eq!(summary["ended"], "end_of_input");
    assert_eq!(summary["events"]["schedule"], 336_776);
    assert_eq!(summary["predictions"]["delay"], 336_776);
    assert_eq!(total(&summary["rejects"]) + total(&summary["late"]), 0, "{}", summary["rejects"]);

    let table = out.path().join("offline/predictions");
    let agreement = said(python("recompute_flights.py").arg("--data").arg(&data).arg("--compare").arg(&table));
    assert!(agreement.trim().ends_with("336776 of 336776 rows agree in all 19 features"), "{agreement}");

    // September to December, which the model was not trained on.
    let quality = said(python("judge_flights.py").arg(&data).arg(&table));
    let auc: f64 = quality.trim().parse().unwrap_or_else(|_| panic!("no AUC: {quality}"));
    assert!((auc - 0.756).abs() <= 0.01, "AUC {auc}");
}
