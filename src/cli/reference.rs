//! The reference of topology files, generated: the JSON Schema, and a page with every section, kind, setting and example.

use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use millstream_operators::decode::FormatKind;
use millstream_operators::drift::DetectorKind;
use millstream_operators::features::Op;
use millstream_operators::kinds::KindInfo;

use crate::offline::TableKind;
use crate::sinks::SinkKind;
use crate::sources::SourceKind;
use crate::topology::Topology;

/// A family of kinds.
pub struct Family {
    /// As an error names it: `source`, `sink`, `detector` ...
    pub name: &'static str,
    /// Where in a file its kinds stand.
    pub stands: &'static str,
    /// Its kinds, in the order of their list.
    pub kinds: Vec<KindPage>,
}

/// A kind with the schema of its settings.
pub struct KindPage {
    /// Its family's name.
    pub family: &'static str,
    /// Its own name.
    pub name: &'static str,
    /// Where in a file it stands.
    pub stands: &'static str,
    /// A complete example of what stands there.
    pub example: String,
    /// JSON Schema of its settings.
    pub settings: Value,
}

/// Every family of kinds.
pub fn families() -> Vec<Family> {
    vec![
        family::<SourceKind>("source", "sources.<name>.from", SourceKind::KINDS),
        family::<FormatKind>("format", "sources.<name>.format", FormatKind::KINDS),
        aggregates(),
        family::<DetectorKind>("detector", "drift.<name>.detector", DetectorKind::KINDS),
        family::<SinkKind>("sink", "sinks.<name>.to", SinkKind::KINDS),
        family::<TableKind>("offline store", "offline.<name>.table", TableKind::KINDS),
    ]
}

fn family<T: JsonSchema>(name: &'static str, stands: &'static str, kinds: &'static [KindInfo]) -> Family {
    let schema = inlined::<T>();
    let variants = ["oneOf", "anyOf"].iter().find_map(|key| schema[*key].as_array()).cloned();
    let variants = variants.unwrap_or_else(|| vec![schema.clone()]);
    let settings = |info: &KindInfo| {
        let found = variants.iter().find_map(|variant| variant["properties"].get(info.name));
        found.cloned().unwrap_or_default()
    };
    let page = |info: &KindInfo| KindPage {
        family: info.family,
        name: info.name,
        stands,
        example: format!("{}: {}", info.name, info.example),
        settings: settings(info),
    };
    Family { name, stands, kinds: kinds.iter().map(page).collect() }
}

/// The aggregates, which are names without settings.
fn aggregates() -> Family {
    let (name, stands) = ("aggregate", "features.<name>.aggregates[]");
    let page = |op: &Op| {
        let function = op.function();
        let of = if function.needs_values() { "of: amount, " } else { "" };
        KindPage {
            family: name,
            name: function.name(),
            stands,
            example: format!("{{ {of}ops: [{}], windows: [1h, 24h] }}", function.name()),
            settings: json!({ "description": function.doc() }),
        }
    };
    Family { name, stands, kinds: Op::ALL.iter().map(page).collect() }
}

/// The schema of a type in one piece, without references.
fn inlined<T: JsonSchema>() -> Value {
    let settings = SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true);
    settings.into_generator().into_root_schema_for::<T>().into()
}

/// The JSON Schema of topology files, as text.
pub fn schema_text() -> String {
    // A schema is JSON already.
    serde_json::to_string_pretty(&crate::topology::schema::schema()).unwrap_or_default() + "\n"
}

/// The reference page, in Markdown.
pub fn reference() -> String {
    let mut page = String::from(
        "# Reference of topology files\n\nGenerated from the code by `UPDATE=1 cargo test --test tests reference`; do not edit.\n\n\
         A length of time is written `250ms`, `30s`, `10m`, `24h` or `7d`; a size `64KiB`, `16MiB` or `2GiB`. In any value\n\
         `${NAME}` stands for an environment variable, `${NAME:default}` gives it a default, `${file:path}` is the content\n\
         of a file, and `$$` is a dollar sign.\n",
    );
    let root = inlined::<Topology>();
    page.push_str("\n## The file\n\n");
    page.push_str(&table(&root, false));
    for (key, section) in properties(&root) {
        let (title, entry) = match section["additionalProperties"].as_object() {
            Some(_) => (format!("{key}.<name>"), &section["additionalProperties"]),
            None if section["properties"].is_object() => (key.clone(), section),
            None => continue,
        };
        page.push_str(&format!("\n## `{title}`\n\n{}\n\n{}", description(entry), table(entry, false)));
        for (inner, path) in nested(entry, "") {
            page.push_str(&format!("\n### `{title}{path}`\n\n{}\n\n{}", description(inner), table(inner, false)));
        }
    }
    for family in families() {
        page.push_str(&format!("\n## Kinds of {}\n\nThey stand at `{}`.\n", family.name, family.stands));
        for kind in &family.kinds {
            page.push_str(&format!("\n### {} `{}`\n\n", family.name, kind.name));
            page.push_str(&kind_body(kind));
        }
    }
    page
}

