//! Reads typed values from a tree, past every error.
//!
//! Serde stops at the first error. Here the value that caused it is set aside and reading starts again, until the rest
//! reads through: so a file's every error is found in one go. What is missing only because it was set aside is no
//! error of its own.

use std::collections::HashSet;
use std::fmt;
use std::ops::Range;

use millstream_operators::error::nearest;
use serde::de::{self, DeserializeOwned, DeserializeSeed, IntoDeserializer, Visitor};

use super::problem::Problem;
use super::tree::{Entry, NodeId, Scalar, Tree, Value};

/// The value of the tree's root, as far as it can be read. Values that cannot be read are added to `bad`.
pub(super) fn read<T: DeserializeOwned>(tree: &Tree, bad: &mut HashSet<NodeId>) -> (Option<T>, Vec<Problem>) {
    let mut problems = Vec::new();
    loop {
        match T::deserialize(Reader { tree, node: tree.root, key: None, bad }) {
            Ok(value) => return (Some(value), problems),
            Err(error) => {
                let node = error.node.unwrap_or(tree.root);
                problems.extend(error.problem());
                // Every turn sets one more value aside, so this ends.
                if node == tree.root || !bad.insert(node) {
                    return (None, problems);
                }
            }
        }
    }
}

/// Why a value could not be read, and which value.
#[derive(Debug)]
struct ReadError {
    message: String,
    hint: Option<String>,
    node: Option<NodeId>,
    span: Option<Range<usize>>,
    /// The key that is missing, if that is the error.
    missing: Option<String>,
    /// Follows from an error that has been told already.
    silent: bool,
}

impl ReadError {
    fn new(message: impl Into<String>) -> Self {
        ReadError { message: message.into(), hint: None, node: None, span: None, missing: None, silent: false }
    }
    fn hint(self, hint: impl Into<String>) -> Self {
        ReadError { hint: Some(hint.into()), ..self }
    }
    fn problem(self) -> Option<Problem> {
        (!self.silent).then(|| Problem::error(self.span, self.message).with_hint(self.hint))
    }
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}
impl std::error::Error for ReadError {}

impl de::Error for ReadError {
    fn custom<T: fmt::Display>(message: T) -> Self {
        // Values that parse themselves (lengths of time, column types) say what to write after a semicolon.
        let text = message.to_string();
        match text.split_once("; ") {
            Some((message, hint)) => ReadError::new(message).hint(hint),
            None => ReadError::new(text),
        }
    }
    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Self {
        let hint = nearest(field, expected.iter().copied()).unwrap_or_else(|| match expected {
            [] => "nothing can be set here".to_string(),
            _ => format!("keys that can stand here: {}", names(expected)),
        });
        ReadError::new(format!("unknown key `{field}`")).hint(hint)
    }
    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        let list = || format!("write one of {}", names(expected));
        let hint = nearest(variant, expected.iter().copied()).unwrap_or_else(list);
        ReadError::new(format!("`{variant}` is not known here")).hint(hint)
    }
    fn missing_field(field: &'static str) -> Self {
        ReadError { missing: Some(field.to_string()), ..ReadError::new(format!("`{field}` is missing")) }
    }
}

fn names(list: &[&str]) -> String {
    list.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

/// Reads one node.
#[derive(Clone)]
struct Reader<'a> {
    tree: &'a Tree,
    node: NodeId,
    /// Where the node's key stands, to point at for what is wrong with the node as a whole.
    key: Option<Range<usize>>,
    bad: &'a HashSet<NodeId>,
}

