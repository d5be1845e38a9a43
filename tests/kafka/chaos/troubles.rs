//! Troubles of a job's world that last for a while, whatever becomes of the job meanwhile: its network fails, its disk is full, its
//! broker dies and comes back.

use super::super::own_broker::Broker;
use super::super::proxy::{Network, Proxy, Request};
use super::super::service::Service;
use super::super::*;
use super::network;
use crate::program::Said;
use crate::random::Random;

/// How long a request is waited for whose answer is to be lost.
const SWALLOW_WITHIN: Duration = Duration::from_secs(8);

/// What happens for a while.
#[derive(Debug, Clone, Copy)]
enum Trouble {
    /// The disk of the state takes nothing.
    FullDisk(Duration),
    Network(network::Trouble),
    /// The only broker is killed, and after a while started again.
    BrokerDies(Duration),
}

impl Trouble {
    fn name(self) -> &'static str {
        match self {
            Trouble::FullDisk(_) => "full disk",
            Trouble::Network(_) => "network",
            Trouble::BrokerDies(_) => "broker",
        }
    }
}

/// Where troubles come from. One at a time.
pub struct Troubles {
    outside: Arc<Outside>,
    under_way: Option<JoinHandle<()>>,
    /// How many there were of each kind.
    counts: BTreeMap<&'static str, u64>,
    /// The last one, if it was not over when the job was started.
    last: Option<Trouble>,
}

struct Outside {
    /// The disk is full as long as there is this file.
    full: PathBuf,
    /// The job's own broker and what leads there, if it has one.
    broker: Option<(Proxy, Broker)>,
    _folder: tempfile::TempDir,
}

impl Troubles {
    /// Full disks only.
    pub fn of_disk() -> Troubles {
        Troubles::of(None)
    }

    /// The job of the chaos tests, which reaches a broker of its own by a proxy, and troubles of all kinds for it. Its topics are not
    /// there yet.
    pub fn of_all() -> (Service, Troubles) {
        let proxy = Proxy::start();
        let broker = Broker::behind(&proxy);
        let service = Service::new(broker.address(), "chaos").set("TRANSACTION_TIMEOUT", network::TRANSACTION_TIMEOUT);
        let service = service.set("BROKERS", &proxy.address());
        (service, Troubles::of(Some((proxy, broker))))
    }

    fn of(broker: Option<(Proxy, Broker)>) -> Troubles {
        let folder = tempfile::tempdir().unwrap();
        let outside = Outside { full: folder.path().join("full"), broker, _folder: folder };
        Troubles { outside: Arc::new(outside), under_way: None, counts: BTreeMap::new(), last: None }
    }

    /// What a job is to be started with, so that its disk can be full.
    pub fn failpoint(&self) -> String {
        format!("disk-full={}", self.outside.full.display())
    }

    /// Has one begin in a moment, when the last one is over.
    pub fn begin(&mut self, random: &mut Random) {
        self.end();
        let trouble = self.outside.next(self.counts.values().sum(), random);
        self.last = Some(trouble);
        *self.counts.entry(trouble.name()).or_default() += 1;
        println!("trouble: {trouble:?}");
        let (outside, pause) = (self.outside.clone(), Duration::from_millis(random.below(3_000)));
        self.under_way = Some(std::thread::spawn(move || {
            std::thread::sleep(pause);
            outside.befall(trouble);
        }));
    }

    /// Waits until the last one is over.
    pub fn end(&mut self) {
        if let Some(trouble) = self.under_way.take() {
            trouble.join().expect("a trouble ends");
        }
    }

    /// The job is started. What was over before has nothing to do with how it ends.
    pub fn job_starts(&mut self) {
        self.last = self.last.filter(|_| self.under_way.as_ref().is_some_and(|trouble| !trouble.is_finished()));
    }

    /// What a job has died of that may have ended like that, worth another start: one that was without its broker for too long, or that
    /// finds a full disk where it starts. One that works waits for its disk.
    pub fn excuse(&self, said: &Said) -> Option<&'static str> {
        match (self.last?, said.status.code()) {
            (Trouble::FullDisk(_), Some(7)) if !said.err.contains("\"reading\"") => Some("of a full disk"),
            (Trouble::Network(_) | Trouble::BrokerDies(_), Some(1)) => Some("of its broker"),
            _ => None,
        }
    }

    /// A line for each kind that there was.
    pub fn told(&self) -> String {
        self.counts.iter().map(|(name, count)| format!("  trouble: {name:<14} {count:>4}\n")).collect()
    }
}

impl Outside {
    /// The trouble whose turn it is: a run that is long enough has all of them. They last for as long as is drawn.
    fn next(&self, turn: u64, random: &mut Random) -> Trouble {
        let so_long = |random: &mut Random, max: u64| Duration::from_millis(1_000 + random.below(1_000 * (max - 1)));
        if self.broker.is_none() {
            return Trouble::FullDisk(so_long(random, 2));
        }
        let long = so_long(random, 8);
        let lasts = |network| Trouble::Network(network::Trouble::Lasts(network, long));
        let all = [
            lasts(Network::Refuses),
            // A start takes some seconds as well.
            Trouble::BrokerDies(so_long(random, 3)),
            Trouble::Network(network::Trouble::Swallow(Request::EndTxn)),
            lasts(Network::Stalls),
            Trouble::FullDisk(long),
            Trouble::Network(network::Trouble::Reset),
            lasts(Network::Mute),
            Trouble::Network(network::Trouble::Swallow(Request::TxnOffsetCommit)),
        ];
        all[turn as usize % all.len()]
    }

    fn befall(&self, trouble: Trouble) {
        match (trouble, &self.broker) {
            (Trouble::FullDisk(pause), _) => {
                std::fs::write(&self.full, "").unwrap();
                std::thread::sleep(pause);
                std::fs::remove_file(&self.full).unwrap();
            }
            // A job that was killed may not be there to make a request.
            (Trouble::Network(trouble), Some((proxy, _))) => _ = trouble.befall(proxy, SWALLOW_WITHIN),
            (Trouble::BrokerDies(pause), Some((_, broker))) => {
                broker.run(&["kill", "1"]);
                std::thread::sleep(pause);
                broker.run(&["start", "1"]);
            }
            (_, None) => unreachable!("there is no broker of its own"),
        }
    }
}
