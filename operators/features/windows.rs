//! Sliding windows over the events of one key.
//!
//! A key keeps its events in rings, in the order of event time, as **items** of one of two layouts:
//!
//! - [`Rows`] (exact windows): one ring for all windows; an item is a row, `[time, value of each measure]`.
//! - [`Tiles`]: one ring a window; an item is a tile, `[number of the tile, packed summary of each cell]`.
//!
//! ```text
//!   items   ─┬──┬──┬──┬──┬──┬──┬──┬──┬──┬─▶ time        a view covers the items with time in (at - span, at]
//!            │  │  │██│██│██│██│██│██│  │               and holds their summary, one for each measure (a cell)
//!           ─┴──┴──┴──┴──┴──┴──┴──┴──┴──┴─
//!                  ▲ head           ▲ tail (the first item after `at`)
//! ```
//!
//! A read at a time moves the view there: items that come in are merged, items that go out are retracted. In order that is
//! a constant cost for each event; a read in the past moves the view back; a far one sums anew. Either way a view holds
//! exactly the items of its range, in whatever order events and reads came.

use serde::{Deserialize, Serialize};

use super::ring::Ring;
use super::summary::{Measured, Parts, Summary};

/// One measure within one window.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cell {
    /// Index of the measure among the group's.
    pub measure: usize,
    /// Where the cell stands in an item.
    pub at: usize,
    /// The parts its aggregates need.
    pub needs: Parts,
    /// Index of its summary among the group's.
    pub summary: usize,
}

/// One window over the items of one ring.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Window {
    /// Its length in the ring's unit of time.
    pub span: f64,
    /// What it summarises; one cell a measure.
    pub cells: Vec<Cell>,
}

/// A ring's windows and its unit of time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Track {
    /// Milliseconds in a unit of the ring's time: the length of a tile, or 1.
    pub unit_millis: f64,
    /// Numbers in an item.
    pub stride: usize,
    /// Its windows: exactly one when the items are tiles.
    pub windows: Vec<Window>,
    /// Index of the first window's view among the group's.
    pub first_view: usize,
    /// The longest window, in units.
    pub span_max: f64,
    /// Items older than this before the newest event are dropped even if the watermark stands still, in units.
    pub kept_max: f64,
}

impl Track {
    /// The ring's time of an event: the number of its tile since 1970, or its milliseconds.
    #[inline(always)]
    pub fn time(&self, millis: f64) -> f64 {
        // Exact: the quotient of whole numbers below 2^53 does not round up to the next whole number.
        if self.unit_millis == 1.0 { millis } else { (millis / self.unit_millis).floor() }
    }
}

/// Where a window stands: its summaries cover the items `head..tail`, which are all items with time in `(at - span, at]`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct View {
    /// The first item covered.
    pub head: u32,
    /// The first item after them.
    pub tail: u32,
    /// The time of the last read; minus infinity before the first.
    pub at: f64,
}

impl View {
    /// Before the first read: covers nothing.
    pub const START: View = View { head: 0, tail: 0, at: f64::NEG_INFINITY };

    /// Moves on for an item that was put in at `time`, and says whether the view covers it.
    #[inline(always)]
    fn make_room(&mut self, time: f64, span: f64) -> bool {
        let covered = self.covers(time, span);
        if time <= self.at {
            self.tail += 1;
            self.head += u32::from(!covered);
        }
        covered
    }

    #[inline(always)]
    fn covers(&self, time: f64, span: f64) -> bool {
        time <= self.at && time > self.at - span
    }
}

/// What the items of a ring are.
pub trait Layout {
    /// The summary of a cell in an item; empty if it has no value there.
    fn summary(item: &[f64], cell: &Cell) -> Summary;

    /// Takes an event's values at `millis`, which is `time` in the ring's unit.
    fn take(track: &Track, key: &mut Parted<'_>, event: &Event<'_>, time: f64);
}

/// An event as the windows see it.
#[derive(Debug, Clone, Copy)]
pub struct Event<'a> {
    /// Event time in milliseconds since 1970.
    pub millis: f64,
    /// The value of each measure.
    pub values: &'a [Measured],
}

