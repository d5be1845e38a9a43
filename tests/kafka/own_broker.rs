//! A broker of a test's own, put up with `deploy/kafka.sh`: one that may be killed, or that asks who is there.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Command;

/// A broker of one test; stopped, and its data deleted, when dropped.
pub struct Broker {
    port: u16,
    secure: bool,
    folder: tempfile::TempDir,
}

impl Broker {
    /// A broker that lets everybody in.
    pub fn plain() -> Broker {
        Broker::up(false)
    }

    /// A broker that has a second listener, with TLS and passwords.
    pub fn secure() -> Broker {
        Broker::up(true)
    }

    fn up(secure: bool) -> Broker {
        // Three in a row: of the broker, its controller and the second listener.
        let free = (0..50).find_map(|_| {
            let first = TcpListener::bind("127.0.0.1:0").ok()?;
            let port = first.local_addr().ok()?.port();
            let others =
                [port.checked_add(1)?, port.checked_add(2)?].map(|port| TcpListener::bind(("127.0.0.1", port)));
            others.iter().all(Result::is_ok).then_some(port)
        });
        let port = free.expect("free ports");
        let broker = Broker { port, secure, folder: tempfile::tempdir().unwrap() };
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
        let command = command.env("KAFKA_NODES", "1").env("KAFKA_HEAP", "256m");
        let output = command.env("KAFKA_SECURE", if self.secure { "yes" } else { "" }).output().unwrap();
        assert!(output.status.success(), "kafka.sh {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.run(&["down"]);
    }
}
