//! Random rows in random order, on exact and tiled windows, in any cut: always the reference's answers.

use std::collections::BTreeMap;

use super::reference::{Reference, check};
use super::*;
use crate::state::rows;

const EXACT: &[i64] = &[300, 1000, 2500];
const TILED: &[i64] = &[300, 1000, 2400];

/// A way to set up a group: windows, tiles, and whether reader 0 feeds and excludes itself. Reader 1 only reads.
#[derive(Debug, Clone, Copy)]
struct Setup {
    tiles: Option<u32>,
    feeds: Option<bool>,
}

fn setups() -> impl Strategy<Value = Setup> {
    let tiles = prop::sample::select(vec![None, Some(1), Some(5), Some(20)]);
    let feeds = prop::sample::select(vec![None, Some(false), Some(true)]);
    (tiles, feeds).prop_map(|(tiles, feeds)| Setup { tiles, feeds })
}

impl Setup {
    fn windows(self) -> &'static [i64] {
        if self.tiles.is_some() { TILED } else { EXACT }
    }

    fn group(self) -> FeatureGroup {
        let readers = [reader("first", self.feeds.is_some(), self.feeds == Some(true)), reader("other", false, false)];
        FeatureGroup::compile("g", &everything(self.windows(), self.tiles), &schema(), &readers).unwrap()
    }

    fn reference(self) -> Reference {
        let feeding = self.feeds.map(|exclude_self| (1, exclude_self));
        Reference { windows: self.windows().to_vec(), tiles: self.tiles, feeding }
    }
}

/// All steps as a group sees them in live operation: runs of steps of one port as batches of at most `batch_max` rows.
/// `each` is called before every batch with the number of the step it starts at.
fn run(
    group: &mut FeatureGroup,
    steps: &[Step],
    batch_max: usize,
    mut each: impl FnMut(&mut FeatureGroup, usize, &mut Outputs),
) -> Outputs {
    let mut out = Outputs::new(3);
    let mut start = 0;
    while start < steps.len() {
        each(group, start, &mut out);
        let run = steps[start..].iter().take_while(|step| step.port == steps[start].port).count().min(batch_max);
        group.process(steps[start].port, batch(&steps[start..start + run], start), &mut out);
        start += run;
    }
    out
}

/// The answers of both readers in the order of their rows.
fn merged(out: &Outputs) -> Vec<Answer> {
    let mut all = answers(&out.ports[0], "g");
    all.extend(answers(&out.ports[1], "g"));
    all.sort_by_key(|answer| answer.0);
    all
}

