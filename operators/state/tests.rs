//! Keyed state: keys apart, slots used again, and changes that add up.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::changes::encode;
use super::*;

#[test]
fn keys_of_any_length_are_kept_apart() {
    let mut state: KeyedState<usize> = KeyedState::new();
    let keys: Vec<String> = (0..60).map(|n| "x".repeat(n)).collect();
    for key in &keys {
        *state.entry(key.as_bytes()) = key.len();
    }
    assert_eq!(state.len(), 60);
    for key in &keys {
        assert_eq!(state.get(key.as_bytes()), Some(&key.len()));
        let place = state.find(hash(key.as_bytes()), key.as_bytes()).unwrap();
        assert_eq!(state.key_at(place), key.as_bytes());
    }
}

#[test]
fn small_sweeps_see_every_key_and_its_slot_is_used_again() {
    let mut state: KeyedState<u32> = KeyedState::new();
    for n in 0..3000u32 {
        *state.entry(&n.to_le_bytes()) = n;
    }
    let removed: usize = (0..31).map(|_| state.sweep(100, |_, n| *n % 3 != 0)).sum();
    assert_eq!((removed, state.len()), (1000, 2000));
    assert_eq!(state.get(&3u32.to_le_bytes()), None);
    assert_eq!(state.get(&4u32.to_le_bytes()), Some(&4));
    *state.entry(b"new") = 7;
    assert_eq!((state.len(), state.get(b"new")), (2001, Some(&7)));
    assert_eq!(state.iter().count(), 2001);
}

#[test]
fn rows_that_do_not_fit_are_refused() {
    let mut state: KeyedState<u32> = KeyedState::new();
    *state.entry(b"key") = 7;
    let mut saved = Vec::new();
    state.save_changes(&mut |group, bytes| saved.push((group, bytes)));
    let (group, bytes) = &saved[0];
    let mut back: KeyedState<u32> = KeyedState::new();
    assert!(matches!(back.load(3, &[9, 9, 9]), Err(StateError::Corrupt { key_group: 3, .. })));
    assert!(back.load_telling(*group, bytes, |_| Err("of another shape".into()), no_parts).is_err());
    assert!(back.load(group + 1, bytes).is_err(), "keys of another group");
    assert!(back.is_empty());
    back.load(*group, bytes).unwrap();
    assert_eq!(back.get(b"key"), Some(&7));
}

#[test]
fn changes_add_up_to_the_state() {
    let mut state: KeyedState<u64> = KeyedState::new();
    let mut copy: KeyedState<u64> = KeyedState::new();
    let mut seed = 7_u64;
    let mut next = |end: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (seed >> 33) % end
    };
    let whole = |state: &KeyedState<u64>| -> BTreeMap<Vec<u8>, u64> {
        state.iter().map(|(key, value)| (key.to_vec(), *value)).collect()
    };
    let mut merged: BTreeMap<u16, rows::Standing> = BTreeMap::new();
    for round in 0..50 {
        for _ in 0..next(200) {
            *state.entry(&next(300).to_le_bytes()) += round;
        }
        state.sweep(next(200) as usize, |_, value| *value % 5 != 1);
        let mut given = Vec::new();
        state.save_changes(&mut |group, bytes| given.push((group, bytes)));
        given.iter().for_each(|(group, bytes)| merged.entry(*group).or_default().absorb(bytes).unwrap());
        if round % 10 == 9 {
            // A copy made from what was merged takes up later changes as well.
            copy = KeyedState::new();
            for (group, standing) in std::mem::take(&mut merged) {
                let bytes = standing.finish();
                copy.load(group, &bytes).unwrap();
                merged.entry(group).or_default().absorb(&bytes).unwrap();
            }
        } else {
            given.iter().for_each(|(group, bytes)| copy.load(*group, bytes).unwrap());
        }
        assert_eq!(whole(&state), whole(&copy), "round {round}");
        assert_eq!(state.len(), copy.len());
        let mut again = 0;
        state.save_changes(&mut |_, _| again += 1);
        copy.save_changes(&mut |_, _| again += 1);
        assert_eq!(again, 0, "nothing has changed since");
    }
}

/// A text that grows: what was added tells of the change.
fn grow(state: &mut KeyedState<String>, key: &[u8], text: &str) {
    let place = state.find_or_insert(hash(key), key, String::new);
    state.at_mut_telling(place, |_, to| to.extend_from_slice(text.as_bytes())).push_str(text);
}

