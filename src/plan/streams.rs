//! Prepared streams and models: a row in, at most a row out.

use indexmap::IndexMap;
use millstream_operators::error::ConfigError;
use millstream_operators::prepare::{Prepare as PrepareOperator, PrepareConfig};
use millstream_operators::score::{ScoreOptions, bind};

use super::planner::{Planner, columns, digest};
use super::{ModelPlan, Node};
use crate::models::{self, ModelError};
use crate::topology::{Deduplicate, Prepare};

impl<'t> Planner<'t> {
    /// Plans a prepared stream.
    pub(super) fn prepare(&mut self, name: &'t str) -> Option<()> {
        let prepare = &self.topology.prepare[name];
        let input = *self.by_name.get(&prepare.from)?;
        let at = format!("prepare.{name}");
        let Some(deduplicate) = &prepare.deduplicate else { return self.prepared(name, input, prepare, &at) };
        let Prepare { from: _, filter, checks, derive, select, deduplicate: _ } = prepare;
        let is_as_it_was = filter.is_none() && checks.is_empty() && derive.is_empty() && select.is_empty();
        let prepared = match is_as_it_was {
            true => input,
            false => {
                self.prepared(&format!("{name}.prepared"), input, prepare, &at)?;
                self.streams.len() - 1
            }
        };
        self.deduplicated(name, prepared, deduplicate, &format!("{at}.deduplicate"))
    }

    /// Adds a stream with the first of all rows of `input` that are the same.
    fn deduplicated(&mut self, name: &str, input: usize, deduplicate: &Deduplicate, at: &str) -> Option<()> {
        let schema = self.streams[input].schema.clone();
        let mut found = |names: &[String], option: &str| {
            let at = format!("{at}.{option}");
            columns(&schema, names, &at).map_err(|errors| self.refuse(errors)).ok()
        };
        let (by, key) = (found(&deduplicate.by, "by"), found(&deduplicate.key, "key"));
        for (option, names) in [("by", &deduplicate.by), ("key", &deduplicate.key)] {
            for (n, name) in names.iter().enumerate() {
                let Some(field) = schema.field_with_name(name).ok().filter(|field| field.data_type().is_floating())
                else {
                    continue;
                };
                let data_type = field.data_type();
                let message = format!("`{name}` is {data_type}: events are not told apart by floating-point numbers");
                let hint = Some("take an int64 or a string".to_string());
                self.refuse([ConfigError::new(format!("{at}.{option}[{n}]"), message).with_hint(hint)]);
            }
        }
        if deduplicate.by.is_empty() {
            let message = "name the columns that have the same values in events that are the same";
            self.refuse([ConfigError::new(format!("{at}.by"), message)]);
        }
        if deduplicate.within.0 <= 0 {
            let message = "events that are the same must be some time apart: give a length of time such as 1h";
            self.refuse([ConfigError::new(format!("{at}.within"), message)]);
        }
        let by = by?;
        let key = Some(key?).filter(|key| !key.is_empty()).unwrap_or_else(|| by.clone());
        let within = deduplicate.within;
        let read = &self.streams[input].lineage;
        // With another `within` what was seen was seen all the same.
        let hash = digest(&read.node(&key, &"deduplicate"), &read.columns(&by));
        let lineage = read.deduplicated(&by, within);
        self.add(name, schema, Node::Deduplicate { input, key, by, within, hash }, lineage);
        Some(())
    }

    /// Adds a stream with more columns than `input`, of which `select` go on, in that order.
    pub(super) fn derived(
        &mut self,
        name: &str,
        input: usize,
        derive: &IndexMap<String, String>,
        select: Vec<String>,
        at: &str,
    ) -> Option<()> {
        let prepare = Prepare { derive: derive.clone(), select, ..Prepare::default() };
        self.prepared(name, input, &prepare, at)
    }

    fn prepared(&mut self, name: &str, input: usize, prepare: &Prepare, at: &str) -> Option<()> {
        let schema = self.streams[input].schema.clone();
        let config = PrepareConfig {
            filter: prepare.filter.as_deref(),
            checks: &prepare.checks,
            derive: &prepare.derive,
            select: &prepare.select,
        };
        match PrepareOperator::compile(name, &config, &schema) {
            Ok(operator) => {
                let lineage = self.streams[input].lineage.prepared(&operator);
                let schema = operator.schema().clone();
                self.add(name, schema, Node::Prepare { input, operator }, lineage);
                Some(())
            }
            Err(errors) => {
                self.refuse(errors.into_iter().map(|error| error.under(at)));
                None
            }
        }
    }

    /// Plans a model: its file is read for its inputs, and bound to the stream's columns.
    pub(super) fn model(&mut self, name: &'t str) -> Option<()> {
        let model = &self.topology.models[name];
        let at = format!("models.{name}");
        let input = *self.by_name.get(&model.from)?;
        let path = self.folder.join(&model.onnx);
        let signature = match models::inspect(&path) {
            Ok(signature) => signature,
            Err(error) => {
                self.refuse([model_error(&model.onnx, error).under(&at)]);
                return None;
            }
        };
        let options = ScoreOptions {
            features: &model.features,
            output: model.output.as_deref(),
            class: model.class,
            threshold: model.threshold,
            keep_features: model.keep_features,
        };
        let schema = self.streams[input].schema.clone();
        let binding = match bind(&signature, &options, &schema) {
            Ok(binding) => binding,
            Err(error) => {
                self.refuse([ConfigError::new(error.field, error.message).with_hint(error.hint).under(&at)]);
                return None;
            }
        };
        if model.threshold.is_some_and(|threshold| !threshold.is_finite()) {
            self.refuse([ConfigError::new(format!("{at}.threshold"), "the threshold must be a number")]);
        }
        let version = model.version.clone().unwrap_or_else(|| signature.version().to_string());
        // The answers follow from the file, the columns that it is given, and what is taken of its outputs.
        let given: Vec<usize> = binding.inputs.iter().flat_map(|input| &input.columns).copied().collect();
        let read = &self.streams[input].lineage;
        let made = digest(&(&signature.digest, read.columns(&given)), &(&model.output, model.class, model.threshold));
        let answers = binding.schema.fields().iter().skip(schema.fields().len());
        let lineage = read.beside(answers.map(|field| (field.name().clone(), digest(&made, field.name()))));
        let output = binding.schema.clone();
        let digest = signature.digest.clone();
        let nan_allowed = model.nan_allowed;
        self.models.push(ModelPlan { name: name.to_string(), path, version, digest, binding, nan_allowed });
        let node = Node::Score { input, model: self.models.len() - 1 };
        self.add(name, output, node, lineage);
        Some(())
    }
}

/// What is wrong with a model's file, called as the topology calls it.
fn model_error(file: &str, error: ModelError) -> ConfigError {
    match error {
        ModelError::Unreadable { source, .. } => {
            let hint = "the path is relative to the topology's folder".to_string();
            ConfigError::new("onnx", format!("cannot read the model `{file}`: {source}")).with_hint(Some(hint))
        }
        ModelError::NotServable { reason, .. } => {
            ConfigError::new("onnx", format!("`{file}` cannot serve as a model: {reason}"))
        }
        other => ConfigError::new("onnx", other.to_string()),
    }
}
