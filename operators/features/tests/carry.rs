//! Groups whose definition changes while they run: what two definitions have in common answers as if it had always been so,
//! the rest as if it had begun at the change.

use std::collections::BTreeMap;

use super::*;
use crate::features::summary::Parts;
use crate::state::rows;

/// Aggregates to choose from: value, condition, functions, window in milliseconds.
const POOL: &[(Option<&str>, Option<&str>, &[&str], i64)] = &[
    (None, None, &["count", "time_since_last"], 300),
    (None, None, &["count"], 1000),
    (Some("amount"), None, &["sum", "count"], 300),
    (Some("amount"), None, &["min", "max", "last"], 300),
    (Some("amount"), None, &["stddev", "mean"], 2400),
    (Some("amount"), Some("flag"), &["sum", "range"], 1000),
    (Some("flag"), Some("amount > 0"), &["mean", "last"], 1000),
    (Some("amount * 2"), None, &["sum"], 1000),
];

/// A choice of aggregates, and whether there is a lookup.
#[derive(Debug, Clone)]
struct Choice {
    aggregates: Vec<usize>,
    lookup: bool,
}

fn choice() -> impl Strategy<Value = Choice> {
    let aggregates = prop::sample::subsequence((0..POOL.len()).collect::<Vec<_>>(), 1..=POOL.len()).prop_shuffle();
    (aggregates, any::<bool>()).prop_map(|(aggregates, lookup)| Choice { aggregates, lookup })
}

impl Choice {
    fn group(&self, tiles: Option<u32>) -> FeatureGroup {
        let aggregate = |n: &usize| {
            let (of, filter, ops, window) = POOL[*n];
            let mut aggregate =
                serde_json::json!({ "as": format!("f{n}"), "ops": ops, "windows": [format!("{window}ms")] });
            of.map(|of| aggregate["of"] = of.into());
            filter.map(|filter| aggregate["where"] = filter.into());
            aggregate
        };
        let mut group = serde_json::json!({ "from": "payments", "key": ["card"] });
        group["aggregates"] = self.aggregates.iter().map(aggregate).collect();
        if let Some(tiles) = tiles {
            group["tiles"] = tiles.into();
        }
        if self.lookup {
            group["as_of"] = serde_json::json!({ "city_now": { "column": "city", "max_age": "700ms" } });
        }
        let readers = [reader("first", true, false), reader("other", false, false)];
        FeatureGroup::compile("g", &config(&group.to_string()), &schema(), &readers).unwrap()
    }

    fn shape(&self, group: &FeatureGroup) -> Shape {
        let lookups = if self.lookup { vec!["city".to_string()] } else { Vec::new() };
        group.shape(|of, filter| format!("{of:?} where {filter:?}"), &lookups)
    }

    /// What an aggregate's summary has in a group of this choice; `None` if nothing is kept of its value.
    fn parts(&self, wanted: usize, tiles: Option<u32>) -> Option<Parts> {
        let (of, filter, _, window) = POOL[wanted];
        // Rows keep the value, whatever the window.
        let same =
            |n: &&usize| (POOL[**n].0, POOL[**n].1) == (of, filter) && (tiles.is_none() || POOL[**n].3 == window);
        let of_each = self.aggregates.iter().filter(same).map(|n| {
            let op = |name: &&str| serde_json::from_value::<crate::features::Op>((*name).into()).unwrap();
            POOL[*n].2.iter().map(op).fold(Parts::COUNT, |parts, op| parts.and(op.function().needs()))
        });
        of_each.reduce(Parts::and)
    }

    /// Whether an aggregate goes on in a group of the choice `after`.
    fn carries(&self, after: &Choice, aggregate: usize, tiles: Option<u32>) -> bool {
        match (self.parts(aggregate, tiles), after.parts(aggregate, tiles)) {
            (Some(before), Some(after)) => tiles.is_none() || before.and(after) == before,
            _ => false,
        }
    }
}

fn feed(group: &mut FeatureGroup, steps: &[Step], range: std::ops::Range<usize>) -> Vec<Answer> {
    let mut out = Outputs::new(3);
    for at in range {
        group.process(steps[at].port, batch(&steps[at..=at], at), &mut out);
    }
    let mut all = answers(&out.ports[0], "g");
    all.extend(answers(&out.ports[1], "g"));
    all.sort_by_key(|answer| answer.0);
    all
}

