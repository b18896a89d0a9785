//! Numbers that no event of a journal has, which are not to be taken for something that a subscription
//! still has to do.

use std::sync::Arc;

use crate::engine::journal::{JournalError, Reader};

/// Numbers that no event has: reserved by an opening that did not end in order, or of events that are deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Gap {
    /// The last one before them.
    after: u64,
    /// The last of them.
    through: u64,
}

/// Those that count: the numbers of each crash, however many there were.
#[derive(Clone)]
pub(super) struct Gaps(Arc<[Gap]>);

impl Gaps {
    /// How far apart is looked for them. Of a block of reserved numbers, a crash leaves more.
    const STRIDE: u64 = 65_536;

    /// Those of a journal up to this number.
    pub(super) fn of(reader: &mut dyn Reader, through: u64) -> Result<Self, JournalError> {
        let (mut gaps, mut at) = (Vec::new(), 0);
        while at < through {
            let probe = at + Self::STRIDE;
            let (after, behind) = reader.around(probe)?;
            let next = behind.unwrap_or(through + 1);
            if next - after > Self::STRIDE || behind.is_none() {
                let through = next - 1;
                gaps.push(Gap { after, through });
                at = next;
            } else {
                at = probe;
            }
        }
        Ok(Self(gaps.into()))
    }

    /// A position as if the numbers of all gaps came before it.
    pub(super) fn close(&self, position: u64) -> u64 {
        let behind = self.0.iter().filter(|gap| gap.through > position);
        position
            + behind
                .map(|gap| gap.through - gap.after.max(position))
                .sum::<u64>()
    }
}

#[cfg(test)]
mod tests {
    use super::{Gap, Gaps};
    use proptest::prelude::*;

    proptest! {
        /// From a position to the end it is as far as there are numbers that are in no gap.
        #[test]
        fn only_numbers_outside_of_the_gaps_count(
            lengths in proptest::collection::vec((1..20u64, 1..20u64), 0..6), at in 0..200u64
        ) {
            let (mut end, mut gaps) = (0, Vec::new());
            for (events, skipped) in lengths {
                let after = end + events;
                end = after + skipped;
                gaps.push(Gap { after, through: end });
            }
            let at = at.min(end);
            let skipped = |number: &u64| gaps.iter().any(|gap| (gap.after + 1..=gap.through).contains(number));
            let events = (at + 1..=end).filter(|number| !skipped(number)).count() as u64;
            let gaps = Gaps(gaps.clone().into());
            prop_assert_eq!(end - gaps.close(at), events);
        }
    }
}
