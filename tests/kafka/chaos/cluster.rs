//! Three brokers, of which one dies at a time: leaders of partitions move, and coordinators of transactions and of groups.

use super::super::own_broker::Broker;
use super::super::service::Service;
use super::super::*;
use super::driver::Chaos;
use crate::random::{Random, seed, variable};

/// Brokers that die in a long run: one in so many kills of the job. Three brokers take a minute to start on a small machine, so
/// that a short run does without.
const KILLS_PER_BROKER: u64 = 15;

/// Every partition, also of the brokers' own topics, has three replicas, of which two must have a record.
#[test]
fn a_broker_of_three_dies_and_the_job_goes_on() {
    let Some(kills) = variable("KILLS").map(|kills| kills / KILLS_PER_BROKER).filter(|kills| *kills > 0) else {
        println!("only with KILLS={KILLS_PER_BROKER} or more");
        return;
    };
    let cluster = Broker::cluster();
    let seed = seed();
    let mut random = Random(seed);
    let mut chaos = Chaos::of(Service::new(cluster.address(), "chaos"), seed);
    let mut running = chaos.start(2, "");
    for kill in 0..kills {
        running = chaos.kept_on(running);
        let broker = (1 + (seed + kill) % 3).to_string();
        let begun = Instant::now();
        cluster.run(&["kill", &broker]);
        running = chaos.kept_on(running);
        println!("broker {broker} has died: the job goes on after {:.1} s", begun.elapsed().as_secs_f64());
        // Also a start finds its coordinators, with two brokers or with three.
        if random.below(2) == 0 {
            running = chaos.restart(running, 1 + random.below(3));
            running = chaos.kept_on(running);
        }
        cluster.run(&["start", &broker]);
    }
    chaos.finish_with(running).unwrap();
}
