//! Where jobs die: steps to be drawn, and what was died of.

use std::collections::BTreeMap;
use std::fmt;

use millstream::failpoint::Point;

use super::MANY;
use crate::random::Random;

/// Steps to die at: in an order that is drawn, each once before one comes again, so that a run that is long enough has all.
pub struct Steps {
    all: Vec<Point>,
    left: Vec<Point>,
}

/// A death at a step, as `MILLSTREAM_FAILPOINTS` has it.
#[derive(Debug, Clone, Copy)]
pub struct Step {
    pub point: Point,
    /// `kill`, or `panic` as a bug would.
    action: &'static str,
    /// When it is come by for this time.
    times: u64,
}

impl Step {
    /// A bug that comes to light there.
    pub fn panic(point: Point, times: u64) -> Step {
        Step { point, action: "panic", times }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}@{}", self.point.name(), self.action, self.times)
    }
}

impl Steps {
    /// All but these, which a job never comes by, or not soon.
    pub fn without(points: &[Point]) -> Steps {
        let all = Point::ALL.iter().copied().filter(|point| !points.contains(point)).collect();
        Steps { all, left: Vec::new() }
    }

    /// The same for a run of so many deaths: merges come late, and few are not worth the time.
    pub fn of_run(kills: u64, never: &[Point]) -> Steps {
        if kills < MANY { Steps::without(&[never, &[Point::BaseMerged]].concat()) } else { Steps::without(never) }
    }

    /// The next step, and for how many times it is come by: soon, by a job that works.
    pub fn draw(&mut self, random: &mut Random) -> Step {
        if self.left.is_empty() {
            self.left.clone_from(&self.all);
        }
        let point = self.left.swap_remove(random.below(self.left.len() as u64) as usize);
        let times = match point {
            Point::StateLoaded | Point::JobTakenOver | Point::FileCut | Point::BaseMerged => 1,
            Point::TableStaged
            | Point::TableCommitted
            | Point::WritersFenced
            | Point::MarkerFound
            | Point::OutboxSent
            | Point::FileSwept => 1 + random.below(2),
            _ => 1 + random.below(12),
        };
        let action = if random.below(4) == 0 { "panic" } else { "kill" };
        Step { point, action, times }
    }
}

/// The steps at which processes have died by themselves, by their log.
pub fn died_at(log: &str) -> Vec<Point> {
    let at = |line: &str| {
        let died = |point: &&Point| {
            line.contains("failpoint: dying") && line.contains(&format!("\"point\":\"{}\"", point.name()))
                || line.contains(&format!("failpoint: {}", point.name()))
        };
        Point::ALL.iter().find(died).copied()
    };
    log.lines().filter_map(at).collect()
}

/// What was died of, and how often.
#[derive(Default)]
pub struct Deaths(BTreeMap<String, u64>);

impl Deaths {
    /// Counts one.
    pub fn count(&mut self, name: &str) {
        *self.0.entry(name.to_owned()).or_default() += 1;
    }

    /// A line for each way to die, and for each step of `steps`, also where nobody died.
    pub fn table(&self, steps: &Steps) -> String {
        let steps = steps.all.iter().map(|point| point.name());
        let others = self.0.keys().map(String::as_str).filter(|name| !steps.clone().any(|step| step == *name));
        let line = |name: &str| format!("  died: {name:<22} {:>4}\n", self.0.get(name).copied().unwrap_or(0));
        others.chain(steps.clone()).map(line).collect()
    }
}
