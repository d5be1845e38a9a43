//! A control link: messages both ways, and the certainty that the other side is there.

use std::io::{self, BufReader, Read, Write};
use std::marker::PhantomData;
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crossbeam_channel::Sender;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::lost;

/// How often a side says that it is there.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// A side that has said nothing for so long is gone: its machine has stopped, or the network between.
pub const SILENCE_MAX: Duration = Duration::from_secs(15);
/// Longest message, in bytes.
const MESSAGE_MAX: usize = 1 << 30;

/// The near end of a control link. Messages of type `Out` go, messages of type `In` come.
#[derive(Debug)]
pub struct Link<Out> {
    process: usize,
    stream: Arc<Mutex<TcpStream>>,
    /// True when the other side may go: the job has ended.
    ended: Arc<AtomicBool>,
    /// False when the other side has gone.
    up: Arc<AtomicBool>,
    sends: PhantomData<fn(Out)>,
}

impl<Out: Serialize> Link<Out> {
    /// Takes up the link to process `process`: from now on what it says goes to `inbox`, and its silence ends this process.
    ///
    /// # Errors
    /// If the operating system refuses.
    pub fn start<In>(process: usize, stream: TcpStream, inbox: Sender<(usize, In)>) -> io::Result<Link<Out>>
    where
        In: DeserializeOwned + Send + 'static,
    {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(SILENCE_MAX))?;
        stream.set_write_timeout(Some(SILENCE_MAX))?;
        let ended = Arc::new(AtomicBool::new(false));
        let up = Arc::new(AtomicBool::new(true));
        let (incoming, over, is_up) = (stream.try_clone()?, ended.clone(), up.clone());
        let listen = move || {
            listen(process, incoming, &inbox, &over);
            is_up.store(false, Ordering::Release);
        };
        std::thread::Builder::new().name(format!("process-{process}")).spawn(listen)?;
        let stream = Arc::new(Mutex::new(stream));
        let (beating, over) = (Arc::downgrade(&stream), ended.clone());
        let beat = move || {
            while let Some(stream) = beating.upgrade() {
                // An empty message: the other side hears it and thinks nothing of it.
                write(process, &stream, &[], &over);
                drop(stream);
                std::thread::sleep(HEARTBEAT);
            }
        };
        std::thread::Builder::new().name(format!("heartbeat-{process}")).spawn(beat)?;
        Ok(Link { process, stream, ended, up, sends: PhantomData })
    }

    /// Sends a message. A side that takes nothing any more is gone, and this process ends.
    pub fn send(&self, message: &Out) {
        let bytes = postcard::to_allocvec(message).expect("plain data serializes into memory");
        write(self.process, &self.stream, &bytes, &self.ended);
    }

    /// Whether the other side is there.
    pub fn is_up(&self) -> bool {
        self.up.load(Ordering::Acquire)
    }

    /// The other side may go from now on.
    pub fn end(&self) {
        self.ended.store(true, Ordering::Release);
    }
}

impl<Out> Drop for Link<Out> {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Release);
        let stream = self.stream.lock().expect("no thread panics with the lock");
        let _gone = stream.shutdown(Shutdown::Both);
    }
}

fn write(process: usize, stream: &Mutex<TcpStream>, bytes: &[u8], ended: &AtomicBool) {
    let mut stream = stream.lock().expect("no thread panics with the lock");
    let length = (bytes.len() as u32).to_be_bytes();
    // One write for a short message: with two, the second would wait for the answer to the first.
    let written = match bytes.len() {
        0..4_096 => stream.write_all(&[&length, bytes].concat()),
        _ => stream.write_all(&length).and_then(|()| stream.write_all(bytes)),
    };
    if let Err(error) = written
        && !ended.load(Ordering::Acquire)
    {
        lost(process, &format!("it takes no messages: {error}"));
    }
}

fn listen<In: DeserializeOwned>(process: usize, stream: TcpStream, inbox: &Sender<(usize, In)>, ended: &AtomicBool) {
    let mut stream = BufReader::new(stream);
    loop {
        let message = match read(&mut stream) {
            Ok(bytes) if bytes.is_empty() => continue,
            Ok(bytes) => postcard::from_bytes(&bytes).map_err(|error| io::Error::other(error.to_string())),
            Err(error) => Err(error),
        };
        match message {
            Ok(message) => {
                if inbox.send((process, message)).is_err() {
                    return;
                }
            }
            Err(_) if ended.load(Ordering::Acquire) => return,
            Err(error) => lost(process, &describe(&error)),
        }
    }
}

fn read(stream: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let length = u32::from_be_bytes(length) as usize;
    if length > MESSAGE_MAX {
        return Err(io::Error::other(format!("a message of {length} bytes")));
    }
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn describe(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => "it closed its connection".into(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            format!("it has said nothing for {} s", SILENCE_MAX.as_secs())
        }
        _ => error.to_string(),
    }
}
