//! Pairs of topologies, and what becomes of each node between them.

use std::path::Path;

use millstream_operators::state::rows;

use super::*;
use crate::checkpoint::{EventTimes, Progress, effect_name};
use crate::sources::{Positions, Topic};
use crate::topology::file::File;

/// Two sources, a prepared stream, groups, a vector that reads one of them, a detector, an outcome, outputs.
const BEFORE: &str = r#"
version: 1
name: job
sources:
  payments:
    from: { kafka: { brokers: "a:9092", topics: [payments, refunds] } }
    schema: { id: string, card: string, shop: string, amount: float64, label: int64 }
  labels:
    from: { kafka: { brokers: "a:9092", topics: [labels] } }
    schema: { id: string, label: int64 }
prepare:
  paid: { from: payments, where: amount > 0 }
features:
  card:
    from: paid
    key: [card]
    aggregates: [{ of: amount, ops: [count, sum], windows: [1h] }]
  shop:
    from: payments
    key: [shop]
    aggregates: [{ ops: [count], windows: [1h] }]
vectors:
  seen: { spine: paid, join: [{ features: card }] }
drift:
  amount: { from: paid, column: amount, detector: { page_hinkley: { threshold: 20 } } }
sinks:
  seen: { from: seen, to: { kafka: { brokers: "a:9092", topic: seen } } }
  copy: { from: paid, to: { file: { path: out/copy.jsonl } } }
offline:
  seen: { from: seen, table: { delta: { path: lake/seen } } }
"#;

fn plan(text: &str) -> Plan {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("topology.yaml");
    std::fs::write(&path, text).unwrap();
    let file = File::open(&path);
    let topology = file
        .topology
        .clone()
        .unwrap_or_else(|| panic!("{}", file.report(&[], &[]).render(crate::topology::problem::Style::Plain)));
    Plan::new(&topology, Path::new("/jobs/one")).unwrap_or_else(|errors| panic!("{errors:?}\n{text}"))
}

/// A checkpoint that has something of everything that the plan has, and of which no output is committed.
fn checkpoint(plan: &Plan) -> Checkpoint {
    let mut writer = rows::Writer::default();
    writer.put(b"key", |bytes| bytes.push(7));
    let rows = writer.finish();
    let mut progress =
        Progress { epoch: 40, definitions: defined(&Definitions::new(), plan, 0), ..Progress::default() };
    for (source, topics) in topics(plan) {
        let at: BTreeMap<(String, i32), i64> = topics.iter().map(|topic| ((topic.clone(), 0), 5)).collect();
        progress.event_times.insert(source.to_string(), at.clone() as EventTimes);
        progress.positions.insert(source.to_string(), Positions(at));
        let known = |topic: &String| (topic.clone(), Topic { id: Some(format!("id of {topic}")), partitions: 1 });
        progress.topics.insert(source.to_string(), topics.iter().map(known).collect());
    }
    let mut checkpoint = Checkpoint { progress, ..Checkpoint::default() };
    for node in plan.definitions().into_keys() {
        let (section, name) = node.split_once('.').unwrap();
        match section {
            "sinks" => drop(checkpoint.outbox.insert((name.to_string(), 0), vec![(40, vec![1, 2])])),
            "offline" => drop(checkpoint.offline.insert(name.to_string(), vec![(39, vec![1, 2, 3])])),
            "sources" => {}
            _ => drop(checkpoint.nodes.insert(node.clone(), [(3, vec![rows.clone()])].into())),
        }
        if matches!(section, "sinks" | "offline") {
            checkpoint.progress.committed.insert(effect_name(&node, 0), 38);
        }
    }
    checkpoint.progress.sinks.insert("copy".to_string(), 100);
    checkpoint
}

