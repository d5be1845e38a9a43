//! What the benches are about: a row beside the rows that it is to be held against, in the same run.
//!
//! A row is what `bench` prints: a JSON line for each leg. Of legs of one kind the median counts; the first of several throughput
//! legs is left out, in which a system warms up. Only rows of the same number of cards stand beside each other, and what was
//! not run is not in the tables. An aim that is missed is said to be, and nothing else comes of it: machines differ.

use std::fmt::Write;

use anyhow::Context;
use serde::Deserialize;

/// A generator that was later than this says little about the system.
const GENERATOR_LATE_MS_MAX: f64 = 5.0;

/// A leg of a row, with the figures of its kind.
#[derive(Debug, Clone, Deserialize)]
struct Leg {
    name: String,
    keys: u64,
    leg: String,
    cpu_us_per_event: Option<f64>,
    events_per_second: Option<f64>,
    p50_ms: Option<f64>,
    p99_ms: Option<f64>,
    p999_ms: Option<f64>,
    generator_late_ms: Option<f64>,
    first_new_output_ms: Option<f64>,
}

/// What is compared.
type Figure = fn(&Leg) -> Option<f64>;

/// A row over another one.
struct Comparison {
    what: &'static str,
    figure: Figure,
    unit: &'static str,
    /// The first letter of the legs.
    legs: char,
    row: &'static str,
    over: &'static str,
    /// The largest ratio that is aimed at.
    at_most: Option<f64>,
}

impl Comparison {
    const fn cpu(row: &'static str, over: &'static str, at_most: Option<f64>) -> Comparison {
        let figure: Figure = |leg| leg.cpu_us_per_event;
        Comparison { what: "CPU an event", figure, unit: "us", legs: 'T', row, over, at_most }
    }

    const fn rate(row: &'static str, over: &'static str) -> Comparison {
        let figure: Figure = |leg| leg.events_per_second;
        Comparison { what: "throughput", figure, unit: "/s", legs: 'T', row, over, at_most: None }
    }

    const fn checkpoints(what: &'static str, figure: Figure, unit: &'static str, at_most: Option<f64>) -> Comparison {
        Comparison { what, figure, unit, legs: 'L', row: "checkpoints-50ms-w1", over: "checkpoints-10m-w1", at_most }
    }
}

/// An engine's CPU for an event over that of a loop without one: what it is to cost at most.
const CPU_OVER_BARE: Option<f64> = Some(1.6);
/// Latency with checkpoints over that without.
const WITH_CHECKPOINTS: Option<f64> = Some(1.1);

const COMPARISONS: [Comparison; 13] = [
    Comparison::cpu("millstream-w0", "bare-w0", CPU_OVER_BARE),
    Comparison::cpu("millstream-w1", "bare-w1", CPU_OVER_BARE),
    Comparison::rate("bare-w0", "copy"),
    Comparison::rate("millstream-w0", "copy"),
    Comparison::rate("bare-w1", "copy"),
    Comparison::rate("millstream-w1", "copy"),
    Comparison::cpu("exactly-once-w1", "millstream-w1", None),
    Comparison::rate("exactly-once-w1", "millstream-w1"),
    Comparison::rate("exactly-once-w1", "copy"),
    Comparison::checkpoints("CPU an event", |leg| leg.cpu_us_per_event, "us", None),
    Comparison::checkpoints("p50", |leg| leg.p50_ms, "ms", WITH_CHECKPOINTS),
    Comparison::checkpoints("p99", |leg| leg.p99_ms, "ms", WITH_CHECKPOINTS),
    Comparison::checkpoints("p99.9", |leg| leg.p999_ms, "ms", WITH_CHECKPOINTS),
];

/// The largest percentiles aimed at: row, leg up to its length, p50 and p99 in milliseconds. The reader waits for commits of
/// epochs of 50 ms.
const LATENCY_AIMS: [(&str, &str, Option<f64>, Option<f64>); 2] =
    [("exactly-once-w1", "L5000", Some(40.0), Some(80.0)), ("exactly-once-w1", "L10000", None, Some(100.0))];

/// From the kill to the first new output, in milliseconds.
const RECOVERY_MS_MAX: f64 = 1_000.0;

