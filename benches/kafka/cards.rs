//! The twenty windowed features of a card, by hand: what a loop does that is written for nothing else.

use std::collections::VecDeque;

/// Length of a tile of each window, in milliseconds: 60 tiles make 1 min, 10 min, 1 h, 24 h.
const TILE_MILLIS: [i64; 4] = [1_000, 10_000, 60_000, 1_440_000];

#[derive(Clone, Copy)]
struct Tile {
    number: i64,
    count: i64,
    sum: i64,
    squares: i64,
    max: i64,
}

#[derive(Default)]
struct Window {
    tiles: VecDeque<Tile>,
    count: i64,
    sum: i64,
    squares: i64,
    max: i64,
}

impl Window {
    fn add(&mut self, number: i64, cents: i64) {
        let mut rescan = false;
        while let Some(old) = self.tiles.front().filter(|old| old.number <= number - 60) {
            self.count -= old.count;
            self.sum -= old.sum;
            self.squares -= old.squares;
            rescan |= old.max == self.max;
            self.tiles.pop_front();
        }
        match self.tiles.back_mut().filter(|last| last.number == number) {
            Some(last) => {
                last.count += 1;
                last.sum += cents;
                last.squares += cents * cents;
                last.max = last.max.max(cents);
            }
            None => self.tiles.push_back(Tile { number, count: 1, sum: cents, squares: cents * cents, max: cents }),
        }
        self.count += 1;
        self.sum += cents;
        self.squares += cents * cents;
        self.max = match rescan {
            true => self.tiles.iter().map(|tile| tile.max).max().unwrap_or(cents),
            false => self.max.max(cents),
        };
    }
}

/// One card's four sliding windows.
#[derive(Default)]
pub struct Card([Window; 4]);

impl Card {
    /// Adds an event and writes the 22 inputs of the model; gives the count of 1 h and the mean of 24 h.
    pub fn add(&mut self, ts: i64, cents: i64, inputs: &mut [f32]) -> (i64, f64) {
        let mut features = [0f64; 22];
        for (k, window) in self.0.iter_mut().enumerate() {
            window.add(ts / TILE_MILLIS[k], cents);
            let count = window.count as f64;
            let spread = ((window.count * window.squares - window.sum * window.sum) as f64).sqrt();
            let of_window = [
                count,
                window.sum as f64 / 100.0,
                window.sum as f64 / count / 100.0,
                window.max as f64 / 100.0,
                spread / count / 100.0,
            ];
            features[k * 5..k * 5 + 5].copy_from_slice(&of_window);
        }
        features[20] = cents as f64 / 100.0;
        features[21] = features[20] / features[17];
        for (input, feature) in inputs.iter_mut().zip(features) {
            *input = feature as f32;
        }
        (features[10] as i64, features[17])
    }
}
