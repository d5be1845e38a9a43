//! Saved versions whose group has other features now: what both have is put in its place, the rest is null, or filled from versions
//! of the same keys that were computed again.

use millstream_operators::state::{StateError, change_rows, fill_rows, no_parts};
use serde::{Deserialize, Serialize};

use super::row::{Kind, UNTIL_BYTES};
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

/// Rows of saved versions that were [carried](carry) from the features `before` to `after`, with the features that are new in each
/// version from what `again` had at its time: rows with the features `after`. Keys that only `again` has are taken as they are.
///
/// # Errors
/// If a row does not decode.
pub fn fill(
    before: &[Packed],
    after: &[Packed],
    key_group: u16,
    carried: &[u8],
    again: &[u8],
) -> Result<Vec<u8>, StateError> {
    fill_rows(key_group, carried, again, |mut versions: SavedVersions, again: SavedVersions| {
        for (time, packed) in &mut versions {
            // The newest first.
            let Some((_, again)) = again.iter().find(|(other, _)| other <= time) else { continue };
            *packed = fill_row(before, after, packed, again).ok_or("a version is cut")?;
        }
        Ok(versions)
    })
}

/// The values of a packed row, and what stands behind them: until when the row is so, if anybody knows. `None` if it is cut.
fn values<'a>(features: &[Packed], mut bytes: &'a [u8]) -> Option<(Vec<Option<&'a [u8]>>, &'a [u8])> {
    let nulls = bytes.split_off(..features.len().div_ceil(8))?;
    let mut values = Vec::with_capacity(features.len());
    for (at, feature) in features.iter().enumerate() {
        let is_null = nulls[at / 8] >> (at % 8) & 1 == 1;
        values.push(if is_null { None } else { Some(bytes.split_off(..feature.kind.width(bytes)?)?) });
    }
    matches!(bytes.len(), 0 | UNTIL_BYTES).then_some((values, bytes))
}

fn pack<'a>(values: impl ExactSizeIterator<Item = Option<&'a [u8]>>, until: &[u8]) -> Vec<u8> {
    let mut packed = vec![0; values.len().div_ceil(8)];
    for (at, value) in values.enumerate() {
        match value {
            Some(value) => packed.extend_from_slice(value),
            None => packed[at / 8] |= 1 << (at % 8),
        }
    }
    packed.extend_from_slice(until);
    packed
}

/// One packed row; `None` if it is cut.
fn carry_row(before: &[Packed], after: &[Packed], bytes: &[u8]) -> Option<Vec<u8>> {
    let (values, until) = values(before, bytes)?;
    let carried = |feature| before.iter().position(|known| known == feature).and_then(|known| values[known]);
    // What was taken out may have made `until` sooner than it is, never later.
    Some(pack(after.iter().map(carried), until))
}

/// One packed row with what is new in it from another; `None` if one is cut.
fn fill_row(before: &[Packed], after: &[Packed], carried: &[u8], again: &[u8]) -> Option<Vec<u8>> {
    let ((carried, until), (again, until_again)) = (values(after, carried)?, values(after, again)?);
    let of_which = |(at, feature): (usize, &Packed)| if before.contains(feature) { carried[at] } else { again[at] };
    // All of it is so as long as each part is; if nobody knows that of a part, nobody knows it of all.
    let time = |bytes: &[u8]| bytes.try_into().ok().map(i64::from_le_bytes);
    let until = time(until).zip(time(until_again)).map(|(one, other)| one.min(other).to_le_bytes());
    Some(pack(after.iter().enumerate().map(of_which), until.as_ref().map_or(&[], <[u8; UNTIL_BYTES]>::as_slice)))
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

    #[test]
    fn what_is_new_is_filled_from_what_was_known_at_the_time() {
        let (before, after) = (["n1", "t2", "n3"], ["new", "t2", "n1", "n3"]);
        let ((was, packed), (is, wanted)) = (layout(&before), layout(&after));
        let saved = |keys: &[(&str, SavedVersions)]| {
            let mut writer = rows::Writer::default();
            for (key, versions) in keys {
                writer.put(key.as_bytes(), |bytes| bytes.extend(postcard::to_allocvec(versions).unwrap()));
            }
            writer.finish()
        };
        // `row` with 0 has the values at even places and an end at 77, with 1 those at odd places and none.
        let known = saved(&[
            ("both", vec![(9, row(&was, &before, 0)), (5, row(&was, &before, 1)), (2, row(&was, &before, 0))]),
            ("gone", vec![(4, row(&was, &before, 0))]),
        ]);
        let again = saved(&[
            ("both", vec![(9, row(&is, &after, 0)), (3, row(&is, &after, 0))]),
            ("found", vec![(1, row(&is, &after, 1))]),
        ]);
        let carried = carry(&packed, &wanted, 3, &known).unwrap();
        let filled = fill(&packed, &wanted, 3, &carried, &again).unwrap();
        let found: std::collections::BTreeMap<String, Vec<Value>> = rows::read(&filled)
            .map(|row| {
                let (key, value) = row.unwrap();
                let versions: SavedVersions = postcard::from_bytes(value.whole().unwrap().unwrap()).unwrap();
                let versions = versions.iter().map(|(time, row)| {
                    let (values, until) = is.unpack(row).unwrap();
                    json!([time, until, values["new"], values["n1"], values["t2"], values["n3"]])
                });
                (String::from_utf8(key.to_vec()).unwrap(), versions.collect())
            })
            .collect();
        let expected = json!({
            "both": [[9, 77, 0.0, 0.0, null, 2.0], [5, null, 0.0, null, "t2", null], [2, 77, null, 0.0, null, 2.0]],
            "gone": [[4, 77, null, 0.0, null, 2.0]],
            "found": [[1, null, null, null, "t2", 3.0]],
        });
        assert_eq!(json!(found), expected);
        for cut in 0..carried.len() {
            drop(fill(&packed, &wanted, 3, &carried[..cut], &again));
        }
        for cut in 0..again.len() {
            drop(fill(&packed, &wanted, 3, &carried, &again[..cut]));
        }
    }
}
