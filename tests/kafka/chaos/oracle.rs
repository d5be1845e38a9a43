//! What must come out: computed as the events are written, by the obvious rule, and held against every output.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use serde_json::Value;

use super::super::service::get;
use super::PARTITIONS;
use crate::program::python;
use crate::random::Random;

const CARDS: u64 = 40;

/// How many events there were of the card, and the sum of their amounts. A card's events stand in one partition, so their
/// order is given.
#[derive(Default)]
pub struct Oracle {
    cards: HashMap<u64, (u64, u64)>,
    /// By id: card, how many with it, sum with it.
    pub expected: BTreeMap<u64, (u64, u64, u64)>,
    /// Ids of events that can't be decoded, in the order they were written.
    pub poison: Vec<u64>,
}

impl Oracle {
    /// The next event: its partition and its bytes.
    pub fn event(&mut self, id: u64, random: &mut Random) -> (i32, String) {
        let card = random.below(CARDS);
        let partition = (card % PARTITIONS as u64) as i32;
        if random.below(50) == 0 {
            self.poison.push(id);
            return (partition, format!("{{\"id\":{id},\"card\":"));
        }
        // Whole numbers: their sums are exact in any order.
        let amount = random.below(1_000);
        let (count, sum) = self.cards.entry(card).or_default();
        (*count, *sum) = (*count + 1, *sum + amount);
        self.expected.insert(id, (card, *count, *sum));
        let at = 1_700_000_000_000 + id;
        (partition, format!("{{\"id\":{id},\"at\":{at},\"card\":{card},\"amount\":{amount}}}"))
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
            let (card, count, sum) = *self.expected.get(&id).ok_or_else(|| format!("there was no event {id}"))?;
            let found = (vector["card.count_30d"].as_u64(), vector["card.amount_sum_30d"].as_f64());
            if found != (Some(count), Some(sum as f64)) {
                return Err(format!("event {id} of card {card} has not count {count} and sum {sum}: {vector}"));
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

    /// Whether what is served of every card is what its last event has made of it.
    pub fn check_served(&self, address: &str) -> Result<(), String> {
        for (card, (count, sum)) in &self.cards {
            let body = get(address, &format!("/v1/features/card/{card}"));
            let served: Value = serde_json::from_str(&body).map_err(|error| format!("{body}: {error}"))?;
            let features = &served["features"];
            let found = (features["count_30d"].as_u64(), features["amount_sum_30d"].as_f64());
            if found != (Some(*count), Some(*sum as f64)) {
                return Err(format!("card {card} has not count {count} and sum {sum}: {body}"));
            }
        }
        Ok(())
    }

    /// Whether the offline store has the right rows, through its own reader in another language.
    pub fn check_table(&self, folder: &Path) -> Result<(), String> {
        let said = python("print_table.py").arg(folder).args(["id", "card.count_30d", "card.amount_sum_30d"]).output();
        let said = said.map_err(|error| error.to_string())?;
        if !said.status.success() {
            return Err(String::from_utf8_lossy(&said.stderr).into_owned());
        }
        let row =
            |line: &str| serde_json::from_str::<(u64, u64, f64)>(line).map_err(|error| format!("{line}: {error}"));
        let mut found: Vec<(u64, u64, f64)> =
            String::from_utf8_lossy(&said.stdout).lines().map(row).collect::<Result<_, _>>()?;
        found.sort_by_key(|(id, ..)| *id);
        let expected: Vec<(u64, u64, f64)> =
            self.expected.iter().map(|(id, (_, count, sum))| (*id, *count, *sum as f64)).collect();
        let (rows, wanted) = (found.len(), expected.len());
        let differing = found.iter().zip(&expected).find(|(found, expected)| found != expected);
        match found == expected {
            true => Ok(()),
            false => Err(format!("{rows} rows of {wanted}; the first that differs: {differing:?}")),
        }
    }
}
