//! Drift signals from end to end: a stream whose distribution changes for good, watched as a whole and by slices, raises the
//! signals that were to be expected, each once, to a topic and in the metrics.

use millstream::metrics::scrape::samples;
use serde_json::{Value, json};

use super::brokers;
use super::service::{Service, address, scrape, sum};
use crate::program::{Running, read_summary};

/// Payments whose amounts are spread evenly over 0 to 100 in all countries, until those in Austria double.
fn payment(id: u32, changed: bool) -> String {
    let country = if id.is_multiple_of(2) { "AT" } else { "CH" };
    let amount = (id / 2 * 37) % 100;
    let amount = if changed && country == "AT" { 2 * amount } else { amount };
    // One value in fifty is missing, as in the reference.
    let amount = if (id / 2).is_multiple_of(50) { "null".to_owned() } else { format!("{amount}.5") };
    format!("{{\"country\":\"{country}\",\"amount\":{amount}}}")
}

#[test]
fn a_change_that_lasts_is_signalled_once() {
    let service = Service::new(brokers(), "drift").create([("payments", 2), ("signals", 1)]);
    let reference = json!({ "edges": [20, 40, 60, 80, 100], "counts": [196, 196, 196, 196, 196, 0], "missing": 20 });
    std::fs::write(service.folder().join("reference.json"), reference.to_string()).unwrap();
    let send = |ids: std::ops::Range<u32>, changed: bool| {
        // A partition a country: their order is that of the values each detector sees.
        service.send("payments", 2, ids.map(|id| payment(id, changed)));
    };
    let watched = |address: &str, running: &mut Running, values: f64| {
        let wrong = |text: &str| {
            let found = sum(&samples(text).unwrap(), "millstream_drift_values_total", &[]);
            if found == values { Vec::new() } else { vec![format!("{found} values")] }
        };
        samples(&scrape(address, running, wrong)).unwrap()
    };

    let mut running = service.run(&[]);
    let at = address(&mut running);
    send(0..2_000, false);
    let before = watched(&at, &mut running, 3_000.0);
    assert_eq!(sum(&before, "millstream_drift_alerts_total", &[]), 0.0);
    assert!(sum(&before, "millstream_drift_score", &[("detector", "austria")]) < 0.01);

    // A window and a half of the change, then a restart, then more of the same.
    send(2_000..3_500, true);
    watched(&at, &mut running, 5_250.0);
    running.terminate();
    let first = read_summary(&running.end());
    assert_eq!(first["drift_signals"], json!({ "austria": 1, "switzerland": 0, "mean": 0 }));
    let mut running = service.run(&[]);
    let at = address(&mut running);
    send(3_500..6_000, true);
    let after = watched(&at, &mut running, 3_750.0);
    let alerts = |level| sum(&after, "millstream_drift_alerts_total", &[("operator", "payments"), ("level", level)]);
    assert_eq!((alerts("drift"), alerts("warning")), (0.0, 0.0), "it was told before the restart");
    assert!(sum(&after, "millstream_drift_score", &[("detector", "austria")]) > 0.25, "and it lasts");
    assert_eq!(sum(&after, "millstream_drift_skipped_values_total", &[("detector", "mean")]), 25.0);
    running.terminate();
    read_summary(&running.end());
    check_signal(&service);
}

/// The topic holds one signal, which says all that is to know.
fn check_signal(service: &Service) {
    let records = service.consume("signals");
    assert_eq!(records.len(), 1, "{records:?}");
    let signal = &records[0]["value"];
    let told = json!({
        "detector": "austria", "kind": "psi", "stream": "payments", "column": "amount", "slice": "country = 'AT'",
        "level": "drift", "threshold": 0.25,
    });
    for (field, value) in told.as_object().unwrap() {
        assert_eq!(&signal[field], value, "{field} of {signal}");
    }
    let evidence: Value = serde_json::from_str(signal["evidence"].as_str().unwrap()).unwrap();
    assert_eq!(evidence["edges"], json!([20.0, 40.0, 60.0, 80.0, 100.0]));
    assert_eq!(evidence["reference"]["count"], 1000);
    assert_eq!(evidence["reference"]["id"].as_str().map(str::len), Some(16));
    assert_eq!((&evidence["window"]["count"], &evidence["window"]["missing"]), (&json!(500), &json!(10)));
    let statistic = signal["statistic"].as_f64().unwrap();
    assert!(statistic > 0.25 && statistic > evidence["p99_without_change"].as_f64().unwrap(), "{signal}");
    let header =
        |name: &str| records[0]["headers"].as_array().unwrap().iter().find(|h| h[0] == name).map(|h| h[1].clone());
    assert_eq!(header("topic"), Some(json!(service.topic("payments"))), "the row that raised it: {}", records[0]);
}
