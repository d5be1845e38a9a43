//! The HTTP interface over a socket.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray};
use millstream_operators::features::VALID_UNTIL;
use millstream_operators::{Batch, Row};
use serde_json::json;

use super::*;
use crate::checkpoint::{Progress, Store};
use crate::metrics;
use crate::online::{KEY, OnlineGroup};

fn online() -> Arc<OnlineStore> {
    let keys: ArrayRef = Arc::new(StringArray::from(vec!["JFK", "a/b|c", "JFK"]));
    let means: ArrayRef = Arc::new(Float64Array::from(vec![Some(1.5), None, Some(2.5)]));
    let until: ArrayRef = Arc::new(Int64Array::from(vec![Some(2_200), None, Some(4_000)]));
    let columns = [(KEY, keys, true), ("mean", means, true), (VALID_UNTIL, until, true)];
    let records = RecordBatch::try_from_iter_with_nullable(columns).expect("columns");
    let group = OnlineGroup { name: "by_origin".into(), schema: records.schema(), ttl: None };
    let store = OnlineStore::new(&[group]).expect("a group");
    let row = |event_time| Row { source: 0, partition: 0, offset: 0, event_time, arrived_micros: 0 };
    store.publish(0, &Batch::new(records, vec![row(1_000), row(2_000), row(3_000)])).expect("publishes");
    Arc::new(store)
}

fn server(online: Option<Arc<OnlineStore>>) -> (Server, Arc<Health>) {
    let expected = Expected { workers: 1, sources: vec!["flights".into()], ..Expected::default() };
    let health = Arc::new(Health::new(expected));
    let about = Box::new(|| json!({ "job": "flights" }));
    let online = online.map_or_else(Features::default, |online| Arc::new(OnceLock::from(online)));
    let serve = Serve { health: health.clone(), exporter: metrics::install(), online, state: None, about };
    (start("127.0.0.1:0", serve).expect("a free port"), health)
}

/// Sends `request` and gives the status, the head and the body of the answer.
fn send(server: &Server, request: &str) -> (u16, String, String) {
    let mut stream = TcpStream::connect(server.address()).expect("connects");
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
    stream.write_all(request.as_bytes()).expect("sends");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("answers");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status");
    (status, head.to_lowercase(), body.to_owned())
}

fn get(server: &Server, path: &str) -> (u16, String) {
    let (status, head, body) = send(server, &format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"));
    assert!(status < 400 || status == 503 || head.contains("application/problem+json"), "{head}");
    (status, body)
}

fn get_json(server: &Server, path: &str) -> (u16, Value) {
    let (status, body) = get(server, path);
    (status, serde_json::from_str(&body).unwrap_or_else(|error| panic!("{error}: {body}")))
}

fn post(server: &Server, path: &str, kind: &str, body: &str) -> (u16, String) {
    let length = body.len();
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: {kind}\r\ncontent-length: {length}"
    );
    let (status, _, body) = send(server, &format!("{head}\r\n\r\n{body}"));
    (status, body)
}

#[test]
fn health_follows_the_job() {
    let (server, health) = server(None);
    assert_eq!((get(&server, "/startupz").0, get(&server, "/livez").0, get(&server, "/readyz").0), (503, 200, 503));
    let (_, ready) = get_json(&server, "/readyz");
    assert_eq!(
        ready["checks"][1],
        json!({
            "check": "sources", "ok": false, "reason": "source_not_assigned", "detail": "source `flights`"
        })
    );
    health.set_assigned(0, true);
    health.set_running();
    health.epoch_opened(4);
    health.epoch_committed(3);
    assert_eq!((get(&server, "/startupz").0, get(&server, "/livez").0, get(&server, "/readyz").0), (200, 200, 200));
    let (code, status) = get_json(&server, "/v1/status");
    assert_eq!((code, &status["job"], &status["stage"]), (200, &json!("flights"), &json!("running")));
    assert_eq!((&status["epochs"]["open"], &status["epochs"]["committed"]), (&json!(4), &json!(3)));
    health.set_draining();
    assert_eq!(get(&server, "/readyz").0, 503);
}

