//! Logs: text on a terminal, JSON lines elsewhere; on standard error, so that standard output holds results only.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// The environment variable that says what is logged: `info`, `debug`, `millstream=debug,warn` ...
pub const VARIABLE: &str = "MILLSTREAM_LOG";

/// Starts logging, once a process; later calls change nothing.
pub fn start() {
    let filter = EnvFilter::try_from_env(VARIABLE).unwrap_or_else(|_| EnvFilter::new("error,millstream=info"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = match std::io::stderr().is_terminal() {
        true => log.compact().with_target(false).try_init(),
        false => log.json().flatten_event(true).try_init(),
    };
    // Someone else's logging is as good as ours: a program that embeds the library may have started its own.
    drop(started);
}
