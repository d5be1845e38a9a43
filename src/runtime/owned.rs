//! Whether a start still has the job, where copies share the state.
//!
//! ```text
//! one start:      takes over (manifest 9)                          fences the writers, asks: no longer ─▶ ends
//! another start:        takes over (manifest 10), fences, asks: yes ─▶ works ─▶ finds itself fenced, is started again
//! ```
//! The job is whose manifest is the newest. Writers are fenced after that and in any order, so that a start may have lost the job when it
//! fences them: what it would write then is of a checkpoint that is no longer the newest. If it still has the job, whoever takes over
//! later fences them again, before anything else is written. So it asks in between; every interleaving is looked at in
//! `tests/commit_model.rs`.

use std::fmt;
use std::sync::Arc;

use crate::checkpoint::{CheckpointError, Store};

/// Asks, for as long as the job runs. The default is of a start that has the job to itself.
#[derive(Clone, Default)]
pub struct Owned(Option<Arc<Ask>>);

type Ask = dyn Fn() -> Result<bool, String> + Send + Sync;

impl Owned {
    /// Asks somebody else.
    pub fn asking(ask: impl Fn() -> Result<bool, String> + Send + Sync + 'static) -> Owned {
        Owned(Some(Arc::new(ask)))
    }

    /// Asks the storage, for the start that has taken over with `store`.
    pub fn of(store: &Store) -> Owned {
        let Some(ownership) = store.ownership() else { return Owned::default() };
        Owned::asking(move || match ownership.check() {
            Ok(()) => Ok(true),
            Err(CheckpointError::TakenOver { .. }) => Ok(false),
            Err(error) => Err(error.to_string()),
        })
    }

    /// Whether no other start has taken over.
    ///
    /// # Errors
    /// If that can't be told.
    pub fn ask(&self) -> Result<bool, String> {
        self.0.as_ref().map_or(Ok(true), |ask| ask())
    }
}

impl fmt::Debug for Owned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Owned(asks)" } else { "Owned(always)" })
    }
}
