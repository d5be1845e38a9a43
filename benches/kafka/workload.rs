//! The two workloads, exactly specified: W0 scores each event by itself, W1 keeps twenty windowed features a card.
//!
//! Event i is a pure function of i, so the generator, the systems under test and the reference agree without files. The
//! specification stands in `docs/benchmarks.md`.

use std::io::Write;

use rdkafka::ClientConfig;
use rdkafka::error::KafkaError;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::types::RDKafkaErrorCode;

pub mod cards;
pub mod ratios;

pub use cards::Card;

/// Event time of event 0: 2026-01-01T00:00:00Z in milliseconds.
pub const START_MILLIS: i64 = 1_767_225_600_000;
/// Topic of the events.
pub const TOPIC_IN: &str = "w1-in";
/// Topic of the results.
pub const TOPIC_OUT: &str = "w1-out";
/// Partitions of each topic.
pub const PARTITIONS: i32 = 4;

const CHANNELS: [&str; 4] = ["pos", "web", "atm", "app"];
/// The finalizer of splitmix64.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Writes the key and the JSON of event `i`, among `keys` cards.
pub fn event(i: u64, keys: u64, key: &mut Vec<u8>, value: &mut Vec<u8>) {
    let h = mix(42u64.wrapping_add((i + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15)));
    let h2 = mix(h);
    let card = (h >> 20) % keys;
    let merchant = (h2 & 0xFFFF) % 1_000;
    let cents = 100 + ((h2 >> 20) & 0xFFFF) * ((h2 >> 40) & 0xFFFF) / 8_590;
    let channel = CHANNELS[(h2 >> 16 & 3) as usize];
    let ts = START_MILLIS as u64 + i + (h & 1);
    key.clear();
    value.clear();
    let (units, rest) = (cents / 100, cents % 100);
    write!(key, "k{card:06}").expect("a Vec takes every write");
    write!(value, r#"{{"id": {i}, "card": "k{card:06}", "merchant": "m{merchant:04}", "amount": {units}.{rest:02}, "#)
        .expect("a Vec takes every write");
    write!(value, r#""channel": "{channel}", "ts": {ts}}}"#).expect("a Vec takes every write");
}

/// The fields of an event that the work needs.
pub struct Event {
    /// Number of the event.
    pub id: i64,
    /// Number of the card.
    pub card: i64,
    /// Number of the merchant.
    pub merchant: i64,
    /// Amount in cents.
    pub cents: i64,
    /// Event time in milliseconds.
    pub ts: i64,
}

/// Reads an event by hand: the fields stand in a fixed order.
pub fn parse(mut bytes: &[u8]) -> Option<Event> {
    let mut field = |name: &str| -> Option<&[u8]> {
        let at = bytes.windows(name.len()).position(|window| window == name.as_bytes())?;
        bytes = &bytes[at + name.len()..];
        Some(bytes)
    };
    let id = digits(field("\"id\": ")?);
    let card = digits(field("\"card\": \"k")?);
    let merchant = digits(field("\"merchant\": \"m")?);
    let amount = field("\"amount\": ")?;
    let units = digits(amount);
    let point = amount.iter().position(|byte| *byte == b'.')?;
    let cents = units * 100 + digits(&amount[point + 1..]);
    let ts = digits(field("\"ts\": ")?);
    Some(Event { id, card, merchant, cents, ts })
}

/// The whole number at the beginning of `bytes`.
pub fn digits(bytes: &[u8]) -> i64 {
    let digits = bytes.iter().take_while(|byte| byte.is_ascii_digit());
    digits.fold(0, |number, digit| number * 10 + i64::from(digit - b'0'))
}

/// The 32 inputs of W0's model.
pub fn w0_inputs(event: &Event, inputs: &mut [f32]) {
    let v = [
        event.cents as f64 / 100.0 / 1000.0,
        (event.ts % 86_400_000) as f64 / 86_400_000.0,
        (event.id % 1000) as f64 / 1000.0,
        (event.card % 1000) as f64 / 1000.0,
        event.merchant as f64 / 1000.0,
    ];
    for (j, input) in inputs.iter_mut().enumerate().take(32) {
        let factor = ((7 * j + 3) % 11) as f64 - 5.0;
        *input = (v[j % 5] * factor / 5.0) as f32;
    }
}

/// An environment variable, or a default.
pub fn variable(name: &str, default: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| default.into())
}

/// Settings that all clients share.
pub fn client() -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", variable("KAFKA_BROKERS", "127.0.0.1:19092")).set("socket.nagle.disable", "true");
    config
}

/// Sends a record; waits only while the producer's queue is full.
///
/// # Errors
/// If the producer refuses the record for good.
pub fn send(producer: &BaseProducer, topic: &str, key: &[u8], value: &[u8]) -> Result<(), KafkaError> {
    let mut record = BaseRecord::to(topic).key(key).payload(value);
    loop {
        match producer.send(record) {
            Ok(()) => return Ok(()),
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                producer.poll(std::time::Duration::from_millis(1));
                record = back;
            }
            Err((error, _)) => return Err(error),
        }
    }
}

/// Waits until everything that was sent is acknowledged (`flush` goes in steps of 100 ms).
pub fn drain(producer: &BaseProducer) {
    while producer.in_flight_count() > 0 {
        producer.poll(std::time::Duration::from_micros(500));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The lines are the reference's (`tests/python/recompute_workloads.py events`).
    #[test]
    fn the_generator_follows_its_specification() {
        let lines = [
            r#"{"id": 0, "card": "k000358", "merchant": "m0267", "amount": 92.17, "channel": "app", "ts": 1767225600001}"#,
            r#"{"id": 7, "card": "k000233", "merchant": "m0784", "amount": 1166.23, "channel": "atm", "ts": 1767225600007}"#,
            r#"{"id": 999999, "card": "k000544", "merchant": "m0532", "amount": 550.63, "channel": "atm", "ts": 1767226600000}"#,
        ];
        let (mut key, mut value) = (Vec::new(), Vec::new());
        for line in lines {
            let expected = parse(line.as_bytes()).expect("a record of the agreed form");
            event(expected.id as u64, 1_000, &mut key, &mut value);
            assert_eq!(String::from_utf8_lossy(&value), line);
            assert_eq!(String::from_utf8_lossy(&key), format!("k{:06}", expected.card));
        }
    }
}
