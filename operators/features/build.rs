//! Feature groups written in Rust: constructors with the defaults of a file.
//!
//! ```
//! use millstream_operators::features::{Aggregate, GroupConfig, Op};
//! use millstream_operators::units::Millis;
//!
//! let hour = Millis(3_600_000);
//! let group = GroupConfig::new("payments", ["card"])
//!     .aggregate(Aggregate::of("amount", [Op::MEAN, Op::MAX], [hour]))
//!     .aggregate(Aggregate::rows([Op::COUNT], [hour]));
//! let file = r#"{ "from": "payments", "key": ["card"], "aggregates": [
//!     { "of": "amount", "ops": ["mean", "max"], "windows": ["1h"] }, { "ops": ["count"], "windows": ["1h"] } ] }"#;
//! assert_eq!(group, serde_json::from_str(file).unwrap());
//! ```

use indexmap::IndexMap;

use super::{Aggregate, AsOf, GroupConfig, Op, yes};
use crate::units::Millis;

impl GroupConfig {
    /// A group fed by the stream `from`, without features yet.
    pub fn new<'a>(from: &str, key: impl IntoIterator<Item = &'a str>) -> Self {
        GroupConfig {
            from: from.into(),
            key: key.into_iter().map(str::to_string).collect(),
            aggregates: Vec::new(),
            as_of: IndexMap::new(),
            tiles: None,
            ttl: None,
            online: yes(),
        }
    }

    /// Adds aggregates.
    pub fn aggregate(mut self, aggregate: Aggregate) -> Self {
        self.aggregates.push(aggregate);
        self
    }

    /// Adds the feature `name`: the latest value of `column`, at most `max_age` old.
    pub fn as_of(mut self, name: &str, column: &str, max_age: Millis) -> Self {
        self.as_of.insert(name.into(), AsOf { column: column.into(), max_age });
        self
    }

    /// Cuts every window into tiles.
    pub fn tiles(self, tiles: u32) -> Self {
        GroupConfig { tiles: Some(tiles), ..self }
    }
}

impl Aggregate {
    /// Aggregates of rows: `count` and `time_since_last`.
    pub fn rows(ops: impl IntoIterator<Item = Op>, windows: impl IntoIterator<Item = Millis>) -> Self {
        let (ops, windows) = (ops.into_iter().collect(), windows.into_iter().collect());
        Aggregate { of: None, filter: None, name: None, ops, windows }
    }

    /// Aggregates of a value, a column or an expression.
    pub fn of(value: &str, ops: impl IntoIterator<Item = Op>, windows: impl IntoIterator<Item = Millis>) -> Self {
        Aggregate { of: Some(value.into()), ..Aggregate::rows(ops, windows) }
    }

    /// Sets the name in the features' names.
    pub fn named(self, name: &str) -> Self {
        Aggregate { name: Some(name.into()), ..self }
    }

    /// Counts only rows for which `condition` is true.
    pub fn filter(self, condition: &str) -> Self {
        Aggregate { filter: Some(condition.into()), ..self }
    }
}
