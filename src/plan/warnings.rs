//! What can run and is probably not meant.

use millstream_operators::error::ConfigError;

use super::planner::Planner;
use crate::sinks::SinkKind;
use crate::sinks::kafka::Delivery;
use crate::sources::SourceKind;
use crate::topology::Topology;

/// Adds a warning for every node whose work nobody sees, and for rejects that nobody keeps.
pub(super) fn warn(planner: &mut Planner) {
    let topology = planner.topology;
    let prepared = topology.prepare.values().map(|prepare| &prepare.from);
    let grouped = topology.features.values().map(|group| &group.from);
    let spines = topology.vectors.values().map(|vector| &vector.spine);
    let joined = topology.vectors.values().flat_map(|vector| vector.join.iter().map(|join| &join.features));
    let scored = topology.models.values().map(|model| &model.from);
    let watched = topology.drift.values().map(|detector| &detector.from);
    let judged = topology.outcomes.values().flat_map(|outcome| [&outcome.model, &outcome.label]);
    let written = topology.sinks.values().map(|sink| &sink.from);
    let kept = topology.offline.values().map(|table| &table.from);
    let read = prepared.chain(grouped).chain(spines).chain(joined).chain(scored).chain(watched).chain(judged);
    let read: Vec<&String> = read.chain(written).chain(kept).collect();
    let unread = |name: &str| !read.iter().any(|reference| *reference == name);

    let mut found = Vec::new();
    let mut warn = |path: String, message: String, hint: &str| {
        found.push(ConfigError::new(path, message).with_hint(Some(hint.to_string())));
    };
    for name in topology.sources.keys().filter(|name| unread(name)) {
        warn(format!("sources.{name}"), format!("nothing reads the source `{name}`"), "remove it, or read it");
    }
    for name in topology.prepare.keys().filter(|name| unread(name)) {
        warn(format!("prepare.{name}"), format!("nothing reads the stream `{name}`"), "remove it, or read it");
    }
    for (name, group) in topology.features.iter().filter(|(name, group)| unread(name) && !group.online) {
        let message =
            format!("nothing reads the feature group `{name}`, and `online: false` hides it from readers outside");
        warn(format!("features.{name}"), message, &format!("join it in a vector of `{}`, or serve it", group.from));
    }
    for name in topology.vectors.keys().filter(|name| unread(name)) {
        let hint = "score it with a model, or write it with a sink or an offline table";
        warn(format!("vectors.{name}"), format!("nothing reads the vector `{name}`"), hint);
    }
    for name in topology.models.keys().filter(|name| unread(name)) {
        let hint = "add a sink with `from` set to it";
        warn(format!("models.{name}"), format!("nothing takes the predictions of `{name}`"), hint);
    }
    let dead_letters = topology.sinks.values().any(|sink| sink.from == "rejects");
    if !dead_letters && !topology.sources.is_empty() {
        let hint = "add a sink with `from: rejects`; without one, rejected events are counted and dropped";
        warn("sinks".to_string(), "no sink takes the rejects".to_string(), hint);
    }
    let signals = topology.sinks.values().any(|sink| sink.from == "drift");
    if !signals && !topology.drift.is_empty() {
        let hint = "add a sink with `from: drift`; the metrics show drift in any case";
        warn("drift".to_string(), "no sink takes the drift signals".to_string(), hint);
    }
    let (epoch, state_timeout) = (topology.engine.epoch, topology.engine.state_timeout);
    for (name, sink) in &topology.sinks {
        let SinkKind::Kafka(kafka) = &sink.to else { continue };
        let timeout = kafka.transaction_timeout;
        if kafka.delivery == Delivery::ExactlyOnce && timeout.0 <= epoch.0.saturating_add(state_timeout.0) {
            let message = format!(
                "transactions end after {timeout}, and the job with them, but an epoch of {epoch} would wait for a full disk \
                 for {state_timeout}"
            );
            let path = format!("sinks.{name}.to.kafka.transaction_timeout");
            warn(path, message, "make it longer than `engine.epoch` and `engine.state_timeout` together");
        }
    }
    found.extend(loops(topology));
    planner.warnings.extend(found);
}

/// A warning for each sink that writes to a topic which the job reads.
fn loops(topology: &Topology) -> Vec<ConfigError> {
    let mut found = Vec::new();
    for (name, sink) in &topology.sinks {
        let SinkKind::Kafka(to) = &sink.to else { continue };
        for (source, read) in &topology.sources {
            let SourceKind::Kafka(from) = &read.from else { continue };
            if from.topics.contains(&to.topic) && share_a_broker(&from.brokers, &to.brokers) {
                let path = format!("sinks.{name}.to.kafka.topic");
                let message =
                    format!("the source `{source}` reads `{}`: what the job writes comes back as input", to.topic);
                let hint = "write to another topic; in a loop the job never comes to the end of its input";
                found.push(ConfigError::new(path, message).with_hint(Some(hint.to_string())));
            }
        }
    }
    found
}

/// Whether two lists of brokers name one in common.
fn share_a_broker(one: &str, other: &str) -> bool {
    let brokers = |list: &'_ str| list.split(',').map(|broker| broker.trim().to_lowercase()).collect::<Vec<_>>();
    let others = brokers(other);
    brokers(one).iter().any(|broker| !broker.is_empty() && others.contains(broker))
}