/// What is not kept, and what of the kept would be lost: `node verdict` or `node verdict (loses)`.
fn verdicts(change: &Change) -> String {
    let told = change.nodes.iter().filter(|node| node.verdict != Verdict::Keep || node.loses.is_some());
    let told = told.map(|NodeChange { node, verdict, loses, .. }| {
        let verdict = format!("{verdict:?}").to_lowercase();
        match loses {
            Some(loses) => format!("{node} {verdict} ({loses})"),
            None => format!("{node} {verdict}"),
        }
    });
    told.collect::<Vec<_>>().join("\n")
}

/// What is replaced, by what, and the verdicts: `{STATE}`, `{outbox}` and `{rows}` are what would be lost.
const CASES: &[(&str, &str, &str)] = &[
    // How the job runs and how brokers are reached is no part of any definition.
    ("name: job", "name: job\nengine: { workers: 4, epoch: 50ms, http: off, state: other }", ""),
    (
        "brokers: \"a:9092\", topics: [labels]",
        "brokers: \"b:9093\", topics: [labels], options: { sasl.password: x }",
        "",
    ),
    (
        "to: { kafka: { brokers: \"a:9092\", topic: seen }",
        "to: { kafka: { brokers: \"c:1\", topic: seen, linger: 5ms }",
        "",
    ),
    // What goes out is encoded when it is decided: other columns go to the same place.
    ("{ from: seen, to: { kafka", "{ from: seen, select: { a: amount }, to: { kafka", ""),
    // What a node does not use may come and go: columns of a source or a preparation, names of features, what is served.
    ("schema: { id: string, card", "schema: { id: string, country: string?, card", ""),
    ("shop: string, amount: float64, label: int64 }", "amount: float64, shop: string }", ""),
    ("where: amount > 0 }", "where: amount > 0, derive: { half: amount / 2 } }", ""),
    ("{ ops: [count], windows: [1h] }", "{ as: visits, ops: [count], windows: [1h] }", ""),
    ("key: [shop]", "key: [shop]\n    ttl: 30d\n    online: false", ""),
    ("join: [{ features: card }]", "join: [{ features: card, exclude_self: true }]", ""),
    (
        "schema: { id: string, label",
        "event_time: { column: at, lateness: 5m, idle_after: 1s }\n    schema: { at: timestamp, id: string, label",
        "",
    ),
    // New nodes.
    (
        "vectors:",
        "  city: { from: payments, key: [id], aggregates: [{ ops: [count], windows: [1h] }] }\nvectors:",
        "features.city new",
    ),
    ("sinks:\n", "sinks:\n  more: { from: labels, to: { stdout: {} } }\n", "sinks.more new"),
    // Nodes that are gone.
    (
        "drift:\n  amount: { from: paid, column: amount, detector: { page_hinkley: { threshold: 20 } } }\n",
        "",
        "drift.amount drop {STATE}",
    ),
    ("  seen: { from: seen, to: { kafka: { brokers: \"a:9092\", topic: seen } } }\n", "", "sinks.seen drop {outbox}"),
    // A node of another definition, and what reads it.
    ("threshold: 20", "threshold: 30", "drift.amount recompute {STATE}"),
    ("{ ops: [count], windows: [1h] }", "{ ops: [count], windows: [2h] }", "features.shop recompute {STATE}"),
    ("where: amount > 0", "where: amount > 1", "drift.amount recompute {STATE}\nfeatures.card recompute {STATE}"),
    ("amount: float64", "amount: int64", "drift.amount recompute {STATE}\nfeatures.card recompute {STATE}"),
    ("card: string, shop: string", "card: int64, shop: string", "features.card recompute {STATE}"),
    (
        "    schema: { id: string, card",
        "    ranges: { amount: { max: 9 } }\n    schema: { id: string, card",
        "drift.amount recompute {STATE}\nfeatures.card recompute {STATE}\nfeatures.shop recompute {STATE}",
    ),
    (
        "    schema: { id: string, card",
        "    event_time: { column: at }\n    schema: { at: timestamp, id: string, card",
        "drift.amount recompute {STATE}\nfeatures.card recompute {STATE}\nfeatures.shop recompute {STATE}",
    ),
    // Outputs that go elsewhere while the checkpoint has some on their way.
    ("topic: seen }", "topic: elsewhere }", "sinks.seen replace {outbox}"),
    ("topic: seen }", "topic: seen, delivery: at_least_once }", "sinks.seen replace {outbox}"),
    ("path: lake/seen", "path: lake/new", "offline.seen replace {rows}"),
    (
        "path: out/copy.jsonl",
        "path: out/other.jsonl",
        "sinks.copy replace (100 bytes in the file; 2 bytes of epochs 40 to 40, decided and maybe not committed yet)",
    ),
    // Positions.
    ("topics: [payments, refunds]", "topics: [payments, more, refunds]", ""),
    ("topics: [payments, refunds]", "topics: [payments]", "sources.payments keep (refunds/0 at 5)"),
    (
        "kafka: { brokers: \"a:9092\", topics: [labels] }",
        "file: { paths: [labels.jsonl] }",
        "sources.labels replace (labels/0 at 5)",
    ),
    ("  labels:\n", "  marks:\n", "sources.labels drop (labels/0 at 5)\nsources.marks new"),
];

