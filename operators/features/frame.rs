//! What the state of a key depends on: where its windows lie and what they hold, and how long its values are kept.
//!
//! A frame says all that is needed to do again what has happened to a key ([`super::steps`]). It follows from the definition of
//! the group, and is saved beside the state, so that this can be done also where the group is defined otherwise by now.

use serde::{Deserialize, Serialize};

use super::entity::LayoutKind;
use super::summary::Parts;
use super::windows::Track;

/// What the state of a key depends on.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Frame {
    /// Whether the items are rows or tiles.
    pub layout: LayoutKind,
    /// The rings and their windows.
    pub tracks: Vec<Track>,
    /// Number of views of a key.
    pub views: usize,
    /// Number of summaries of a key.
    pub summaries: usize,
    /// For each measure the parts that any of its windows needs.
    pub measures: Vec<Parts>,
    /// For each as-of lookup: hidden values older than this before an event are dropped even if the watermark stands still,
    /// in milliseconds.
    pub lookups: Vec<i64>,
}

impl Frame {
    /// Whether everything that it names is there.
    pub fn is_sound(&self) -> bool {
        self.tracks.iter().all(|track| {
            let cells = track.windows.iter().flat_map(|window| &window.cells);
            let wide = |needs: Parts| if self.layout == LayoutKind::Rows { 1 } else { needs.packed_len() };
            let mut cells = cells.map(|cell| {
                let in_item = cell.at > 0 && cell.at.saturating_add(wide(cell.needs)) <= track.stride;
                in_item && cell.measure < self.measures.len() && cell.summary < self.summaries
            });
            let is_wide_enough = self.layout == LayoutKind::Tiles || track.stride == 1 + self.measures.len();
            is_wide_enough
                && cells.all(|sound| sound)
                && track.first_view.saturating_add(track.windows.len()) <= self.views
        })
    }
}
