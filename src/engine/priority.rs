//! The four levels, and the rule by which a lane chooses among them.
//!
//! Higher levels go first. So that none starves, of every [`WINDOW`] starts one
//! may go to a lower head that has waited for longer than [`AGED_NS`]. The rule
//! is a plain value: it knows neither queues nor clocks, both are handed in.

/// How urgent an event is. Lower numbers go first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Priority {
    /// Before everything else.
    Critical = 0,
    /// Before ordinary work.
    High = 1,
    /// Ordinary work.
    #[default]
    Normal = 2,
    /// When nothing else waits, or it has waited for long.
    Low = 3,
}

/// A number that is not a level.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("priority is not 0 (CRITICAL), 1 (HIGH), 2 (NORMAL) or 3 (LOW)")]
pub struct UnknownPriority;

impl Priority {
    /// How many levels there are.
    pub const COUNT: usize = 4;

    /// All levels, the most urgent first.
    pub const ALL: [Priority; Self::COUNT] = [Self::Critical, Self::High, Self::Normal, Self::Low];

    /// The level's place in arrays by level.
    #[inline]
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The level's name, as users write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Critical => "CRITICAL",
            Self::High => "HIGH",
            Self::Normal => "NORMAL",
            Self::Low => "LOW",
        }
    }
}

impl TryFrom<u8> for Priority {
    type Error = UnknownPriority;

    fn try_from(level: u8) -> Result<Self, UnknownPriority> {
        Self::ALL
            .get(usize::from(level))
            .copied()
            .ok_or(UnknownPriority)
    }
}

/// A head that has waited for longer than this (nanoseconds) is *aged*.
pub const AGED_NS: u64 = 1_000_000_000;

/// Of this many consecutive starts, at most one goes to an aged head while a
/// higher level has work.
pub const WINDOW: u64 = 16;

/// Ordinary starts that must lie between two aged ones.
const REST: u8 = (WINDOW - 1) as u8;

/// Within how many starts an aged head below [`Priority::Critical`] moves, its own
/// start included, whatever arrives meanwhile and however long the other backlogs are.
///
/// A turn comes with every [`WINDOW`]th start at the latest, and each of the other
/// levels below CRITICAL takes at most one before a head that is already aged: turns
/// go by how long a head has been *head*, not by the age of its event. One start more: a
/// head whose level is the top one when a turn is due leaves the turn to a lower level.
pub const fn max_starts_before_aged_moves() -> u64 {
    WINDOW * (Priority::COUNT as u64 - 1) + 1
}

/// What a lane remembers of its starts in order to choose the next one.
#[derive(Clone, Debug)]
pub struct Starts {
    /// Ordinary starts since the last aged one, up to [`REST`].
    rested: u8,
    /// Made with the first, which most lanes never see.
    turns: Option<Box<Turns>>,
}

/// The turns that aged heads took.
#[derive(Clone, Debug, Default)]
struct Turns {
    taken: u64,
    /// Per level: when it took its last turn, and the how-manieth that was.
    last: [(u64, u64); Priority::COUNT],
}

impl Default for Starts {
    fn default() -> Self {
        Self::new()
    }
}

impl Starts {
    /// A lane that has started nothing yet: an aged head may go at once.
    pub const fn new() -> Self {
        Self {
            rested: REST,
            turns: None,
        }
    }

    /// Chooses the level whose head is started now, and takes the start as made.
    ///
    /// `heads` are the times since when the head of each level has been waiting,
    /// `None` for an empty level; `now` is on the same monotonic clock (ns).
    /// `None` when all levels are empty.
    ///
    /// ```
    /// use ironbus::engine::priority::{AGED_NS, Starts};
    ///
    /// let mut starts = Starts::new();
    /// let now = 2 * AGED_NS;
    /// let heads = [Some(now), None, None, Some(0)];
    /// assert_eq!(starts.choose(now, heads), Some(3)); // LOW has waited for two seconds
    /// assert_eq!(starts.choose(now, heads), Some(0)); // but gets one start of sixteen only
    /// ```
    #[inline]
    pub fn choose(&mut self, now: u64, heads: [Option<u64>; Priority::COUNT]) -> Option<usize> {
        let mut occupied = 0u8;
        for (level, head) in heads.iter().enumerate() {
            occupied |= u8::from(head.is_some()) << level;
        }
        self.choose_lazily(occupied, || (now, heads))
    }

    /// [`choose`](Self::choose) for callers to whom a look at the clock and the
    /// heads is dear: bit `n` of `occupied` says that level `n` has work, and
    /// `look` gives `now` and the heads. It is called only when the outcome can
    /// depend on it: several levels have work and an aged start is due.
    #[inline]
    pub fn choose_lazily(
        &mut self,
        occupied: u8,
        look: impl FnOnce() -> (u64, [Option<u64>; Priority::COUNT]),
    ) -> Option<usize> {
        let occupied = occupied & ((1 << Priority::COUNT) - 1);
        if occupied == 0 {
            return None;
        }
        let top = occupied.trailing_zeros() as usize;
        if self.rested < REST {
            self.rested += 1;
        } else if occupied & (occupied - 1) != 0 {
            let (now, heads) = look();
            if let Some(level) = self.turn(now, heads, top) {
                return Some(level);
            }
        }
        Some(top)
    }

    /// Whose turn it is: of the aged heads the one that has been head the longest.
    #[cold]
    fn turn(
        &mut self,
        now: u64,
        heads: [Option<u64>; Priority::COUNT],
        top: usize,
    ) -> Option<usize> {
        let turns = self.turns.get_or_insert_default();
        // The top competes as well: a level that is top only now and then, just when
        // a turn is due, would else be passed over for ever. CRITICAL always is top.
        let level = (top.max(1)..Priority::COUNT)
            .filter(|&level| heads[level].is_some_and(|since| now.saturating_sub(since) > AGED_NS))
            .min_by_key(|&level| {
                // A head is head since its level's last turn at the earliest. By the
                // age of events alone, a level with an old backlog would take all
                // turns. The count decides between turns at one reading of the clock.
                let (when, turn) = turns.last[level];
                (heads[level].unwrap_or(when).max(when), turn)
            })?;
        turns.taken += 1;
        turns.last[level] = (now, turns.taken);
        if level != top {
            self.rested = 0;
        }
        Some(level)
    }
}
