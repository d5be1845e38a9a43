//! How two processes make sure of each other: both prove that they know the secret, neither shows it (HMAC-SHA256 over
//! fresh nonces of both sides, RFC 2104).
//!
//! ```text
//! dialer                                    listener
//!   hello: version, purpose, who, nonce  ──▶
//!                                        ◀──  nonce, incarnation, proof
//!   proof                                ──▶
//!                                        ◀──  welcome, or why not
//! ```
//! A stranger learns nothing but that somebody listens: reasons are told only after the proof. Afterwards the connection is
//! neither encrypted nor authenticated message by message: it belongs on a private network.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};

const MAGIC: [u8; 8] = *b"MILLSTRM";
/// Changes with everything that processes say to each other.
const VERSION: u16 = 1;
const NONCE: usize = 32;
const PROOF: usize = 32;
const HELLO: usize = 8 + 2 + 1 + 2 + 2 + 2 + 32 + 16 + NONCE;
/// Longest reason of a refusal, in bytes.
const REASON_MAX: usize = 512;
/// How long a handshake may take, however its bytes come.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// Tells one gathering of the processes from all others.
pub type Incarnation = [u8; 16];

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Messages between the coordinator and a member.
    Control,
    /// Timely's.
    Data,
}

/// Who dials, and what for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// What the connection is for.
    pub purpose: Purpose,
    /// The number of the dialing process.
    pub process: u16,
    /// How many processes it expects.
    pub processes: u16,
    /// How many workers it has.
    pub workers: u16,
    /// What it runs: a digest of its build and its topology.
    pub runs: [u8; 32],
    /// The gathering it belongs to; zeros before the coordinator has told it.
    pub incarnation: Incarnation,
}

/// Why a connection did not come about.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The network.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// It does not speak as Millstream does.
    #[error("the other side does not speak this protocol")]
    Stranger,
    /// It does not know the secret.
    #[error("the other side has another secret (engine.cluster.secret)")]
    Secret,
    /// It knows the secret and says no.
    #[error("{0}")]
    Refused(String),
}

impl Hello {
    fn to_bytes(&self, nonce: &[u8; NONCE]) -> [u8; HELLO] {
        let mut bytes = Vec::with_capacity(HELLO);
        bytes.extend(MAGIC);
        bytes.extend(VERSION.to_be_bytes());
        bytes.push(matches!(self.purpose, Purpose::Data).into());
        for number in [self.process, self.processes, self.workers] {
            bytes.extend(number.to_be_bytes());
        }
        bytes.extend(self.runs);
        bytes.extend(self.incarnation);
        bytes.extend(nonce);
        bytes.try_into().expect("the parts have the length of the whole")
    }

    /// The hello, and the version that it is of.
    fn from_bytes(bytes: &[u8; HELLO]) -> Result<(Hello, u16), HandshakeError> {
        let mut rest = bytes.as_slice();
        let mut take = |length: usize| {
            let (taken, left) = rest.split_at(length);
            rest = left;
            taken
        };
        if take(8) != MAGIC {
            return Err(HandshakeError::Stranger);
        }
        let number = |taken: &[u8]| u16::from_be_bytes([taken[0], taken[1]]);
        let version = number(take(2));
        let purpose = match take(1)[0] {
            0 => Purpose::Control,
            1 => Purpose::Data,
            _ => return Err(HandshakeError::Stranger),
        };
        let [process, processes, workers] = [number(take(2)), number(take(2)), number(take(2))];
        let runs = take(32).try_into().expect("32 bytes were taken");
        let incarnation = take(16).try_into().expect("16 bytes were taken");
        Ok((Hello { purpose, process, processes, workers, runs, incarnation }, version))
    }
}

/// A number that nobody has seen before.
///
/// # Errors
/// If the operating system has no randomness.
pub fn fresh<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    let filled = SystemRandom::new().fill(&mut bytes);
    filled.map(|()| bytes).map_err(|_| io::Error::other("the operating system gives no random numbers"))
}

fn proof(secret: &str, side: &str, transcript: &[u8]) -> hmac::Tag {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
    hmac::sign(&key, &[side.as_bytes(), transcript].concat())
}

