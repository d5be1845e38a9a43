//! A job whose file changes between its runs: what `plan` says comes true, what is kept goes on from its values, and no
//! record is lost or repeated.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::service::Service;
use super::*;
use crate::program::{Running, Said};

pub(super) const CARDS: i64 = 30;
pub(super) const SHOPS: i64 = 10;

pub(super) fn service() -> Service {
    Service::new(brokers(), "change").create([("payments", 3), ("vectors", 1), ("elsewhere", 1)])
}

/// Writes payments. A card's stand in one partition, so that their order is given.
pub(super) fn send(service: &Service, ids: std::ops::Range<i64>) {
    let line = |id| {
        format!(
            "{{\"id\":{id},\"at\":{},\"card\":{},\"shop\":{},\"amount\":{id}}}",
            1_700_000_000_000 + id,
            id % CARDS,
            id % SHOPS
        )
    };
    assert_eq!((ids.start % 3, CARDS % 3), (0, 0), "the same cards in the same partitions");
    service.send("payments", 3, ids.map(line));
}

/// Replaces a part of the job's file.
pub(super) fn change(service: &Service, old: &str, new: &str) {
    let text = std::fs::read_to_string(service.topology()).unwrap();
    assert!(text.contains(old), "{old}\n{text}");
    std::fs::write(service.topology(), text.replacen(old, new, 1)).unwrap();
}

/// Starts the job; `dropping` may be dropped.
fn run(service: &Service, dropping: &[&str]) -> Running {
    let flags = dropping.iter().flat_map(|node| ["--allow-drop", node]);
    service.run(&["--http", "off"].into_iter().chain(flags).collect::<Vec<_>>())
}

/// Kills it without warning.
pub(super) fn kill(running: Running) {
    drop(running);
}

/// Stops it.
pub(super) fn stop(running: Running) -> Said {
    running.terminate();
    let said = running.end();
    assert!(said.status.success(), "{}", said.err);
    said
}

/// What `millstream plan` says: its exit code, what `run` would do, and by node the verdict, the keys there are and whether
/// something would be lost. It must leave the state folder as it is.
pub(super) fn plan(
    service: &Service,
    options: &[&str],
) -> (Option<i32>, String, BTreeMap<String, (String, u64, bool)>) {
    let before = contents(&service.folder().join("state"));
    let said = Running::start(service.command().arg("plan").arg(service.topology()).arg("--json").args(options)).end();
    assert_eq!(contents(&service.folder().join("state")), before, "it has written");
    let plan: Value =
        serde_json::from_str(&said.out).unwrap_or_else(|error| panic!("{error}: {}{}", said.out, said.err));
    let node = |node: &Value| {
        let text = |field: &str| node[field].as_str().unwrap().to_string();
        (text("node"), (text("verdict"), node["has"]["keys"].as_u64().unwrap_or(0), !node["loses"].is_null()))
    };
    let nodes = plan["nodes"].as_array().unwrap().iter().map(node).collect();
    (said.status.code(), plan["run"].as_str().unwrap().to_string(), nodes)
}

/// All files of a folder.
fn contents(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => files.extend(contents(&path)),
            false => drop(files.insert(path.clone(), std::fs::read(&path).unwrap())),
        }
    }
    files
}

fn nodes(expected: &[(&str, &str, i64, bool)]) -> BTreeMap<String, (String, u64, bool)> {
    let node = |(node, verdict, keys, loses): &(&str, &str, i64, bool)| {
        (node.to_string(), (verdict.to_string(), *keys as u64, *loses))
    };
    expected.iter().map(node).collect()
}

/// The committed vectors by id, each of which must be there once.
pub(super) fn vectors(service: &Service, topic: &str) -> BTreeMap<i64, Value> {
    let all = service.consume(topic);
    let count = all.len();
    let by_id: BTreeMap<i64, Value> =
        all.into_iter().map(|message| (message["value"]["id"].as_i64().unwrap(), message["value"].clone())).collect();
    assert_eq!(by_id.len(), count, "no vector twice");
    by_id
}

