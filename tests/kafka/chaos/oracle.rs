//! What must come out: computed as the events are written, by the obvious rule, and held against every output.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use serde_json::Value;

use super::super::service::get;
use super::slow::{Labels, Watched};
use super::world::PARTITIONS;
use crate::program::python;
use crate::random::Random;

const CARDS: u64 = 40;
/// When the event 0 would have happened, in milliseconds since 1970: each is a millisecond after the one before.
const BEGINNING: u64 = 1_700_000_000_000;
/// How late events may be.
const LATENESS: u64 = 500;
/// The window of the short outcomes.
const RECENT: u64 = 3_000;
/// Amounts are so many parts of 1: their sums are exact in any order, and so are they as scores.
pub const UNIT: u64 = 1024;
/// How many events later an event may be sent again.
const AGAIN_AFTER: u64 = 300;
/// So many events are small or large, in turn: there is drift to be told all the time.
const LEVEL: u64 = 300;

/// The columns that are looked at of every vector.
const COLUMNS: [&str; 3] = ["card.count_30d", "card.amount_sum_30d", "score"];

/// What comes out of an event.
#[derive(Debug, Clone, Copy)]
pub struct Expected {
    card: u64,
    /// How many there were of the card.
    count: u64,
    /// The sum of their amounts.
    sum: u64,
    amount: u64,
}

impl Expected {
    /// What is in [`COLUMNS`].
    fn columns(&self) -> [f64; 3] {
        [self.count as f64, self.sum as f64 / UNIT as f64, self.score()]
    }

    fn score(&self) -> f64 {
        self.amount as f64 / UNIT as f64
    }
}

/// How many events there were of each card, and the sum of their amounts. A card's events stand in one partition, so their
/// order is given.
#[derive(Default)]
pub struct Oracle {
    cards: HashMap<u64, (u64, u64)>,
    /// By id.
    pub expected: BTreeMap<u64, Expected>,
    /// Ids of events that can't be decoded, in the order they were written.
    pub poison: Vec<u64>,
    /// The newest event of each partition that can be decoded.
    newest: [u64; PARTITIONS as usize],
    pub watched: Watched,
    pub labels: Labels,
    /// Whether some events are sent twice.
    sends_again: bool,
    /// Events that will be sent again, by the event before which they are.
    again: BTreeMap<u64, Vec<(i32, String)>>,
}

impl Oracle {
    /// Of events that are not written yet, some of which may be sent twice.
    pub fn new(sends_again: bool) -> Oracle {
        Oracle { sends_again, ..Oracle::default() }
    }

    /// The next event: its partition and its bytes.
    pub fn event(&mut self, id: u64, random: &mut Random) -> (i32, String) {
        let card = random.below(CARDS);
        let partition = (card % PARTITIONS as u64) as i32;
        let at = BEGINNING + id;
        let amount = random.below(UNIT / 2) + if (id / LEVEL).is_multiple_of(2) { 0 } else { UNIT / 2 };
        self.labels.label(id, at, amount, random);
        if random.below(50) == 0 {
            self.poison.push(id);
            return (partition, format!("{{\"id\":{id},\"card\":"));
        }
        self.newest[partition as usize] = id;
        let (count, sum) = self.cards.entry(card).or_default();
        (*count, *sum) = (*count + 1, *sum + amount);
        let expected = Expected { card, count: *count, sum: *sum, amount };
        self.expected.insert(id, expected);
        let amount = expected.score();
        self.watched.event(card, amount);
        let event = (partition, format!("{{\"id\":{id},\"at\":{at},\"card\":{card},\"amount\":{amount}}}"));
        if random.below(25) == 0 && self.sends_again {
            self.again.entry(id + 1 + random.below(AGAIN_AFTER)).or_default().push(event.clone());
        }
        event
    }

    /// Takes the events that are sent again when an event is written.
    pub fn again(&mut self, id: u64) -> Vec<(i32, String)> {
        let later = self.again.split_off(&(id + 1));
        std::mem::replace(&mut self.again, later).into_values().flatten().collect()
    }

