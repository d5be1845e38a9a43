//! Runs a job from death to death, and in the end holds all that came out against what had to.

use std::cell::Cell;

use millstream::failpoint::{Flaw, Point};

use super::super::service::{Service, address};
use super::super::*;
use super::deaths::{Deaths, Step, Steps, died_at};
use super::troubles::Troubles;
use super::world::{TOPICS, World, Written};
use crate::program::{Running, Said};

/// How long outputs may not grow before it is clear that nothing more comes.
const SILENCE: Duration = Duration::from_secs(60);
/// The same for a job that is known to be wrong.
const SILENCE_OF_THE_WRONG: Duration = Duration::from_secs(3);
/// How long something is waited for that comes, also on a busy machine.
const PATIENCE: Duration = Duration::from_secs(180);
/// The same for a step that may not come.
const SEARCH: Duration = Duration::from_secs(10);
/// How often a job is started again that is to go on and ends such that it is worth it.
const STARTS: usize = 5;
/// How often something is looked at that is waited for.
const LOOK: Duration = Duration::from_millis(5);

/// How a run of the job ends.
#[derive(Debug, Clone, Copy)]
pub enum Death {
    /// It is killed so long after its start.
    Early(Duration),
    /// It is killed so long after it has made a checkpoint.
    Working(Duration),
    /// It dies by itself when it comes by for this time.
    At(Point, u64),
    /// The same, or it is killed if it does not come by for long.
    Sought(Step),
    /// It is frozen for so long, another copy works meanwhile, it wakes up and ends; then the other is killed.
    Frozen(Duration),
}

impl Death {
    /// What deaths of this kind are counted by.
    fn name(self) -> &'static str {
        match self {
            Death::Early(_) => "at the start",
            Death::Working(_) => "at work",
            Death::At(point, _) => point.name(),
            Death::Sought(_) => "looking for a step",
            Death::Frozen(_) => "frozen",
        }
    }
}

/// A job, its topics, who writes and who reads.
pub struct Chaos {
    pub service: Service,
    world: World,
    /// A mistake that it makes in every run.
    flaw: Option<Flaw>,
    /// More that is set for every run but the last.
    pub pauses: &'static str,
    runs: u64,
    pub deaths: Deaths,
    /// Steps to die at.
    pub steps: Steps,
    /// What happens around it.
    pub troubles: Troubles,
    /// The folders of copies that were frozen.
    former: Vec<Service>,
}

impl Chaos {
    /// The job of most tests, on the brokers of all tests.
    pub fn new(seed: u64) -> Chaos {
        Chaos::of(Service::new(brokers(), "chaos"), seed)
    }

    /// The same job with a mistake.
    pub fn wrong(self, flaw: Flaw) -> Chaos {
        Chaos { flaw: Some(flaw), ..self }
    }

    /// A job whose topics are not there yet.
    pub fn of(service: Service, seed: u64) -> Chaos {
        let service = service.create(TOPICS);
        Chaos {
            world: World::around(&service, seed),
            service,
            flaw: None,
            pauses: "",
            runs: 0,
            deaths: Deaths::default(),
            steps: Steps::without(Point::ALL),
            troubles: Troubles::of_disk(),
            former: Vec::new(),
        }
    }

    /// The same job, which may die at these steps.
    pub fn with_steps(self, steps: Steps) -> Chaos {
        Chaos { steps, ..self }
    }

    /// The same job in another world.
    pub fn with_troubles(self, troubles: Troubles) -> Chaos {
        Chaos { troubles, ..self }
    }

    /// Whether it makes a mistake.
    pub fn is_wrong(&self) -> bool {
        self.flaw.is_some()
    }

    /// How often it was started.
    pub fn runs(&self) -> u64 {
        self.runs
    }

    /// How many vectors and dead letters have been read.
    pub fn read(&self) -> usize {
        self.world.read()
    }

    /// Starts the job.
    pub fn start(&mut self, workers: u64, failpoints: &str) -> Running {
        self.runs += 1;
        self.troubles.job_starts();
        let (flaw, disk) = (self.flaw.map_or("", Flaw::name), self.troubles.failpoint());
        let mut command = self.service.command();
        command.env("MILLSTREAM_FAILPOINTS", format!("{flaw},{disk},{failpoints}"));
        command.arg("run").arg(self.service.topology()).arg("--json");
        Running::start(command.args(["--workers", &workers.to_string(), "--http", "127.0.0.1:0"]))
    }

    /// Waits for a checkpoint that is newer than of epoch `before`, or the job's end.
    pub fn until_checkpoint(&self, running: &mut Running, before: u64) {
        // Looked at once more it may be swept already, with the next not seen.
        let is_there = Cell::new(false);
        until(running, |_| {
            is_there.set(self.service.newest_epoch() > before);
            is_there.get()
        });
        let works = !running.runs() || is_there.get();
        assert!(works, "no checkpoint after epoch {before} for {PATIENCE:?}: {}", running.err());
    }

