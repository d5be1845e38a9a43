//! What only a folder of a local disk does: it has a lock, and a disk that refuses.

use super::*;

#[test]
fn a_second_copy_of_the_job_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let place = Place::folder(folder.path());
    let first = store(&place);
    let error = Store::open(&place, "job", "digest").unwrap_err().to_string();
    let expected = format!("process {} is running this job; stop it first", std::process::id());
    assert!(error.contains(&expected), "{error}");
    assert!(Store::forget(&place).is_err());
    drop(first);
    store(&place);
}

#[test]
fn a_folder_that_cannot_be_written_says_so() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("state"), "a file").unwrap();
    let error = Store::open(&Place::folder(&folder.path().join("state")), "job", "digest").unwrap_err().to_string();
    assert!(error.starts_with("make "), "{error}");
}

#[test]
fn a_try_that_failed_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let place = Place::folder(folder.path());
    let mut store = store(&place);
    store.publish_and_tidy(&progress(8), &blocks(8)).unwrap();
    let before = fs::metadata(folder.path().join("seg/1-1.seg")).unwrap().len();
    // No draft of a manifest can be made: a folder is in its place.
    let draft = folder.path().join("manifest/3.tmp");
    fs::create_dir(&draft).unwrap();
    for epoch in [9, 10] {
        assert!(matches!(store.publish_and_tidy(&progress(epoch), &blocks(9)), Err(CheckpointError::Io { .. })));
        assert_eq!(fs::metadata(folder.path().join("seg/1-1.seg")).unwrap().len(), before);
    }
    fs::remove_dir(&draft).unwrap();
    // The next try brings the same blocks and more.
    let all = [blocks(9), blocks(11)].concat();
    store.publish_and_tidy(&progress(11), &all).unwrap();
    drop(store);
    let (_, loaded) = again(&place);
    let loaded = loaded.unwrap();
    assert_eq!(loaded.outbox[&("kafka \"quoted\"".to_string(), 1)], [(11, vec![11])]);
    assert_eq!(loaded.nodes["card"][&255].len(), 3, "of the epochs 8, 9 and 11, each once");
}
