//! Checkpoints that are whole, and all the ways in which they are not: on every storage there is.

use std::fs;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::storage::Created;
use super::*;
use crate::sources::Topic;

mod faults;
mod folder;
mod merges;
mod older;
mod origins;
mod refusals;
mod savepoints;
mod takeover;

/// Runs a test on each storage, in a place where nothing is: a folder, objects in memory, and the store of S3_ENDPOINT if it
/// is given (`make test` starts one).
fn everywhere(test: impl Fn(&Place)) {
    in_process(&test);
    let Ok(endpoint) = std::env::var("S3_ENDPOINT") else { return };
    let s3 = crate::topology::S3 { endpoint: Some(endpoint), region: None };
    let state = format!("s3://millstream/{}", new_id());
    test(&Location::parse(&state, std::path::Path::new("")).unwrap().place(&s3).unwrap());
}

/// Runs a test on each storage that needs no server.
fn in_process(test: impl Fn(&Place)) {
    let folder = tempfile::tempdir().unwrap();
    test(&Place::folder(&folder.path().join("new/state")));
    test(&faults::memory(faults::Faults::default()));
}

impl Store {
    /// As a job does it.
    fn publish_and_tidy(&mut self, progress: &Progress, blocks: &[Block]) -> Result<Published, CheckpointError> {
        let published = self.publish(progress, blocks)?;
        self.tidy(progress).map(|()| published)
    }
}

/// Whether a place has a lock.
fn is_folder(place: &Place) -> bool {
    !place.name().starts_with("s3://")
}

fn progress(epoch: u64) -> Progress {
    let positions =
        Positions([(("flights.jsonl".to_string(), 0), epoch as i64), (("trips".to_string(), 3), -1)].into());
    Progress {
        epoch,
        positions: [("flights".to_string(), positions)].into(),
        event_times: [("flights".to_string(), [(("trips".to_string(), 3), i64::MIN)].into())].into(),
        topics: [("flights".to_string(), topics())].into(),
        sinks: [("out".to_string(), 4096)].into(),
        committed: [(effect_name("sinks.kafka \"quoted\"", 1), epoch - 1)].into(),
        definitions: definitions(&[("card", 0), ("é", 0), ("sinks.kafka \"quoted\"", 0)]),
    }
}

/// A topic with an id, and one of brokers that know of none.
fn topics() -> Topics {
    let topic = |id: Option<&str>| Topic { id: id.map(str::to_string), partitions: 4 };
    [("trips".to_string(), topic(Some("k5t0-_Yb"))), ("old".to_string(), topic(None))].into()
}

/// Nodes and since when they are there.
fn definitions(nodes: &[(&str, u64)]) -> Definitions {
    let defined = |since: u64| Defined { digest: "5f0c".into(), since };
    nodes.iter().map(|(node, since)| (node.to_string(), defined(*since))).collect()
}

/// Rows of one key.
fn row(key: &str, value: Option<&str>) -> Vec<u8> {
    let mut writer = millstream_operators::state::rows::Writer::default();
    match value {
        Some(value) => writer.put(key.as_bytes(), |bytes| bytes.extend_from_slice(value.as_bytes())),
        None => writer.remove(key.as_bytes()),
    }
    writer.finish()
}

/// A part of the value of one key.
fn part_of(key: &str, part: &str) -> Vec<u8> {
    let mut writer = millstream_operators::state::rows::Writer::default();
    writer.part(key.as_bytes(), std::iter::once(part.as_bytes()));
    writer.finish()
}

fn block(kind: Kind, name: &str, part: u16, epoch: u64, bytes: Vec<u8>) -> Block {
    Block { kind, name: name.into(), part, epoch, bytes }
}

fn blocks(epoch: u64) -> Vec<Block> {
    vec![
        block(Kind::State, "card", 255, epoch, row("zero", Some(&format!("state of {epoch}")))),
        block(Kind::State, "é", 7, epoch, Vec::new()),
        block(Kind::Outbox, "kafka \"quoted\"", 1, epoch, vec![epoch as u8]),
    ]
}

/// A store that has taken over what there is.
fn store(place: &Place) -> Store {
    again(place).0
}

