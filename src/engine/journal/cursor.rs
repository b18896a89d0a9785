//! Where one subscription is on one level: a plain value, without clock or storage.
//!
//! Everything up to the *position* is settled. Above it lie the *runs* that are settled
//! already, and between them what was handed out and is not. A lane sees only some of the
//! sequence numbers; two settled events are in one run if nothing of the lane is unsettled
//! between them. What holds the position back for too long is moved out as *stragglers*.

use std::collections::{BTreeMap, BTreeSet};

/// More settled runs than this are not kept: the events between them become stragglers.
pub const MAX_RUNS: usize = 1024;

/// A settled run: from and to, both included.
pub type Run = (u64, u64);

/// What [`Cursor::settle`] met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// An event that had been handed out.
    Open,
    /// One that the position has passed: a straggler, if anything.
    Straggler,
}

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    position: u64,
    runs: BTreeMap<u64, u64>,
    open: BTreeSet<u64>,
    /// Handed out, or not of this lane, up to here.
    scanned: u64,
}

impl Cursor {
    /// A cursor as it was stored: nothing is handed out.
    pub fn new(position: u64, runs: impl IntoIterator<Item = Run>) -> Self {
        Self {
            position,
            runs: runs.into_iter().collect(),
            open: BTreeSet::new(),
            scanned: position,
        }
    }

