//! A topic beside a file that ends: the job goes on committing, joining and watching long after the file's last line, and
//! stops when it is told to, at whatever moment.

use millstream::metrics::scrape::samples;

use super::brokers;
use super::service::{Service, address, scrape, sum};
use crate::program::{read_summary, total};

/// Payments of `ids`, an hour apart, the amount rising.
fn payments(ids: std::ops::Range<u32>) -> impl Iterator<Item = String> {
    ids.map(|id| {
        let at = format!("2024-03-{:02}T{:02}:00:00Z", 1 + id / 24, id % 24);
        format!("{{\"at\":\"{at}\",\"id\":\"p{id}\",\"amount\":{id}.5,\"balance\":100,\"age_days\":3,\"hour\":12}}")
    })
}

#[test]
fn a_file_that_ends_holds_nobody_back() {
    let service = Service::new(brokers(), "mixed").create([("payments", 2), ("predictions", 1), ("signals", 1)]);
    let label = |id: u32| format!("{{\"at\":\"2024-03-01T00:00:00Z\",\"id\":\"p{id}\",\"fraud\":{}}}\n", id % 2);
    std::fs::write(service.folder().join("labels.jsonl"), (0..20).map(label).collect::<String>()).unwrap();

    for (start, workers) in [(0, "2"), (1, "1"), (2, "3")] {
        let first = start * 100;
        let mut running = service.run(&["--workers", workers]);
        let address = address(&mut running);
        // What comes in one piece could be of the epoch in which the file ended.
        for part in 0..2 {
            let ids = first + part * 50..first + part * 50 + 50;
            service.send("payments", 2, payments(ids.clone()));
            service.until("predictions", ids.end as usize, &mut running);
        }
        // Event time goes on as well: a day before the last hour but one, predictions and labels have left.
        scrape(&address, &mut running, |text| {
            let samples = samples(text).unwrap();
            let expected = [
                ("millstream_outcome_predictions", 26.0),
                ("millstream_outcome_pending", 26.0),
                ("millstream_outcome_evicted_total", if start == 0 { 94.0 } else { 100.0 }),
                ("millstream_offline_rows_total", 100.0),
            ];
            let differs = expected.into_iter().filter_map(|(name, value)| {
                let found = sum(&samples, name, &[]);
                (found != value).then(|| format!("{name} is {found}, not {value}"))
            });
            differs.collect()
        });
        assert!(!service.consume("signals").is_empty(), "the amounts rise");
        running.terminate();
        let summary = read_summary(&running.end());
        assert_eq!(total(&summary["events"]), if start == 0 { 120 } else { 100 }, "{summary}");
    }
}

#[test]
fn a_stop_in_the_middle_of_a_start_is_a_stop() {
    let service = Service::new(brokers(), "mixed").create([("payments", 2), ("predictions", 1), ("signals", 1)]);
    std::fs::write(service.folder().join("labels.jsonl"), "").unwrap();
    for wait in [0, 5, 20, 80, 150] {
        let mut running = service.run(&[]);
        address(&mut running);
        std::thread::sleep(std::time::Duration::from_millis(wait));
        running.terminate();
        read_summary(&running.end());
    }
}
