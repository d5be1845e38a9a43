//! The `millstream` program: parses the command line, runs the command, turns errors into exit codes.

use std::process::ExitCode;

use millstream::cli;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The exit code of a bug in Millstream.
const INTERNAL: i32 = 70;

fn main() -> ExitCode {
    end_on_panic();
    millstream::logs::start();
    match cli::run() {
        Ok(code) => code,
        Err(error) => {
            eprint!("{}", cli::describe(&error));
            ExitCode::from(cli::exit_code(&error))
        }
    }
}

/// A panic on any thread ends the process at once: half a job is worse than none, and the supervisor starts it again.
fn end_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        let thread = std::thread::current().name().unwrap_or("unnamed").to_string();
        tracing::error!(thread, panic = %panic, "a bug in millstream: the process ends");
        std::process::exit(INTERNAL);
    }));
}
