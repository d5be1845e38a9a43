//! The `millstream` program.

use std::process::ExitCode;

use millstream::cli;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    cli::main(cli::run)
}
