//! Topologies written in Rust: constructors with the defaults of a file, so that a twin of a file reads like it.
//!
//! ```
//! use millstream::sinks::{SinkKind, stdout::StdoutSink};
//! use millstream::sources::{SourceKind, memory::MemorySource};
//! use millstream::topology::{Prepare, Sink, Source, Topology};
//! use millstream_operators::schema::ColumnType;
//!
//! let numbers = MemorySource { messages: vec![r#"{"n": 1}"#.into()] };
//! let topology = Topology::new("doubles")
//!     .source("numbers", Source::new(SourceKind::Memory(numbers)).column("n", ColumnType::INT64))
//!     .prepare("doubled", Prepare::new("numbers").derive("twice", "n * 2"))
//!     .sink("out", Sink::new("doubled", SinkKind::Stdout(StdoutSink {})));
//! assert_eq!(topology.prepare["doubled"].derive["twice"], "n * 2");
//! ```

use millstream_operators::decode::FormatKind;
use millstream_operators::drift::DetectorKind;
use millstream_operators::features::GroupConfig;
use millstream_operators::schema::{ColumnType, Range};
use millstream_operators::units::Millis;

use super::*;

impl Topology {
    /// A topology called `name` without any node.
    pub fn new(name: impl Into<String>) -> Self {
        Topology {
            version: file::VERSION,
            name: name.into(),
            sources: Named::new(),
            prepare: Named::new(),
            features: Named::new(),
            vectors: Named::new(),
            models: Named::new(),
            drift: Named::new(),
            outcomes: Named::new(),
            sinks: Named::new(),
            offline: Named::new(),
            engine: Engine::default(),
        }
    }

    /// Adds a source.
    pub fn source(mut self, name: &str, source: Source) -> Self {
        self.sources.insert(name.into(), source);
        self
    }

    /// Adds a prepared stream.
    pub fn prepare(mut self, name: &str, prepare: Prepare) -> Self {
        self.prepare.insert(name.into(), prepare);
        self
    }

    /// Adds a feature group.
    pub fn features(mut self, name: &str, group: GroupConfig) -> Self {
        self.features.insert(name.into(), group);
        self
    }

    /// Adds a feature vector.
    pub fn vector(mut self, name: &str, vector: Vector) -> Self {
        self.vectors.insert(name.into(), vector);
        self
    }

    /// Adds a model.
    pub fn model(mut self, name: &str, model: Model) -> Self {
        self.models.insert(name.into(), model);
        self
    }

    /// Adds a detector on a column of a stream.
    pub fn drift(mut self, name: &str, from: &str, column: &str, detector: DetectorKind) -> Self {
        let drift = Drift { from: from.into(), column: column.into(), filter: None, detector };
        self.drift.insert(name.into(), drift);
        self
    }

    /// Adds a detector on a column of the rows of a stream for which the SQL `condition` is true.
    pub fn drift_where(
        mut self,
        name: &str,
        from: &str,
        column: &str,
        condition: &str,
        detector: DetectorKind,
    ) -> Self {
        let filter = Some(condition.into());
        self.drift.insert(name.into(), Drift { from: from.into(), column: column.into(), filter, detector });
        self
    }

    /// Adds outcomes.
    pub fn outcomes(mut self, name: &str, outcomes: Outcomes) -> Self {
        self.outcomes.insert(name.into(), outcomes);
        self
    }

    /// Adds an output.
    pub fn sink(mut self, name: &str, sink: Sink) -> Self {
        self.sinks.insert(name.into(), sink);
        self
    }

    /// Adds a table.
    pub fn offline(mut self, name: &str, table: OfflineConfig) -> Self {
        self.offline.insert(name.into(), table);
        self
    }

    /// Sets how the job runs.
    pub fn engine(self, engine: Engine) -> Self {
        Topology { engine, ..self }
    }
}

impl Source {
    /// JSON objects from a connection, without columns yet.
    pub fn new(from: SourceKind) -> Self {
        Source {
            from,
            format: FormatKind::default(),
            schema: Named::new(),
            ranges: Named::new(),
            event_time: None,
            checks: Vec::new(),
            message_size_max: message_size_max(),
            history: None,
        }
    }

    /// Sets the format.
    pub fn format(self, format: FormatKind) -> Self {
        Source { format, ..self }
    }

    /// Adds a column.
    pub fn column(mut self, name: &str, column: ColumnType) -> Self {
        self.schema.insert(name.into(), column);
        self
    }

    /// Adds a column with a smallest and largest value.
    pub fn column_within(self, name: &str, column: ColumnType, range: Range) -> Self {
        let mut source = self.column(name, column);
        source.ranges.insert(name.into(), range);
        source
    }

    /// Sets when an event happened.
    pub fn event_time(self, event_time: EventTimeConfig) -> Self {
        Source { event_time: Some(event_time), ..self }
    }

    /// Adds a condition that every event must meet.
    pub fn check(mut self, condition: &str) -> Self {
        self.checks.push(condition.into());
        self
    }

    /// Sets the same events as files, not said to be sorted.
    pub fn history(self, files: &str) -> Self {
        Source { history: Some(History { files: files.into(), sorted: false }), ..self }
    }

    /// Sets the same events as files whose rows stand in event-time order.
    pub fn sorted_history(self, files: &str) -> Self {
        Source { history: Some(History { files: files.into(), sorted: true }), ..self }
    }
}

