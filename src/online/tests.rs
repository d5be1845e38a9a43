//! The online store through its front door.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::TimestampMillisecondArray;
use arrow::array::{ArrayRef, BooleanArray, Float64Array, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::Field;
use millstream_operators::Row;
use proptest::prelude::*;
use serde_json::json;

use super::*;

fn row(event_time: EventTime) -> Row {
    Row { source: 0, partition: 0, offset: 0, event_time, arrived_micros: 0 }
}

/// Rows (key, event time, mean) of a group with one feature.
fn batch(rows: &[(&str, EventTime, f64)]) -> Batch {
    let columns: Vec<(&str, ArrayRef)> = vec![
        (KEY, Arc::new(StringArray::from_iter_values(rows.iter().map(|(key, ..)| key)))),
        ("mean", Arc::new(Float64Array::from_iter_values(rows.iter().map(|(.., mean)| *mean)))),
    ];
    Batch::new(
        RecordBatch::try_from_iter(columns).expect("columns of one length"),
        rows.iter().map(|r| row(r.1)).collect(),
    )
}

fn store(ttl: Option<Millis>) -> OnlineStore {
    let schema = batch(&[]).records.schema();
    OnlineStore::new(&[OnlineGroup { name: "by_origin".into(), schema, ttl }]).expect("a group")
}

/// Event time and mean of `key`.
fn read(store: &OnlineStore, key: &str, as_of: Option<EventTime>) -> Option<(EventTime, f64)> {
    let found = store.read("by_origin", &[key], as_of).expect("the group is known").remove(0)?;
    Some((found.event_time, found.values["mean"].as_f64().expect("a number")))
}

#[test]
fn the_newest_event_time_counts_whatever_the_order_of_publishing() {
    let store = store(None);
    store.publish(0, &batch(&[("JFK", 20, 2.0), ("EWR", 5, 9.0)])).expect("publishes");
    store.publish(0, &batch(&[("JFK", 10, 1.0)])).expect("publishes");
    assert_eq!(read(&store, "JFK", None), Some((20, 2.0)), "an older row never replaces a newer one");
    assert_eq!(read(&store, "JFK", Some(19)), Some((10, 1.0)));
    assert_eq!(read(&store, "JFK", Some(9)), None, "no version is that old");
    store.publish(0, &batch(&[("JFK", 20, 2.5)])).expect("publishes");
    assert_eq!(read(&store, "JFK", None), Some((20, 2.5)), "the later of two with one event time counts");
    assert_eq!(read(&store, "LGA", None), None);
    assert_eq!(store.size(0).0, 2);
    let error = store.read("by_tail", &["JFK"], None).expect_err("unknown").to_string();
    assert_eq!(error, "there is no feature group `by_tail`; there are: by_origin");
}

#[test]
fn keys_expire_in_event_time() {
    let store = store(Some(Millis(100)));
    store.publish(0, &batch(&[("JFK", 0, 1.0), ("EWR", 50, 2.0)])).expect("publishes");
    assert_eq!(read(&store, "JFK", None), Some((0, 1.0)));
    store.publish(0, &batch(&[("EWR", 101, 3.0)])).expect("publishes");
    assert_eq!(read(&store, "JFK", None), None, "older than the ttl against the newest event time");
    assert_eq!(read(&store, "JFK", Some(100)), Some((0, 1.0)), "at that time it was not");
    assert_eq!(store.size(0).0, 2);
    (0..KEY_GROUPS).for_each(|_| store.sweep_next());
    assert_eq!(store.size(0).0, 1);
    assert_eq!((read(&store, "JFK", Some(100)), read(&store, "EWR", None)), (None, Some((101, 3.0))));
}

#[test]
fn every_type_is_kept_and_written_as_json() {
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("count", Arc::new(Int64Array::from(vec![i64::MAX]))),
        (KEY, Arc::new(StringArray::from(vec!["a|b \"c\""]))),
        ("mean", Arc::new(Float64Array::from(vec![f64::NAN]))),
        ("sum", Arc::new(Float64Array::from(vec![-0.1]))),
        ("last", Arc::new(StringArray::from(vec![None::<&str>]))),
        ("seen", Arc::new(BooleanArray::from(vec![true]))),
        ("at", Arc::new(TimestampMillisecondArray::from(vec![0]).with_timezone("UTC"))),
    ];
    let records =
        RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(n, c)| (n, c, true))).expect("columns");
    let group = OnlineGroup { name: "g".into(), schema: records.schema(), ttl: None };
    let store = OnlineStore::new(&[group]).expect("a group");
    store.publish(0, &Batch::new(records, vec![row(7)])).expect("publishes");
    let found = store.read("g", &["no", "a|b \"c\""], None).expect("known");
    assert_eq!(found[0], None);
    let features = found[1].as_ref().expect("there");
    assert_eq!(features.event_time, 7);
    let wanted = json!({
        "count": i64::MAX, "mean": null, "sum": -0.1, "last": null, "seen": true, "at": "1970-01-01T00:00:00.000Z"
    });
    assert_eq!(serde_json::Value::Object(features.values.clone()), wanted);
}

