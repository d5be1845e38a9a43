//! Removes what no checkpoint needs any more: files that only older checkpoints name, and what crashes have left.
//!
//! Where there are no locks, a copy of the job may not know yet that it has lost, and wake up late.
//!
//! - It must not find the place of its next manifest free, or it would take it for the newest and decide. That place is the
//!   first manifest of the start that has taken over; or the one before, if it has made that itself and the answer was lost,
//!   so that it tries again. Both stay, for a week.
//! - It may sweep. It names its own files only: segments carry the number of the manifest with which their start took over,
//!   and whoever took over later has a higher one.

use std::collections::BTreeSet;

use super::error::CheckpointError;
use super::manifest::{self, sequence_of};
use super::{KEPT, Store, savepoint, segment};

/// How long manifests stay that keep away who has lost.
const FENCE_SECONDS: u64 = 7 * 24 * 3600;

impl Store {
    /// Removes all but the newest checkpoints and what savepoints need, and, at the first time, what crashes have left.
    pub(super) fn sweep(&mut self) -> Result<(), CheckpointError> {
        let mut unneeded = BTreeSet::new();
        let mut keys = Vec::new();
        while self.kept.len() > KEPT
            && let Some(kept) = self.kept.pop_front()
        {
            if self.lock.is_some() || !kept.fences {
                keys.push(manifest::key(kept.sequence));
            }
            unneeded.extend(kept.files);
        }
        unneeded.retain(|name| !self.needs(name));
        if !self.swept {
            keys.extend(self.leftovers(&mut unneeded)?);
            self.swept = true;
        }
        // Savepoints are only looked at when there is something to remove: with a bucket that is a request.
        if !unneeded.is_empty() {
            unneeded.append(&mut self.saved);
            keys.extend(self.not_saved(unneeded).iter().map(|name| segment::key(name)));
        }
        if keys.is_empty() { Ok(()) } else { self.place.0.remove(keys) }
    }

    /// Whether a checkpoint that is kept names a segment.
    fn needs(&self, name: &String) -> bool {
        self.kept.iter().any(|kept| kept.files.contains(name))
    }

    /// Those of segments that no savepoint needs; the others are remembered until it is deleted.
    fn not_saved(&mut self, mut unneeded: BTreeSet<String>) -> BTreeSet<String> {
        match savepoint::needed(&*self.place.0) {
            Ok(needed) => {
                self.saved = unneeded.intersection(&needed).cloned().collect();
                unneeded.retain(|name| !needed.contains(name));
                unneeded
            }
            // What can't be read may need any of them. The job goes on without the room.
            Err(error) => {
                tracing::warn!(%error, "files that are not needed stay: a savepoint can't be read");
                self.saved = unneeded;
                BTreeSet::new()
            }
        }
    }

    /// Files that no checkpoint of this start or the one before names. Segments are added to `unneeded`.
    fn leftovers(&self, unneeded: &mut BTreeSet<String>) -> Result<Vec<String>, CheckpointError> {
        let storage = &*self.place.0;
        let kept: BTreeSet<u64> = self.kept.iter().map(|kept| kept.sequence).collect();
        let manifests = storage.list("manifest")?;
        let newest = manifests.iter().map(|found| found.made).max().unwrap_or_default();
        let mut keys = savepoint::leftovers(storage, newest)?;
        for found in manifests {
            let is_old = self.lock.is_some() || newest.saturating_sub(found.made) > FENCE_SECONDS;
            let leftover = match sequence_of(&found.name) {
                Some(sequence) => sequence < self.sequence && !kept.contains(&sequence) && is_old,
                None => found.name.ends_with(".tmp"),
            };
            keys.extend(leftover.then(|| format!("manifest/{}", found.name)));
        }
        for found in storage.list("seg")? {
            let is_ours = self.lock.is_some() || first_of(&found.name).is_some_and(|first| first <= self.start.first);
            let is_segment = found.name.ends_with(".seg") || found.name.ends_with(".tmp");
            unneeded.extend((is_segment && is_ours && !self.needs(&found.name)).then_some(found.name));
        }
        Ok(keys)
    }

    /// A name that no other segment has or will have.
    pub(super) fn segment_name(&self) -> String {
        format!("{}-{}.seg", self.start.first, self.segments + 1)
    }
}

/// The first manifest of the start that made a segment.
fn first_of(name: &str) -> Option<u64> {
    name.strip_prefix("base-").unwrap_or(name).split_once('-')?.0.parse().ok()
}
