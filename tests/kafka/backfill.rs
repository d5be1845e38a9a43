//! Feature groups that a changed file brings begin with what the job has read before.

use serde_json::Value;

use super::change::{CARDS, change, kill, plan, send, service, stop, vectors};
use super::service::{Service, address, get};
use super::*;
use crate::program::{Running, Said, until};

/// What `millstream backfill` says.
fn backfill(service: &Service, groups: &[&str]) -> Said {
    Running::start(service.command().arg("backfill").arg(service.topology()).arg("--json").args(groups)).end()
}

fn filled(service: &Service, groups: &[&str]) -> Value {
    let said = backfill(service, groups);
    assert!(said.status.success(), "{}", said.err);
    serde_json::from_str(&said.out).unwrap()
}

/// The file's changes: a group that is new, and an aggregate more in one that goes on.
fn more_features(service: &Service) {
    change(
        service,
        "vectors:\n",
        "  pair: { from: payments, key: [card, shop], aggregates: [{ as: seen, ops: [count], windows: [30d] }] }\nvectors:\n",
    );
    change(service, "- { features: shop }", "- { features: shop }\n      - { features: pair }");
    change(
        service,
        "      - { of: amount, ops: [count, sum]",
        "      - { of: id, ops: [min], windows: [30d] }\n      - { of: amount, ops: [count, sum]",
    );
}

/// The vectors of `ids` are those of a job that had all features from the beginning.
fn expect_all(service: &Service, ids: std::ops::Range<i64>) {
    let all = vectors(service, "vectors");
    for id in ids {
        let vector = &all[&id];
        let of_card: Vec<i64> = (0..=id).filter(|other| other % CARDS == id % CARDS).collect();
        for (feature, value) in [
            // A card goes to one shop, so a pair is as often there as its card.
            ("pair.seen_count_30d", of_card.len() as i64),
            ("card.id_min_30d", id % CARDS),
            ("card.amount_count_30d", of_card.len() as i64),
            ("card.amount_sum_30d", of_card.iter().sum()),
        ] {
            assert_eq!(vector[feature].as_f64(), Some(value as f64), "{feature} of {id}: {vector}");
        }
    }
}

#[test]
fn a_new_group_begins_with_what_was_read_before() {
    let service = service();
    send(&service, 0..3_000);
    let mut running = service.run(&["--http", "off"]);
    service.until("vectors", 3_000, &mut running);

    // Beside the running job. What it reads meanwhile is not the backfill's yet.
    more_features(&service);
    let first = filled(&service, &["pair", "features.card"]);
    assert_eq!((&first["ended"], &first["records"]["payments"]), (&"filled".into(), &3_000.into()), "{first}");
    assert_eq!(first["groups"]["features.pair"]["keys"], CARDS, "{first}");
    send(&service, 3_000..3_600);
    service.until("vectors", 3_600, &mut running);
    kill(running);

    // What it has made stands before the checkpoint now. A start says what it would do, and does the rest first.
    let options = ["--backfill", "pair", "--backfill", "card"];
    let (code, would, nodes) = plan(&service, &options);
    assert_eq!((code, would.as_str()), (Some(0), "goes on"));
    for group in ["features.pair", "features.card"] {
        assert_eq!((nodes[group].0.as_str(), nodes[group].2), ("backfill", false));
    }
    let mut running = service.run(&[&options[..], &["--http", "127.0.0.1:0"]].concat());
    // What is served is there before the next record is.
    let served: Value = serde_json::from_str(&get(&address(&mut running), "/v1/features/card/7")).unwrap();
    assert_eq!(served["features"]["id_min_30d"], 7.0, "{served}");
    assert_eq!(served["features"]["amount_count_30d"], 3_600 / CARDS, "{served}");
    send(&service, 3_600..3_900);
    service.until("vectors", 3_900, &mut running);
    kill(running);

    // The job has it: the same command line starts it again, with as many workers as one likes, and there is nothing to fill.
    send(&service, 3_900..4_200);
    let mut running = service.run(&[&options[..], &["--http", "off", "--workers", "3"]].concat());
    service.until("vectors", 4_200, &mut running);
    let said = stop(running);
    assert!(said.err.contains("as they are defined"), "{}", said.err);
    expect_all(&service, 3_600..4_200);
    assert_eq!(vectors(&service, "vectors").len(), 4_200);
    assert_eq!(filled(&service, &["pair"])["ended"], "nothing");
}

/// A backfill that is killed goes on; the processes of a job find what it has made.
#[test]
fn a_backfill_that_was_killed_goes_on_and_processes_take_it_up() {
    let service = service();
    send(&service, 0..21_000);
    let mut running = service.run(&["--http", "off"]);
    service.until("vectors", 21_000, &mut running);
    stop(running);
    more_features(&service);
    let mut killed = Running::start(service.command().arg("backfill").arg(service.topology()).args(["pair", "card"]));
    until(&mut killed, "\"reading\"");
    kill(killed);
    let mut running = service.run(&["--http", "off", "--processes", "2", "--backfill", "pair", "--backfill", "card"]);
    send(&service, 21_000..21_300);
    service.until("vectors", 21_300, &mut running);
    stop(running);
    expect_all(&service, 21_000..21_300);
}

