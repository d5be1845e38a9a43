//! Psi.
use crate::kinds::Kind;

/// Psi.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PsiConfig {}

impl Kind for PsiConfig {
    const EXAMPLE: &'static str = "{}";
}
