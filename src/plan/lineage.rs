//! Where a stream's rows and columns come from, as digests: equal digests, equal rows and values.
//!
//! A node is defined by what it reads, up to the sources: a sum over rows that another `where` let through is another sum,
//! and to go on with it would serve features that no replay of the file could make. But only by what it *reads*: a column
//! that a source or a preparation has more of, and that the node does not use, is nothing to it. So the rows have one
//! digest (which there are: the source, conditions, ranges, checks), and each column has its own (how its value is made).
//!
//! What only says how events arrive is in neither: formats, topics and brokers, how late an event may be, how long a
//! silent partition is waited for, and which columns an event must have beside those that are used.

use millstream_operators::expressions::Expression;
use millstream_operators::prepare::Prepare;
use millstream_operators::units::Millis;
use serde::Serialize;

use super::planner::digest;
use crate::topology::{LatePolicy, Source};

/// Digests of a stream's rows and columns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lineage {
    /// Which rows there are, and when they happened.
    rows: String,
    /// Each column's name and how its value is made, in the order of the schema.
    columns: Vec<(String, String)>,
}

impl Lineage {
    /// Of the source `name`.
    pub(super) fn source(name: &str, source: &Source) -> Lineage {
        let time = source.event_time.as_ref().map(|time| {
            // Rows that come too late leave the stream by some policies, and by how late that is.
            let late = (time.late != LatePolicy::Keep).then_some((time.late, time.lateness));
            (&time.column, time.unit, late)
        });
        let columns = source.schema.iter().map(|(column, declared)| {
            let declared = format!("{:?}", declared.values);
            (column.clone(), digest(&name, &(column, declared)))
        });
        Lineage { rows: digest(&name, &(time, &source.ranges, &source.checks)), columns: columns.collect() }
    }

    /// Of a preparation's output, given the stream that it reads.
    pub(super) fn prepared(&self, operator: &Prepare) -> Lineage {
        let mut lineage = self.clone();
        let conditions: Vec<String> = operator.conditions().map(|condition| self.expression(condition)).collect();
        if !conditions.is_empty() {
            lineage.rows = digest(&self.rows, &conditions);
        }
        for (name, expression) in operator.derived() {
            let made = lineage.expression(expression);
            lineage.columns.push((name.to_string(), made));
        }
        if let Some(selected) = operator.selected() {
            lineage.columns = selected.iter().map(|at| lineage.columns[*at].clone()).collect();
        }
        lineage
    }

    /// Of the rows that go on when some are the same, by the columns at these places.
    pub(super) fn deduplicated(&self, at: &[usize], within: Millis) -> Lineage {
        Lineage { rows: digest(&(&self.rows, self.columns(at)), &("deduplicate", within)), ..self.clone() }
    }

    /// Of the same rows with more columns.
    pub(super) fn beside(&self, columns: impl IntoIterator<Item = (String, String)>) -> Lineage {
        Lineage { rows: self.rows.clone(), columns: self.columns.iter().cloned().chain(columns).collect() }
    }

    /// How the values of the columns at these places are made.
    pub(super) fn columns(&self, at: &[usize]) -> Vec<&str> {
        at.iter().map(|at| self.columns[*at].1.as_str()).collect()
    }

    /// How the value of an expression over the columns is made.
    pub(super) fn expression(&self, expression: &Expression) -> String {
        let used = self.columns.iter().filter(|(name, _)| expression.columns().contains(name));
        digest(&used.map(|(_, made)| made).collect::<Vec<_>>(), &expression.sql())
    }

    /// The digest of a node that reads all rows and the columns at these places.
    pub(super) fn node(&self, at: &[usize], definition: &impl Serialize) -> String {
        digest(&(&self.rows, self.columns(at)), definition)
    }
}
