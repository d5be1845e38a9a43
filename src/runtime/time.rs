//! Timely's time: `epoch << 20 | tick`, one total order.
//!
//! An epoch is the unit of checkpoint and commit. A tick is a step inside an epoch: bounded runs close ticks to bring
//! rows into event-time order; live runs process on arrival and use tick 0 only. Event time is a column, never a time
//! here.

/// The bits of the tick.
pub const TICK_BITS: u32 = 20;

/// The last tick of an epoch: what operators give when they close the epoch.
pub const LAST_TICK: u64 = (1 << TICK_BITS) - 1;

/// The time of a tick of an epoch.
pub fn time(epoch: u64, tick: u64) -> u64 {
    debug_assert!(tick <= LAST_TICK, "a tick fits its bits");
    epoch << TICK_BITS | tick
}

/// The epoch of a time.
pub fn epoch_of(time: u64) -> u64 {
    time >> TICK_BITS
}