/// The cases, with the verdicts in full.
fn cases() -> Vec<(&'static str, &'static str, String)> {
    let waiting =
        |bytes, epoch| format!("({bytes} bytes of epochs {epoch} to {epoch}, decided and maybe not committed yet)");
    let full = |verdicts: &str| {
        let verdicts = verdicts.replace("{STATE}", "(1 key, 6 bytes of state)");
        verdicts.replace("{outbox}", &waiting(2, 40)).replace("{rows}", &waiting(3, 39))
    };
    CASES.iter().map(|(old, new, verdicts)| (*old, *new, full(verdicts))).collect()
}

#[test]
fn each_change_has_its_verdicts() {
    let before = plan(BEFORE);
    let checkpoint = checkpoint(&before);
    assert_eq!(verdicts(&Change::between(&checkpoint, &before, false).unwrap()), "");
    for (old, new, expected) in cases() {
        assert!(BEFORE.contains(old), "{old}");
        let after = plan(&BEFORE.replacen(old, new, 1));
        let change = Change::between(&checkpoint, &after, false).unwrap();
        assert_eq!(verdicts(&change), expected, "{old} -> {new}");
    }
}

#[test]
fn a_start_takes_up_what_is_kept_and_nothing_else() {
    let before = plan(BEFORE);
    for (old, new, _) in cases() {
        let after = plan(&BEFORE.replacen(old, new, 1));
        let mut taken = checkpoint(&before);
        let change = Change::between(&taken, &after, false).unwrap();
        let made = change.apply(&mut taken, &after, false, &Checkpoint::default()).unwrap();
        // Groups that begin say what stands where in their state.
        let begins = |node: &&NodeChange| matches!(node.verdict, Verdict::New | Verdict::Recompute);
        let groups = change.nodes.iter().filter(begins).filter(|node| node.node.starts_with("features."));
        let shapes = groups.map(|node| format!("{}.shape", node.node));
        let texts = (after.hash != before.hash).then(|| TEXTS.to_string());
        let shapes: Vec<String> = shapes.chain(texts).collect();
        assert_eq!(
            made.iter().map(|block| block.name.to_string()).collect::<BTreeSet<_>>(),
            shapes.iter().cloned().collect()
        );
        // What is taken up of a checkpoint of everything is what there would be of the nodes that are kept.
        let planned = after.definitions();
        let mut expected = checkpoint(&before);
        let kept = |node: &str| match node == TEXTS {
            true => after.hash == before.hash,
            false => change.nodes.iter().any(|n| n.node == node && n.verdict == Verdict::Keep),
        };
        let group = |node: &str| node.trim_end_matches(".online").trim_end_matches(".shape").to_string();
        expected.nodes.retain(|node, _| kept(&group(node)) && planned.contains_key(node));
        for block in made {
            expected.nodes.insert(block.name.to_string(), [(block.part, vec![block.bytes])].into());
        }
        expected.outbox.retain(|(sink, _), _| kept(&format!("sinks.{sink}")));
        expected.offline.retain(|table, _| kept(&format!("offline.{table}")));
        let progress = &mut expected.progress;
        progress.sinks.retain(|sink, _| kept(&format!("sinks.{sink}")));
        progress.committed.retain(|effect, _| kept(effect.trim_end_matches("/0")));
        progress.positions.retain(|source, _| kept(&format!("sources.{source}")));
        progress.event_times.retain(|source, _| kept(&format!("sources.{source}")));
        progress.topics.retain(|source, _| kept(&format!("sources.{source}")));
        if new == "topics: [payments]" {
            progress.positions.get_mut("payments").unwrap().0.remove(&("refunds".to_string(), 0));
            progress.event_times.get_mut("payments").unwrap().remove(&("refunds".to_string(), 0));
            progress.topics.get_mut("payments").unwrap().remove("refunds");
        }
        let since = |node: &String| if kept(&group(node)) { 0 } else { 40 };
        let defined = |(node, digest): (String, String)| (node.clone(), Defined { since: since(&node), digest });
        progress.definitions = after.definitions().into_iter().map(defined).collect();
        assert_eq!(taken, expected, "{old} -> {new}");
    }
}

