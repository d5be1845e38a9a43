//! A broker of a test's own, put up with `deploy/kafka.sh`: one that may be killed, or that asks who is there.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Command;

use super::proxy::Proxy;

/// Brokers of one test; stopped, and their data deleted, when dropped.
pub struct Broker {
    port: u16,
    settings: Vec<(&'static str, String)>,
    folder: tempfile::TempDir,
}

impl Broker {
    /// A broker that lets everybody in.
    pub fn plain() -> Broker {
        Broker::up(Vec::new(), free_port())
    }

    /// A broker that has a second listener, with TLS and passwords.
    pub fn secure() -> Broker {
        Broker::up(vec![("KAFKA_SECURE", "yes".to_string())], free_port())
    }

    /// A broker that has a second listener, for clients behind the proxy.
    pub fn behind(proxy: &Proxy) -> Broker {
        let port = free_port();
        proxy.lead_to(port + 3);
        Broker::up(vec![("KAFKA_PROXY", proxy.port().to_string())], port)
    }

    fn up(settings: Vec<(&'static str, String)>, port: u16) -> Broker {
        let broker = Broker { port, settings, folder: tempfile::tempdir().unwrap() };
        broker.run(&["up"]);
        broker
    }

    /// Where it lets everybody in.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
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
        command.env("KAFKA_HEAP", "256m").envs(self.settings.iter().map(|(name, value)| (name, value)));
        let output = command.output().unwrap();
        assert!(output.status.success(), "kafka.sh {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

/// The first of four free ports in a row: of the broker, its controller and its second listeners.
fn free_port() -> u16 {
    let is_free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
    let free = (0..50).find_map(|_| {
        let first = TcpListener::bind("127.0.0.1:0").ok()?;
        let port = first.local_addr().ok()?.port();
        drop(first);
        (port..port.checked_add(4)?).all(is_free).then_some(port)
    });
    free.expect("free ports")
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.run(&["down"]);
    }
}