#[test]
fn features_are_read_by_key_by_many_and_as_of() {
    let (server, _) = server(Some(online()));
    let (status, one) = get_json(&server, "/v1/features/by_origin/JFK");
    assert_eq!(status, 200);
    assert_eq!(
        (&one["group"], &one["key"], &one["features"]),
        (&json!("by_origin"), &json!("JFK"), &json!({ "mean": 2.5 }))
    );
    assert_eq!(one["event_time"], "1970-01-01T00:00:03.000Z");
    assert!(one["age_seconds"].as_f64().expect("a number") > 1e9);
    assert_eq!((&one["valid_until"], &one["stale"]), (&json!("1970-01-01T00:00:04.000Z"), &json!(true)));
    let (_, before) = get_json(&server, "/v1/features/by_origin/JFK?as_of=1970-01-01T00:00:02Z");
    assert_eq!((&before["features"], &before["stale"]), (&json!({ "mean": 1.5 }), &json!(false)));
    // A read as of a time between two events has the row of the first: it says how old that was then.
    let (_, between) = get_json(&server, "/v1/features/by_origin/JFK?as_of=2500");
    let age = |row: &Value| row["age_seconds"].as_f64().expect("a number");
    assert_eq!((&between["event_time"], age(&before), age(&between)), (&before["event_time"], 1.0, 1.5));
    assert_eq!(between["stale"], true);
    let (_, lasting) = get_json(&server, "/v1/features/by_origin/a%2Fb%7Cc");
    assert_eq!(lasting["features"], json!({ "mean": null }));
    assert_eq!((&lasting["valid_until"], &lasting["stale"]), (&Value::Null, &json!(false)), "it changes no more");

    let (_, two) = get_json(&server, "/v1/features/by_origin?key=LGA&key=JFK&as_of=2500");
    assert_eq!(two["rows"][0], json!({ "key": "LGA", "features": null }));
    assert_eq!(two["rows"][1]["features"], json!({ "mean": 1.5 }));
    let (status, body) =
        post(&server, "/v1/features/by_origin", "application/json", r#"{"keys": ["JFK"], "as_of": 2500}"#);
    assert_eq!(status, 200, "{body}");
    let rows: Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!(rows["rows"][0]["features"], json!({ "mean": 1.5 }));
}

#[test]
fn what_is_not_there_is_a_problem_document() {
    let (server, _) = server(Some(online()));
    let (status, problem) = get_json(&server, "/v1/features/by_tail/N1");
    assert_eq!((status, &problem["groups"]), (404, &json!(["by_origin"])));
    assert_eq!(problem["detail"], "there is no feature group `by_tail`; there are: by_origin");
    let (status, problem) = get_json(&server, "/v1/features/by_origin/LGA?as_of=0");
    assert_eq!(
        (status, &problem["detail"]),
        (404, &json!("group `by_origin` has no features of `LGA` as of 1970-01-01T00:00:00.000Z"))
    );
    let (status, problem) = get_json(&server, "/v1/features/by_origin/JFK?as_of=noon");
    assert!(status == 400 && problem["detail"].as_str().expect("text").starts_with("`as_of` is `noon`; write it like"));
    assert_eq!(get(&server, "/v1/features/by_origin/JFK?at=3").0, 400);
    assert_eq!(get(&server, "/v1/features/by_origin").0, 400, "no key");
    let many: String = (0..1001).map(|i| format!("&key={i}")).collect();
    assert_eq!(get(&server, &format!("/v1/features/by_origin?{}", &many[1..])).0, 400);
    assert_eq!(get(&server, "/v1/nothing").0, 404);
    assert_eq!(post(&server, "/metrics", "application/json", "{}").0, 405);

    let (status, body) = post(&server, "/v1/features/by_origin", "application/json", r#"{"key": ["JFK"]}"#);
    assert!(status == 422 && body.contains("unknown field `key`") && body.contains(r#"send {\"keys\""#), "{body}");
    assert_eq!(post(&server, "/v1/features/by_origin", "text/plain", r#"{"keys": ["JFK"]}"#).0, 415);
    let large = format!(r#"{{"keys": ["{}"]}}"#, "x".repeat(BODY_BYTES_MAX));
    assert_eq!(post(&server, "/v1/features/by_origin", "application/json", &large).0, 413);
    let (none, health) = self::server(None);
    let (status, problem) = get_json(&none, "/v1/features/by_origin/JFK");
    assert_eq!((status, &problem["detail"]), (503, &json!("the job is starting")));
    health.set_running();
    let (status, problem) = get_json(&none, "/v1/features/by_origin/JFK");
    assert_eq!((status, &problem["groups"]), (404, &json!([])));
}

#[test]
fn whatever_is_asked_is_answered_by_a_problem_document() {
    let (server, _) = server(Some(online()));
    let long = format!("/v1/features/by_origin/{}", "x".repeat(10_000));
    for (path, status) in [
        (&*long, 404),
        ("/../../etc/passwd", 404),
        ("/v1/features/..%2f..%2fetc%2fpasswd/x", 404),
        ("/v1/features/by_origin/..%2f..%2f%00", 404),
        ("/v1/features/by_origin/%ff%fe", 400),
        ("/v1/features/by_origin/%zz", 404),
        ("/v1/features/by_origin?key=%ff", 200),
        ("/v1/features/by_origin/JFK?as_of=", 400),
        ("/v1/features/by_origin/JFK?as_of=99999999999999999999", 400),
        ("/v1/features/by_origin/JFK?key=LGA", 400),
        ("//", 404),
    ] {
        let (found, body) = get(&server, path);
        assert_eq!(found, status, "{path}: {body}");
    }
    for (body, status) in [("", 400), ("{", 400), ("[]", 422), ("{\"keys\": [1]}", 422), ("\u{0}", 400)] {
        let (found, said) = post(&server, "/v1/features/by_origin", "application/json", body);
        assert!(found == status && said.contains("\"status\""), "`{body}`: {found} {said}");
    }
    for method in ["DELETE", "PUT", "TRACE", "X-Y"] {
        let request = format!("{method} /v1/features/by_origin HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        assert_eq!(send(&server, &request).0, 405, "{method}");
    }
    assert_eq!(get(&server, "/livez").0, 200, "the server goes on");
}

#[test]
fn a_savepoint_is_made_once_and_not_for_a_page() {
    let folder = tempfile::tempdir().expect("a folder");
    let state = Place::folder(folder.path());
    let health = Arc::new(Health::new(Expected::default()));
    let about = Box::new(|| json!({}));
    let serve =
        Serve { health, exporter: metrics::install(), online: Features::default(), state: Some(state.clone()), about };
    let server = start("127.0.0.1:0", serve).expect("a free port");
    let save = |name: &str, header: &str| {
        let head = format!("POST /v1/savepoints/{name} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{header}\r\n");
        let (status, _, body) = send(&server, &head);
        (status, serde_json::from_str::<Value>(&body).expect("JSON"))
    };
    let (status, problem) = save("before", "");
    assert!(status == 409 && problem["detail"].as_str().expect("text").contains("nothing to save"), "{problem}");
    let mut store = Store::open(&state, "flights", "digest").expect("opens");
    store.take_over().expect("takes over");
    store.publish(&Progress { epoch: 7, ..Progress::default() }, &[]).expect("publishes");
    assert_eq!(save("before", "origin: http://example.org\r\n").0, 403);
    let (status, saved) = save("before", "");
    assert_eq!((status, &saved["name"], &saved["epoch"]), (201, &json!("before"), &json!(7)));
    store.publish(&Progress { epoch: 8, ..Progress::default() }, &[]).expect("publishes");
    let (status, problem) = save("before", "");
    assert!(status == 409 && problem["detail"].as_str().expect("text").contains("of epoch 7"), "{problem}");
    assert_eq!(save("..%2fbefore", "").0, 400);
    assert_eq!(get(&server, "/v1/savepoints/before").0, 405);
    assert_eq!(post(&self::server(None).0, "/v1/savepoints/a", "text/plain", "").0, 404);
}

#[test]
fn a_scrape_comes_from_the_catalogue() {
    let (server, health) = server(Some(online()));
    health.set_running();
    get(&server, "/v1/features/by_origin/JFK");
    get(&server, "/etc/passwd");
    let (status, text) = get(&server, "/metrics");
    assert_eq!(status, 200);
    let problems = metrics::scrape::problems(&text, &[metrics::Part::OnlineStore]);
    let strange: Vec<_> = problems.iter().filter(|problem| !problem.ends_with("has no series")).collect();
    assert!(strange.is_empty(), "{strange:?}");
    for line in [
        r#"millstream_http_requests_total{route="/v1/features/{group}/{key}",method="GET",code="200"}"#,
        r#"millstream_http_requests_total{route="other",method="GET",code="404"}"#,
        r#"millstream_online_store_keys{feature_set="by_origin"} 2"#,
        "millstream_epoch_age_seconds ",
    ] {
        assert!(text.contains(line), "{line} is not in:\n{text}");
    }
}

#[test]
fn a_port_that_is_taken_is_an_error_that_says_what_to_do() {
    let (server, _) = server(None);
    let refuse = |address: &str| {
        let serve = Serve {
            health: Arc::new(Health::new(Expected::default())),
            exporter: metrics::install(),
            online: Features::default(),
            state: None,
            about: Box::new(|| json!({})),
        };
        start(address, serve).err().expect("must be refused").to_string()
    };
    let taken = refuse(&server.address().to_string());
    assert!(taken.contains("another process listens there") && taken.contains("engine.http"), "{taken}");
    assert!(refuse("9464").contains("write the address like `127.0.0.1:9464`"));
    assert!(refuse("192.0.2.1:9464").contains("this machine does not have that address"));
}

#[test]
fn a_head_that_is_too_large_or_broken_is_refused() {
    let (server, _) = server(None);
    let large = format!("GET /metrics HTTP/1.1\r\nhost: x\r\nx: {}\r\n\r\n", "y".repeat(HEAD_BYTES_MAX));
    assert_eq!(send(&server, &large).0, 431);
    assert_eq!(send(&server, "garbage\r\n\r\n").0, 400);
    assert_eq!(get(&server, "/livez").0, 200, "the server goes on");
}
