//! What the runtime asks of a plan.

use std::path::{Path, PathBuf};

use super::{From, Node, Plan, SinkPlan, SourcePlan};
use crate::provenance::ModelInfo;
use crate::replay::{Input, InputOrder, ReplaySource, decoding};
use crate::sources::file::find_files;
use crate::sources::{Connector, Positions, SourceError, SourceKind};

impl Plan {
    /// The model that made a stream's rows, if one did.
    pub fn model_info(&self, stream: usize) -> Option<ModelInfo> {
        let model = &self.models[self.streams[stream].model?];
        Some(ModelInfo { name: model.name.as_str().into(), version: model.version.as_str().into() })
    }

    /// The names of the streams that models make.
    pub fn predictions(&self) -> Vec<&str> {
        let scores = self.streams.iter().filter(|stream| matches!(stream.node, Node::Score { .. }));
        scores.map(|stream| stream.name.as_str()).collect()
    }

    /// The sinks that predictions go to.
    pub fn prediction_sinks(&self) -> impl Iterator<Item = &SinkPlan> {
        self.sinks
            .iter()
            .filter(|sink| matches!(sink.from, From::Stream(stream) if self.streams[stream].model.is_some()))
    }

    /// The file of the first sink that writes predictions to a file.
    pub fn predictions_file(&self) -> Option<PathBuf> {
        self.prediction_sinks().find_map(|sink| Some(self.folder.join(sink.kind.settings().file()?)))
    }
}

impl SourcePlan {
    /// The source as a bounded run reads it: its own files or messages, or its history.
    ///
    /// # Errors
    /// If the source has no history, or its files are not there.
    pub fn bounded(&self, name: &str, folder: &Path, positions: Positions) -> Result<ReplaySource, SourceError> {
        let refuse =
            |detail: &str| SourceError::File { name: name.into(), path: "history".into(), detail: detail.into() };
        let (input, sorted) = match (&self.kind, &self.history) {
            (_, Some(history)) => {
                (Input::Files(find_files(name, folder, std::slice::from_ref(&history.files))?), history.sorted)
            }
            (SourceKind::File(file), None) => (Input::Files(find_files(name, folder, &file.paths)?), file.sorted),
            (SourceKind::Memory(memory), None) => (Input::Messages(memory.messages.clone()), false),
            (SourceKind::Kafka(_), None) => return Err(SourceError::NoHistory { name: name.into() }),
        };
        let decode = decoding(&self.decoder).map_err(|detail| refuse(&detail.to_string()))?;
        let order = if sorted || self.event_time.is_none() { InputOrder::Sorted } else { InputOrder::Unsorted };
        let stream = match self.kind.settings().topics() {
            Some([topic]) => topic.as_str(),
            _ => name,
        };
        Ok(ReplaySource {
            name: name.into(),
            stream: stream.into(),
            source: self.index,
            input,
            order,
            decode,
            message_size_max: self.message_size_max,
            delimiter: self.delimiter,
            positions,
        })
    }

    /// The connector of a live source; `None` for bounded ones.
    pub fn connector(&self) -> Option<&dyn Connector> {
        self.kind.settings().connector()
    }
}
