//! The HTTP interface: metrics, health, status, and the features of the online store.
//!
//! | route | answer |
//! |---|---|
//! | `GET /metrics` | a scrape in Prometheus's text format |
//! | `GET /startupz`, `/livez`, `/readyz` | 200 or 503, and the checks as JSON ([`Health`]) |
//! | `GET /v1/status` | stage, epochs, positions, as JSON |
//! | `GET /v1/features/{group}/{key}` | the newest features of a key; `?as_of=` those of a time |
//! | `GET /v1/features/{group}?key=a&key=b` | of several keys |
//! | `POST /v1/features/{group}` with `{"keys": [...], "as_of": ...}` | of many keys |
//! | `POST /v1/savepoints/{name}` | keeps the newest checkpoint under a name |
//!
//! It runs on one thread of its own, so that a flood of requests takes one core at most and a busy dataflow never keeps an
//! orchestrator waiting. Everything is bounded: connections, headers, bodies, the time of a request and of a connection.
//! There is no authentication; the default address is the loopback's.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use serde_json::Value;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::{sleep, timeout};

use crate::checkpoint::Place;
use crate::metrics::Exporter;
use crate::online::OnlineStore;

pub mod health;
mod routes;
mod savepoints;
#[cfg(test)]
mod tests;

pub use health::{Answer, Check, Expected, Health, STALL, Stage};

/// Connections at once; more wait until one is done.
const CONNECTIONS_MAX: usize = 256;
/// Time a client has to send the head of a request, and to send the next one on an open connection.
const HEAD_TIME_MAX: Duration = Duration::from_secs(10);
/// Time to read the body of a request and to answer it.
const REQUEST_TIME_MAX: Duration = Duration::from_secs(30);
/// Time after which a connection is closed, whatever it does.
const CONNECTION_TIME_MAX: Duration = Duration::from_secs(300);
/// Largest head of a request.
const HEAD_BYTES_MAX: usize = 16 << 10;
/// Largest body of a request.
const BODY_BYTES_MAX: usize = 1 << 20;

/// The online store of a job, when it has started; never there in a process that does not serve features.
pub type Features = Arc<OnceLock<Arc<OnlineStore>>>;

/// What is served.
pub struct Serve {
    /// The job's health, written by the runtime.
    pub health: Arc<Health>,
    /// The metrics.
    pub exporter: Exporter,
    /// The online store, when there is one.
    pub online: Features,
    /// Where the job's checkpoints lie, if it may be asked for savepoints.
    pub state: Option<Place>,
    /// More members for the object that `/v1/status` answers: job, positions, models.
    pub about: Box<dyn Fn() -> Value + Send + Sync>,
}

/// A running server. Dropping it stops it.
pub struct Server {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// The server can't start.
#[derive(Debug, thiserror::Error)]
#[error("engine.http: can't listen on `{address}`: {detail}")]
pub struct HttpError {
    /// The address as the topology has it.
    pub address: String,
    /// Why, and what to do.
    pub detail: String,
}

/// Listens on `address` (`host:port`; port 0 takes any that is free) and serves from a thread of its own.
///
/// # Errors
/// If the address can't be listened on.
pub fn start(address: &str, serve: Serve) -> Result<Server, HttpError> {
    let refused = |detail: String| HttpError { address: address.to_owned(), detail };
    let listener = TcpListener::bind(address).map_err(|error| refused(what_to_do(&error)))?;
    let local = listener.local_addr().map_err(|error| refused(error.to_string()))?;
    listener.set_nonblocking(true).map_err(|error| refused(error.to_string()))?;
    if !local.ip().is_loopback() {
        tracing::warn!(address = %local, "the HTTP interface has no authentication: whoever reaches it reads features and makes savepoints");
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| refused(error.to_string()))?;
    let (stop, stopped) = oneshot::channel();
    let serve = Arc::new(serve);
    let body = move || {
        let served = serve.clone();
        runtime.block_on(async move {
            match tokio::net::TcpListener::from_std(listener) {
                Ok(listener) => run(listener, served, stopped).await,
                Err(error) => tracing::error!(%error, "the HTTP interface can't run"),
            }
        });
        // Nobody waits at the end for a savepoint that waits for a disk or a store.
        runtime.shutdown_background();
        // Only now: a bucket with the job's state waits for its store when it goes, which nobody may do within a runtime.
        drop(serve);
    };
    let thread = std::thread::Builder::new().name("http".into()).spawn(body);
    let thread = thread.map_err(|error| refused(error.to_string()))?;
    Ok(Server { address: local, stop: Some(stop), thread: Some(thread) })
}

impl Server {
    /// The address listened on, with the port that was taken.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic there has ended the process already.
            let _joined = thread.join();
        }
    }
}

/// Why an address can't be listened on, for a person.
fn what_to_do(error: &std::io::Error) -> String {
    match error.kind() {
        ErrorKind::AddrInUse => {
            "another process listens there; stop it, or set `engine.http` to another port (port 0 takes any that is free)".into()
        }
        ErrorKind::PermissionDenied => format!("{error}; ports below 1024 need privileges, choose a higher one"),
        ErrorKind::AddrNotAvailable => format!("{error}; this machine does not have that address"),
        _ => format!("{error}; write the address like `127.0.0.1:9464`"),
    }
}

/// Accepts until told to stop; connections that are open then are dropped.
async fn run(listener: tokio::net::TcpListener, serve: Arc<Serve>, mut stopped: oneshot::Receiver<()>) {
    let router = routes::router(serve);
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let accept = async {
            let permit = permits.clone().acquire_owned().await.expect("the semaphore is never closed");
            (listener.accept().await, permit)
        };
        let (accepted, permit) = tokio::select! {
            _ = &mut stopped => return,
            accepted = accept => accepted,
        };
        let Ok((stream, _)) = accepted else {
            // Out of file descriptors, mostly: without a pause the loop would spin.
            sleep(Duration::from_millis(50)).await;
            continue;
        };
        let router = router.clone();
        tokio::spawn(async move {
            // A client that goes away or is too slow is its own business.
            let _closed = timeout(CONNECTION_TIME_MAX, connection(stream, router)).await;
            drop(permit);
        });
    }
}

async fn connection(stream: tokio::net::TcpStream, router: Router) -> Result<(), hyper::Error> {
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME_MAX)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router))
        .await
}
