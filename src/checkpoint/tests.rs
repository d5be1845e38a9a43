//! Checkpoints that are whole, and all the ways in which they are not.

use proptest::prelude::*;

use super::*;

fn checkpoint(epoch: u64) -> Checkpoint {
    let positions = Positions([(("flights.jsonl".to_string(), 0), 42), (("trips".to_string(), 3), -1)].into());
    let state: NodeState = [(0, b"zero".to_vec()), (255, vec![0; 40]), (7, Vec::new())].into();
    Checkpoint {
        epoch,
        generation: 2,
        topology: "digest".into(),
        positions: [("flights".to_string(), positions)].into(),
        event_times: [("flights".to_string(), [(("trips".to_string(), 3), i64::MIN)].into())].into(),
        sinks: [("out".to_string(), 4096)].into(),
        counters: [("rejects \"quoted\"".to_string(), u64::MAX)].into(),
        nodes: [("card".to_string(), state), ("é".to_string(), [(1, vec![9])].into())].into(),
        slow: Some(b"slow".to_vec()),
    }
}

fn store(folder: &Path) -> Store {
    Store::open(folder, "job").unwrap()
}

#[test]
fn what_was_published_is_loaded() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(&folder.path().join("new/state"));
    assert_eq!(store.load("digest").unwrap(), None);
    for checkpoint in [Checkpoint { topology: "digest".into(), epoch: 1, ..Checkpoint::default() }, checkpoint(9)] {
        store.publish(&checkpoint).unwrap();
        assert_eq!(store.load("digest").unwrap(), Some(checkpoint));
    }
}

#[test]
fn the_newest_two_are_kept_and_leftovers_are_swept() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    store.publish(&checkpoint(8)).unwrap();
    // What crashes leave: drafts, and a segment whose manifest was never published.
    for name in ["seg/9.tmp", "seg/9.seg", "seg/7.seg", "manifest/9.tmp"] {
        fs::write(folder.path().join(name), "half").unwrap();
    }
    assert_eq!(store.load("digest").unwrap(), Some(checkpoint(8)));
    for epoch in [9, 10, 100] {
        store.publish(&checkpoint(epoch)).unwrap();
    }
    let mut names: Vec<String> = ["manifest", "seg"]
        .iter()
        .flat_map(|name| fs::read_dir(folder.path().join(name)).unwrap())
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["10.json", "10.seg", "100.json", "100.seg"]);
    assert_eq!(store.load("digest").unwrap(), Some(checkpoint(100)));
}

#[test]
fn an_epoch_is_published_once() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    store.publish(&checkpoint(8)).unwrap();
    let second = Checkpoint { generation: 3, ..checkpoint(8) };
    assert!(matches!(store.publish(&second), Err(CheckpointError::Exists { .. })));
    assert_eq!(store.load("digest").unwrap(), Some(checkpoint(8)));
}

#[test]
fn a_second_copy_of_the_job_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let first = store(folder.path());
    let error = Store::open(folder.path(), "job").unwrap_err().to_string();
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
    store(&state).publish(&checkpoint(8)).unwrap();
    fs::write(state.join("notes.txt"), "mine").unwrap();
    Store::forget(&state).unwrap();
    assert_eq!(store(&state).load("digest").unwrap(), None);
    assert!(state.join("notes.txt").exists());
}

fn check_error(change: impl Fn(&Path), expected: &str) {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    store.publish(&checkpoint(8)).unwrap();
    change(folder.path());
    let error = store.load("digest").unwrap_err().to_string();
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
        replace("manifest/8.json", "\"format\": 1", "\"format\": 2"),
        "format 2 was written by a newer Millstream",
    );
    check_error(
        replace("manifest/8.json", "4096", "4097"),
        "8.json: does not have its checksum; the checkpoint is damaged",
    );
    check_error(replace("manifest/8.json", "{", "["), "8.json: is not a manifest");
    check_error(|folder| fs::remove_file(folder.join("seg/8.seg")).unwrap(), "seg/8.seg: No such file");
    check_error(
        |folder| {
            let path = folder.join("seg/8.seg");
            let mut bytes = fs::read(&path).unwrap();
            let at = bytes.windows(4).position(|window| window == b"zero").unwrap();
            bytes[at] = b'Z';
            fs::write(&path, bytes).unwrap();
        },
        "seg/8.seg: block 0 at byte 8 (`card`, key group 0) does not have its checksum",
    );
    check_error(
        |folder| fs::rename(folder.join("manifest/8.json"), folder.join("manifest/9.json")).unwrap(),
        "of epoch 8",
    );
}