/// A store that has loaded what there is and taken over.
fn again(place: &Place) -> (Store, Option<Checkpoint>) {
    let mut store = Store::open(place, "job", "digest").unwrap();
    let checkpoint = store.load().unwrap();
    assert!(store.take_over().unwrap(), "nobody publishes meanwhile");
    (store, checkpoint)
}

/// Makes or replaces a file.
fn put(place: &Place, key: &str, bytes: &[u8]) {
    if is_folder(place) {
        // Without the syncs.
        return fs::write(std::path::PathBuf::from(place.name()).join(key), bytes).unwrap();
    }
    let mut output = place.0.begin(key).unwrap();
    output.write(bytes).unwrap();
    output.sync().unwrap();
}

fn bytes(place: &Place, key: &str) -> Vec<u8> {
    place.0.read(key).unwrap().unwrap_or_else(|| panic!("no {key}"))
}

fn files(place: &Place) -> Vec<String> {
    let list = |folder: &&str| place.0.list(folder).unwrap();
    let mut names: Vec<String> = ["manifest", "seg"].iter().flat_map(list).map(|found| found.name).collect();
    names.sort();
    names
}

/// Waits until those files are there that shall be: some storage removes in its own time.
fn check_files(place: &Place, expected: &[&str]) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while files(place) != expected && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(files(place), expected);
}

#[test]
fn what_was_published_is_loaded() {
    everywhere(|place| {
        let (mut first, nothing) = again(place);
        assert_eq!((nothing, first.generation()), (None, 1));
        let id = first.id().to_string();
        for epoch in 5..9 {
            first.publish_and_tidy(&progress(epoch), &blocks(epoch)).unwrap();
        }
        drop(first);
        let (mut second, loaded) = again(place);
        let loaded = loaded.unwrap();
        assert_eq!((second.generation(), second.id()), (2, &*id));
        assert_eq!(loaded.progress, progress(8));
        let parts = &loaded.nodes["card"][&255];
        assert_eq!(parts.len(), 4, "changes of four epochs, the oldest first");
        assert_eq!(parts[3], row("zero", Some("state of 8")));
        // Epoch 7 was known to be committed; the outbox of 8 is not.
        assert_eq!(loaded.outbox[&("kafka \"quoted\"".to_string(), 1)], [(8, vec![8])]);
        second.publish_and_tidy(&progress(9), &[]).unwrap();
        drop(second);
        let (_, loaded) = again(place);
        let loaded = loaded.unwrap();
        assert_eq!((loaded.progress.epoch, loaded.outbox.len(), loaded.nodes["card"][&255].len()), (9, 0, 4));
    });
}

#[test]
fn a_start_that_died_before_its_first_checkpoint_changes_nothing() {
    everywhere(|place| {
        drop(again(place));
        let (mut store, nothing) = again(place);
        assert_eq!((nothing, store.generation()), (None, 2));
        store.publish_and_tidy(&progress(8), &blocks(8)).unwrap();
        let expected = store.load().unwrap();
        drop(store);
        (0..3).for_each(|_| drop(again(place)));
        assert_eq!(again(place).1, expected);
    });
}

#[test]
fn the_newest_two_are_kept_and_leftovers_are_swept() {
    everywhere(|place| {
        let mut first = store(place);
        first.publish_and_tidy(&progress(8), &blocks(8)).unwrap();
        drop(first);
        // What crashes leave: drafts, and segments whose manifest was never published. The last is of a later start.
        for key in ["seg/9.tmp", "seg/1-7.seg", "seg/base-1-8.seg", "manifest/9.tmp", "seg/7-1.seg"] {
            put(place, key, b"half");
        }
        let (mut second, loaded) = again(place);
        assert_eq!(loaded.unwrap().progress, progress(8));
        for epoch in [9, 10, 100] {
            second.publish_and_tidy(&progress(epoch), &blocks(epoch)).unwrap();
        }
        match is_folder(place) {
            true => check_files(place, &["1-1.seg", "3-1.seg", "5.json", "6.json"]),
            // Manifests that keep away who has lost stay; and what a later start makes.
            false => {
                let manifests = ["1.json", "2.json", "3.json", "5.json", "6.json", "9.tmp"];
                let segments = ["1-1.seg", "3-1.seg", "3-2.seg", "3-3.seg", "7-1.seg"];
                let mut all = [&manifests[..], &segments].concat();
                all.sort_unstable();
                check_files(place, &all);
            }
        }
        let listed = report::list(place).unwrap();
        assert_eq!(listed.iter().map(|listed| listed.epoch).collect::<Vec<_>>(), [10, 100]);
    });
}

