//! Records kept in the process: for tests.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};

use millstream_operators::kinds::Kind;

use super::{Open, Records, SinkError, SinkTarget, SinkWriter};

/// Records kept in the process under a name: for tests of a program that embeds Millstream.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MemorySink {
    /// The name under which the records are found.
    pub name: String,
}

impl Kind for MemorySink {
    const EXAMPLE: &'static str = "{ name: predictions }";
}

/// A record that a memory sink was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryRecord {
    /// The epoch it went out in.
    pub epoch: u64,
    /// The key; `None` when the sink has no key.
    pub key: Option<Vec<u8>>,
    /// The value.
    pub value: Vec<u8>,
    /// The headers by name.
    pub headers: Vec<(Cow<'static, str>, Vec<u8>)>,
    /// When the event happened, in milliseconds since 1970.
    pub event_time: i64,
}

static RECORDS: Mutex<BTreeMap<String, Vec<MemoryRecord>>> = Mutex::new(BTreeMap::new());

fn all() -> MutexGuard<'static, BTreeMap<String, Vec<MemoryRecord>>> {
    RECORDS.lock().expect("no thread panics while it holds the records")
}

/// What the memory sinks of this name were given in this process, in order; empties the sink. A sink that no job wrote is
/// empty.
pub fn take(name: &str) -> Vec<MemoryRecord> {
    all().remove(name).unwrap_or_default()
}

impl SinkTarget for MemorySink {
    /// A new job starts anew; a job that goes on cuts the records back to its checkpoint and appends.
    fn open(&self, open: Open) -> Result<Box<dyn SinkWriter>, SinkError> {
        let keep = open.position.filter(|_| open.resumed).unwrap_or(0);
        all().entry(self.name.clone()).or_default().truncate(keep as usize);
        Ok(Box::new(MemoryWriter { name: self.name.clone(), closed: None, written: keep, positions: Vec::new() }))
    }
}

struct MemoryWriter {
    name: String,
    closed: Option<u64>,
    written: u64,
    positions: Vec<(u64, u64)>,
}

impl SinkWriter for MemoryWriter {
    fn write(&mut self, epoch: u64, records: &Records, from: usize) -> Result<usize, SinkError> {
        let mut all = all();
        let kept = all.entry(self.name.clone()).or_default();
        for i in from..records.len() {
            let header = |(h, name): (usize, &Cow<'static, str>)| (name.clone(), records.header(i, h).to_vec());
            kept.push(MemoryRecord {
                epoch,
                key: records.key(i).map(<[u8]>::to_vec),
                value: records.value(i).to_vec(),
                headers: records.header_names.iter().enumerate().map(header).collect(),
                event_time: records.event_times.get(i).copied().unwrap_or_default(),
            });
        }
        self.written += (records.len() - from) as u64;
        Ok(records.len())
    }

    fn close_epoch(&mut self, epoch: u64) -> Result<(), SinkError> {
        self.closed = Some(epoch);
        self.positions.push((epoch, self.written));
        Ok(())
    }

    fn durable(&mut self) -> Result<Option<u64>, SinkError> {
        Ok(self.closed)
    }

    fn positions(&mut self) -> Vec<(u64, u64)> {
        std::mem::take(&mut self.positions)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_kept_and_cut_back() {
        let sink = MemorySink { name: "sinks::memory::tests".into() };
        let open = |position: Option<u64>| {
            let open = Open {
                name: "out".into(),
                job: "job".into(),
                worker: 0,
                workers: 1,
                folder: ".".into(),
                dead_letters: false,
                resumed: position.is_some(),
                position,
                commits: Default::default(),
                batch_bytes: Default::default(),
            };
            sink.open(open).unwrap()
        };
        let records = Records {
            values: b"ab".to_vec(),
            value_ends: vec![1, 2],
            header_names: vec!["epoch".into()],
            headers: b"77".to_vec(),
            header_ends: vec![1, 2],
            event_times: vec![5, 6],
            ..Records::default()
        };
        let mut writer = open(None);
        assert_eq!(writer.write(7, &records, 0).unwrap(), 2);
        writer.close_epoch(7).unwrap();
        assert_eq!(writer.durable().unwrap(), Some(7));
        assert_eq!(writer.positions(), [(7, 2)]);
        writer.write(8, &records, 1).unwrap();
        let mut writer = open(Some(2));
        writer.write(8, &records, 1).unwrap();
        let kept = take(&sink.name);
        let texts: Vec<_> = kept.iter().map(|record| (record.epoch, &record.value[..], record.event_time)).collect();
        assert_eq!(texts, [(7, b"a".as_slice(), 5), (7, b"b", 6), (8, b"b", 6)]);
        assert_eq!(kept[0].headers, [("epoch".into(), b"7".to_vec())]);
        assert_eq!(take(&sink.name), []);
    }
}
