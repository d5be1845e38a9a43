//! A segment: blocks in a file, appended checkpoint by checkpoint where the storage can append; elsewhere each checkpoint's
//! blocks are a segment.
//!
//! ```text
//! "MSTRSEG2"
//! block: kind u8 · epoch u64 · name length u16 · name · part u16 · length u64 · bytes · XXH3 of the block so far u64
//! block ...
//! ```
//! The bytes of outputs are compressed (zstd) where that makes them fewer, and the kind says so: names, headers and columns
//! repeat themselves. Numbers are little-endian. A manifest knows how many bytes of the file are its own, their number of blocks and their
//! XXH3; what stands behind them belongs to a later checkpoint or to none.

use std::collections::BTreeSet;
use std::io::{self, Read};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::error::CheckpointError;
use super::storage::{Output, Storage};
use super::{Block, Kind};

const MAGIC: &[u8; 8] = b"MSTRSEG2";

/// What a manifest says about a segment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Summary {
    /// The file, in the folder of segments.
    pub file: String,
    /// The newest epoch in it.
    pub last_epoch: u64,
    /// Bytes of the file that belong to the checkpoint.
    pub bytes: u64,
    /// Number of blocks.
    pub blocks: u64,
    /// XXH3 of the bytes, in hexadecimal.
    pub checksum: String,
}

/// Checksums in manifests: 16 hexadecimal digits.
pub(super) fn digits(checksum: u64) -> String {
    format!("{checksum:016x}")
}

/// The key of a segment's file.
pub(super) fn key(file: &str) -> String {
    format!("seg/{file}")
}

/// Writes a segment.
pub(super) struct Appender {
    output: Box<dyn Output>,
    hash: Xxh3,
    summary: Summary,
    closed: bool,
}

/// The end of a segment at some time.
pub(super) struct Mark {
    hash: Xxh3,
    summary: Summary,
}

impl Mark {
    /// Whether it is one of this segment.
    pub fn is_of(&self, appender: &Appender) -> bool {
        self.summary.file == appender.summary.file
    }
}

impl std::fmt::Debug for Appender {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.summary.fmt(to)
    }
}

impl Appender {
    /// Makes a new segment.
    pub fn create(storage: &dyn Storage, file: &str) -> Result<Appender, CheckpointError> {
        let mut output = storage.begin(&key(file))?;
        output.write(MAGIC)?;
        let mut hash = Xxh3::new();
        hash.update(MAGIC);
        let bytes = MAGIC.len() as u64;
        let checksum = String::new();
        let summary = Summary { file: file.into(), last_epoch: 0, bytes, blocks: 0, checksum };
        Ok(Appender { output, hash, summary, closed: false })
    }

    /// True if nothing can be appended any more: the storage can't append, or a failed write could not be undone. What was
    /// appended is whole.
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// True if there is something in it.
    pub fn has_blocks(&self) -> bool {
        self.summary.blocks > 0
    }

    /// What a manifest says about it now.
    pub fn summary(&self) -> Summary {
        Summary { checksum: digits(self.hash.digest()), ..self.summary.clone() }
    }

    /// Where it ends now.
    pub fn mark(&self) -> Mark {
        Mark { hash: self.hash.clone(), summary: self.summary.clone() }
    }

    /// Takes back what was appended since, and with it the room on the disk.
    pub fn cut_to(&mut self, mark: &Mark) {
        self.close_at(mark);
        self.cut();
    }

    /// Counts what was appended since as not written. It stays in the file, so that nothing can be appended any more.
    pub fn close_at(&mut self, mark: &Mark) {
        (self.hash, self.summary) = (mark.hash.clone(), mark.summary.clone());
        self.closed = true;
    }

    /// Cuts the file to what counts.
    fn cut(&mut self) {
        self.closed = !self.output.cut(self.summary.bytes);
    }

    /// Appends blocks; they are durable when this returns. Gives the bytes written. If it fails, the segment is as before.
    pub fn append(&mut self, blocks: &[Block]) -> Result<u64, CheckpointError> {
        let before = self.mark();
        let written = self.write(blocks).and_then(|()| self.finish());
        if let Err(error) = written {
            self.cut_to(&before);
            return Err(error);
        }
        Ok(self.summary.bytes - before.summary.bytes)
    }

    /// Makes durable what was written.
    pub fn finish(&mut self) -> Result<(), CheckpointError> {
        self.output.sync()?;
        self.closed = !self.output.grows();
        Ok(())
    }

