//! The state of a checkpoint as one file of blocks.
//!
//! ```text
//! "MSTRSEG1"
//! block: kind u8 · name length u16 · name · key group u16 · length u64 · bytes · XXH3 of the block so far u64
//! block ...
//! ```
//! Numbers are little-endian. The manifest knows the file's length, number of blocks and XXH3.

use std::collections::BTreeMap;
use std::io::{self, Write};

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::NodeState;

const MAGIC: &[u8; 8] = b"MSTRSEG1";
const NODE: u8 = 1;
const SLOW: u8 = 2;

/// What the manifest says about a segment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Summary {
    pub bytes: u64,
    pub blocks: u64,
    /// XXH3 of the file, in hexadecimal.
    pub checksum: String,
}

/// Checksums in manifests: 16 hexadecimal digits.
pub(super) fn digits(checksum: u64) -> String {
    format!("{checksum:016x}")
}

/// Writes a segment.
pub(super) struct Writer<W> {
    to: W,
    hash: Xxh3,
    bytes: u64,
    blocks: u64,
}

impl<W: Write> Writer<W> {
    pub fn new(to: W) -> Writer<W> {
        Writer { to, hash: Xxh3::new(), bytes: 0, blocks: 0 }
    }

    /// Writes all state.
    pub fn state(&mut self, nodes: &BTreeMap<String, NodeState>, slow: Option<&[u8]>) -> io::Result<()> {
        self.put(MAGIC)?;
        for (name, state) in nodes {
            for (key_group, bytes) in state {
                self.block(NODE, name, *key_group, bytes)?;
            }
        }
        slow.map_or(Ok(()), |bytes| self.block(SLOW, "", 0, bytes))
    }

    fn block(&mut self, kind: u8, name: &str, key_group: u16, bytes: &[u8]) -> io::Result<()> {
        let length = u16::try_from(name.len()).map_err(|_| io::Error::other("a node's name is too long"))?;
        let mut head = vec![kind];
        head.extend_from_slice(&length.to_le_bytes());
        head.extend_from_slice(name.as_bytes());
        head.extend_from_slice(&key_group.to_le_bytes());
        head.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
        let mut hash = Xxh3::new();
        hash.update(&head);
        hash.update(bytes);
        self.put(&head)?;
        self.put(bytes)?;
        self.put(&hash.digest().to_le_bytes())?;
        self.blocks += 1;
        Ok(())
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hash.update(bytes);
        self.bytes += bytes.len() as u64;
        self.to.write_all(bytes)
    }

    /// The summary for the manifest, and what was written to.
    pub fn finish(self) -> io::Result<(Summary, W)> {
        let checksum = digits(self.hash.digest());
        Ok((Summary { bytes: self.bytes, blocks: self.blocks, checksum }, self.to))
    }
}

/// All state of a segment: the nodes' and the slow lane's.
pub(super) type State = (BTreeMap<String, NodeState>, Option<Vec<u8>>);

/// Reads a segment and holds it against its summary.
pub(super) fn parse(bytes: &[u8], summary: &Summary) -> Result<State, String> {
    let (mut nodes, mut slow) = (BTreeMap::<String, NodeState>::new(), None);
    let mut rest = bytes.strip_prefix(MAGIC).ok_or("is not a segment of a checkpoint")?;
    let mut blocks = 0;
    while !rest.is_empty() {
        let at = bytes.len() - rest.len();
        let block = Block::take(&mut rest).map_err(|error| format!("block {blocks} at byte {at} {error}"))?;
        match block.kind {
            NODE => {
                nodes.entry(block.name.to_string()).or_default().insert(block.key_group, block.bytes.to_vec());
            }
            SLOW => slow = Some(block.bytes.to_vec()),
            kind => return Err(format!("block {blocks} at byte {at} is of kind {kind}, which is not known")),
        }
        blocks += 1;
    }
    let found = Summary { bytes: bytes.len() as u64, blocks, checksum: digits(xxh3_64(bytes)) };
    if found != *summary {
        let (has, wanted) = (found.bytes, summary.bytes);
        return Err(match found.bytes == summary.bytes {
            true => "is whole, but not the segment that the manifest names".to_string(),
            false => format!("has {has} bytes, but the manifest knows of {wanted}"),
        });
    }
    Ok((nodes, slow))
}

struct Block<'a> {
    kind: u8,
    name: &'a str,
    key_group: u16,
    bytes: &'a [u8],
}

impl<'a> Block<'a> {
    fn take(rest: &mut &'a [u8]) -> Result<Block<'a>, String> {
        let whole = *rest;
        let [kind] = array(rest)?;
        let length = u16::from_le_bytes(array(rest)?);
        let name = take(rest, u64::from(length))?;
        let key_group = u16::from_le_bytes(array(rest)?);
        let length = u64::from_le_bytes(array(rest)?);
        let bytes = take(rest, length)?;
        let covered = &whole[..whole.len() - rest.len()];
        let checksum = u64::from_le_bytes(array(rest)?);
        let name = std::str::from_utf8(name).map_err(|_| "has a name that is no text".to_string())?;
        if xxh3_64(covered) != checksum {
            return Err(format!("(`{name}`, key group {key_group}) does not have its checksum"));
        }
        Ok(Block { kind, name, key_group, bytes })
    }
}

fn take<'a>(rest: &mut &'a [u8], length: u64) -> Result<&'a [u8], String> {
    let split = usize::try_from(length).ok().and_then(|length| rest.split_at_checked(length));
    let (taken, left) = split.ok_or_else(|| format!("goes on for {length} bytes where {} are left", rest.len()))?;
    *rest = left;
    Ok(taken)
}

fn array<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], String> {
    let taken = take(rest, N as u64)?;
    taken.try_into().map_err(|_| "is cut".to_string())
}
