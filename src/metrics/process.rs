//! The process's own figures under the names every Prometheus client uses, read from `/proc` at each scrape.
//!
//! They are written as text by themselves because CPU time is a counter with a fraction, which the recorder has not.
//! On a system without `/proc` the figures are left out.

use std::fmt::Write;
use std::fs;

use super::Metric;
use super::catalogue::{
    PROCESS_CPU_SECONDS, PROCESS_MAX_FDS, PROCESS_OPEN_FDS, PROCESS_RESIDENT_MEMORY_BYTES, PROCESS_START_TIME_SECONDS,
    PROCESS_THREADS, PROCESS_VIRTUAL_MEMORY_BYTES,
};

/// The kernel reports times in hundredths of a second on every Linux there is (`USER_HZ`).
const TICKS_PER_SECOND: f64 = 100.0;

/// Figures of a process.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Process {
    /// User and system CPU time since the start, in seconds.
    pub cpu_seconds: f64,
    /// Memory in RAM.
    pub resident_bytes: f64,
    /// Most memory in RAM so far.
    pub resident_peak_bytes: f64,
    /// Address space.
    pub virtual_bytes: f64,
    /// Threads.
    pub threads: f64,
    /// Start, in seconds since 1970.
    pub start_seconds: f64,
    /// Open file descriptors.
    pub open_fds: f64,
    /// Most file descriptors the process may open.
    pub max_fds: f64,
}

/// The figures of this process; `None` on a system without `/proc`.
pub fn read() -> Option<Process> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    let boot = fs::read_to_string("/proc/stat").ok()?;
    let open_fds = fs::read_dir("/proc/self/fd").ok()?.count();
    // The second field is the program's name in parentheses and may itself hold spaces: count from behind it.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let field = |number: usize| fields.get(number - 3)?.parse::<f64>().ok();
    let boot_seconds: f64 = boot.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
    let limit = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?.split_whitespace().next()?;
    Some(Process {
        cpu_seconds: (field(14)? + field(15)?) / TICKS_PER_SECOND,
        resident_bytes: kibibytes(&status, "VmRSS:")?,
        resident_peak_bytes: kibibytes(&status, "VmHWM:")?,
        virtual_bytes: field(23)?,
        threads: field(20)?,
        start_seconds: boot_seconds + field(22)? / TICKS_PER_SECOND,
        open_fds: open_fds as f64,
        max_fds: limit.parse().unwrap_or(f64::INFINITY),
    })
}

/// Memory in RAM of this process; `None` on a system without `/proc`.
pub fn resident_bytes() -> Option<u64> {
    kibibytes(&fs::read_to_string("/proc/self/status").ok()?, "VmRSS:").map(|bytes| bytes as u64)
}

/// The bytes of a line `<name> <number> kB`.
fn kibibytes(status: &str, name: &str) -> Option<f64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<f64>().ok()? * 1024.0)
}

/// Appends the figures to a scrape.
pub fn render(text: &mut String) {
    let Some(process) = read() else { return };
    let mut write = |metric: Metric, value: f64| {
        let value = if value == f64::INFINITY { "+Inf".to_owned() } else { value.to_string() };
        let (name, help, kind) = (metric.name, metric.help, metric.kind.as_str());
        writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n")
            .expect("a String takes every write");
    };
    write(PROCESS_CPU_SECONDS.0, process.cpu_seconds);
    write(PROCESS_RESIDENT_MEMORY_BYTES.0, process.resident_bytes);
    write(PROCESS_VIRTUAL_MEMORY_BYTES.0, process.virtual_bytes);
    write(PROCESS_THREADS.0, process.threads);
    write(PROCESS_START_TIME_SECONDS.0, process.start_seconds);
    write(PROCESS_OPEN_FDS.0, process.open_fds);
    write(PROCESS_MAX_FDS.0, process.max_fds);
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn the_figures_of_this_process_are_plausible() {
        let process = read().expect("Linux has /proc");
        assert!(process.resident_bytes > 1e6 && process.resident_bytes <= process.resident_peak_bytes);
        assert!(process.virtual_bytes >= process.resident_bytes);
        assert!(process.threads >= 1.0 && process.open_fds >= 3.0 && process.max_fds >= process.open_fds);
        assert!(process.start_seconds > 1.7e9, "{}", process.start_seconds);
    }
}
