//! What is answered where. Every error is a problem document (RFC 9457) without paths or backtraces.

use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use axum::Json;
use axum::Router;
use axum::extract::rejection::{JsonRejection, PathRejection};
use axum::extract::{DefaultBodyLimit, Path, Query, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde::Deserialize;
use serde_json::{Value, json};

use super::health::{Answer, Stage};
use super::{BODY_BYTES_MAX, REQUEST_TIME_MAX, Serve, savepoints};
use crate::metrics::catalogue::{HTTP_REQUEST_DURATION, HTTP_REQUESTS};
use crate::online::{Features, parse_time, time_text};

/// Keys that one request may ask for.
const KEYS_MAX: usize = 1_000;

pub(super) type Shared = State<Arc<Serve>>;
/// The answer to a request that can't be met.
type Refusal = Box<Response>;

/// All routes.
pub(super) fn router(serve: Arc<Serve>) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/startupz", get(startupz))
        .route("/v1/status", get(status))
        .route("/v1/features/{group}", get(features).post(features_by_body))
        .route("/v1/features/{group}/{*key}", get(feature))
        .route("/v1/savepoints/{name}", post(savepoints::save))
        .fallback(async || problem(StatusCode::NOT_FOUND, "there is nothing here", json!({ "routes": ROUTES })))
        .method_not_allowed_fallback(async || {
            problem(StatusCode::METHOD_NOT_ALLOWED, "the route takes other methods", json!({}))
        })
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(from_fn(bound_and_count))
        .with_state(serve)
}

const ROUTES: [&str; 8] = [
    "/metrics",
    "/livez",
    "/readyz",
    "/startupz",
    "/v1/status",
    "/v1/features/{group}",
    "/v1/features/{group}/{key}",
    "/v1/savepoints/{name}",
];

/// The template of a path, as a metric label: bounded, whatever is asked for.
fn template(path: &str) -> &'static str {
    if path.starts_with("/v1/savepoints/") {
        return "/v1/savepoints/{name}";
    }
    match path.strip_prefix("/v1/features/") {
        Some(rest) if rest.contains('/') => "/v1/features/{group}/{key}",
        Some(_) => "/v1/features/{group}",
        None => ROUTES.into_iter().find(|route| *route == path).unwrap_or("other"),
    }
}

/// A request has a time limit, and is counted.
async fn bound_and_count(request: Request, next: Next) -> Response {
    let started = Instant::now();
    let route = template(request.uri().path());
    let method = match request.method().as_str() {
        known @ ("GET" | "POST" | "HEAD") => known.to_owned(),
        _ => "other".to_owned(),
    };
    let answer = tokio::time::timeout(REQUEST_TIME_MAX, next.run(request)).await;
    let response = answer.unwrap_or_else(|_| {
        problem(StatusCode::REQUEST_TIMEOUT, &format!("not done within {} s", REQUEST_TIME_MAX.as_secs()), json!({}))
    });
    HTTP_REQUESTS.of([route, &method, response.status().as_str()]).increment(1);
    HTTP_REQUEST_DURATION.of([route]).record(started.elapsed().as_secs_f64());
    response
}

/// A problem document; `more` adds members to it.
pub(super) fn problem(status: StatusCode, detail: &str, more: Value) -> Response {
    let title = status.canonical_reason().unwrap_or("error");
    let mut body = json!({ "type": "about:blank", "title": title, "status": status.as_u16(), "detail": detail });
    if let (Some(body), Value::Object(more)) = (body.as_object_mut(), more) {
        body.extend(more);
    }
    (status, [(header::CONTENT_TYPE, "application/problem+json")], body.to_string()).into_response()
}

/// A path that is no text.
pub(super) fn unreadable(refused: &PathRejection) -> Response {
    problem(refused.status(), &refused.body_text(), json!({}))
}

async fn metrics(State(serve): Shared) -> Response {
    serve.health.refresh_metrics(Instant::now());
    if let Some(online) = serve.online.get() {
        online.refresh_metrics(now_millis());
    }
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], serve.exporter.render()).into_response()
}

async fn livez(State(serve): Shared) -> Response {
    answer(serve.health.alive(Instant::now()))
}

async fn readyz(State(serve): Shared) -> Response {
    answer(serve.health.ready(Instant::now()))
}

async fn startupz(State(serve): Shared) -> Response {
    answer(serve.health.started())
}

fn answer(answer: Answer) -> Response {
    let status = if answer.ok { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(answer)).into_response()
}

async fn status(State(serve): Shared) -> Response {
    let now = Instant::now();
    let (open, committed, age) = serve.health.epochs(now);
    let mut body = json!({
        "stage": serve.health.stage(),
        "ready": serve.health.ready(now),
        "alive": serve.health.alive(now),
        "epochs": { "open": open, "committed": committed, "age_seconds": age.as_secs_f64() },
    });
    if let (Some(body), Value::Object(more)) = (body.as_object_mut(), (serve.about)()) {
        body.extend(more);
    }
    Json(body).into_response()
}

/// What a read of features may say in its query.
#[derive(Default)]
struct Wanted {
    keys: Vec<String>,
    as_of: Option<i64>,
}

impl Wanted {
    fn of(query: Vec<(String, String)>) -> Result<Wanted, Refusal> {
        let refuse = |detail: String| Box::new(problem(StatusCode::BAD_REQUEST, &detail, json!({})));
        let mut wanted = Wanted::default();
        for (name, value) in query {
            match name.as_str() {
                "key" => wanted.keys.push(value),
                "as_of" => wanted.as_of = Some(time(&value).map_err(refuse)?),
                other => return Err(refuse(format!("there is no parameter `{other}`; there are `key` and `as_of`"))),
            }
        }
        Ok(wanted)
    }
}