#[test]
fn a_loss_is_refused_until_it_is_allowed_by_name() {
    let checkpoint = checkpoint(&plan(BEFORE));
    let after = plan(&BEFORE.replacen("where: amount > 0", "where: amount > 1", 1));
    let change = Change::between(&checkpoint, &after, false).unwrap();
    let allowed = |names: &[&str]| change.permit(&names.iter().map(ToString::to_string).collect::<Vec<_>>());
    let refused = allowed(&["card", "nothing"]).unwrap_err().to_string();
    let expected = "the topology has changed since the checkpoint of epoch 40, and this would be lost:\n  \
                    drift.amount is defined otherwise: 1 key, 6 bytes of state\nPut the old definitions back, let go of \
                    them with `--allow-drop drift.amount`, or start anew with `--fresh`";
    assert_eq!(refused, expected);
    assert!(allowed(&["card", "amount"]).is_ok() && allowed(&["features.card", "drift.amount"]).is_ok());
    assert!(allowed(&["features.amount", "card"]).is_err(), "of another section");
    let after = plan(&BEFORE.replacen("topic: seen }", "topic: elsewhere }", 1));
    let refused = Change::between(&checkpoint, &after, false).unwrap().permit(&[]).unwrap_err().to_string();
    assert!(refused.contains("stopped with SIGTERM") && refused.contains("--allow-drop sinks.seen"), "{refused}");
}

/// A build that wrote no parts of states did not say in which frame they are. Before the first part is written it is said.
#[test]
fn what_an_older_build_did_not_say_of_a_group_is_said() {
    let plan = plan(BEFORE);
    let mut taken = checkpoint(&plan);
    let group = plan.groups.iter().find(|group| group.path() == "features.card").unwrap();
    let state = Layout::of(group).state();
    let (_, said) = rows::read(&state[&0][0]).next().unwrap().unwrap();
    let mut said: serde_json::Value = serde_json::from_slice(said.whole().unwrap().unwrap()).unwrap();
    said["shape"].as_object_mut().unwrap().remove("frame").unwrap();
    let mut writer = rows::Writer::default();
    writer.put(b"layout", |bytes| bytes.extend(serde_json::to_vec(&said).unwrap()));
    taken.nodes.insert("features.card.shape".to_string(), [(0, vec![writer.finish()])].into());
    for made in [
        vec![Block {
            kind: Kind::State,
            name: "features.card.shape".into(),
            part: 0,
            epoch: 41,
            bytes: state[&0][0].clone(),
        }],
        vec![],
    ] {
        let change = Change::between(&taken, &plan, false).unwrap();
        assert!(change.is_none(), "{change:?}");
        assert_eq!(change.apply(&mut taken, &plan, false, &Checkpoint::default()).unwrap(), made);
        assert_eq!(taken.nodes["features.card.shape"][&0].last(), state[&0].last());
    }
}

