//! A network that fails between a job and its broker, while who writes the events and reads the outputs has another one.

use millstream::failpoint::Flaw;

use super::super::own_broker::Broker;
use super::super::proxy::{Network, Proxy, Request};
use super::super::service::Service;
use super::super::*;
use super::driver::{Chaos, until};
use crate::program::Running;
use crate::random::{Random, seed, variable};

/// How long a job waits for an answer whose transactions may be open for so long.
pub const TRANSACTION_TIMEOUT: &str = "12s";
const ANSWER_WAIT: Duration = Duration::from_secs(3);

/// What happens to the network. It works again afterwards.
#[derive(Debug, Clone, Copy)]
pub enum Trouble {
    /// All connections are reset.
    Reset,
    /// It is like that for a while. When nobody can connect, all connections are reset as well.
    Lasts(Network, Duration),
    /// A request is carried out, and its answer is lost.
    Swallow(Request),
    /// The same, and the job is killed.
    SwallowAndKill(Request),
}

const TROUBLES: [Trouble; 11] = [
    Trouble::Reset,
    Trouble::Lasts(Network::Refuses, Duration::from_secs(2)),
    // Shorter than anybody waits.
    Trouble::Lasts(Network::Stalls, Duration::from_secs(1)),
    // Until requests are made again.
    Trouble::Lasts(Network::Mute, ANSWER_WAIT.saturating_add(Duration::from_millis(1500))),
    Trouble::Swallow(Request::EndTxn),
    Trouble::SwallowAndKill(Request::EndTxn),
    Trouble::Swallow(Request::Produce),
    Trouble::Swallow(Request::AddPartitionsToTxn),
    Trouble::SwallowAndKill(Request::TxnOffsetCommit),
    Trouble::Swallow(Request::TxnOffsetCommit),
    Trouble::Swallow(Request::AddOffsetsToTxn),
];

impl Trouble {
    /// Has it happen. False if nobody has made the request within so long whose answer was to be lost.
    pub fn befall(self, proxy: &Proxy, patience: Duration) -> bool {
        match self {
            Trouble::Reset => proxy.cut(),
            Trouble::Lasts(network, pause) => {
                proxy.set(network);
                if network == Network::Refuses {
                    proxy.cut();
                }
                std::thread::sleep(pause);
                proxy.set(Network::Works);
            }
            Trouble::Swallow(request) | Trouble::SwallowAndKill(request) => {
                return proxy.swallow_answer(request, patience);
            }
        }
        true
    }
}

/// A job behind a proxy, with a broker of its own.
struct Behind {
    proxy: Proxy,
    chaos: Chaos,
    running: Running,
    _broker: Broker,
}

impl Behind {
    fn start() -> Behind {
        let proxy = Proxy::start();
        let broker = Broker::behind(&proxy);
        let service = Service::new(broker.address(), "chaos").set("TRANSACTION_TIMEOUT", TRANSACTION_TIMEOUT);
        let mut chaos = Chaos::of(service.set("BROKERS", &proxy.address()), seed());
        let running = chaos.start(2, "");
        Behind { proxy, chaos, running, _broker: broker }
    }

    fn lives_through(mut self, trouble: Trouble) -> Behind {
        self.running = self.chaos.kept_on(self.running);
        let begun = Instant::now();
        while !trouble.befall(&self.proxy, LONG) {
            assert!(!self.running.runs(), "{trouble:?}: there is no such request: {}", self.running.err());
            self.running = self.chaos.kept_on(self.running);
        }
        if let Trouble::SwallowAndKill(_) = trouble {
            let workers = 1 + self.chaos.runs() % 3;
            self.running = self.chaos.restart(self.running, workers);
        }
        self.running = self.chaos.kept_on(self.running);
        println!("{trouble:?}: {:.1} s", begun.elapsed().as_secs_f64());
        self
    }
}

#[test]
fn a_network_that_fails_costs_time_and_nothing_else() {
    let mut behind = Behind::start();
    for trouble in TROUBLES {
        behind = behind.lives_through(trouble);
    }
    let mut random = Random(seed());
    for _ in 0..variable("KILLS").unwrap_or(0) / 4 {
        behind = behind.lives_through(TROUBLES[random.below(TROUBLES.len() as u64) as usize]);
    }
    behind.chaos.finish_with(behind.running).unwrap();
}

/// Longer than a call to the brokers may take before it is made again, and shorter than a transaction may be open.
const LONGER_THAN_A_CALL: Duration = Duration::from_secs(13);
/// A quarter of that is how long an answer is waited for: longer than a call, too.
const FOUR_TIMES_LONGER: &str = "48s";
/// When a request without an answer has been made again.
const LONGER_THAN_AN_ANSWER: Duration = Duration::from_secs(14);

#[test]
fn a_call_without_an_answer_is_made_again_and_a_job_that_does_not_ends() {
    let proxy = Proxy::start();
    let broker = Broker::behind(&proxy);
    let behind = || {
        let service = Service::new(broker.address(), "chaos").set("BROKERS", &proxy.address());
        service.set("TRANSACTION_TIMEOUT", FOUR_TIMES_LONGER)
    };
    let seed = seed();
    let (mut right, mut wrong) = (Chaos::of(behind(), seed), Chaos::of(behind(), seed).wrong(Flaw::NoRetry));
    // Most of the time there is a commit to come, and not a marker, for which there is no such limit.
    let commits_late = "marker-sent=sleep:500";
    let (mut running, mut ending) = (right.start(1, commits_late), wrong.start(1, commits_late));
    right.goes_on(&mut running);
    wrong.goes_on(&mut ending);
    // Not each finds both in the middle of a call.
    let have_met_it =
        |running: &Running, ending: &mut Running| running.err().contains("trying again") && !ending.runs();
    let waits = |running: &Running| running.err().matches("failpoint: waiting").count();
    for _ in 0..4 {
        let before = waits(&running);
        until(&mut running, |running| waits(running) > before);
        Trouble::Lasts(Network::Stalls, LONGER_THAN_A_CALL).befall(&proxy, LONG);
        right.goes_on(&mut running);
        if have_met_it(&running, &mut ending) {
            break;
        }
    }
    assert!(running.err().contains("trying again"), "{}", running.err());
    // One call makes its requests again by itself, and has as long for it as the transaction may be open.
    assert!(proxy.swallow_answer(Request::TxnOffsetCommit, LONG));
    std::thread::sleep(LONGER_THAN_AN_ANSWER);
    right.goes_on(&mut running);
    right.finish_with(running).unwrap();
    assert!(!ending.runs(), "it goes on: {}", ending.err());
    let said = ending.end();
    assert_eq!(said.status.code(), Some(1), "{}", said.err);
}
