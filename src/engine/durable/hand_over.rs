//! How events come to the journal: numbered under the gate and handed over in one step, or, where a
//! subscription is too far behind, in line until it is not. Who waits in line has nothing: no number,
//! no place in the journal's buffer, no claim to a key.

use std::sync::Arc;

use super::backlog::{InLine, Standing};
use super::{Durable, Handed, Publication, Refusal, Uncommitted, Written};
use crate::engine::bus::Bus;
use crate::engine::clock::Nanos;
use crate::engine::error::EngineError;
use crate::engine::gate::{Committed, Effects, Numbering, Taken, Turn, Unnumbered};
use crate::engine::idempotency::Claim;
use crate::engine::journal::{Event, Journal, JournalError};
use crate::engine::ops::{Ops, Wake, wake_all};
use crate::engine::store::Durability;
use crate::engine::sync::lock;

/// What a publisher does where a subscription is too far behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beyond {
    /// It waits, first come, first served.
    Wait,
    /// It is refused.
    Refuse,
    /// It goes on: as a handler, which might wait for itself.
    Exceed,
}

/// So many are let in before others may come to the gate.
const IN_A_ROW: usize = 256;

/// What becomes of those who do not get in when it is their turn.
enum Served<O: Ops> {
    Back(InLine<O>),
    Refused(InLine<O>, JournalError),
}

