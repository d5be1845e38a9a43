//! Two copies of a job: only one can publish, and the other is told.

use super::*;

/// Another copy takes over, seen from the place: a lock would have kept it away.
fn take_over(place: &Place, sequence: u64) {
    let newest = Manifest::read(&*place.0, sequence - 1).unwrap().unwrap();
    let text = newest.stamped(sequence, 9, "another writer").text();
    assert!(matches!(place.0.create(&manifest::key(sequence), &text).unwrap(), Created::New));
}

#[test]
fn who_has_lost_the_job_publishes_nothing() {
    everywhere(|place| {
        let mut store = store(place);
        store.publish(&progress(8), &blocks(8)).unwrap();
        take_over(place, 3);
        for _ in 0..2 {
            let error = store.publish(&progress(9), &blocks(9)).unwrap_err();
            assert!(matches!(error, CheckpointError::TakenOver { .. }), "{error}");
            let said = error.to_string();
            assert!(said.contains("3.json: another copy of this job has taken over; this one ends"), "{said}");
        }
        drop(store);
        let (other, loaded) = again(place);
        assert_eq!((loaded.unwrap().progress, other.generation()), (progress(8), 10));
    });
}

/// A manifest of an earlier try came through although the try seemed to fail: it is a checkpoint, and the next try is the
/// one after it, with each block once.
#[test]
fn an_earlier_try_that_came_through_is_ones_own() {
    everywhere(|place| {
        let mut store = store(place);
        store.publish(&progress(8), &blocks(8)).unwrap();
        let newest = Manifest::read(&*place.0, 2).unwrap().unwrap();
        let text = newest.stamped(3, 1, &store.writer).text();
        assert!(matches!(place.0.create("manifest/3.json", &text).unwrap(), Created::New));
        store.publish(&progress(9), &blocks(9)).unwrap();
        assert_eq!((store.sequence, store.load().unwrap().unwrap().progress.epoch), (4, 9));
    });
}
