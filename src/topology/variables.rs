//! Variables in a topology file: `${NAME}`, `${NAME:default}`, `${file:path}`, and `$$` for a dollar sign.
//!
//! They stand inside values, never in keys. What they stand for is never shown: errors quote the file.

use std::collections::HashSet;
use std::path::Path;

use super::problem::Problem;
use super::tree::{NodeId, Tree};

/// What variables are read from.
pub struct Environment<'a> {
    /// Gives a variable's value; `None` when it is not set.
    pub variable: &'a dyn Fn(&str) -> Option<String>,
    /// The folder that `${file:path}` starts from: the topology's.
    pub folder: &'a Path,
}

/// A value that was put in, and the text of the file that stands for it. Errors that quote the value show the text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Substituted {
    pub value: String,
    pub written: String,
}

/// Puts the variables into every scalar of the tree. Scalars that could not be completed are added to `bad`.
pub(super) fn substitute(
    tree: &mut Tree,
    environment: &Environment,
    bad: &mut HashSet<NodeId>,
) -> (Vec<Substituted>, Vec<Problem>) {
    let (mut values, mut problems) = (Vec::new(), Vec::new());
    for (id, span, scalar) in tree.scalars_mut().filter(|(_, _, scalar)| scalar.text.contains('$')) {
        match expand(&scalar.text, environment, &mut values) {
            Ok(None) => {}
            Ok(Some(text)) => scalar.written = Some(std::mem::replace(&mut scalar.text, text)),
            Err((message, hint)) => {
                bad.insert(id);
                problems.push(Problem::error(Some(span.clone()), message).with_hint(hint));
            }
        }
    }
    (values, problems)
}

/// What is wrong and what to write instead.
type Refusal = (String, Option<String>);

/// The text with its variables put in; `None` when it has none.
fn expand(text: &str, environment: &Environment, values: &mut Vec<Substituted>) -> Result<Option<String>, Refusal> {
    let (mut out, mut rest, mut changed) = (String::with_capacity(text.len()), text, false);
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        if let Some(left) = after.strip_prefix('$') {
            (rest, changed) = (left, true);
            out.push('$');
        } else if let Some(inside) = after.strip_prefix('{') {
            let end = inside.find('}').ok_or_else(|| {
                let hint = "write `${NAME}`, or `$$` for a dollar sign".to_string();
                ("a variable is opened with `${` and never closed with `}`".to_string(), Some(hint))
            })?;
            let (value, secret) = lookup(&inside[..end], environment)?;
            if secret && !value.is_empty() {
                values.push(Substituted { value: value.clone(), written: format!("${{{}}}", &inside[..end]) });
            }
            out.push_str(&value);
            (rest, changed) = (&inside[end + 1..], true);
        } else {
            // A dollar sign by itself, as in a regular expression, means itself.
            out.push('$');
            rest = after;
        }
    }
    out.push_str(rest);
    Ok(changed.then_some(out))
}

/// The value of what stands between the braces, and whether it came from outside the file.
fn lookup(inside: &str, environment: &Environment) -> Result<(String, bool), Refusal> {
    if let Some(path) = inside.strip_prefix("file:") {
        let full = environment.folder.join(path);
        let text = std::fs::read_to_string(&full).map_err(|error| {
            let hint =
                "`${file:path}` is the content of a file, its path relative to the topology's folder".to_string();
            (format!("cannot read the file `{path}`: {error}"), Some(hint))
        })?;
        return Ok((text.trim_end_matches(['\n', '\r']).to_string(), true));
    }
    let (name, default) = match inside.split_once(':') {
        Some((name, default)) => (name, Some(default)),
        None => (inside, None),
    };
    let mut letters = name.chars();
    let starts_well = letters.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_');
    if !starts_well || !letters.all(|c| c.is_ascii_alphanumeric() || c == '_') {
        let hint = "write `${NAME}` or `${NAME:default}`; for the characters `${` themselves write `$${`".to_string();
        return Err((format!("`${{{inside}}}` is not a variable"), Some(hint)));
    }
    if let Some(value) = (environment.variable)(name) {
        return Ok((value, true));
    }
    match default {
        Some(default) if default.starts_with('-') => {
            let hint = format!("write `${{{name}:{}}}`", &default[1..]);
            Err((format!("the default of `{name}` is written with `:` alone, without `-`"), Some(hint)))
        }
        Some(default) => Ok((default.to_string(), false)),
        None => {
            let hint = format!("set it, or give a default: `${{{name}:value}}`");
            Err((format!("the variable `{name}` is not set"), Some(hint)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> Result<Option<String>, String> {
        let variable = |name: &str| (name == "HOST").then(|| "example".to_string());
        let environment = Environment { variable: &variable, folder: Path::new("/nowhere") };
        expand(text, &environment, &mut Vec::new()).map_err(|(message, _)| message)
    }

    #[test]
    fn variables_defaults_and_dollar_signs() {
        for (text, value) in [
            ("${HOST}:9092", Some("example:9092")),
            ("${PORT:9092}", Some("9092")),
            ("${HOST:other}", Some("example")),
            ("${PORT:}", Some("")),
            ("$${HOST}", Some("${HOST}")),
            ("^a$", None),
            ("a: ${PORT:a:b}", Some("a: a:b")),
        ] {
            assert_eq!(check(text), Ok(value.map(str::to_string)), "{text}");
        }
    }

    #[test]
    fn what_cannot_be_filled_in_is_refused() {
        for text in ["${PORT}", "${HOST", "${}", "${a b}", "${file:secret}", "${PORT:-1}"] {
            assert!(check(text).is_err(), "{text}");
        }
    }
}
