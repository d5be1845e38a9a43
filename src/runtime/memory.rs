//! The memory budget: above it sources are held, until what they have given is through and its memory has come free.
//!
//! ```text
//! resident  ── budget ──────╱╲──────────────╱╲─────
//!           ── nine tenths ╱──╲────────────╱──╲────
//! sources    read          wait  read      wait  read
//! ```
//! What is measured is what the kernel would kill the process for: its resident memory, with whatever libraries take. It
//! may be above the budget without any backlog: keyed state, models, the window of an outcome. Then waiting is no
//! use, and a job that waited for ever would be as dead as one that is killed: when nothing comes free, sources get a breath
//! now and then, the log says what is needed, and the job goes on slowly.

use std::fs;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::shared::Gates;
use crate::metrics::process;
use crate::topology::Engine;

/// How often the memory is looked at.
const EVERY: Duration = Duration::from_millis(50);
/// How long nothing may come free before sources get a breath.
const NOTHING_FREE: Duration = Duration::from_millis(500);
/// How long a breath is.
const BREATH: Duration = Duration::from_millis(100);
/// How often the log says that the budget is too small.
const TELL_EVERY: Duration = Duration::from_secs(60);
/// What a process may take of the machine's memory, or of its container's, in percent.
const DEFAULT_PERCENT: u64 = 80;

/// Holds the sources while the process has more memory than it should.
#[derive(Debug)]
pub struct Budget {
    bytes: u64,
    looked: Instant,
    standing: Standing,
    told: Option<Instant>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Standing {
    /// Sources read.
    Open,
    /// They wait: the least memory since, and when that was.
    Shut { least: u64, since: Instant },
    /// They read for a moment.
    Breath { until: Instant },
}

impl Budget {
    /// What the engine's settings say, or most of what there is.
    pub fn new(engine: &Engine) -> Budget {
        let bytes = engine.memory.map_or_else(default_bytes, |memory| memory.0);
        Budget { bytes, looked: Instant::now(), standing: Standing::Open, told: None }
    }

    /// The budget in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Looks at the memory, some times a second however often it is called, and shuts or opens the gate of the sources.
    pub fn look_after(&mut self, gates: &Gates) {
        let now = Instant::now();
        if now.duration_since(self.looked) < EVERY {
            return;
        }
        self.looked = now;
        // A system that does not say has no budget.
        let Some(resident) = process::resident_bytes() else { return };
        gates.memory_shut.store(self.holds(resident, now), Ordering::Relaxed);
    }

    /// Whether sources wait, with so much memory.
    fn holds(&mut self, resident: u64, now: Instant) -> bool {
        let (mebibytes, budget) = (resident >> 20, self.bytes >> 20);
        let shut = Standing::Shut { least: resident, since: now };
        self.standing = match self.standing {
            Standing::Open if resident > self.bytes => {
                tracing::warn!(mebibytes, budget, "memory is above `engine.memory`: sources wait until it comes free");
                shut
            }
            Standing::Shut { .. } | Standing::Breath { .. } if resident < self.bytes / 10 * 9 => {
                tracing::info!(mebibytes, budget, "memory has come free: sources go on");
                Standing::Open
            }
            Standing::Shut { least, .. } if resident < least - least / 200 => shut,
            Standing::Shut { since, .. } if now.duration_since(since) > NOTHING_FREE => {
                if resident > self.bytes && self.told.is_none_or(|told| now.duration_since(told) > TELL_EVERY) {
                    self.told = Some(now);
                    tracing::error!(
                        mebibytes,
                        budget,
                        "`engine.memory` is less than the job has without any backlog: it goes on slowly. Give it more, or \
                         less state: fewer keys, shorter windows"
                    );
                }
                Standing::Breath { until: now + BREATH }
            }
            Standing::Breath { until } if now >= until => shut,
            standing => standing,
        };
        matches!(self.standing, Standing::Shut { .. })
    }
}

/// Most of what the machine has, or its container.
fn default_bytes() -> u64 {
    let kilobytes = |text: String| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?.trim().strip_suffix("kB")?.trim();
        line.parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
    };
    let machine = fs::read_to_string("/proc/meminfo").ok().and_then(kilobytes);
    let limits = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];
    let container = limits.iter().filter_map(|path| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok()).min();
    let least = machine.into_iter().chain(container).min();
    least.map_or(u64::MAX, |bytes| bytes / 100 * DEFAULT_PERCENT)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Memory in MiB, looked at every 50 ms: whether sources wait.
    fn held(budget: &mut Budget, now: &mut Instant, resident: &[u64]) -> Vec<bool> {
        let look = |resident: &u64| {
            *now += EVERY;
            budget.holds(resident << 20, *now)
        };
        resident.iter().map(look).collect()
    }

    fn budget() -> Budget {
        Budget { bytes: 100 << 20, looked: Instant::now(), standing: Standing::Open, told: None }
    }

    #[test]
    fn sources_wait_until_much_has_come_free() {
        let (mut budget, mut now) = (budget(), Instant::now());
        let looks = held(&mut budget, &mut now, &[50, 100, 101, 99, 95, 91, 89, 95, 100, 101, 80]);
        assert_eq!(looks, [false, false, true, true, true, true, false, false, false, true, false]);
    }

    /// Where memory does not come free, there is a breath each half second, and one line a minute.
    #[test]
    fn a_budget_that_is_too_small_slows_a_job_and_does_not_stop_it() {
        let (mut budget, mut now) = (budget(), Instant::now());
        let looks = held(&mut budget, &mut now, &[120; 1_000]);
        let reads = looks.iter().filter(|held| !**held).count();
        assert!((100..300).contains(&reads), "{reads} of 1,000 looks");
        assert!(
            looks.chunk_by(|one, other| one == other).all(|part| part.len() < 14),
            "never long the same: {looks:?}"
        );
        let told = budget.told.unwrap();
        held(&mut budget, &mut now, &[120; 1_200]);
        assert!(budget.told.unwrap().duration_since(told) > TELL_EVERY);
    }

    /// As long as something comes free there is no need of a breath.
    #[test]
    fn a_backlog_that_is_worked_off_is_waited_for() {
        let (mut budget, mut now) = (budget(), Instant::now());
        let falling: Vec<u64> = (91..=300).rev().collect();
        assert!(held(&mut budget, &mut now, &falling).iter().all(|held| *held));
        assert_eq!(budget.told, None);
    }

    #[test]
    fn there_is_a_budget_without_a_setting() {
        let bytes = Budget::new(&Engine::default()).bytes();
        assert!((64 << 20..1 << 50).contains(&bytes), "{bytes}");
    }
}