    /// Everything up to here is settled or a straggler.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// What is settled above the position.
    pub fn runs(&self) -> impl ExactSizeIterator<Item = Run> + '_ {
        self.runs.iter().map(|(from, to)| (*from, *to))
    }

    /// Events up to here need not be looked at again.
    pub fn scanned(&self) -> u64 {
        self.scanned
    }

    /// How many events are handed out and not settled.
    pub fn open(&self) -> usize {
        self.open.len()
    }

    /// Whether an event is handed out and not settled.
    pub fn is_open(&self, sequence: u64) -> bool {
        self.open.contains(&sequence)
    }

    /// Whether an event was settled before, so that it is not to be handed out.
    pub fn is_settled(&self, sequence: u64) -> bool {
        let below = self.runs.range(..=sequence).next_back();
        sequence <= self.position || below.is_some_and(|(_, to)| sequence <= *to)
    }

    /// Hands out an event of the lane, the next one that is not settled.
    pub fn hand(&mut self, sequence: u64) {
        debug_assert!(sequence > self.scanned && !self.is_settled(sequence));
        self.pass(sequence - 1);
        self.open.insert(sequence);
        self.scanned = sequence;
    }

    /// Up to there is nothing more of the lane that is not settled.
    pub fn pass(&mut self, through: u64) {
        if through > self.scanned {
            self.scanned = through;
            self.advance();
        }
    }

    /// An event of the lane is settled.
    pub fn settle(&mut self, sequence: u64) -> Settled {
        if !self.open.remove(&sequence) {
            return Settled::Straggler;
        }
        let (mut from, mut to) = (sequence, sequence);
        if let Some((&before, &end)) = self.runs.range(..sequence).next_back()
            && self.open.range(end..sequence).next().is_none()
        {
            from = before;
        }
        if let Some((&next, &end)) = self.runs.range(sequence..).next()
            && next <= self.scanned
            && self.open.range(sequence..next).next().is_none()
        {
            self.runs.remove(&next);
            to = end;
        }
        self.runs.insert(from, to);
        self.advance();
        Settled::Open
    }

    /// Lets the position jump over what holds it back; the events that become stragglers.
    pub fn jump(&mut self) -> Vec<u64> {
        let Some((_, &end)) = self.runs.range(..=self.scanned).next_back() else {
            return Vec::new();
        };
        let rest = self.open.split_off(&end);
        let left = std::mem::replace(&mut self.open, rest);
        self.advance();
        left.into_iter().collect()
    }

    /// Goes on to where there is nothing more of the lane than what is handed out, all of which becomes
    /// stragglers.
    pub fn leave(&mut self, through: u64) -> Vec<u64> {
        let left = std::mem::take(&mut self.open);
        self.pass(through);
        self.advance();
        left.into_iter().collect()
    }

    fn advance(&mut self) {
        let frontier = self.open.first().map_or(self.scanned, |first| first - 1);
        self.position = self.position.max(frontier);
        while let Some(run) = self.runs.first_entry() {
            if *run.key() > self.position + 1 {
                break;
            }
            self.position = self.position.max(run.remove());
        }
        self.scanned = self.scanned.max(self.position);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn runs(cursor: &Cursor) -> Vec<Run> {
        cursor.runs().collect()
    }

    #[test]
    fn in_order_there_are_no_runs() {
        let mut cursor = Cursor::new(10, []);
        for sequence in [12, 15, 19] {
            cursor.hand(sequence);
        }
        assert_eq!(cursor.position(), 11);
        assert_eq!(cursor.settle(12), Settled::Open);
        assert_eq!(cursor.position(), 14);
        cursor.settle(15);
        cursor.settle(19);
        cursor.pass(30);
        assert_eq!((cursor.position(), cursor.runs().len()), (30, 0));
        assert_eq!(cursor.settle(15), Settled::Straggler);
    }

    #[test]
    fn what_is_not_of_the_lane_does_not_part_a_run() {
        let mut cursor = Cursor::default();
        for sequence in [1, 10, 20, 30, 40] {
            cursor.hand(sequence);
        }
        cursor.settle(10);
        cursor.settle(30);
        assert_eq!(runs(&cursor), [(10, 10), (30, 30)]);
        cursor.settle(20);
        assert_eq!(runs(&cursor), [(10, 30)]);
        assert!(cursor.is_settled(15) && !cursor.is_settled(1) && !cursor.is_settled(31));
        cursor.settle(1);
        assert_eq!((cursor.position(), runs(&cursor)), (39, vec![]));
    }

    #[test]
    fn runs_from_before_a_restart_are_not_joined_over_what_was_not_looked_at() {
        let mut cursor = Cursor::new(10, [(15, 20), (30, 30)]);
        cursor.hand(12);
        cursor.settle(12);
        assert_eq!(
            (cursor.position(), runs(&cursor)),
            (12, vec![(15, 20), (30, 30)])
        );
        assert!(cursor.is_settled(17) && !cursor.is_settled(13));
        cursor.hand(13);
        cursor.pass(25);
        assert_eq!(
            (cursor.position(), runs(&cursor)),
            (12, vec![(15, 20), (30, 30)])
        );
        cursor.settle(13);
        assert_eq!((cursor.position(), runs(&cursor)), (25, vec![(30, 30)]));
        cursor.pass(29);
        assert_eq!((cursor.position(), cursor.scanned()), (30, 30));
    }

    #[test]
    fn a_jump_leaves_stragglers_behind() {
        let mut cursor = Cursor::default();
        (1..=6).for_each(|sequence| cursor.hand(sequence));
        assert!(cursor.jump().is_empty());
        cursor.settle(2);
        cursor.settle(4);
        assert_eq!(cursor.jump(), [1, 3]);
        assert_eq!(
            (cursor.position(), cursor.open(), cursor.runs().len()),
            (4, 2, 0)
        );
        assert_eq!(cursor.settle(3), Settled::Straggler);
        cursor.settle(5);
        assert_eq!(cursor.position(), 5);
    }

    #[test]
    fn what_is_handed_out_may_be_left_behind_as_a_whole() {
        let mut cursor = Cursor::default();
        (1..=6).for_each(|sequence| cursor.hand(sequence));
        for sequence in [2, 4, 6] {
            cursor.settle(sequence);
        }
        assert_eq!(cursor.leave(9), [1, 3, 5]);
        assert_eq!(
            (cursor.position(), cursor.open(), cursor.runs().len()),
            (9, 0, 0)
        );
        assert_eq!(cursor.settle(3), Settled::Straggler);
        cursor.hand(12);
        assert_eq!(cursor.leave(cursor.scanned()), [12]);
        assert_eq!(cursor.position(), 12);
    }

    proptest! {
        /// Against a list of all events of the lane: the cursor and its stragglers say the same,
        /// also after it was stored and loaded again in the middle.
        #[test]
        fn nothing_unsettled_is_ever_passed(
            lane in prop::collection::btree_set(1..60u64, 1..30),
            steps in prop::collection::vec((0..10u8, 0..30usize), 0..80),
        ) {
            let lane: Vec<u64> = lane.into_iter().collect();
            let mut cursor = Cursor::default();
            let mut settled = BTreeSet::new();
            let mut stragglers = BTreeSet::new();
            let mut handed = BTreeSet::new();
            for (step, which) in steps {
                match step {
                    0..4 => {
                        let scanned = cursor.scanned();
                        let next = lane.iter().find(|&&sequence| sequence > scanned && !cursor.is_settled(sequence));
                        match next {
                            Some(&next) => {
                                prop_assert!(!settled.contains(&next), "handed out again");
                                cursor.hand(next);
                                handed.insert(next);
                            }
                            None => cursor.pass(100),
                        }
                    }
                    4..8 => {
                        let waiting: Vec<u64> = handed.iter().copied().collect();
                        if let Some(&sequence) = waiting.get(which % waiting.len().max(1)) {
                            handed.remove(&sequence);
                            settled.insert(sequence);
                            let straggler = stragglers.remove(&sequence);
                            let met = cursor.settle(sequence);
                            prop_assert_eq!(met == Settled::Straggler, straggler);
                        }
                    }
                    8 => stragglers.extend(cursor.jump()),
                    _ => {
                        cursor = Cursor::new(cursor.position(), runs(&cursor));
                        // Stragglers are handed out again from their table.
                        handed = stragglers.clone();
                    }
                }
                for sequence in &lane {
                    let done = settled.contains(sequence);
                    let passed = cursor.is_settled(*sequence);
                    prop_assert_eq!(done || stragglers.contains(sequence), passed, "{}", sequence);
                }
            }
        }
    }
}
