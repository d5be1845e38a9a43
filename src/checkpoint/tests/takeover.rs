//! Two copies of a job: only one can publish, and the other is told.

use super::*;

/// Another copy takes over, seen from the place: a lock would have kept it away.
fn take_over(place: &Place, sequence: u64) {
    let newest = Manifest::read(&*place.0, sequence - 1).unwrap().unwrap();
    let text = newest.stamped(sequence, &Start { writer: "another".into(), generation: 9, first: sequence }).text();
    assert!(matches!(place.0.create(&manifest::key(sequence), &text).unwrap(), Created::New));
}

#[test]
fn who_has_lost_the_job_publishes_nothing() {
    everywhere(|place| {
        let mut store = store(place);
        store.publish_and_tidy(&progress(8), &blocks(8)).unwrap();
        take_over(place, 3);
        for _ in 0..2 {
            let error = store.publish_and_tidy(&progress(9), &blocks(9)).unwrap_err();
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
        store.publish_and_tidy(&progress(8), &blocks(8)).unwrap();
        let newest = Manifest::read(&*place.0, 2).unwrap().unwrap();
        let text = newest.stamped(3, &store.start).text();
        assert!(matches!(place.0.create("manifest/3.json", &text).unwrap(), Created::New));
        store.publish_and_tidy(&progress(9), &blocks(9)).unwrap();
        assert_eq!((store.sequence, store.load().unwrap().unwrap().progress.epoch), (4, 9));
    });
}

/// Two processes at one place without locks.
fn two() -> (Place, Place) {
    let mut places = faults::memories(faults::Faults::default(), 2);
    (places.remove(0), places.remove(0))
}

/// However many checkpoints the other copy makes and removes.
#[test]
fn a_copy_that_wakes_up_late_publishes_nothing() {
    let (one, other) = two();
    let mut late = store(&one);
    late.publish_and_tidy(&progress(8), &blocks(8)).unwrap();
    let mut newer = store(&other);
    for epoch in 9..30 {
        newer.publish_and_tidy(&progress(epoch), &blocks(epoch)).unwrap();
    }
    drop(newer);
    let mut newest = store(&other);
    for epoch in 30..50 {
        newest.publish_and_tidy(&progress(epoch), &blocks(epoch)).unwrap();
    }
    let before = newest.load().unwrap();
    for _ in 0..2 {
        let error = late.publish_and_tidy(&progress(9), &blocks(9)).unwrap_err();
        assert!(matches!(error, CheckpointError::TakenOver { .. }), "{error}");
    }
    assert_eq!(newest.load().unwrap(), before);
    newest.publish_and_tidy(&progress(50), &blocks(50)).unwrap();
}

/// A copy that has nothing to publish notices as well.
#[test]
fn an_idle_copy_looks_whether_it_has_lost() {
    let (one, other) = two();
    let mut idle = store(&one);
    idle.publish_and_tidy(&progress(8), &blocks(8)).unwrap();
    let long_ago = Instant::now() - Duration::from_secs(60);
    idle.looked = long_ago;
    idle.look().unwrap();
    drop(store(&other));
    idle.looked = long_ago;
    assert!(matches!(idle.look(), Err(CheckpointError::TakenOver { .. })));
}

#[test]
fn who_takes_over_from_a_copy_that_publishes_loads_again() {
    let (one, other) = two();
    let mut running = store(&one);
    running.publish_and_tidy(&progress(8), &blocks(8)).unwrap();
    let mut next = Store::open(&other, "job", "digest").unwrap();
    assert_eq!(next.load().unwrap().unwrap().progress, progress(8));
    for epoch in 9..20 {
        running.publish_and_tidy(&progress(epoch), &blocks(epoch)).unwrap();
    }
    assert!(!next.take_over().unwrap(), "what was loaded is not the newest");
    assert!(running.publish_and_tidy(&progress(20), &[]).is_err());
    assert_eq!(next.load().unwrap().unwrap().progress, progress(19));
    assert!(next.take_over().unwrap());
    next.publish_and_tidy(&progress(20), &blocks(20)).unwrap();
}

/// Old manifests are removed, so that a start that was slow finds its number free: that is not the next number.
#[test]
fn a_number_that_is_free_again_is_not_taken() {
    let (one, other) = two();
    let mut running = store(&one);
    running.publish_and_tidy(&progress(8), &blocks(8)).unwrap();
    let mut tries = 0;
    let read = |newest| {
        let manifest = Manifest::read(&*other.0, newest)?;
        tries += 1;
        if tries == 1 {
            for epoch in 9..20 {
                running.publish_and_tidy(&progress(epoch), &blocks(epoch)).unwrap();
            }
            // Removing takes its time.
            let next = manifest::key(newest + 1);
            let deadline = Instant::now() + Duration::from_secs(20);
            while other.0.read(&next)?.is_some() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(1));
            }
            assert_eq!(other.0.read(&next)?, None);
        }
        Ok(manifest)
    };
    let claimed = start::claim(&*other.0, "slow", read, |before| Ok(before.unwrap().clone())).unwrap();
    assert_eq!((claimed.before.unwrap().sequence, claimed.manifest.sequence), (13, 14));
}

