//! Savepoints: what is kept under a name stays whole, whatever the job does and whoever starts it.

use super::report::Which;
use super::savepoint::SavepointError;
use super::*;

/// What a savepoint holds, every byte of it checked.
fn saved(place: &Place, name: &str) -> Checkpoint {
    report::checkpoint(place, Which::Named(name), "job").unwrap().unwrap()
}

/// Publishes epochs, with merges and new segments all the time.
pub fn go_on(store: &mut Store, epochs: std::ops::Range<u64>) {
    store.limits = Limits { changes_bytes: 300, files: 3, segment_bytes: 200 };
    for epoch in epochs {
        store.publish_and_tidy(&progress(epoch), &blocks(epoch)).unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        while store.compaction.is_some() && Instant::now() < deadline {
            std::thread::yield_now();
            store.take_merged();
        }
    }
}

/// Waits until there are no more than `most` segments: some storage removes in its own time.
pub fn check_segments(place: &Place, most: usize) {
    let segments = || files(place).iter().filter(|name| name.ends_with(".seg")).count();
    let deadline = Instant::now() + Duration::from_secs(20);
    while segments() > most && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(segments() <= most, "{:?}", files(place));
}

#[test]
fn what_is_saved_stays_whole_whatever_the_job_does() {
    everywhere(|place| {
        let mut first = store(place);
        go_on(&mut first, 2..30);
        let expected = report::checkpoint(place, Which::Newest, "job").unwrap().unwrap();
        assert_eq!(expected.outbox.len(), 1, "outputs are on their way");
        let listed = savepoint::save(place, "before").unwrap();
        assert_eq!((listed.name.as_deref(), listed.epoch), (Some("before"), 29));
        go_on(&mut first, 30..60);
        assert_eq!(saved(place, "before"), expected);
        drop(first);
        // A start sweeps what no checkpoint of its own needs.
        let mut second = store(place);
        go_on(&mut second, 60..90);
        assert_eq!(saved(place, "before"), expected);
        savepoint::save(place, "later").unwrap();
        drop(second);
        Store::forget(place).unwrap();
        let mut third = store(place);
        go_on(&mut third, 2..30);
        assert_eq!(saved(place, "before"), expected);
        assert_eq!(saved(place, "later").progress, progress(89));
        let names: Vec<_> = savepoint::list(place).unwrap().into_iter().map(|listed| listed.name.unwrap()).collect();
        assert_eq!(names, ["before", "later"]);
    });
}

#[test]
fn what_only_a_deleted_savepoint_needed_goes() {
    everywhere(|place| {
        let mut running = store(place);
        for round in 0..4 {
            go_on(&mut running, 2 + 20 * round..22 + 20 * round);
            savepoint::save(place, &format!("at-{round}")).unwrap();
        }
        for round in 0..4 {
            savepoint::delete(place, &format!("at-{round}")).unwrap();
        }
        // Removing takes its time in a bucket.
        let deadline = Instant::now() + Duration::from_secs(20);
        while !savepoint::list(place).unwrap().is_empty() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        go_on(&mut running, 90..110);
        check_segments(place, 12);
        // Those that a start before has left are removed by the next.
        savepoint::save(place, "last").unwrap();
        drop(running);
        go_on(&mut store(place), 110..130);
        savepoint::delete(place, "last").unwrap();
        go_on(&mut store(place), 130..150);
        check_segments(place, 12);
    });
}

#[test]
fn a_name_is_taken_once_and_found_again() {
    everywhere(|place| {
        assert!(matches!(savepoint::save(place, "a"), Err(SavepointError::Nothing { .. })));
        let mut running = store(place);
        assert!(matches!(savepoint::save(place, "a"), Err(SavepointError::Nothing { .. })), "it has not begun");
        running.publish_and_tidy(&progress(8), &blocks(8)).unwrap();
        savepoint::save(place, "a").unwrap();
        let again = savepoint::save(place, "a").unwrap();
        assert_eq!(again.epoch, 8, "the same checkpoint under the same name is no mistake");
        running.publish_and_tidy(&progress(9), &blocks(9)).unwrap();
        let error = savepoint::save(place, "a").unwrap_err();
        assert!(matches!(error, SavepointError::Taken { epoch: 8, .. }), "{error}");
        for name in ["", ".", "..", ".a", "a/b", "a b", "\u{e9}", &"a".repeat(65)] {
            assert!(matches!(savepoint::save(place, name), Err(SavepointError::Name { .. })), "{name}");
        }
        let error = savepoint::delete(place, "b").unwrap_err().to_string();
        assert!(error.ends_with("there is no savepoint `b`; there are: a"), "{error}");
        let contents = report::read(place, Which::Named("a")).unwrap().unwrap();
        assert_eq!((contents.listed.name.as_deref(), contents.listed.epoch), (Some("a"), 8));
        assert_eq!(report::read(place, Which::Named("b")).unwrap(), None);
    });
}

