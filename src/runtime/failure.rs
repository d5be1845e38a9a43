//! Failures of the world that end a job: the first one is the reason the user reads.

use std::sync::{Arc, Mutex};

/// Collects failures from any thread.
#[derive(Debug, Clone, Default)]
pub struct Failures {
    all: Arc<Mutex<Vec<anyhow::Error>>>,
}

impl Failures {
    /// Reports a failure.
    pub fn report(&self, error: anyhow::Error) {
        tracing::error!(error = format!("{error:#}"), "the job fails");
        self.all.lock().expect("no thread panics with the lock").push(error);
    }

    /// What the first failure says, if there was one, and the exit code that it asks for.
    pub fn said(&self) -> Option<(u8, String)> {
        let all = self.all.lock().expect("no thread panics with the lock");
        all.first().map(|error| (crate::cli::exit_code(error), format!("{error:#}")))
    }

    /// The first failure, if there was one. It is given once.
    pub fn first(&self) -> Option<anyhow::Error> {
        let mut all = self.all.lock().expect("no thread panics with the lock");
        (!all.is_empty()).then(|| all.remove(0))
    }
}