/// The tables of a run.
///
/// # Errors
/// A line that is not of `bench`.
pub fn tables(lines: &str) -> anyhow::Result<String> {
    let legs = lines.lines().filter(|line| !line.trim().is_empty());
    let legs = legs.map(|line| serde_json::from_str(line).with_context(|| format!("a row of `bench`: {line}")));
    let legs: Vec<Leg> = legs.collect::<anyhow::Result<_>>()?;
    let tables = [ratios(&legs), latencies(&legs), recoveries(&legs)];
    Ok(tables.into_iter().filter(|table| !table.is_empty()).collect::<Vec<_>>().join("\n"))
}

/// Names and numbers of cards, in the order of the run.
fn rows(legs: &[Leg]) -> Vec<(&str, u64)> {
    let mut rows = Vec::new();
    for leg in legs {
        let row = (leg.name.as_str(), leg.keys);
        if !rows.contains(&row) {
            rows.push(row);
        }
    }
    rows
}

/// The legs of a row whose names begin so, without the first of several throughput legs.
fn legs_of<'a>(legs: &'a [Leg], row: (&str, u64), begin: &str) -> Vec<&'a Leg> {
    let of_row = legs.iter().filter(|leg| (leg.name.as_str(), leg.keys) == row && leg.leg.starts_with(begin));
    let mut found: Vec<&Leg> = of_row.collect();
    if begin.starts_with('T') && found.len() > 1 {
        found.remove(0);
    }
    found
}

/// The median; `None` of none.
fn median(figures: impl IntoIterator<Item = f64>) -> Option<f64> {
    let mut figures: Vec<f64> = figures.into_iter().collect();
    figures.sort_by(f64::total_cmp);
    let (low, high) = (figures.get(figures.len().saturating_sub(1) / 2)?, figures.get(figures.len() / 2)?);
    Some((low + high) / 2.0)
}

/// What stands behind an aim: nothing if there is none or it is met.
fn verdict(found: f64, at_most: Option<f64>) -> &'static str {
    if at_most.is_some_and(|at_most| found > at_most) { "MISSED" } else { "" }
}

fn aim(at_most: Option<f64>) -> String {
    at_most.map_or(String::new(), |at_most| format!("{at_most}"))
}

/// A number with as many digits as it is good for.
fn number(value: f64) -> String {
    if value < 100.0 { format!("{value:.2}") } else { format!("{value:.0}") }
}

/// Rows over rows.
fn ratios(legs: &[Leg]) -> String {
    let mut table = String::new();
    for Comparison { what, figure, unit, legs: begin, row, over, at_most } in &COMPARISONS {
        for (_, keys) in rows(legs).into_iter().filter(|(name, _)| name == row) {
            let figure = |name| median(legs_of(legs, (name, keys), &begin.to_string()).into_iter().filter_map(figure));
            // A leg may be shorter than a tick of the clock of CPU time.
            let (Some(found), Some(beside)) = (figure(row), figure(over).filter(|beside| *beside > 0.0)) else {
                continue;
            };
            let (ratio, found, beside) = (found / beside, number(found), number(beside));
            _ = writeln!(
                table,
                "| {what} | {keys} | {row} {found} {unit} | {over} {beside} {unit} | {ratio:.2} | {} | {} |",
                aim(*at_most),
                verdict(ratio, *at_most)
            );
        }
    }
    titled("| figure | cards | row | over | ratio | at most | |\n|---|---|---|---|---|---|---|\n", table)
}

