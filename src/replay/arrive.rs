//! Bounded inputs in a live run: a small reference file beside topics is read once, at the start, on arrival.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{SystemTime, UNIX_EPOCH};

use millstream_operators::Row;

use super::{ReplaySource, open, stopped};
use crate::sources::{Arrival, Closed, Connection, SourceError, Start};

/// Reads the inputs of `source` one after the other, in the order they stand in the files, and hands their rows to the
/// ports of `start`, decoded, without a word about time. Positions are offsets, as of any live source. Only the ports, the
/// partitions, the stop, the end and the status of `start` are used.
///
/// # Errors
/// If a file can't be opened.
pub fn read_on_arrival(
    mut source: ReplaySource,
    start: Start,
) -> Result<JoinHandle<Result<(), SourceError>>, SourceError> {
    source.order = super::InputOrder::Sorted;
    let opened = open(&source, &start.partitions)?;
    let name = source.name.clone();
    let read = move || {
        start.status.set_connection(Connection::Reading);
        let mut result = Ok(());
        for mut input in opened {
            match hand_over(&mut source, &mut input, &start) {
                Ok(Ok(())) => {}
                Ok(Err(Closed)) => break,
                Err(error) => {
                    result = Err(error);
                    break;
                }
            }
        }
        if result.is_ok() {
            for port in &start.ports {
                if port.send(Arrival::End).is_err() {
                    break;
                }
            }
        }
        start.status.set_connection(Connection::Ended);
        result
    };
    let thread = std::thread::Builder::new().name(format!("source {name}")).spawn(read);
    thread.map_err(|error| SourceError::File {
        name: name.to_string(),
        path: "thread".into(),
        detail: error.to_string(),
    })
}

fn hand_over(
    source: &mut ReplaySource,
    input: &mut super::Opened,
    start: &Start,
) -> Result<Result<(), Closed>, SourceError> {
    let port = &start.ports[input.partition as usize % start.ports.len()];
    let until = start.until.as_ref().map(|until| until.0.get(&(input.name.to_string(), 0)).copied().unwrap_or(0));
    let is_wanted = |row: &Row| until.is_none_or(|until| row.offset < until);
    if until.is_some_and(|until| input.position >= until) {
        return Ok(Ok(()));
    }
    if port.send(Arrival::Position { partition: input.partition, offset: input.position }).is_err() {
        return Ok(Err(Closed));
    }
    while !stopped(&start.stop) {
        let Some(chunk) = input.next_chunk()? else { break };
        let mut rejects = Vec::new();
        let batch = (source.decode)(chunk, &mut rejects).map_err(|detail| SourceError::File {
            name: source.name.to_string(),
            path: input.name.to_string(),
            detail,
        })?;
        let mut batch = batch.unwrap_or_else(super::gather::nothing);
        // Both stand in the order of the file.
        let wanted = batch.rows.partition_point(is_wanted);
        let found = (batch.len(), rejects.len());
        rejects.retain(|reject| is_wanted(&reject.row));
        let is_all = (wanted, rejects.len()) == found;
        if wanted < batch.len() {
            batch = batch.slice(0, wanted);
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros() as i64;
        for row in Arc::make_mut(&mut batch.rows) {
            row.arrived_micros = now;
        }
        for reject in &mut rejects {
            reject.row.arrived_micros = now;
        }
        if port.send(Arrival::Records(batch, rejects)).is_err() {
            return Ok(Err(Closed));
        }
        if !is_all {
            break;
        }
    }
    Ok(Ok(()))
}