/// A second instance has seen what the first has: it begins with the same state, which the next checkpoint must bring.
#[test]
fn a_further_instance_of_a_group_begins_with_the_state_of_the_first() {
    let twice = BEFORE.replacen("vectors:", "vectors:\n  again: { spine: paid, join: [{ features: card }] }", 1);
    let (once, twice) = (plan(BEFORE), plan(&twice));
    let mut taken = checkpoint(&once);
    let change = Change::between(&taken, &twice, false).unwrap();
    assert!(change.is_none(), "{change:?}");
    let mut made = change.apply(&mut taken, &twice, false, &Checkpoint::default()).unwrap();
    made.retain(|block| &*block.name != TEXTS);
    assert_eq!(taken.nodes["features.card#2"], taken.nodes["features.card"]);
    let state = &taken.nodes["features.card"][&3][0];
    let block = Block { kind: Kind::State, name: "features.card#2".into(), part: 3, epoch: 41, bytes: state.clone() };
    assert_eq!(made, [block]);
    assert_eq!(taken.progress.definitions["features.card#2"].since, 40);
    // The first is left alone when the second goes.
    let mut taken = checkpoint(&twice);
    let change = Change::between(&taken, &once, false).unwrap();
    assert!(change.is_none());
    let made = change.apply(&mut taken, &once, false, &Checkpoint::default()).unwrap();
    assert!(made.iter().all(|block| &*block.name == TEXTS), "{made:?}");
    assert_eq!(
        taken.nodes.keys().collect::<Vec<_>>(),
        [
            "drift.amount",
            "features.card",
            "features.card.online",
            "features.card.shape",
            "features.shop",
            "features.shop.online",
            "features.shop.shape",
            TEXTS
        ]
    );
}

/// Streams without state have no identity of their own: another name, or another order in the file, is the same.
#[test]
fn names_of_streams_and_the_order_of_the_file_do_not_count() {
    let checkpoint = checkpoint(&plan(BEFORE));
    let renamed = BEFORE.replace("paid", "settled");
    let (head, sources) = BEFORE.split_once("  payments:\n").unwrap();
    let (payments, rest) = sources.split_once("  labels:\n").unwrap();
    let (labels, rest) = rest.split_once("prepare:\n").unwrap();
    let reordered = format!("{head}  labels:\n{labels}  payments:\n{payments}prepare:\n{rest}");
    for text in [renamed, reordered] {
        assert_ne!(text, BEFORE);
        let change = Change::between(&checkpoint, &plan(&text), false).unwrap();
        assert!(change.is_none(), "{}\n{text}", verdicts(&change));
    }
}

/// An aggregate more or less: the others go on, and what is gone is lost only by name.
#[test]
fn a_group_goes_on_with_the_aggregates_that_stay() {
    let before = plan(BEFORE);
    let shape = begin(&before).into_iter().find(|block| &*block.name == "features.card.shape").unwrap();
    let mut of_all = checkpoint(&before);
    of_all.nodes.insert("features.card.shape".into(), [(shape.part, vec![shape.bytes])].into());
    // What stands in the state of a key is the operator's; here it is enough that it has some.
    let sums = "{ of: amount, ops: [count, sum], windows: [1h] }";
    let cases = [
        ("{ of: amount, ops: [sum, max], windows: [1h, 2h] }", "features.card extend"),
        (
            "{ of: amount, ops: [count], windows: [30m] }, { of: amount * 2, as: twice, ops: [sum], windows: [1h] }",
            "features.card extend",
        ),
        (
            "{ of: amount * 2, as: twice, ops: [sum], windows: [1h] }, { ops: [count], windows: [1h] }",
            "features.card recompute (1 key, 6 bytes of state)",
        ),
    ];
    for (aggregates, expected) in cases {
        let after = plan(&BEFORE.replacen(sums, aggregates, 1));
        assert_eq!(verdicts(&Change::between(&of_all, &after, false).unwrap()), expected, "{aggregates}");
    }
    let two = BEFORE.replacen(sums, "{ of: amount, ops: [sum], windows: [1h] }, { ops: [count], windows: [1h] }", 1);
    let (two, mut of_two) = (plan(&two), checkpoint(&plan(&two)));
    let shape = begin(&two).into_iter().find(|block| &*block.name == "features.card.shape").unwrap();
    of_two.nodes.insert("features.card.shape".into(), [(shape.part, vec![shape.bytes])].into());
    let change = Change::between(&of_two, &before, false).unwrap();
    assert_eq!(verdicts(&change), "features.card extend (1 of 2 aggregates of 1 key)");
    assert!(change.permit(&[]).is_err() && change.permit(&["card".to_string()]).is_ok());
    // A backfill brings nothing back that was taken out.
    let mut filling = change.clone();
    filling.backfill(&["card".to_string()], &before).unwrap();
    assert_eq!(verdicts(&filling), "features.card backfill (1 of 2 aggregates of 1 key)");
    assert!(filling.permit(&[]).is_err());
    // State that is not what it is said to be is damage.
    assert!(change.apply(&mut of_two, &before, false, &Checkpoint::default()).is_err());
}