/// One track of a key's state.
pub struct Parted<'a> {
    /// The items.
    pub ring: &'a mut Ring,
    /// The views of the track's windows.
    pub views: &'a mut [View],
    /// The summaries of all the key's cells.
    pub summaries: &'a mut [Summary],
}

/// Items that are rows.
pub struct Rows;

/// Items that are tiles.
pub struct Tiles;

impl Layout for Rows {
    #[inline(always)]
    fn summary(item: &[f64], cell: &Cell) -> Summary {
        let value = item[cell.at];
        if value.is_nan() { Summary::EMPTY } else { Summary::of(value, item[0], cell.needs) }
    }

    #[inline(always)]
    fn take(track: &Track, key: &mut Parted<'_>, event: &Event<'_>, time: f64) {
        if event.values.iter().all(Measured::is_left_out) {
            return;
        }
        let last = key.ring.len();
        let in_order = last == 0 || key.ring.time(last - 1) <= time;
        let item = if in_order { key.ring.push(time) } else { key.ring.insert(key.ring.count_until(time), time) };
        for (slot, measured) in item[1..].iter_mut().zip(event.values) {
            *slot = measured.value;
        }
        for (view, window) in key.views.iter_mut().zip(&track.windows) {
            if view.make_room(time, window.span) {
                add(key.summaries, window, event);
            }
        }
    }
}

impl Layout for Tiles {
    #[inline(always)]
    fn summary(item: &[f64], cell: &Cell) -> Summary {
        Summary::unpack(&item[cell.at..], cell.needs)
    }

    #[inline(always)]
    fn take(track: &Track, key: &mut Parted<'_>, event: &Event<'_>, time: f64) {
        let ([window], [view]) = (track.windows.as_slice(), &mut *key.views) else { return };
        let len = key.ring.len();
        let newest = if len == 0 { f64::NEG_INFINITY } else { key.ring.time(len - 1) };
        let (at, is_new) = if newest == time {
            (len - 1, false)
        } else if newest < time {
            (len, true)
        } else {
            let until = key.ring.count_until(time);
            if until > 0 && key.ring.time(until - 1) == time { (until - 1, false) } else { (until, true) }
        };
        let covered = if is_new { view.make_room(time, window.span) } else { view.covers(time, window.span) };
        let item = if is_new { empty_tile(key.ring, at, time, window) } else { key.ring.item_mut(at) };
        for cell in &window.cells {
            let measured = &event.values[cell.measure];
            if !measured.is_left_out() {
                let slots = &mut item[cell.at..];
                let mut tile = Summary::unpack(slots, cell.needs);
                tile.add(measured, event.millis, cell.needs);
                tile.pack(slots, cell.needs);
            }
        }
        if covered {
            add(key.summaries, window, event);
        }
    }
}

/// Adds an event to the summaries of a window.
#[inline(always)]
fn add(summaries: &mut [Summary], window: &Window, event: &Event<'_>) {
    for cell in &window.cells {
        let measured = &event.values[cell.measure];
        if !measured.is_left_out() {
            summaries[cell.summary].add(measured, event.millis, cell.needs);
        }
    }
}

/// A new tile at `at`.
#[inline(always)]
fn empty_tile<'a>(ring: &'a mut Ring, at: usize, time: f64, window: &Window) -> &'a mut [f64] {
    let item = if at == ring.len() { ring.push(time) } else { ring.insert(at, time) };
    for cell in &window.cells {
        Summary::EMPTY.pack(&mut item[cell.at..], cell.needs);
    }
    item
}

/// Drops the items at or before `until`.
#[inline(always)]
pub fn evict(key: &mut Parted<'_>, track: &Track, until: f64) {
    let mut gone = 0;
    while gone < key.ring.len() && key.ring.time(gone) <= until {
        gone += 1;
    }
    if gone == 0 {
        return;
    }
    key.ring.remove_oldest(gone);
    for (view, window) in key.views.iter_mut().zip(&track.windows) {
        if view.head as usize >= gone {
            view.head -= gone as u32;
            view.tail -= gone as u32;
        } else {
            // The view stood in a past that nothing can read any more. The next read sums anew.
            *view = View::START;
            for cell in &window.cells {
                key.summaries[cell.summary] = Summary::EMPTY;
            }
        }
    }
}

