//! Routing: each row to the worker that owns its key group.
//!
//! With one worker nothing is copied. With more, a batch is split once by `take`, and the parts travel as parcels. A
//! parcel crosses a process border as Arrow IPC.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use millstream_operators::batch::{Batch, Row};
use millstream_operators::key::{self, KeyColumns};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};
use timely::container::CapacityContainerBuilder;
use timely::dataflow::StreamVec;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::generic::operator::Operator;

use super::shared::Gates;
use crate::cluster::message::Bytes;

/// A batch on an edge, with the worker it is for.
#[derive(Debug, Clone)]
pub struct Parcel {
    /// Index of the worker; only an edge that is routed looks at it.
    pub worker: u64,
    /// The rows.
    pub batch: Batch,
}

/// An edge of the dataflow.
pub type Edge<'scope> = StreamVec<'scope, u64, Parcel>;

/// How an input's rows find their worker.
#[derive(Debug, Clone)]
pub enum Routing {
    /// They stay where they are.
    Stay,
    /// To the owner of their key's group; a row without a key goes to worker 0.
    ByKey(KeyColumns),
    /// All to one worker: to worker 0 for outputs that have one writer, to one of the coordinator's for lanes.
    To(usize),
}

/// Splits the batches of an edge by worker, and counts the rows that are under way until the receiver takes them off
/// [`Gates::rows_in_flight`].
pub fn route<'scope>(edge: Edge<'scope>, routing: Routing, workers: usize, gates: Arc<Gates>) -> Edge<'scope> {
    edge.unary::<CapacityContainerBuilder<Vec<Parcel>>, _, _, _>(Pipeline, "route", move |_, _| {
        let mut rows: Vec<Vec<u32>> = vec![Vec::new(); workers];
        move |input, output| {
            input.for_each(|capability, parcels| {
                let leaving: usize = parcels.iter().map(|parcel| parcel.batch.len()).sum();
                gates.rows_in_flight.fetch_add(leaving as i64, Ordering::Relaxed);
                let mut session = output.session(&capability);
                for parcel in parcels.drain(..) {
                    match &routing {
                        Routing::ByKey(keys) => split(keys, parcel.batch, &mut rows, |parcel| session.give(parcel)),
                        Routing::To(worker) => session.give(Parcel { worker: *worker as u64, batch: parcel.batch }),
                        Routing::Stay => session.give(parcel),
                    }
                }
            })
        }
    })
}

/// Gives the part of each worker, in worker order; `rows` is scratch, empty before and after.
fn split(keys: &KeyColumns, batch: Batch, rows: &mut [Vec<u32>], mut give: impl FnMut(Parcel)) {
    let workers = rows.len();
    keys.for_each(&batch, |row, key| {
        let worker = key.map_or(0, |key| key::worker_of(key::key_group(key::hash(key)), workers));
        rows[worker].push(row as u32);
    });
    for (worker, indices) in rows.iter_mut().enumerate() {
        if indices.len() == batch.len() {
            give(Parcel { worker: worker as u64, batch: batch.clone() });
        } else if !indices.is_empty() {
            let part = batch.take(indices).expect("the indices are rows of this batch");
            give(Parcel { worker: worker as u64, batch: part });
        }
        indices.clear();
    }
}

#[derive(Serialize, Deserialize)]
struct Wire {
    worker: u64,
    rows: Vec<Row>,
    records: Bytes,
    raw: Option<Vec<Option<Bytes>>>,
}

impl Serialize for Parcel {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut records = Vec::new();
        let written = StreamWriter::try_new(&mut records, &self.batch.records.schema())
            .and_then(|mut writer| writer.write(&self.batch.records).and_then(|()| writer.finish()));
        written.map_err(ser::Error::custom)?;
        let raw = self
            .batch
            .raw
            .as_ref()
            .map(|raw| raw.iter().map(|bytes| bytes.map(|bytes| Bytes(bytes.to_vec()))).collect());
        Wire { worker: self.worker, rows: self.batch.rows.to_vec(), records: Bytes(records), raw }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Parcel {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let wire = Wire::deserialize(deserializer)?;
        let mut reader = StreamReader::try_new(wire.records.0.as_slice(), None).map_err(de::Error::custom)?;
        let records = reader.next().ok_or_else(|| de::Error::custom("a parcel without records"))?;
        let mut batch = Batch::new(records.map_err(de::Error::custom)?, wire.rows);
        batch.raw =
            wire.raw.map(|raw| raw.iter().map(|bytes| bytes.as_ref().map(|bytes| bytes.0.as_slice())).collect());
        Ok(Parcel { worker: wire.worker, batch })
    }
}
