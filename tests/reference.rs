//! The generated pages are those in the repository: a stale one fails, UPDATE=1 writes it anew.

use std::path::Path;

use crate::check_golden;

#[test]
fn the_reference_is_up_to_date() {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs");
    let pages =
        [("reference.md", millstream::cli::reference()), ("topology.schema.json", millstream::cli::schema_text())];
    let stale: Vec<String> =
        pages.iter().filter_map(|(name, text)| check_golden(&docs.join(name), text).err()).collect();
    assert!(stale.is_empty(), "{}", stale.join("\n\n"));
}
