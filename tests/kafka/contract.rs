//! The contract of sources (`tests/kinds/sources.rs`) for those that need a broker.

use millstream::sources::SourceKind;
use millstream::sources::kafka::KafkaSource;

use super::{brokers, create, unique, write};
use crate::kinds::sources::{World, check, kinds, record, worlds};

/// Topics of two partitions, one for each source.
pub struct Topics;

impl Topics {
    fn source(partitions: i32, records: &[(i32, Vec<u8>)]) -> SourceKind {
        let (brokers, topic) = (brokers(), unique("contract"));
        create(&brokers, &topic, partitions, &[]);
        write(&brokers, &topic, records.iter().map(|(partition, record)| (*partition, record.as_slice())));
        SourceKind::Kafka(KafkaSource::new(&brokers, [topic.as_str()]))
    }
}

impl World for Topics {
    fn name(&self) -> String {
        "a topic".into()
    }
    fn numbers(&self, count: i64) -> SourceKind {
        let records: Vec<_> = (0..count).map(|number| ((number % 2) as i32, record(number).into_bytes())).collect();
        Topics::source(2, &records)
    }
    fn with_bytes(&self, bytes: &[u8]) -> Option<SourceKind> {
        let records = [record(0).into_bytes(), bytes.to_vec(), record(1).into_bytes()];
        Some(Topics::source(1, &records.map(|record| (0, record))))
    }
    fn absent(&self) -> Option<(SourceKind, String)> {
        let topic = unique("absent");
        Some((SourceKind::Kafka(KafkaSource::new(&brokers(), [topic.as_str()])), topic))
    }
}

#[test]
fn every_live_source_keeps_its_contract() {
    let kinds: Vec<_> = kinds(true).collect();
    assert!(!kinds.is_empty());
    kinds.into_iter().flat_map(worlds).for_each(|world| check(&*world));
}