/// Retention has removed the older half of a partition: the sums that go on lack nothing, and what is new has what there is.
#[test]
fn what_goes_on_lacks_nothing_where_the_topics_hold_less() {
    let service = service();
    send(&service, 0..3_000);
    let mut running = service.run(&["--http", "off"]);
    service.until("vectors", 3_000, &mut running);
    stop(running);
    // Each third event is there.
    let first_kept = |card: i64| if card % 3 == 0 { 1_500 + card } else { card };
    delete_before(&service.brokers, &service.topic("payments"), 0, 500);
    more_features(&service);
    let options = ["--backfill", "pair", "--backfill", "card"];
    let mut running = service.run(&[&options[..], &["--http", "127.0.0.1:0"]].concat());
    let address = address(&mut running);
    for card in 0..CARDS {
        let served: Value = serde_json::from_str(&get(&address, &format!("/v1/features/card/{card}"))).unwrap();
        let served = &served["features"];
        assert_eq!(served["amount_count_30d"], 3_000 / CARDS, "{card}: {served}");
        assert_eq!(served["id_min_30d"], first_kept(card) as f64, "{card}: {served}");
    }
    send(&service, 3_000..3_300);
    service.until("vectors", 3_300, &mut running);
    stop(running);
    let all = vectors(&service, "vectors");
    for id in 3_000..3_300 {
        let (vector, card) = (&all[&id], id % CARDS);
        let of_card = |first: i64| (0..=id).filter(move |other| *other >= first && other % CARDS == card);
        for (feature, value) in [
            ("card.amount_count_30d", of_card(0).count() as i64),
            ("card.amount_sum_30d", of_card(0).sum()),
            ("card.id_min_30d", first_kept(card)),
            ("pair.seen_count_30d", of_card(first_kept(card)).count() as i64),
        ] {
            assert_eq!(vector[feature].as_f64(), Some(value as f64), "{feature} of {id}: {vector}");
        }
    }
}

/// A source that the job has not read, a topic without a record, a group that nobody is in: there is nothing to fill them with, and
/// the job starts.
#[test]
fn a_group_of_a_new_source_begins_empty() {
    let service = service().create([("refunds", 1)]);
    send(&service, 0..300);
    let mut running = service.run(&["--http", "off"]);
    service.until("vectors", 300, &mut running);
    stop(running);
    more_features(&service);
    change(
        &service,
        "features:\n",
        "  refunds:\n    from: { kafka: { brokers: \"${BROKERS}\", topics: [\"${RUN}-refunds\"] } }\n    \
         schema: { id: int64, card: int64 }\nfeatures:\n  back: { from: refunds, key: [card], aggregates: [{ ops: [count], windows: \
         [30d] }] }\n",
    );
    let made = filled(&service, &["back"]);
    assert_eq!(
        (&made["ended"], &made["groups"]["features.back"]),
        (&"filled".into(), &serde_json::json!({})),
        "{made}"
    );
    let options = ["--http", "off", "--backfill", "back", "--backfill", "pair", "--backfill", "card"];
    let mut running = service.run(&options);
    send(&service, 300..600);
    service.until("vectors", 600, &mut running);
    stop(running);
    expect_all(&service, 300..600);
}

#[test]
fn what_cannot_be_filled_is_refused() {
    let service = service();
    assert_eq!(filled(&service, &["card"])["ended"], "nothing", "the job has not begun");
    send(&service, 0..90);
    let mut running = service.run(&["--http", "off"]);
    service.until("vectors", 90, &mut running);
    stop(running);
    assert_eq!(filled(&service, &["card"])["ended"], "nothing", "it has the group");
    // What is gone from the topic is missing, and that is said.
    delete_before(&service.brokers, &service.topic("payments"), 0, 10);
    more_features(&service);
    let said = backfill(&service, &["pair"]);
    let made: Value = serde_json::from_str(&said.out).unwrap_or_else(|error| panic!("{error}: {}", said.err));
    assert_eq!((&made["ended"], &made["records"]["payments"]), (&"filled".into(), &80.into()), "{made}");
    assert!(said.err.contains("the records before are gone") && said.err.contains("\"first\":10"), "{}", said.err);
    let said = backfill(&service, &["amount"]);
    assert_eq!(said.status.code(), Some(2), "{}", said.err);
    assert!(said.err.contains("`amount` is no feature group") && said.err.contains("card, shop"), "{}", said.err);
    let said = service.run(&["--backfill", "card", "--from", "there"]).end();
    assert_eq!(said.status.code(), Some(2), "{}", said.err);
}
