//! The JSON Schema of topology files, by the validator that Python's tools use: what the engine takes, an editor must not
//! mark wrong, and what is misspelt it should.

use std::path::{Path, PathBuf};
use std::process::Command;

use millstream::cli::{families, schema_text};
use serde_json::{Value, json};

use super::program::{Running, root};

/// What files may hold that is in none of the repository's: variables for all sorts of values, kinds alone, numbers and
/// `true` where texts belong, nothing where something may be left out.
const UNUSUAL: &str = r#"
version: "${VERSION:1}"
name: unusual
sources:
  payments:
    from: { file: { paths: ["${DATA:data}/payments.jsonl"], sorted: "${SORTED:true}" } }
    format: json
    schema: { id: string, amount: "${TYPE:float64}", at: timestamp }
    event_time: { column: at, lateness: 0, late: "${LATE:keep}" }
    message_size_max: ${SIZE:64KiB}
    ranges: { amount: { min: "${LEAST:0}", max: 1e6 } }
features:
  all:
    from: payments
    key: [id]
    tiles: ${TILES:60}
    ttl: "${TTL:2d}"
    aggregates:
      - { of: 1, as: one, ops: ["${OP:count}", sum], windows: ["${WINDOW:1h}"] }
drift:
  amount: { from: payments, column: amount, detector: adwin }
sinks:
  out: { from: payments, to: stdout, select: { yes: true, one: 1 } }
  dead_letters: { from: rejects, to: stdout }
engine: { workers: "${WORKERS:2}", epoch: "${EPOCH:1s}" }
"#;

/// Cases of `errors/` that an editor can see without running anything.
const WRONG: &[&str] =
    &["missing_keys", "unknown_column_type", "unknown_key", "unknown_kind", "unknown_section", "wrong_types"];

fn value(text: &str) -> Value {
    serde_saphyr::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

fn file(path: &Path) -> Value {
    let value = value(&std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())));
    json!({ "name": path.strip_prefix(root()).unwrap_or(path), "at": "#", "value": value })
}

/// The topologies of the repository.
fn topologies() -> Vec<PathBuf> {
    let mut found = vec![root().join("tests/errors/warnings.yaml")];
    for folder in ["topologies", "tests/run"] {
        let entries = std::fs::read_dir(root().join(folder)).expect("a folder of topologies");
        let files = entries.map(|entry| entry.expect("an entry").path().join("topology.yaml"));
        found.extend(files.filter(|path| path.exists()));
    }
    assert!(found.len() > 5, "only {found:?}");
    found
}

/// What is wrong with each of the cases, by the validator: lines `name: message`.
fn refused(cases: &[Value]) -> Vec<String> {
    let folder = tempfile::tempdir().expect("a folder");
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).expect("a file");
        path
    };
    let schema = write("schema.json", &schema_text());
    let cases = write("cases.json", &serde_json::to_string(cases).expect("cases are JSON"));
    let run = |command: &mut Command| {
        let said = Running::start(command).end();
        assert!(said.status.success(), "{}{}", said.out, said.err);
        said.out
    };
    let requirements = root().join("tests/python/requirements.txt");
    let python = run(Command::new(root().join("deploy/python.sh")).arg(requirements));
    let script = root().join("tests/python/check_schema.py");
    run(Command::new(python.trim()).arg(script).arg(schema).arg(cases)).lines().map(str::to_owned).collect()
}

#[test]
fn what_the_engine_takes_the_schema_takes() {
    let mut cases: Vec<Value> = topologies().iter().map(|path| file(path)).collect();
    cases.push(json!({ "name": "unusual", "at": "#", "value": value(UNUSUAL) }));
    for family in families() {
        let at = match family.name {
            "source" => "SourceKind",
            "format" => "FormatKind",
            "detector" => "DetectorKind",
            "aggregate" => "Aggregate",
            "sink" => "SinkKind",
            _ => "TableKind",
        };
        for kind in family.kinds {
            let example = value(&kind.example);
            let name = format!("example of {} {}", family.name, kind.name);
            cases.push(json!({ "name": name, "at": format!("#/$defs/{at}"), "value": example }));
        }
    }
    let refused = refused(&cases);
    assert!(refused.is_empty(), "{}", refused.join("\n"));
}

#[test]
fn the_unusual_file_is_one_that_the_engine_takes() {
    let variable = |_: &str| None;
    let environment = millstream::topology::variables::Environment { variable: &variable, folder: root() };
    let file = millstream::topology::file::File::parse("unusual", UNUSUAL.as_bytes().to_vec(), &environment);
    assert!(file.topology.is_some() && file.is_whole(), "{}", file.report(&[], &[]));
}

#[test]
fn what_is_misspelt_the_schema_refuses() {
    let cases: Vec<Value> = WRONG.iter().map(|name| file(&root().join(format!("tests/errors/{name}.yaml")))).collect();
    let refused = refused(&cases);
    for name in WRONG {
        assert!(refused.iter().any(|line| line.contains(&format!("/{name}.yaml: "))), "{name} passes: {refused:?}");
    }
}

/// The blocks of a page in the language of topology files: the line where each begins, and its text.
fn blocks(page: &str) -> Vec<(usize, String)> {
    let mut blocks = Vec::new();
    let mut lines = page.lines().enumerate();
    while let Some((at, line)) = lines.next() {
        if line == "```yaml" {
            let text = lines.by_ref().map(|(_, line)| line).take_while(|line| *line != "```");
            blocks.push((at + 2, text.collect::<Vec<_>>().join("\n")));
        }
    }
    blocks
}

/// Pages show sections of topologies, or what goes on in the section of the block before.
#[test]
fn what_pages_show_the_schema_takes() {
    let mut cases = Vec::new();
    for page in ["README.md", "docs/topology.md", "docs/operations.md"] {
        let text = std::fs::read_to_string(root().join(page)).expect("a page");
        let mut section = String::new();
        for (line, block) in blocks(&text) {
            let shown = if block.starts_with(' ') { value(&format!("{section}:\n{block}")) } else { value(&block) };
            let mut whole = json!({ "version": 1, "name": "shown", "sources": {}, "sinks": {} });
            for (name, shown) in shown.as_object().expect("a block has sections") {
                section.clone_from(name);
                whole[name] = shown.clone();
            }
            cases.push(json!({ "name": format!("{page}:{line}"), "at": "#", "value": whole }));
        }
    }
    assert!(cases.len() > 12, "only {cases:?}");
    let refused = refused(&cases);
    assert!(refused.is_empty(), "{}", refused.join("\n"));
}
