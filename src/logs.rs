//! Logs: text on a terminal, JSON lines elsewhere; on standard error, so that standard output holds results only.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::metrics::log::CountMessages;

/// The environment variable that says what is logged: `info`, `debug`, `millstream=debug,warn` ...
pub const VARIABLE: &str = "MILLSTREAM_LOG";

/// Starts logging, once a process; later calls change nothing.
pub fn start() {
    let filter = EnvFilter::try_from_env(VARIABLE).unwrap_or_else(|_| EnvFilter::new("error,millstream=info"));
    // Messages are counted, so the recorder comes first.
    crate::metrics::install();
    // A closed standard error (`2>&1 | head`) is no reason to panic.
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).log_internal_errors(false);
    let log = tracing_subscriber::registry().with(filter).with(CountMessages::new());
    let started = match std::io::stderr().is_terminal() {
        true => log.with(lines.compact().with_target(false)).try_init(),
        false => log.with(lines.json().flatten_event(true)).try_init(),
    };
    // Someone else's logging is as good as ours: a program that embeds the library may have started its own.
    drop(started);
}
