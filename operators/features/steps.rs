//! What happens to a key, step by step, as bytes: a checkpoint has the steps since the key's state was last written whole,
//! and a load takes them again. Updates and reads follow from nothing but the state, the frame, and what is in the step, so
//! the state is the same to the last bit.
//!
//! ```text
//! step:   flags u8 · time - newest event time · for an update: time - watermark · value of each measure · of each lookup
//! value:  number of bytes u8 · the first bytes of the f64, without zeros at the end
//! ```
//! Times are LEB128, as postcard writes them, and so are looked-up values.

use super::as_of::Scalar;
use super::entity::{Entity, Horizon};
use super::frame::Frame;
use super::summary::Measured;
use crate::batch::EventTime;

/// Moves the views to the time.
const READS: u8 = 1;
/// Takes values.
const UPDATES: u8 = 2;
/// There is no watermark yet.
const NO_WATERMARK: u8 = 4;

/// Appends a read at `time` of an entity whose newest event is at `newest`.
pub fn read(newest: EventTime, time: EventTime, to: &mut Vec<u8>) {
    to.push(READS);
    append(&time.wrapping_sub(newest), to);
}

/// Appends an update, which comes after a read at its own time if it `reads`.
pub fn update(newest: EventTime, reads: bool, event: &Update<'_>, to: &mut Vec<u8>) {
    let reads = if reads { READS } else { 0 };
    let known = event.watermark > EventTime::MIN;
    to.push(reads | UPDATES | if known { 0 } else { NO_WATERMARK });
    append(&event.time.wrapping_sub(newest), to);
    if known {
        append(&event.time.wrapping_sub(event.watermark), to);
    }
    for measured in event.values {
        let bytes = measured.value.to_bits().to_be_bytes();
        let length = 8 - measured.value.to_bits().trailing_zeros() as usize / 8;
        to.push(length as u8);
        to.extend_from_slice(&bytes[..length]);
    }
    event.looked_up.iter().for_each(|value| append(value, to));
}

/// What an update depends on.
pub struct Update<'a> {
    /// The time of the event.
    pub time: EventTime,
    /// The watermark that the key's horizon follows from.
    pub watermark: EventTime,
    /// The value of each measure.
    pub values: &'a [Measured],
    /// The value of each lookup.
    pub looked_up: &'a [Option<Scalar>],
}

fn append(value: &impl serde::Serialize, to: &mut Vec<u8>) {
    let taken = std::mem::take(to);
    *to = postcard::to_extend(value, taken).expect("numbers and texts serialize into memory");
}

/// Takes steps again.
///
/// # Errors
/// If the bytes are no steps of entities of this frame.
pub fn take(frame: &Frame, entity: &mut Entity, mut bytes: &[u8]) -> Result<(), String> {
    let mut horizon = Horizon::start(frame);
    let (mut values, mut looked_up) = (Vec::with_capacity(frame.measures.len()), Vec::new());
    while !bytes.is_empty() {
        let flags = bytes_of(&mut bytes, 1)?[0];
        if flags == 0 || flags > READS | UPDATES | NO_WATERMARK {
            return Err(format!("a step of kind {flags}, which is not known"));
        }
        let since_newest: i64 = value_of(&mut bytes)?;
        let time = entity.newest.wrapping_add(since_newest);
        if flags & READS != 0 {
            entity.read(frame, time);
        }
        if flags & UPDATES == 0 {
            continue;
        }
        if flags & NO_WATERMARK == 0 {
            let since_watermark: i64 = value_of(&mut bytes)?;
            horizon.advance(time.wrapping_sub(since_watermark), frame);
        }
        values.clear();
        for needs in &frame.measures {
            let length = usize::from(bytes_of(&mut bytes, 1)?[0]);
            let mut bits = [0; 8];
            let known = bits.get_mut(..length).ok_or("a value of more than eight bytes")?;
            known.copy_from_slice(bytes_of(&mut bytes, length)?);
            values.push(Measured::new(f64::from_bits(u64::from_be_bytes(bits)), *needs));
        }
        looked_up.clear();
        for _ in &frame.lookups {
            looked_up.push(value_of(&mut bytes)?);
        }
        entity.update(frame, &horizon, time, &values, &mut looked_up);
    }
    Ok(())
}

fn bytes_of<'a>(bytes: &mut &'a [u8], length: usize) -> Result<&'a [u8], String> {
    let (taken, rest) = bytes.split_at_checked(length).ok_or("a step is cut")?;
    *bytes = rest;
    Ok(taken)
}

fn value_of<T: serde::de::DeserializeOwned>(bytes: &mut &[u8]) -> Result<T, String> {
    let (value, rest) = postcard::take_from_bytes(bytes).map_err(|error| format!("a step: {error}"))?;
    *bytes = rest;
    Ok(value)
}