/// A start that took over and died at once left a manifest that keeps the copy before away: it stays, whoever comes after.
#[test]
fn the_manifest_of_a_start_that_did_nothing_else_still_fences() {
    let (one, other) = two();
    let mut late = store(&one);
    late.publish_and_tidy(&progress(8), &blocks(8)).unwrap();
    drop(store(&other));
    let mut newest = store(&other);
    for epoch in 9..20 {
        newest.publish_and_tidy(&progress(epoch), &blocks(epoch)).unwrap();
    }
    drop(newest);
    let error = late.publish_and_tidy(&progress(9), &blocks(9)).unwrap_err();
    assert!(matches!(error, CheckpointError::TakenOver { .. }), "{error}");
}

/// A copy whose last manifest came through without its knowing tries it again: it must still be there.
#[test]
fn a_manifest_whose_answer_was_lost_is_not_made_again() {
    let faults = faults::Faults::default();
    let places = faults::memories(faults.clone(), 2);
    let mut late = store(&places[0]);
    late.publish_and_tidy(&progress(8), &blocks(8)).unwrap();
    faults.next([faults::Fault::AfterAndAway]);
    assert!(late.publish_and_tidy(&progress(9), &blocks(9)).unwrap_err().may_pass());
    let mut newest = store(&places[1]);
    for epoch in 10..20 {
        newest.publish_and_tidy(&progress(epoch), &blocks(epoch)).unwrap();
    }
    drop(newest);
    let error = late.publish_and_tidy(&progress(9), &blocks(9)).unwrap_err();
    assert!(matches!(error, CheckpointError::TakenOver { .. }), "{error}");
}

/// Several copies that start, publish and fail as they please. Each counts on from what it has loaded, so if two ever
/// believed at once to be the one, an epoch would be decided twice.
#[test]
fn no_epoch_is_decided_twice_whoever_fights_for_the_job() {
    use faults::Fault::{After, AfterAndAway, AnswerLost, Before, Conflict, None};
    let faults = faults::Faults::default();
    let places = faults::memories(faults.clone(), 3);
    let decided = std::sync::Mutex::new(Vec::new());
    let run = |place: &Place| {
        for _ in 0..60 {
            let mut store = Store::open(place, "job", "digest").unwrap();
            let loaded = loop {
                match store.load().and_then(|loaded| Ok((loaded, store.take_over()?))) {
                    Ok((loaded, true)) => break Some(loaded.map_or(1, |loaded| loaded.progress.epoch)),
                    Ok((_, false)) => {}
                    Err(_) => break Option::None,
                }
            };
            let Some(mut epoch) = loaded else { continue };
            let mut waiting = Vec::new();
            for _ in 0..20 {
                epoch += 1;
                waiting.extend(blocks(epoch));
                match store.publish_and_tidy(&progress(epoch), &waiting) {
                    Ok(_) => {
                        waiting.clear();
                        decided.lock().unwrap().push(epoch);
                    }
                    Err(error) if error.may_pass() => {}
                    Err(_) => break,
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for place in &places {
            scope.spawn(|| run(place));
        }
        for _ in 0..400 {
            faults.next([None, None, Before, None, AnswerLost, AfterAndAway, None, After, Conflict]);
            std::thread::sleep(Duration::from_micros(300));
        }
    });
    faults.clear();
    let mut decided = decided.into_inner().unwrap();
    let count = decided.len();
    decided.sort_unstable();
    decided.dedup();
    assert_eq!(decided.len(), count, "an epoch was decided twice");
    assert!(count > 100, "{count} epochs were decided");
    let loaded = again(&places[0]).1.unwrap();
    assert!(loaded.progress.epoch >= *decided.last().unwrap());
    let epochs = &loaded.nodes["card"][&255];
    assert!(!epochs.is_empty());
}