#[test]
fn a_job_that_is_forgotten_starts_anew_and_other_files_stay() {
    everywhere(|place| {
        Store::forget(place).unwrap();
        let mut before = store(place);
        before.publish_and_tidy(&progress(8), &blocks(8)).unwrap();
        let id = before.id().to_string();
        drop(before);
        put(place, "seg/notes.txt", b"mine");
        Store::forget(place).unwrap();
        assert_eq!((report::list(place).unwrap(), report::read(place, report::Which::Newest).unwrap()), (vec![], None));
        // It may be another job's now, of another topology.
        let mut after = Store::open(place, "other", "another digest").unwrap();
        assert_eq!(after.load().unwrap(), None);
        assert!(after.take_over().unwrap());
        assert_eq!(after.generation(), 1);
        assert_ne!(after.id(), id, "another life: markers of the one before count no more");
        let writers = progress(8).committed.into_keys().map(|writer| (writer, 0)).collect();
        assert_eq!(after.writers(), &writers, "what its writers have left open is to be ended");
        after.publish_and_tidy(&progress(3), &blocks(3)).unwrap();
        match is_folder(place) {
            true => check_files(place, &["4-1.seg", "4.json", "5.json", "notes.txt"]),
            false => check_files(place, &["1.json", "2.json", "3.json", "4-1.seg", "4.json", "5.json", "notes.txt"]),
        }
    });
}

fn check_error(change: impl Fn(&Place), expected: &str) {
    everywhere(|place| {
        let mut store = store(place);
        store.publish_and_tidy(&progress(8), &blocks(8)).unwrap();
        drop(store);
        change(place);
        let opened = Store::open(place, "job", "digest").and_then(|mut store| store.load());
        let error = opened.unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    });
}

#[test]
fn errors_name_the_file_and_what_to_do() {
    let replace = |from: &'static str, to: &'static str| {
        move |place: &Place| {
            let text = String::from_utf8(bytes(place, "manifest/2.json")).unwrap();
            assert!(text.contains(from));
            put(place, "manifest/2.json", text.replace(from, to).as_bytes());
        }
    };
    let (newer, older) = (format!("\"format\": {}", FORMAT + 1), format!("\"format\": {}", FORMAT_OLDEST - 1));
    let (newer, older): (&'static str, &'static str) = (newer.leak(), older.leak());
    check_error(replace("\"format\": 5", newer), "was written by a newer Millstream");
    check_error(replace("\"format\": 5", older), "was written by an older Millstream");
    check_error(replace("4096", "4097"), "2.json: does not have its checksum; the checkpoint is damaged");
    check_error(replace("{", "["), "2.json: is not a manifest");
    check_error(
        |place| put(place, "manifest/3.json", &bytes(place, "manifest/2.json")),
        "3.json: the manifest has number 2",
    );
    check_error(
        |place| {
            place.0.remove(vec!["seg/1-1.seg".to_string()]).unwrap();
            check_files(place, &["1.json", "2.json"]);
        },
        "seg/1-1.seg: ",
    );
    check_error(
        |place| {
            let mut bytes = bytes(place, "seg/1-1.seg");
            let at = bytes.windows(4).position(|window| window == b"zero").unwrap();
            bytes[at] = b'Z';
            put(place, "seg/1-1.seg", &bytes);
        },
        "seg/1-1.seg: block 0 at byte 8 (`card`, part 255, epoch 8) does not have its checksum",
    );
}

/// A build that wrote no parts wrote the format before.
#[test]
fn a_checkpoint_of_the_oldest_format_is_taken_up() {
    in_process(|place| {
        store(place).publish_and_tidy(&progress(8), &blocks(8)).unwrap();
        let mut manifest = Manifest::parse(&bytes(place, "manifest/2.json")).unwrap();
        manifest.format = FORMAT_OLDEST;
        put(place, "manifest/2.json", &manifest.text());
        let (mut store, loaded) = again(place);
        assert_eq!(standing(&loaded.unwrap())["card"], [("zero".to_string(), "state of 8".to_string())]);
        store.publish_and_tidy(&progress(9), &blocks(9)).unwrap();
        let newest = Manifest::read(&*place.0, 4).unwrap().unwrap();
        assert_eq!((newest.format, newest.segments.len()), (FORMAT, 2));
    });
}