/// A build that computes another digest of the same definition would drop the state of every job that is upgraded to it: what
/// is digested may get a field only if nothing is written for its default.
#[test]
fn digests_are_those_that_checkpoints_have() {
    let mut definitions = plan(BEFORE).definitions();
    // That one only says that something has changed.
    assert!(definitions.remove(TEXTS).is_some());
    let found: Vec<String> = definitions.iter().map(|(node, digest)| format!("{node} {digest}")).collect();
    let expected = [
        "drift.amount 05bb810f722deb7f",
        "features.card a417900bb0068f3c",
        "features.card.online a417900bb0068f3c",
        "features.card.shape a417900bb0068f3c",
        "features.shop e83a05e8442fdbe3",
        "features.shop.online e83a05e8442fdbe3",
        "features.shop.shape e83a05e8442fdbe3",
        "offline.seen dce72d28dec8f1fc",
        "sinks.copy afb54b7d4d29241c",
        "sinks.seen c621204e326e165a",
        "sources.labels 91dfd0b1d70207b9",
        "sources.payments 91dfd0b1d70207b9",
    ];
    assert_eq!(found, expected);
}

/// A node whose own text is what it was names what it reads and what has changed.
#[test]
fn a_node_that_is_defined_otherwise_says_why() {
    let mut known = checkpoint(&plan(BEFORE));
    let texts = begin(&plan(BEFORE)).into_iter().find(|block| &*block.name == TEXTS).unwrap();
    known.nodes.insert(TEXTS.into(), [(texts.part, vec![texts.bytes])].into());
    let because = |old: &str, new: &str| {
        let change = Change::between(&known, &plan(&BEFORE.replacen(old, new, 1)), false).unwrap();
        let told = change.nodes.iter().filter(|node| !node.because.is_empty());
        let told: Vec<String> = told.map(|node| format!("{}: {}", node.node, node.because.join(" "))).collect();
        (told.join(", "), change.permit(&[]).err().map(|refused| refused.to_string()).unwrap_or_default())
    };
    let (told, refused) = because("where: amount > 0", "where: amount > 1");
    assert_eq!(told, "drift.amount: prepare.paid, features.card: prepare.paid");
    assert!(refused.contains("features.card is defined otherwise, since prepare.paid has changed: 1 key"), "{refused}");
    let (told, refused) = because("threshold: 20", "threshold: 21");
    assert_eq!(told, "drift.amount: drift.amount");
    assert!(refused.contains("drift.amount is defined otherwise: 1 key"), "{refused}");
    assert_eq!(
        because("    schema: { id: string, card", "    ranges: { amount: { max: 9 } }\n    schema: { id: string, card")
            .0,
        "drift.amount: sources.payments, features.card: sources.payments, features.shop: sources.payments"
    );
    assert_eq!(because("name: job", "name: job\nengine: { workers: 4 }").0, "");
}
