//! A feature group compiled: columns found, expressions typed, windows laid out.

use std::collections::HashSet;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};

use super::aggregates::{AggregateFunction, Op};
use super::as_of::is_supported;
use super::entity::LayoutKind;
use super::frame::Frame;
use super::summary::Parts;
use super::windows::{Cell, Track, Window};
use super::{Aggregate, GroupConfig};
use crate::error::ConfigError;
use crate::expressions::Expression;
use crate::units::Millis;

/// What is aggregated: a value of the row, and which rows count.
#[derive(Debug)]
pub struct Measure {
    of: Option<String>,
    filter: Option<String>,
    /// The value; `None` counts rows.
    pub value: Option<Expression>,
    /// The condition; `None` takes every row.
    pub condition: Option<Expression>,
    /// The parts that any of its windows needs.
    pub needs: Parts,
}

impl Measure {
    /// The value and the condition as they were written.
    pub fn written(&self) -> (Option<&str>, Option<&str>) {
        (self.of.as_deref(), self.filter.as_deref())
    }
}

/// An as-of lookup.
#[derive(Debug)]
pub struct Lookup {
    /// Index of the column in the input.
    pub column: usize,
    /// Its type.
    pub data_type: DataType,
    /// A value older than this is null.
    pub age_max: i64,
}

/// Where a feature comes from.
#[derive(Clone, Copy)]
pub enum Origin {
    /// An aggregate of a summary.
    Aggregate {
        /// Index of the summary.
        summary: usize,
        /// The function.
        function: &'static dyn AggregateFunction,
    },
    /// An as-of lookup; lookups stand behind the aggregates, in their own order.
    Lookup,
}

/// A feature: its name without the group, its type, its origin.
#[derive(Clone)]
pub struct Feature {
    /// `{as}_{op}_{window}`, or the name of the lookup.
    pub name: String,
    /// Type of its column.
    pub data_type: DataType,
    /// Where it comes from.
    pub origin: Origin,
}

/// A compiled feature group. Aggregates come first among the features, then lookups.
pub struct Definition {
    /// Indices of the key's columns in the input.
    pub key: Vec<usize>,
    /// Types of the key's columns.
    pub key_types: Vec<DataType>,
    /// What is aggregated.
    pub measures: Vec<Measure>,
    /// Where the windows lie and what they hold.
    pub frame: Frame,
    /// The as-of lookups.
    pub as_of: Vec<Lookup>,
    /// The features in the order of their columns.
    pub features: Vec<Feature>,
    /// A key without an event for this long is dropped.
    pub ttl: i64,
}

const DAY: i64 = 86_400_000;
const WINDOW_MAX: Millis = Millis(400 * DAY);
const TILES_MAX: u32 = 10_000;

impl Definition {
    /// Compiles `config` for rows of `input`.
    ///
    /// # Errors
    /// All that is wrong, each by its path within the group.
    pub fn compile(config: &GroupConfig, input: &SchemaRef) -> Result<Definition, Vec<ConfigError>> {
        let mut compiler = Compiler { config, input, errors: Vec::new(), measures: Vec::new(), cells: Vec::new() };
        let key = compiler.key();
        let as_of = compiler.lookups();
        let mut features = compiler.aggregates();
        for (name, lookup) in config.as_of.keys().zip(&as_of) {
            let (name, data_type) = (name.clone(), lookup.data_type.clone());
            features.push(Feature { name, data_type, origin: Origin::Lookup });
        }
        let ttl = compiler.ttl();
        compiler.no_twins(&features);
        if !compiler.errors.is_empty() {
            return Err(compiler.errors);
        }
        let key_types = key.iter().map(|at| input.field(*at).data_type().clone()).collect();
        let (layout, tracks) = compiler.tracks();
        let Compiler { measures, cells, .. } = compiler;
        let frame = Frame {
            layout,
            views: tracks.iter().map(|track| track.windows.len()).sum(),
            tracks,
            summaries: cells.len(),
            measures: measures.iter().map(|measure| measure.needs).collect(),
            lookups: as_of.iter().map(|lookup| lookup.age_max.max(DAY)).collect(),
        };
        Ok(Definition { key, key_types, measures, frame, as_of, features, ttl })
    }
}