    /// Writes blocks, which are not durable yet. After an error the segment is not to be used.
    pub fn write(&mut self, blocks: &[Block]) -> Result<(), CheckpointError> {
        let mut bytes = Vec::with_capacity(WRITE_BYTES);
        for (at, block) in blocks.iter().enumerate() {
            let before = bytes.len();
            encode(block, &mut bytes).map_err(|source| {
                let path = self.summary.file.clone();
                CheckpointError::Io { doing: "write", path, source }
            })?;
            let length = (bytes.len() - before) as u64;
            self.summary.last_epoch = self.summary.last_epoch.max(block.epoch);
            self.summary.blocks += 1;
            self.summary.bytes += length;
            if bytes.len() >= WRITE_BYTES || at + 1 == blocks.len() {
                self.output.write(&bytes)?;
                self.hash.update(&bytes);
                bytes.clear();
            }
        }
        Ok(())
    }
}

/// Bytes handed to the operating system at once, but for a single block that has more.
const WRITE_BYTES: usize = 1 << 20;

/// Added to the kind of a block whose bytes are compressed.
const COMPRESSED: u8 = 0x80;
/// The fastest that zstd offers without a loss of much: what repeats is found at any level.
const LEVEL: i32 = 1;

/// The bytes of a block, if compressed they are fewer. State is left as it is: what happens to keys hardly repeats itself, and a
/// start reads all of it.
fn compressed(block: &Block) -> Option<Vec<u8>> {
    let worth = block.kind != Kind::State && block.bytes.len() > 256;
    let bytes = worth.then(|| zstd::bulk::compress(&block.bytes, LEVEL).ok()).flatten();
    bytes.filter(|bytes| bytes.len() < block.bytes.len())
}

fn encode(block: &Block, to: &mut Vec<u8>) -> io::Result<()> {
    let start = to.len();
    let length = u16::try_from(block.name.len()).map_err(|_| io::Error::other("a name is too long"))?;
    let kind = match block.kind {
        Kind::State => 1,
        Kind::Outbox => 2,
        Kind::Offline => 3,
    };
    let compressed = compressed(block);
    let bytes = compressed.as_ref().unwrap_or(&block.bytes);
    to.push(if compressed.is_some() { kind | COMPRESSED } else { kind });
    to.extend_from_slice(&block.epoch.to_le_bytes());
    to.extend_from_slice(&length.to_le_bytes());
    to.extend_from_slice(block.name.as_bytes());
    to.extend_from_slice(&block.part.to_le_bytes());
    to.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
    to.extend_from_slice(bytes);
    let checksum = xxh3_64(&to[start..]);
    to.extend_from_slice(&checksum.to_le_bytes());
    Ok(())
}

/// A block as it lies in a segment. Outputs that were committed long ago need not be unpacked to be passed over.
pub(super) struct Stored {
    /// What it holds.
    pub kind: Kind,
    /// Whose it is.
    pub name: Arc<str>,
    /// Which part of it.
    pub part: u16,
    /// The epoch in which it came to be.
    pub epoch: u64,
    bytes: Vec<u8>,
    is_compressed: bool,
}

impl Stored {
    /// The block as it was written.
    ///
    /// # Errors
    /// If its bytes should be compressed and are not.
    pub fn open(self) -> Result<Block, String> {
        let Stored { kind, name, part, epoch, bytes, is_compressed } = self;
        let bytes = match is_compressed {
            false => bytes,
            true => zstd::stream::decode_all(&bytes[..])
                .map_err(|error| format!("(`{name}`, part {part}) is not compressed: {error}"))?,
        };
        Ok(Block { kind, name, part, epoch, bytes })
    }
}

/// Reads the part of a segment that a manifest names, checks all of it, and gives its blocks one after the other. A block
/// that was given belongs to a segment that may turn out to be damaged further on.
///
/// # Errors
/// If the file can't be read, is not what the manifest says, or `give` has something against a block.
pub(super) fn read(
    storage: &dyn Storage,
    summary: &Summary,
    give: impl FnMut(Stored) -> Result<(), String>,
) -> Result<(), CheckpointError> {
    let key = key(&summary.file);
    // A folder says that there is none before it is read, a bucket when it is.
    let gone = || CheckpointError::Corrupt { path: storage.name(&key), detail: "is not there".to_string() };
    let stream = storage.stream(&key, summary.bytes).map_err(|error| match error {
        CheckpointError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => gone(),
        other => other,
    })?;
    let scanned = Scan::new(stream, summary).blocks(give);
    scanned.map_err(|problem| match problem {
        Problem::Io(source) if source.kind() == io::ErrorKind::NotFound => gone(),
        Problem::Io(source) => CheckpointError::Io { doing: "read", path: storage.name(&key), source },
        Problem::Damage(detail) => CheckpointError::Corrupt { path: storage.name(&key), detail },
    })
}

