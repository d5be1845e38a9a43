//! The JSON Schema of topology files, for editors that complete and check YAML.
//!
//! The types say most of it. What the reader of files takes besides is added here, so that an editor marks no right file
//! wrong: a variable (`${NAME}`) wherever a value stands, a number or `true` where a text belongs, and the name of a kind
//! alone (`to: stdout`) if all its settings have defaults.

use serde_json::{Map, Value, json};

use super::Topology;

/// The definition that stands for a variable.
const VARIABLE: &str = "Variable";

/// The schema.
pub fn schema() -> Value {
    let mut schema: Value = schemars::schema_for!(Topology).into();
    let definitions = schema["$defs"].as_object().cloned().unwrap_or_default();
    widen(&mut schema, &definitions);
    schema["$defs"][VARIABLE] = json!({
        "description": "A variable: `${NAME}`, `${NAME:default}` or `${file:path}`.",
        "type": "string",
        "pattern": r"\$\{[^}]+\}",
    });
    schema
}

/// Adds to a schema, and to those within, what files may hold besides.
fn widen(schema: &mut Value, definitions: &Map<String, Value>) {
    let Some(object) = schema.as_object_mut() else { return };
    for key in ["properties", "$defs"] {
        let inner = object.get_mut(key).and_then(Value::as_object_mut);
        inner.into_iter().flat_map(Map::values_mut).for_each(|inner| widen(inner, definitions));
    }
    for key in ["items", "additionalProperties"] {
        object.get_mut(key).into_iter().for_each(|inner| widen(inner, definitions));
    }
    if let Some(variants) = object.get_mut("anyOf").and_then(Value::as_array_mut) {
        variants.iter_mut().for_each(|variant| widen(variant, definitions));
    }
    if let Some(variants) = object.get_mut("oneOf").and_then(Value::as_array_mut) {
        widen_choice(variants, definitions);
    } else if object.contains_key("type") {
        widen_value(object);
    }
}

/// A choice of names takes a variable, a choice of kinds the names of those that need no settings.
fn widen_choice(variants: &mut Vec<Value>, definitions: &Map<String, Value>) {
    if variants.iter().all(|variant| variant["const"].is_string()) {
        return variants.push(variable());
    }
    let alone: Vec<Value> = variants.iter().filter_map(|variant| alone(variant, definitions)).collect();
    for settings in variants.iter_mut().filter_map(|variant| variant["properties"].as_object_mut()) {
        settings.values_mut().for_each(|settings| widen(settings, definitions));
    }
    variants.extend(alone);
}

/// The name of a kind that may stand alone.
fn alone(variant: &Value, definitions: &Map<String, Value>) -> Option<Value> {
    let (name, settings) = variant["properties"].as_object()?.iter().next()?;
    let settings = match settings["$ref"].as_str() {
        Some(path) => definitions.get(path.rsplit('/').next()?)?,
        None => settings,
    };
    let required = settings["required"].as_array().is_some_and(|required| !required.is_empty());
    let description = format!("`{name}` with all settings at their defaults.");
    (!required).then(|| json!({ "description": description, "const": name }))
}

/// A text takes numbers and truths as they are written, and so a variable; any other value a variable.
fn widen_value(object: &mut Map<String, Value>) {
    let types: Vec<&str> = match &object["type"] {
        Value::Array(types) => types.iter().filter_map(Value::as_str).collect(),
        other => other.as_str().into_iter().collect(),
    };
    if types.iter().any(|of| ["object", "array"].contains(of)) {
        return;
    }
    let free = ["pattern", "const", "enum", "maxLength"].iter().all(|limit| !object.contains_key(*limit));
    if free && types.contains(&"string") {
        let more = ["number", "boolean"].into_iter().filter(|of| !types.contains(of));
        object["type"] = types.iter().copied().chain(more).collect();
        return;
    }
    let mut value = std::mem::take(object);
    for about in ["description", "default"] {
        object.extend(value.remove_entry(about));
    }
    object.insert("anyOf".into(), json!([value, variable()]));
}

fn variable() -> Value {
    json!({ "$ref": format!("#/$defs/{VARIABLE}") })
}
