//! What reads streams and gives none: detectors, outcomes, sinks and offline tables.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use millstream_operators::drift::{DetectorError, DetectorKind};
use millstream_operators::error::ConfigError;
use millstream_operators::expressions::Expression;
use millstream_operators::units::Millis;
use millstream_operators::{drift, reject};

use super::names::Wanted;
use super::planner::{Planner, column, columns, digest, type_name};
use super::{DetectorPlan, From, OfflinePlan, OutcomePlan, SinkPlan};
use crate::offline::{self, OfflineError};
use crate::provenance::Provenance;
use crate::sinks::SinkKind;
use crate::sinks::kafka::Delivery;
use crate::topology::{Outcomes, Sink};

impl<'t> Planner<'t> {
    /// Plans everything that gives no stream.
    pub(super) fn outputs(&mut self) {
        let topology = self.topology;
        for name in topology.drift.keys() {
            self.detector(name);
        }
        for name in topology.outcomes.keys() {
            self.outcome(name);
        }
        for (name, sink) in &topology.sinks {
            self.sink(name, sink);
        }
        for name in topology.offline.keys() {
            self.table(name);
        }
    }

    fn detector(&mut self, name: &'t str) -> Option<()> {
        let definition = &self.topology.drift[name];
        let at = format!("drift.{name}");
        let stream = self.stream_at(&format!("{at}.from"), &definition.from)?;
        let schema = self.streams[stream].schema.clone();
        let path = format!("{at}.column");
        let index = column(&schema, &definition.column, &path).map_err(|error| self.refuse([error])).ok()?;
        let data_type = schema.field(index).data_type();
        if !data_type.is_numeric() {
            let message = format!("`{}` is a {}; a detector watches numbers", definition.column, type_name(data_type));
            self.refuse([ConfigError::new(path, message)]);
            return None;
        }
        let condition = definition.filter.as_ref().map(|sql| Expression::condition(sql, &schema)).transpose();
        let condition = condition.map_err(|error| self.refuse([error.under(&format!("{at}.where"))]));
        let detector = self.with_reference(&definition.detector).and_then(|detector| {
            detector.settings().build()?;
            Ok(detector)
        });
        let detector = detector.map_err(|error| {
            let at = format!("{at}.detector.{}.{}", definition.detector.kind_name(), error.option);
            self.refuse([ConfigError::new(at, error.message)]);
        });
        let (condition, detector) = (condition.ok()?, detector.ok()?);
        let lineage = &self.streams[stream].lineage;
        let hash = lineage.node(&[index], &(condition.as_ref().map(|sql| lineage.expression(sql)), &detector));
        self.detectors.push(DetectorPlan { name: name.to_string(), stream, column: index, condition, detector, hash });
        Some(())
    }

    /// The detector with the reference that it names, if that stands in a file of its own.
    fn with_reference(&self, detector: &DetectorKind) -> Result<DetectorKind, DetectorError> {
        let DetectorKind::Psi(psi) = detector else { return Ok(detector.clone()) };
        let Some(file) = psi.reference_file() else { return Ok(detector.clone()) };
        let path = self.folder.join(file);
        let text = std::fs::read_to_string(&path)
            .map_err(|error| DetectorError::new("reference.file", format!("{}: {error}", path.display())))?;
        Ok(DetectorKind::Psi(psi.with_reference(&text)?))
    }