/// Percentiles of each row and rate, beside each other.
fn latencies(legs: &[Leg]) -> String {
    let mut rates: Vec<&str> = legs.iter().map(|leg| leg.leg.as_str()).filter(|leg| leg.starts_with('L')).collect();
    rates.sort_by_key(|leg| (leg[1..].split('x').next().and_then(|rate| rate.parse::<u64>().ok()), *leg));
    rates.dedup();
    let mut table = String::new();
    for leg in rates {
        for (name, keys) in rows(legs) {
            let found = legs_of(legs, (name, keys), leg);
            let figure = |figure: Figure| median(found.iter().filter_map(|leg| figure(leg)));
            let percentiles = [figure(|leg| leg.p50_ms), figure(|leg| leg.p99_ms), figure(|leg| leg.p999_ms)];
            let [Some(p50), Some(p99), Some(p999)] = percentiles else { continue };
            let aims =
                LATENCY_AIMS.iter().find(|(row, begin, ..)| *row == name && leg.split('x').next() == Some(begin));
            let (p50_max, p99_max) = aims.map_or((None, None), |(_, _, p50, p99)| (*p50, *p99));
            let late = figure(|leg| leg.generator_late_ms).unwrap_or(0.0);
            let verdicts = [verdict(p50, p50_max), verdict(p99, p99_max)];
            let late_mark = if late > GENERATOR_LATE_MS_MAX { "generator late" } else { "" };
            let verdicts = [if verdicts.contains(&"MISSED") { "MISSED" } else { "" }, late_mark];
            let verdicts: Vec<&str> = verdicts.into_iter().filter(|word| !word.is_empty()).collect();
            _ = writeln!(
                table,
                "| {leg} | {keys} | {name} | {p50:.1} | {} | {p99:.1} | {} | {p999:.1} | {late:.1} | {} |",
                aim(p50_max),
                aim(p99_max),
                verdicts.join(", ")
            );
        }
    }
    let title = "| leg | cards | row | p50, ms | at most | p99, ms | at most | p99.9, ms | generator late, ms | |\n\
                 |---|---|---|---|---|---|---|---|---|---|\n";
    titled(title, table)
}

/// How long a job that was killed is away.
fn recoveries(legs: &[Leg]) -> String {
    let mut table = String::new();
    for (name, keys) in rows(legs) {
        let found = legs_of(legs, (name, keys), "K");
        let Some(away) = median(found.iter().filter_map(|leg| leg.first_new_output_ms)) else { continue };
        let mark = verdict(away, Some(RECOVERY_MS_MAX));
        _ = writeln!(table, "| {name} | {keys} | {} | {away:.0} | {RECOVERY_MS_MAX} | {mark} |", found.len());
    }
    titled("| row | cards | kills | first new output, ms | at most | |\n|---|---|---|---|---|---|\n", table)
}

