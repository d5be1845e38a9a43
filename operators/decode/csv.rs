//! Comma-separated values, one record a message.

use std::borrow::Cow;
use std::sync::Arc;

use indexmap::IndexMap;

use super::Failure;
use super::columns::Record;
use crate::error::ConfigError;
use crate::kinds::Kind;
use crate::reject::Reason;
use crate::schema::{ColumnType, Values};

/// Comma-separated values, one record a message. Files have a header line that names the columns; messages of a topic
/// have none and hold the schema's columns in its order. An empty field is null; in quotes it is an empty text.
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

/// Reads one record at a time.
#[derive(Debug, Clone)]
pub(super) struct CsvReader {
    columns: Arc<IndexMap<String, ColumnType>>,
    delimiter: char,
    header: Option<Arc<Vec<String>>>,
    /// The column of each field of a record; `None` for a field that the schema does not have.
    order: Vec<Option<usize>>,
}

impl CsvReader {
    pub fn new(format: &CsvFormat, columns: Arc<IndexMap<String, ColumnType>>) -> Result<Self, ConfigError> {
        let delimiter = format.delimiter;
        if !delimiter.is_ascii() || ['"', '\r', '\n'].contains(&delimiter) {
            let message = format!("`{}` can't stand between fields", delimiter.escape_default());
            let hint = "use one ASCII character that is no quote or line end, as `,` or `;`";
            return Err(ConfigError::new("format.csv.delimiter", message).with_hint(Some(hint.into())));
        }
        let order = (0..columns.len()).map(Some).collect();
        Ok(CsvReader { columns, delimiter, header: None, order })
    }

    /// Takes the header of the next records: the columns' names, in the order of the fields. Without one the fields are
    /// the schema's columns.
    pub fn begin(&mut self, header: Option<&Arc<Vec<String>>>) {
        if self.header.as_ref() == header {
            return;
        }
        self.header = header.cloned();
        self.order = match header {
            None => (0..self.columns.len()).map(Some).collect(),
            Some(header) => header.iter().map(|name| self.columns.get_index_of(name)).collect(),
        };
    }

    /// Reads `text` into `record`; what is wrong with single fields is noted there.
    pub fn read(&mut self, text: &str, record: &mut Record) -> Result<(), Failure> {
        let mut rest = Some(text.strip_suffix('\n').map_or(text, |line| line.strip_suffix('\r').unwrap_or(line)));
        let mut fields = 0;
        while let Some(here) = rest {
            let (field, quoted, behind) = next_field(here, self.delimiter)?;
            rest = behind;
            if let Some(Some(column)) = self.order.get(fields)
                && let Some((name, declared)) = self.columns.get_index(*column)
            {
                let text = declared.values == Values::String;
                match if text { &*field } else { field.trim() } {
                    "" if !(text && quoted) => record.set_null(*column),
                    value => record.parse(*column, name, *declared, value),
                }
            }
            fields += 1;
        }
        if fields != self.order.len() {
            return Err(malformed(format!("the record has {fields} fields, not {}", self.order.len())));
        }
        Ok(())
    }
}

fn malformed(detail: impl Into<String>) -> Failure {
    Failure::new(Reason::Malformed, detail)
}

/// The first field of `text`, whether it is quoted, and what follows its delimiter, if there is one.
fn next_field(text: &str, delimiter: char) -> Result<(Cow<'_, str>, bool, Option<&str>), Failure> {
    let Some(mut inside) = text.strip_prefix('"') else {
        let (field, behind) = match text.split_once(delimiter) {
            Some((field, behind)) => (field, Some(behind)),
            None => (text, None),
        };
        if field.contains('\n') {
            return Err(malformed("the message holds more than one record"));
        }
        return Ok((Cow::Borrowed(field), false, behind));
    };
    let mut field = Cow::Borrowed("");
    loop {
        let (part, behind) = inside.split_once('"').ok_or_else(|| malformed("a quoted field is not closed"))?;
        if field.is_empty() {
            field = Cow::Borrowed(part);
        } else {
            field.to_mut().push_str(part);
        }
        // Two quotes inside a quoted field stand for one.
        match behind.strip_prefix('"') {
            Some(more) => {
                field.to_mut().push('"');
                inside = more;
            }
            None if behind.is_empty() => return Ok((field, true, None)),
            None => match behind.strip_prefix(delimiter) {
                Some(behind) => return Ok((field, true, Some(behind))),
                None => return Err(malformed("a quoted field goes on behind its closing quote")),
            },
        }
    }
}
