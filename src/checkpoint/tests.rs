//! Checkpoints that are whole, and all the ways in which they are not.

use proptest::prelude::*;

use super::*;

fn progress(epoch: u64) -> Progress {
    let positions = Positions([(("flights.jsonl".to_string(), 0), 42), (("trips".to_string(), 3), -1)].into());
    Progress {
        epoch,
        positions: [("flights".to_string(), positions)].into(),
        event_times: [("flights".to_string(), [(("trips".to_string(), 3), i64::MIN)].into())].into(),
        sinks: [("out".to_string(), 4096)].into(),
        committed: [(effect_name("sinks.kafka \"quoted\"", 1), epoch - 1)].into(),
        definitions: definitions(&[("card", 0), ("é", 0), ("sinks.kafka \"quoted\"", 0)]),
    }
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

fn store(folder: &Path) -> Store {
    Store::open(folder, "job", "digest").unwrap()
}

/// A store that has loaded what there is.
fn again(folder: &Path) -> (Store, Option<Checkpoint>) {
    let mut store = store(folder);
    let checkpoint = store.load().unwrap();
    (store, checkpoint)
}

fn files(folder: &Path) -> Vec<String> {
    let list = |name: &&str| fs::read_dir(folder.join(name)).unwrap();
    let named =
        ["manifest", "seg"].iter().flat_map(list).map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = named.collect();
    names.sort();
    names
}

#[test]
fn what_was_published_is_loaded() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().join("new/state");
    let (mut first, nothing) = again(&folder);
    assert_eq!((nothing, first.generation()), (None, 1));
    let id = first.id().to_string();
    for epoch in 5..9 {
        first.publish(&progress(epoch), &blocks(epoch)).unwrap();
    }
    drop(first);
    let (mut second, loaded) = again(&folder);
    let loaded = loaded.unwrap();
    assert_eq!((second.generation(), second.id()), (2, &*id));
    assert_eq!(loaded.progress, progress(8));
    let parts = &loaded.nodes["card"][&255];
    assert_eq!(parts.len(), 4, "changes of four epochs, the oldest first");
    assert_eq!(parts[3], row("zero", Some("state of 8")));
    // Epoch 7 was known to be committed; the outbox of 8 is not.
    assert_eq!(loaded.outbox[&("kafka \"quoted\"".to_string(), 1)], [(8, vec![8])]);
    second.publish(&progress(9), &[]).unwrap();
    drop(second);
    let (_, loaded) = again(&folder);
    let loaded = loaded.unwrap();
    assert_eq!((loaded.progress.epoch, loaded.outbox.len(), loaded.nodes["card"][&255].len()), (9, 0, 4));
}

#[test]
fn the_newest_two_are_kept_and_leftovers_are_swept() {
    let folder = tempfile::tempdir().unwrap();
    let mut first = store(folder.path());
    first.publish(&progress(8), &blocks(8)).unwrap();
    drop(first);
    // What crashes leave: drafts, and a segment whose manifest was never published.
    for name in ["seg/9.tmp", "seg/9-9.seg", "seg/base-7.seg", "manifest/9.tmp"] {
        fs::write(folder.path().join(name), "half").unwrap();
    }
    let (mut second, loaded) = again(folder.path());
    assert_eq!(loaded.unwrap().progress, progress(8));
    for epoch in [9, 10, 100] {
        second.publish(&progress(epoch), &blocks(epoch)).unwrap();
    }
    assert_eq!(files(folder.path()), ["1-8.seg", "10.json", "100.json", "2-9.seg"]);
}