#[test]
fn state_of_another_job_is_refused() {
    everywhere(|place| {
        store(place).publish_and_tidy(&progress(8), &blocks(8)).unwrap();
        let mut other = Store::open(place, "other", "digest").unwrap();
        for error in [other.load().unwrap_err(), other.take_over().unwrap_err()] {
            let error = error.to_string();
            assert!(error.contains("this is the state of job `job`, not of `other`"), "{error}");
        }
        // Who is refused takes nothing over.
        assert_eq!(files(place), ["1-1.seg", "1.json", "2.json"]);
    });
}

#[test]
fn a_segment_of_another_checkpoint_is_refused() {
    everywhere(|one| {
        let other = &faults::memory(faults::Faults::default());
        store(one).publish_and_tidy(&progress(8), &blocks(8)).unwrap();
        let mut changed = blocks(8);
        changed[0].bytes = row("ZERO", Some("state of 8"));
        store(other).publish_and_tidy(&progress(8), &changed).unwrap();
        put(one, "seg/1-1.seg", &bytes(other, "seg/1-1.seg"));
        let error = Store::open(one, "job", "digest").unwrap().load().unwrap_err().to_string();
        assert!(error.contains("is whole, but not the segment that the manifest names"), "{error}");
    });
}

/// Not one byte that a manifest names can change, and not one can be missing, without an error. What stands behind them in
/// a segment, a later checkpoint's that never was, is nothing.
#[test]
fn every_flip_and_every_cut_is_an_error() {
    in_process(|place| {
        let mut store = store(place);
        store.publish_and_tidy(&progress(8), &blocks(8)).unwrap();
        let expected = store.load().unwrap();
        for key in ["manifest/2.json", "seg/1-1.seg"] {
            let whole = bytes(place, key);
            for at in 0..whole.len() {
                for flip in [0x01, 0x20, 0x80] {
                    let mut bytes = whole.clone();
                    bytes[at] ^= flip;
                    put(place, key, &bytes);
                    assert!(store.load().is_err(), "{key}: byte {at} xor {flip}");
                }
                put(place, key, &whole[..at]);
                assert!(store.load().is_err(), "{key}: cut at {at}");
            }
            put(place, key, &[&whole[..], b"\n"].concat());
            assert_eq!(store.load().is_err(), key.starts_with("manifest"), "{key}: a byte more");
            put(place, key, &whole);
        }
        assert_eq!(store.load().unwrap(), expected);
    });
}

