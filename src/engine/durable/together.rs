//! What is written as one with the settlement of a delivery: its dead letter, or what its handler
//! left to be done.

use std::sync::Arc;

use super::{Durable, Refusal, Written};
use crate::engine::bus::Bus;
use crate::engine::journal::{Delivery, Journal, JournalError, Subscription, Unit, UnitDone};
use crate::engine::lane::LaneId;
use crate::engine::ops::Ops;
use crate::engine::priority::Priority;
use crate::engine::store::Durability;
use crate::engine::sync::lock;

/// Where the deliveries of a lane are settled, in one opening of the journal: what was begun in it
/// is not settled in the next, which delivers anew.
#[derive(Clone)]
pub struct Place {
    journal: Arc<Journal>,
    subscription: Arc<Subscription>,
}

impl Place {
    /// Why nothing is written there any more, if it is not.
    pub fn refuses(&self) -> Result<(), JournalError> {
        self.journal.refuses()
    }
}

impl<O: Ops> Durable<O> {
    /// The place of a durable lane, while the journal is open.
    pub fn place(&self, lane: LaneId) -> Option<Place> {
        // Of two openings only so: a closed journal takes nothing.
        let journal = self.journal()?;
        let window = lock(&self.windows).get(&lane).cloned()?;
        Some(Place {
            journal,
            subscription: window.subscription()?,
        })
    }

    /// Has the journal write a unit, with new events whose keys the caller has claimed, and the
    /// settlement of a delivery (none: that of a dead letter is in the unit): all or nothing. `done` is
    /// told by the journal's writer, and dropped where this refuses; the unit is still there where it was
    /// refused for lack of room. Waits for nothing.
    #[allow(clippy::too_many_arguments)] // of one unit, and each from elsewhere
    pub fn settle_with(
        &self,
        bus: &Bus<O>,
        place: &Place,
        delivery: Option<(Priority, u64)>,
        unit: &mut Unit,
        written: Vec<Written<O>>,
        durability: Durability,
        done: UnitDone,
    ) -> Result<(), (Refusal, Vec<Written<O>>)> {
        let delivery = delivery.map(|(level, sequence)| Delivery {
            subscription: place.subscription.clone(),
            level,
            sequence,
        });
        let journal = &place.journal;
        if written.is_empty() {
            let handed = journal.unit(std::mem::take(unit), delivery, durability, done);
            return match handed {
                Ok(_) => Ok(()),
                Err(error) => Err((Refusal::Journal(error), written)),
            };
        }
        let append = |events| -> Result<(), JournalError> {
            unit.events = events;
            let unit = std::mem::take(unit);
            journal.unit(unit, delivery, durability, done).map(drop)
        };
        self.hand_over(bus, journal, written, append).map(drop)
    }
}