#[test]
fn changes_are_merged_into_a_base_and_old_files_go() {
    let folder = tempfile::tempdir().unwrap();
    let mut epoch = 1;
    let mut expected = BTreeMap::new();
    // So many starts leave more segments than are kept apart.
    for start in 0..FILES_MAX + 4 {
        let (mut store, _) = again(folder.path());
        for _ in 0..3 {
            epoch += 1;
            let (key, value) = (format!("key {}", epoch % 5), format!("value {epoch}"));
            let gone = format!("key {}", (epoch + 2) % 5);
            let changes = vec![
                block(Kind::State, "card", 3, epoch, row(&gone, None)),
                block(Kind::State, "card", 3, epoch, row(&key, Some(&value))),
            ];
            expected.remove(&gone);
            expected.insert(key, value);
            store.publish(&progress(epoch), &changes).unwrap();
        }
        // The merge is done by a thread; a later checkpoint takes it up.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while store.compaction.is_some() && std::time::Instant::now() < deadline {
            epoch += 1;
            store.publish(&progress(epoch), &[]).unwrap();
        }
        assert!(store.compaction.is_none(), "start {start}: the merge ends");
    }
    let (store, loaded) = again(folder.path());
    let parts = &loaded.unwrap().nodes["card"][&3];
    let merged = millstream_operators::state::rows::merge(parts.iter().map(Vec::as_slice)).unwrap();
    let rows: BTreeMap<String, String> = millstream_operators::state::rows::read(&merged)
        .map(|row| row.unwrap())
        .map(|(key, value)| {
            let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
            (text(key), text(value.unwrap()))
        })
        .collect();
    assert_eq!(rows, expected);
    let base = store.base.as_ref().expect("a base").epoch;
    assert!(base > 30, "merged up to epoch {base}");
    assert!(files(folder.path()).len() < FILES_MAX, "{:?}", files(folder.path()));
}

#[test]
fn an_epoch_is_published_once() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = store(folder.path());
    store.publish(&progress(8), &blocks(8)).unwrap();
    assert!(matches!(store.publish(&progress(8), &[]), Err(CheckpointError::Exists { .. })));
    assert_eq!(store.load().unwrap().unwrap().progress, progress(8));
}

#[test]
fn a_try_that_failed_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = store(folder.path());
    store.publish(&progress(8), &blocks(8)).unwrap();
    // No draft of a manifest can be made: a folder is in its place.
    for epoch in [9, 10] {
        fs::create_dir(folder.path().join(format!("manifest/{epoch}.tmp"))).unwrap();
        assert!(matches!(store.publish(&progress(epoch), &blocks(9)), Err(CheckpointError::Io { .. })));
    }
    // The next try brings the same blocks and more.
    let all = [blocks(9), blocks(11)].concat();
    store.publish(&progress(11), &all).unwrap();
    drop(store);
    let (_, loaded) = again(folder.path());
    let loaded = loaded.unwrap();
    assert_eq!(loaded.outbox[&("kafka \"quoted\"".to_string(), 1)], [(11, vec![11])]);
    assert_eq!(loaded.nodes["card"][&255].len(), 3, "of the epochs 8, 9 and 11, each once");
}

#[test]
fn a_second_copy_of_the_job_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let first = store(folder.path());
    let error = Store::open(folder.path(), "job", "digest").unwrap_err().to_string();
    let expected = format!("process {} is running this job; stop it first", std::process::id());
    assert!(error.contains(&expected), "{error}");
    assert!(Store::forget(folder.path()).is_err());
    drop(first);
    store(folder.path());
}

#[test]
fn a_job_that_is_forgotten_starts_anew_and_other_files_stay() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    Store::forget(&state).unwrap();
    let mut before = store(&state);
    before.publish(&progress(8), &blocks(8)).unwrap();
    let id = before.id().to_string();
    drop(before);
    fs::write(state.join("notes.txt"), "mine").unwrap();
    Store::forget(&state).unwrap();
    let (after, loaded) = again(&state);
    assert_eq!(loaded, None);
    assert_ne!(after.id(), id, "another life: markers of the one before count no more");
    assert!(state.join("notes.txt").exists());
}

