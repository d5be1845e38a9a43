//! PageHinkley.
use crate::kinds::Kind;

/// PageHinkley.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PageHinkleyConfig {}

impl Kind for PageHinkleyConfig {
    const EXAMPLE: &'static str = "{}";
}
