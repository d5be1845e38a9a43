//! The newest epoch whose manifest is published: from then on its effects belong to the world, come what may.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex};
use std::time::Duration;

/// The newest decided epoch. Whoever commits waits for it.
#[derive(Debug, Default)]
pub struct Decided {
    epoch: AtomicU64,
    failed: AtomicBool,
    lock: Mutex<()>,
    changed: Condvar,
}

impl Decided {
    /// Everything up to `epoch` was decided by an earlier run.
    pub fn new(epoch: u64) -> Self {
        Decided { epoch: AtomicU64::new(epoch), ..Decided::default() }
    }

    /// The newest decided epoch.
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// Everything up to `epoch` is decided.
    pub fn decide(&self, epoch: u64) {
        self.epoch.fetch_max(epoch, Ordering::AcqRel);
        self.tell();
    }

    /// Nothing will be decided any more: the job is failing.
    pub fn give_up(&self) {
        self.failed.store(true, Ordering::Release);
        self.tell();
    }

    /// Whether nothing will be decided any more.
    pub fn given_up(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    fn tell(&self) {
        let _lock = self.lock.lock().expect("no thread panics with the lock");
        self.changed.notify_all();
    }

    /// Waits until `epoch` is decided, for at most `within`. False if it is not.
    pub fn wait(&self, epoch: u64, within: Duration) -> bool {
        let lock = self.lock.lock().expect("no thread panics with the lock");
        let waiting = |_: &mut ()| self.epoch() < epoch && !self.given_up();
        let waited = self.changed.wait_timeout_while(lock, within, waiting);
        drop(waited.expect("no thread panics with the lock"));
        self.epoch() >= epoch
    }
}