impl EventTimeConfig {
    /// The time in `column`, with the defaults of a file for everything else.
    pub fn new(column: &str) -> Self {
        EventTimeConfig {
            column: column.into(),
            unit: TimeUnit::default(),
            lateness: lateness(),
            late: LatePolicy::default(),
            ahead_max: ahead_max(),
            idle_after: idle_after(),
        }
    }

    /// Sets the unit of an integer column.
    pub fn unit(self, unit: TimeUnit) -> Self {
        EventTimeConfig { unit, ..self }
    }

    /// Sets how late an event may be, and what happens to one that is later.
    pub fn lateness(self, lateness: Millis, late: LatePolicy) -> Self {
        EventTimeConfig { lateness, late, ..self }
    }
}

impl Prepare {
    /// All rows and columns of `from`.
    pub fn new(from: &str) -> Self {
        Prepare { from: from.into(), ..Prepare::default() }
    }

    /// Keeps the rows for which `condition` is true.
    pub fn filter(self, condition: &str) -> Self {
        Prepare { filter: Some(condition.into()), ..self }
    }

    /// Adds a condition that every row must meet.
    pub fn check(mut self, condition: &str) -> Self {
        self.checks.push(condition.into());
        self
    }

    /// Adds a column.
    pub fn derive(mut self, name: &str, expression: &str) -> Self {
        self.derive.insert(name.into(), expression.into());
        self
    }

    /// Sets the columns that go on.
    pub fn select<'a>(self, columns: impl IntoIterator<Item = &'a str>) -> Self {
        Prepare { select: texts(columns), ..self }
    }

    /// Lets the first of all events go on that have the same values in the columns `by`, within an hour. Events of one `key` stay in their
    /// order; without columns for it, `by` is the key.
    pub fn deduplicate<'a>(
        self,
        by: impl IntoIterator<Item = &'a str>,
        key: impl IntoIterator<Item = &'a str>,
    ) -> Self {
        Prepare { deduplicate: Some(Deduplicate { by: texts(by), key: texts(key), within: within() }), ..self }
    }
}

impl Vector {
    /// A vector for each row of `spine`.
    pub fn new(spine: &str) -> Self {
        Vector { spine: spine.into(), join: Vec::new(), derive: Named::new() }
    }

    /// Reads a feature group.
    pub fn join(mut self, join: Join) -> Self {
        self.join.push(join);
        self
    }

    /// Adds a column.
    pub fn derive(mut self, name: &str, expression: &str) -> Self {
        self.derive.insert(name.into(), expression.into());
        self
    }
}

impl Join {
    /// A read of `features` by columns named like the group's key.
    pub fn new(features: &str) -> Self {
        Join { features: features.into(), on: Vec::new(), name: None, exclude_self: false }
    }

    /// Sets the columns that hold the key.
    pub fn on<'a>(self, columns: impl IntoIterator<Item = &'a str>) -> Self {
        Join { on: texts(columns), ..self }
    }

    /// Sets the name in front of the features' names.
    pub fn named(self, name: &str) -> Self {
        Join { name: Some(name.into()), ..self }
    }

    /// Leaves the spine's own event out.
    pub fn exclude_self(self) -> Self {
        Join { exclude_self: true, ..self }
    }
}

impl Model {
    /// The model in the file `onnx`, scoring `from`, its inputs bound by name.
    pub fn new(from: &str, onnx: &str) -> Self {
        Model {
            from: from.into(),
            onnx: onnx.into(),
            version: None,
            features: Vec::new(),
            output: None,
            class: None,
            threshold: None,
            keep_features: false,
            nan_allowed: false,
        }
    }

    /// Sets the columns of the model's one packed input.
    pub fn features<'a>(self, columns: impl IntoIterator<Item = &'a str>) -> Self {
        Model { features: texts(columns), ..self }
    }

    /// Sets the score from which on the label is 1.
    pub fn threshold(self, threshold: f64) -> Self {
        Model { threshold: Some(threshold), ..self }
    }

    /// Sets the version.
    pub fn version(self, version: &str) -> Self {
        Model { version: Some(version.into()), ..self }
    }

    /// Keeps the feature vector in every prediction.
    pub fn keep_features(self) -> Self {
        Model { keep_features: true, ..self }
    }
}

impl Outcomes {
    /// Predictions of `model` joined to the stream `label`, whose label is `value`, where the columns `on` are equal.
    pub fn new<'a>(
        model: &str,
        label: &str,
        on: impl IntoIterator<Item = &'a str>,
        value: &str,
        window: Millis,
    ) -> Self {
        Outcomes {
            model: model.into(),
            label: label.into(),
            on: texts(on),
            value: value.into(),
            window,
            slices: Vec::new(),
        }
    }

    /// Sets the columns to cut the figures by.
    pub fn slices<'a>(self, columns: impl IntoIterator<Item = &'a str>) -> Self {
        Outcomes { slices: texts(columns), ..self }
    }
}

impl Sink {
    /// All columns of `from`, without a key.
    pub fn new(from: &str, to: SinkKind) -> Self {
        Sink { from: from.into(), to, select: Named::new(), key: Vec::new() }
    }

    /// Adds a column.
    pub fn select(mut self, name: &str, expression: &str) -> Self {
        self.select.insert(name.into(), expression.into());
        self
    }

    /// Sets the columns of the record's key.
    pub fn key<'a>(self, columns: impl IntoIterator<Item = &'a str>) -> Self {
        Sink { key: texts(columns), ..self }
    }
}

fn texts<'a>(names: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    names.into_iter().map(str::to_string).collect()
}