fn grown(text: &mut String, part: &[u8]) -> Result<(), String> {
    text.push_str(std::str::from_utf8(part).map_err(|error| error.to_string())?);
    Ok(())
}

fn whole(state: &KeyedState<String>) -> BTreeMap<Vec<u8>, String> {
    state.iter().map(|(key, value)| (key.to_vec(), value.clone())).collect()
}

fn given(state: &mut KeyedState<String>) -> Vec<(u16, Vec<u8>)> {
    let mut given = Vec::new();
    state.save_changes(&mut |group, bytes| given.push((group, bytes)));
    given
}

fn load(state: &mut KeyedState<String>, given: &[(u16, Vec<u8>)]) {
    given.iter().for_each(|(group, bytes)| state.load_telling(*group, bytes, |_| Ok(()), grown).unwrap());
}

/// What is done to a state.
#[derive(Debug, Clone)]
enum Step {
    Grow(u8, String),
    Set(u8, String),
    Forget(u8),
    /// Give the changes; what they are merged with says the number.
    Save(u8),
    /// Give a slice of so many bytes.
    Slice(usize),
    /// Go on with what was given.
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let key = || 0..6_u8;
    prop_oneof![
        8 => (key(), "[a-z]{0,12}").prop_map(|(key, text)| Step::Grow(key, text)),
        1 => (key(), "[a-z]{0,60}").prop_map(|(key, text)| Step::Set(key, text)),
        1 => key().prop_map(Step::Forget),
        4 => any::<u8>().prop_map(Step::Save),
        4 => (1..60_usize).prop_map(Step::Slice),
        1 => Just(Step::Restart),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Whatever is told, given, merged and taken up again, it is as if all had been written whole each time.
    #[test]
    fn parts_add_up_to_the_state(steps in proptest::collection::vec(step(), 0..120)) {
        let mut state: KeyedState<String> = KeyedState::new();
        let mut model: BTreeMap<Vec<u8>, String> = BTreeMap::new();
        let mut saved: Vec<(u16, Vec<u8>)> = Vec::new();
        let mut at_cut: Option<BTreeMap<Vec<u8>, String>> = None;
        for step in steps {
            match step {
                Step::Grow(key, text) => {
                    grow(&mut state, &[key], &text);
                    model.entry(vec![key]).or_default().push_str(&text);
                }
                Step::Set(key, text) => {
                    *state.entry(&[key]) = text.clone();
                    model.insert(vec![key], text);
                }
                Step::Forget(key) => {
                    state.retain(|known, _| known != [key]);
                    model.remove(&vec![key]);
                }
                Step::Save(merge) => {
                    saved.extend(given(&mut state));
                    at_cut = None;
                    let groups: std::collections::BTreeSet<u16> = saved.iter().map(|(group, _)| *group).collect();
                    for group in groups.into_iter().filter(|_| merge % 4 > 1) {
                        let of_group: Vec<Vec<u8>> =
                            saved.extract_if(.., |(of, _)| *of == group).map(|(_, bytes)| bytes).collect();
                        let all = of_group.iter().map(Vec::as_slice);
                        let bytes = if merge % 4 == 2 { rows::merge(all) } else { rows::fold(all) };
                        saved.push((group, bytes.unwrap()));
                    }
                }
                Step::Slice(bytes) => {
                    at_cut.get_or_insert_with(|| model.clone());
                    if !state.save_some_changes(bytes, &mut |group, bytes| saved.push((group, bytes))) {
                        let mut back = KeyedState::new();
                        load(&mut back, &saved);
                        prop_assert_eq!(Some(whole(&back)), at_cut.take());
                    }
                }
                Step::Restart => {
                    saved.extend(given(&mut state));
                    at_cut = None;
                    state = KeyedState::new();
                    load(&mut state, &saved);
                }
            }
            prop_assert_eq!(whole(&state), model.clone());
        }
        saved.extend(given(&mut state));
        let mut back = KeyedState::new();
        load(&mut back, &saved);
        prop_assert_eq!(whole(&back), model);
        prop_assert_eq!((given(&mut state), given(&mut back)), (vec![], vec![]), "nothing has changed since");
    }
}

#[test]
fn a_change_costs_its_part_until_the_parts_are_a_share_of_the_whole() {
    let mut state: KeyedState<String> = KeyedState::new();
    grow(&mut state, b"key", &"x".repeat(1000));
    assert!(given(&mut state)[0].1.len() > 1000, "a new key");
    let mut wholes = 0;
    for _ in 0..1000 {
        grow(&mut state, b"key", "ab");
        grow(&mut state, b"key", "cdefghij");
        let bytes = given(&mut state).remove(0).1.len();
        assert!(bytes < 20 || bytes > 1000, "{bytes}");
        wholes += usize::from(bytes > 1000);
    }
    // From 1 kB to 11 kB, and an eighth more for each.
    assert!((18..=22).contains(&wholes), "{wholes}");
    // A load knows what room is left.
    let mut back = KeyedState::new();
    load(&mut back, &[(key_group(hash(b"key")), given_whole(&state))]);
    grow(&mut back, b"key", &"y".repeat(1000));
    assert!(given(&mut back)[0].1.len() < 1020);
    grow(&mut back, b"key", &"y".repeat(1000));
    assert!(given(&mut back)[0].1.len() > 12_000);
}

fn given_whole(state: &KeyedState<String>) -> Vec<u8> {
    let mut writer = rows::Writer::default();
    state.iter().for_each(|(key, text)| writer.put(key, |bytes| encode(text, bytes)));
    writer.finish()
}

#[test]
fn parts_that_do_not_fit_are_refused() {
    let mut state: KeyedState<String> = KeyedState::new();
    grow(&mut state, b"key", &"x".repeat(100));
    let first = given(&mut state);
    grow(&mut state, b"key", "more");
    let second = given(&mut state);
    let (group, part) = &second[0];
    let mut back: KeyedState<String> = KeyedState::new();
    assert!(back.load_telling(*group, part, |_| Ok(()), grown).is_err(), "what it is a part of is lost");
    load(&mut back, &first);
    assert!(back.load(*group, part).is_err(), "a state that has no parts");
    assert!(back.load_telling(*group, part, |_| Ok(()), |_, _| Err("no".into())).is_err());
    let both: Vec<u8> = [&first[0].1[..], part].concat();
    let upper = |text: String| Ok(text.to_uppercase());
    let changed = change_rows(*group, &both, grown, upper).unwrap();
    back.load(*group, &changed).unwrap();
    assert_eq!(back.get(b"key"), Some(&format!("{}MORE", "X".repeat(100))));
    assert!(change_rows(*group, part, grown, upper).is_err());
}

proptest! {
    /// Key groups that are loaded at once, on some threads, are what they are one by one; and the state works on.
    #[test]
    fn key_groups_load_at_once(
        texts in proptest::collection::btree_map(0..3_000_u16, "[a-z]{0,9}", 0..1_500),
        gone in proptest::collection::btree_set(0..3_000_u16, 0..200),
        threads in 1..4_usize,
    ) {
        let mut state: KeyedState<String> = KeyedState::new();
        let mut all: BTreeMap<u16, Vec<Vec<u8>>> = BTreeMap::new();
        let mut save = |state: &mut KeyedState<String>| {
            given(state).into_iter().for_each(|(group, rows)| all.entry(group).or_default().push(rows));
        };
        texts.iter().for_each(|(key, text)| grow(&mut state, &key.to_le_bytes(), text));
        save(&mut state);
        state.retain(|key, _| !gone.iter().any(|gone| gone.to_le_bytes() == *key));
        save(&mut state);
        let mut back: KeyedState<String> = KeyedState::new();
        let groups = all.clone().into_iter().collect();
        back.load_groups(groups, threads, |_| Ok(()), grown).unwrap();
        prop_assert_eq!((back.len(), whole(&back)), (state.len(), whole(&state)));
        prop_assert_eq!(given(&mut back), vec![], "nothing has changed");
        // Keys are found, come and go; a sweep sees them all.
        for key in 0..3_000_u16 {
            grow(&mut state, &key.to_le_bytes(), "more");
            grow(&mut back, &key.to_le_bytes(), "more");
        }
        prop_assert_eq!((back.len(), whole(&back)), (3_000, whole(&state)));
        prop_assert_eq!(back.retain(|_, text| text.len() % 2 == 0), state.retain(|_, text| text.len() % 2 == 0));
        prop_assert_eq!(whole(&back), whole(&state));
        if let Some((group, rows)) = all.into_iter().next() {
            let broken = vec![(group, vec![[&rows[0][..], &[9]].concat()])];
            prop_assert!(KeyedState::<String>::new().load_groups(broken, threads, |_| Ok(()), grown).is_err());
        }
    }
}
