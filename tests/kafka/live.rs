//! `millstream run` on topics, as those who operate it see it: predictions with headers, dead letters with their bytes, a
//! stop and a start between which nothing is lost and nothing repeated, errors that end it.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use super::service::{Service, ask_for, get};
use super::*;
use crate::program::{Running, first_address, read_summary, said, total, until};

/// The topology that scores payments, and its topics.
fn service() -> Service {
    Service::new(brokers(), "live").create([("payments", 3), ("predictions", 2), ("rejects", 1)])
}

/// Starts it with so many workers.
fn run(service: &Service, workers: usize) -> Running {
    service.run(&["--workers", &workers.to_string(), "--http", "off"])
}

/// Writes payments with `millstream produce`.
fn produce(service: &Service, ids: std::ops::Range<u32>) {
    let path = service.folder().join("payments.jsonl");
    let line = |id| format!("{{\"id\":\"p{id}\",\"amount\":{id}.5,\"balance\":100,\"age_days\":3,\"hour\":12}}\n");
    std::fs::write(&path, ids.map(line).collect::<String>()).unwrap();
    said(service.command().arg("produce").arg(path).args(["--topic", &service.topic("payments"), "--key", "id"]));
}

/// Holds what `millstream checkpoint` says against what the job did; damages a copy, which must be found.
fn check_checkpoints(service: &Service) {
    let said = |what: &str, path: &Path| {
        let mut command = service.command();
        Running::start(command.args(["checkpoint", what, "--json"]).arg(path)).end()
    };
    let json = |what| -> Value {
        let said = said(what, &service.topology());
        serde_json::from_str(&said.out).unwrap_or_else(|error| panic!("{error}: {}{}", said.out, said.err))
    };
    let contents = json("inspect");
    assert_eq!(contents["epoch"], json("list").as_array().unwrap().last().unwrap()["epoch"]);
    assert_eq!(
        (&contents["job"], contents["nodes"]["features.spent"]["keys"].as_u64()),
        (&service.run.clone().into(), Some(300))
    );
    let taken: i64 = (0..3)
        .map(|at| contents["positions"]["payments"][format!("{}/{at}", service.topic("payments"))].as_i64().unwrap())
        .sum();
    assert_eq!(taken, 302);
    assert_eq!(json("verify")["epoch"], contents["epoch"]);

    let copy = service.folder().join("copy");
    for folder in ["manifest", "seg"] {
        std::fs::create_dir_all(copy.join(folder)).unwrap();
        for entry in std::fs::read_dir(service.folder().join("state").join(folder)).unwrap() {
            let path = entry.unwrap().path();
            std::fs::copy(&path, copy.join(folder).join(path.file_name().unwrap())).unwrap();
        }
    }
    let segment = std::fs::read_dir(copy.join("seg")).unwrap().next().unwrap().unwrap().path();
    let mut bytes = std::fs::read(&segment).unwrap();
    bytes[40] ^= 1;
    std::fs::write(&segment, bytes).unwrap();
    let said = said("verify", &copy);
    assert_eq!(said.status.code(), Some(5), "{}", said.err);
    assert!(said.err.contains(&*segment.to_string_lossy()), "{}", said.err);
}

/// The headers of a message.
fn headers(message: &Value) -> BTreeMap<&str, &str> {
    let pairs = message["headers"].as_array().unwrap().iter();
    pairs.map(|pair| (pair[0].as_str().unwrap(), pair[1].as_str().unwrap())).collect()
}

/// Waits for the end of a program that fails; gives what it said.
fn failure(running: Running) -> String {
    let said = running.end();
    assert_eq!(said.status.code(), Some(1), "{}", said.err);
    said.err
}

