//! What a node counts: records in and out, rejects, drops.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use millstream_operators::operator::Outputs;

/// Totals of a job, by node: what the closing summary and the conservation check read.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct NodeTotals {
    /// Records taken.
    pub records_in: u64,
    /// Records given, by output port.
    pub records_out: BTreeMap<usize, u64>,
    /// Rejects, by reason.
    pub rejects: BTreeMap<&'static str, u64>,
    /// Records dropped by a filter.
    pub filtered: u64,
    /// Records dropped because they were late.
    pub late: u64,
}

/// Totals by node's name, of all workers.
pub type Totals = Arc<Mutex<BTreeMap<Arc<str>, NodeTotals>>>;

/// One worker's meter of one node.
#[derive(Debug)]
pub struct NodeMeter {
    name: Arc<str>,
    totals: NodeTotals,
}

impl NodeMeter {
    /// A meter that starts at zero.
    pub fn new(name: &Arc<str>) -> Self {
        NodeMeter { name: name.clone(), totals: NodeTotals::default() }
    }
    /// Counts records taken.
    pub fn records_in(&mut self, records: usize) {
        self.totals.records_in += records as u64;
    }
    /// Counts records given on a port.
    pub fn records_out(&mut self, port: usize, records: usize) {
        *self.totals.records_out.entry(port).or_default() += records as u64;
    }
    /// Counts what was rejected and dropped.
    pub fn dropped(&mut self, given: &Outputs) {
        for reject in &given.rejects {
            *self.totals.rejects.entry(reject.reason.as_str()).or_default() += 1;
        }
        self.totals.filtered += given.filtered;
        self.totals.late += given.late;
    }
    /// Reports the size of the node's state: keys and bytes.
    pub fn state(&mut self, _size: (u64, u64)) {
        let _ = &self.name;
    }
}
