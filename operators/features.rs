//! Feature groups: aggregates by entity key over windows of event time, read as of any event's time.
//!
//! ```text
//!   updates (the group's input) ──▶ ┌──────────────┐ ──▶ published features, a row for each key changed in the epoch
//!   rows of a vector's spine ─────▶ │ FeatureGroup │ ──▶ the same rows with the group's features as of their time
//!   rows of another vector ───────▶ └──────────────┘ ──▶ ...
//! ```
//!
//! [`FeatureGroup`] is the operator (`group`); `definition` compiles a [`GroupConfig`] for it; `incoming` makes a batch
//! ready; `entity` is the state of one key: a `ring` of events under sliding `windows`, summed up ([`summary`]) without
//! drift ([`wide`]), and the values of `as_of` lookups. [`aggregates`] is the family of functions; `answers` builds the
//! columns. `carry` takes state over to another definition; `steps` says what happened to a key, for checkpoints, and `frame`
//! what that depends on.

use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::units::Millis;

pub mod aggregates;
mod answers;
mod as_of;
mod build;
mod carry;
mod definition;
mod entity;
mod frame;
mod group;
mod incoming;
mod port;
mod ring;
mod steps;
pub mod summary;
pub mod wide;
mod windows;

pub use aggregates::{AggregateFunction, Op};
pub use carry::Shape;
pub use group::{FeatureGroup, VALID_UNTIL};
pub use port::Reader;

/// A feature group: what is remembered for each key, and the features that follow from it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GroupConfig {
    /// The source or prepared stream that feeds the group.
    pub from: String,
    /// The columns of the entity key.
    pub key: Vec<String>,
    /// Aggregates over sliding windows.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub aggregates: Vec<Aggregate>,
    /// As-of lookups: the latest value of a column at or before the reader's time. The feature is named like the entry.
    #[serde(default, skip_serializing_if = "IndexMap::is_empty")]
    pub as_of: IndexMap<String, AsOf>,
    /// Cuts every window into this many tiles, aligned to 1970: an event leaves with its tile, memory per key is bounded,
    /// and a window of length w spans between w - w/tiles and w. Default: exact windows `(t - w, t]`, whose memory grows
    /// with the events in the longest window.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tiles: Option<u32>,
    /// A key without an event for this long, in event time, is forgotten. At least the longest window and age. Default:
    /// that, at least 1d.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<Millis>,
    /// Whether the group's features, as of each key's last event, are served by the online store.
    #[serde(default = "yes")]
    pub online: bool,
}

fn yes() -> bool {
    true
}

/// Some aggregates of one value over some windows. Names of the features: `{as}_{op}_{window}`, where `as` is by default
/// `of` (which must then be a plain column) and is left out, with its `_`, without `of`. The window is written with its
/// largest unit, but a day as `24h`: `amount_mean_1h`, `amount_mean_24h`, `count_7d`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Aggregate {
    /// SQL expression that gives the value, a number or a boolean (true is 1, false 0). Null, NaN, infinite values and
    /// those beyond ±1e100 are left out. Only `count` and `time_since_last` do without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub of: Option<String>,
    /// SQL condition: only rows for which it is true count.
    #[serde(default, rename = "where", skip_serializing_if = "Option::is_none")]
    pub filter: Option<String>,
    /// Name in the features' names.
    #[serde(default, rename = "as", skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The aggregates.
    pub ops: Vec<Op>,
    /// The windows, each at most 400d.
    pub windows: Vec<Millis>,
}

/// An as-of lookup.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AsOf {
    /// The column: a boolean, number, text, date or timestamp. Nulls are passed over: the latest value there was.
    pub column: String,
    /// A value older than this is null.
    pub max_age: Millis,
}

#[cfg(test)]
mod tests;
