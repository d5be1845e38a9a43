//! A ring of items in the order of time: the rows, or the tiles, that windows cover.
//!
//! An item is a few `f64` side by side, the first of which is its time (see [`super::windows`]). Items come at the end
//! and leave at the front; a late one is put in its place. The memory grows and shrinks with what is held.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Items of `stride` numbers each, ordered by the first of them.
#[derive(Debug, Clone, PartialEq)]
pub struct Ring {
    data: Vec<f64>,
    /// Where the oldest item stands in `data`.
    start: u32,
    len: u32,
    stride: u32,
}

impl Ring {
    /// An empty ring for items of `stride` numbers, at least one; without memory until the first item.
    pub fn new(stride: usize) -> Self {
        Ring { data: Vec::new(), start: 0, len: 0, stride: stride.max(1) as u32 }
    }

    /// Number of items.
    #[inline(always)]
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Numbers in an item.
    pub fn stride(&self) -> usize {
        self.stride as usize
    }

    /// Bytes allocated.
    pub fn size_bytes(&self) -> usize {
        self.data.capacity() * size_of::<f64>()
    }

    #[inline(always)]
    fn offset(&self, at: usize) -> usize {
        let offset = self.start as usize + at * self.stride as usize;
        if offset >= self.data.len() { offset - self.data.len() } else { offset }
    }

    /// The item at `at`, counted from the oldest.
    #[inline(always)]
    pub fn item(&self, at: usize) -> &[f64] {
        let offset = self.offset(at);
        &self.data[offset..offset + self.stride as usize]
    }

    /// The item at `at`, for change; its time must stay.
    #[inline(always)]
    pub fn item_mut(&mut self, at: usize) -> &mut [f64] {
        let offset = self.offset(at);
        &mut self.data[offset..offset + self.stride as usize]
    }

    /// The time of the item at `at`.
    #[inline(always)]
    pub fn time(&self, at: usize) -> f64 {
        self.data[self.offset(at)]
    }

    /// Number of items at or before `time`: the place of the first later one.
    pub fn count_until(&self, time: f64) -> usize {
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = (low + high) / 2;
            if self.time(middle) <= time { low = middle + 1 } else { high = middle }
        }
        low
    }

    /// Number of items before `time`.
    pub fn count_before(&self, time: f64) -> usize {
        self.count_until(time.next_down())
    }

    /// Puts a new item with `time` at the end and gives it, to be filled in.
    #[inline(always)]
    pub fn push(&mut self, time: f64) -> &mut [f64] {
        let (items, stride) = (self.len(), self.stride as usize);
        if items * stride == self.data.len() {
            self.resize(items + (items / 2).max(2));
        }
        self.len += 1;
        let item = self.item_mut(items);
        item[0] = time;
        item
    }

    /// Puts a new item with `time` at `at`, before the one that stands there, and gives it, to be filled in.
    pub fn insert(&mut self, at: usize, time: f64) -> &mut [f64] {
        self.push(time);
        for to in (at + 1..self.len()).rev() {
            let (from, to) = (self.offset(to - 1), self.offset(to));
            self.data.copy_within(from..from + self.stride as usize, to);
        }
        let item = self.item_mut(at);
        item[0] = time;
        item
    }

    /// Removes the oldest `count` items.
    pub fn remove_oldest(&mut self, count: usize) {
        self.start = if count < self.len() { self.offset(count) as u32 } else { 0 };
        self.len -= count as u32;
        let used = self.len() * self.stride as usize;
        if used < self.data.len() / 4 && self.data.len() > 8 * self.stride as usize {
            self.resize(self.len() * 2);
        }
    }

    /// Moves the items into memory for `items` of them.
    #[cold]
    fn resize(&mut self, items: usize) {
        let mut data = Vec::with_capacity(items * self.stride());
        for at in 0..self.len() {
            data.extend_from_slice(self.item(at));
        }
        data.resize(items * self.stride(), 0.0);
        (self.data, self.start) = (data, 0);
    }
}

/// Saved as the stride and the numbers of the items, oldest first.
impl Serialize for Ring {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let ordered: Vec<f64> = (0..self.len()).flat_map(|at| self.item(at)).copied().collect();
        (self.stride, ordered).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Ring {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (stride, data) = <(u32, Vec<f64>)>::deserialize(deserializer)?;
        if stride == 0 || data.len() % stride as usize != 0 {
            let numbers = data.len();
            return Err(serde::de::Error::custom(format!("{numbers} numbers are no items of {stride}")));
        }
        Ok(Ring { start: 0, len: (data.len() / stride as usize) as u32, stride, data })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What a ring does in one step.
    #[derive(Debug, Clone)]
    enum Step {
        Insert(u8),
        RemoveOldest(usize),
    }

    proptest! {
        /// A ring holds what an ordered list holds, and the same after it was saved.
        #[test]
        fn a_ring_is_an_ordered_list(steps in prop::collection::vec(prop_oneof![
            3 => any::<u8>().prop_map(Step::Insert),
            1 => (0usize..6).prop_map(Step::RemoveOldest),
        ], 0..200)) {
            let (mut ring, mut list) = (Ring::new(2), Vec::<(f64, f64)>::new());
            for (number, step) in steps.into_iter().enumerate() {
                match step {
                    Step::Insert(time) => {
                        let (time, value) = (time as f64, number as f64);
                        let at = ring.count_until(time);
                        prop_assert_eq!(at, list.partition_point(|item| item.0 <= time));
                        ring.insert(at, time)[1] = value;
                        list.insert(at, (time, value));
                    }
                    Step::RemoveOldest(count) => {
                        ring.remove_oldest(count.min(list.len()));
                        list.drain(..count.min(list.len()));
                    }
                }
                let held: Vec<(f64, f64)> = (0..ring.len()).map(|at| (ring.item(at)[0], ring.item(at)[1])).collect();
                prop_assert_eq!(&held, &list);
            }
            let bytes = postcard::to_allocvec(&ring).unwrap();
            let back: Ring = postcard::from_bytes(&bytes).unwrap();
            prop_assert_eq!(back.len(), ring.len());
            prop_assert_eq!(postcard::to_allocvec(&back).unwrap(), bytes);
        }
    }
}