#[test]
fn a_row_says_until_when_it_is_so_in_another_process_too() {
    let columns: Vec<(&str, ArrayRef)> = vec![
        (KEY, Arc::new(StringArray::from(vec!["a", "b"]))),
        ("mean", Arc::new(Float64Array::from(vec![Some(0.5), None]))),
        (VALID_UNTIL, Arc::new(Int64Array::from(vec![Some(90), None]))),
    ];
    let columns = columns.into_iter().map(|(name, column)| (name, column, true));
    let records = RecordBatch::try_from_iter_with_nullable(columns).expect("columns");
    let store = || OnlineStore::new(&[OnlineGroup { name: "g".into(), schema: records.schema(), ttl: None }]);
    let (one, two) = (store().expect("a group"), store().expect("a group"));
    one.publish(0, &Batch::new(records.clone(), vec![row(7), row(8)])).expect("publishes");
    let touched = ["a", "b"].map(|key| key.as_bytes().into());
    let mut give = |group, bytes: Vec<u8>| two.load(0, group, &bytes).expect("its own bytes");
    one.save_changes(0, touched.into_iter(), &[], &mut give);
    for store in [&one, &two] {
        let found = store.read("g", &["a", "b"], None).expect("known");
        let until: Vec<_> =
            found.iter().flatten().map(|features| (features.valid_until, features.values.len())).collect();
        assert_eq!(until, [(Some(90), 1), (Some(i64::MAX), 1)]);
    }
}

#[test]
fn other_columns_are_refused() {
    let store = store(None);
    let other =
        RecordBatch::try_from_iter([(KEY, Arc::new(StringArray::from(vec!["a"])) as ArrayRef)]).expect("columns");
    let error = store.publish(0, &Batch::new(other, vec![row(0)])).expect_err("must be refused").to_string();
    assert_eq!(
        error,
        "feature group `by_origin` published the columns key Utf8, but the store was told key Utf8, mean Float64"
    );
}

#[test]
fn a_store_is_saved_and_loaded_by_key_group() {
    let (one, two) = (store(None), store(None));
    let keys: Vec<String> = (0..1000).map(|i| format!("k{i}")).collect();
    for time in 0..6 {
        let rows: Vec<_> =
            keys.iter().enumerate().map(|(i, key)| (key.as_str(), time * 10 + i as i64, time as f64)).collect();
        one.publish(0, &batch(&rows)).expect("publishes");
    }
    let save = |store: &OnlineStore| {
        let mut saved = BTreeMap::new();
        let touched = keys.iter().map(|key| key.as_bytes().into());
        let all: Vec<usize> = (0..KEY_GROUPS).collect();
        store.save_changes(0, touched, &all, &mut |group, bytes| drop(saved.insert(group, bytes)));
        saved
    };
    for (group, bytes) in save(&one) {
        assert_eq!(two.load(0, group, &bytes), Ok(()));
        assert_eq!(two.load(0, group, &bytes), Ok(()), "twice is once");
    }
    assert_eq!(one.size(0), two.size(0));
    assert_eq!(save(&one), save(&two));
    assert_eq!(read(&two, "k7", None), Some((57, 5.0)));

    let blob = save(&one).into_iter().next().expect("1000 keys fill some group");
    let schema =
        Arc::new(Schema::new(vec![Field::new(KEY, DataType::Utf8, true), Field::new("max", DataType::Utf8, true)]));
    let other = OnlineStore::new(&[OnlineGroup { name: "g".into(), schema, ttl: None }]).expect("a group");
    assert!(other.load(0, blob.0, &blob.1).is_err(), "two features more than these have");
    assert!(two.load(0, blob.0, &blob.1[..blob.1.len() / 2]).is_err());
    assert!(two.load(0, blob.0 ^ 1, &blob.1).is_err());
}

proptest! {
    /// Against the slow obvious version: all rows of a key, by event time, the last published of equals, the newest four.
    #[test]
    fn versions_are_what_a_sorted_list_says(rows in prop::collection::vec((0..4u8, 0..12i64, -1e3..1e3f64), 0..60)) {
        let store = store(None);
        let mut model: BTreeMap<u8, BTreeMap<i64, f64>> = BTreeMap::new();
        for (key, time, mean) in &rows {
            store.publish(0, &batch(&[(key.to_string().as_str(), *time, *mean)])).expect("publishes");
            let versions = model.entry(*key).or_default();
            versions.insert(*time, *mean);
            while versions.len() > VERSIONS_MAX {
                versions.pop_first();
            }
        }
        for (key, versions) in &model {
            for as_of in -1..13 {
                let wanted = versions.range(..=as_of).next_back().map(|(time, mean)| (*time, *mean));
                prop_assert_eq!(read(&store, &key.to_string(), Some(as_of)), wanted);
            }
        }
        let bytes: usize = store.groups[0].shards.iter().flat_map(|s| s.read().expect("held by nobody").iter().map(Entry::bytes).collect::<Vec<_>>()).sum();
        prop_assert_eq!(store.size(0), (model.len() as u64, bytes as u64));
    }
}
