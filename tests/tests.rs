//! The integration tests, one binary: each module says what belongs there.

/// What scripts rely on: JSON, exit codes, pipes.
mod command_line;
/// The commit protocol as a model: all that can happen.
mod commit_model;
/// The pages: their links lead somewhere.
mod docs;
/// How runs end that do not come to their end by themselves, and what they leave.
mod ending;
/// Wrong topologies, and what is said about them: a file a case, in `errors/`.
mod errors;
/// Files, folders, libraries and addresses that are not as they should be.
mod failures;
/// The year of flights: every feature computed a second time, and the model's quality.
mod flights;
/// Sources, sinks and commands on a real broker.
mod kafka;
/// What holds for every kind: its example is taken, it is documented, it does what its family promises.
mod kinds;
/// The memory budget.
mod memory;
/// The offline store, read by DuckDB and by deltalake for Python.
mod offline;
/// Checkpoints that are damaged, and runs that go on from older ones.
mod older;
/// Running the program: not tests, but what they share.
mod program;
/// Random numbers that a seed repeats: not tests either.
mod random;
/// The generated pages are those in the repository.
mod reference;
/// Runs that are stopped and started again.
mod resume;
/// Whole topologies on small files: what goes in, and what must come out.
mod run;
/// The JSON Schema of topology files: it takes what the engine takes.
mod schema;
/// The rules of the code.
mod tidy;
/// The topologies of the repository pass `check`, and their graphs can be drawn.
mod topologies;

/// Compares what was made with the file that holds what was expected; with `UPDATE=1` the file is written instead.
fn check_golden(path: &std::path::Path, made: &str) -> Result<(), String> {
    if std::env::var_os("UPDATE").is_some() {
        return std::fs::write(path, made).map_err(|error| format!("write {}: {error}", path.display()));
    }
    let expected = std::fs::read_to_string(path).unwrap_or_default();
    if expected == made {
        return Ok(());
    }
    Err(format!("{} differs; look at the change, then accept it with UPDATE=1\n\n{made}", path.display()))
}
