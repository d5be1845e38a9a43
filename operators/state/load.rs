//! Takes up the state of many key groups at once, on several threads: a start waits for it.

use std::sync::Mutex;

use serde::{Serialize, de::DeserializeOwned};

use super::{CHUNK, KeyedState, StateError};

/// Rows of key groups: each with all that there is of it, the oldest first.
pub type Groups = Vec<(u16, Vec<Vec<u8>>)>;

impl<S: Serialize + DeserializeOwned + Send> KeyedState<S> {
    /// Like [`load_telling`](KeyedState::load_telling) for key groups of which nothing is here yet, on so many threads. Rows are freed
    /// as they are taken up, so that a start does not need the memory of its state twice.
    ///
    /// # Errors
    /// If the bytes of a group do not decode, or at a state that does not pass the check. What has been loaded is of no use then.
    ///
    /// # Panics
    /// If there are keys of one of the groups.
    pub fn load_groups(
        &mut self,
        groups: Groups,
        threads: usize,
        check: impl Fn(&S) -> Result<(), String> + Sync,
        happen: impl Fn(&mut S, &[u8]) -> Result<(), String> + Sync,
    ) -> Result<(), StateError> {
        let groups = Mutex::new(groups.into_iter());
        let next = || groups.lock().expect("no thread panics with the lock").next();
        let load = || {
            let mut part = KeyedState::new();
            while let Some((group, all)) = next() {
                for rows in all {
                    part.load_telling(group, &rows, &check, &happen)?;
                }
            }
            Ok(part)
        };
        let parts: Vec<Result<KeyedState<S>, StateError>> = std::thread::scope(|scope| {
            let others: Vec<_> = (1..threads).map(|_| scope.spawn(load)).collect();
            let first = load();
            let join = |other: std::thread::ScopedJoinHandle<'_, _>| {
                other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            std::iter::once(first).chain(others.into_iter().map(join)).collect()
        });
        parts.into_iter().try_for_each(|part| part.map(|part| self.absorb(part)))
    }
}

impl<S> KeyedState<S> {
    /// Takes the slots of another one, which has other key groups and has changed nothing.
    fn absorb(&mut self, other: KeyedState<S>) {
        // Places count whole chunks.
        let chunks = self.slots.len();
        if let Some(last) = self.slots.last_mut() {
            let vacant = (chunks - 1) * CHUNK + last.len()..chunks * CHUNK;
            self.free.extend(vacant.map(|at| at as u32));
            last.resize_with(CHUNK, || None);
        }
        let moved = (chunks * CHUNK) as u32;
        self.slots.extend(other.slots);
        self.free.extend(other.free.into_iter().map(|at| at + moved));
        self.len += other.len;
        for (mine, mut theirs) in self.index.iter_mut().zip(other.index) {
            if !theirs.is_empty() {
                assert!(mine.is_empty(), "a key group is loaded once");
                theirs.iter_mut().for_each(|at| *at += moved);
                *mine = theirs;
            }
        }
    }
}