fn time(text: &str) -> Result<i64, String> {
    let refuse = || format!("`as_of` is `{text}`; write it like `2013-06-01T12:00:00Z` or in milliseconds since 1970");
    parse_time(text).ok_or_else(refuse)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    keys: Vec<String>,
    #[serde(default)]
    as_of: Option<AsOf>,
}

/// A number or a text, as JSON has it.
struct AsOf(String);

impl<'de> Deserialize<'de> for AsOf {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(AsOf(match Value::deserialize(deserializer)? {
            Value::String(text) => text,
            other => other.to_string(),
        }))
    }
}

async fn feature(
    State(serve): Shared,
    path: Result<Path<(String, String)>, PathRejection>,
    Query(query): Query<Vec<(String, String)>>,
) -> Response {
    let (group, key) = match path {
        Ok(Path(path)) => path,
        Err(refused) => return unreadable(&refused),
    };
    let wanted = match Wanted::of(query) {
        Ok(wanted) if wanted.keys.is_empty() => wanted,
        Ok(_) => return problem(StatusCode::BAD_REQUEST, "the key stands in the path already", json!({})),
        Err(refused) => return *refused,
    };
    let found = match read(&serve, &group, std::slice::from_ref(&key), wanted.as_of) {
        Ok(found) => found,
        Err(refused) => return *refused,
    };
    match found.into_iter().next().flatten() {
        Some(features) => {
            let mut body = row(&key, Some(&features), wanted.as_of);
            body["group"] = group.into();
            Json(body).into_response()
        }
        None => {
            let when = wanted.as_of.map_or(String::new(), |as_of| format!(" as of {}", time_text(as_of)));
            problem(
                StatusCode::NOT_FOUND,
                &format!("group `{group}` has no features of `{key}`{when}"),
                json!({ "key": key }),
            )
        }
    }
}

async fn features(
    State(serve): Shared,
    path: Result<Path<String>, PathRejection>,
    Query(query): Query<Vec<(String, String)>>,
) -> Response {
    let group = match path {
        Ok(Path(group)) => group,
        Err(refused) => return unreadable(&refused),
    };
    match Wanted::of(query) {
        Ok(wanted) => many(&serve, &group, wanted),
        Err(refused) => *refused,
    }
}

async fn features_by_body(
    State(serve): Shared,
    path: Result<Path<String>, PathRejection>,
    body: Result<Json<Body>, JsonRejection>,
) -> Response {
    let group = match path {
        Ok(Path(group)) => group,
        Err(refused) => return unreadable(&refused),
    };
    let body = match body {
        Ok(Json(body)) => body,
        Err(refused) => {
            let detail = format!("{}; send {{\"keys\": [\"...\"], \"as_of\": \"...\"}}", refused.body_text());
            return problem(refused.status(), &detail, json!({}));
        }
    };
    match body.as_of.map(|as_of| time(&as_of.0)).transpose() {
        Ok(as_of) => many(&serve, &group, Wanted { keys: body.keys, as_of }),
        Err(detail) => problem(StatusCode::BAD_REQUEST, &detail, json!({})),
    }
}

/// The features of many keys, in the order asked for; a key without features has `null` for them.
fn many(serve: &Serve, group: &str, wanted: Wanted) -> Response {
    if wanted.keys.is_empty() || wanted.keys.len() > KEYS_MAX {
        let detail = format!("{} keys were asked for; ask for 1 to {KEYS_MAX} (`?key=a&key=b`)", wanted.keys.len());
        return problem(StatusCode::BAD_REQUEST, &detail, json!({}));
    }
    match read(serve, group, &wanted.keys, wanted.as_of) {
        Ok(found) => {
            let rows: Vec<Value> =
                wanted.keys.iter().zip(&found).map(|(key, found)| row(key, found.as_ref(), wanted.as_of)).collect();
            Json(json!({ "group": group, "rows": rows })).into_response()
        }
        Err(refused) => *refused,
    }
}

fn read(serve: &Serve, group: &str, keys: &[String], as_of: Option<i64>) -> Result<Vec<Option<Features>>, Refusal> {
    let Some(online) = serve.online.get() else {
        if serve.health.stage() == Stage::Starting {
            return Err(Box::new(problem(StatusCode::SERVICE_UNAVAILABLE, "the job is starting", json!({}))));
        }
        let detail = "no feature group is served here (`online: true`; of several processes, the first serves them)";
        return Err(Box::new(problem(StatusCode::NOT_FOUND, detail, json!({ "groups": [] }))));
    };
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    online.read(group, &keys, as_of).map_err(|unknown| {
        let groups: Vec<&str> = online.group_names().collect();
        Box::new(problem(StatusCode::NOT_FOUND, &unknown.to_string(), json!({ "groups": groups })))
    })
}

/// One key's features. `age_seconds` is how long before the time asked for, or now by the process's clock, the event was that
/// they follow from: windows end there. Before `valid_until` a vector would read the same; `stale` says whether that time has passed.
fn row(key: &str, features: Option<&Features>, as_of: Option<i64>) -> Value {
    let at = as_of.unwrap_or_else(now_millis);
    match features {
        None => json!({ "key": key, "features": null }),
        Some(features) => json!({
            "key": key,
            "event_time": time_text(features.event_time),
            "age_seconds": at.saturating_sub(features.event_time) as f64 / 1e3,
            "valid_until": features.valid_until.filter(|until| *until != i64::MAX).map(time_text),
            "stale": features.valid_until.map(|until| at >= until),
            "features": features.values,
        }),
    }
}

fn now_millis() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}
