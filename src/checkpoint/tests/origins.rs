//! Starts from another checkpoint than the newest, and copies of one at another place.

use super::report::Which;
use super::savepoint::SavepointError;
use super::*;
use crate::topology::S3;

/// The savepoint of a name.
fn origin(place: &Place, name: &str) -> Origin {
    Origin::find(place, name, &S3::default(), "job").unwrap()
}

/// Starts the job from a checkpoint as `epoch`, with what that knew.
fn go_back(place: &Place, origin: &Origin, epoch: u64) -> Store {
    let mut store = Store::open(place, "job", "digest").unwrap();
    let mut checkpoint = origin.checkpoint().unwrap();
    assert_ne!(store.standing(origin).unwrap(), Standing::There);
    assert!(store.take_over().unwrap());
    store.go_back(origin).unwrap();
    checkpoint.progress.epoch = epoch;
    store.publish_and_tidy(&checkpoint.progress, &[]).unwrap();
    store
}

/// What both of two checkpoints have, whatever their epochs.
fn check_same(one: &Checkpoint, other: &Checkpoint) {
    assert_eq!(standing(one), standing(other));
    assert_eq!((&one.outbox, &one.offline), (&other.outbox, &other.offline));
    let epoch = one.progress.epoch;
    assert_eq!(one.progress, Progress { epoch, ..other.progress.clone() });
}

/// A job with much behind it and a savepoint in the middle, and what that holds.
fn with_savepoint(place: &Place) -> (Store, Checkpoint) {
    let mut running = store(place);
    savepoints::go_on(&mut running, 2..30);
    savepoint::save(place, "before").unwrap();
    let saved = running.load().unwrap().unwrap();
    savepoints::go_on(&mut running, 30..60);
    (running, saved)
}

#[test]
fn a_job_goes_back_and_its_numbers_go_on() {
    everywhere(|place| {
        let (mut running, saved) = with_savepoint(place);
        let before = origin(place, "before");
        let elsewhere = Standing::Elsewhere { epoch: 59, same_life: true };
        assert_eq!(running.standing(&before).unwrap(), elsewhere);
        let (sequence, id) = (running.sequence, running.id.clone());
        drop(running);
        let mut back = go_back(place, &before, 59);
        assert_eq!((back.generation(), &back.id), (2, &id));
        assert!(back.sequence > sequence);
        let loaded = back.load().unwrap().unwrap();
        assert_eq!(loaded.progress.epoch, 59);
        check_same(&loaded, &saved);
        // It has gone back, and does not again, however often it is started and whatever it does.
        savepoints::go_on(&mut back, 60..90);
        assert_eq!(back.load().unwrap().unwrap().progress, progress(89));
        drop(back);
        let (mut again, _) = again(place);
        assert_eq!(again.standing(&before).unwrap(), Standing::There);
        savepoints::go_on(&mut again, 90..95);
        assert_eq!(again.standing(&before).unwrap(), Standing::There);
        drop(again);
        // What it has gone back to is whole still, and so is a job whose savepoint is deleted.
        check_same(&saved_as(place, "before"), &saved);
        savepoint::delete(place, "before").unwrap();
        let (mut last, loaded) = self::again(place);
        assert_eq!(loaded.unwrap().progress, progress(94));
        savepoints::go_on(&mut last, 95..120);
        assert_eq!(last.load().unwrap().unwrap().progress, progress(119));
    });
}

fn saved_as(place: &Place, name: &str) -> Checkpoint {
    report::checkpoint(place, Which::Named(name), "job").unwrap().unwrap()
}

#[test]
fn the_newest_state_is_where_the_job_is() {
    everywhere(|place| {
        let mut running = store(place);
        savepoints::go_on(&mut running, 2..10);
        savepoint::save(place, "now").unwrap();
        drop(running);
        let (mut next, _) = again(place);
        assert_eq!(next.standing(&origin(place, "now")).unwrap(), Standing::There);
        // Nothing was read in these epochs.
        next.publish_and_tidy(&Progress { epoch: 12, ..progress(9) }, &[]).unwrap();
        assert_eq!(next.standing(&origin(place, "now")).unwrap(), Standing::There);
        next.publish_and_tidy(&Progress { epoch: 12, ..progress(10) }, &blocks(12)).unwrap();
        let elsewhere = Standing::Elsewhere { epoch: 12, same_life: true };
        assert_eq!(next.standing(&origin(place, "now")).unwrap(), elsewhere);
        drop(next);
        Store::forget(place).unwrap();
        let mut anew = Store::open(place, "job", "digest").unwrap();
        assert_eq!(anew.standing(&origin(place, "now")).unwrap(), Standing::Nowhere);
        drop(anew);
        let mut anew = store(place);
        anew.publish_and_tidy(&progress(3), &blocks(3)).unwrap();
        let elsewhere = Standing::Elsewhere { epoch: 3, same_life: false };
        assert_eq!(anew.standing(&origin(place, "now")).unwrap(), elsewhere);
    });
}

