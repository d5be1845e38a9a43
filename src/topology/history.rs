//! A topology on its history: the same nodes, fed by files instead of topics, writing files instead of topics.

use std::path::Path;

use super::{S3, Source, Topology};
use crate::offline::TableKind;
use crate::sinks::SinkKind;
use crate::sinks::file::FileSink;

impl Topology {
    /// True when every source ends: such a topology is run in event-time order, to its end.
    pub fn is_bounded(&self) -> bool {
        self.sources.values().all(|source| source.from.settings().connector().is_none())
    }

    /// The first source that can't be replayed: a topic whose history is not named.
    pub fn source_without_history(&self) -> Option<&str> {
        let goes_on = |source: &Source| source.from.settings().connector().is_some();
        let without = self.sources.iter().find(|(_, source)| goes_on(source) && source.history.is_none());
        without.map(|(name, _)| name.as_str())
    }

    /// The topology for a replay that writes below `out`: a Kafka sink `s` becomes the file `sinks/s.jsonl`, an offline
    /// table `t` the table `offline/t`, and the state lies in `state`.
    pub fn on_history(mut self, out: &Path) -> Topology {
        let below = |path: String| out.join(path).to_string_lossy().into_owned();
        for (name, sink) in &mut self.sinks {
            if matches!(sink.to, SinkKind::Kafka(_)) {
                sink.to = SinkKind::File(FileSink { path: below(format!("sinks/{name}.jsonl")) });
            }
        }
        for (name, table) in &mut self.offline {
            let TableKind::Delta(delta) = &mut table.table;
            delta.path = below(format!("offline/{name}"));
        }
        self.engine.state = below("state".into());
        self.engine.s3 = S3::default();
        self.engine.cluster = None;
        self
    }
}
