//! Wrong topologies and what is said about them. A case is a file `errors/<case>.yaml`, and `errors/<case>.expected` the
//! text that a user sees; adding a case is adding a file.

use std::path::Path;

use millstream::plan::Plan;
use millstream::topology::file::File;
use millstream::topology::problem::Style;
use millstream::topology::variables::Environment;

use crate::check_golden;

/// What `millstream check` prints about the file.
fn found(folder: &Path, name: &str) -> String {
    let variable = |name: &str| (name == "SECRET").then(|| "hunter2".to_string());
    let bytes = std::fs::read(folder.join(name)).expect("the case can be read");
    let file = File::parse(name, bytes, &Environment { variable: &variable, folder });
    let (errors, warnings) = match file.topology.as_ref().map(|t| Plan::around(t, folder, &file.doubtful)) {
        Some(Ok(plan)) => (Vec::new(), plan.warnings),
        Some(Err(errors)) => (errors, Vec::new()),
        None => (Vec::new(), Vec::new()),
    };
    let text = file.report(&errors, &warnings).render(Style::Plain);
    // Paths of this machine are no part of what is expected.
    text.replace(&format!("{}/", folder.display()), "")
}

#[test]
fn wrong_topologies_are_explained() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/errors");
    let mut cases: Vec<_> = std::fs::read_dir(&folder)
        .expect("the folder of cases is there")
        .map(|entry| entry.expect("a case can be listed").file_name().into_string().expect("its name is text"))
        .filter(|name| name.ends_with(".yaml"))
        .collect();
    cases.sort();
    assert!(cases.len() >= 25, "only {} cases", cases.len());
    let check = |name: &String| {
        let text = found(&folder, name);
        assert!(!text.contains("hunter2"), "{name} shows a secret:\n{text}");
        assert!(!text.trim().is_empty(), "{name}: nothing is found to be wrong");
        check_golden(&folder.join(name.replace(".yaml", ".expected")), &text).err()
    };
    let differing: Vec<String> = cases.iter().filter_map(check).collect();
    assert!(differing.is_empty(), "{}", differing.join("\n\n"));
}