#[test]
fn state_of_another_job_or_topology_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    store(folder.path()).publish(&checkpoint(8)).unwrap();
    let error = Store::open(folder.path(), "other").unwrap().load("digest").unwrap_err().to_string();
    assert!(error.contains("this is the state of job `job`, not of `other`"), "{error}");
    let error = store(folder.path()).load("another digest").unwrap_err().to_string();
    assert!(error.contains("the topology has changed since this checkpoint of epoch 8"), "{error}");
}

#[test]
fn a_segment_of_another_checkpoint_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    store.publish(&Checkpoint { slow: Some(b"fast".to_vec()), ..checkpoint(8) }).unwrap();
    store.publish(&checkpoint(9)).unwrap();
    fs::copy(folder.path().join("seg/8.seg"), folder.path().join("seg/9.seg")).unwrap();
    let error = store.load("digest").unwrap_err().to_string();
    assert!(error.contains("is whole, but not the segment that the manifest names"), "{error}");
}

#[test]
fn a_folder_that_cannot_be_written_says_so() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("state"), "a file").unwrap();
    let error = Store::open(&folder.path().join("state"), "job").unwrap_err().to_string();
    assert!(error.starts_with("make "), "{error}");
}

/// Not one byte can change, and not one can be missing, without an error.
#[test]
fn every_flip_and_every_cut_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    store.publish(&checkpoint(8)).unwrap();
    for name in ["manifest/8.json", "seg/8.seg"] {
        let path = folder.path().join(name);
        let whole = fs::read(&path).unwrap();
        for at in 0..whole.len() {
            for flip in [0x01, 0x20, 0x80] {
                let mut bytes = whole.clone();
                bytes[at] ^= flip;
                fs::write(&path, &bytes).unwrap();
                assert!(store.load("digest").is_err(), "{name}: byte {at} xor {flip}");
            }
            fs::write(&path, &whole[..at]).unwrap();
            assert!(store.load("digest").is_err(), "{name}: cut at {at}");
        }
        fs::write(&path, [&whole[..], b"\n"].concat()).unwrap();
        assert!(store.load("digest").is_err(), "{name}: a byte more");
        fs::write(&path, &whole).unwrap();
    }
    assert_eq!(store.load("digest").unwrap(), Some(checkpoint(8)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever stands in a segment, reading it gives an error, not a panic.
    #[test]
    fn garbage_is_an_error(bytes in prop::collection::vec(any::<u8>(), 0..200), magic in any::<bool>()) {
        let bytes = if magic { [b"MSTRSEG1".as_slice(), &bytes].concat() } else { bytes };
        let summary = segment::Summary { bytes: bytes.len() as u64, blocks: 1, checksum: segment::digits(0) };
        prop_assert!(segment::parse(&bytes, &summary).is_err());
    }

    #[test]
    fn any_state_comes_back(
        nodes in prop::collection::btree_map("[a-z.]{1,9}", prop::collection::btree_map(any::<u16>(), prop::collection::vec(any::<u8>(), 0..50), 1..5), 0..5),
        slow in prop::option::of(prop::collection::vec(any::<u8>(), 0..50)),
    ) {
        let mut writer = segment::Writer::new(Vec::new());
        writer.state(&nodes, slow.as_deref()).unwrap();
        let (summary, bytes) = writer.finish().unwrap();
        prop_assert_eq!(segment::parse(&bytes, &summary), Ok((nodes, slow)));
    }
}
