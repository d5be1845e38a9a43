//! Comma-separated values, one record a message.
use crate::kinds::Kind;

/// Comma-separated values, one record a message. Files have a header line that names the columns; messages of a topic
/// have none and hold the schema's columns in its order. An empty field is null.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CsvFormat {
    /// The character between fields.
    #[serde(default = "comma")]
    pub delimiter: char,
}

fn comma() -> char {
    ','
}

impl Kind for CsvFormat {
    const EXAMPLE: &'static str = "{ delimiter: ';' }";
}
