//! Sources: their columns, ranges and event time.

use millstream_operators::decode::FormatKind;
use millstream_operators::decode::{Decoder, DecoderConfig};
use millstream_operators::error::ConfigError;
use millstream_operators::validate::EventTimeRule;

use super::lineage::Lineage;
use super::planner::Planner;
use super::{Node, SourcePlan};
use crate::topology::{Source, ahead_max};

impl<'t> Planner<'t> {
    /// Plans a source.
    pub(super) fn source(&mut self, name: &'t str) -> Option<()> {
        let source = &self.topology.sources[name];
        let at = format!("sources.{name}");
        let index = self.topology.sources.get_index_of(name)?;
        let Ok(index) = u16::try_from(index) else {
            self.refuse([ConfigError::new(at, "there are more sources than a topology can have (65536)")]);
            return None;
        };
        let errors = source.from.settings().errors();
        self.refuse(errors.into_iter().map(|error| error.under(&format!("{at}.from.{}", source.from.kind_name()))));
        if source.history.as_ref().is_some_and(|history| history.files.is_empty()) {
            self.refuse([ConfigError::new(format!("{at}.history.files"), "the history names no files")]);
        }
        if source.message_size_max.0 == 0 {
            let message = "a largest message of 0 bytes rejects every event";
            self.refuse([ConfigError::new(format!("{at}.message_size_max"), message)]);
        }
        let decoder = match Decoder::new(decoder_config(name, source)) {
            Ok(decoder) => decoder,
            Err(errors) => {
                self.refuse(errors.into_iter().map(|error| error.under(&at)));
                return None;
            }
        };
        let schema = decoder.schema().clone();
        let plan = SourcePlan {
            index,
            kind: source.from.clone(),
            decoder,
            event_time: source.event_time.clone(),
            message_size_max: size(source),
            delimiter: delimiter(source),
            history: source.history.clone(),
            until: None,
        };
        self.add(name, schema, Node::Source(Box::new(plan)), Lineage::source(name, source));
        Some(())
    }
}

fn delimiter(source: &Source) -> u8 {
    match &source.format {
        FormatKind::Csv(csv) => u8::try_from(csv.delimiter).unwrap_or(b','),
        FormatKind::Json(_) => b',',
    }
}

fn size(source: &Source) -> usize {
    usize::try_from(source.message_size_max.0).unwrap_or(usize::MAX)
}

fn decoder_config(name: &str, source: &Source) -> DecoderConfig {
    let event_time =
        source.event_time.as_ref().map(|time| EventTimeRule { column: time.column.clone(), unit: time.unit });
    let ahead_max = source.event_time.as_ref().map_or_else(ahead_max, |time| time.ahead_max);
    DecoderConfig {
        stage: name.into(),
        format: source.format.clone(),
        columns: source.schema.clone(),
        ranges: source.ranges.clone(),
        checks: source.checks.clone(),
        event_time,
        // One bad stamp must not close every window, whoever has made it.
        ahead_max_millis: Some(ahead_max.0),
        message_size_max: size(source),
        // Any later node may still reject the event, and its original bytes belong to the reject.
        keep_raw: true,
    }
}
