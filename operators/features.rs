//! Feature groups: aggregates by entity key over windows of event time, read as of any event's time.

use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::units::Millis;

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
    /// Cuts every window into this many tiles: an event leaves with its tile, memory per key is bounded, and a window
    /// of length w spans between w - w/tiles and w. Default: exact windows `(t - w, t]`, whose memory grows with the
    /// events in the longest window.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tiles: Option<u32>,
    /// A key without an event for this long, in event time, is forgotten. Default: the longest window, at least 1d.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<Millis>,
    /// Whether the group's features are served by the online store.
    #[serde(default = "yes")]
    pub online: bool,
}

fn yes() -> bool {
    true
}

/// Some aggregates of one value over some windows. Names of the features: `{as}_{op}_{window}`, where `as` is by default
/// `of` (which must then be a plain column) and is left out, with its `_`, for a plain count.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Aggregate {
    /// SQL expression that gives the value, a number or a boolean; null values are left out. Only `count` and
    /// `time_since_last` do without.
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
    /// The column: any type.
    pub column: String,
    /// A value older than this is null.
    pub max_age: Millis,
}

/// An aggregate over the values in a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Op {
    /// Number of rows (of non-null values, with `of`). 0 in an empty window.
    Count,
    /// Sum; null in an empty window.
    Sum,
    /// Arithmetic mean; null in an empty window.
    Mean,
    /// Smallest value; null in an empty window.
    Min,
    /// Largest value; null in an empty window.
    Max,
    /// Population standard deviation; null in an empty window.
    Stddev,
    /// The latest value by event time; null in an empty window.
    Last,
    /// Seconds since the latest row; null in an empty window.
    TimeSinceLast,
}