fn alike(one: Option<f64>, other: Option<f64>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => (one - other).abs() <= 1e-9 * one.abs().max(1.0),
        (one, other) => one == other,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn what_two_definitions_share_goes_on_and_the_rest_begins(
        before in choice(), after in choice(), tiles in prop::sample::select(vec![None, Some(1), Some(5)]),
        steps in steps(vec![0, 1, 1, 2], 40, 1200), stop in 0usize..150, epoch in 1usize..40,
    ) {
        let stop = stop.min(steps.len());
        let mut first = before.group(tiles);
        let mut saved: BTreeMap<u16, rows::Standing> = BTreeMap::new();
        // In epochs of some steps each, so that states are there with parts behind them.
        for start in (0..stop).step_by(epoch) {
            feed(&mut first, &steps, start..stop.min(start + epoch));
            first.save_changes(usize::MAX, &mut |key_group, bytes| saved.entry(key_group).or_default().absorb(&bytes).unwrap());
        }
        let mut second = after.group(tiles);
        // As it comes back from a checkpoint.
        let saved_shape = serde_json::from_str(&serde_json::to_string(&before.shape(&first)).unwrap()).unwrap();
        let shapes: (Shape, Shape) = (saved_shape, after.shape(&second));
        for (key_group, standing) in saved {
            let carried = second.carry(&shapes.0, &shapes.1, key_group, &standing.finish()).unwrap();
            second.load(key_group, &carried).unwrap();
        }
        let found = feed(&mut second, &steps, stop..steps.len());
        let always = feed(&mut after.group(tiles), &steps, 0..steps.len());
        let late = feed(&mut after.group(tiles), &steps, stop..steps.len());
        let always = &always[always.len() - found.len()..];
        for ((found, always), late) in found.iter().zip(always).zip(&late) {
            prop_assert_eq!((found.0, found.0), (always.0, late.0));
            for ((name, value), (always, late)) in found.1.iter().zip(always.1.iter().zip(&late.1)) {
                let aggregate: usize = name[1..].split('_').next().unwrap().parse().unwrap();
                let goes_on = before.carries(&after, aggregate, tiles);
                let expected = if goes_on { always } else { late };
                prop_assert!(alike(*value, expected.1), "row {} {name}: {value:?}, not {expected:?}", found.0);
            }
            let expected = if before.lookup { &always.2 } else { &late.2 };
            prop_assert_eq!(&found.2, expected);
        }
        // Nothing is said to be lost that is asked for and goes on.
        let (lost, all) = shapes.0.lost(&shapes.1);
        prop_assert!(lost <= all);
        prop_assert_eq!(shapes.0.lost(&shapes.0).0, 0);
        if after.aggregates.iter().all(|aggregate| !before.carries(&after, *aggregate, tiles)) {
            prop_assert_eq!(lost, all - usize::from(before.lookup && after.lookup));
        }
    }

    /// The stream is given again from some event on, to a group of the second definition alone: what goes on is as it always was, and
    /// what is new is as if it had begun there.
    #[test]
    fn what_is_new_is_filled_with_what_is_seen_again(
        before in choice(), after in choice(), tiles in prop::sample::select(vec![None, Some(1), Some(5)]),
        steps in steps(vec![0, 1, 1, 2], 40, 1200), stop in 0usize..150, from in 0usize..150,
    ) {
        let stop = stop.min(steps.len());
        let from = from.min(stop);
        let mut first = before.group(tiles);
        feed(&mut first, &steps, 0..stop);
        let (mut again, mut second) = (after.group(tiles), after.group(tiles));
        feed(&mut again, &steps, from..stop);
        let (was, is) = (before.shape(&first), after.shape(&second));
        let (mut standing, mut seen) = (BTreeMap::new(), BTreeMap::new());
        first.save_changes(usize::MAX, &mut |key_group, bytes| drop(standing.insert(key_group, bytes)));
        again.save_changes(usize::MAX, &mut |key_group, bytes| drop(seen.insert(key_group, bytes)));
        for (key_group, standing) in standing {
            let carried = second.carry(&was, &is, key_group, &standing).unwrap();
            let filled = second.fill(&was, &is, key_group, &carried, &seen.remove(&key_group).unwrap_or_default()).unwrap();
            second.load(key_group, &filled).unwrap();
        }
        prop_assert!(seen.is_empty(), "a key that was not seen before");
        let found = feed(&mut second, &steps, stop..steps.len());
        let always = feed(&mut after.group(tiles), &steps, 0..steps.len());
        let late = feed(&mut after.group(tiles), &steps, from..steps.len());
        let (always, late) = (&always[always.len() - found.len()..], &late[late.len() - found.len()..]);
        for ((found, always), late) in found.iter().zip(always).zip(late) {
            prop_assert_eq!((found.0, found.0), (always.0, late.0));
            for ((name, value), (always, late)) in found.1.iter().zip(always.1.iter().zip(&late.1)) {
                let aggregate: usize = name[1..].split('_').next().unwrap().parse().unwrap();
                let expected = if before.carries(&after, aggregate, tiles) { always } else { late };
                prop_assert!(alike(*value, expected.1), "row {} {name}: {value:?}, not {expected:?}", found.0);
            }
            prop_assert_eq!(&found.2, if before.lookup { &always.2 } else { &late.2 });
        }
    }

    /// State of another shape than it is said to have, or cut, is an error wherever that can be told, and never a panic.
    #[test]
    fn state_of_another_shape_is_refused(
        before in choice(), other in choice(), steps in steps(vec![1], 40, 100), cut in 0..4000_usize,
    ) {
        let mut group = before.group(None);
        feed(&mut group, &steps, 0..steps.len());
        let (shape, tiled) = (before.shape(&group), other.shape(&other.group(Some(5))));
        let all = Choice { aggregates: (0..POOL.len()).collect(), lookup: before.lookup };
        let wider = all.shape(&all.group(None));
        let without = Choice { lookup: !before.lookup, ..before.clone() };
        let without = without.shape(&without.group(None));
        let measures: std::collections::BTreeSet<_> = before.aggregates.iter().map(|n| (POOL[*n].0, POOL[*n].1)).collect();
        group.save_changes(usize::MAX, &mut |key_group, bytes| {
            let carry = |from: &Shape, bytes: &[u8]| before.group(None).carry(from, &shape, key_group, bytes);
            drop((carry(&tiled, &bytes), carry(&shape, &bytes[..cut % bytes.len()])));
            assert!(carry(&without, &bytes).is_err());
            assert_eq!(carry(&wider, &bytes).is_err(), measures.len() < 5);
        });
    }
}