/// Between taking over and the manifest that goes back the job is where it was.
#[test]
fn a_start_that_dies_while_it_goes_back_has_done_nothing() {
    everywhere(|place| {
        let (running, _) = with_savepoint(place);
        let newest = report::checkpoint(place, Which::Newest, "job").unwrap().unwrap();
        drop(running);
        let before = origin(place, "before");
        let mut dying = Store::open(place, "job", "digest").unwrap();
        dying.standing(&before).unwrap();
        assert!(dying.take_over().unwrap());
        dying.go_back(&before).unwrap();
        drop(dying);
        let (mut next, loaded) = again(place);
        check_same(&loaded.unwrap(), &newest);
        savepoints::go_on(&mut next, 60..62);
        // What it had copied is swept.
        savepoint::delete(place, "before").unwrap();
        drop(next);
        savepoints::go_on(&mut store(place), 62..80);
        savepoints::check_segments(place, 12);
    });
}

/// From a folder into a bucket and back, and no byte is trusted on the way.
#[test]
fn a_job_moves_from_place_to_place() {
    let folder = tempfile::tempdir().unwrap();
    let here = Place::folder(&folder.path().join("here"));
    let back = Place::folder(&folder.path().join("back"));
    everywhere(|there| {
        _ = fs::remove_dir_all(folder.path().join("here"));
        _ = fs::remove_dir_all(folder.path().join("back"));
        let (running, saved) = with_savepoint(&here);
        let newest = report::checkpoint(&here, Which::Newest, "job").unwrap().unwrap();
        let id = running.id.clone();
        drop(running);
        let listed = export(&here, Which::Newest, there).unwrap().unwrap();
        assert_eq!((listed.epoch, report::list(there).unwrap().len()), (59, 1));
        check_same(&report::checkpoint(there, Which::Newest, "job").unwrap().unwrap(), &newest);
        let error = export(&here, Which::Newest, there).unwrap_err();
        assert!(matches!(error, CheckpointError::NotEmpty { .. }), "{error}");
        // It is a job's state, of the same life.
        let (mut moved, loaded) = again(there);
        assert_eq!((&moved.id, loaded.unwrap().progress.epoch), (&id, 59));
        savepoints::go_on(&mut moved, 60..80);
        drop(moved);
        assert_eq!(export(&here, Which::Epoch(7), &back).unwrap(), None);
        export(&here, Which::Named("before"), &back).unwrap().unwrap();
        check_same(&report::checkpoint(&back, Which::Newest, "job").unwrap().unwrap(), &saved);
    });
}

#[test]
fn a_job_begins_from_what_lies_elsewhere() {
    everywhere(|place| {
        let folder = tempfile::tempdir().unwrap();
        let elsewhere = Place::folder(folder.path());
        let (running, _) = with_savepoint(&elsewhere);
        let newest = report::checkpoint(&elsewhere, Which::Newest, "job").unwrap().unwrap();
        drop(running);
        let told = folder.path().to_str().unwrap();
        let found = Origin::find(place, told, &S3::default(), "job").unwrap();
        assert!(!found.is_own() && found.told() == told);
        let mut begun = Store::open(place, "job", "digest").unwrap();
        assert_eq!(begun.standing(&found).unwrap(), Standing::Nowhere);
        drop(begun);
        let begun = go_back(place, &found, 59);
        drop(begun);
        drop(folder);
        let (mut next, loaded) = again(place);
        assert_eq!(loaded.as_ref(), Some(&newest));
        savepoints::go_on(&mut next, 60..90);
        assert_eq!(next.load().unwrap().unwrap().progress, progress(89));
    });
}

#[test]
fn what_is_damaged_is_not_carried_on() {
    in_process(|place| {
        let mut running = store(place);
        running.publish_and_tidy(&progress(8), &blocks(8)).unwrap();
        savepoint::save(place, "before").unwrap();
        drop(running);
        let folder = tempfile::tempdir().unwrap();
        let key = "seg/1-1.seg";
        let whole = bytes(place, key);
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            put(place, key, &damaged);
            let target = Place::folder(&folder.path().join(at.to_string()));
            let error = export(place, Which::Newest, &target).unwrap_err().to_string();
            assert!(error.contains("1-1.seg"), "{at}: {error}");
            assert_eq!(files(&target), Vec::<String>::new(), "{at}");
        }
        put(place, key, &whole[..whole.len() - 1]);
        let error = export(place, Which::Newest, &Place::folder(&folder.path().join("cut"))).unwrap_err().to_string();
        assert!(error.contains("1-1.seg: ends: the file has"), "{error}");
        let mut next = Store::open(place, "job", "digest").unwrap();
        next.take_over().unwrap();
        assert!(matches!(next.go_back(&origin(place, "before")), Err(CheckpointError::Corrupt { .. })));
    });
}

#[test]
fn what_is_not_there_is_told() {
    in_process(|place| {
        store(place).publish_and_tidy(&progress(8), &blocks(8)).unwrap();
        savepoint::save(place, "a").unwrap();
        let find = |told: &str| Origin::find(place, told, &S3::default(), "job").unwrap_err();
        let error = find("b");
        assert!(matches!(&error, SavepointError::Missing { there, .. } if there == &["a"]), "{error}");
        assert!(matches!(find("s3://UPPER/x"), SavepointError::NoPlace { .. }));
        assert!(matches!(find("/nowhere/at/all"), SavepointError::Nothing { .. }));
        assert!(matches!(find("a b"), SavepointError::Name { .. }));
        let error = Origin::find(place, "a", &S3::default(), "other").unwrap_err().to_string();
        assert!(error.contains("this is the state of job `job`, not of `other`"), "{error}");
    });
}