#[test]
fn a_changed_job_keeps_what_has_not_changed() {
    let service = service();
    send(&service, 0..300);
    let mut running = run(&service, &[]);
    service.until("vectors", 300, &mut running);
    kill(running);
    crate::program::said(service.command().args(["checkpoint", "save"]).arg(service.topology()).arg("before"));

    // A group is new, one is gone, a detector is another, there are more workers and another epoch.
    change(
        &service,
        "  shop:\n    from: payments\n    key: [shop]\n",
        "  pair:\n    from: payments\n    key: [card, shop]\n",
    );
    change(&service, "- { features: shop }", "- { features: pair }");
    change(&service, "threshold: 1000000", "threshold: 2000000");
    change(&service, "engine: { epoch: 50ms }", "engine: { epoch: 70ms, workers: 3 }");
    let changed = nodes(&[
        ("sources.payments", "keep", 0, false),
        ("features.card", "keep", CARDS, false),
        ("features.pair", "new", 0, false),
        ("features.shop", "drop", SHOPS, true),
        ("drift.amount", "recompute", 1, true),
        ("sinks.vectors", "keep", 0, false),
    ]);
    assert_eq!(plan(&service, &[]), (Some(5), "refuses".into(), changed.clone()));
    let refused = run(&service, &["shop"]).end();
    assert_eq!(refused.status.code(), Some(5), "{}", refused.err);
    let told =
        refused.err.contains("drift.amount is defined otherwise: 1 key") && !refused.err.contains("features.shop");
    assert!(told && refused.err.contains("--allow-drop drift.amount"), "{}", refused.err);
    let allowed = ["--allow-drop", "shop", "--allow-drop", "drift.amount"];
    assert_eq!(plan(&service, &allowed), (Some(0), "goes on".into(), changed.clone()));
    // That is where the job is.
    assert_eq!(plan(&service, &["--from", "before"]), (Some(5), "refuses".into(), changed.clone()));

    send(&service, 300..600);
    let mut running = run(&service, &["shop", "drift.amount"]);
    service.until("vectors", 600, &mut running);
    let said = stop(running);
    for logged in ["\"new\":\"features.pair\"", "\"drop\":\"features.shop\"", "\"recompute\":\"drift.amount\""] {
        assert!(said.err.contains(logged), "{logged}: {}", said.err);
    }
    let kept = [("sources.payments", 0), ("features.card", CARDS), ("features.pair", CARDS), ("drift.amount", 1)];
    let kept = kept.iter().chain(&[("sinks.vectors", 0)]).map(|(node, keys)| (*node, "keep", *keys, false));
    let kept = nodes(&kept.collect::<Vec<_>>());
    assert_eq!(plan(&service, &[]), (Some(0), "goes on".into(), kept));
    // A start from the savepoint finds what there was then.
    assert_eq!(plan(&service, &["--from", "before"]), (Some(5), "refuses".into(), changed.clone()));
    let back = [&allowed[..], &["--from", "before"]].concat();
    assert_eq!(plan(&service, &back), (Some(0), "goes on".into(), changed));
    let text = crate::program::said(service.command().arg("plan").arg(service.topology()).args(back));
    let first = text.lines().next().unwrap();
    assert!(first.contains(", `before`; the job is at epoch ") && first.ends_with(", and goes back"), "{text}");
    assert!(text.ends_with("`run` goes on from there, if it may repeat outputs (`--allow-repeat`)\n"), "{text}");

    // What comes back under the name of what was dropped finds nothing of it. A group with an aggregate more goes on.
    change(
        &service,
        "      - { of: amount, ops: [count, sum]",
        "      - { of: id, ops: [min], windows: [30d] }\n      - { of: amount, ops: [count, sum]",
    );
    change(
        &service,
        "vectors:\n",
        "  shop: { from: payments, key: [shop], aggregates: [{ as: seen, ops: [count], windows: [30d] }] }\nvectors:\n",
    );
    change(&service, "- { features: pair }", "- { features: pair }\n      - { features: shop }");
    let (code, run_would, all) = plan(&service, &[]);
    assert_eq!((code, &*run_would, &all["features.shop"]), (Some(0), "goes on", &("new".to_string(), 0, false)));
    assert_eq!(all["features.card"], ("extend".to_string(), CARDS as u64, false));
    send(&service, 600..900);
    let mut running = run(&service, &[]);
    service.until("vectors", 900, &mut running);
    stop(running);

    for (id, vector) in vectors(&service, "vectors") {
        let of_card: Vec<i64> = (0..=id).filter(|other| other % CARDS == id % CARDS).collect();
        let expected =
            |feature: &str, value: i64| assert_eq!(vector[feature].as_f64(), Some(value as f64), "{id}: {vector}");
        expected("card.amount_count_30d", of_card.len() as i64);
        expected("card.amount_sum_30d", of_card.iter().sum());
        match id {
            0..300 => {
                // The payments of a shop are in several partitions: which of them came first is not given.
                assert!(vector["shop.seen_count_30d"].as_i64() >= Some(1) && vector["pair.seen_count_30d"].is_null());
            }
            _ => expected("pair.seen_count_30d", of_card.iter().filter(|other| **other >= 300).count() as i64),
        }
        if id >= 600 {
            expected("card.id_min_30d", 600 + id % CARDS);
            assert!(vector["shop.seen_count_30d"].as_i64() <= Some((300 / SHOPS) as i64), "{id}: {vector}");
        }
    }
}

/// Records that are decided belong to the topic that they were decided for.
#[test]
fn a_sink_moves_when_its_outputs_are_where_they_belong() {
    let service = service();
    send(&service, 0..90);
    let mut running = run(&service, &[]);
    service.until("vectors", 90, &mut running);
    kill(running);
    change(&service, "${RUN}-vectors", "${RUN}-elsewhere");
    let (code, _, moved) = plan(&service, &[]);
    assert_eq!((code, &moved["sinks.vectors"]), (Some(5), &("replace".to_string(), 0, true)));
    let refused = run(&service, &[]).end();
    assert!(refused.status.code() == Some(5) && refused.err.contains("stopped with SIGTERM"), "{}", refused.err);

    // As the message says: the old file, a stop, the new file.
    change(&service, "${RUN}-elsewhere", "${RUN}-vectors");
    let mut running = run(&service, &[]);
    send(&service, 90..180);
    service.until("vectors", 180, &mut running);
    stop(running);
    change(&service, "${RUN}-vectors", "${RUN}-elsewhere");
    let (code, _, moved) = plan(&service, &[]);
    assert_eq!((code, &moved["sinks.vectors"]), (Some(0), &("replace".to_string(), 0, false)));
    send(&service, 180..270);
    let mut running = run(&service, &[]);
    service.until("elsewhere", 90, &mut running);
    stop(running);
    let ids = |topic| vectors(&service, topic).into_keys().collect::<Vec<_>>();
    assert_eq!((ids("vectors"), ids("elsewhere")), ((0..180).collect(), (180..270).collect()));
}
