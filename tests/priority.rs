//! The ageing rule, against every sequence of arrivals that proptest thinks of.
#![cfg(not(loom))]

use std::collections::VecDeque;

use ironbus::engine::priority::{AGED_NS, Priority, Starts, WINDOW, max_starts_before_aged_moves};
use proptest::prelude::*;

const BOUND: u64 = max_starts_before_aged_moves();

/// A lane as the rule sees one: four queues of (arrival number, time of arrival).
#[derive(Default)]
struct Lane {
    levels: [VecDeque<(u64, u64)>; Priority::COUNT],
    arrivals: u64,
    now: u64,
    starts: Starts,
}

impl Lane {
    fn arrive(&mut self, level: usize) {
        self.arrivals += 1;
        self.levels[level].push_back((self.arrivals, self.now));
    }

    fn heads(&self) -> [Option<u64>; Priority::COUNT] {
        std::array::from_fn(|level| self.levels[level].front().map(|&(_, since)| since))
    }

    /// Starts one; gives its level, its arrival number, and whether a higher level had work.
    fn start(&mut self) -> Option<(usize, u64, bool)> {
        let level = self.starts.choose(self.now, self.heads())?;
        let below = (0..level).any(|higher| !self.levels[higher].is_empty());
        let (number, since) = self.levels[level]
            .pop_front()
            .expect("an empty level was chosen");
        assert!(
            !below || self.now - since > AGED_NS,
            "a young head overtook a higher level"
        );
        Some((level, number, below))
    }
}

#[derive(Clone, Debug)]
enum Step {
    Arrive(usize, usize),
    Pass(u64),
    Start(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        (0..Priority::COUNT, 1..40usize).prop_map(|(level, n)| Step::Arrive(level, n)),
        prop_oneof![
            Just(0),
            Just(1),
            Just(AGED_NS),
            Just(AGED_NS + 1),
            0..3 * AGED_NS
        ]
        .prop_map(Step::Pass),
        (1..60usize).prop_map(Step::Start),
    ];
    proptest::collection::vec(step, 1..120)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn one_of_sixteen_within_the_bound_and_fifo(steps in steps()) {
        let mut lane = Lane::default();
        let mut since_aged = WINDOW;
        let mut latest = [0u64; Priority::COUNT];
        // Starts that each level's head has seen since it became aged.
        let mut passed = [0u64; Priority::COUNT];
        for step in steps {
            match step {
                Step::Arrive(level, n) => (0..n).for_each(|_| lane.arrive(level)),
                Step::Pass(ns) => lane.now += ns,
                Step::Start(n) => for _ in 0..n {
                    let before = lane.heads();
                    let Some((level, number, aged)) = lane.start() else {
                        prop_assert_eq!(before, [None; Priority::COUNT]);
                        break;
                    };
                    prop_assert!(number > latest[level], "FIFO is broken");
                    latest[level] = number;
                    if aged {
                        prop_assert!(since_aged >= WINDOW - 1, "two aged starts within sixteen");
                        since_aged = 0;
                    } else {
                        since_aged += 1;
                    }
                    for other in 0..Priority::COUNT {
                        let old = before[other].is_some_and(|since| lane.now - since > AGED_NS);
                        passed[other] = if other == level || !old { 0 } else { passed[other] + 1 };
                        prop_assert!(passed[other] < BOUND, "level {} was passed over", other);
                    }
                }
            }
        }
    }

    #[test]
    fn lazily_is_the_same_rule(
        calls in proptest::collection::vec(
            (0..AGED_NS * 2, prop::array::uniform4(prop::option::of(0..AGED_NS * 4))), 1..200)
    ) {
        let (mut eager, mut lazy) = (Starts::new(), Starts::new());
        let mut now = 0;
        for (pass, heads) in calls {
            now += pass;
            let mask = (0..4).map(|level| u8::from(heads[level].is_some()) << level).sum();
            prop_assert_eq!(eager.choose(now, heads), lazy.choose_lazily(mask, || (now, heads)));
        }
    }
}

/// In which each of the three levels below CRITICAL has one turn.
const ROUND: u64 = 3 * WINDOW;

/// Endless CRITICAL work, and a backlog on each lower level that is older the lower
/// the level is: the old backlog must not keep the younger aged heads from moving.
#[test]
fn no_level_starves_behind_the_older_backlog_of_another() {
    let mut lane = Lane::default();
    for level in [3, 2, 1] {
        (0..1000).for_each(|_| lane.arrive(level));
        lane.now += AGED_NS + 1;
    }
    let mut moved = [0u64; Priority::COUNT];
    for _ in 0..ROUND * 100 {
        lane.arrive(0);
        let (level, ..) = lane.start().expect("there is work");
        moved[level] += 1;
    }
    assert_eq!(moved, [ROUND * 100 - 300, 100, 100, 100]);
}

/// HIGH is the top just when a turn is due, and below CRITICAL at every other start.
#[test]
fn a_level_that_is_top_now_and_then_does_not_starve() {
    let mut lane = Lane::default();
    for level in [3, 1] {
        (0..1000).for_each(|_| lane.arrive(level));
    }
    lane.now = AGED_NS + 1;
    assert!(matches!(lane.start(), Some((1 | 3, ..))));
    let mut moved = [0u64; Priority::COUNT];
    for _ in 0..100 {
        (1..WINDOW).for_each(|_| lane.arrive(0));
        while !lane.levels[0].is_empty() {
            moved[lane.start().expect("there is work").0] += 1;
        }
        moved[lane.start().expect("there is work").0] += 1;
    }
    assert!(
        moved[1] * BOUND >= 1600 && moved[3] * BOUND >= 1600,
        "{moved:?}"
    );
}

#[test]
fn aged_levels_take_turns() {
    // The clock stands still: the order of turns decides alone.
    let mut lane = Lane::default();
    for level in [1, 2, 3] {
        (0..10).for_each(|_| lane.arrive(level));
    }
    lane.now = AGED_NS + 1;
    let mut aged = Vec::new();
    for start in 1..=ROUND * 2 {
        lane.arrive(0);
        if let Some((level, _, true)) = lane.start() {
            aged.push((start, level));
        }
    }
    assert_eq!(aged, [(1, 1), (17, 2), (33, 3), (49, 1), (65, 2), (81, 3)]);
}

#[test]
fn one_second_is_not_over_one_second() {
    let heads = [Some(0), None, None, Some(0)];
    assert_eq!(Starts::new().choose(AGED_NS, heads), Some(0));
    assert_eq!(Starts::new().choose(AGED_NS + 1, heads), Some(3));
    // A head from after `now` (another thread read its clock later) is young.
    assert_eq!(
        Starts::new().choose(0, [Some(0), None, None, Some(9)]),
        Some(0)
    );
}

#[test]
fn a_single_level_never_looks() {
    let mut starts = Starts::new();
    for level in 0..Priority::COUNT {
        let chosen = starts.choose_lazily(1 << level, || unreachable!("looked at the clock"));
        assert_eq!(chosen, Some(level));
    }
    assert_eq!(starts.choose_lazily(0, || unreachable!()), None);
}

#[test]
fn levels_have_numbers_and_names() {
    for (index, level) in Priority::ALL.into_iter().enumerate() {
        assert_eq!(
            (level.index(), Priority::try_from(index as u8)),
            (index, Ok(level))
        );
    }
    assert_eq!(
        Priority::ALL.map(Priority::name),
        ["CRITICAL", "HIGH", "NORMAL", "LOW"]
    );
    assert!(Priority::try_from(4).is_err());
    assert_eq!(Priority::default(), Priority::Normal);
}
