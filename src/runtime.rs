//! The runtime: timely lives here and in the slow lane, nowhere else.

pub mod connect;
pub mod meter;
pub mod route;
pub mod shared;
pub mod time;
