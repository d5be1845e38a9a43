//! JSON lines on standard output.

use std::io::{self, Write};

use millstream_operators::kinds::Kind;

use super::lines::{LineWriter, Target};
use super::{Open, SinkError, SinkTarget, SinkWriter};

/// JSON lines on standard output.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StdoutSink {}

impl Kind for StdoutSink {
    const EXAMPLE: &'static str = "{}";
}

impl SinkTarget for StdoutSink {
    fn open(&self, open: Open) -> Result<Box<dyn SinkWriter>, SinkError> {
        Ok(Box::new(LineWriter::start(&open.name, "standard output", StandardOutput(io::stdout()), 0)?))
    }
}

/// Standard output, where durable means handed to whoever reads it.
struct StandardOutput(io::Stdout);

impl Write for StandardOutput {
    /// Every block of lines goes out at once: somebody may be watching.
    fn write(&mut self, lines: &[u8]) -> io::Result<usize> {
        let mut output = self.0.lock();
        output.write_all(lines)?;
        output.flush()?;
        Ok(lines.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl Target for StandardOutput {
    fn make_durable(&mut self) -> io::Result<()> {
        self.flush()
    }
}
