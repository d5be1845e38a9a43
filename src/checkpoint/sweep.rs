//! Removes what no checkpoint needs any more: files that only older checkpoints name, and what crashes have left.
//!
//! A copy of the job that does not know yet that it has lost may sweep too. It names its own files only: segments carry the
//! number of the manifest with which their start took over, and whoever took over later has a higher one.

use std::collections::BTreeSet;

use super::error::CheckpointError;
use super::manifest::{self, sequence_of};
use super::{KEPT, Store, segment};

/// How long the first manifest of a start is kept where there are no locks: as long as it is there, a copy that it has
/// superseded can't publish in its place, however late it wakes up.
const FENCE_SECONDS: u64 = 7 * 24 * 3600;

impl Store {
    /// Removes all but the newest checkpoints, and, at the first time, what crashes have left.
    pub(super) fn sweep(&mut self) -> Result<(), CheckpointError> {
        let mut unneeded = BTreeSet::new();
        let mut keys = Vec::new();
        while self.kept.len() > KEPT
            && let Some((sequence, named)) = self.kept.pop_front()
        {
            if self.lock.is_some() || sequence != self.claim {
                keys.push(manifest::key(sequence));
            }
            unneeded.extend(named);
        }
        let needed: BTreeSet<&String> = self.kept.iter().flat_map(|(_, named)| named).collect();
        keys.extend(unneeded.iter().filter(|name| !needed.contains(name)).map(|name| segment::key(name)));
        if !self.swept {
            keys.extend(self.leftovers()?);
            self.swept = true;
        }
        if keys.is_empty() { Ok(()) } else { self.place.0.remove(keys) }
    }

    /// Files that no checkpoint of this start or the one before names.
    fn leftovers(&self) -> Result<Vec<String>, CheckpointError> {
        let storage = &*self.place.0;
        let kept: BTreeSet<u64> = self.kept.iter().map(|(sequence, _)| *sequence).collect();
        let needed: BTreeSet<&String> = self.kept.iter().flat_map(|(_, named)| named).collect();
        let manifests = storage.list("manifest")?;
        let newest = manifests.iter().map(|found| found.made).max().unwrap_or_default();
        let mut keys = Vec::new();
        for found in manifests {
            let is_old = self.lock.is_some() || newest.saturating_sub(found.made) > FENCE_SECONDS;
            let leftover = match sequence_of(&found.name) {
                Some(sequence) => sequence < self.sequence && !kept.contains(&sequence) && is_old,
                None => found.name.ends_with(".tmp"),
            };
            keys.extend(leftover.then(|| format!("manifest/{}", found.name)));
        }
        for found in storage.list("seg")? {
            let is_ours = self.lock.is_some() || claim_of(&found.name).is_some_and(|claim| claim <= self.claim);
            let is_segment = found.name.ends_with(".seg") || found.name.ends_with(".tmp");
            let leftover = is_segment && is_ours && !needed.contains(&found.name);
            keys.extend(leftover.then(|| segment::key(&found.name)));
        }
        Ok(keys)
    }

    /// A name that no other segment has or will have.
    pub(super) fn segment_name(&self) -> String {
        format!("{}-{}.seg", self.claim, self.segments + 1)
    }
}

/// The first manifest of the start that made a segment.
fn claim_of(name: &str) -> Option<u64> {
    name.strip_prefix("base-").unwrap_or(name).split_once('-')?.0.parse().ok()
}
