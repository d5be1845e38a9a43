//! A broker that asks who is there, and has to say who it is itself: TLS, passwords, rights. Errors name what to look at
//! and never the secret.

use std::process::Command;

use super::own_broker::Broker;
use super::*;
use crate::program::{Running, Said, millstream, read_summary};

/// What `deploy/kafka.sh` gives its users.
const SECRETS: [&str; 3] = ["alice-secret", "bob-secret", "no-secret"];

/// The file that a secret lies in.
fn file_of(secret: &str) -> String {
    secret.replace("-secret", ".password")
}

/// A user's way to the broker; the passwords lie in files, as everybody keeps them.
struct Door {
    broker: Broker,
    folder: tempfile::TempDir,
}

impl Door {
    fn new() -> Door {
        let door = Door { broker: Broker::secure(), folder: tempfile::tempdir().unwrap() };
        for secret in SECRETS {
            std::fs::write(door.folder.path().join(file_of(secret)), format!("{secret}\n")).unwrap();
        }
        door
    }

    /// A command of `user` with the password in the file `secret`, who trusts `authority`.
    fn command(&self, args: &[&str], user: &str, secret: &str, authority: Option<&str>) -> Command {
        let mut command = millstream();
        command.args(args).args(["--brokers", &self.broker.secure_address()]);
        let secret = self.folder.path().join(file_of(secret));
        let mut option = |text: String| {
            command.args(["--option", &text]);
        };
        option("security.protocol=sasl_ssl".into());
        option("sasl.mechanism=SCRAM-SHA-512".into());
        option(format!("sasl.username={user}"));
        option(format!("sasl.password=@{}", secret.display()));
        authority.into_iter().for_each(|authority| option(format!("ssl.ca.location={authority}")));
        command
    }

    /// A topology that copies topic `from` to topic `to`, as alice.
    fn topology(&self, from: &str, to: &str, secret: &str) -> std::path::PathBuf {
        let (brokers, authority) = (self.broker.secure_address(), self.broker.authority());
        let options = format!(
            "options: {{ security.protocol: sasl_ssl, sasl.mechanism: SCRAM-SHA-512, sasl.username: alice, \
             sasl.password: \"${{file:{}}}\", ssl.ca.location: \"{}\" }}",
            file_of(secret),
            authority.display()
        );
        let text = format!(
            "
version: 1
name: {from}
sources:
  events:
    from:
      kafka:
        brokers: \"{brokers}\"
        topics: [{from}]
        {options}
    schema: {{ id: int64 }}
sinks:
  out:
    from: events
    to:
      kafka:
        brokers: \"{brokers}\"
        topic: {to}
        {options}
"
        );
        let path = self.folder.path().join("topology.yaml");
        std::fs::write(&path, text).unwrap();
        path
    }
}

fn run(command: &mut Command) -> Said {
    let said = Running::start(command).end();
    for secret in SECRETS {
        assert!(
            !said.err.contains(secret) && !said.out.contains(secret),
            "{secret} is shown: {}{}",
            said.out,
            said.err
        );
    }
    said
}

fn fails(command: &mut Command, says: &[&str]) {
    let said = run(command);
    assert_eq!(said.status.code(), Some(1), "{}", said.err);
    for text in says {
        assert!(said.err.contains(text), "`{text}` is not in: {}", said.err);
    }
}

#[test]
fn tls_passwords_and_rights() {
    let door = Door::new();
    let authority = door.broker.authority().display().to_string();
    let (from, to) = (unique("secure"), unique("secure-out"));
    let lines = door.folder.path().join("events.jsonl");
    std::fs::write(&lines, "{\"id\":1}\n{\"id\":2}\n").unwrap();
    create(&door.broker.address(), &to, 1, &[]);

    let produce = ["produce", lines.to_str().unwrap(), "--topic", &from, "--create", "1"];
    let consume = ["consume", &to, "--until-end", "--json"];
    let refused = ["sasl.username", "sasl.password", "Authentication failed"];
    fails(&mut door.command(&produce, "alice", "no-secret", Some(&authority)), &refused);
    let said = run(&mut door.command(&produce, "alice", "alice-secret", Some(&authority)));
    assert!(said.status.success(), "{}", said.err);

    a_job_copies(&door, &from, &to);
    let said = run(&mut door.command(&consume, "alice", "alice-secret", Some(&authority)));
    assert_eq!(said.out.lines().count(), 2, "{}{}", said.out, said.err);

    fails(&mut door.command(&consume, "alice", "no-secret", Some(&authority)), &refused);
    // Who trusts only the authorities of the system does not trust this broker.
    fails(&mut door.command(&consume, "alice", "alice-secret", None), &["certificate", "ssl.ca.location"]);
    let says = ["option `ssl.ca.location`: /absent.pem: No such file"];
    fails(&mut door.command(&consume, "alice", "alice-secret", Some("/absent.pem")), &says);
    fails(&mut door.command(&consume, "bob", "bob-secret", Some(&authority)), &["not allowed", "ACLs", &to]);
    // A client without TLS hears nothing at all.
    let address = door.broker.secure_address();
    fails(millstream().args(["consume", &to, "--brokers", &address]), &["no answer", "security.protocol", &address]);

    let topology = door.topology(&from, &to, "no-secret");
    fails(millstream().arg("run").arg(topology).args(["--http", "off"]), &refused);
}

/// Runs the topology until both events are there; no secret is in what it writes.
fn a_job_copies(door: &Door, from: &str, to: &str) {
    let topology = door.topology(from, to, "alice-secret");
    let mut running = Running::start(millstream().arg("run").arg(topology).args(["--http", "off", "--json"]));
    let consumer: BaseConsumer = client(&door.broker.address()).set("group.id", unique("secure")).create().unwrap();
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(to, 0, Offset::Beginning).unwrap();
    consumer.assign(&list).unwrap();
    for _ in 0..2 {
        assert!(running.runs(), "{}", running.err());
        consumer.poll(LONG).unwrap_or_else(|| panic!("no message: {}", running.err())).unwrap();
    }
    running.terminate();
    let said = running.end();
    assert_eq!(read_summary(&said)["events"]["events"], 2);
    let state = door.folder.path().join("state");
    let mut written = vec![said.err.into_bytes(), said.out.into_bytes()];
    let folders = [state.clone(), state.join("manifest"), state.join("seg")];
    let files = folders.iter().flat_map(|folder| std::fs::read_dir(folder).unwrap());
    written.extend(files.filter_map(|file| std::fs::read(file.unwrap().path()).ok()));
    assert!(written.len() > 3, "no state in {}", state.display());
    for bytes in written {
        let found = SECRETS.iter().find(|secret| String::from_utf8_lossy(&bytes).contains(*secret));
        assert_eq!(found, None, "in {}", String::from_utf8_lossy(&bytes));
    }
}
