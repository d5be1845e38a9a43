//! Protocol Buffers on the wire: enough to walk a message's fields and to write it again with some of them changed.
//!
//! A field is a key (number and wire type) and a value; unknown fields are skipped by their wire type, so a file of a
//! newer format still reads. Nothing is copied.

/// A field of a message.
#[derive(Debug, Clone, Copy)]
pub(super) struct Field<'a> {
    pub number: u64,
    pub value: Value<'a>,
    /// The whole field, key included, as it stands in the message.
    pub raw: &'a [u8],
}

/// A field's value by its wire type.
#[derive(Debug, Clone, Copy)]
pub(super) enum Value<'a> {
    /// Integers, booleans and enums.
    Varint(u64),
    /// Text, bytes, messages and packed lists.
    Bytes(&'a [u8]),
    /// Floats and fixed-width integers, which nothing here reads.
    Fixed,
}

/// Why bytes are not a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(in crate::models) enum Malformed {
    #[error("field {field} announces {announced} bytes and {left} are left")]
    Truncated { field: u64, announced: u64, left: u64 },
    #[error("the bytes are not a protocol buffer (at byte {at})")]
    Garbage { at: usize },
}

/// Walks the fields of a message.
pub(super) struct Fields<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Fields<'a> {
    pub(super) fn of(bytes: &'a [u8]) -> Self {
        Fields { bytes, at: 0 }
    }

    fn varint(&mut self) -> Result<u64, Malformed> {
        let start = self.at;
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = *self.bytes.get(self.at).ok_or(Malformed::Garbage { at: start })?;
            self.at += 1;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Malformed::Garbage { at: start })
    }

    fn take(&mut self, field: u64, length: u64) -> Result<&'a [u8], Malformed> {
        let left = self.bytes.len() - self.at;
        let Some(length) = usize::try_from(length).ok().filter(|length| *length <= left) else {
            return Err(Malformed::Truncated { field, announced: length, left: left as u64 });
        };
        let bytes = &self.bytes[self.at..self.at + length];
        self.at += length;
        Ok(bytes)
    }

    fn field(&mut self) -> Result<Field<'a>, Malformed> {
        let start = self.at;
        let key = self.varint()?;
        let number = key >> 3;
        if number == 0 {
            return Err(Malformed::Garbage { at: start });
        }
        let value = match key & 7 {
            0 => Value::Varint(self.varint()?),
            1 => self.take(number, 8).map(|_| Value::Fixed)?,
            2 => {
                let length = self.varint()?;
                Value::Bytes(self.take(number, length)?)
            }
            5 => self.take(number, 4).map(|_| Value::Fixed)?,
            _ => return Err(Malformed::Garbage { at: start }),
        };
        Ok(Field { number, value, raw: &self.bytes[start..self.at] })
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<Field<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.at >= self.bytes.len() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.at = self.bytes.len();
        }
        Some(field)
    }
}

impl<'a> Field<'a> {
    /// The value as bytes; a field of another wire type is none.
    pub(super) fn bytes(&self) -> Option<&'a [u8]> {
        match self.value {
            Value::Bytes(bytes) => Some(bytes),
            _ => None,
        }
    }

    /// The value as text; bytes that are no UTF-8 are replaced.
    pub(super) fn text(&self) -> Option<String> {
        self.bytes().map(|bytes| String::from_utf8_lossy(bytes).into_owned())
    }

    /// The value as a signed integer.
    pub(super) fn int(&self) -> Option<i64> {
        match self.value {
            Value::Varint(value) => Some(value as i64),
            _ => None,
        }
    }

    /// The integers of a repeated field, packed or not.
    pub(super) fn ints(&self, into: &mut Vec<i64>) -> Result<(), Malformed> {
        match self.value {
            Value::Varint(value) => into.push(value as i64),
            Value::Bytes(bytes) => {
                let mut packed = Fields::of(bytes);
                while packed.at < bytes.len() {
                    into.push(packed.varint()? as i64);
                }
            }
            Value::Fixed => {}
        }
        Ok(())
    }
}

/// Appends a field of bytes: text, a message or a packed list.
pub(super) fn write_bytes(out: &mut Vec<u8>, number: u64, bytes: &[u8]) {
    write_varint(out, number << 3 | 2);
    write_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Appends a field of an integer.
pub(super) fn write_int(out: &mut Vec<u8>, number: u64, value: u64) {
    write_varint(out, number << 3);
    write_varint(out, value);
}

fn write_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_reads_back() {
        let mut out = Vec::new();
        write_bytes(&mut out, 7, b"graph");
        write_int(&mut out, 1, 300);
        let fields: Vec<_> = Fields::of(&out).map(|f| f.unwrap()).collect();
        assert_eq!((fields[0].number, fields[0].text().unwrap().as_str()), (7, "graph"));
        assert_eq!((fields[1].number, fields[1].int()), (1, Some(300)));
        assert_eq!(fields.iter().map(|f| f.raw.len()).sum::<usize>(), out.len());
    }

    #[test]
    fn a_field_beyond_the_end_is_truncated_and_ends_the_walk() {
        let mut out = Vec::new();
        write_bytes(&mut out, 7, &[0; 100]);
        out.truncate(50);
        let fields: Vec<_> = Fields::of(&out).collect();
        assert_eq!(fields.len(), 1);
        assert_eq!(fields[0].unwrap_err(), Malformed::Truncated { field: 7, announced: 100, left: 48 });
    }

    #[test]
    fn garbage_ends_the_walk_without_a_panic() {
        for bytes in
            [&[0xff; 12][..], &[0x00, 0x01], &[0x3b], &[0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]]
        {
            assert!(Fields::of(bytes).any(|f| f.is_err()));
        }
    }
}
