//! What detectors and outcomes must come to: the same detectors in one piece, and the labels that stand at last.

use std::collections::{BTreeMap, HashMap};

use millstream_operators::drift::adwin::AdwinConfig;
use millstream_operators::drift::page_hinkley::PageHinkleyConfig;
use millstream_operators::drift::{Alarm, Detector, DetectorConfig, Verdict};
use millstream_operators::quality::{Histogram, bin};
use serde_json::{Value, json};

use super::oracle::UNIT;
use crate::random::Random;

/// How much later labels happen than their events.
const LABELLED_AFTER: u64 = 6 * 3_600_000;
/// How many events later they may come.
const COMES_AFTER: u64 = 300;

/// The detectors of the topology. Each watches the cards of one partition, whose order is that in which events are written.
pub struct Watched {
    detectors: [(&'static str, Box<dyn Detector>); 2],
    /// What they told, by name.
    told: BTreeMap<&'static str, Vec<Alarm>>,
}

impl Default for Watched {
    fn default() -> Watched {
        let amounts = PageHinkleyConfig { threshold: 5.0, ..PageHinkleyConfig::default() }.build().unwrap();
        let scores = AdwinConfig::default().build().unwrap();
        Watched { detectors: [("amounts", amounts), ("scores", scores)], told: BTreeMap::new() }
    }
}

impl Watched {
    /// The next event, in the order of its partition.
    pub fn event(&mut self, card: u64, amount: f64) {
        let Some((name, detector)) = self.detectors.get_mut((card % 3) as usize) else { return };
        if let Verdict::Alarm(alarm) = detector.observe(Some(amount), 0) {
            self.told.entry(name).or_default().push(alarm);
        }
    }

    /// Whether signals are those that had to come: each detector's in their order, each once. They bear what a detector remembers, so
    /// that one that has lost or repeated a value tells others.
    pub fn check<'a>(&self, signals: impl IntoIterator<Item = &'a [u8]>) -> Result<(), String> {
        let mut found: HashMap<String, Vec<Value>> = HashMap::new();
        for bytes in signals {
            let signal: Value = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
            found.entry(signal["detector"].as_str().unwrap_or_default().to_owned()).or_default().push(signal);
        }
        for (name, told) in &self.told {
            let found = found.remove(*name).unwrap_or_default();
            for (at, (signal, alarm)) in found.iter().zip(told).enumerate() {
                let statistic = signal["statistic"].as_f64().unwrap_or_default();
                if signal["evidence"] != json!(alarm.evidence) || (statistic - alarm.statistic).abs() > 1e-9 {
                    return Err(format!("signal {at} of {name} is {signal} instead of {alarm:?}"));
                }
            }
            let (count, all) = (found.len(), told.len());
            if count != all {
                return Err(format!("{count} signals of {name} instead of {all}"));
            }
        }
        if found.is_empty() { Ok(()) } else { Err(format!("signals of nobody: {found:?}")) }
    }
}

/// The labels of events, hours later in event time; some are corrected or taken back, in whatever order they come.
#[derive(Default)]
pub struct Labels {
    /// Those that will be written, by the event before which they are.
    due: BTreeMap<u64, Vec<(i32, String)>>,
    /// Those that stand at last.
    standing: HashMap<u64, bool>,
}

impl Labels {
    /// Makes the labels of an event; the larger the amount, the likelier it is called large.
    pub fn label(&mut self, id: u64, at: u64, amount: u64, random: &mut Random) {
        if random.below(4) == 0 {
            return;
        }
        let large = random.below(UNIT) < amount;
        let mut said = vec![Some(large)];
        if random.below(20) == 0 {
            said.push(Some(!large));
        }
        if random.below(40) == 0 {
            said.push(None);
        }
        for (seconds, said) in said.iter().enumerate() {
            let at = at + LABELLED_AFTER + 1_000 * seconds as u64;
            let text = json!({ "id": id, "at": at, "large": said.map(u8::from) }).to_string();
            self.due.entry(id + random.below(COMES_AFTER)).or_default().push(((id % 2) as i32, text));
        }
        if let Some(Some(last)) = said.last() {
            self.standing.insert(id, *last);
        }
    }

    /// Takes those that are due when an event is written: the partition and the bytes of each.
    pub fn due(&mut self, id: u64) -> Vec<(i32, String)> {
        let later = self.due.split_off(&(id + 1));
        std::mem::replace(&mut self.due, later).into_values().flatten().collect()
    }

    /// Whether a job's summary has of an outcome the figures of all that stands, where `predictions` are id, card and score of each.
    pub fn check(
        &self,
        outcome: &str,
        predictions: impl Iterator<Item = (u64, u64, f64)>,
        summary: &Value,
    ) -> Result<(), String> {
        let mut slices: BTreeMap<String, Histogram> = BTreeMap::new();
        let (mut count, mut joined) = (0, 0);
        for (id, card, score) in predictions {
            count += 1;
            let Some(large) = self.standing.get(&id) else { continue };
            joined += 1;
            for slice in ["all".to_owned(), format!("card={card}")] {
                slices.entry(slice).or_default().add(bin(score), *large, 1);
            }
        }
        let unmatched = self.standing.len() - joined;
        let standing = json!({ "predictions": count, "pending": count - joined, "unmatched_labels": unmatched });
        let found = &summary["outcomes"][outcome]["standing"];
        if *found != standing {
            return Err(format!("of {outcome} {found} stands instead of {standing}"));
        }
        let figures = summary["quality"][outcome].as_object().ok_or("no figures")?;
        for (slice, histogram) in &slices {
            check_figures(figures.get(slice).unwrap_or(&Value::Null), histogram)
                .map_err(|wrong| format!("slice {slice} of {outcome}: {wrong}"))?;
        }
        let (found, expected) = (figures.len(), slices.len());
        if found == expected { Ok(()) } else { Err(format!("{found} slices of {outcome} instead of {expected}")) }
    }
}

fn check_figures(found: &Value, histogram: &Histogram) -> Result<(), String> {
    let quality = histogram.quality();
    // Numbers are read from text, which may cost the last digit.
    let differs = |(name, expected): (&str, Option<f64>)| match (found[name].as_f64(), expected) {
        (Some(found), Some(expected)) => (found - expected).abs() > 1e-12,
        (found, expected) => found != expected,
    };
    let expected = [
        ("joined", Some(quality.count as f64)),
        ("auc", quality.auc),
        ("log_loss", quality.log_loss),
        ("brier", quality.brier),
        ("calibration_error", quality.calibration_error),
    ];
    match expected.into_iter().find(|expected| differs(*expected)) {
        None => Ok(()),
        Some((name, expected)) => Err(format!("{name} is not {expected:?}: {found}")),
    }
}