/// A window of a measure, before windows are laid out.
struct PlannedCell {
    measure: usize,
    window: Millis,
    needs: Parts,
}

struct Compiler<'a> {
    config: &'a GroupConfig,
    input: &'a SchemaRef,
    errors: Vec<ConfigError>,
    measures: Vec<Measure>,
    /// In the order of their summaries.
    cells: Vec<PlannedCell>,
}

impl Compiler<'_> {
    fn error(&mut self, path: impl Into<String>, message: impl Into<String>) {
        self.errors.push(ConfigError::new(path, message));
    }

    fn hinted(&mut self, path: impl Into<String>, message: impl Into<String>, hint: &str) {
        self.errors.push(ConfigError::new(path, message).with_hint(Some(hint.into())));
    }

    /// Index of the column `name`, or an error at `path`.
    fn column(&mut self, path: String, name: &str) -> Option<usize> {
        let found = self.input.index_of(name).ok();
        if found.is_none() {
            let known = self.input.fields().iter().map(|field| field.name().as_str());
            self.errors.push(ConfigError::unknown(path, "column", name, known));
        }
        found
    }

    fn key(&mut self) -> Vec<usize> {
        if self.config.key.is_empty() {
            self.hinted("key", "is empty", "name the columns of the entity, as in `key: [card]`");
        }
        let mut columns = Vec::new();
        for (n, name) in self.config.key.iter().enumerate() {
            let Some(at) = self.column(format!("key[{n}]"), name) else { continue };
            let data_type = self.input.field(at).data_type();
            if data_type.is_floating() {
                let message = format!("`{name}` is {data_type}: a floating-point number cannot be an entity key");
                self.hinted(format!("key[{n}]"), message, "take an int64 or a string");
            }
            columns.push(at);
        }
        columns
    }

    fn lookups(&mut self) -> Vec<Lookup> {
        let mut lookups = Vec::new();
        for (name, as_of) in &self.config.as_of {
            let Some(column) = self.column(format!("as_of.{name}.column"), &as_of.column) else { continue };
            let data_type = self.input.field(column).data_type().clone();
            if !is_supported(&data_type) {
                let message = format!("`{}` is {data_type}, which cannot be looked up", as_of.column);
                self.error(format!("as_of.{name}.column"), message);
            }
            if as_of.max_age.0 <= 0 {
                self.error(format!("as_of.{name}.max_age"), "must be longer than zero");
            }
            let age_max = as_of.max_age.0;
            lookups.push(Lookup { column, data_type, age_max });
        }
        lookups
    }

    fn aggregates(&mut self) -> Vec<Feature> {
        if self.config.aggregates.is_empty() && self.config.as_of.is_empty() {
            self.hinted("aggregates", "the group has no features", "add `aggregates` or `as_of`");
        }
        if let Some(tiles) = self.config.tiles.filter(|tiles| !(1..=TILES_MAX).contains(tiles)) {
            self.hinted("tiles", format!("{tiles} is not between 1 and {TILES_MAX}"), "60 is usual");
        }
        let mut features = Vec::new();
        for (n, aggregate) in self.config.aggregates.iter().enumerate() {
            let path = format!("aggregates[{n}]");
            let (Some(measure), Some(prefix)) = (self.measure(&path, aggregate), self.prefix(&path, aggregate)) else {
                continue;
            };
            self.lengths(&path, aggregate);
            for window in &aggregate.windows {
                for op in &aggregate.ops {
                    let function = op.function();
                    let summary = self.cell(measure, *window, function.needs());
                    let name = format!("{prefix}{}_{}", function.name(), window_text(*window));
                    let origin = Origin::Aggregate { summary, function };
                    features.push(Feature { name, data_type: function.data_type(), origin });
                }
            }
        }
        features
    }

    /// What stands before the function in the names of an aggregate's features, with its `_`.
    fn prefix(&mut self, path: &str, aggregate: &Aggregate) -> Option<String> {
        match (&aggregate.name, &aggregate.of) {
            (Some(name), _) => Some(format!("{name}_")),
            (None, None) => Some(String::new()),
            (None, Some(of)) if self.input.index_of(of).is_ok() => Some(format!("{of}_")),
            (None, Some(of)) => {
                let message = format!("`{of}` is an expression, so its features need a name");
                self.hinted(format!("{path}.of"), message, "add `as: <name>`");
                None
            }
        }
    }

    /// The lengths of an aggregate's windows, and that it has functions and windows at all.
    fn lengths(&mut self, path: &str, aggregate: &Aggregate) {
        if aggregate.ops.is_empty() {
            self.error(format!("{path}.ops"), "is empty");
        }
        if aggregate.windows.is_empty() {
            self.error(format!("{path}.windows"), "is empty");
        }
        let tiles = self.config.tiles.unwrap_or(1).max(1);
        for (n, window) in aggregate.windows.iter().enumerate() {
            let path = format!("{path}.windows[{n}]");
            if window.0 <= 0 {
                self.hinted(path, "a window must be longer than zero", "write it like `10m` or `24h`");
            } else if *window > WINDOW_MAX {
                self.error(path, format!("{window} is longer than the longest window allowed, {WINDOW_MAX}"));
            } else if window.0 % i64::from(tiles) != 0 {
                let message = format!("{window} cannot be cut into {tiles} tiles of whole milliseconds");
                self.hinted(path, message, "change the window or `tiles`");
            }
        }
    }

    /// The measure of an aggregate; aggregates of the same value and condition share one.
    fn measure(&mut self, path: &str, aggregate: &Aggregate) -> Option<usize> {
        let (of, filter) = (&aggregate.of, &aggregate.filter);
        let wanting = aggregate.ops.iter().find(|op| of.is_none() && op.function().needs_values());
        if let Some(op) = wanting {
            let message = format!("`{}` needs a value", op.function().name());
            self.hinted(format!("{path}.of"), message, "add `of: <column or expression>`");
            return None;
        }
        let needs = aggregate.ops.iter().fold(Parts::COUNT, |needs, op: &Op| needs.and(op.function().needs()));
        if let Some(at) = self.measures.iter().position(|known| known.of == *of && known.filter == *filter) {
            self.measures[at].needs = self.measures[at].needs.and(needs);
            return Some(at);
        }
        let is_number = |t: &DataType| t.is_numeric() || *t == DataType::Boolean;
        let value = self.expression(format!("{path}.of"), of.as_deref(), "a number or a boolean", is_number)?;
        let is_boolean = |t: &DataType| *t == DataType::Boolean;
        let condition = self.expression(format!("{path}.where"), filter.as_deref(), "a condition", is_boolean)?;
        self.measures.push(Measure { of: of.clone(), filter: filter.clone(), value, condition, needs });
        Some(self.measures.len() - 1)
    }

    /// An expression of an accepted type; the outer `None` is an error.
    fn expression(
        &mut self,
        path: String,
        sql: Option<&str>,
        wanted: &str,
        accept: impl Fn(&DataType) -> bool,
    ) -> Option<Option<Expression>> {
        let Some(sql) = sql else { return Some(None) };
        match Expression::compile(sql, self.input) {
            Ok(expression) if accept(expression.data_type()) => Some(Some(expression)),
            Ok(expression) => {
                self.error(path, format!("`{sql}` is {}, not {wanted}", expression.data_type()));
                None
            }
            Err(error) => {
                self.errors.push(error.under(&path));
                None
            }
        }
    }

    /// Index of the summary of a measure in a window.
    fn cell(&mut self, measure: usize, window: Millis, needs: Parts) -> usize {
        let known = self.cells.iter().position(|cell| cell.measure == measure && cell.window == window);
        let at = known.unwrap_or_else(|| {
            self.cells.push(PlannedCell { measure, window, needs });
            self.cells.len() - 1
        });
        self.cells[at].needs = self.cells[at].needs.and(needs);
        at
    }

    fn ttl(&mut self) -> i64 {
        let windows = self.config.aggregates.iter().flat_map(|aggregate| &aggregate.windows).map(|window| window.0);
        let ages = self.config.as_of.values().map(|as_of| as_of.max_age.0);
        let longest = windows.chain(ages).max().unwrap_or(0);
        let Some(ttl) = self.config.ttl else { return longest.max(DAY) };
        if ttl.0 < longest {
            let message = format!("{ttl} is shorter than the longest window or age, {}", Millis(longest));
            self.hinted("ttl", message, "a key must live as long as its windows: make `ttl` longer or leave it out");
        }
        ttl.0
    }

    fn no_twins(&mut self, features: &[Feature]) {
        let mut seen = HashSet::new();
        for feature in features {
            if !seen.insert(feature.name.as_str()) {
                let message = format!("two features are named `{}`", feature.name);
                self.hinted("aggregates", message, "tell them apart with `as`");
            }
        }
    }

    /// Lays the windows out: tiles of one window each, or rows under all of them.
    fn tracks(&self) -> (LayoutKind, Vec<Track>) {
        let mut lengths: Vec<Millis> = self.cells.iter().map(|cell| cell.window).collect();
        lengths.sort();
        lengths.dedup();
        let Some(tiles) = self.config.tiles else {
            let windows: Vec<Window> =
                lengths.iter().map(|length| self.window(*length, length.0 as f64, None)).collect();
            let stride = 1 + self.measures.len();
            let tracks = if windows.is_empty() { Vec::new() } else { vec![track(1.0, stride, windows, 0)] };
            return (LayoutKind::Rows, tracks);
        };
        let tracks = lengths.iter().enumerate().map(|(n, length)| {
            let window = self.window(*length, f64::from(tiles), Some(1));
            let stride = 1 + window.cells.iter().map(|cell| cell.needs.packed_len()).sum::<usize>();
            track((length.0 / i64::from(tiles)) as f64, stride, vec![window], n)
        });
        (LayoutKind::Tiles, tracks.collect())
    }

    /// The cells of a window; packed one after the other from `packed_from` on, or at the place of their measure.
    fn window(&self, length: Millis, span: f64, packed_from: Option<usize>) -> Window {
        let mut next = packed_from;
        let cells = self.cells.iter().enumerate().filter(|(_, cell)| cell.window == length).map(|(summary, cell)| {
            let at = next.unwrap_or(1 + cell.measure);
            next = next.map(|at| at + cell.needs.packed_len());
            Cell { measure: cell.measure, at, needs: cell.needs, summary }
        });
        Window { span, cells: cells.collect() }
    }
}

fn track(unit_millis: f64, stride: usize, windows: Vec<Window>, first_view: usize) -> Track {
    let span_max = windows.iter().map(|window| window.span).fold(0.0, f64::max);
    // Twice the longest window, and a day at least: what an input may be ahead of the others.
    let kept_max = span_max + span_max.max(DAY as f64 / unit_millis);
    Track { unit_millis, stride, windows, first_view, span_max, kept_max }
}

/// A window's length in the names of features: as in `units`, but a day is `24h`, as one says.
fn window_text(window: Millis) -> String {
    if window.0 == DAY { "24h".into() } else { window.to_string() }
}

/// The columns of a group's features under their full names.
pub fn fields(group: &str, features: &[Feature]) -> Vec<Field> {
    let field = |feature: &Feature| Field::new(format!("{group}.{}", feature.name), feature.data_type.clone(), true);
    features.iter().map(field).collect()
}

/// `base` with `fields` added on the right.
pub fn extended(base: &Schema, fields: &[Field]) -> SchemaRef {
    let all: Vec<_> = base.fields().iter().cloned().chain(fields.iter().cloned().map(Arc::new)).collect();
    Arc::new(Schema::new(all))
}