    fn outcome(&mut self, name: &'t str) -> Option<()> {
        let definition = &self.topology.outcomes[name];
        let at = format!("outcomes.{name}");
        let before = self.errors.len();
        if definition.window.0 <= 0 {
            let message = "no prediction is ever kept in a window of zero";
            self.refuse([ConfigError::new(format!("{at}.window"), message)]);
        }
        if definition.on.is_empty() {
            let hint = "name the columns that predictions and labels share, such as an id".to_string();
            let message = "nothing says which label belongs to which prediction";
            self.refuse([ConfigError::new(format!("{at}.on"), message).with_hint(Some(hint))]);
        }
        let model_path = format!("{at}.model");
        let is_model = self.names.refers(&model_path, &definition.model, Wanted::Model, &mut self.errors);
        let labels = self.stream_at(&format!("{at}.label"), &definition.label);
        let predictions = is_model.then(|| self.by_name.get(&definition.model).copied()).flatten();
        let prediction_key =
            predictions.and_then(|stream| self.columns_of(stream, &definition.on, &format!("{at}.on")));
        let label_key = labels.and_then(|stream| self.columns_of(stream, &definition.on, &format!("{at}.on")));
        let slices =
            predictions.and_then(|stream| self.columns_of(stream, &definition.slices, &format!("{at}.slices")));
        let value = labels.and_then(|stream| self.label_value(stream, definition, &at));
        let (predictions, labels, prediction_key, label_key) = (predictions?, labels?, prediction_key?, label_key?);
        self.same_types(predictions, &prediction_key, labels, &label_key, &format!("{at}.on"));
        if self.errors.len() > before {
            return None;
        }
        let model = self.streams[predictions].model?;
        let score = self.streams[predictions].schema.index_of("score").ok()?;
        let (slices, value) = (slices?, value?);
        let judged: Vec<usize> = prediction_key.iter().chain([&score]).chain(&slices).copied().collect();
        let judged = self.streams[predictions].lineage.node(&judged, &(definition.on.len(), &definition.slices));
        let label = &self.streams[labels].lineage;
        let label = label.node(&label_key, &(label.expression(&value), definition.window));
        let hash = digest(&judged, &label);
        self.outcomes.push(OutcomePlan {
            name: name.to_string(),
            model,
            predictions,
            prediction_key,
            score,
            slices,
            labels,
            label_key,
            value,
            window: definition.window,
            hash,
        });
        Some(())
    }

    fn label_value(&mut self, labels: usize, definition: &Outcomes, at: &str) -> Option<Expression> {
        let path = format!("{at}.value");
        match Expression::compile(&definition.value, &self.streams[labels].schema) {
            Ok(value) if value.data_type().is_numeric() || *value.data_type() == DataType::Boolean => Some(value),
            Ok(value) => {
                let hint = "write a condition, such as `status = 'fraud'`, or a number of 0 or 1".to_string();
                let message = format!("a label is 1 or 0, this is a {}", type_name(value.data_type()));
                self.refuse([ConfigError::new(path, message).with_hint(Some(hint))]);
                None
            }
            Err(error) => {
                self.refuse([error.under(&path)]);
                None
            }
        }
    }

    /// The columns `names` of a stream; errors say which stream.
    fn columns_of(&mut self, stream: usize, names: &[String], path: &str) -> Option<Vec<usize>> {
        let stream = &self.streams[stream];
        let named = |error: ConfigError| {
            let message = format!("{} in `{}`", error.message, stream.name);
            ConfigError { message, ..error }
        };
        match columns(&stream.schema, names, path) {
            Ok(found) => Some(found),
            Err(errors) => {
                let errors: Vec<_> = errors.into_iter().map(named).collect();
                self.refuse(errors);
                None
            }
        }
    }

    fn same_types(&mut self, left: usize, left_key: &[usize], right: usize, right_key: &[usize], path: &str) {
        let (left, right) = (&self.streams[left], &self.streams[right]);
        let differ = left_key.iter().zip(right_key).enumerate().filter_map(|(i, (l, r))| {
            let (l, r) = (left.schema.field(*l), right.schema.field(*r));
            let side = |field: &Field, stream: &str| format!("a {} in `{stream}`", type_name(field.data_type()));
            (l.data_type() != r.data_type()).then(|| {
                let message = format!("`{}` is {}, {}", l.name(), side(l, &left.name), side(r, &right.name));
                let hint = Some("declare both alike, or derive a column with `cast`".to_string());
                ConfigError::new(format!("{path}[{i}]"), message).with_hint(hint)
            })
        });
        let differ: Vec<_> = differ.collect();
        self.refuse(differ);
    }

    fn sink(&mut self, name: &'t str, sink: &'t Sink) -> Option<()> {
        let at = format!("sinks.{name}");
        let errors = sink.to.settings().errors();
        self.refuse(errors.into_iter().map(|error| error.under(&format!("{at}.to.{}", sink.to.kind_name()))));
        if !self.topology.is_bounded() {
            self.refuse(transaction(&sink.to, self.topology.engine.epoch, &at));
        }
        let (from, schema, model) = match sink.from.as_str() {
            "rejects" => (From::Rejects, reject::schema(), false),
            "drift" => (From::Drift, drift::signal_schema(), false),
            from => {
                let stream = self.stream_at(&format!("{at}.from"), from)?;
                (From::Stream(stream), self.streams[stream].schema.clone(), self.streams[stream].model.is_some())
            }
        };
        let available = match from {
            From::Drift => Vec::new(),
            _ => Provenance::available(&schema, model),
        };
        let before = self.errors.len();
        let (columns, written) = self.sink_columns(sink, &schema, &available, &at);
        let input = Provenance::beside(&schema, &available);
        let key = self.key_of(sink, &input, &at);
        if self.errors.len() > before {
            return None;
        }
        self.sinks.push(SinkPlan {
            name: name.to_string(),
            kind: sink.to.clone(),
            from,
            provenance: available,
            input,
            columns,
            schema: written,
            key: key?,
        });
        Some(())
    }

