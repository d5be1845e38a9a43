//! Savepoints by HTTP: the only route that writes.

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::routes::{Shared, problem, unreadable};
use crate::checkpoint::CheckpointError;
use crate::checkpoint::savepoint::{self, SavepointError};

/// Keeps the newest checkpoint under the name in the path.
pub(super) async fn save(
    State(serve): Shared,
    path: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
) -> Response {
    let name = match path {
        Ok(Path(name)) => name,
        Err(refused) => return unreadable(&refused),
    };
    // A page in a browser may send this to a loopback address, without having been asked; nothing else names an origin.
    if headers.contains_key(header::ORIGIN) {
        return problem(StatusCode::FORBIDDEN, "savepoints are not made for pages in a browser", json!({}));
    }
    let Some(state) = serve.state.clone() else {
        return problem(StatusCode::NOT_FOUND, "this process keeps no checkpoints", json!({}));
    };
    // It waits for a disk or a store: not on the thread that answers everybody else.
    let saved = tokio::task::spawn_blocking(move || savepoint::save(&state, &name)).await;
    match saved {
        Ok(Ok(saved)) => (StatusCode::CREATED, Json(saved)).into_response(),
        Ok(Err(error)) => problem(status(&error), &error.to_string(), json!({})),
        Err(error) => problem(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string(), json!({})),
    }
}

fn status(error: &SavepointError) -> StatusCode {
    match error {
        SavepointError::Name { .. } | SavepointError::NoPlace { .. } => StatusCode::BAD_REQUEST,
        SavepointError::Taken { .. } | SavepointError::TooMany | SavepointError::Nothing { .. } => StatusCode::CONFLICT,
        SavepointError::Missing { .. } => StatusCode::NOT_FOUND,
        SavepointError::Outrun => StatusCode::SERVICE_UNAVAILABLE,
        SavepointError::Checkpoint(CheckpointError::Io { .. }) => StatusCode::SERVICE_UNAVAILABLE,
        SavepointError::Checkpoint(_) => StatusCode::INTERNAL_SERVER_ERROR,
    }
}
