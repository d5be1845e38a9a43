//! The slices that an outcome's figures are cut by: a number for each value of a column, and how many there may be.

use std::collections::HashMap;

use crate::metrics::catalogue::SLICES_MAX;

/// The slice of everything.
pub const ALL: &str = "all";
/// The number of [`ALL`].
pub const ALL_NUMBER: u32 = 0;
/// Values of a column beyond [`SLICES_MAX`] count together under this one.
const OTHER: &str = "other";

/// Names and numbers of slices. A number, once given, stays: also over restarts, by the checkpoint.
#[derive(Debug)]
pub struct Slices {
    names: Vec<String>,
    numbers: HashMap<String, u32>,
    /// Values by column.
    values: HashMap<String, usize>,
}

impl Slices {
    /// From the names of a checkpoint, in the order of their numbers; an outcome that starts anew has none.
    pub fn new(names: Vec<String>) -> Self {
        let mut slices = Slices { names: Vec::new(), numbers: HashMap::new(), values: HashMap::new() };
        slices.add(ALL.into());
        names.into_iter().skip(1).for_each(|name| _ = slices.add(name));
        slices
    }

    /// The number of the slice of a column's value. A column has at most [`SLICES_MAX`], in the order in which they come;
    /// the others are one.
    pub fn number(&mut self, column: &str, value: &str) -> u32 {
        let name = format!("{column}={value}");
        if let Some(number) = self.numbers.get(&name) {
            return *number;
        }
        if self.values.get(column).copied().unwrap_or(0) < SLICES_MAX {
            return self.add(name);
        }
        let other = format!("{column}={OTHER}");
        self.numbers.get(&other).copied().unwrap_or_else(|| self.add(other))
    }

    fn add(&mut self, name: String) -> u32 {
        let number = self.names.len() as u32;
        if let Some((column, _)) = name.split_once('=') {
            *self.values.entry(column.into()).or_default() += 1;
        }
        self.numbers.insert(name.clone(), number);
        self.names.push(name);
        number
    }

    /// The name of a slice: `all`, or column=value.
    pub fn name(&self, number: u32) -> &str {
        &self.names[number as usize]
    }

    /// The names by number, for the checkpoint.
    pub fn names(&self) -> &[String] {
        &self.names
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_column_has_so_many_slices_and_one_for_the_rest() {
        let mut slices = Slices::new(Vec::new());
        let numbers: Vec<u32> = (0..SLICES_MAX + 5).map(|i| slices.number("country", &i.to_string())).collect();
        assert_eq!(numbers[0], ALL_NUMBER + 1);
        assert!(numbers[SLICES_MAX..].iter().all(|number| *number == numbers[SLICES_MAX]));
        assert_eq!(slices.name(numbers[SLICES_MAX]), "country=other");
        assert_eq!(slices.number("channel", "web"), numbers[SLICES_MAX] + 1, "another column has its own");
        assert_eq!(slices.name(ALL_NUMBER), "all");
        let mut again = Slices::new(slices.names().to_vec());
        assert_eq!(again.number("country", "7"), numbers[7]);
        assert_eq!(again.number("country", "never seen"), numbers[SLICES_MAX]);
        assert_eq!(again.names(), slices.names());
    }
}
