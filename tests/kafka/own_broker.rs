//! A broker of a test's own, put up with `deploy/kafka.sh`: one that may be killed, or that asks who is there.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use super::proxy::Proxy;
use crate::random::Random;

/// Brokers of one test; stopped, and their data deleted, when dropped.
pub struct Broker {
    port: u16,
    count: u16,
    settings: Vec<(&'static str, String)>,
    folder: tempfile::TempDir,
}

impl Broker {
    /// A broker that lets everybody in.
    pub fn plain() -> Broker {
        Broker::up(1, free_port(1), Vec::new())
    }

    /// A broker that has a second listener, with TLS and passwords.
    pub fn secure() -> Broker {
        Broker::up(1, free_port(1), vec![("KAFKA_SECURE", "yes".to_string())])
    }

    /// Three brokers that let everybody in, each also a controller.
    pub fn cluster() -> Broker {
        Broker::up(3, free_port(3), Vec::new())
    }

    /// A broker that has a second listener, for clients behind the proxy.
    pub fn behind(proxy: &Proxy) -> Broker {
        let port = free_port(1);
        proxy.lead_to(port + 3);
        Broker::up(1, port, vec![("KAFKA_PROXY", proxy.port().to_string())])
    }

    fn up(count: u16, port: u16, settings: Vec<(&'static str, String)>) -> Broker {
        let broker = Broker { port, count, settings, folder: tempfile::tempdir().unwrap() };
        broker.run(&["up"]);
        broker
    }

    /// Where they let everybody in.
    pub fn address(&self) -> String {
        let ports = (0..self.count).map(|broker| self.port + 10 * broker);
        ports.map(|port| format!("127.0.0.1:{port}")).collect::<Vec<_>>().join(",")
    }

    /// Where it asks for passwords.
    pub fn secure_address(&self) -> String {
        format!("127.0.0.1:{}", self.port + 2)
    }

    /// The certificate of the authority that signed the broker's.
    pub fn authority(&self) -> PathBuf {
        self.folder.path().join("tls/ca.pem")
    }

    /// Runs a command of the script.
    pub fn run(&self, args: &[&str]) {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/kafka.sh");
        let mut command = Command::new(script);
        let command = command.args(args).env("KAFKA_PORT", self.port.to_string()).env("KAFKA_DIR", self.folder.path());
        command
            .env("KAFKA_NODES", self.count.to_string())
            .env("KAFKA_HEAP", "256m")
            .envs(self.settings.iter().map(|(name, value)| (name, value)));
        let output = command.output().unwrap();
        assert!(output.status.success(), "kafka.sh {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

/// The first port of so many brokers. Each has four in a row, of the broker, its controller and its second listeners, ten after
/// those of the one before. They are none that systems give to outgoing connections: one could take the place of a broker that is
/// away for a while.
fn free_port(brokers: u16) -> u16 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is after 1970").as_nanos() as u64;
    let mut random = Random(now);
    let is_free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
    let free = (0..50).find_map(|_| {
        let port = 20_000 + 10 * random.below(1_000) as u16;
        (port..port + 10 * brokers).filter(|at| (at - port) % 10 < 4).all(is_free).then_some(port)
    });
    free.expect("free ports")
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.run(&["down"]);
    }
}