#[test]
fn a_service_that_is_stopped_goes_on_where_it_was() {
    let service = service();
    produce(&service, 0..300);
    let bad: [&[u8]; 2] = [b"\xff\x00 not json", b"{\"id\":\"x\",\"amount\":\"ten\"}"];
    write(&service.brokers, &service.topic("payments"), bad.map(|bytes| (1, bytes)));

    let mut running = run(&service, 2);
    service.until("predictions", 300, &mut running);
    service.until("rejects", 2, &mut running);
    running.terminate();
    let first = read_summary(&running.end());
    assert_eq!((first["ended"].as_str(), total(&first["events"])), (Some("stopped"), 302));

    check_checkpoints(&service);

    // What comes while it is down is taken up by the next start, which has another number of workers.
    produce(&service, 300..500);
    let mut running = run(&service, 3);
    service.until("predictions", 500, &mut running);
    running.terminate();
    let second = read_summary(&running.end());
    assert_eq!(total(&second["events"]), 200, "{second}");

    let predictions = service.consume("predictions");
    let ids: BTreeMap<&str, u64> = predictions.iter().fold(BTreeMap::new(), |mut ids, message| {
        *ids.entry(message["value"]["id"].as_str().unwrap()).or_default() += 1;
        ids
    });
    assert_eq!((ids.len(), predictions.len()), (500, 500), "each once");
    for message in &predictions {
        let headers = headers(message);
        let id = format!("{}-{}-{}-7", headers["topic"], headers["partition"], headers["offset"]);
        assert_eq!((headers["prediction_id"], headers["model"], headers["model_version"]), (&*id, "fraud", "7"));
        assert_eq!(headers["topic"], service.topic("payments"));
        assert_eq!(message["key"], message["value"]["id"]);
        assert!(message["value"]["score"].as_f64().is_some_and(|score| (0.0..=1.0).contains(&score)), "{message}");
    }
    check_dead_letters(&service, &bad);
}

/// Brokers would abort the transactions in a quarter of an hour; until then a reader of committed records gets none.
/// A source that is reached later than another does not find that time has gone by: nothing that its events ask for is dropped, and
/// they are not late.
#[test]
fn a_source_that_is_not_reached_yet_holds_the_time() {
    let service = Service::new(brokers(), "late_source").create([("payments", 1), ("answers", 1)]);
    // A payment a second, for two hours.
    let payments = |seconds: std::ops::Range<u64>| seconds.map(|at| format!("{{\"at\":{at},\"card\":1}}"));
    service.send("payments", 1, payments(1..7_200));
    let mut running = service.run(&["--http", "off"]);
    until(&mut running, "\"source\":\"payments\"");
    // A topic that brokers don't know is waited for, for three seconds. Meanwhile epochs go by, and the card has more payments.
    std::thread::sleep(Duration::from_millis(700));
    service.send("payments", 1, payments(7_200..7_210));
    std::thread::sleep(Duration::from_millis(500));
    create(&service.brokers, &service.topic("questions"), 1, &[]);
    let questions = [30, 600, 3_600, 7_209].into_iter().enumerate();
    service.send("questions", 1, questions.map(|(id, at)| format!("{{\"id\":{id},\"at\":{at},\"card\":1}}")));
    service.until("answers", 4, &mut running);
    running.terminate();
    let said = running.end();
    assert!(said.status.success(), "{}", said.err);
    let counts = service.consume("answers").into_iter().map(|answer| answer["value"]["card.count_1m"].as_u64());
    assert_eq!(counts.collect::<Vec<_>>(), [30, 60, 60, 60].map(Some));
}

#[test]
fn what_a_first_start_left_open_is_ended_by_one_with_fewer_workers() {
    let service = service().set("TRANSACTIONS", "15m");
    produce(&service, 0..300);
    let mut command = service.command();
    command.arg("run").arg(service.topology()).args(["--workers", "3", "--http", "off"]).env("EPOCH", "5s");
    command.env("MILLSTREAM_FAILPOINTS", "checkpoint-gathered=kill@1");
    let died = Running::start(&mut command).end();
    assert!(!died.status.success(), "{}", died.err);
    assert_eq!(service.newest_epoch(), 0);
    let written = |isolation: &str| {
        let mut command = service.command();
        command.args(["consume", &service.topic("predictions"), "--until-end", "--json", "--isolation", isolation]);
        said(&mut command).lines().count()
    };
    assert_eq!((written("committed"), written("uncommitted")), (0, 300), "three workers have left transactions open");

    let mut running = run(&service, 1);
    service.until("predictions", 300, &mut running);
    running.terminate();
    assert_eq!(service.consume("predictions").len(), 300);
}

