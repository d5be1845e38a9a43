//! Saved versions whose group has other features now: what both have is put in its place, the rest is null.

use millstream_operators::state::{StateError, change_rows, no_parts};
use serde::{Deserialize, Serialize};

use super::row::Kind;
use super::save::SavedVersions;

/// A feature as it stands in packed rows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Packed {
    /// Digest of how it is made: the same feature, whatever its name.
    pub made: String,
    /// Its type.
    pub kind: Kind,
}

/// Rows of saved versions with the features `before` as rows with the features `after`.
///
/// # Errors
/// If a row does not decode.
pub fn carry(before: &[Packed], after: &[Packed], key_group: u16, bytes: &[u8]) -> Result<Vec<u8>, StateError> {
    change_rows(key_group, bytes, no_parts, |mut versions: SavedVersions| {
        for (_, packed) in &mut versions {
            *packed = carry_row(before, after, packed).ok_or("a version is cut")?;
        }
        Ok(versions)
    })
}

/// One packed row; `None` if it is cut.
fn carry_row(before: &[Packed], after: &[Packed], mut bytes: &[u8]) -> Option<Vec<u8>> {
    let nulls = bytes.split_off(..before.len().div_ceil(8))?;
    let mut values = Vec::with_capacity(before.len());
    for (at, feature) in before.iter().enumerate() {
        let is_null = nulls[at / 8] >> (at % 8) & 1 == 1;
        values.push(if is_null { None } else { Some(bytes.split_off(..feature.kind.width(bytes)?)?) });
    }
    let mut packed = vec![0; after.len().div_ceil(8)];
    for (at, feature) in after.iter().enumerate() {
        match before.iter().position(|known| known == feature).and_then(|known| values[known]) {
            Some(value) => packed.extend_from_slice(value),
            None => packed[at / 8] |= 1 << (at % 8),
        }
    }
    // Until when the row is so stands behind it. What was taken out may have made that sooner than it is, never later.
    packed.extend_from_slice(bytes);
    matches!(bytes.len(), 0 | 8).then_some(packed)
}

#[cfg(test)]
mod tests {
    use arrow::array::{ArrayRef, BooleanArray, Float64Array, Int64Array, StringArray};
    use arrow::datatypes::{DataType, Field, Schema};
    use serde_json::{Value, json};

    use millstream_operators::state::rows;

    use super::super::row::Layout;
    use super::*;

    /// The layout of the features `names`, of which the first letter tells the type.
    fn layout(names: &[&str]) -> (Layout, Vec<Packed>) {
        let of = |name: &&str| match name.as_bytes()[0] {
            b'b' => (DataType::Boolean, Kind::Bool),
            b't' => (DataType::Utf8, Kind::Text),
            _ => (DataType::Float64, Kind::Float64),
        };
        let fields: Vec<Field> = names.iter().map(|name| Field::new(*name, of(name).0, true)).collect();
        let packed = names.iter().map(|name| Packed { made: name.to_string(), kind: of(name).1 });
        (Layout::new(&Schema::new(fields)).unwrap(), packed.collect())
    }

    /// One row of which every other value is null, from `from` on.
    fn row(layout: &Layout, names: &[&str], from: usize) -> Vec<u8> {
        let column = |(at, name): (usize, &&str)| -> ArrayRef {
            let there = at % 2 == from;
            match name.as_bytes()[0] {
                b'b' => std::sync::Arc::new(BooleanArray::from(vec![there.then_some(true)])),
                b't' => std::sync::Arc::new(StringArray::from(vec![there.then_some(*name)])),
                _ => std::sync::Arc::new(Float64Array::from(vec![there.then_some(at as f64)])),
            }
        };
        let columns: Vec<ArrayRef> = names.iter().enumerate().map(column).collect();
        let mut bytes = Vec::new();
        let until = (from == 0).then(|| std::sync::Arc::new(Int64Array::from(vec![77])) as ArrayRef);
        layout.columns(&columns, until.as_ref()).unwrap().pack(0, &mut bytes);
        bytes
    }

    #[test]
    fn what_both_have_keeps_its_value_and_the_rest_is_null() {
        let before = ["n1", "t2", "b3", "n4", "t5", "b6", "n7", "n8", "t9"];
        let after = ["t9", "new", "b6", "n8", "t2", "n1", "b3", "other", "t5", "n7"];
        let ((was, packed), (is, wanted)) = (layout(&before), layout(&after));
        for from in 0..2 {
            let versions: SavedVersions = vec![(9, row(&was, &before, from)), (5, row(&was, &before, 1 - from))];
            let mut writer = rows::Writer::default();
            writer.put(b"key", |bytes| bytes.extend(postcard::to_allocvec(&versions).unwrap()));
            writer.remove(b"gone");
            let bytes = writer.finish();
            let carried = carry(&packed, &wanted, 3, &bytes).unwrap();
            let mut found = rows::read(&carried).map(Result::unwrap);
            let (key, value) = found.next().unwrap();
            assert_eq!((key, found.next()), (&b"key"[..], Some((&b"gone"[..], rows::Change::Gone))));
            let carried: SavedVersions = postcard::from_bytes(value.whole().unwrap().unwrap()).unwrap();
            assert_eq!(carried.iter().map(|(time, _)| *time).collect::<Vec<_>>(), [9, 5]);
            for ((_, was_row), (_, is_row)) in versions.iter().zip(&carried) {
                let ((was_row, until), (is_row, carried)) = (was.unpack(was_row).unwrap(), is.unpack(is_row).unwrap());
                assert_eq!(carried, until);
                for name in after {
                    assert_eq!(is_row[name], was_row.get(name).cloned().unwrap_or(Value::Null), "{name}");
                }
                assert!(is_row.values().any(|value| *value != json!(null)));
            }
            for cut in 0..bytes.len() {
                drop(carry(&packed, &wanted, 3, &bytes[..cut]));
            }
        }
        assert!(
            carry(&wanted, &packed, 3, &{
                let mut writer = rows::Writer::default();
                let versions: SavedVersions = vec![(9, row(&was, &before, 0))];
                writer.put(b"key", |bytes| bytes.extend(postcard::to_allocvec(&versions).unwrap()));
                writer.finish()
            })
            .is_err()
        );
    }
}
