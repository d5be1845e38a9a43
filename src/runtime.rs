//! The runtime: how a plan runs. Timely lives here and in the slow lane, nowhere else.
//!
//! [`job`] is a job from start to end, [`crew`] its workers, [`dataflow`] what a worker builds, [`connect`] an operator's
//! place in it, [`input`] and [`output`] its borders. [`ledger`] and [`checkpoints`] make an epoch durable.
//! [`coordinator`] and [`member`] are the two ends between processes.

pub mod board;
pub mod checkpoints;
pub mod clock;
pub mod connect;
pub mod coordinator;
pub mod crew;
pub mod damaged;
pub mod dataflow;
pub mod decided;
pub mod failure;
pub mod input;
pub mod job;
pub mod lanes;
pub mod ledger;
pub mod member;
pub mod memory;
pub mod meter;
pub mod output;
pub mod owned;
pub mod repeats;
pub mod report;
pub mod route;
pub mod seeds;
pub mod shared;
pub mod signals;
pub mod take_up;
pub mod time;
pub mod worker;