/// Dead letters are the bytes as they came, and headers that say why.
fn check_dead_letters(service: &Service, bad: &[&[u8]]) {
    let consumer: BaseConsumer = client(&service.brokers).set("group.id", unique("live")).create().unwrap();
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(&service.topic("rejects"), 0, Offset::Beginning).unwrap();
    consumer.assign(&list).unwrap();
    for bytes in bad {
        let message = consumer.poll(LONG).expect("there are dead letters").unwrap();
        assert_eq!(rdkafka::Message::payload(&message), Some(*bytes));
    }
    let reasons: Vec<Value> = service.consume("rejects");
    let reasons: Vec<_> = reasons.iter().map(|message| headers(message)).collect();
    assert_eq!(reasons.len(), bad.len());
    for (headers, reason) in reasons.iter().zip(["malformed", "wrong_type"]) {
        assert_eq!((headers["stage"], headers["reason"]), ("payments", reason));
        assert_eq!((headers["topic"], headers["partition"]), (&*service.topic("payments"), "1"));
    }
}

#[test]
fn an_empty_topic_is_waited_at() {
    let service = service();
    assert_eq!(service.consume("payments"), Vec::<Value>::new());
    let mut running = run(&service, 2);
    let deadline = Instant::now() + LONG;
    while !running.err().contains("\"reading\"") {
        assert!(running.runs() && Instant::now() < deadline, "{}", running.err());
    }
    running.terminate();
    let summary = read_summary(&running.end());
    assert_eq!((&summary["ended"], total(&summary["events"])), (&"stopped".into(), 0));

    // The positions of the empty partitions were kept: what came while it was down is not skipped.
    produce(&service, 0..20);
    let mut running = run(&service, 1);
    service.until("predictions", 20, &mut running);
    running.terminate();
    assert_eq!(total(&read_summary(&running.end())["events"]), 20);
}

#[test]
fn partitions_that_are_added_are_read_from_their_beginning() {
    let service = service();
    produce(&service, 0..30);
    let mut running = run(&service, 2);
    service.until("predictions", 30, &mut running);
    // It takes the job some seconds to find them; by then they have messages.
    add_partitions(&service.brokers, &service.topic("payments"), 5);
    let payment = |id| format!("{{\"id\":\"{id}\",\"amount\":1,\"balance\":1,\"age_days\":1,\"hour\":1}}");
    let added: Vec<(i32, String)> = (0..10).map(|n| (3 + n % 2, payment(format!("added-{n}")))).collect();
    write(
        &service.brokers,
        &service.topic("payments"),
        added.iter().map(|(partition, value)| (*partition, value.as_bytes())),
    );
    service.until("predictions", 40, &mut running);
    running.terminate();
    let summary = read_summary(&running.end());
    assert_eq!(total(&summary["events"]), 40, "{summary}");

    let predictions = service.consume("predictions");
    let headers: Vec<_> = predictions.iter().map(headers).collect();
    for partition in ["3", "4"] {
        let of_it = headers.iter().filter(|headers| headers["partition"] == partition);
        let mut offsets: Vec<&str> = of_it.map(|headers| headers["offset"]).collect();
        offsets.sort_unstable();
        assert_eq!(offsets, ["0", "1", "2", "3", "4"], "of partition {partition}");
    }
}

#[test]
fn partitions_that_are_added_while_the_job_is_down_are_read_and_a_topic_made_anew_is_not() {
    let service = service().set("START", "latest");
    let mut running = run(&service, 2);
    let deadline = Instant::now() + LONG;
    while !running.err().contains("\"reading\"") {
        assert!(running.runs() && Instant::now() < deadline, "{}", running.err());
    }
    produce(&service, 0..30);
    service.until("predictions", 30, &mut running);
    running.terminate();
    assert_eq!(total(&read_summary(&running.end())["events"]), 30);

    let topic = service.topic("payments");
    add_partitions(&service.brokers, &topic, 4);
    let payment = |id| format!("{{\"id\":\"{id}\",\"amount\":1,\"balance\":1,\"age_days\":1,\"hour\":1}}");
    let added: Vec<String> = (0..10).map(|n| payment(format!("added-{n}"))).collect();
    write(&service.brokers, &topic, added.iter().map(|value| (3, value.as_bytes())));
    let mut running = run(&service, 1);
    service.until("predictions", 40, &mut running);
    running.terminate();
    assert_eq!(total(&read_summary(&running.end())["events"]), 10);

    // It has more than was read of the one before: no position is beyond its end.
    delete(&service.brokers, &topic);
    create(&service.brokers, &topic, 4, &[]);
    service.send("payments", 4, (0..100).map(|n| payment(format!("anew-{n}"))));
    let said = run(&service, 1).end();
    assert_eq!(said.status.code(), Some(3), "{}", said.err);
    assert!(said.err.contains("the topic was made anew: its id was "), "{}", said.err);
    assert_eq!(service.consume("predictions").len(), 40);
}

