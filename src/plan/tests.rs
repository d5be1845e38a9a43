//! Topologies as values: what their plans are made of, and what is wrong with them.

use std::path::Path;

use millstream_operators::features::GroupConfig;
use millstream_operators::schema::ColumnType;

use super::{Node, Plan};
use crate::sinks::SinkKind;
use crate::sinks::stdout::StdoutSink;
use crate::sources::SourceKind;
use crate::sources::kafka::KafkaSource;
use crate::sources::memory::MemorySource;
use crate::topology::{Join, Prepare, Sink, Source, Topology, Vector};

fn source(columns: &[(&str, ColumnType)]) -> Source {
    let empty = Source::new(SourceKind::Memory(MemorySource { messages: Vec::new() }));
    columns.iter().fold(empty, |source, (name, column)| source.column(name, *column))
}

fn group(from: &str, key: &str) -> GroupConfig {
    let text = format!(
        r#"{{ "from": "{from}", "key": ["{key}"], "aggregates": [{{ "ops": ["count"], "windows": ["1h", "24h"] }}] }}"#
    );
    serde_json::from_str(&text).expect("the text is a group")
}

/// Payments by card, and reports by place; nothing reads them yet.
fn payments() -> Topology {
    let text = ColumnType::STRING;
    Topology::new("test")
        .source("payments", source(&[("card", text), ("shop", text), ("city", text), ("amount", ColumnType::FLOAT64)]))
        .source("reports", source(&[("place", text)]))
        .features("card", group("payments", "card"))
        .features("shop", group("payments", "shop"))
        .features("place", group("reports", "place"))
}

