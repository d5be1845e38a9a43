//! The topology of `topology.yaml`, written in Rust:
//! `FLIGHTS_DATA=... cargo run --example flight_delays -- replay`.

use std::path::Path;
use std::process::ExitCode;

use millstream::cli;
use millstream::offline::OfflineConfig;
use millstream::sinks::{SinkKind, kafka::KafkaSink};
use millstream::sources::{SourceKind, kafka::KafkaSource};
use millstream::topology::{EventTimeConfig, Join, Model, Outcomes, Prepare, Sink, Source, Topology, Vector};
use millstream_operators::drift::DetectorKind;
use millstream_operators::drift::adwin::AdwinConfig;
use millstream_operators::drift::page_hinkley::{PageHinkleyConfig, Standardize};
use millstream_operators::drift::psi::{First, PsiConfig, Reference, Window};
use millstream_operators::features::{Aggregate, GroupConfig, Op};
use millstream_operators::schema::{ColumnType, Range};
use millstream_operators::units::Millis;

/// The features of the model, in the order it was trained on.
const FEATURES: [&str; 19] = [
    "origin.delay_mean_1h",
    "origin.delay_mean_24h",
    "origin.late_mean_1h",
    "origin.late_mean_3h",
    "carrier.delay_mean_24h",
    "carrier.late_mean_3h",
    "carrier_origin.delay_mean_3h",
    "tail.delay_last_24h",
    "tail.time_since_last_24h",
    "destination.delay_mean_6h",
    "destination.delay_mean_24h",
    "route.delay_mean_7d",
    "backlog",
    "origin_cancelled.count_24h",
    "origin_weather.precipitation",
    "origin_weather.visibility",
    "origin_weather.dew_point",
    "hour",
    "distance",
];

/// Will a flight arrive more than 15 minutes late? Asked an hour before each scheduled departure.
pub fn topology() -> Topology {
    outputs(features(sources(Topology::new("flight_delays"))))
        .vector("flight", vector())
        .model("delay", Model::new("flight", "model.onnx").threshold(0.5).features(FEATURES))
        .drift("score_level", "delay", "score", DetectorKind::Adwin(score_level()))
        .drift("departure_delay", "departures", "delay_minutes", DetectorKind::PageHinkley(departure_delay()))
        .drift("origin_delay", "flight", "origin.delay_mean_24h", DetectorKind::Psi(origin_delay()))
        .outcomes("delayed", outcomes())
}

fn hours(hours: i64) -> Millis {
    Millis(hours * 3_600_000)
}

fn brokers() -> String {
    std::env::var("KAFKA_BROKERS").unwrap_or_else(|_| "localhost:9092".into())
}

/// A stream of flights: a topic, and the same events as a file.
fn source(stream: &str) -> Source {
    let data = std::env::var("FLIGHTS_DATA").unwrap_or_else(|_| "data".into());
    Source::new(SourceKind::Kafka(KafkaSource::new(&brokers(), [format!("flights.{stream}").as_str()])))
        .column("at", ColumnType::TIMESTAMP)
        .event_time(EventTimeConfig::new("at"))
        .sorted_history(&format!("{data}/{stream}.jsonl"))
}

fn flights(stream: &str) -> Source {
    source(stream)
        .column("flight_id", ColumnType::STRING)
        .column("carrier", ColumnType::STRING)
        .column("origin", ColumnType::STRING)
        .column("dest", ColumnType::STRING)
}

fn sources(topology: Topology) -> Topology {
    let between = |min, max| Range { min: Some(min), max: Some(max) };
    let schedule = flights("schedule")
        .column("tail", ColumnType::STRING.optional())
        .column("scheduled_at", ColumnType::TIMESTAMP)
        .column_within("hour", ColumnType::INT64, between(0.0, 23.0))
        .column_within("distance", ColumnType::FLOAT64, between(0.0, 20_000.0))
        .column("weekday", ColumnType::INT64);
    let departures = flights("departures")
        .column("tail", ColumnType::STRING.optional())
        .column("delay_minutes", ColumnType::FLOAT64);
    let weather = ["precip", "visib", "dewp"]
        .iter()
        .fold(source("weather").column("origin", ColumnType::STRING), |weather, column| {
            weather.column(column, ColumnType::FLOAT64.optional())
        });
    topology
        .source("schedule", schedule)
        .source("departures", departures)
        .source("cancellations", flights("cancellations"))
        .source("arrivals", flights("arrivals").column("delay_minutes", ColumnType::FLOAT64))
        .source("weather", weather)
        .prepare("tails", Prepare::new("departures").filter("tail is not null"))
}

