//! How the job runs: limits of the engine's settings.

use std::path::Path;

use axum::http::Uri;
use millstream_operators::error::ConfigError;
use millstream_operators::units::{Bytes, Millis};

use crate::checkpoint::Location;
use crate::topology::{Cluster, Engine};

/// Most workers of all processes: there are as many key groups.
const WORKERS_MAX: usize = 256;
/// Shortest epoch: below it commits take all the time.
const EPOCH_MIN: Millis = Millis(20);
/// Longest epoch: all that time's output waits for its commit, and is done again after a crash.
const EPOCH_MAX: Millis = Millis(600_000);
/// Least memory: the program alone has about as much.
const MEMORY_MIN: Bytes = Bytes(32 << 20);
/// Shortest secret of a cluster, in characters.
const SECRET_MIN: usize = 16;
/// Longest spin of an idle worker.
const SPIN_MICROS_MAX: u64 = 1_000_000;

/// Says what is wrong with the engine's settings.
pub(super) fn check(engine: &Engine, errors: &mut Vec<ConfigError>) {
    let mut refuse = |key: &str, message: String, hint: &str| {
        let hint = (!hint.is_empty()).then(|| hint.to_string());
        errors.push(ConfigError::new(format!("engine.{key}"), message).with_hint(hint));
    };
    if engine.workers == 0 || engine.workers > WORKERS_MAX {
        let message = format!("the number of workers is {}, it must be from 1 to {WORKERS_MAX}", engine.workers);
        refuse("workers", message, "one worker a core is the most that helps");
    }
    if engine.epoch < EPOCH_MIN || engine.epoch > EPOCH_MAX {
        let message = format!("an epoch of {} is not between {EPOCH_MIN} and {EPOCH_MAX}", engine.epoch);
        refuse(
            "epoch",
            message,
            "200ms suits most; 50ms where readers wait for committed output, 1s where nobody does",
        );
    }
    check_state(engine, &mut refuse);
    if let Some(memory) = engine.memory.filter(|memory| *memory < MEMORY_MIN) {
        let message = format!("a job does nothing with {memory}, it needs {MEMORY_MIN} at the least");
        refuse("memory", message, "leave it out for four fifths of what there is, or write `1GiB`");
    }
    if let Some(cluster) = &engine.cluster {
        check_cluster(engine, cluster, &mut refuse);
    }
    // Only numbers are accepted, so that nothing is asked of a name server here.
    let address = engine.http.parse::<std::net::SocketAddr>().is_ok() || engine.http == "off";
    let local = engine.http.strip_prefix("localhost:").is_some_and(|port| port.parse::<u16>().is_ok());
    if !address && !local {
        let message = format!("`{}` is not an address to listen on", engine.http);
        refuse("http", message, "write `127.0.0.1:9464`, `0.0.0.0:9464` for all interfaces, or `off`");
    }
    if engine.shutdown_timeout.0 == 0 {
        let message = "a stop with no time at all leaves the records in flight undone".to_string();
        refuse("shutdown_timeout", message, "write `25s`");
    }
    if engine.spin_micros > SPIN_MICROS_MAX {
        refuse(
            "spin_micros",
            format!("a spin of {} us is above {SPIN_MICROS_MAX} us", engine.spin_micros),
            "100 suits most",
        );
    }
}

/// Says what is wrong with the hosts of a job.
fn check_cluster(engine: &Engine, cluster: &Cluster, refuse: &mut impl FnMut(&str, String, &str)) {
    if cluster.hosts.is_empty() {
        refuse("cluster.hosts", "there is no host".into(), "name one address for each process, `host:port`");
    }
    if engine.workers.saturating_mul(cluster.hosts.len()) > WORKERS_MAX {
        let (workers, hosts) = (engine.workers, cluster.hosts.len());
        let message = format!("{workers} workers on each of {hosts} hosts are more than {WORKERS_MAX}");
        refuse("workers", message, "one worker a core is the most that helps");
    }
    for (number, host) in cluster.hosts.iter().enumerate() {
        let parts = host.rsplit_once(':').filter(|(name, _)| !name.is_empty());
        if !parts.is_some_and(|(_, port)| port.parse::<u16>().is_ok_and(|port| port > 0)) {
            let message = format!("`{host}` is not an address of a process");
            refuse("cluster.hosts", message, "write `host:port`, such as `millstream-0:9470`");
        } else if cluster.hosts[..number].contains(host) {
            refuse("cluster.hosts", format!("`{host}` is there twice"), "each process has an address of its own");
        }
    }
    if cluster.secret.0.chars().count() < SECRET_MIN {
        let message = format!("the secret has less than {SECRET_MIN} characters");
        refuse("cluster.secret", message, "make one: `openssl rand -hex 32`");
    }
    if cluster.start_timeout.0 == 0 {
        let message = "with no time at all no process finds another".to_string();
        refuse("cluster.start_timeout", message, "write `60s`");
    }
}

/// Says what is wrong with the place of the state.
fn check_state(engine: &Engine, refuse: &mut impl FnMut(&str, String, &str)) {
    match Location::parse(&engine.state, Path::new("")) {
        Err(message) => refuse("state", message, "write a folder, `state: state`, or `state: s3://bucket/prefix`"),
        Ok(Location::Folder(_)) if !engine.s3.is_default() => {
            let message = "the job's state does not lie in a bucket".to_string();
            refuse("s3", message, "write `state: s3://bucket/prefix`, or leave it out");
        }
        Ok(_) => {}
    }
    if let Some(endpoint) = &engine.s3.endpoint {
        let uri = endpoint.parse::<Uri>().ok();
        let is_web = uri.is_some_and(|uri| matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some());
        if !is_web {
            let message = format!("`{endpoint}` is not the address of a store");
            refuse("s3.endpoint", message, "write `https://host` or `http://host:port`");
        }
    }
    if engine.s3.region.as_deref() == Some("") {
        refuse("s3.region", "the region has no name".into(), "write `us-east-1`, or leave it out");
    }
}