fn is_proof(secret: &str, side: &str, transcript: &[u8], tag: &[u8]) -> bool {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
    hmac::verify(&key, &[side.as_bytes(), transcript].concat(), tag).is_ok()
}

/// A connection that is read and written until a time is over.
pub(super) struct Timed<'a> {
    stream: &'a TcpStream,
    until: Instant,
}

impl<'a> Timed<'a> {
    pub(super) fn new(stream: &'a TcpStream, patience: Duration) -> Timed<'a> {
        Timed { stream, until: Instant::now() + patience }
    }

    fn left(&self) -> io::Result<Option<Duration>> {
        match self.until.saturating_duration_since(Instant::now()) {
            Duration::ZERO => Err(io::Error::new(io::ErrorKind::TimedOut, "the handshake takes too long")),
            left => Ok(Some(left)),
        }
    }

    /// The connection may be used for ever again.
    fn done(self) -> io::Result<()> {
        self.stream.set_read_timeout(None)?;
        self.stream.set_write_timeout(None)
    }
}

impl Read for Timed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(self.left()?)?;
        self.stream.read(buffer)
    }
}

impl Write for Timed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(self.left()?)?;
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

/// The dialing side: gives the listener's incarnation.
///
/// # Errors
/// If the listener is none of ours, or refuses.
pub fn dial(stream: &TcpStream, secret: &str, hello: &Hello) -> Result<Incarnation, HandshakeError> {
    let mut stream = Timed::new(stream, PATIENCE);
    let said = hello.to_bytes(&fresh()?);
    stream.write_all(&said)?;
    let mut heard = [0; NONCE + 16 + PROOF];
    stream.read_exact(&mut heard)?;
    let (theirs, tag) = heard.split_at(NONCE + 16);
    let transcript = [&said, theirs].concat();
    if !is_proof(secret, "listener", &transcript, tag) {
        return Err(HandshakeError::Secret);
    }
    stream.write_all(proof(secret, "dialer", &transcript).as_ref())?;
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let length = usize::from(u16::from_be_bytes(length));
    if length > REASON_MAX {
        return Err(HandshakeError::Stranger);
    }
    let mut reason = vec![0; length];
    stream.read_exact(&mut reason)?;
    if !reason.is_empty() {
        return Err(HandshakeError::Refused(String::from_utf8_lossy(&reason).into_owned()));
    }
    stream.done()?;
    Ok(theirs[NONCE..].try_into().expect("an incarnation has 16 bytes"))
}

/// The listening side: `judge` says why a dialer that knows the secret is not welcome.
///
/// # Errors
/// If the dialer is none of ours, or was refused.
pub fn answer(
    stream: &TcpStream,
    secret: &str,
    incarnation: &Incarnation,
    judge: impl FnOnce(&Hello) -> Result<(), String>,
) -> Result<Hello, HandshakeError> {
    let mut stream = Timed::new(stream, PATIENCE);
    let mut said = [0; HELLO];
    stream.read_exact(&mut said)?;
    let (hello, version) = Hello::from_bytes(&said)?;
    let nonce: [u8; NONCE] = fresh()?;
    let ours = [nonce.as_slice(), incarnation].concat();
    let transcript = [&said, ours.as_slice()].concat();
    stream.write_all(&[ours.as_slice(), proof(secret, "listener", &transcript).as_ref()].concat())?;
    let mut tag = [0; PROOF];
    stream.read_exact(&mut tag)?;
    if !is_proof(secret, "dialer", &transcript, &tag) {
        return Err(HandshakeError::Secret);
    }
    let judged = match version {
        VERSION => judge(&hello),
        other => {
            Err(format!("it speaks version {other} of the processes' protocol, this one {VERSION}: run one build"))
        }
    };
    let reason = judged.err().unwrap_or_default();
    let reason = reason.as_bytes().get(..REASON_MAX).unwrap_or(reason.as_bytes());
    stream.write_all(&[&(reason.len() as u16).to_be_bytes(), reason].concat())?;
    if !reason.is_empty() {
        return Err(HandshakeError::Refused(String::from_utf8_lossy(reason).into_owned()));
    }
    stream.done()?;
    Ok(hello)
}