#[test]
fn a_message_of_any_size_becomes_a_dead_letter_that_its_topic_takes() {
    let service = Service::new(brokers(), "live").create([("predictions", 1), ("rejects", 1)]);
    create(&service.brokers, &service.topic("payments"), 1, &[("max.message.bytes", "4000000")]);
    // As large as a source takes, and larger: the topic of the dead letters takes no more than a topic does by default.
    let bad = [vec![b'x'; 1 << 20], vec![b'x'; 3_000_000], vec![b'x'; 1_000]];
    write(&service.brokers, &service.topic("payments"), bad.iter().map(|bytes| (0, bytes.as_slice())));
    produce(&service, 0..10);
    let mut running = run(&service, 1);
    service.until("predictions", 10, &mut running);
    service.until("rejects", 3, &mut running);
    running.terminate();
    assert_eq!(total(&read_summary(&running.end())["events"]), 13);

    let rejects = service.consume("rejects");
    let told: Vec<_> =
        rejects.iter().map(headers).map(|said| (said["reason"], said.get("cut_from").copied())).collect();
    assert_eq!(told, [("malformed", Some("1048576")), ("too_large", Some("1048577")), ("malformed", None)]);
}

#[test]
fn a_timestamp_far_ahead_is_a_dead_letter() {
    let service = Service::new(brokers(), "live").create([("predictions", 1), ("rejects", 1)]);
    let any_time = ("message.timestamp.after.max.ms", "9223372036854775807");
    create(&service.brokers, &service.topic("payments"), 1, &[any_time]);
    let payment = br#"{"id":"a","amount":1,"balance":1,"age_days":1,"hour":1}"#.as_slice();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64;
    let in_2999 = 32_472_144_000_000;
    let stamps = [now, in_2999, now + 1];
    write_at(&service.brokers, &service.topic("payments"), stamps.map(|stamp| (0, payment, stamp)));
    let mut running = run(&service, 1);
    service.until("predictions", 2, &mut running);
    service.until("rejects", 1, &mut running);
    running.terminate();
    let summary = read_summary(&running.end());
    assert_eq!((total(&summary["events"]), total(&summary["late"])), (3, 0), "{summary}");
    let rejects = service.consume("rejects");
    assert_eq!(headers(&rejects[0])["reason"], "bad_event_time");
    assert_eq!(service.consume("predictions").len(), 2);
}

#[test]
fn a_topic_that_is_not_there_is_an_error() {
    let service = Service::new(brokers(), "live");
    let said = failure(run(&service, 1));
    assert!(said.contains(&service.topic("payments")) || said.contains(&service.topic("predictions")), "{said}");
    assert!(said.contains("does not exist"), "{said}");
    assert_eq!(service.newest_epoch(), 0, "nothing was decided");
    let segments = std::fs::read_dir(service.folder().join("state/seg"));
    assert_eq!(segments.map_or(0, Iterator::count), 0, "there is nothing to keep");
}

#[test]
fn a_broker_that_does_not_answer_is_named_and_waited_for() {
    // A port that was free a moment ago.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let service = Service::new(format!("127.0.0.1:{port}"), "live");
    let mut running = service.run(&["--http", "127.0.0.1:0"]);
    // It says how it is meanwhile: nobody who asks takes it for dead.
    let address = first_address(&mut running);
    until(&mut running, &service.brokers);
    get(&address, "/livez");
    for path in ["/startupz", "/readyz"] {
        let body = ask_for(&address, "GET", path, 503);
        assert!(body.contains("\"reason\":\"starting\""), "{body}");
    }
    running.terminate();
    let said = running.end();
    assert_eq!(said.status.code(), Some(143), "{}", said.err);
}
