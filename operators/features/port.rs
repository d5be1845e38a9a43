//! Who reads a feature group: the rows of vectors, each kind on a port of its own.

use arrow::datatypes::{Field, SchemaRef};

use super::GroupConfig;
use super::definition::{Definition, extended};
use crate::error::ConfigError;
use crate::key::KeyColumns;

/// A vector that reads a group.
#[derive(Debug, Clone)]
pub struct Reader {
    /// Name of the vector; errors of the reader stand under `vectors.<name>.join`.
    pub name: String,
    /// The columns of its rows.
    pub spine: SchemaRef,
    /// Its columns that hold the group's key. Empty: columns named like the key's.
    pub on: Vec<String>,
    /// Reads before the row itself updates the group.
    pub exclude_self: bool,
    /// The rows are the group's own input: each updates the state and reads it. They come on the reader's port only.
    pub feeds: bool,
}

/// A reader compiled.
pub struct Port {
    /// Where the group's key stands in its rows.
    pub keys: KeyColumns,
    /// Its own columns and the features.
    pub schema: SchemaRef,
    /// As the reader says.
    pub exclude_self: bool,
    /// For a reader that feeds: where the input's columns stand among the reader's.
    pub feeds: Option<Vec<usize>>,
}

impl Port {
    /// Compiles a reader of a group of rows of `input`.
    ///
    /// # Errors
    /// The first thing that is wrong, by its path within the reader.
    pub fn compile(
        reader: &Reader,
        config: &GroupConfig,
        input: &SchemaRef,
        definition: &Definition,
        features: &[Field],
    ) -> Result<Port, ConfigError> {
        let on = if reader.on.is_empty() { &config.key } else { &reader.on };
        if on.len() != config.key.len() {
            let message = format!("{} columns for a key of {}: {}", on.len(), config.key.len(), config.key.join(", "));
            return Err(ConfigError::new("on", message));
        }
        let known = || reader.spine.fields().iter().map(|field| field.name().as_str());
        let mut keys = Vec::new();
        for ((name, key), key_type) in on.iter().zip(&config.key).zip(&definition.key_types) {
            let Ok(at) = reader.spine.index_of(name) else {
                return Err(ConfigError::unknown("on", "column", name, known()));
            };
            let data_type = reader.spine.field(at).data_type();
            if data_type != key_type && !(data_type.is_integer() && key_type.is_integer()) {
                let message = format!("`{name}` is {data_type}, but the group's key `{key}` is {key_type}");
                return Err(ConfigError::new("on", message));
            }
            keys.push(at);
        }
        let mut feeds = None;
        if reader.feeds {
            if *on != config.key {
                let message = format!("the spine feeds the group, so it must read by the group's key {:?}", config.key);
                return Err(ConfigError::new("on", message));
            }
            let columns: Vec<usize> =
                input.fields().iter().filter_map(|f| reader.spine.index_of(f.name()).ok()).collect();
            if columns.len() != input.fields().len() {
                return Err(ConfigError::new("", "the spine lacks columns of the group's input"));
            }
            feeds = Some(columns);
        }
        if let Some(twin) = features.iter().find(|field| reader.spine.index_of(field.name()).is_ok()) {
            return Err(ConfigError::new("features", format!("the rows have a column `{}` already", twin.name())));
        }
        let schema = extended(&reader.spine, features);
        Ok(Port { keys: KeyColumns::new(keys), schema, exclude_self: reader.exclude_self, feeds })
    }
}