impl<'a> Reader<'a> {
    fn value(&self) -> &'a Value {
        &self.tree.node(self.node).value
    }

    /// Says that `error` is about this node, unless it is about one inside.
    fn place(&self, mut error: ReadError) -> ReadError {
        if error.node.is_some() {
            return error;
        }
        if let (Some(missing), Value::Map(entries)) = (&error.missing, self.value()) {
            // Neither what was set aside is missing, nor what was written with a slip.
            let is_it = |key: &str| key == missing || nearest(key, [missing.as_str()]).is_some();
            error.silent = entries.iter().any(|entry| self.bad.contains(&entry.value) && is_it(&entry.key));
        }
        if let Value::Scalar(Scalar { text, written: Some(written), .. }) = self.value() {
            error.message = error.message.replace(text.as_str(), written);
            error.hint = error.hint.map(|hint| hint.replace(text.as_str(), written));
        }
        error.node = Some(self.node);
        let whole = self.tree.node(self.node).span.clone();
        error.span = Some(match (self.value(), &self.key) {
            (Value::Scalar(_), _) if !whole.is_empty() => whole,
            (_, Some(key)) => key.clone(),
            _ => whole.start..whole.start,
        });
        error
    }

    /// The scalar, or an error that says what was expected instead of what stands here.
    fn scalar(&self, expected: &str) -> Result<&'a Scalar, ReadError> {
        match self.value() {
            Value::Scalar(scalar) if !scalar.is_null() => Ok(scalar),
            _ => Err(self.instead_of(expected)),
        }
    }

    fn instead_of(&self, expected: &str) -> ReadError {
        let found = match self.value() {
            Value::Scalar(scalar) if scalar.is_null() => "there is no value".to_string(),
            Value::Scalar(scalar) => format!("found `{}`", scalar.shown()),
            Value::List(_) => "found a list".to_string(),
            Value::Map(_) => "found a mapping".to_string(),
        };
        ReadError::new(format!("expected {expected}, {found}"))
    }

    fn whole_number(&self, min: i128, max: i128) -> Result<i128, ReadError> {
        let expected = match min {
            0 => "a whole number of 0 or more".to_string(),
            _ => "a whole number".to_string(),
        };
        let scalar = self.scalar(&expected)?;
        let number: i128 = scalar.text.parse().map_err(|_| self.instead_of(&expected))?;
        if number < min || number > max {
            let readable = max <= i128::from(u32::MAX);
            let limits = if readable { format!("a whole number from {min} to {max}") } else { expected };
            return Err(self.instead_of(&limits));
        }
        Ok(number)
    }

    fn integer<T: TryFrom<i128>, R>(
        self,
        min: i128,
        max: i128,
        visit: impl FnOnce(T) -> Result<R, ReadError>,
    ) -> Result<R, ReadError> {
        let number = self.whole_number(min, max).map_err(|e| self.place(e))?;
        let number = T::try_from(number).map_err(|_| self.place(self.instead_of("a smaller number")))?;
        visit(number).map_err(|e| self.place(e))
    }

    fn number(&self) -> Result<f64, ReadError> {
        let scalar = self.scalar("a number")?;
        match scalar.text.parse::<f64>() {
            Ok(number) if number.is_finite() => Ok(number),
            _ => Err(self.instead_of("a number")),
        }
    }

    fn truth(&self) -> Result<bool, ReadError> {
        let scalar = self.scalar("`true` or `false`")?;
        match scalar.text.as_str() {
            "true" | "True" | "TRUE" => Ok(true),
            "false" | "False" | "FALSE" => Ok(false),
            _ => Err(self.instead_of("`true` or `false`")),
        }
    }

    fn entries(&self) -> Result<&'a [Entry], ReadError> {
        match self.value() {
            Value::Map(entries) => Ok(entries),
            Value::Scalar(scalar) if scalar.is_null() => Ok(&[]),
            _ => Err(self.instead_of("a mapping of `key: value`")),
        }
    }

    fn child(&self, node: NodeId, key: Option<Range<usize>>) -> Self {
        Reader { node, key, ..self.clone() }
    }

    /// Reads this node into what `seed` wants; also what `seed` itself finds wrong (a length of time that is none) is
    /// placed here.
    fn give<'de, S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, ReadError> {
        seed.deserialize(self.clone()).map_err(|e| self.place(e))
    }
}

