//! A delivery whose handler has succeeded and left something to be done: on its way to the journal,
//! as one with its settlement. Its lane takes it for one that runs. Nobody blocks: where it
//! has to wait, for the fate of an equal key or for room, it is [woken](Settling::wake).

use std::sync::{Arc, Mutex};

use pyo3::prelude::*;

use super::{Left, Wanted};
use crate::engine::clock::SECOND;
use crate::engine::durable::{Place, Refusal};
use crate::engine::journal::{JournalError, Unit, UnitDone};
use crate::engine::lane::{Entry, Failed};
use crate::engine::store::Durability;
use crate::engine::sync::lock;
use crate::py::clock::monotonic_ns;
use crate::py::core::Core;
use crate::py::durable::Journaled;
use crate::py::errors::Error;
use crate::py::failure;
use crate::py::once::Once;
use crate::py::ops::{PyLane, PyOps, Waker};
use crate::py::record;
use crate::py::run;

/// When nothing can be written, the handler is called again after so long.
const PAUSE: u64 = 5 * SECOND;

/// See the module.
pub struct Settling {
    core: Arc<Core>,
    lane: PyLane,
    place: Place,
    /// How long the handler ran.
    work: Option<u64>,
    /// With whoever goes on with it.
    hand: Mutex<Option<Hand>>,
}

/// What goes from hand to hand.
struct Hand {
    entry: Entry<PyOps>,
    wanted: Wanted,
}

/// Has it written. The lane goes on then.
pub fn settle(py: Python<'_>, left: Left, lane: &PyLane, entry: Entry<PyOps>, work: Option<u64>) {
    let Left {
        core,
        place,
        wanted,
    } = left;
    let settling = Arc::new(Settling {
        core,
        lane: lane.clone(),
        place,
        work,
        hand: Mutex::new(Some(Hand { entry, wanted })),
    });
    settling.go_on(py);
}

impl Settling {
    /// What it waited for has come, perhaps.
    pub fn wake(self: Arc<Self>) {
        // At the end of the interpreter there is nobody left to settle for.
        Python::try_attach(|py| self.go_on(py));
    }

    fn journaled(&self) -> &Journaled {
        let journaled = self.core.journaled.as_ref();
        journaled.expect("there are transactions only then")
    }

    fn now(&self, py: Python<'_>) -> u64 {
        // A clock of the user's that fails must not keep the lane waiting for ever.
        self.core.now(py).unwrap_or_else(|error| {
            error.write_unraisable(py, None);
            monotonic_ns()
        })
    }

    fn go_on(self: &Arc<Self>, py: Python<'_>) {
        let bus = &self.core.bus;
        let engine = &self.journaled().engine;
        loop {
            let Some(mut hand) = lock(&self.hand).take() else {
                return;
            };
            // A key whose fate is not known is not waited for.
            if let Err(error) = self.place.refuses() {
                return self.over(py, hand, Err(error));
            }
            if let Some(key) = hand.wanted.items.claim(bus, self.now(py)) {
                *lock(&self.hand) = Some(hand);
                if bus.join(&key, Waker::Settling(self.clone())) {
                    return;
                }
                continue;
            }
            let written = hand.wanted.items.written();
            let count = written.len();
            let entry = &hand.entry;
            let (level, sequence) = (entry.level, entry.sequence);
            let letter = entry.letter();
            let delivery = letter.is_none().then_some((level, sequence));
            let mut unit = Unit {
                redriven: letter.map(|letter| (letter.id.clone(), letter.holder)),
                statements: std::mem::take(&mut hand.wanted.statements),
                ..Unit::default()
            };
            hand.wanted.handed_over = true;
            // It may be over before the call is.
            *lock(&self.hand) = Some(hand);
            let handed = engine.settle_with(
                bus,
                &self.place,
                delivery,
                &mut unit,
                written,
                self.journaled().level,
                self.done(),
            );
            let Err((refusal, written)) = handed else {
                return;
            };
            let Some(mut hand) = lock(&self.hand).take() else {
                return;
            };
            hand.wanted.handed_over = false;
            hand.wanted.items.put_back(bus, written);
            let reason = match refusal {
                Refusal::Journal(JournalError::Busy { .. }) => {
                    hand.wanted.statements = unit.statements;
                    *lock(&self.hand) = Some(hand);
                    if engine
                        .when_room(count, Waker::Settling(self.clone()))
                        .is_ok()
                    {
                        return;
                    }
                    continue;
                }
                Refusal::Journal(error) => error,
                // The gate keeps no more events before the next start.
                Refusal::Engine(_) => JournalError::Closed,
            };
            return self.over(py, hand, Err(reason));
        }
    }

    /// Told by the journal's writer.
    fn done(self: &Arc<Self>) -> UnitDone {
        let settling = self.clone();
        Box::new(move |outcome: Result<Durability, JournalError>| {
            Python::try_attach(|py| {
                if let Some(hand) = lock(&settling.hand).take() {
                    settling.over(py, hand, outcome.map(drop));
                }
            });
        })
    }

    fn over(&self, py: Python<'_>, hand: Hand, outcome: Result<(), JournalError>) {
        let Hand {
            mut entry,
            mut wanted,
        } = hand;
        let (core, lane, now) = (&*self.core, &self.lane, self.now(py));
        if let Err(JournalError::Settled) = outcome {
            // It has had its effect: nothing is left to be done.
            drop(wanted);
            core.bus.finish_written(lane, &mut entry, self.work, now);
            return record::let_go(py, entry.into_event());
        }
        if let Err(JournalError::Closed) = outcome {
            // The bus was stopped: it comes again in the next life.
            drop(wanted);
            return core.bus.put_back(lane, entry, now);
        }
        let Err(error) = outcome else {
            wanted.items.count_duplicates(&core.bus);
            wanted.items.0.clear();
            if let Some(letter) = entry.letter() {
                core.bus.sink().left(&letter.id);
            }
            core.bus.finish_written(lane, &mut entry, self.work, now);
            return record::let_go(py, entry.into_event());
        };
        drop(wanted);
        let failed = match &error {
            JournalError::DurabilityUnknown(_)
            | JournalError::ReadOnly
            | JournalError::Busy { .. } => self.later(py, &entry, &error),
            JournalError::Store(store) if !store.problem.is_of_the_request() => {
                self.later(py, &entry, &error)
            }
            _ => {
                let failed = Error::TransactionFailed.exception(py, "", error.to_string());
                failure::sort(py, lane, failed)
            }
        };
        let next = run::fail(py, core, lane, entry, &failed, self.work, false, now);
        debug_assert!(next.is_none());
    }

    /// It is not the delivery's fault: it is not done, and comes again.
    fn later(&self, py: Python<'_>, entry: &Entry<PyOps>, error: &JournalError) -> Failed<PyErr> {
        static LOG: Once<Py<PyAny>> = Once::new();
        let log = LOG.import(py, "ironbus._log", "not_settled");
        let said = log.and_then(|log| {
            log.call1((&self.lane.handler.name, entry.sequence, error.to_string()))
        });
        if let Err(error) = said {
            error.write_unraisable(py, None);
        }
        Failed::Later(PAUSE)
    }
}