/// The job removes what a checkpoint needs between the moment it is read and the moment it is saved.
#[test]
fn a_checkpoint_that_is_swept_meanwhile_is_not_the_one_that_is_saved() {
    let places = faults::memories(faults::Faults::default(), 2);
    let mut running = store(&places[0]);
    go_on(&mut running, 2..10);
    let mut tries = 0;
    let read = |newest| {
        let manifest = Manifest::read(&*places[1].0, newest)?;
        tries += 1;
        if tries == 1 {
            go_on(&mut running, 10..30);
            let needed = manifest.iter().flat_map(Manifest::files);
            let is_gone = |file: &String| places[1].0.read(&segment::key(file)).unwrap().is_none();
            let needed: Vec<String> = needed.collect();
            let deadline = Instant::now() + Duration::from_secs(20);
            while !needed.iter().any(is_gone) && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        Ok(manifest)
    };
    assert_eq!(savepoint::save_newest(&places[1], "a", read).unwrap().epoch, 29);
    assert_eq!(saved(&places[1], "a").progress, progress(29));
}

/// The list of a sweep has the draft, and when it is read it has become the savepoint.
#[test]
fn a_draft_that_becomes_a_savepoint_while_it_is_looked_at_is_needed() {
    in_process(|place| {
        let mut running = store(place);
        go_on(&mut running, 2..10);
        let storage = &*place.0;
        let newest = manifest::sequences(storage).unwrap().pop().unwrap();
        let manifest = Manifest::read(storage, newest).unwrap().unwrap();
        storage.create("savepoint/a-1.draft", &manifest.clone().text()).unwrap();
        let needed = savepoint::needed_by(storage, |key| {
            if key.ends_with(".draft") {
                storage.create("savepoint/a.json", &manifest.clone().text()).unwrap();
                storage.remove(vec![key.to_string()]).unwrap();
                // It may be gone a moment later.
                return Ok(None);
            }
            Manifest::read_file(storage, key)
        });
        assert!(!manifest.files().is_empty());
        assert_eq!(needed.unwrap(), manifest.files());
    });
}

#[test]
fn savepoints_of_a_job_that_runs_are_whole() {
    let places = faults::memories(faults::Faults::default(), 2);
    let mut running = store(&places[0]);
    go_on(&mut running, 2..10);
    std::thread::scope(|scope| {
        let saving = scope.spawn(|| {
            for n in 0..20 {
                match savepoint::save(&places[1], &format!("at-{n}")) {
                    Ok(_) | Err(SavepointError::Outrun) => {}
                    Err(error) => panic!("{error}"),
                }
            }
        });
        let mut epoch = 10;
        while !saving.is_finished() {
            go_on(&mut running, epoch..epoch + 1);
            epoch += 1;
        }
        go_on(&mut running, epoch..epoch + 30);
    });
    let all = savepoint::list(&places[1]).unwrap();
    assert!(all.len() > 5, "{} were saved", all.len());
    for listed in all {
        let checkpoint = saved(&places[1], &listed.name.unwrap());
        assert_eq!(checkpoint.progress, progress(listed.epoch));
    }
}

/// A savepoint that can't be read may need any segment: none is removed, and the job goes on.
#[test]
fn a_damaged_savepoint_costs_room_and_nothing_else() {
    in_process(|place| {
        let mut running = store(place);
        go_on(&mut running, 2..10);
        savepoint::save(place, "a").unwrap();
        let text = bytes(place, "savepoint/a.json");
        put(place, "savepoint/a.json", &text[..text.len() / 2]);
        let before = files(place).len();
        go_on(&mut running, 10..30);
        assert!(files(place).len() > before + 10, "{:?}", files(place));
        let error = report::checkpoint(place, Which::Named("a"), "job").unwrap_err().to_string();
        assert!(error.contains("savepoint/a.json: "), "{error}");
        savepoint::delete(place, "a").unwrap();
        go_on(&mut running, 30..50);
        check_segments(place, 12);
    });
}
