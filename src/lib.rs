//! Millstream: a streaming dataflow engine for online machine learning.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod backfill;
pub mod change;
pub mod checkpoint;
pub mod cli;
pub mod cluster;
pub mod display;
pub mod encode;
pub mod exit;
pub mod failpoint;
pub mod graph;
pub mod http;
pub mod kafka;
pub mod logs;
pub mod metrics;
pub mod models;
pub mod offline;
pub mod online;
pub mod plan;
pub mod provenance;
pub mod replay;
pub mod runtime;
pub mod sinks;
pub mod slow;
pub mod sources;
pub mod summary;
pub mod supervisor;
pub mod topology;