/// The reference of one kind, in Markdown.
pub fn kind_page(kind: &KindPage) -> String {
    format!("# {} `{}`\n\nStands at `{}`.\n\n{}", kind.family, kind.name, kind.stands, kind_body(kind))
}

fn kind_body(kind: &KindPage) -> String {
    let KindPage { example, settings, .. } = kind;
    format!("{}\n\n{}\n```yaml\n{example}\n```\n", description(settings), table(settings, true))
}

fn properties(schema: &Value) -> impl Iterator<Item = (&String, &Value)> {
    schema["properties"].as_object().into_iter().flat_map(Map::iter)
}

/// The objects with settings of their own inside a section, and their paths; kinds have pages of their own.
fn nested<'a>(schema: &'a Value, path: &str) -> Vec<(&'a Value, String)> {
    let mut found = Vec::new();
    for (key, value) in properties(schema) {
        let (inner, path) = match (&value["items"], &value["additionalProperties"]) {
            (items, _) if items["properties"].is_object() => (items, format!("{path}.{key}[]")),
            (_, entry) if entry["properties"].is_object() => (entry, format!("{path}.{key}.<name>")),
            _ => (alternative(value).unwrap_or(value), format!("{path}.{key}")),
        };
        if inner["properties"].is_object() {
            found.push((inner, path.clone()));
            found.extend(nested(inner, &path));
        }
    }
    found
}

/// The object of a setting that may be left out (`anyOf` with null).
fn alternative(schema: &Value) -> Option<&Value> {
    schema["anyOf"].as_array()?.iter().find(|inner| inner["properties"].is_object())
}

fn description(schema: &Value) -> String {
    schema["description"].as_str().unwrap_or_default().trim().to_string()
}

/// A table of an object's settings.
fn table(schema: &Value, of_kind: bool) -> String {
    let required: Vec<&str> = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let rows: Vec<String> =
        properties(schema).map(|(key, value)| row(key, value, required.contains(&key.as_str()))).collect();
    if rows.is_empty() {
        return if of_kind { "It has no settings.\n".to_string() } else { String::new() };
    }
    format!("| key | type | default | |\n|---|---|---|---|\n{}", rows.concat())
}

fn row(key: &str, schema: &Value, required: bool) -> String {
    let default = match (&schema["default"], required) {
        (_, true) => "required".to_string(),
        (Value::Null, _) => String::new(),
        (Value::String(text), _) => format!("`{text}`"),
        (Value::Object(_), _) => "see there".to_string(),
        (other, _) => format!("`{other}`"),
    };
    let text = description(schema).replace('\n', " ").replace('|', "\\|");
    format!("| `{key}` | {} | {default} | {text} |\n", type_of(schema).replace('|', "\\|"))
}

/// What kind of value a setting takes, in a few words.
fn type_of(schema: &Value) -> String {
    if let Some(names) = names_of(schema) {
        return names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    }
    if let Some(pattern) = schema["pattern"].as_str() {
        return match pattern {
            p if p.contains("ms") => "length of time".to_string(),
            p if p.contains("KiB") => "size".to_string(),
            p if p.contains("/s") => "rate".to_string(),
            p if p.contains("float64") => "column type".to_string(),
            _ => "text".to_string(),
        };
    }
    let name = match &schema["type"] {
        Value::Array(types) => types.iter().filter_map(Value::as_str).find(|name| *name != "null").unwrap_or("any"),
        Value::String(name) => name.as_str(),
        _ => match schema["anyOf"].as_array().and_then(|all| all.iter().find(|inner| inner["type"] != "null")) {
            Some(inner) => return type_of(inner),
            None => "any",
        },
    };
    match name {
        "string" => "text".to_string(),
        "integer" => "whole number".to_string(),
        "boolean" => "`true`, `false`".to_string(),
        "array" => format!("list of {}", type_of(&schema["items"])),
        "object" if schema["additionalProperties"].is_object() => {
            format!("mapping of names to {}", type_of(&schema["additionalProperties"]))
        }
        "object" => "mapping".to_string(),
        other => other.to_string(),
    }
}

/// The names that a setting can take, if it takes one of a list.
fn names_of(schema: &Value) -> Option<Vec<String>> {
    if let Some(names) = schema["enum"].as_array() {
        return Some(names.iter().filter_map(Value::as_str).map(str::to_string).collect());
    }
    let variants = schema["oneOf"].as_array()?;
    let name = |variant: &Value| match variant["const"].as_str() {
        Some(name) => Some(name.to_string()),
        None => variant["properties"].as_object().and_then(|properties| properties.keys().next().cloned()),
    };
    variants.iter().map(name).collect()
}