fn plan(topology: &Topology) -> Plan {
    match Plan::new(topology, Path::new(".")) {
        Ok(plan) => plan,
        Err(errors) => panic!("{}", errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")),
    }
}

fn columns(plan: &Plan, stream: &str) -> String {
    let stream = plan.stream(stream).expect("the stream is planned");
    let names = plan.streams[stream].schema.fields().iter().map(|field| field.name().as_str());
    names.collect::<Vec<_>>().join(" ")
}

#[test]
fn a_vector_has_its_columns_in_the_order_written() {
    let vector = Vector::new("payments")
        .join(Join::new("place").on(["city"]))
        .join(Join::new("card"))
        .derive("share", "\"card.count_1h\" / nullif(place.count_1h, 0)");
    let plan = plan(&payments().vector("seen", vector));
    let wanted = "card shop city amount place.count_1h place.count_24h card.count_1h card.count_24h share";
    assert_eq!(columns(&plan, "seen"), wanted);
}

#[test]
fn groups_are_read_in_one_order_by_every_vector() {
    let there = Vector::new("payments").join(Join::new("card")).join(Join::new("place").on(["city"]));
    let back = Vector::new("payments").join(Join::new("place").on(["city"])).join(Join::new("card"));
    let plan = plan(&payments().vector("there", there).vector("back", back));
    for vector in ["there", "back"] {
        let (mut stream, mut groups) = (plan.stream(vector).expect("the vector is planned"), Vec::new());
        loop {
            stream = match &plan.streams[stream].node {
                Node::Read { input, group, .. } => {
                    groups.push(plan.groups[*group].name.trim_end_matches("#2"));
                    *input
                }
                Node::Prepare { input, .. } | Node::Deduplicate { input, .. } => *input,
                Node::Source(_) | Node::Score { .. } => break,
            };
        }
        assert_eq!(groups, ["place", "card"], "{vector}");
    }
}

#[test]
fn a_spine_feeds_a_group_once() {
    let seen = Vector::new("payments").join(Join::new("card").exclude_self()).join(Join::new("shop"));
    let again = Vector::new("payments").join(Join::new("card"));
    let plan = plan(&payments().vector("seen", seen).vector("again", again));
    let readers = |name: &str| {
        let group = plan.groups.iter().find(|group| group.name == name).expect("the group is planned");
        group.readers.iter().map(|reader| (reader.feeds, reader.on.clone())).collect::<Vec<_>>()
    };
    assert_eq!(readers("card"), [(true, vec![0])]);
    assert_eq!(readers("card#2"), [(true, vec![0])], "the rows of the second vector come apart from the first's");
    assert_eq!(readers("shop"), [(true, vec![1])]);
    let online: Vec<&str> = plan.groups.iter().filter(|g| g.online).map(|g| g.name.as_str()).collect();
    assert_eq!(online, ["card", "shop", "place"]);
    plan.groups.iter().for_each(|group| drop(group.operator()));
}

#[test]
fn a_group_is_read_twice_under_two_names() {
    let vector = Vector::new("payments")
        .join(Join::new("place").on(["city"]).named("here"))
        .join(Join::new("place").on(["shop"]).named("there"));
    let plan = plan(&payments().vector("seen", vector));
    assert_eq!(
        columns(&plan, "seen"),
        "card shop city amount here.count_1h here.count_24h there.count_1h there.count_24h"
    );
    let groups: Vec<_> = plan.groups.iter().map(|group| (group.name.as_str(), group.readers.len())).collect();
    assert_eq!(groups, [("card", 0), ("shop", 0), ("place", 1), ("place#2", 1)]);
}

#[test]
fn a_group_read_by_another_key_than_its_own_is_not_fed_by_the_reader() {
    let plan = plan(&payments().vector("seen", Vector::new("payments").join(Join::new("card").on(["shop"]))));
    assert!(!plan.groups[0].readers[0].feeds);
}

#[test]
fn streams_come_after_what_they_read() {
    let topology = Topology::new("test")
        .prepare("last", Prepare::new("middle").derive("b", "a + 1"))
        .prepare("middle", Prepare::new("first").derive("a", "n + 1"))
        .source("first", source(&[("n", ColumnType::INT64)]));
    let names: Vec<String> = plan(&topology).streams.into_iter().map(|stream| stream.name).collect();
    assert_eq!(names, ["first", "middle", "last"]);
}

#[test]
fn a_digest_follows_what_a_node_reads_and_nothing_else() {
    let topology = |middle: &str, other: &str| {
        let first = source(&[("n", ColumnType::INT64)]);
        let middle = Prepare::new("first").derive("a", middle);
        let topology = Topology::new("test").source("first", first).prepare("middle", middle);
        let other = Prepare::new("first").derive("b", other);
        let plan = plan(&topology.prepare("last", Prepare::new("middle")).prepare("other", other));
        let lineage = |name: &str| plan.stream(name).map(|stream| plan.streams[stream].lineage.clone());
        (lineage("first"), lineage("last"))
    };
    let (first, last) = topology("n + 1", "n");
    assert_eq!(topology("n + 1", "n * 2"), (first.clone(), last.clone()));
    let (same_first, other_last) = topology("n + 2", "n");
    assert_eq!(first, same_first);
    assert_ne!(last, other_last);
}

#[test]
fn how_brokers_are_reached_may_change_from_start_to_start() {
    let hash = |brokers: &str, topic: &str, password: Option<&str>| {
        let mut kafka = KafkaSource::new(brokers, [topic]);
        kafka.options.0.extend(password.map(|password| ("sasl.password".to_string(), password.to_string())));
        let mut source = source(&[("n", ColumnType::INT64)]);
        source.from = SourceKind::Kafka(kafka);
        plan(&Topology::new("test").source("first", source)).hash
    };
    let first = hash("a:9092", "events", Some("old"));
    assert_eq!(first, hash("a:9092,b:9092", "events", Some("new")));
    assert_eq!(first, hash("a:9092", "events", None));
    assert_ne!(first, hash("a:9092", "others", Some("old")));
}

#[test]
fn a_sink_without_a_choice_writes_all_columns() {
    let sink = |from: &str| Sink::new(from, SinkKind::Stdout(StdoutSink {}));
    let plan = plan(&payments().sink("out", sink("payments")).sink("dead_letters", sink("rejects")));
    let written =
        |i: usize| plan.sinks[i].schema.fields().iter().map(|f| f.name().clone()).collect::<Vec<_>>().join(" ");
    assert_eq!(written(0), "card shop city amount");
    assert!(written(1).starts_with("payload stage reason detail event_time topic partition offset"), "{}", written(1));
    assert_eq!(plan.sinks[0].columns.len(), 4);
}
