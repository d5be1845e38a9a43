//! Adwin.
use crate::kinds::Kind;

/// Adwin.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AdwinConfig {}

impl Kind for AdwinConfig {
    const EXAMPLE: &'static str = "{}";
}