    /// Runs the job until its death. One that ends by itself before, such that it is worth it, is started again.
    pub fn live(&mut self, workers: u64, death: Death) {
        for _ in 0..STARTS {
            let running = self.run(workers, death);
            if let Some(name) = self.died_of(running, workers, death) {
                println!(
                    "run {}: {workers} workers, {death:?}: {name}, {} events written",
                    self.runs,
                    self.world.written()
                );
                self.died(&name);
                return;
            }
            self.died("by itself");
        }
        panic!("{death:?}, {workers} workers: it ends again and again");
    }

    fn run(&mut self, workers: u64, death: Death) -> Running {
        let failpoint = match death {
            Death::At(point, times) => format!("{},{}=kill@{times}", self.pauses, point.name()),
            Death::Sought(step) => format!("{},{step}", self.pauses),
            _ => self.pauses.to_string(),
        };
        let before = self.service.newest_epoch();
        let mut running = self.start(workers, &failpoint);
        match death {
            Death::Early(pause) => std::thread::sleep(pause),
            Death::Working(pause) => {
                self.until_checkpoint(&mut running, before);
                std::thread::sleep(pause);
            }
            Death::At(..) => until(&mut running, |_| false),
            Death::Sought(_) => wait(&mut running, SEARCH, |_| false),
            Death::Frozen(pause) => {
                self.until_checkpoint(&mut running, before);
                running = self.replace(running, workers, pause);
            }
        }
        running
    }

    /// Kills the job unless it has died by itself, as it may, and gives what it has died of; `None` if it ended as one that is to be
    /// started again, without a trouble of these tests: on a busy machine brokers take their time.
    fn died_of(&self, mut running: Running, workers: u64, death: Death) -> Option<String> {
        let at = match death {
            Death::At(point, _) => Some(point),
            Death::Sought(step) => Some(step.point),
            _ => None,
        };
        if running.runs() {
            assert!(!matches!(death, Death::At(..)), "run {} ({death:?}) goes on: {}", self.runs, running.err());
            return Some(death.name().to_owned());
        }
        let said = running.end();
        let last = said.err.lines().last().unwrap_or_default();
        match (died_at(&said.err).first(), self.troubles.excuse(&said)) {
            (Some(point), _) if at == Some(*point) => Some(point.name().to_owned()),
            (None, Some(excuse)) => {
                println!("{last}");
                Some(excuse.to_owned())
            }
            (None, None) if said.status.code() == Some(1) => {
                println!("run {} ({death:?}, {workers} workers) is started again: {last}", self.runs);
                None
            }
            _ => panic!("run {} ({death:?}, {workers} workers): {}: {}", self.runs, said.status, said.err),
        }
    }

    /// Kills the job and starts it again.
    pub fn restart(&mut self, running: Running, workers: u64) -> Running {
        drop(running);
        self.died("killed");
        self.start(workers, "")
    }

    /// Waits until outputs come that were not there.
    pub fn goes_on(&self, running: &mut Running) {
        // What is committed just now may have been decided before.
        let before = self.read() + 500;
        until(running, |_| self.read() > before);
        assert!(running.runs() && self.read() > before, "it does not go on: {}", running.err());
    }

    /// The same of a job that is watched.
    pub fn kept_on(&mut self, mut running: Running) -> Running {
        let before = self.read() + 500;
        for _ in 0..STARTS {
            until(&mut running, |_| self.read() > before);
            if running.runs() {
                assert!(self.read() > before, "it does not go on: {}", running.err());
                return running;
            }
            running = self.start_again(running).unwrap();
        }
        panic!("it ends again and again: {}", running.err());
    }

    /// Starts a job again that has ended such that it is worth it, as whoever watches one does: on a busy machine it may take longer for a
    /// transaction than these tests let it. An error is what another one said.
    fn start_again(&mut self, ended: Running) -> Result<Running, String> {
        let said = ended.end();
        if said.status.code() != Some(1) {
            return Err(format!("it has ended: {}: {}", said.status, said.err));
        }
        println!("it is started again: {}", said.err.lines().last().unwrap_or_default());
        self.died("by itself");
        Ok(self.start(2, ""))
    }

    /// Starts another copy beside one that runs, which must end. Gives the other.
    pub fn replaced(&mut self, mut first: Running, workers: u64) -> Running {
        let mut other = self.start(workers, "");
        let deadline = Instant::now() + PATIENCE;
        while first.runs() || !other.runs() {
            assert!(Instant::now() < deadline, "it goes on: {}\nthe other: {}", first.err(), other.err());
            if !other.runs() {
                // A start gives up on a broker that does not answer, as those of a busy machine, and on a first copy that was
                // itself only starting: one of the two takes over last, and one takes the transactions last.
                let said = other.end();
                assert!(matches!(said.status.code(), Some(1 | 4)), "{}: {}", said.status, said.err);
                println!("{}", said.err.lines().last().unwrap_or_default());
                other = self.start(workers, "");
            }
            std::thread::sleep(LOOK);
        }
        check_lost(&first.end());
        self.died("replaced");
        other
    }

