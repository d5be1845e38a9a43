//! JSON objects, one a message.
use crate::kinds::Kind;

/// JSON objects, one a message.
#[derive(Debug, Clone, PartialEq, Default, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct JsonFormat {
    /// What to do with fields that the schema does not have.
    #[serde(default)]
    pub extra_fields: ExtraFields,
}

/// What to do with fields that the schema does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ExtraFields {
    /// They are skipped.
    #[default]
    Ignore,
    /// The record is rejected.
    Reject,
}

impl Kind for JsonFormat {
    const EXAMPLE: &'static str = "{ extra_fields: reject }";
}
