//! What becomes of an offer that finds a lane full: it waits, is refused, or exceeds the
//! bound where waiting would never end.

use super::{Gate, Offer, Patience, State};
use crate::engine::error::EngineError;
use crate::engine::lane::{Lane, Overflow};
use crate::engine::ops::Ops;
use crate::engine::priority::Priority;
use crate::engine::router::Route;
use crate::engine::sync::Arc;

pub(super) enum FullLane {
    Exceed,
    Wait,
    Refuse(EngineError),
}

impl<O: Ops> Gate<O> {
    #[cold]
    pub(super) fn at_full_lane(
        &self,
        state: &mut State<O>,
        full: &Arc<Lane<O>>,
        offer: &Offer<'_, O>,
        route: &Route<O>,
        patience: Patience,
    ) -> FullLane {
        if let Some(full) = route.rejecting(offer.level) {
            return FullLane::Refuse(full.is_full());
        }
        if let Some(origin) = offer.origin {
            let waited_for = route
                .lanes
                .iter()
                .filter(|lane| lane.options.overflow == Overflow::Block);
            let behind: Vec<_> = waited_for
                .clone()
                .filter_map(|lane| state.lines.get(&(lane.id, offer.level))?.back().copied())
                .collect();
            // Room that is left may be used up by those in front.
            let scarce = |lane: &&Arc<Lane<O>>| {
                !route.has_room(lane, offer.level)
                    || state.lines.contains_key(&(lane.id, offer.level))
            };
            let needed: Vec<_> = waited_for.filter(scarce).cloned().collect();
            if let Some(cycle) = state.cycle(origin, &needed, &behind) {
                // Waiting would be for ever. A bounded excess is the lesser evil; beyond it, an error.
                let within = needed
                    .iter()
                    .all(|lane| lane.depth(offer.level) < lane.options.hard_limit());
                return if within {
                    FullLane::Exceed
                } else {
                    FullLane::Refuse(EngineError::Deadlock { cycle })
                };
            }
        }
        if patience == Patience::None {
            FullLane::Refuse(full.is_full())
        } else {
            FullLane::Wait
        }
    }
}

impl<O: Ops> Route<O> {
    /// A lane that rejects what it has no room for, and has none.
    pub(super) fn rejecting(&self, level: Priority) -> Option<&Arc<Lane<O>>> {
        let mut lanes = self.lanes.iter();
        lanes.find(|lane| lane.options.overflow == Overflow::Reject && !self.has_room(lane, level))
    }
}

impl<O: Ops> Lane<O> {
    pub(super) fn is_full(&self) -> EngineError {
        EngineError::Full {
            subscription: self.options.name.to_string(),
            bound: self.options.bound,
        }
    }
}

impl<O: Ops> State<O> {
    /// The first lane that keeps an event from being admitted at once.
    #[inline]
    pub(super) fn obstacle<'a>(
        &self,
        route: &'a Route<O>,
        level: Priority,
    ) -> Option<&'a Arc<Lane<O>>> {
        route.lanes.iter().find(|lane| match lane.options.overflow {
            Overflow::Block => {
                // Nobody overtakes those who wait already.
                !route.has_room(lane, level) || lane.is_awaited(level)
            }
            Overflow::Reject => !route.has_room(lane, level),
            Overflow::DropOldest | Overflow::DropNew | Overflow::Spill => false,
        })
    }
}