impl<O: Ops> Durable<O> {
    /// Hands events to the journal, all or none. Their publishers hold claims to their keys, and go on
    /// holding them if this refuses. Where they wait in line, they hold none, until it is their turn.
    pub fn publish(
        &self,
        bus: &Bus<O>,
        written: Vec<Written<O>>,
        durability: Durability,
        beyond: Beyond,
    ) -> Handed<O> {
        let Some(open) = self.opened() else {
            return Err((Refusal::Journal(JournalError::Closed), written));
        };
        let mut joined = Vec::new();
        let line_up = |numbering: Numbering<'_, O::Waker>, written: &mut Vec<Written<O>>| {
            let refused = match (beyond, self.standing(numbering.first, written.len())) {
                (Beyond::Exceed, _) | (_, Standing::Free) => return Ok(None),
                (Beyond::Wait, Standing::Behind(_)) if numbering.open => {
                    let publication = Arc::new(Publication::new(None, written.len()));
                    for key in written.iter().filter_map(|item| item.key.as_ref()) {
                        joined.extend(numbering.keys.release(key));
                    }
                    let who = InLine {
                        written: std::mem::take(written),
                        durability,
                        publication: publication.clone(),
                    };
                    self.backlog.line_up(&mut self.backlog.line(), who);
                    return Ok(Some(publication));
                }
                (_, Standing::Behind(window)) => window,
            };
            let name = refused.map(|window| window.name().to_owned());
            let subscription = name.unwrap_or_else(|| "(gone)".into());
            let limit = self.max_backlog().unwrap_or_default();
            Err(match numbering.open {
                true => EngineError::Behind {
                    subscription,
                    limit,
                },
                false => EngineError::BehindAtRest {
                    subscription,
                    limit,
                },
            })
        };
        let append = |events| open.journal.append(events, durability).map(drop);
        let handed = self.bring(bus, &open.journal, written, line_up, append);
        wake_all(joined);
        if let Ok(publication) = &handed
            && publication.lined_up
        {
            // What was settled since the look above was settled while nobody waited for it.
            self.refiller.ask_line();
        }
        handed
    }

    /// The same for a unit, which waits for nobody.
    pub(super) fn hand_over(
        &self,
        bus: &Bus<O>,
        journal: &Journal,
        written: Vec<Written<O>>,
        append: impl FnOnce(Vec<Event>) -> Result<(), JournalError>,
    ) -> Handed<O> {
        self.bring(bus, journal, written, |_, _| Ok(None), append)
    }

    /// Numbers events, and has them appended, unless `line_up` has taken them.
    fn bring(
        &self,
        bus: &Bus<O>,
        journal: &Journal,
        mut written: Vec<Written<O>>,
        line_up: impl FnOnce(
            Numbering<'_, O::Waker>,
            &mut Vec<Written<O>>,
        ) -> Result<Option<Arc<Publication<O>>>, EngineError>,
        append: impl FnOnce(Vec<Event>) -> Result<(), JournalError>,
    ) -> Handed<O> {
        let count = written.len();
        let mut publication = None;
        let numbered = bus.gate.number(count, |numbering| {
            let first = numbering.first;
            publication = line_up(numbering, &mut written).map_err(Unnumbered::Refused)?;
            if publication.is_some() {
                return Ok(Taken::LinedUp);
            }
            let told = Arc::new(Publication::new(Some(first), count));
            self.enter(journal, &mut written, first, &told, append)
                .map_err(Unnumbered::Journal)?;
            publication = Some(told);
            Ok(Taken::Numbered)
        });
        match (numbered, publication) {
            (Ok(()), Some(publication)) => Ok(publication),
            (Err(Unnumbered::Refused(error)), _) => Err((Refusal::Engine(error), written)),
            (Err(Unnumbered::Journal(error)), _) => Err((Refusal::Journal(error), written)),
            (Ok(()), None) => unreachable!("numbers are given with a publication"),
        }
    }

    /// Under the gate: events get their numbers and go to the journal; or they stay where they are.
    fn enter(
        &self,
        journal: &Journal,
        written: &mut Vec<Written<O>>,
        first: u64,
        publication: &Arc<Publication<O>>,
        append: impl FnOnce(Vec<Event>) -> Result<(), JournalError>,
    ) -> Result<(), JournalError> {
        // In the order of the numbers; and the commit does not overtake what is noted here.
        let mut uncommitted = lock(&self.uncommitted);
        let count = written.len();
        if journal.room() < count {
            return Err(JournalError::Busy { bound: count });
        }
        for (item, number) in written.iter_mut().zip(first..) {
            item.stored.sequence = number;
        }
        let events = written
            .iter_mut()
            .map(|item| std::mem::take(&mut item.stored))
            .collect::<Vec<_>>();
        let types: Vec<_> = events
            .iter()
            .map(|event| (event.event_type.clone(), event.level))
            .collect();
        append(events)?;
        let items = std::mem::take(written).into_iter().zip(types).zip(first..);
        for ((item, (event_type, level)), sequence) in items {
            uncommitted.push_back(Uncommitted {
                committed: Committed {
                    event_type,
                    sequence,
                    level,
                    token: item.token,
                    event: item.event,
                    timing: item.timing,
                },
                key: item.key,
                publication: publication.clone(),
            });
        }
        Ok(())
    }

    /// Lets those in who wait in line, as far as nobody is too far behind.
    pub(super) fn serve_line(&self, bus: &Bus<O>, now: Nanos) {
        let Some(open) = self.opened() else { return };
        let mut served = Vec::new();
        let mut left = IN_A_ROW;
        let mut effects = Effects::default();
        bus.gate.serve_line(&mut effects, |numbering| {
            let Numbering { first, keys, .. } = numbering;
            let mut line = self.backlog.line();
            let Some(front) = line.front() else {
                self.backlog.wait_for(0);
                return None;
            };
            if left == 0 {
                self.refiller.ask_line();
                return None;
            }
            left -= 1;
            let count = front.written.len();
            match open.journal.refuses() {
                // They wait for the next opening.
                Err(JournalError::Closed) => return None,
                Err(error) => {
                    served.push(Served::Refused(line.pop_front()?, error));
                    return Some((count, Turn::Refused));
                }
                Ok(()) => {}
            }
            while let Standing::Behind(window) = self.standing_of_first(&line, first, count) {
                let lane = window.as_ref().map_or(0, |window| window.lane_id());
                let moved = window.is_some_and(|window| self.get_on(&window));
                if !self.backlog.wait_for(lane) && !moved {
                    return None;
                }
            }
            let front = line.front_mut()?;
            let held = front.written.iter().filter_map(|item| item.key);
            let held: Vec<_> = held.collect();
            if held.iter().any(|key| keys.look(key, now) != Claim::Vacant) {
                served.push(Served::Back(line.pop_front()?));
                return Some((count, Turn::Back));
            }
            let (publication, durability) = (front.publication.clone(), front.durability);
            publication.is_numbered(first);
            let append = |events| open.journal.append(events, durability).map(drop);
            let written = &mut front.written;
            match self.enter(&open.journal, written, first, &publication, append) {
                Ok(()) => {
                    held.iter().for_each(|key| keys.hold(key));
                    line.pop_front();
                    Some((count, Turn::Numbered))
                }
                // The next commit makes room, and the next opening.
                Err(JournalError::Busy { .. } | JournalError::Closed) => None,
                Err(error) => {
                    served.push(Served::Refused(line.pop_front()?, error));
                    Some((count, Turn::Refused))
                }
            }
        });
        let mut wakers = Vec::new();
        for served in served {
            match served {
                Served::Back(InLine {
                    written,
                    publication,
                    ..
                }) => wakers.extend(publication.goes_back(written)),
                Served::Refused(
                    InLine {
                        written,
                        publication,
                        ..
                    },
                    error,
                ) => {
                    for item in &written {
                        wakers.extend(item.event.routed(0).into_iter().flatten());
                    }
                    wakers.extend(publication.are_over(written.len(), &Err(error)));
                }
            }
        }
        O::Waker::wake_many(wakers);
        bus.carry_out(effects, now);
    }

    /// A publisher waits no more. Whether it was in line, or was to bring its events anew: then nothing is left of them.
    pub fn leave_line(&self, bus: &Bus<O>, publication: &Arc<Publication<O>>, now: Nanos) -> bool {
        if !publication.lined_up {
            return false;
        }
        let mut effects = Effects::default();
        let mut gone = None;
        let left = {
            let find = || {
                let mut line = self.backlog.line();
                let at = line
                    .iter()
                    .position(|it| Arc::ptr_eq(&it.publication, publication));
                gone = at.and_then(|at| line.remove(at));
                gone.is_some()
            };
            bus.gate.leave_line(publication.count(), find, &mut effects)
        };
        bus.carry_out(effects, now);
        // Whoever stood behind may need less room.
        self.refiller.ask_line();
        // Payloads' destructors are outside code: with no lock held.
        drop(gone);
        left || publication.take_back().is_some()
    }

    /// Says whom to wake when there may be room in the journal's buffer; gives it back if there is room
    /// for so many.
    pub fn when_room(&self, count: usize, waker: O::Waker) -> Result<(), O::Waker> {
        let Some(journal) = self.journal() else {
            return Err(waker);
        };
        let mut crowd = lock(&self.crowd);
        // Room is made before the crowd is woken: see `committed`.
        if journal.room() >= count {
            return Err(waker);
        }
        crowd.push(waker);
        Ok(())
    }
}