fn titled(title: &str, table: String) -> String {
    if table.is_empty() { table } else { format!("{title}{table}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn throughput(name: &str, keys: u64, cpu_and_rate: &[(f64, f64)]) -> String {
        let line = |(cpu, rate): &(f64, f64)| {
            format!(
                r#"{{"name":"{name}","keys":{keys},"leg":"T500000","repeated":0,"cpu_us_per_event":{cpu},"events_per_second":{rate},"memory_mb":9}}"#
            )
        };
        cpu_and_rate.iter().map(line).collect::<Vec<_>>().join("\n") + "\n"
    }

    fn latency(name: &str, keys: u64, leg: &str, [p50, p99, p999, late]: [f64; 4]) -> String {
        format!(
            r#"{{"name":"{name}","keys":{keys},"leg":"{leg}","p50_ms":{p50},"p99_ms":{p99},"p999_ms":{p999},"max_ms":999,"repeated":0,"cpu_us_per_event":20,"generator_late_ms":{late}}}"#
        ) + "\n"
    }

    #[test]
    fn rows_stand_beside_those_of_the_same_run() {
        let lines = throughput("copy", 1_000, &[(9.0, 1.0), (0.8, 800_000.0)])
            + &throughput("bare-w1", 1_000, &[(99.0, 9.0), (2.0, 300_000.0), (4.0, 200_000.0), (3.0, 250_000.0)])
            + &throughput("millstream-w1", 1_000, &[(99.0, 9.0), (3.6, 200_000.0), (3.0, 240_000.0)])
            + &throughput("exactly-once-w1", 1_000, &[(99.0, 9.0), (6.6, 110_000.0)])
            + &throughput("bare-w1", 100_000, &[(4.0, 220_000.0)])
            + &throughput("millstream-w1", 100_000, &[(6.8, 183_000.0)])
            + &throughput("millstream-w0", 1_000, &[(1.0, 1.0)]);
        let expected = "\
| figure | cards | row | over | ratio | at most | |
|---|---|---|---|---|---|---|
| CPU an event | 1000 | millstream-w1 3.30 us | bare-w1 3.00 us | 1.10 | 1.6 |  |
| CPU an event | 100000 | millstream-w1 6.80 us | bare-w1 4.00 us | 1.70 | 1.6 | MISSED |
| throughput | 1000 | millstream-w0 1.00 /s | copy 800000 /s | 0.00 |  |  |
| throughput | 1000 | bare-w1 250000 /s | copy 800000 /s | 0.31 |  |  |
| throughput | 1000 | millstream-w1 220000 /s | copy 800000 /s | 0.28 |  |  |
| CPU an event | 1000 | exactly-once-w1 6.60 us | millstream-w1 3.30 us | 2.00 |  |  |
| throughput | 1000 | exactly-once-w1 110000 /s | millstream-w1 220000 /s | 0.50 |  |  |
| throughput | 1000 | exactly-once-w1 110000 /s | copy 800000 /s | 0.14 |  |  |
";
        assert_eq!(tables(&lines).expect("rows"), expected);
    }

    #[test]
    fn latencies_stand_by_rate_and_recoveries_below() {
        let lines = latency("copy", 1_000, "L30000x20", [5.9, 20.1, 64.0, 35.0])
            + &latency("copy", 1_000, "L5000x14", [5.0, 9.0, 11.0, 0.5])
            + &latency("exactly-once-w1", 1_000, "L5000x14", [41.0, 66.0, 70.0, 1.0])
            + &latency("exactly-once-w1", 1_000, "L10000x14", [37.0, 90.0, 120.0, 1.0])
            + &latency("exactly-once-w1", 1_000, "L10000x14", [38.0, 130.0, 150.0, 8.0])
            + &latency("checkpoints-50ms-w1", 1_000_000, "L50000x14", [11.0, 33.0, 60.0, 1.0])
            + &latency("checkpoints-10m-w1", 1_000_000, "L50000x14", [10.0, 22.0, 60.0, 1.0])
            + r#"{"name":"recovery-w1","keys":1000,"leg":"K5000x8","first_new_output_ms":1200,"state_mb":44,"repeated":0}"#;
        let expected = "\
| figure | cards | row | over | ratio | at most | |
|---|---|---|---|---|---|---|
| CPU an event | 1000000 | checkpoints-50ms-w1 20.00 us | checkpoints-10m-w1 20.00 us | 1.00 |  |  |
| p50 | 1000000 | checkpoints-50ms-w1 11.00 ms | checkpoints-10m-w1 10.00 ms | 1.10 | 1.1 |  |
| p99 | 1000000 | checkpoints-50ms-w1 33.00 ms | checkpoints-10m-w1 22.00 ms | 1.50 | 1.1 | MISSED |
| p99.9 | 1000000 | checkpoints-50ms-w1 60.00 ms | checkpoints-10m-w1 60.00 ms | 1.00 | 1.1 |  |

| leg | cards | row | p50, ms | at most | p99, ms | at most | p99.9, ms | generator late, ms | |
|---|---|---|---|---|---|---|---|---|---|
| L5000x14 | 1000 | copy | 5.0 |  | 9.0 |  | 11.0 | 0.5 |  |
| L5000x14 | 1000 | exactly-once-w1 | 41.0 | 40 | 66.0 | 80 | 70.0 | 1.0 | MISSED |
| L10000x14 | 1000 | exactly-once-w1 | 37.5 |  | 110.0 | 100 | 135.0 | 4.5 | MISSED |
| L30000x20 | 1000 | copy | 5.9 |  | 20.1 |  | 64.0 | 35.0 | generator late |
| L50000x14 | 1000000 | checkpoints-50ms-w1 | 11.0 |  | 33.0 |  | 60.0 | 1.0 |  |
| L50000x14 | 1000000 | checkpoints-10m-w1 | 10.0 |  | 22.0 |  | 60.0 | 1.0 |  |

| row | cards | kills | first new output, ms | at most | |
|---|---|---|---|---|---|
| recovery-w1 | 1000 | 1 | 1200 | 1000 | MISSED |
";
        assert_eq!(tables(&lines).expect("rows"), expected);
    }

    #[test]
    fn a_run_of_one_row_has_nothing_to_be_held_against() {
        assert_eq!(tables(&throughput("bare-w0", 1_000, &[(1.0, 9.0)])).expect("a row"), "");
        assert_eq!(tables("\n").expect("no rows"), "");
        let short = throughput("bare-w0", 1_000, &[(0.0, 9.0)]) + &throughput("millstream-w0", 1_000, &[(1.0, 9.0)]);
        assert_eq!(tables(&short).expect("rows"), "");
        let error = tables("broker is away").expect_err("no row");
        assert_eq!(error.to_string(), "a row of `bench`: broker is away");
    }
}
