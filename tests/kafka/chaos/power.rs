//! A disk of one's own: the machine loses its power, and what no sync has covered is gone; the disk dies; it is full, for state,
//! files and tables alike.
//!
//! The job has a disk of its own, a file with a file system in it that writes nothing of its own accord for minutes, and data
//! not before their length. Power fails by the request that file systems have for such tests: from one moment to the next nothing
//! reaches the disk any more, not even the journal. Then the job is killed, and the disk is taken off and put on again.

use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use super::super::service::Service;
use super::super::*;
use super::driver::Chaos;
use crate::random::{Random, seed, variable};
use millstream::failpoint::Flaw;

/// How the file system is put on: as late and in as little order as it can be.
const LAZY: &str = "loop,data=writeback,commit=300,noauto_da_alloc";
/// `EXT4_IOC_SHUTDOWN` without a flush of the journal; only a program with a foreign function interface can ask for it.
const CUT: &str = "import fcntl, os, struct, sys
fcntl.ioctl(os.open(sys.argv[1], os.O_RDONLY), 0x8004587D, struct.pack('I', 2))";

/// Runs a command that only root may.
fn run(command: &mut Command) {
    let done = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(
        done.status.success(),
        "{command:?}, to be run as root (or left out: `--skip kafka::chaos::power`): {said}"
    );
}

/// A disk that forgets.
struct Disk {
    folder: tempfile::TempDir,
}

impl Disk {
    fn new() -> Disk {
        let disk = Disk { folder: tempfile::tempdir().unwrap() };
        std::fs::create_dir(disk.root()).unwrap();
        let image = std::fs::File::create(disk.image()).unwrap();
        image.set_len(256 << 20).unwrap();
        run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(disk.image()));
        // Whoever gets a copy of what is put on (the hosts of other tests do) takes it off when it is taken off here. As long as one
        // had it, it would come back without its power.
        let folder = disk.folder.path();
        run(Command::new("mount").arg("--bind").args([folder, folder]));
        run(Command::new("mount").arg("--make-shared").arg(folder));
        disk.put_on();
        disk
    }

    fn image(&self) -> PathBuf {
        self.folder.path().join("image")
    }

    /// Where it is to be seen.
    fn root(&self) -> PathBuf {
        self.folder.path().join("disk")
    }

    fn put_on(&self) {
        run(Command::new("mount").args(["-o", LAZY]).arg(self.image()).arg(self.root()));
    }

    fn cut_power(&self) {
        run(Command::new("python3").args(["-c", CUT]).arg(self.root()));
    }

    /// Takes it off and puts it on again, as a machine that starts.
    fn start_again(&self) {
        run(Command::new("umount").arg(self.root()));
        self.put_on();
    }

    /// Leaves no room on it; gives what takes it up.
    fn fill(&self) -> PathBuf {
        let ballast = self.root().join("ballast");
        let mut file = std::fs::File::create(&ballast).unwrap();
        while file.write_all(&[0; 64 << 10]).is_ok() {}
        ballast
    }

    /// Makes durable what is there.
    fn sync(&self, path: &Path) {
        run(Command::new("sync").arg("-f").arg(path));
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // The job is gone. What can't be taken off now is when the last file is closed.
        let _gone = Command::new("umount").arg("--lazy").arg(self.root()).arg(self.folder.path()).status();
    }
}

/// A job on a disk.
fn on(disk: &Disk, seed: u64) -> Chaos {
    let service = Service::in_folder(tempfile::tempdir_in(disk.root()).unwrap(), brokers(), "chaos");
    disk.sync(&service.topology());
    Chaos::of(service, seed)
}

/// A job on a disk whose power fails so often.
fn with_power_cuts(disk: &Disk, flaw: Option<Flaw>, cuts: u64) -> Chaos {
    let seed = seed();
    let mut random = Random(seed);
    let mut chaos = match flaw {
        Some(flaw) => on(disk, seed).wrong(flaw),
        None => on(disk, seed),
    };
    for cut in 0..cuts {
        let (before, workers) = (chaos.service.newest_epoch(), 1 + random.below(3));
        let mut running = chaos.start(workers, "");
        // Now and then before it has made one.
        if cut % 4 != 3 {
            chaos.until_checkpoint(&mut running, before);
        }
        std::thread::sleep(Duration::from_millis(random.below(1_500)));
        let runs = running.runs();
        disk.cut_power();
        assert!(runs || flaw.is_some(), "{}", running.err());
        drop(running);
        disk.start_again();
        chaos.died("without power");
    }
    chaos
}

#[test]
fn a_machine_that_loses_its_power_loses_and_repeats_nothing() {
    let disk = Disk::new();
    let cuts = variable("KILLS").map_or(4, |kills| kills.div_ceil(10));
    with_power_cuts(&disk, None, cuts).finish(2).unwrap();
}

/// Else the test would prove nothing.
#[test]
fn a_job_that_does_not_sync_is_found_out() {
    let disk = Disk::new();
    let wrong = with_power_cuts(&disk, Some(Flaw::NoSync), 2).finish(2).map(drop);
    println!("{}", wrong.expect_err("what was not synced is gone").lines().last().unwrap_or_default());
}

/// Nothing is known of what a sync that failed has written: the job does not try another.
#[test]
fn a_disk_that_dies_ends_the_job_and_one_that_is_back_goes_on() {
    let disk = Disk::new();
    let mut chaos = on(&disk, seed());
    let mut running = chaos.start(2, "");
    chaos.goes_on(&mut running);
    disk.cut_power();
    let said = running.end();
    assert_eq!(said.status.code(), Some(1), "{}", said.err);
    let last = said.err.lines().last().unwrap_or_default();
    assert!(last.contains("Input/output error") && last.contains(&*disk.root().to_string_lossy()), "{}", said.err);
    disk.start_again();
    chaos.died("with its disk");
    chaos.finish(1).unwrap();
}

/// State, files and tables are on it.
#[test]
fn a_disk_without_room_for_anything_ends_the_job_and_one_with_room_goes_on() {
    let disk = Disk::new();
    let mut chaos = on(&disk, seed());
    for _ in 0..2 {
        let mut running = chaos.start(2, "");
        chaos.goes_on(&mut running);
        let ballast = disk.fill();
        let said = running.end();
        assert_eq!(said.status.code(), Some(7), "{}", said.err);
        chaos.died("of a full disk");
        std::fs::remove_file(ballast).unwrap();
    }
    chaos.finish(3).unwrap();
}