/// Moves the view of `window` to `at`, so that its summaries are those of `(at - span, at]`.
#[inline(always)]
pub fn seek<L: Layout>(ring: &Ring, window: &Window, view: &mut View, summaries: &mut [Summary], at: f64) {
    if at == view.at {
        return;
    }
    let (old_head, old_tail) = (view.head as usize, view.tail as usize);
    let (mut head, mut tail) = (old_head, old_tail);
    let len = ring.len();
    if at > view.at {
        if tail < len && ring.time(len - 1) <= at {
            tail = len;
        }
        while tail < len && ring.time(tail) <= at {
            tail += 1;
        }
        while head < tail && ring.time(head) <= at - window.span {
            head += 1;
        }
    } else {
        (head, tail) = (ring.count_until(at - window.span), ring.count_until(at));
    }
    *view = View { head: head as u32, tail: tail as u32, at };
    if head == old_head && tail == old_tail {
        return;
    }
    if old_head.abs_diff(head) + old_tail.abs_diff(tail) > tail - head {
        sum_anew::<L>(ring, window, head..tail, summaries);
        return;
    }
    let (coming, going) = (old_tail..tail, old_head..head);
    let (coming_back, going_back) = (head..old_head, tail..old_tail);
    for cell in &window.cells {
        let summary = &mut summaries[cell.summary];
        for item in coming.clone().chain(coming_back.clone()) {
            summary.merge(&L::summary(ring.item(item), cell), cell.needs);
        }
        let mut lost = Parts::COUNT;
        if !going.is_empty() || !going_back.is_empty() {
            let newest = L::summary(ring.item(tail - 1), cell);
            for item in going.clone().chain(going_back.clone()) {
                let part = L::summary(ring.item(item), cell);
                if part.count > 0.0 {
                    lost = lost.and(summary.retract(&part, &newest, cell.needs));
                }
            }
        }
        if !lost.is_count() {
            find_again::<L>(ring, cell, head..tail, summary, lost);
        }
    }
}

/// The summaries of the items in `range`, oldest first.
#[cold]
fn sum_anew<L: Layout>(ring: &Ring, window: &Window, range: std::ops::Range<usize>, summaries: &mut [Summary]) {
    for cell in &window.cells {
        let mut summary = Summary::EMPTY;
        for item in range.clone() {
            summary.merge(&L::summary(ring.item(item), cell), cell.needs);
        }
        summaries[cell.summary] = summary;
    }
}

/// Finds the parts again that were lost when an item left: sums from the oldest to the newest; extremes until one equals
/// the lost one, for none can be beyond it.
#[cold]
fn find_again<L: Layout>(ring: &Ring, cell: &Cell, range: std::ops::Range<usize>, summary: &mut Summary, lost: Parts) {
    let items = range.map(|item| L::summary(ring.item(item), cell));
    if summary.count <= 0.0 {
        *summary = Summary::EMPTY;
    } else if lost.has(Parts::SUM.and(Parts::SQUARES)) {
        let mut anew = Summary::EMPTY;
        items.for_each(|item| anew.merge(&item, cell.needs));
        *summary = anew;
    } else {
        let old = std::mem::replace(summary, Summary { min: f64::INFINITY, max: f64::NEG_INFINITY, ..*summary });
        if !lost.has(Parts::MIN) {
            summary.min = old.min;
        }
        if !lost.has(Parts::MAX) {
            summary.max = old.max;
        }
        if lost.has(Parts::LAST) {
            summary.last_time = f64::NEG_INFINITY;
        }
        for item in items.rev().filter(|item| item.count > 0.0) {
            summary.min = summary.min.min(item.min);
            summary.max = summary.max.max(item.max);
            if item.last_time > summary.last_time {
                (summary.last_time, summary.last) = (item.last_time, item.last);
            }
            let found_last = !lost.has(Parts::LAST) || summary.last_time > f64::NEG_INFINITY;
            let found_min = !lost.has(Parts::MIN) || summary.min <= old.min;
            let found_max = !lost.has(Parts::MAX) || summary.max >= old.max;
            if found_min && found_max && found_last {
                break;
            }
        }
    }
}
