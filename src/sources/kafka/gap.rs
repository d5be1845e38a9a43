//! Where to go on if the records of a position are gone: not found out while records are read, but before, so that the
//! checkpoint says so before anything is read.
//!
//! | what is found | where to go on |
//! |---|---|
//! | the oldest record is newer than the position | at the oldest record |
//! | the topic has another id, fewer partitions than were read, or, where ids are not known, a partition that ends before its position | at the beginning of all its partitions |
//! | a partition ends before its position, and the topic is the same | at its end: the records that are there have been read, as far as anybody can tell |

use crate::sources::gap::{Gap, Reason};
use crate::sources::{Positions, Topic, Topics};

/// What brokers say of a topic now.
pub(super) struct Found {
    /// Its id, if they say it.
    pub id: Option<String>,
    /// Of each partition the oldest offset and the one after the newest.
    pub partitions: Vec<(i64, i64)>,
}

impl Found {
    fn bounds(&self, partition: i32) -> Option<(i64, i64)> {
        usize::try_from(partition).ok().and_then(|at| self.partitions.get(at)).copied()
    }

    /// Whether it is another topic than the one in which these are the positions.
    fn is_anew(&self, known: Option<&str>, positions: &[(i32, i64)]) -> bool {
        let is_read = positions.iter().any(|(_, position)| *position > 0);
        let is_other = match (known, &self.id) {
            (Some(known), Some(id)) => is_read && known != id,
            _ => positions.iter().any(|at| self.bounds(at.0).is_some_and(|(_, high)| at.1 > high)),
        };
        is_other || positions.iter().any(|(partition, _)| self.bounds(*partition).is_none())
    }

    /// Moves the positions of `source` in `topic` behind what is gone; gives what is missed.
    pub fn pass(self, source: &str, topic: &str, positions: &mut Positions, topics: &mut Topics) -> Vec<Gap> {
        let was: Vec<(i32, i64)> = super::connect::of_topic(topic, positions).collect();
        let known = topics.get(topic).and_then(|known| known.id.clone());
        let gap = |partition: i32, reason: Reason, from: i64, to: Option<i64>| {
            let offsets = to.and_then(|to| u64::try_from(to - from + 1).ok());
            Gap { source: source.into(), topic: topic.into(), partition, reason, from, to, offsets }
        };
        let removed = |partition, from, low| (from < low).then(|| gap(partition, Reason::Removed, from, Some(low - 1)));
        if self.is_anew(known.as_deref(), &was) {
            positions.0.retain(|(name, _), _| name != topic);
            let mut gaps: Vec<Gap> = was.iter().map(|at| gap(at.0, Reason::MadeAnew, at.1, None)).collect();
            for (partition, (low, _)) in (0..).zip(&self.partitions) {
                positions.0.insert((topic.to_string(), partition), *low);
                gaps.extend(removed(partition, 0, *low));
            }
            let partitions = i32::try_from(self.partitions.len()).unwrap_or(i32::MAX);
            topics.insert(topic.to_string(), Topic { id: self.id, partitions });
            return gaps;
        }
        let mut gaps = Vec::new();
        for (partition, position) in was {
            let Some((low, high)) = self.bounds(partition) else { continue };
            if position > high {
                gaps.push(gap(partition, Reason::CutBack, high, None));
            }
            gaps.extend(removed(partition, position, low));
            positions.0.insert((topic.to_string(), partition), position.clamp(low, high));
        }
        gaps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn positions(at: &[(i32, i64)]) -> Positions {
        Positions(at.iter().map(|(partition, position)| (("t".to_string(), *partition), *position)).collect())
    }

    /// What becomes of positions in a topic of the id `known`, and what is missed: partition, reason, first and last offset.
    #[track_caller]
    fn check(
        (known, at): (Option<&str>, &[(i32, i64)]),
        (id, partitions): (Option<&str>, &[(i64, i64)]),
        (after, missed): (&[(i32, i64)], &[(i32, Reason, i64, Option<i64>)]),
    ) {
        let mut positions_in = positions(at);
        positions_in.0.insert(("other".to_string(), 0), 7);
        let mut topics: Topics = [("t".to_string(), Topic { id: known.map(str::to_owned), partitions: 9 })].into();
        let found = Found { id: id.map(str::to_owned), partitions: partitions.to_vec() };
        let gaps = found.pass("s", "t", &mut positions_in, &mut topics);
        let gaps: Vec<_> = gaps.iter().map(|gap| (gap.partition, gap.reason, gap.from, gap.to)).collect();
        assert_eq!(gaps, missed);
        let mut expected = positions(after);
        expected.0.insert(("other".to_string(), 0), 7);
        assert_eq!(positions_in, expected);
        let anew = missed.iter().any(|(_, reason, ..)| *reason == Reason::MadeAnew);
        let is = if anew { (id, partitions.len() as i32) } else { (known, 9) };
        assert_eq!((topics["t"].id.as_deref(), topics["t"].partitions), is);
    }

    #[test]
    fn a_position_is_moved_behind_what_is_gone_and_no_further() {
        use Reason::{CutBack, MadeAnew, Removed};
        let same = Some("a");
        check(
            (same, &[(0, 40), (1, 5)]),
            (same, &[(60, 100), (0, 5)]),
            (&[(0, 60), (1, 5)], &[(0, Removed, 40, Some(59))]),
        );
        // One that was added later has no position yet: it is no gap.
        check((same, &[(0, 40)]), (same, &[(40, 100), (3, 5)]), (&[(0, 40)], &[]));
        check((same, &[(0, 40)]), (same, &[(0, 30)]), (&[(0, 30)], &[(0, CutBack, 30, None)]));
        // All partitions of another topic are others, however far they have grown.
        let anew = [(0, MadeAnew, 40, None), (1, MadeAnew, 0, None), (1, Removed, 0, Some(2))];
        check((same, &[(0, 40), (1, 0)]), (Some("b"), &[(0, 90), (3, 5)]), (&[(0, 0), (1, 3)], &anew));
        check(
            (same, &[(0, 4), (1, 0)]),
            (Some("b"), &[(0, 9)]),
            (&[(0, 0)], &[(0, MadeAnew, 4, None), (1, MadeAnew, 0, None)]),
        );
        // Nothing was read of the one before.
        check((same, &[(0, 0)]), (Some("b"), &[(0, 90)]), (&[(0, 0)], &[]));
        // Without ids a topic that has less than was read of it is another one.
        check(
            (None, &[(0, 40), (1, 5)]),
            (None, &[(0, 39), (0, 9)]),
            (&[(0, 0), (1, 0)], &[(0, MadeAnew, 40, None), (1, MadeAnew, 5, None)]),
        );
        check((None, &[(0, 40)]), (Some("b"), &[(50, 60)]), (&[(0, 50)], &[(0, Removed, 40, Some(49))]));
    }
}
