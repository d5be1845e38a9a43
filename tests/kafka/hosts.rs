//! A job on several hosts: network namespaces, each with an address of its own and a cable to a switch.
//!
//! ```text
//! test ── proxy ──▶ broker                     on loopback of this machine, as always
//!           ▲ listens on loopback of a host
//! host 0 ───┴──┐
//! host 1 ──────┼── switch                      10.77.0.1, 10.77.0.2, 10.77.0.3
//! host 2 ──────┘
//! ```

use std::fs::File;
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::process::Command;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::Value;

use super::chaos::world::TOPICS;
use super::processes::at_hosts;
use super::proxy::Proxy;
use super::service::Service;
use super::*;
use crate::program::Running;

/// How many there are.
const HOSTS: usize = 3;

/// Runs `ip`, which only root may.
fn ip(arguments: &str) {
    let done = Command::new("ip").args(arguments.split(' ')).output();
    let done = done.expect("`ip` is there (Debian: apt-get install iproute2)");
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "`ip {arguments}`, to be run as root (or left out: `--skip kafka::hosts`): {said}");
}

/// The hosts and the switch between them; they are gone with the test.
struct Hosts {
    /// What their names begin with: no other test and no other run has it, and it is short enough for a name of a network device.
    name: String,
    /// How each reaches the broker.
    _proxies: Vec<Proxy>,
}

impl Hosts {
    fn start(brokers: &str) -> Hosts {
        let name = format!("ms{}", std::process::id());
        let mut hosts = Hosts { name, _proxies: Vec::new() };
        let name = hosts.name.clone();
        ip(&format!("link add {name} type bridge"));
        ip(&format!("link set {name} up"));
        for host in 0..HOSTS {
            let space = hosts.host(host);
            ip(&format!("netns add {space}"));
            ip(&format!("link add {space}a type veth peer name {space}b"));
            ip(&format!("link set {space}b netns {space}"));
            ip(&format!("link set {space}a master {name} up"));
            ip(&format!("-n {space} addr add {}/24 dev {space}b", address(host)));
            ip(&format!("-n {space} link set {space}b up"));
            ip(&format!("-n {space} link set lo up"));
            hosts._proxies.push(hosts.proxy(host, brokers));
        }
        hosts
    }

    /// The name of a host.
    fn host(&self, host: usize) -> String {
        format!("{}h{host}", self.name)
    }

    /// Has a host find the broker where it says that it is.
    fn proxy(&self, host: usize, brokers: &str) -> Proxy {
        let space = File::open(format!("/run/netns/{}", self.host(host))).unwrap();
        let at = brokers.to_string();
        // A thread of its own moves there; what it opens stays there, whoever uses it.
        let listening = std::thread::spawn(move || {
            move_into_link_name_space(space.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            TcpListener::bind(at).unwrap()
        });
        let proxy = Proxy::at(listening.join().unwrap());
        proxy.lead_to(proxy.port());
        proxy
    }

    /// Starts the job's process on a host, in the folder of `service`.
    fn run(&self, host: usize, service: &Service) -> Running {
        let run = service.command();
        let mut inside = Command::new("ip");
        inside.args(["netns", "exec", &self.host(host)]).arg(run.get_program());
        inside.envs(run.get_envs().filter_map(|(name, value)| Some((name, value?))));
        inside.arg("run").arg(service.topology()).args(["--process", &host.to_string(), "--http", "off", "--json"]);
        Running::start(&mut inside)
    }

    /// From now on nothing passes between two hosts, or everything does.
    fn part(&self, [one, other]: [usize; 2], parted: bool) {
        let what = if parted { "add" } else { "del" };
        for (from, to) in [(one, other), (other, one)] {
            ip(&format!("-n {} route {what} blackhole {}/32", self.host(from), address(to)));
        }
    }

    /// Pulls the cable of a host, or plugs it in.
    fn unplug(&self, host: usize, unplugged: bool) {
        let state = if unplugged { "down" } else { "up" };
        ip(&format!("link set {}a {state}", self.host(host)));
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        // Processes that are still there are the test's children and end with it.
        for host in 0..HOSTS {
            _ = Command::new("ip").args(["netns", "del", &self.host(host)]).status();
        }
        _ = Command::new("ip").args(["link", "del", &self.name]).status();
    }
}

fn address(host: usize) -> String {
    format!("10.77.0.{}", host + 1)
}

fn event(id: usize) -> String {
    format!("{{\"id\":{id},\"at\":{},\"card\":{},\"amount\":1}}", 1_700_000_000_000_i64 + id as i64, id % 7)
}

/// Every process ends with the code of a job that has lost one of its own, and one of them says which of `parted` it was.
fn check_lost(running: Vec<Running>, parted: &[u64]) {
    let mut named = Vec::new();
    for running in running {
        let said = running.end();
        assert_eq!(said.status.code(), Some(8), "{}", said.err);
        let lines = said.err.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let gone = lines.filter(|line| line["message"].as_str().is_some_and(|message| message.contains("is gone")));
        named.extend(gone.filter_map(|line| line["process"].as_u64()));
    }
    assert!(named.iter().any(|process| parted.contains(process)), "{named:?} are said to be gone");
}

#[test]
fn hosts_whose_network_fails_all_end_and_go_on_together() {
    let service = Service::new(brokers(), "chaos").create(TOPICS);
    let at: Vec<String> = (0..HOSTS).map(|host| format!("{}:7100", address(host))).collect();
    at_hosts(&service, &at, "a-secret-of-the-test");
    let hosts = Hosts::start(&service.brokers);
    // The others have the file and nothing else.
    let services = [&service, &service.copy(), &service.copy()];
    let start = || (0..HOSTS).map(|host| hosts.run(host, services[host])).collect::<Vec<_>>();

    service.send("events", 3, (1..=600).map(event));
    let mut running = start();
    service.until("vectors", 600, &mut running[0]);

    // Both still reach the coordinator, and nobody but they can notice.
    hosts.part([1, 2], true);
    service.send("events", 3, (601..=900).map(event));
    check_lost(running, &[1, 2]);
    hosts.part([1, 2], false);
    let mut running = start();
    service.until("vectors", 900, &mut running[0]);

    hosts.unplug(2, true);
    service.send("events", 3, (901..=1_200).map(event));
    check_lost(running, &[2]);
    hosts.unplug(2, false);
    let mut running = start();
    service.until("vectors", 1_200, &mut running[0]);

    running[1].terminate();
    for running in running {
        let said = running.end();
        assert!(said.status.success(), "{}", said.err);
    }
    let mut ids: Vec<u64> =
        service.consume("vectors").iter().map(|vector| vector["value"]["id"].as_u64().unwrap()).collect();
    ids.sort_unstable();
    assert_eq!(ids, (1..=1_200).collect::<Vec<u64>>(), "each once");
}
