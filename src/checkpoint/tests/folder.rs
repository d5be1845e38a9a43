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
    // No manifest can be made: a file is in the place of their folder.
    let (manifests, away) = (folder.path().join("manifest"), folder.path().join("away"));
    fs::rename(&manifests, &away).unwrap();
    fs::write(&manifests, "").unwrap();
    for epoch in [9, 10] {
        assert!(matches!(store.publish_and_tidy(&progress(epoch), &blocks(9)), Err(CheckpointError::Io { .. })));
        assert_eq!(fs::metadata(folder.path().join("seg/1-1.seg")).unwrap().len(), before);
    }
    fs::remove_file(&manifests).unwrap();
    fs::rename(&away, &manifests).unwrap();
    // The next try brings the same blocks and more.
    let all = [blocks(9), blocks(11)].concat();
    store.publish_and_tidy(&progress(11), &all).unwrap();
    drop(store);
    let (_, loaded) = again(&place);
    let loaded = loaded.unwrap();
    assert_eq!(loaded.outbox[&("kafka \"quoted\"".to_string(), 1)], [(11, vec![11])]);
    assert_eq!(loaded.nodes["card"][&255].len(), 3, "of the epochs 8, 9 and 11, each once");
}

#[test]
fn a_draft_that_a_crash_has_left_is_not_written_to() {
    let folder = tempfile::tempdir().unwrap();
    let place = Place::folder(folder.path());
    let storage = &*place.0;
    assert!(matches!(storage.create("saved/a.json", b"the first").unwrap(), Created::New));
    let published = folder.path().join("saved/a.json");
    // A crash between the two names of a file leaves both, and they are one file.
    fs::hard_link(&published, folder.path().join("saved/a.tmp")).unwrap();
    let taken = storage.create("saved/a.json", b"the second, which is longer").unwrap();
    assert!(matches!(taken, Created::Taken(found) if found == b"the first"));
    assert_eq!(fs::read(&published).unwrap(), b"the first");
    assert_eq!(fs::read_dir(folder.path().join("saved")).unwrap().count(), 2, "no draft stays");
}