fn check_error(change: impl Fn(&Path), expected: &str) {
    let folder = tempfile::tempdir().unwrap();
    let mut store = store(folder.path());
    store.publish(&progress(8), &blocks(8)).unwrap();
    change(folder.path());
    let error = store.load().unwrap_err().to_string();
    assert!(error.contains(expected), "{error}");
}

#[test]
fn errors_name_the_file_and_what_to_do() {
    let replace = |name: &'static str, from: &'static str, to: &'static str| {
        move |folder: &Path| {
            let text = fs::read_to_string(folder.join(name)).unwrap();
            assert!(text.contains(from));
            fs::write(folder.join(name), text.replace(from, to)).unwrap();
        }
    };
    check_error(
        replace("manifest/8.json", "\"format\": 3", "\"format\": 4"),
        "format 4 was written by a newer Millstream",
    );
    check_error(
        replace("manifest/8.json", "\"format\": 3", "\"format\": 1"),
        "format 1 was written by an older Millstream",
    );
    check_error(
        replace("manifest/8.json", "4096", "4097"),
        "8.json: does not have its checksum; the checkpoint is damaged",
    );
    check_error(replace("manifest/8.json", "{", "["), "8.json: is not a manifest");
    check_error(|folder| fs::remove_file(folder.join("seg/1-8.seg")).unwrap(), "seg/1-8.seg: No such file");
    check_error(
        |folder| {
            let path = folder.join("seg/1-8.seg");
            let mut bytes = fs::read(&path).unwrap();
            let at = bytes.windows(4).position(|window| window == b"zero").unwrap();
            bytes[at] = b'Z';
            fs::write(&path, bytes).unwrap();
        },
        "seg/1-8.seg: block 0 at byte 8 (`card`, part 255, epoch 8) does not have its checksum",
    );
    check_error(
        |folder| fs::rename(folder.join("manifest/8.json"), folder.join("manifest/9.json")).unwrap(),
        "of epoch 8",
    );
}

#[test]
fn state_of_another_job_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    store(folder.path()).publish(&progress(8), &blocks(8)).unwrap();
    let error = Store::open(folder.path(), "other", "digest").unwrap().load().unwrap_err().to_string();
    assert!(error.contains("this is the state of job `job`, not of `other`"), "{error}");
}

#[test]
fn a_segment_of_another_checkpoint_is_refused() {
    let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    store(one.path()).publish(&progress(8), &blocks(8)).unwrap();
    let mut changed = blocks(8);
    changed[0].bytes = row("ZERO", Some("state of 8"));
    store(other.path()).publish(&progress(8), &changed).unwrap();
    fs::copy(other.path().join("seg/1-8.seg"), one.path().join("seg/1-8.seg")).unwrap();
    let error = store(one.path()).load().unwrap_err().to_string();
    assert!(error.contains("is whole, but not the segment that the manifest names"), "{error}");
}

#[test]
fn a_folder_that_cannot_be_written_says_so() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("state"), "a file").unwrap();
    let error = Store::open(&folder.path().join("state"), "job", "digest").unwrap_err().to_string();
    assert!(error.starts_with("make "), "{error}");
}