/// What is wrong with a segment.
#[derive(Debug)]
pub(super) enum Problem {
    /// It can't be read.
    Io(io::Error),
    /// It is not what was written.
    Damage(String),
}

impl From<io::Error> for Problem {
    fn from(error: io::Error) -> Self {
        Problem::Io(error)
    }
}

/// Goes through a segment once.
pub(super) struct Scan<'a, R> {
    from: R,
    summary: &'a Summary,
    /// Of all bytes so far.
    hash: Xxh3,
    /// Of the block's bytes so far.
    of_block: Xxh3,
    at: u64,
    names: BTreeSet<Arc<str>>,
}

impl<'a, R: Read> Scan<'a, R> {
    /// A scan of what `from` gives.
    pub fn new(from: R, summary: &'a Summary) -> Self {
        Scan { from, summary, hash: Xxh3::new(), of_block: Xxh3::new(), at: 0, names: BTreeSet::new() }
    }

    /// Gives the blocks.
    pub fn blocks(mut self, mut give: impl FnMut(Stored) -> Result<(), String>) -> Result<(), Problem> {
        if self.array::<8>()? != *MAGIC {
            return Err(Problem::Damage("is not a segment of a checkpoint".into()));
        }
        let mut number = 0;
        while self.at < self.summary.bytes {
            let start = self.at;
            let block = self.block().and_then(|block| give(block).map_err(Problem::Damage));
            block.map_err(|problem| match problem {
                Problem::Damage(detail) => Problem::Damage(format!("block {number} at byte {start} {detail}")),
                io => io,
            })?;
            number += 1;
        }
        if number != self.summary.blocks || digits(self.hash.digest()) != self.summary.checksum {
            return Err(Problem::Damage("is whole, but not the segment that the manifest names".into()));
        }
        Ok(())
    }

    fn block(&mut self) -> Result<Stored, Problem> {
        self.of_block = Xxh3::new();
        let [stored] = self.array()?;
        let kind = match stored & !COMPRESSED {
            1 => Kind::State,
            2 => Kind::Outbox,
            3 => Kind::Offline,
            kind => return Err(Problem::Damage(format!("is of kind {kind}, which is not known"))),
        };
        let epoch = u64::from_le_bytes(self.array()?);
        let length = u16::from_le_bytes(self.array()?);
        let name = self.take(u64::from(length))?;
        let part = u16::from_le_bytes(self.array()?);
        let length = u64::from_le_bytes(self.array()?);
        let bytes = self.take(length)?;
        let covered = self.of_block.digest();
        let checksum = u64::from_le_bytes(self.array()?);
        let name = std::str::from_utf8(&name).map_err(|_| Problem::Damage("has a name that is no text".into()))?;
        if covered != checksum {
            let detail = format!("(`{name}`, part {part}, epoch {epoch}) does not have its checksum");
            return Err(Problem::Damage(detail));
        }
        let name = self.names.get(name).cloned().unwrap_or_else(|| name.into());
        self.names.insert(name.clone());
        Ok(Stored { kind, name, part, epoch, bytes, is_compressed: stored & COMPRESSED != 0 })
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Problem> {
        let taken = self.take(N as u64)?;
        taken.try_into().map_err(|_| Problem::Damage("is cut".into()))
    }

    /// The next bytes. A length that goes beyond what the manifest names is damage, and nothing is made ready for it.
    fn take(&mut self, length: u64) -> Result<Vec<u8>, Problem> {
        let left = self.summary.bytes.saturating_sub(self.at);
        if length > left {
            return Err(Problem::Damage(format!("goes on for {length} bytes where {left} are left")));
        }
        let mut taken = Vec::with_capacity(length as usize);
        self.from.by_ref().take(length).read_to_end(&mut taken)?;
        if (taken.len() as u64) < length {
            let (has, known) = (self.at + taken.len() as u64, self.summary.bytes);
            return Err(Problem::Damage(format!("ends: the file has {has} bytes, but the manifest knows of {known}")));
        }
        self.at += length;
        self.hash.update(&taken);
        self.of_block.update(&taken);
        Ok(taken)
    }
}
