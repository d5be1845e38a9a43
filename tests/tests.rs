//! The integration tests, one binary: each module says what belongs there.

/// Sources, sinks and commands on a real broker.
mod kafka;
/// The offline store, read by DuckDB and by deltalake for Python.
mod offline;
