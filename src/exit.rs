//! The end of a process that does not wait for its threads.
//!
//! `std::process::exit`, and a return from `main`, run the destructors of all libraries while other threads are at work. ONNX
//! Runtime's take the models from under the workers: their rows become dead letters, in an epoch that may still be decided before
//! the process is gone. So a process that ends before its time ends as if it was killed, but for the code.

use std::io::Write as _;

/// Ends the process with a code, at once.
pub fn now(code: i32) -> ! {
    signal_hook::low_level::exit(code)
}

/// The same from the main thread, when what was printed is out.
pub fn after_output(code: u8) -> ! {
    // A reader that has gone has what it wanted.
    let _flushed = std::io::stdout().flush();
    now(code.into())
}
