//! What a feature group remembers of one key.

use serde::{Deserialize, Serialize};

use super::as_of::{History, Scalar};
use super::frame::Frame;
use super::ring::Ring;
use super::summary::{Measured, Summary};
use super::windows::{Event, Parted, Rows, Tiles, Track, View, evict, seek};
use crate::batch::EventTime;

/// The state of one key: its events as items, where its windows stand and what they hold, and its as-of values.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entity {
    /// Event time of the newest event; the smallest number before the first.
    pub newest: EventTime,
    /// Place of the key in the list of keys changed since the last publication, plus one; 0 for an unchanged key.
    #[serde(skip)]
    pub changed: u32,
    rings: Box<[Ring]>,
    views: Box<[View]>,
    summaries: Box<[Summary]>,
    /// One history for each as-of lookup.
    pub as_of: Box<[History]>,
}

/// Up to where state can be dropped, because no read reaches it any more.
#[derive(Debug, Clone, PartialEq)]
pub struct Horizon {
    /// No row at or before this event time is expected.
    pub watermark: EventTime,
    /// For each track, the time of the last item that no window reaches.
    pub until: Vec<f64>,
}

impl Horizon {
    /// Before any watermark: nothing can be dropped.
    pub fn start(frame: &Frame) -> Self {
        Horizon { watermark: EventTime::MIN, until: vec![f64::NEG_INFINITY; frame.tracks.len()] }
    }

    /// Moves on to a later watermark.
    pub fn advance(&mut self, watermark: EventTime, frame: &Frame) {
        self.watermark = watermark;
        for (until, track) in self.until.iter_mut().zip(&frame.tracks) {
            *until = track.time(watermark as f64) - track.span_max;
        }
    }
}

impl Entity {
    /// A key without events.
    pub fn new(frame: &Frame) -> Self {
        Entity {
            newest: EventTime::MIN,
            changed: 0,
            rings: frame.tracks.iter().map(|track| Ring::new(track.stride)).collect(),
            views: vec![View::START; frame.views].into(),
            summaries: vec![Summary::EMPTY; frame.summaries].into(),
            as_of: frame.lookups.iter().map(|_| History::default()).collect(),
        }
    }

    /// Takes an event's values into the windows, and takes the value of each lookup. Values older than any window that can still
    /// be read are left.
    #[inline(always)]
    pub fn update(
        &mut self,
        frame: &Frame,
        horizon: &Horizon,
        time: EventTime,
        values: &[Measured],
        looked_up: &mut Vec<Option<Scalar>>,
    ) {
        self.newest = self.newest.max(time);
        let event = Event { millis: time as f64, values };
        let rings = self.rings.iter_mut().zip(&frame.tracks).zip(&horizon.until);
        for ((ring, track), until) in rings {
            let views = &mut self.views[track.first_view..track.first_view + track.windows.len()];
            let mut key = Parted { ring, views, summaries: &mut self.summaries };
            let at = track.time(event.millis);
            let until = until.max(at - track.kept_max);
            evict(&mut key, track, until);
            if at > until {
                frame.layout.take(track, &mut key, &event, at);
            }
        }
        for ((history, value), kept_max) in self.as_of.iter_mut().zip(looked_up.drain(..)).zip(&frame.lookups) {
            if let Some(value) = value {
                history.insert(time, value, horizon.watermark.max(time.saturating_sub(*kept_max)));
            }
        }
    }

    /// Moves all windows to `time`, and gives their summaries as of then.
    #[inline(always)]
    pub fn read(&mut self, frame: &Frame, time: EventTime) -> &[Summary] {
        for (ring, track) in self.rings.iter().zip(&frame.tracks) {
            let at = track.time(time as f64);
            let views = &mut self.views[track.first_view..track.first_view + track.windows.len()];
            for (view, window) in views.iter_mut().zip(&track.windows) {
                match frame.layout {
                    LayoutKind::Rows => seek::<Rows>(ring, window, view, &mut self.summaries, at),
                    LayoutKind::Tiles => seek::<Tiles>(ring, window, view, &mut self.summaries, at),
                }
            }
        }
        &self.summaries
    }

    /// When, if nothing happens to the key, what was [read](Entity::read) at `time` will be another: the first item leaves its
    /// window, or a value that was looked up is too old. `None` if it never will.
    pub fn changes_at(&self, frame: &Frame, time: EventTime, ages_max: impl Iterator<Item = i64>) -> Option<EventTime> {
        let windows = self.rings.iter().zip(&frame.tracks).flat_map(|(ring, track)| {
            let views = &self.views[track.first_view..track.first_view + track.windows.len()];
            let covered = views.iter().zip(&track.windows).filter(|(view, _)| view.head < view.tail);
            covered.map(|(view, window)| (ring.time(view.head as usize) + window.span) * track.unit_millis)
        });
        let windows = windows.map(|millis| millis as EventTime);
        let looked_up = self.as_of.iter().zip(ages_max).filter_map(|(history, age)| history.changes_at(time, age));
        windows.chain(looked_up).min()
    }

    /// The summaries as of the last read and the updates since then within its windows.
    #[inline(always)]
    pub fn summaries(&self) -> &[Summary] {
        &self.summaries
    }

    /// The items of its windows.
    pub fn rings(&self) -> &[Ring] {
        &self.rings
    }

    /// The items of its windows, for change; its views must not have been read yet.
    pub fn rings_mut(&mut self) -> &mut [Ring] {
        &mut self.rings
    }

    /// Approximate bytes of memory.
    pub fn size_bytes(&self) -> usize {
        let rings: usize = self.rings.iter().map(|ring| size_of::<Ring>() + ring.size_bytes()).sum();
        let fixed = size_of::<Self>() + size_of_val(&*self.views) + size_of_val(&*self.summaries);
        fixed + rings + self.as_of.iter().map(History::size_bytes).sum::<usize>()
    }

    /// What is wrong with a key that was saved under another frame.
    ///
    /// # Errors
    /// If its shape is not the definition's.
    pub fn check(&self, frame: &Frame) -> Result<(), String> {
        let shape = (self.rings.len(), self.views.len(), self.summaries.len(), self.as_of.len());
        let expected = (frame.tracks.len(), frame.views, frame.summaries, frame.lookups.len());
        if shape != expected {
            return Err(format!("saved with other features: {shape:?} windows and lookups instead of {expected:?}"));
        }
        for (ring, track) in self.rings.iter().zip(&frame.tracks) {
            let views = &self.views[track.first_view..track.first_view + track.windows.len()];
            let stands = |view: &View| view.head <= view.tail && view.tail as usize <= ring.len();
            if ring.stride() != track.stride || !views.iter().all(stands) {
                return Err("saved with other aggregates".into());
            }
        }
        Ok(())
    }
}

/// Which of the two layouts the items of a group have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LayoutKind {
    /// Exact windows.
    #[default]
    Rows,
    /// Tiled windows.
    Tiles,
}

impl LayoutKind {
    #[inline(always)]
    fn take(self, track: &Track, key: &mut Parted<'_>, event: &Event<'_>, time: f64) {
        use super::windows::Layout;
        match self {
            LayoutKind::Rows => Rows::take(track, key, event, time),
            LayoutKind::Tiles => Tiles::take(track, key, event, time),
        }
    }
}
