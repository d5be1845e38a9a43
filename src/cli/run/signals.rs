//! SIGTERM and SIGINT, and what a supervisor says instead of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use anyhow::Context as _;

use crate::supervisor;

/// Counts requests to stop.
pub(in crate::cli) struct Signals {
    received: Arc<AtomicU8>,
}

impl Signals {
    /// From now on SIGTERM and SIGINT are counted and do nothing else.
    ///
    /// # Errors
    /// If the operating system refuses a thread.
    pub fn listen() -> anyhow::Result<Signals> {
        use tokio::signal::unix::{SignalKind, signal};
        let received = Arc::new(AtomicU8::new(0));
        let counted = received.clone();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let listen = move || {
            runtime.block_on(async move {
                let (Ok(mut term), Ok(mut interrupt)) =
                    (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
                else {
                    return;
                };
                loop {
                    tokio::select! { _ = term.recv() => {}, _ = interrupt.recv() => {} }
                    counted.fetch_add(1, Ordering::AcqRel);
                }
            })
        };
        std::thread::Builder::new().name("signals".into()).spawn(listen).context("start the signals' thread")?;
        Ok(Signals { received })
    }

    /// Counts what the supervisor says as well.
    ///
    /// # Errors
    /// If the operating system refuses a thread.
    pub fn obey(&self) -> anyhow::Result<()> {
        let counted = self.received.clone();
        supervisor::obey(move || _ = counted.fetch_add(1, Ordering::AcqRel))
    }

    /// How many there were.
    pub fn received(&self) -> u8 {
        self.received.load(Ordering::Acquire)
    }
}
