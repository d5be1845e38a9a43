//! A network that fails: a proxy between a job and what it talks to.
//!
//! ```text
//! job ──requests──▶ proxy ──requests──▶ broker, or a store
//!     ◀──answers───       ◀──answers───
//! ```

use std::future::pending;
use std::io::{Error, ErrorKind, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::watch;

/// What the network does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// Everything passes.
    Works,
    /// Nothing passes, and nobody is told: it waits.
    Stalls,
    /// Requests pass, answers wait.
    Mute,
    /// Who connects is turned away.
    Refuses,
}

/// What kind of request to Kafka, by its number in the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    Produce = 0,
    AddPartitionsToTxn = 24,
    AddOffsetsToTxn = 25,
    EndTxn = 26,
    TxnOffsetCommit = 28,
}

/// Nothing is swallowed.
const NONE: i32 = -1;
/// What is no request to Kafka.
const OTHER: i32 = -2;

/// A proxy on loopback.
pub struct Proxy {
    port: u16,
    line: Arc<Line>,
    _runtime: Runtime,
}

struct Line {
    /// The port that everything goes to; 0 as long as there is none.
    to: watch::Sender<u16>,
    network: watch::Sender<Network>,
    /// How often all connections were cut.
    cuts: watch::Sender<u64>,
    /// The kind of request whose next one loses its answer, and all that come after it on its connection.
    swallow: AtomicI32,
}

impl Proxy {
    /// A proxy that leads nowhere yet.
    pub fn start() -> Proxy {
        Proxy::at(std::net::TcpListener::bind("127.0.0.1:0").unwrap())
    }

    /// The same for those who connect there.
    pub fn at(listener: std::net::TcpListener) -> Proxy {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let port = listener.local_addr().unwrap().port();
        listener.set_nonblocking(true).unwrap();
        let listener = runtime.block_on(async { TcpListener::from_std(listener) }).unwrap();
        let line = Arc::new(Line {
            to: watch::Sender::new(0),
            network: watch::Sender::new(Network::Works),
            cuts: watch::Sender::new(0),
            swallow: AtomicI32::new(NONE),
        });
        let accepting = line.clone();
        runtime.spawn(async move {
            while let Ok((from, _)) = listener.accept().await {
                let line = accepting.clone();
                // Whoever loses a connection makes another.
                tokio::spawn(async move { _ = line.join(from).await });
            }
        });
        Proxy { port, line, _runtime: runtime }
    }

    /// Says where it leads to.
    pub fn lead_to(&self, port: u16) {
        self.line.to.send_replace(port);
    }

    /// The port that it listens on.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its address.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// From now on the network is like that.
    pub fn set(&self, network: Network) {
        self.line.network.send_replace(network);
    }

    /// Resets all connections.
    pub fn cut(&self) {
        self.line.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// Lets the next request of a kind pass and loses its answer, if there is one within so long.
    pub fn swallow_answer(&self, request: Request, patience: Duration) -> bool {
        self.line.swallow.store(request as i32, Ordering::Release);
        let deadline = Instant::now() + patience;
        while self.line.swallow.load(Ordering::Acquire) != NONE {
            if Instant::now() > deadline {
                let waiting = self.line.swallow.swap(NONE, Ordering::AcqRel);
                return waiting == NONE;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        true
    }
}

impl Line {
    /// Passes what comes on a connection and what is answered, until either side or the network ends it.
    async fn join(&self, from: TcpStream) -> Result<()> {
        // It ends with a reset, whatever is on its way.
        from.set_zero_linger()?;
        let mut cuts = self.cuts.subscribe();
        if *self.network.borrow() == Network::Refuses {
            return Ok(());
        }
        let port = *self.to.borrow();
        let to = TcpStream::connect(("127.0.0.1", port)).await?;
        let mute = AtomicBool::new(false);
        tokio::select! {
            ended = self.requests(&from, &to, &mute) => ended,
            ended = self.answers(&to, &from, &mute) => ended,
            _ = cuts.changed() => Ok(()),
        }
    }

    async fn requests(&self, from: &TcpStream, to: &TcpStream, mute: &AtomicBool) -> Result<()> {
        let mut network = self.network.subscribe();
        let mut waiting = Vec::new();
        read(from, &mut waiting).await?;
        // What the first byte of a request to Kafka is not: see `first_request`.
        let is_text = waiting.first().is_some_and(u8::is_ascii_alphabetic);
        let first = |bytes: &[u8]| if is_text { whole(bytes) } else { first_request(bytes) };
        loop {
            while let Some((kind, length)) = first(&waiting) {
                let passes = |network: &Network| matches!(network, Network::Works | Network::Mute | Network::Refuses);
                // The proxy outlives its connections.
                _ = network.wait_for(passes).await;
                let swallowed = self.swallow.compare_exchange(kind, NONE, Ordering::AcqRel, Ordering::Acquire);
                mute.fetch_or(swallowed.is_ok(), Ordering::AcqRel);
                write(to, &waiting[..length]).await?;
                waiting.drain(..length);
            }
            read(from, &mut waiting).await?;
        }
    }

    async fn answers(&self, from: &TcpStream, to: &TcpStream, mute: &AtomicBool) -> Result<()> {
        let mut network = self.network.subscribe();
        let mut waiting = Vec::new();
        loop {
            read(from, &mut waiting).await?;
            _ = network.wait_for(|network| matches!(network, Network::Works | Network::Refuses)).await;
            if mute.load(Ordering::Acquire) {
                return pending().await;
            }
            write(to, &waiting).await?;
            waiting.clear();
        }
    }
}

/// The kind and the length of the first request to Kafka that is whole: its length in 4 bytes, its kind in 2, and the rest.
fn first_request(bytes: &[u8]) -> Option<(i32, usize)> {
    let length = i32::from_be_bytes(*bytes.first_chunk()?) as usize + 4;
    let kind = i16::from_be_bytes(*bytes.get(4..)?.first_chunk()?);
    (bytes.len() >= length).then_some((i32::from(kind), length))
}

/// All that there is of another protocol.
fn whole(bytes: &[u8]) -> Option<(i32, usize)> {
    (!bytes.is_empty()).then_some((OTHER, bytes.len()))
}

async fn read(from: &TcpStream, to: &mut Vec<u8>) -> Result<()> {
    let mut bytes = [0; 1 << 16];
    loop {
        from.readable().await?;
        match from.try_read(&mut bytes) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(count) => {
                to.extend_from_slice(&bytes[..count]);
                return Ok(());
            }
            Err(error) => not_ready(error)?,
        }
    }
}

async fn write(to: &TcpStream, mut bytes: &[u8]) -> Result<()> {
    while !bytes.is_empty() {
        to.writable().await?;
        match to.try_write(bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(error) => not_ready(error)?,
        }
    }
    Ok(())
}

fn not_ready(error: Error) -> Result<()> {
    if error.kind() == ErrorKind::WouldBlock { Ok(()) } else { Err(error) }
}