fn numbered(steps: &[Step]) -> Vec<(usize, Step)> {
    steps.iter().cloned().enumerate().collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    /// Rows far out of order: nothing is dropped, because no watermark has passed.
    #[test]
    fn answers_are_exact_in_any_order(setup in setups(), steps in steps(vec![0, 0, 1, 2], 10, 3000), max in 1usize..20) {
        let mut group = setup.group();
        let out = run(&mut group, &steps, max, |_, _, _| {});
        check(&merged(&out), &setup.reference().answers(&numbered(&steps)));
    }

    /// Rows slightly out of order, with a watermark behind them: what it drops no row in time can see.
    #[test]
    fn answers_are_exact_behind_a_watermark(setup in setups(), steps in steps(vec![0, 1, 2], 100, 400), max in 1usize..20) {
        let mut group = setup.group();
        let out = run(&mut group, &steps, max, |group, start, out| group.advance(start as i64 * 100 - 1, out));
        check(&merged(&out), &setup.reference().answers(&numbered(&steps)));
    }

    /// The cut into batches, ticks without time and a stop between any two change no bit.
    #[test]
    fn batches_and_restarts_change_nothing(
        setup in setups(), steps in steps(vec![0, 1, 2], 50, 1500), max in 1usize..20, stop in 0usize..150,
    ) {
        let watermark = |group: &mut FeatureGroup, start: usize, out: &mut Outputs| {
            group.advance(start as i64 * 50 - 500, out);
        };
        let mut one_by_one = setup.group();
        let expected = run(&mut one_by_one, &steps, 1, watermark);
        let mut restarted = setup.group();
        let mut stopped = false;
        let out = run(&mut restarted, &steps, 1, |group, start, out| {
            if start >= stop && !stopped {
                stopped = true;
                let mut fresh = setup.group();
                group.save_changes(usize::MAX, &mut |key_group, bytes| fresh.load(key_group, &bytes).unwrap());
                *group = fresh;
            }
            watermark(group, start, out);
        });
        prop_assert_eq!(merged(&out), merged(&expected));
        let mut batched = setup.group();
        let out = run(&mut batched, &steps, max, |_, _, _| {});
        let mut single = setup.group();
        let expected = run(&mut single, &steps, 1, |_, _, _| {});
        prop_assert_eq!(merged(&out), merged(&expected));
    }

    /// A checkpoint has parts and whole states, merged or not; what is loaded of it is the state to the last bit.
    #[test]
    fn what_is_taken_up_is_the_state_to_the_last_bit(
        setup in setups(), steps in steps(vec![0, 1, 1, 2], 50, 700), max in 1usize..20, epochs in prop::collection::vec(any::<u8>(), 150),
    ) {
        let mut group = setup.group();
        let mut saved: BTreeMap<u16, Vec<Vec<u8>>> = BTreeMap::new();
        let mut parts = 0;
        run(&mut group, &steps, max, |group, start, out| {
            let what = epochs[start];
            if what % 3 > 0 {
                group.advance(start as i64 * 50 - 500, out);
            }
            if what % 2 == 0 {
                return;
            }
            group.close_epoch(1, out);
            group.save_changes(usize::MAX, &mut |key_group, bytes| {
                parts += rows::read(&bytes).filter(|row| matches!(row, Ok((_, rows::Change::Part(_))))).count();
                saved.entry(key_group).or_default().push(bytes);
            });
            for all in saved.values_mut().filter(|_| what % 5 == 0) {
                *all = vec![rows::merge(all.iter().map(Vec::as_slice)).unwrap()];
            }
            let mut back = setup.group();
            saved.iter().for_each(|(key_group, all)| all.iter().for_each(|bytes| back.load(*key_group, bytes).unwrap()));
            assert_eq!(back.states(), group.states());
            if what % 7 == 0 {
                // What comes next goes on from what was loaded.
                back.advance(start as i64 * 50 - 500, out);
                *group = back;
            }
        });
        prop_assert!(steps.len() < 100 || parts > 0, "no parts were written");
    }

    /// Steps that are cut or changed are errors or other steps, and never a panic.
    #[test]
    fn any_steps_are_taken_without_a_panic(setup in setups(), steps in steps(vec![0, 1], 50, 700), noise in prop::collection::vec(any::<u8>(), 0..80)) {
        let mut group = setup.group();
        run(&mut group, &steps, 10, |_, _, _| {});
        let mut back = setup.group();
        group.save_changes(usize::MAX, &mut |key_group, bytes| {
            back.load(key_group, &bytes).unwrap();
            let keys: Vec<&[u8]> = rows::read(&bytes).map(|row| row.unwrap().0).collect();
            for key in keys {
                let mut writer = rows::Writer::default();
                writer.part(key, std::iter::once(&noise[..]));
                drop(back.load(key_group, &writer.finish()));
            }
        });
        run(&mut back, &steps, 10, |_, _, _| {});
    }

    /// Ticks process their rows in event-time order, whatever the order of batches and ports.
    #[test]
    fn ticks_are_interleaved_by_event_time(
        setup in setups(), steps in steps(vec![0, 0, 1, 2], 20, 600), ticks in 1usize..6, max in 1usize..9,
    ) {
        let mut order = numbered(&steps);
        let role = |step: &Step| match (step.port, setup.feeds) {
            (0, _) => 0,
            (1, Some(false)) => 1,
            (1, Some(true)) => 2,
            _ => 3,
        };
        order.sort_by_key(|(offset, step)| (step.time, role(step), step.port, *offset));
        let expected = setup.reference().answers(&order);
        let end = steps.len() as i64 * 20 + 600;
        let mut group = setup.group();
        let mut out = Outputs::new(3);
        for tick in 0..ticks as i64 {
            let (from, to) = (end * tick / ticks as i64, end * (tick + 1) / ticks as i64);
            let mut batches = Vec::new();
            for (offset, step) in steps.iter().enumerate().rev().filter(|(_, step)| (from..to).contains(&step.time)) {
                batches.push((step.port, batch(std::slice::from_ref(step), offset)));
            }
            // Neighbours of one port as one batch, still in the wrong order.
            let joined = batches.chunk_by(|a, b| a.0 == b.0).flat_map(|run| run.chunks(max));
            let joined: Vec<(usize, Batch)> = joined
                .map(|run| {
                    let parts: Vec<Batch> = run.iter().map(|(_, batch)| batch.clone()).collect();
                    (run[0].0, Batch::concat(&parts).unwrap().unwrap())
                })
                .collect();
            group.process_tick(joined, &mut out);
            group.advance(to - 1, &mut out);
        }
        let offsets: Vec<i64> = expected.iter().map(|answer| answer.0).collect();
        for port in [1, 2] {
            // Each reader's rows come out in the order they were processed.
            let answers = answers(&out.ports[port - 1], "g");
            let of_port = |offset: &&i64| steps[**offset as usize].port == port;
            prop_assert_eq!(
                answers.iter().map(|answer| answer.0).collect::<Vec<_>>(),
                offsets.iter().filter(of_port).copied().collect::<Vec<_>>()
            );
        }
        let mut expected = expected;
        expected.sort_by_key(|answer| answer.0);
        check(&merged(&out), &expected);
    }
}

/// What the second reader of a group finds of `key` at `time`, but for the time since the last event.
fn found(group: &mut FeatureGroup, key: &'static str, time: i64) -> Vec<Answer> {
    let mut out = Outputs::new(3);
    let read = Step { port: 2, key, time, amount: None, flag: None, city: None };
    group.process(2, batch(&[read], 0), &mut out);
    let mut answers = answers(&out.ports[1], "g");
    answers.iter_mut().for_each(|(_, numbers, _)| numbers.retain(|(name, _)| !name.contains("time_since_last")));
    answers
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Up to the time that a published row names its features are those that a reader finds, and from then on they are not.
    #[test]
    fn published_features_are_found_until_the_time_they_name(
        (setup, steps) in (setups(), steps(vec![0], 40, 200)),
    ) {
        let mut group = setup.group();
        let mut out = run(&mut group, &steps, 7, |_, _, _| {});
        group.close_epoch(1, &mut out);
        let published = &out.ports[2][0];
        let keys = published.records.column(0).as_string::<i32>();
        let until = published.records.columns().last().unwrap().as_primitive::<Int64Type>();
        for row in 0..published.len() {
            let key = ["a", "b", "c|d"].into_iter().find(|key| key[..1] == keys.value(row)[..1]).unwrap();
            let (newest, until) = (published.rows[row].event_time, until.value(row));
            prop_assert!(until > newest);
            let features = found(&mut group, key, newest);
            prop_assert_eq!(&found(&mut group, key, until - 1), &features);
            prop_assert_ne!(&found(&mut group, key, until), &features);
        }
    }
}