impl<'de> de::Deserializer<'de> for Reader<'_> {
    type Error = ReadError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        match self.value() {
            Value::List(_) => self.deserialize_seq(visitor),
            Value::Map(_) => self.deserialize_map(visitor),
            Value::Scalar(scalar) if scalar.is_null() => visitor.visit_unit(),
            Value::Scalar(scalar) if scalar.quoted => self.deserialize_str(visitor),
            Value::Scalar(_) => {
                match (self.truth(), self.whole_number(i64::MIN as i128, i64::MAX as i128), self.number()) {
                    (Ok(truth), ..) => visitor.visit_bool(truth),
                    (_, Ok(whole), _) => visitor.visit_i64(whole as i64),
                    (.., Ok(number)) => visitor.visit_f64(number),
                    _ => self.deserialize_str(visitor),
                }
            }
        }
    }
    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        let truth = self.truth().map_err(|e| self.place(e))?;
        visitor.visit_bool(truth).map_err(|e| self.place(e))
    }
    fn deserialize_i8<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        self.integer(i8::MIN as i128, i8::MAX as i128, |n| visitor.visit_i8(n))
    }
    fn deserialize_i16<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        self.integer(i16::MIN as i128, i16::MAX as i128, |n| visitor.visit_i16(n))
    }
    fn deserialize_i32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        self.integer(i32::MIN as i128, i32::MAX as i128, |n| visitor.visit_i32(n))
    }
    fn deserialize_i64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        self.integer(i64::MIN as i128, i64::MAX as i128, |n| visitor.visit_i64(n))
    }
    fn deserialize_u8<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        self.integer(0, u8::MAX as i128, |n| visitor.visit_u8(n))
    }
    fn deserialize_u16<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        self.integer(0, u16::MAX as i128, |n| visitor.visit_u16(n))
    }
    fn deserialize_u32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        self.integer(0, u32::MAX as i128, |n| visitor.visit_u32(n))
    }
    fn deserialize_u64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        self.integer(0, u64::MAX as i128, |n| visitor.visit_u64(n))
    }
    fn deserialize_f32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        self.deserialize_f64(visitor)
    }
    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        let number = self.number().map_err(|e| self.place(e))?;
        visitor.visit_f64(number).map_err(|e| self.place(e))
    }
    fn deserialize_char<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        let scalar = self.scalar("one character").map_err(|e| self.place(e))?;
        let mut letters = scalar.text.chars();
        match (letters.next(), letters.next()) {
            (Some(letter), None) => visitor.visit_char(letter).map_err(|e| self.place(e)),
            _ => Err(self.place(self.instead_of("one character"))),
        }
    }
    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        // A number or `true` where a text belongs is taken as it is written.
        let scalar = self.scalar("a text").map_err(|e| self.place(e))?;
        visitor.visit_str(&scalar.text).map_err(|e| self.place(e))
    }
    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        self.deserialize_str(visitor)
    }
    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        match self.value() {
            Value::Scalar(scalar) if scalar.is_null() => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }
    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, ReadError> {
        visitor.visit_newtype_struct(self)
    }
    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        let items: &[NodeId] = match self.value() {
            Value::List(items) => items,
            Value::Scalar(scalar) if scalar.is_null() => &[],
            Value::Scalar(scalar) => {
                let hint = format!("write `[{}]`", scalar.shown());
                return Err(self.place(self.instead_of("a list").hint(hint)));
            }
            Value::Map(_) => return Err(self.place(self.instead_of("a list"))),
        };
        visitor.visit_seq(Items { reader: &self, items: items.iter() }).map_err(|e| self.place(e))
    }
    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        let entries = self.entries().map_err(|e| self.place(e))?;
        visitor.visit_map(Entries { reader: &self, entries: entries.iter(), current: None }).map_err(|e| self.place(e))
    }
    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        self.deserialize_map(visitor)
    }
    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        let (name, span, content) = match self.value() {
            Value::Scalar(scalar) if !scalar.is_null() => (&scalar.text, None, None),
            Value::Map(entries) if entries.len() == 1 => {
                let Entry { key, span, value } = &entries[0];
                if self.bad.contains(value) {
                    return Err(self.place(ReadError { silent: true, ..ReadError::new("set aside") }));
                }
                (key, Some(span.clone()), Some(*value))
            }
            _ => {
                let expected = format!("one of {}", names(variants));
                return Err(self.place(self.instead_of(&expected)));
            }
        };
        let chosen = Chosen { reader: &self, name, span, content };
        visitor.visit_enum(chosen).map_err(|e| self.place(e))
    }
    serde::forward_to_deserialize_any! {
        i128 u128 bytes byte_buf unit unit_struct tuple tuple_struct identifier ignored_any
    }
}