    /// Whether a topic's or a file's vectors are right: each once, with the right values, in the order of their card.
    pub fn check_vectors<'a>(&self, vectors: impl IntoIterator<Item = &'a [u8]>) -> Result<(), String> {
        let mut seen = BTreeMap::new();
        let mut counts: HashMap<u64, u64> = HashMap::new();
        for (at, bytes) in vectors.into_iter().enumerate() {
            let vector: Value = serde_json::from_slice(bytes).map_err(|error| format!("record {at}: {error}"))?;
            let id = vector["id"].as_u64().ok_or_else(|| format!("record {at} has no id: {vector}"))?;
            if seen.insert(id, at).is_some() {
                return Err(format!("event {id} is there twice, the second time as record {at}"));
            }
            let expected = self.expected.get(&id).ok_or_else(|| format!("there was no event {id}"))?;
            let Expected { card, count, .. } = *expected;
            let number = |column: &str| vector[column].as_f64();
            let found = COLUMNS.map(number);
            if found != expected.columns().map(Some) {
                return Err(format!("event {id} is not {expected:?}: {vector}"));
            }
            if counts.insert(card, count).is_some_and(|before| before >= count) {
                return Err(format!("event {id} of card {card} stands behind a later one"));
            }
        }
        let missing: Vec<_> = self.expected.keys().filter(|id| !seen.contains_key(id)).take(10).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let (count, all) = (self.expected.len() - seen.len(), self.expected.len());
        Err(format!("{count} of {all} events are missing: {missing:?}"))
    }

    /// Whether the dead letters are those that were to be expected.
    pub fn check_rejects<'a>(&self, rejects: impl IntoIterator<Item = &'a [u8]>) -> Result<(), String> {
        let id = |bytes: &[u8]| String::from_utf8_lossy(bytes).split([':', ',']).nth(1).and_then(|id| id.parse().ok());
        let found: Option<Vec<u64>> = rejects.into_iter().map(id).collect();
        let mut found = found.ok_or("a dead letter has other bytes than its event")?;
        found.sort_unstable();
        let (count, all) = (found.len(), self.poison.len());
        if found == self.poison {
            Ok(())
        } else {
            Err(format!("{count} dead letters, or other ones, instead of {all}"))
        }
    }

    /// Whether a job's summary has the figures of all predictions that were judged.
    pub fn check_quality(&self, summary: &Value) -> Result<(), String> {
        let predictions = self.expected.iter().map(|(id, expected)| (*id, expected.card, expected.score()));
        self.labels.check("large", predictions.clone(), summary)?;
        // Up to there no event is expected any more.
        let watermark = self.newest.into_iter().min().unwrap_or_default().saturating_sub(LATENESS + 1);
        let recent = predictions.filter(|(id, ..)| id + RECENT > watermark);
        self.labels.check("recent", recent, summary)
    }

    /// Whether what is served of every card is what its last event has made of it.
    pub fn check_served(&self, address: &str) -> Result<(), String> {
        for (card, (count, sum)) in &self.cards {
            let body = get(address, &format!("/v1/features/card/{card}"));
            let served: Value = serde_json::from_str(&body).map_err(|error| format!("{body}: {error}"))?;
            let features = &served["features"];
            let found = (features["count_30d"].as_u64(), features["amount_sum_30d"].as_f64());
            if found != (Some(*count), Some(*sum as f64 / UNIT as f64)) {
                return Err(format!("card {card} has not count {count} and sum {sum}/{UNIT}: {body}"));
            }
        }
        Ok(())
    }

    /// Whether the offline store has the right rows, through its own reader in another language.
    pub fn check_table(&self, folder: &Path) -> Result<(), String> {
        let said = python("print_table.py").arg(folder).arg("id").args(COLUMNS).output();
        let said = said.map_err(|error| error.to_string())?;
        if !said.status.success() {
            return Err(String::from_utf8_lossy(&said.stderr).into_owned());
        }
        let row =
            |line: &str| serde_json::from_str::<(u64, f64, f64, f64)>(line).map_err(|error| format!("{line}: {error}"));
        let mut found: Vec<(u64, f64, f64, f64)> =
            String::from_utf8_lossy(&said.stdout).lines().map(row).collect::<Result<_, _>>()?;
        found.sort_by_key(|(id, ..)| *id);
        let row = |(id, expected): (&u64, &Expected)| {
            let [count, sum, score] = expected.columns();
            (*id, count, sum, score)
        };
        let expected: Vec<_> = self.expected.iter().map(row).collect();
        let (rows, wanted) = (found.len(), expected.len());
        let differing = found.iter().zip(&expected).find(|(found, expected)| found != expected);
        match found == expected {
            true => Ok(()),
            false => Err(format!("{rows} rows of {wanted}; the first that differs: {differing:?}")),
        }
    }
}
