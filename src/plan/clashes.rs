//! Outputs that would write to one place: a table would get the rows of two streams, and a file has one writer.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use millstream_operators::error::ConfigError;

use super::planner::Planner;
use crate::offline::TableKind;
use crate::topology::Topology;

/// Refuses each output whose path is that of an earlier one. Paths are compared as they are written, `.` and `..` resolved:
/// links are not followed.
pub(super) fn refuse(planner: &mut Planner<'_>) {
    let folder = std::path::absolute(planner.folder).unwrap_or_else(|_| planner.folder.to_path_buf());
    let mut first: BTreeMap<PathBuf, String> = BTreeMap::new();
    for (node, at, path) in written(planner.topology) {
        let whole = normalised(&folder.join(path));
        match first.get(&whole) {
            Some(other) => {
                let message = format!("`{other}` writes to `{path}` already");
                let hint = Some("give each output a path of its own".to_string());
                planner.refuse([ConfigError::new(format!("{node}.{at}"), message).with_hint(hint)]);
            }
            None => {
                first.insert(whole, node);
            }
        }
    }
}

/// What writes to a folder or a file: its section and name, where its path stands within, and the path. A path that is
/// missing has its own error.
fn written(topology: &Topology) -> impl Iterator<Item = (String, &'static str, &str)> {
    let files = topology.sinks.iter();
    let files =
        files.filter_map(|(name, sink)| Some((format!("sinks.{name}"), "to.file.path", sink.to.settings().file()?)));
    let tables = topology.offline.iter().map(|(name, table)| {
        let TableKind::Delta(delta) = &table.table;
        (format!("offline.{name}"), "table.delta.path", delta.path.as_str())
    });
    files.chain(tables).filter(|(_, _, path)| !path.is_empty())
}

/// The absolute path without `.` and `..`.
fn normalised(path: &Path) -> PathBuf {
    path.components().fold(PathBuf::new(), |mut whole, part| {
        match part {
            Component::CurDir => {}
            Component::ParentDir => {
                whole.pop();
            }
            part => whole.push(part),
        }
        whole
    })
}