/// The items of a list that are not set aside.
struct Items<'r, 'a> {
    reader: &'r Reader<'a>,
    items: std::slice::Iter<'a, NodeId>,
}

impl<'de> de::SeqAccess<'de> for Items<'_, '_> {
    type Error = ReadError;
    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, ReadError> {
        let item = self.items.find(|item| !self.reader.bad.contains(item));
        item.map(|item| self.reader.child(*item, None).give(seed)).transpose()
    }
}

/// The entries of a mapping that are not set aside.
struct Entries<'r, 'a> {
    reader: &'r Reader<'a>,
    entries: std::slice::Iter<'a, Entry>,
    current: Option<&'a Entry>,
}

impl<'de> de::MapAccess<'de> for Entries<'_, '_> {
    type Error = ReadError;
    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, ReadError> {
        self.current = self.entries.find(|entry| !self.reader.bad.contains(&entry.value));
        let Some(entry) = self.current else { return Ok(None) };
        let about_key =
            |error: ReadError| ReadError { node: Some(entry.value), span: Some(entry.span.clone()), ..error };
        seed.deserialize(entry.key.as_str().into_deserializer()).map(Some).map_err(about_key)
    }
    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, ReadError> {
        let entry = self.current.take().ok_or_else(|| ReadError::new("a value was asked for before its key"))?;
        self.reader.child(entry.value, Some(entry.span.clone())).give(seed)
    }
}

/// A kind or a name out of a list: `kafka: {...}`, or `stdout` alone for one without settings.
struct Chosen<'r, 'a> {
    reader: &'r Reader<'a>,
    name: &'a str,
    span: Option<Range<usize>>,
    content: Option<NodeId>,
}

impl<'de, 'r, 'a> de::EnumAccess<'de> for Chosen<'r, 'a> {
    type Error = ReadError;
    type Variant = Self;
    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self), ReadError> {
        let name: de::value::StrDeserializer<'_, ReadError> = self.name.into_deserializer();
        let choice = seed.deserialize(name).map_err(|error| match &self.span {
            Some(span) => ReadError { node: Some(self.reader.node), span: Some(span.clone()), ..error },
            None => self.reader.place(error),
        })?;
        Ok((choice, self))
    }
}

impl<'de> de::VariantAccess<'de> for Chosen<'_, '_> {
    type Error = ReadError;
    fn unit_variant(self) -> Result<(), ReadError> {
        match self.content {
            None => Ok(()),
            Some(_) => Err(self.reader.place(ReadError::new(format!("`{}` stands alone, without a value", self.name)))),
        }
    }
    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, ReadError> {
        match self.content {
            Some(content) => self.reader.child(content, self.span.clone()).give(seed),
            None => {
                // The kind alone is the kind with every setting at its default.
                let empty = de::value::MapDeserializer::new(std::iter::empty::<(&str, &str)>());
                seed.deserialize(empty).map_err(|error: ReadError| {
                    let hint = format!("write `{}: {{ ... }}` with its settings", self.name);
                    self.reader
                        .place(ReadError::new(format!("`{}` needs settings: {}", self.name, error.message)).hint(hint))
                })
            }
        }
    }
    fn tuple_variant<V: Visitor<'de>>(self, _: usize, _: V) -> Result<V::Value, ReadError> {
        Err(self.reader.place(ReadError::new(format!("`{}` cannot be read", self.name))))
    }
    fn struct_variant<V: Visitor<'de>>(self, _: &'static [&'static str], visitor: V) -> Result<V::Value, ReadError> {
        match self.content {
            Some(content) => de::Deserializer::deserialize_map(self.reader.child(content, self.span.clone()), visitor),
            None => visitor.visit_map(de::value::MapDeserializer::new(std::iter::empty::<(&str, &str)>())),
        }
    }
}
