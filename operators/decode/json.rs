//! JSON objects, one a message.
//!
//! A message is read by serde_json in one pass straight into the record's cells. arrow-json reads whole batches, but it
//! accepts what is not JSON (missing and doubled commas), cuts 1.9 to the whole number 1 and takes texts for numbers.

use std::fmt;
use std::sync::Arc;

use indexmap::IndexMap;
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::Failure;
use super::columns::Record;
use crate::error::nearest;
use crate::kinds::Kind;
use crate::reject::{Reason, shortened};
use crate::schema::ColumnType;

/// JSON objects, one a message. A field that stands twice is rejected, and so is a text where a number is declared.
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

/// An object of a million fields must not be remembered.
const FIELDS_REMEMBERED_MAX: usize = 256;

/// Reads one message at a time.
#[derive(Debug, Clone)]
pub(super) struct JsonReader {
    columns: Arc<IndexMap<String, ColumnType>>,
    extra_fields: ExtraFields,
    /// The column of each field of the last object, in its order: messages of a stream are mostly alike, so a field's
    /// name is compared with one name instead of being looked up.
    order: Vec<Option<usize>>,
}

impl JsonReader {
    pub fn new(format: &JsonFormat, columns: Arc<IndexMap<String, ColumnType>>) -> Self {
        JsonReader { columns, extra_fields: format.extra_fields, order: Vec::new() }
    }

    /// Reads `text` into `record`; what is wrong with single fields is noted there.
    pub fn read(&mut self, text: &str, record: &mut Record) -> Result<(), Failure> {
        let mut deserializer = serde_json::Deserializer::from_str(text);
        let read = deserializer.deserialize_any(Message { reader: self, record }).and_then(|()| deserializer.end());
        read.map_err(|error| Failure::new(Reason::Malformed, format!("the message is not one JSON object: {error}")))
    }

    /// The column of the field at `position` of an object.
    fn column(&mut self, position: usize, name: &str) -> Option<usize> {
        if let Some(Some(column)) = self.order.get(position)
            && self.columns.get_index(*column).is_some_and(|(known, _)| known == name)
        {
            return Some(*column);
        }
        let found = self.columns.get_index_of(name);
        if let Some(known) = self.order.get_mut(position) {
            *known = found;
        } else if position < FIELDS_REMEMBERED_MAX {
            self.order.push(found);
        }
        found
    }
}

/// The whole message: an object.
struct Message<'a> {
    reader: &'a mut JsonReader,
    record: &'a mut Record,
}

impl<'de> Visitor<'de> for Message<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<(), A::Error> {
        let mut position = 0;
        while let Some(column) = object.next_key_seed(Key { reader: self.reader, record: self.record, position })? {
            position += 1;
            match column {
                None => drop(object.next_value::<IgnoredAny>()?),
                Some(column) => {
                    let (name, declared) = self.reader.columns.get_index(column).ok_or_else(|| {
                        // The index was found among these columns.
                        A::Error::custom("a column without a name")
                    })?;
                    if self.record.is_set(column) {
                        self.record.fail(Reason::Malformed, || format!("`{name}` stands twice in the object"));
                    }
                    object.next_value_seed(Value { record: self.record, column, name, declared: *declared })?;
                }
            }
        }
        Ok(())
    }
}

/// The name of a field: gives its column.
struct Key<'a> {
    reader: &'a mut JsonReader,
    record: &'a mut Record,
    position: usize,
}

impl<'de> DeserializeSeed<'de> for Key<'_> {
    type Value = Option<usize>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Option<usize>, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Key<'_> {
    type Value = Option<usize>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a field's name")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<Option<usize>, E> {
        let column = self.reader.column(self.position, name);
        if column.is_none() && self.reader.extra_fields == ExtraFields::Reject {
            self.record.fail(Reason::UnknownField, || {
                let hint = nearest(name, self.reader.columns.keys().map(String::as_str));
                let hint = hint.map(|hint| format!(" ({hint})")).unwrap_or_default();
                format!("`{}` is not in the schema{hint}", shortened(name))
            });
        }
        Ok(column)
    }
}

/// The value of a declared column. A value of another type is noted and skipped, so that broken JSON behind it is found.
struct Value<'a> {
    record: &'a mut Record,
    column: usize,
    name: &'a str,
    declared: ColumnType,
}

impl<'de> DeserializeSeed<'de> for Value<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Value<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<(), E> {
        self.record.set_bool(self.column, self.name, self.declared, value);
        Ok(())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<(), E> {
        self.record.set_int(self.column, self.name, self.declared, value);
        Ok(())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<(), E> {
        match i64::try_from(value) {
            Ok(value) => self.record.set_int(self.column, self.name, self.declared, value),
            Err(_) => self.record.set_float(self.column, self.name, self.declared, value as f64),
        }
        Ok(())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<(), E> {
        self.record.set_float(self.column, self.name, self.declared, value);
        Ok(())
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<(), E> {
        self.record.set_text(self.column, self.name, self.declared, value);
        Ok(())
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        self.record.set_null(self.column);
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        self.record.wrong_type(self.name, self.declared, "a list");
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<(), A::Error> {
        self.record.wrong_type(self.name, self.declared, "an object");
        while object.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(())
    }
}
