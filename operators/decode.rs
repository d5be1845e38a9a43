//! Decoding: messages become typed rows. One kind a format.

use crate::kinds;

pub mod csv;
pub mod json;

kinds! {
    /// How a message becomes an event.
    pub enum FormatKind("format") {
        "json" => Json(json::JsonFormat),
        "csv" => Csv(csv::CsvFormat),
    }
}

impl Default for FormatKind {
    fn default() -> Self {
        FormatKind::Json(json::JsonFormat::default())
    }
}