fn features(topology: Topology) -> Topology {
    let delay = |op, windows: &[i64]| {
        Aggregate::of("delay_minutes", [op], windows.iter().map(|window| hours(*window))).named("delay")
    };
    let late = |windows: &[i64]| {
        Aggregate::of("delay_minutes > 15", [Op::MEAN], windows.iter().map(|window| hours(*window))).named("late")
    };
    let origin = GroupConfig::new("departures", ["origin"])
        .aggregate(delay(Op::MEAN, &[1, 24]))
        .aggregate(late(&[1, 3]))
        .aggregate(Aggregate::rows([Op::COUNT], [hours(2)]));
    let carrier = GroupConfig::new("departures", ["carrier"]).aggregate(delay(Op::MEAN, &[24])).aggregate(late(&[3]));
    let carrier_origin = GroupConfig::new("departures", ["carrier", "origin"]).aggregate(delay(Op::MEAN, &[3]));
    let tail = GroupConfig::new("tails", ["tail"])
        .aggregate(delay(Op::LAST, &[24]))
        .aggregate(Aggregate::rows([Op::TIME_SINCE_LAST], [hours(24)]));
    let weather = GroupConfig::new("weather", ["origin"])
        .as_of("precipitation", "precip", hours(3))
        .as_of("visibility", "visib", hours(3))
        .as_of("dew_point", "dewp", hours(3));
    let counted = |from, windows: &[i64]| {
        let windows = windows.iter().map(|window| hours(*window));
        GroupConfig::new(from, ["origin"]).aggregate(Aggregate::rows([Op::COUNT], windows))
    };
    topology
        .features("origin", origin)
        .features("carrier", carrier)
        .features("carrier_origin", carrier_origin)
        .features("tail", tail)
        .features("destination", GroupConfig::new("arrivals", ["dest"]).aggregate(delay(Op::MEAN, &[6, 24])))
        .features("route", GroupConfig::new("arrivals", ["origin", "dest"]).aggregate(delay(Op::MEAN, &[7 * 24])))
        .features("decisions", counted("schedule", &[1, 3]))
        .features("origin_cancelled", counted("cancellations", &[24]))
        .features("origin_weather", weather)
}

fn vector() -> Vector {
    let groups = ["origin", "carrier", "carrier_origin", "tail", "destination", "route", "decisions"];
    let vector = groups.iter().fold(Vector::new("schedule"), |vector, group| vector.join(Join::new(group)));
    vector
        .join(Join::new("origin_cancelled"))
        .join(Join::new("origin_weather"))
        // Decided between one and three hours ago, so due in the last two hours, but not departed.
        .derive("backlog", "decisions.count_3h - decisions.count_1h - origin.count_2h")
        .derive("month", "date_part('month', scheduled_at)")
}

/// Neither side of a change shorter than ten days, some 10,000 flights.
fn score_level() -> AdwinConfig {
    AdwinConfig {
        delta: 0.002,
        clock: 1_000,
        min_window_length: 10_000,
        grace_period: 20_000,
        ..AdwinConfig::default()
    }
}

/// In standard deviations of January to August.
fn departure_delay() -> PageHinkleyConfig {
    let standardize = Some(Standardize { mean: 14.6, std: 42.7 });
    PageHinkleyConfig { delta: 0.1, threshold: 2_000.0, standardize, ..PageHinkleyConfig::default() }
}

/// Against the first quarter.
fn origin_delay() -> PsiConfig {
    let first = First { values: 80_000, ..First::default() };
    PsiConfig { window: Window::Rows(20_000), reference: Reference::First(first), ..PsiConfig::default() }
}

fn outcomes() -> Outcomes {
    let late = "case when delay_minutes > 15 then 1 else 0 end";
    Outcomes::new("delay", "arrivals", ["flight_id"], late, hours(400 * 24)).slices(["origin", "carrier", "month"])
}

fn outputs(topology: Topology) -> Topology {
    let topic = |topic: &str| SinkKind::Kafka(KafkaSink::new(&brokers(), topic));
    let columns = ["prediction_id", "model_version", "flight_id", "scheduled_at", "score", "label"];
    let predictions = Sink::new("delay", topic("flights.predictions")).key(["flight_id"]);
    topology
        .sink("predictions", columns.iter().fold(predictions, |sink, column| sink.select(column, column)))
        .sink("dead_letters", Sink::new("rejects", topic("flights.rejected")))
        .sink("drift_signals", Sink::new("drift", topic("flights.drift")))
        .offline("predictions", OfflineConfig::delta("delay", "offline/predictions"))
        .offline("arrivals", OfflineConfig::delta("arrivals", "offline/arrivals"))
}

#[allow(dead_code, reason = "the tests compare the topology with the file and do not run it")]
fn main() -> ExitCode {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("topologies/flight_delays");
    cli::main(|| cli::run_built(topology(), &folder))
}