/// Not one byte that a manifest names can change, and not one can be missing, without an error. What stands behind them in
/// a segment, a later checkpoint's that never was, is nothing.
#[test]
fn every_flip_and_every_cut_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = store(folder.path());
    store.publish(&progress(8), &blocks(8)).unwrap();
    let expected = store.load().unwrap();
    for name in ["manifest/8.json", "seg/1-8.seg"] {
        let path = folder.path().join(name);
        let whole = fs::read(&path).unwrap();
        for at in 0..whole.len() {
            for flip in [0x01, 0x20, 0x80] {
                let mut bytes = whole.clone();
                bytes[at] ^= flip;
                fs::write(&path, &bytes).unwrap();
                assert!(store.load().is_err(), "{name}: byte {at} xor {flip}");
            }
            fs::write(&path, &whole[..at]).unwrap();
            assert!(store.load().is_err(), "{name}: cut at {at}");
        }
        fs::write(&path, [&whole[..], b"\n"].concat()).unwrap();
        assert_eq!(store.load().is_err(), name.starts_with("manifest"), "{name}: a byte more");
        fs::write(&path, &whole).unwrap();
    }
    assert_eq!(store.load().unwrap(), expected);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever stands in a segment, reading it gives an error, not a panic.
    #[test]
    fn garbage_is_an_error(bytes in prop::collection::vec(any::<u8>(), 0..200), magic in any::<bool>()) {
        let bytes = if magic { [b"MSTRSEG2".as_slice(), &bytes].concat() } else { bytes };
        let summary = segment::Summary {
            file: "x".into(), last_epoch: 1, bytes: bytes.len() as u64, state_bytes: 0, blocks: 1, checksum: segment::digits(0)
        };
        prop_assert!(segment::Scan::new(&bytes[..], &summary).blocks(|_| Ok(())).is_err());
    }

    #[test]
    fn any_blocks_come_back(
        written in prop::collection::vec((0..3_u8, "[a-z.é]{0,9}", any::<u16>(), any::<u64>(), prop::collection::vec(any::<u8>(), 0..50)), 0..9),
    ) {
        let kinds = [Kind::State, Kind::Outbox, Kind::Offline];
        let blocks: Vec<Block> = written.into_iter()
            .map(|(kind, name, part, epoch, bytes)| block(kinds[kind as usize], &name, part, epoch, bytes)).collect();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.seg");
        let mut appender = Appender::create(&path, "a.seg").unwrap();
        let (first, second) = blocks.split_at(blocks.len() / 2);
        appender.append(first).unwrap();
        appender.append(second).unwrap();
        let summary = appender.summary();
        let mut found = Vec::new();
        let read = segment::read(&path, &summary, |block| {
            found.push(block);
            Ok(())
        });
        read.unwrap();
        prop_assert_eq!(found, blocks);
    }
}

/// The state that stands, of each node: key to value.
fn standing(checkpoint: &Checkpoint) -> BTreeMap<String, Vec<(String, String)>> {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let node = |(node, state): (&String, &NodeState)| {
        let merged = millstream_operators::state::rows::merge(state.values().flatten().map(Vec::as_slice)).unwrap();
        let rows = millstream_operators::state::rows::read(&merged).map(|row| row.unwrap());
        (node.clone(), rows.map(|(key, value)| (text(key), text(value.unwrap()))).collect())
    };
    checkpoint.nodes.iter().map(node).collect()
}

/// Drops a node and brings it back under its name, with so many starts in each part.
fn drop_and_bring_back(starts: usize) {
    let folder = tempfile::tempdir().unwrap();
    let mut epoch = 0;
    let mut publish = |nodes: &[(&str, u64)], key: &str| {
        let mut all = definitions(nodes);
        all.extend(definitions(&[("sinks.out", nodes[0].1), ("offline.out", nodes[0].1)]));
        let committed = [(effect_name("sinks.out", 0), 0), (effect_name("offline.out", 0), 0)].into();
        let at = Progress { definitions: all, committed, ..Progress::default() };
        for _ in 0..starts {
            let (mut store, _) = again(folder.path());
            epoch += 1;
            let state = nodes.iter().map(|(node, _)| block(Kind::State, node, 3, epoch, row(key, Some("there"))));
            let outputs = [Kind::Outbox, Kind::Offline].map(|kind| block(kind, "out", 0, epoch, vec![1]));
            let blocks: Vec<Block> = state.chain(outputs).collect();
            store.publish(&Progress { epoch, ..at.clone() }, &blocks).unwrap();
            while store.compaction.is_some() {
                epoch += 1;
                store.publish(&Progress { epoch, ..at.clone() }, &[]).unwrap();
            }
        }
        (again(folder.path()).1.unwrap(), epoch)
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
    drop_and_bring_back(1);
    // So many starts that changes are merged in each part.
    drop_and_bring_back(FILES_MAX + 4);
}