    /// Counts a death.
    pub fn died(&mut self, name: &str) {
        self.deaths.count(name);
    }

    /// Freezes a copy for so long, while another takes over and works, and wakes it up: it must end. Gives the other.
    fn replace(&mut self, mut frozen: Running, workers: u64, pause: Duration) -> Running {
        let until_awake = Instant::now() + pause;
        assert!(frozen.runs(), "{}", frozen.err());
        frozen.signal("STOP");
        self.move_away();
        let before = self.service.newest_epoch();
        let mut other = self.start(1 + workers % 3, self.pauses);
        self.until_checkpoint(&mut other, before);
        std::thread::sleep(until_awake.saturating_duration_since(Instant::now()));
        frozen.signal("CONT");
        check_lost(&frozen.end());
        assert!(other.runs(), "{}", other.err());
        other
    }

    /// Goes on on another machine, with a copy of the job's folder. The old one stays as it is.
    pub fn move_away(&mut self) {
        let copy = self.service.copy();
        self.former.push(std::mem::replace(&mut self.service, copy));
    }

    /// A last run, which is left alone until all has come that will come, and is told to stop; then what is wrong with any
    /// of the outputs.
    pub fn finish(mut self, workers: u64) -> Result<Service, String> {
        self.troubles.end();
        let running = self.start(workers, "");
        std::thread::sleep(Duration::from_millis(300));
        self.finish_with(running)
    }

    /// The same with a job that runs.
    pub fn finish_with(mut self, mut running: Running) -> Result<Service, String> {
        let is_wrong = self.is_wrong();
        // One that was stopped before it reads has not started.
        until(&mut running, reads);
        let written = self.world.stop(&self.service);
        running = self.last_run(running, &written)?;
        let Chaos { world, service, runs, deaths, steps, troubles, .. } = self;
        let served = match is_wrong {
            true => Ok(()),
            false => written.check_served(&address(&mut running)).map_err(|wrong| format!("served features: {wrong}")),
        };
        running.terminate();
        let said = running.end();
        if !said.status.success() {
            return Err(format!("the last run: {}: {}", said.status, said.err));
        }
        let [events, rejects, signals] = world.check(&written, &service, &said)?;
        served?;
        print!("{}{}", deaths.table(&steps), troubles.told());
        println!(
            "{} deaths, {runs} generations, {events} events, {rejects} dead letters, {signals} signals: 0 lost, 0 repeated",
            runs - 1
        );
        Ok(service)
    }

    /// Leaves a job alone until all has come of what is written that will come. One that is right is watched.
    fn last_run(&mut self, mut running: Running, written: &Written) -> Result<Running, String> {
        let silence = if self.is_wrong() { SILENCE_OF_THE_WRONG } else { SILENCE };
        for _ in 0..STARTS {
            until(&mut running, reads);
            self.world.settle(written, &mut running, &self.service, silence);
            if running.runs() {
                assert!(reads(&running), "it does not begin: {}", running.err());
                return Ok(running);
            }
            if self.is_wrong() {
                return Err(format!("the last run has ended: {}", running.err()));
            }
            running = self.start_again(running)?;
        }
        Err(format!("it ends again and again: {}", running.err()))
    }
}

/// Whether a job has begun to read.
fn reads(running: &Running) -> bool {
    running.err().contains("\"reading\"")
}

/// Waits until it is `done`, the job has ended, or it has been long enough.
pub fn until(running: &mut Running, done: impl Fn(&Running) -> bool) {
    wait(running, PATIENCE, done);
}

/// The same for so long.
fn wait(running: &mut Running, patience: Duration, done: impl Fn(&Running) -> bool) {
    let deadline = Instant::now() + patience;
    while running.runs() && !done(running) && Instant::now() < deadline {
        std::thread::sleep(LOOK);
    }
}

/// Waits until the job waits at a failpoint.
pub fn until_waiting(running: &mut Running, point: Point) {
    let waits = |running: &Running| {
        let err = running.err();
        err.contains("failpoint: waiting") && err.contains(point.name())
    };
    until(running, waits);
    assert!(running.runs() && waits(running), "{}", running.err());
}

/// What a job said that has lost against another copy.
pub fn check_lost(said: &Said) {
    assert_eq!(said.status.code(), Some(4), "{}", said.err);
    assert!(said.err.contains("another copy of this job has taken over"), "{}", said.err);
}
