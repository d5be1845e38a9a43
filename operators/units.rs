//! Numbers with units as users write them: `250ms`, `64MiB`, `1000/s`.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A length of time in milliseconds, written `250ms`, `30s`, `10m`, `24h`, `7d`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Millis(pub i64);

/// A number of bytes, written `64KiB`, `16MiB`, `2GiB`, or `100B`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Bytes(pub u64);

/// A number of records per second, written `1000/s`.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub struct PerSecond(pub f64);

const TIMES: &[(&str, i64)] = &[("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];
const SIZES: &[(&str, i64)] = &[("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("B", 1)];

/// Reads `<number><unit>` with a unit of the table; whole numbers only, `0` needs no unit.
fn parse(text: &str, units: &[(&str, i64)], what: &str, example: &str) -> Result<i64, String> {
    let text = text.trim();
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let refuse = || format!("`{text}` is not {what}; write it like {example}");
    let number: i64 = number.parse().map_err(|_| refuse())?;
    if unit.is_empty() && number == 0 {
        return Ok(0);
    }
    let (_, factor) = units.iter().find(|(name, _)| *name == unit.trim()).ok_or_else(refuse)?;
    number.checked_mul(*factor).ok_or_else(|| format!("`{text}` is too large"))
}

/// Writes a number with the largest unit that divides it.
fn write(value: i64, units: &[(&str, i64)], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let best = units.iter().filter(|(_, factor)| value % factor == 0).max_by_key(|(_, factor)| *factor);
    match best {
        Some((unit, factor)) if value != 0 => write!(f, "{}{unit}", value / factor),
        _ => write!(f, "0{}", units[0].0),
    }
}

impl FromStr for Millis {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        parse(text, TIMES, "a length of time", "`250ms`, `30s`, `10m`, `24h` or `7d`").map(Millis)
    }
}
impl fmt::Display for Millis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write(self.0, TIMES, f)
    }
}
impl Millis {
    /// The same length as the standard library writes it; a negative length is zero.
    pub fn duration(self) -> std::time::Duration {
        std::time::Duration::from_millis(self.0.max(0) as u64)
    }
}
impl FromStr for Bytes {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        parse(text, SIZES, "a size", "`64KiB`, `16MiB` or `2GiB`").map(|bytes| Bytes(bytes as u64))
    }
}
impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write(self.0 as i64, SIZES, f)
    }
}
impl FromStr for PerSecond {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let number = text.trim().strip_suffix("/s").and_then(|n| n.trim().parse::<f64>().ok());
        match number {
            Some(n) if n > 0.0 && n.is_finite() => Ok(PerSecond(n)),
            _ => Err(format!("`{text}` is not a rate; write it like `1000/s`")),
        }
    }
}
impl fmt::Display for PerSecond {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/s", self.0)
    }
}

macro_rules! as_text {
    ($type:ident, $pattern:literal, $title:literal) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                Cow::<'de, str>::deserialize(deserializer)?.parse().map_err(de::Error::custom)
            }
        }
        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                stringify!($type).into()
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                // Nothing of anything needs no unit: 0, which YAML reads as a number.
                json_schema!({
                    "type": ["string", "integer"], "pattern": $pattern, "minimum": 0, "maximum": 0, "description": $title,
                })
            }
        }
    };
}
as_text!(Millis, "^[0-9]+(ms|s|m|h|d)$|^0$", "A length of time: 250ms, 30s, 10m, 24h, 7d");
as_text!(Bytes, "^[0-9]+(B|KiB|MiB|GiB)$", "A size: 64KiB, 16MiB, 2GiB");
as_text!(PerSecond, "^[0-9.]+/s$", "A rate: 1000/s");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_time_are_read_and_written() {
        for (text, millis) in [("250ms", 250), ("30s", 30_000), ("10m", 600_000), ("24h", 86_400_000), ("0", 0)] {
            assert_eq!(text.parse::<Millis>(), Ok(Millis(millis)));
        }
        assert_eq!(Millis(86_400_000).to_string(), "1d");
        assert_eq!(Millis(90_000).to_string(), "90s");
        for text in ["", "5", "5 years", "-3s", "1.5h", "99999999999999999999d"] {
            assert!(text.parse::<Millis>().is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_and_rates_are_read() {
        assert_eq!("64MiB".parse::<Bytes>(), Ok(Bytes(64 << 20)));
        assert_eq!("1000/s".parse::<PerSecond>(), Ok(PerSecond(1000.0)));
        assert!("0/s".parse::<PerSecond>().is_err());
    }
}
