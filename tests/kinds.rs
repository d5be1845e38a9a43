//! What holds for every kind in every list.

use std::collections::BTreeSet;

use millstream::cli::families;

#[test]
fn every_kind_is_documented_and_its_example_parses() {
    let mut wrong = Vec::new();
    for kind in families().iter().flat_map(|family| &family.kinds) {
        let info = &kind.info;
        let text = format!("{}: {}", info.name, info.example);
        let parsed = match info.family {
            "source" => serde_saphyr::from_str::<millstream::sources::SourceKind>(&text).map(drop),
            "format" => serde_saphyr::from_str::<millstream_operators::decode::FormatKind>(&text).map(drop),
            "detector" => serde_saphyr::from_str::<millstream_operators::drift::DetectorKind>(&text).map(drop),
            "sink" => serde_saphyr::from_str::<millstream::sinks::SinkKind>(&text).map(drop),
            "offline store" => serde_saphyr::from_str::<millstream::offline::TableKind>(&text).map(drop),
            other => panic!("the family `{other}` is not tested here"),
        };
        wrong.extend(parsed.err().map(|error| format!("{} {}: {error}", info.family, info.name)));
        let fields = kind.settings["properties"].as_object().into_iter().flatten();
        let undocumented = fields.filter(|(_, field)| field["description"].as_str().unwrap_or_default().is_empty());
        wrong.extend(
            undocumented.map(|(name, _)| format!("{} {}: `{name}` has no documentation", info.family, info.name)),
        );
        if kind.settings["description"].as_str().unwrap_or_default().is_empty() {
            wrong.push(format!("{} {} has no documentation", info.family, info.name));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn names_are_unique_within_a_family() {
    for family in families() {
        let names: BTreeSet<_> = family.kinds.iter().map(|kind| kind.info.name).collect();
        assert_eq!(names.len(), family.kinds.len(), "{}", family.name);
    }
}
