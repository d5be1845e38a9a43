//! A newest checkpoint that is damaged: which is the newest one that is whole, and a job that goes on from it.

use super::*;
use crate::checkpoint::older::newest_whole;

/// What the newest whole checkpoint is called.
fn told(place: &Place) -> Option<String> {
    newest_whole(place, "job", true).unwrap().map(|origin| origin.told().to_string())
}

/// A job with a savepoint at epoch 5 and checkpoints up to epoch 9; gives the number of the newest.
fn killed(place: &Place) -> u64 {
    let mut running = store(place);
    savepoints::go_on(&mut running, 2..6);
    savepoint::save(place, "before").unwrap();
    savepoints::go_on(&mut running, 6..10);
    running.sequence
}

/// A start that goes on from the newest whole checkpoint as `epoch`.
fn go_on_from_older(place: &Place, epoch: u64) -> (Store, Checkpoint) {
    let mut store = Store::open(place, "job", "digest").unwrap();
    assert!(matches!(store.load(), Err(CheckpointError::Corrupt { .. })));
    let origin = newest_whole(place, "job", true).unwrap().unwrap();
    assert!(store.take_over_from(&origin, epoch).unwrap());
    (store, origin.checkpoint().unwrap())
}

#[test]
fn the_newest_checkpoint_that_is_whole_is_found() {
    in_process(|place| {
        let newest = killed(place);
        let manifest = |number: u64| manifest::key(number);
        let before = Some(format!("checkpoint {}", newest - 1));
        let all = bytes(place, &manifest(newest));
        let flipped: Vec<u8> = all.iter().enumerate().map(|(i, byte)| if i == 40 { byte ^ 1 } else { *byte }).collect();
        for damaged in [&flipped, &all[..all.len() / 2], b""] {
            put(place, &manifest(newest), damaged);
            assert_eq!(told(place), before);
        }
        let last = report::list(place).unwrap();
        assert_eq!(last.iter().map(|listed| listed.number).collect::<Vec<_>>(), [newest - 1], "the other is no harm");
        put(place, &manifest(newest - 1), b"{}");
        assert_eq!(told(place).as_deref(), Some("savepoint `before`"));
        assert!(newest_whole(place, "job", false).unwrap().is_none());
        assert!(newest_whole(place, "another", true).unwrap().is_none());
        put(place, "savepoint/before.json", b"");
        assert_eq!(told(place), None);
    });
}

#[test]
fn a_segment_that_is_gone_is_named_and_so_is_one_that_is_cut() {
    in_process(|place| {
        let newest = killed(place);
        let manifest = Manifest::read(&*place.0, newest).unwrap().unwrap();
        let (named, last) = (manifest.files(), segment::key(&manifest.segments.last().unwrap().file));
        let whole = bytes(place, &last);
        // What is at its end belongs to the newest only, where segments grow.
        put(place, &last, &whole[..whole.len() - 1]);
        let damage = Store::open(place, "job", "digest").unwrap().load().unwrap_err().to_string();
        assert!(damage.contains(&last) && damage.contains("the checkpoint is damaged"), "{damage}");
        assert!(told(place).is_some_and(|told| told.starts_with("checkpoint")));
        for file in &named {
            place.0.remove(vec![segment::key(file)]).unwrap();
        }
        until_gone(place, &named);
        let damage = Store::open(place, "job", "digest").unwrap().load().unwrap_err();
        assert!(matches!(&damage, CheckpointError::Corrupt { detail, .. } if detail == "is not there"), "{damage}");
    });
}

/// Waits until segments are removed: a bucket does so in its own time.
fn until_gone(place: &Place, named: &BTreeSet<String>) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while files(place).iter().any(|file| named.contains(file)) {
        assert!(Instant::now() < deadline, "{:?}", files(place));
    }
}

#[test]
fn a_job_goes_on_from_an_older_checkpoint_in_one_step() {
    everywhere(|place| {
        let newest = killed(place);
        put(place, &manifest::key(newest), b"torn");
        let (mut running, older) = go_on_from_older(place, 12);
        assert_eq!((running.sequence, running.generation()), (newest + 1, 3));
        // A start that is killed now has nothing to find out any more.
        let loaded = running.load().unwrap().unwrap();
        assert_eq!(loaded, Checkpoint { progress: Progress { epoch: 12, ..older.progress.clone() }, ..older });
        drop(running);
        let (mut next, loaded) = again(place);
        assert_eq!(loaded.unwrap().progress.epoch, 12);
        savepoints::go_on(&mut next, 13..40);
        assert_eq!(next.load().unwrap().unwrap().progress, progress(39));
        assert_eq!(told(place), Some(format!("checkpoint {}", next.sequence - 1)));
    });
}

/// Only one of two starts takes over from the same damage.
#[test]
fn of_two_starts_that_find_the_damage_one_goes_on() {
    let places = faults::memories(faults::Faults::default(), 2);
    let newest = killed(&places[0]);
    put(&places[0], &manifest::key(newest), b"torn");
    let mut late = Store::open(&places[1], "job", "digest").unwrap();
    assert!(late.load().is_err());
    let origin = newest_whole(&places[1], "job", true).unwrap().unwrap();
    let (mut first, _) = go_on_from_older(&places[0], 9);
    assert!(!late.take_over_from(&origin, 9).unwrap());
    savepoints::go_on(&mut first, 10..12);
    assert_eq!(late.load().unwrap().unwrap().progress, progress(11));
}