/// Outputs repeat names and headers from record to record.
#[test]
fn outputs_are_compressed() {
    in_process(|place| {
        let records: String = (0..1000).map(|id| format!(r#"{{"id":{id},"score":0.5,"model":"delay@3"}}"#)).collect();
        let mut store = store(place);
        for kind in [Kind::Outbox, Kind::Offline] {
            let written = store.append(&[block(kind, "out", 0, 1, records.clone().into())]).unwrap();
            assert!(written * 5 < records.len() as u64, "{written} bytes of {}", records.len());
        }
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever stands in a segment, reading it gives an error, not a panic.
    #[test]
    fn garbage_is_an_error(bytes in prop::collection::vec(any::<u8>(), 0..200), magic in any::<bool>()) {
        let bytes = if magic { [b"MSTRSEG2".as_slice(), &bytes].concat() } else { bytes };
        let summary = segment::Summary {
            file: "x".into(), last_epoch: 1, bytes: bytes.len() as u64, blocks: 1, checksum: segment::digits(0)
        };
        prop_assert!(segment::Scan::new(&bytes[..], &summary).blocks(|block| block.open().map(drop)).is_err());
    }

    #[test]
    fn any_blocks_come_back(
        written in prop::collection::vec((0..3_u8, "[a-z.é]{0,9}", any::<u16>(), any::<u64>(), (prop::collection::vec(any::<u8>(), 0..50), 1..20_usize)), 0..9),
    ) {
        let kinds = [Kind::State, Kind::Outbox, Kind::Offline];
        let blocks: Vec<Block> = written.into_iter()
            .map(|(kind, name, part, epoch, (bytes, times))| block(kinds[kind as usize], &name, part, epoch, bytes.repeat(times))).collect();
        everywhere(|place| {
            let mut store = store(place);
            let (first, second) = blocks.split_at(blocks.len() / 2);
            store.append(first).unwrap();
            store.append(second).unwrap();
            let mut found = Vec::new();
            for summary in store.closed.iter().cloned().chain(store.open.iter().map(Appender::summary)) {
                let read = segment::read(&*place.0, &summary, |block| {
                    found.push(block.open()?);
                    Ok(())
                });
                read.unwrap();
            }
            assert_eq!(found, blocks);
        });
    }
}

/// The state that stands, of each node: key to value, with its parts.
fn standing(checkpoint: &Checkpoint) -> BTreeMap<String, Vec<(String, String)>> {
    use millstream_operators::state::rows::{self, Change};
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let node = |(node, state): (&String, &NodeState)| {
        let mut values: Vec<(String, String)> = Vec::new();
        let merged = rows::merge(state.values().flatten().map(Vec::as_slice)).unwrap();
        for row in rows::read(&merged) {
            match row.unwrap() {
                (key, Change::Whole(value)) => values.push((text(key), text(value))),
                (_, Change::Part(part)) => values.last_mut().unwrap().1.push_str(&text(part)),
                (key, Change::Gone) => panic!("{key:?} is gone"),
            }
        }
        (node.clone(), values)
    };
    checkpoint.nodes.iter().map(node).collect()
}

/// Drops a node and brings it back under its name, with so many starts in each part.
fn drop_and_bring_back(place: &Place, starts: usize) {
    let mut epoch = 0;
    let mut publish = |nodes: &[(&str, u64)], key: &str| {
        let mut all = definitions(nodes);
        all.extend(definitions(&[("sinks.out", nodes[0].1), ("offline.out", nodes[0].1)]));
        let committed = [(effect_name("sinks.out", 0), 0), (effect_name("offline.out", 0), 0)].into();
        let at = Progress { definitions: all, committed, ..Progress::default() };
        for _ in 0..starts {
            let (mut store, _) = again(place);
            epoch += 1;
            let state = nodes.iter().map(|(node, _)| block(Kind::State, node, 3, epoch, row(key, Some("there"))));
            let outputs = [Kind::Outbox, Kind::Offline].map(|kind| block(kind, "out", 0, epoch, vec![1]));
            let blocks: Vec<Block> = state.chain(outputs).collect();
            store.publish_and_tidy(&Progress { epoch, ..at.clone() }, &blocks).unwrap();
            while store.compaction.is_some() {
                epoch += 1;
                store.publish_and_tidy(&Progress { epoch, ..at.clone() }, &[]).unwrap();
            }
        }
        (again(place).1.unwrap(), epoch)
    };
    let keys = |of: &[&str]| of.iter().map(|key| (key.to_string(), "there".to_string())).collect::<Vec<_>>();
    publish(&[("a", 0), ("features.card", 0)], "early");
    let (without, dropped) = publish(&[("a", 0)], "without");
    assert_eq!(standing(&without), [("a".to_string(), keys(&["early", "without"]))].into(), "{starts} starts");
    let (back, _) = publish(&[("a", dropped), ("features.card", dropped)], "late");
    let late = ["a", "features.card"].map(|node| (node.to_string(), keys(&["late"])));
    assert_eq!(standing(&back), late.into(), "{starts} starts");
    let oldest = [&back.outbox[&("out".to_string(), 0)], &back.offline["out"]].map(|pending| pending[0].0);
    assert_eq!(oldest, [dropped + 1; 2], "{starts} starts");
}

#[test]
fn a_node_that_is_dropped_and_comes_back_finds_nothing_of_before() {
    everywhere(|place| drop_and_bring_back(place, 1));
    // So many starts that changes are merged in each part.
    everywhere(|place| drop_and_bring_back(place, Limits::DEFAULT.files + 4));
}
