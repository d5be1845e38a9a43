//! The sockets that timely reads and writes. Timely panics when one breaks; here it is known that another process has
//! gone, and said so.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};

use rustix::net::sockopt;
use timely::communication::allocator::zero_copy::stream::Stream;

use super::link::SILENCE_MAX;
use super::lost;

/// What timely sends last: an empty message, which is a header of zeros.
const GOODBYE: usize = 48;

/// A connection to another process.
#[derive(Debug)]
pub struct Socket {
    stream: TcpStream,
    process: usize,
    /// How many zeros in a row were read last, up to [`GOODBYE`].
    zeros: usize,
}

impl Socket {
    /// The connection to process `process`. Two members have no control link between them that would notice silence: here the
    /// operating system does, when what was sent is not acknowledged, or nobody answers whether he is there.
    ///
    /// # Errors
    /// If the operating system refuses.
    pub fn new(stream: TcpStream, process: usize) -> io::Result<Socket> {
        sockopt::set_tcp_user_timeout(&stream, SILENCE_MAX.as_millis() as u32)?;
        sockopt::set_tcp_keepidle(&stream, SILENCE_MAX / 3)?;
        sockopt::set_tcp_keepintvl(&stream, SILENCE_MAX / 3)?;
        sockopt::set_socket_keepalive(&stream, true)?;
        Ok(Socket { stream, process, zeros: 0 })
    }

    fn read_counted(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.stream.read(buffer)?;
        let last = buffer[..read].iter().rev().take(GOODBYE).take_while(|byte| **byte == 0).count();
        self.zeros = if last == read { GOODBYE.min(self.zeros + read) } else { last };
        Ok(read)
    }
}

/// Whether an error is one that timely tries again after.
fn passes(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::Interrupted
}

impl Read for Socket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let said_goodbye = self.zeros == GOODBYE;
        loop {
            match self.read_counted(buffer) {
                Err(error) if passes(&error) => {}
                Ok(0) if !said_goodbye => lost(self.process, "it closed its connection in the middle"),
                // After its last word it may be gone in any way.
                Err(_) if said_goodbye => return Ok(0),
                Err(error) => lost(self.process, &error.to_string()),
                Ok(read) => return Ok(read),
            }
        }
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match self.stream.write(bytes) {
                Err(error) if passes(&error) => {}
                Err(error) => lost(self.process, &error.to_string()),
                written => return written,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

impl Stream for Socket {
    fn try_clone(&self) -> io::Result<Self> {
        Ok(Socket { stream: self.stream.try_clone()?, process: self.process, zeros: 0 })
    }

    fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        self.stream.set_nonblocking(nonblocking)
    }

    fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        // Whoever has already gone needs no goodbye.
        let _gone = self.stream.shutdown(how);
        Ok(())
    }
}
