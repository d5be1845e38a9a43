//! Merges: what they keep, and that they keep up.

use super::*;

/// Publishes changes of a few keys until they have been merged again and again; what is loaded is what was said last.
fn check_merges(place: &Place, limits: Limits) -> Store {
    let mut epoch = 1;
    let mut expected = BTreeMap::new();
    for start in 0..6 {
        let (mut store, _) = again(place);
        store.limits = limits;
        for _ in 0..20 {
            epoch += 1;
            let (key, value) = (format!("key {}", epoch % 5), format!("value {epoch}"));
            let gone = format!("key {}", (epoch + 2) % 5);
            // A key that is there gets its value again, or a part behind it.
            let part = expected.keys().nth(epoch as usize % 7).cloned().filter(|known| *known != gone && *known != key);
            let changes = vec![
                block(Kind::State, "card", 3, epoch, row(&gone, None)),
                block(Kind::State, "card", 3, epoch, row(&key, Some(&value))),
                block(
                    Kind::State,
                    "card",
                    3,
                    epoch,
                    part.as_deref().map(|part| part_of(part, "+")).unwrap_or_default(),
                ),
                block(Kind::Outbox, "kafka \"quoted\"", 1, epoch, vec![epoch as u8]),
            ];
            expected.remove(&gone);
            expected.insert(key, value);
            if let Some(value) = part.and_then(|part| expected.get_mut(&part)) {
                value.push('+');
            }
            // Outputs of three epochs wait.
            let committed = [(effect_name("sinks.kafka \"quoted\"", 1), epoch.saturating_sub(3))].into();
            store.publish_and_tidy(&Progress { committed, ..progress(epoch) }, &changes).unwrap();
            // The merge is done by a thread; some later checkpoint takes it up.
            let deadline = Instant::now() + Duration::from_secs(20);
            while store.compaction.is_some() && epoch % 3 == 0 && Instant::now() < deadline {
                std::thread::yield_now();
                store.take_merged();
            }
        }
        let loaded = store.load().unwrap().unwrap();
        let outbox = &loaded.outbox[&("kafka \"quoted\"".to_string(), 1)];
        let waiting: Vec<_> = (epoch - 2..=epoch).map(|epoch| (epoch, vec![epoch as u8])).collect();
        assert_eq!(outbox, &waiting, "start {start}");
        assert_eq!(standing(&loaded)["card"], expected.clone().into_iter().collect::<Vec<_>>(), "start {start}");
    }
    store(place)
}

/// Bytes that no compression makes fewer.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..length).map(|_| next()).collect()
}

#[test]
fn changes_are_merged_into_a_base_and_old_files_go() {
    everywhere(|place| {
        let store = check_merges(place, Limits { changes_bytes: 500, files: 1_000, segment_bytes: 2_000 });
        let base = store.base.as_ref().expect("a base").epoch;
        assert!(base > 60, "merged up to epoch {base}");
        assert!(store.closed.len() < 25, "{:?}", store.closed);
    });
}

#[test]
fn many_segments_are_merged_into_few() {
    everywhere(|place| {
        let store = check_merges(place, Limits { changes_bytes: u64::MAX, files: 6, segment_bytes: 400 });
        assert_eq!(store.base, None);
        assert!(store.closed.len() < 16, "{:?}", store.closed);
        // Segments that no checkpoint names are gone, whoever made them.
        let deadline = Instant::now() + Duration::from_secs(20);
        let segments = || files(place).iter().filter(|name| name.ends_with(".seg")).count();
        while segments() > 20 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(segments() <= 20, "{:?}", files(place));
    });
}

#[test]
fn short_lives_do_not_leave_more_and_more_to_read() {
    in_process(|place| {
        let most = Limits::DEFAULT.changes_bytes;
        for epoch in 2..14 {
            let (mut store, loaded) = again(place);
            if let Some(loaded) = loaded {
                let state = &loaded.nodes["card"][&255];
                let merged = millstream_operators::state::rows::merge(state.iter().map(Vec::as_slice)).unwrap();
                assert_eq!(merged, row("zero", Some(&format!("state of {}", epoch - 1))));
                store.merge_loaded(&loaded);
            }
            // It dies before what is merged beside it could be taken up.
            let mut changes = blocks(epoch);
            changes.push(block(Kind::Outbox, "kafka \"quoted\"", 1, epoch, noise(30 << 20)));
            store.publish_and_tidy(&progress(epoch), &changes).unwrap();
            let read: u64 = store.closed.iter().map(|segment| segment.bytes).sum();
            assert!(read < 2 * most, "life {epoch} leaves {read} bytes to read");
        }
    });
}

#[test]
fn outputs_that_were_committed_do_not_pile_up() {
    let most = Limits::DEFAULT.changes_bytes;
    in_process(|place| {
        let mut store = store(place);
        let deadline = Instant::now() + Duration::from_secs(60);
        let (mut epoch, mut written) = (1, 0);
        // Until it has written twice what it may keep, and what was merged meanwhile has been taken up.
        while (written < 2 * most || store.compaction.is_some()) && Instant::now() < deadline {
            epoch += 1;
            let mut changes = blocks(epoch);
            if written < 2 * most {
                changes.push(block(Kind::Outbox, "kafka \"quoted\"", 1, epoch, noise(4 << 20)));
            }
            written += store.publish_and_tidy(&progress(epoch), &changes).unwrap().bytes;
        }
        let kept: u64 = store.closed.iter().map(|segment| segment.bytes).sum();
        assert!(store.base.is_some() && kept < most, "{kept} bytes of {written} are kept");
    });
}