    /// What a sink writes: its `select`, or all columns and, of a model, its provenance.
    fn sink_columns(
        &mut self,
        sink: &Sink,
        schema: &Schema,
        available: &[Provenance],
        at: &str,
    ) -> (Vec<Expression>, SchemaRef) {
        let input = Provenance::beside(schema, available);
        let of_model = available.iter().any(|provenance| provenance.of_predictions());
        let (mut columns, mut fields) = (Vec::new(), Vec::new());
        if sink.select.is_empty() {
            let written = if of_model || sink.from == "rejects" { input.fields().len() } else { schema.fields().len() };
            for field in input.fields().iter().take(written) {
                match Expression::compile(&quoted(field.name()), &input) {
                    Ok(column) => columns.push(column),
                    Err(error) => self.refuse([error.under(&format!("{at}.from"))]),
                }
                fields.push(field.as_ref().clone());
            }
        }
        for (name, sql) in &sink.select {
            match Expression::compile(sql, &input) {
                Ok(expression) => {
                    fields.push(Field::new(name, expression.data_type().clone(), true));
                    columns.push(expression);
                }
                Err(error) => self.refuse([error.under(&format!("{at}.select.{name}"))]),
            }
        }
        (columns, Arc::new(Schema::new(fields)))
    }

    fn key_of(&mut self, sink: &Sink, input: &Schema, at: &str) -> Option<Vec<usize>> {
        columns(input, &sink.key, &format!("{at}.key")).map_err(|errors| self.refuse(errors)).ok()
    }

    fn table(&mut self, name: &'t str) -> Option<()> {
        let definition = &self.topology.offline[name];
        let at = format!("offline.{name}");
        let stream = self.stream_at(&format!("{at}.from"), &definition.from)?;
        if definition.every.0 <= 0 {
            let message = "a commit at every moment is none".to_string();
            let hint = Some("write `1m`; shorter is fresher and gives more, smaller files".to_string());
            self.refuse([ConfigError::new(format!("{at}.every"), message).with_hint(hint)]);
            return None;
        }
        let plan = &self.streams[stream];
        let provenance = Provenance::available(&plan.schema, plan.model.is_some());
        let schema = Provenance::beside(&plan.schema, &provenance);
        if let Err(error) = offline::check_columns(name, &schema) {
            let (message, hint) = match error {
                OfflineError::Column { column, detail, .. } => (format!("a table can't keep `{column}`"), Some(detail)),
                other => (other.to_string(), None),
            };
            self.refuse([ConfigError::new(format!("{at}.from"), message).with_hint(hint)]);
            return None;
        }
        self.offline.push(OfflinePlan {
            name: name.to_string(),
            stream,
            table: definition.table.clone(),
            every: definition.every,
            provenance,
            schema,
        });
        Some(())
    }
}

/// A column's name as it stands in an expression, whatever its characters.
fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// An epoch that does not end within a transaction: brokers would end each one before it is committed, at every start.
fn transaction(kind: &SinkKind, epoch: Millis, at: &str) -> Option<ConfigError> {
    let SinkKind::Kafka(kafka) = kind else { return None };
    // Beside the epoch there is its end: the checkpoint and the commit.
    let needed = Millis(epoch.0.saturating_add(epoch.0 / 2));
    let timeout = kafka.transaction_timeout;
    if kafka.delivery != Delivery::ExactlyOnce || timeout >= needed {
        return None;
    }
    let message = format!("a transaction ends after {timeout}, and an epoch of {epoch} with its commit needs {needed}");
    let hint = "make `engine.epoch` shorter, or `transaction_timeout` longer (brokers allow \
                `transaction.max.timeout.ms`, by default 15m)";
    Some(ConfigError::new(format!("{at}.to.kafka.transaction_timeout"), message).with_hint(Some(hint.into())))
}
