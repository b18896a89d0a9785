//! The course of a publish to the journal, of one event or of many: claim the keys, hand all
//! over, wait for the flush. The same for loops and threads: what differs is how each waits.

use std::sync::Arc;

use pyo3::prelude::*;

use super::items::{Item, Items};
use super::{encode, exception};
use crate::engine::bus::Bus;
use crate::engine::digest::Digest;
use crate::engine::durable::{Beyond, Publication, Refusal};
use crate::engine::journal::{Bounds, JournalError};
use crate::engine::store::Durability;
use crate::py::clock::monotonic_ns;
use crate::py::core::Core;
use crate::py::errors::{self, Error};
use crate::py::ops::{Event, FutureWaker, PyOps, Signal, Waker, block_on};
use crate::py::prepare::Prepared;
use crate::py::receipt::{BatchReceipt, Receipt, Stored};

/// An equal event was stored before, at least so.
const BEFORE: Stored = Stored::Before(Durability::Os);

/// How a thread does what makes it wait.
type Blocked<'a> = &'a dyn Fn(&mut dyn FnMut() -> PyResult<bool>) -> PyResult<bool>;

/// See the module.
pub struct Course {
    core: Arc<Core>,
    items: Items,
    durability: Durability,
    beyond: Beyond,
    waits: Waits,
}

/// What it waits for.
enum Waits {
    Nothing,
    /// For room in the journal's buffer.
    Room(usize),
    /// For the fate of an equal key.
    Key(Digest),
    /// For the flush, and where it had to line up, for its turn before that.
    Commit(Arc<Publication<PyOps>>),
}

/// Where it is.
enum Step {
    /// It waits.
    Waits,
    /// It is over.
    Over,
}

impl Course {
    /// Of events that are valid. Says what of them cannot be stored; then none is published.
    /// One that a handler of the bus publishes waits for nobody who is behind.
    pub fn new(
        py: Python<'_>,
        core: &Arc<Core>,
        prepared: Vec<Prepared>,
        by_handler: bool,
    ) -> PyResult<Self> {
        let journaled = core.journaled.as_ref().expect("only such publish here");
        let (now, wall) = super::moment(py, &core.clock)?;
        if let Some(text) = too_many(prepared.len(), journaled.engine.max_backlog()) {
            prepared.iter().for_each(Prepared::discard);
            prepared.iter().for_each(|_| core.bus.count_rejected());
            return Err(Error::InvalidEvent.exception(py, "events", text));
        }
        let several = prepared.len() > 1;
        let mut items = Vec::with_capacity(prepared.len());
        let mut durability = None;
        let mut failed = None;
        for (index, prepared) in prepared.into_iter().enumerate() {
            if failed.is_some() {
                prepared.discard();
                continue;
            }
            let stored = match encode::stored(py, &prepared, now, wall) {
                Ok(stored) => stored,
                Err(error) => {
                    core.bus.count_rejected();
                    prepared.discard();
                    failed = Some(match several {
                        true => errors::at_index(py, error, index),
                        false => error,
                    });
                    continue;
                }
            };
            let extras = prepared.event.payload.extras.as_ref();
            durability = durability.max(extras.and_then(|extras| extras.durability));
            items.push(Item::new(prepared, stored));
        }
        let items = Items(items);
        if let Some(error) = failed {
            items.discard();
            return Err(error);
        }
        Ok(Self {
            core: core.clone(),
            items,
            durability: durability.unwrap_or(journaled.level),
            beyond: match by_handler {
                true => Beyond::Exceed,
                false => Beyond::Wait,
            },
            waits: Waits::Nothing,
        })
    }

    fn bus(&self) -> &Bus<PyOps> {
        &self.core.bus
    }

    /// Goes on as far as it can.
    fn advance(&mut self, py: Python<'_>) -> PyResult<Step> {
        match std::mem::replace(&mut self.waits, Waits::Nothing) {
            Waits::Commit(publication) => match publication.fate() {
                None => {
                    if let Some(written) = publication.take_back() {
                        self.items.take_back(written);
                        return self.begin(py);
                    }
                    self.waits = Waits::Commit(publication);
                    Ok(Step::Waits)
                }
                Some(fate) => {
                    if publication.lined_up {
                        self.items.count_duplicates(self.bus());
                    }
                    self.waits = Waits::Commit(publication);
                    // Its events were discarded, and their keys dealt with, where that was found.
                    fate.map_err(|error| exception(py, &error))?;
                    Ok(Step::Over)
                }
            },
            Waits::Key(_) => {
                self.bus().count_joined(false);
                self.begin(py)
            }
            Waits::Nothing | Waits::Room(_) => self.begin(py),
        }
    }

    fn begin(&mut self, py: Python<'_>) -> PyResult<Step> {
        let core = self.core.clone();
        let journaled = core.journaled.as_ref().expect("only such publish here");
        if let Err(error) = journaled.open(py, &core) {
            return Err(self.refused(error));
        }
        if journaled.engine.is_read_only() {
            return Err(self.refused(exception(py, &JournalError::ReadOnly)));
        }
        let now = match core.now(py) {
            Ok(now) => now,
            Err(error) => return Err(self.refused(error)),
        };
        if let Some(key) = self.items.claim(&core.bus, now) {
            self.waits = Waits::Key(key);
            return Ok(Step::Waits);
        }
        let written = self.items.written();
        if written.is_empty() {
            self.items.count_duplicates(&core.bus);
            return Ok(Step::Over);
        }
        let count = written.len();
        match journaled
            .engine
            .publish(&core.bus, written, self.durability, self.beyond)
        {
            Ok(publication) => {
                if !publication.lined_up {
                    self.items.count_duplicates(&core.bus);
                }
                self.waits = Waits::Commit(publication);
                Ok(Step::Waits)
            }
            Err((refusal, written)) => {
                self.items.put_back(&core.bus, written);
                match refusal {
                    Refusal::Journal(JournalError::Busy { .. }) => {
                        self.waits = Waits::Room(count);
                        Ok(Step::Waits)
                    }
                    // It was closed just now: the next look opens it again.
                    Refusal::Journal(JournalError::Closed) => self.begin(py),
                    Refusal::Journal(error) => Err(self.refused(exception(py, &error))),
                    Refusal::Engine(error) => {
                        self.items.discard();
                        Err(errors::engine(py, &error))
                    }
                }
            }
        }
    }

    fn refused(&self, error: PyErr) -> PyErr {
        let events = &self.items.0;
        events.iter().for_each(|_| self.bus().count_rejected());
        self.items.discard();
        error
    }

    /// Says whom to wake when it is worth going on. False: it is now.
    fn wait(&mut self, waker: Waker) -> bool {
        match &self.waits {
            Waits::Nothing => false,
            Waits::Room(count) => {
                let journaled = self.core.journaled.as_ref();
                let journaled = journaled.expect("only such publish here");
                journaled.engine.when_room(*count, waker).is_ok()
            }
            Waits::Key(key) => {
                let joined = self.core.bus.join(key, waker);
                if joined {
                    self.core.bus.count_joined(true);
                } else {
                    self.waits = Waits::Nothing;
                }
                joined
            }
            Waits::Commit(publication) => publication.wait(waker).is_ok(),
        }
    }

    /// Goes on until it has to wait: for the future, which is done when it is worth going on. None: it is over.
    pub fn drive<'py>(&mut self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        loop {
            match self.advance(py)? {
                Step::Over => return Ok(None),
                Step::Waits => {
                    let (waker, future) = FutureWaker::new(py)?;
                    block_on(&future)?;
                    if self.wait(Waker::Future(waker)) {
                        return Ok(Some(future));
                    }
                }
            }
        }
    }

    /// The same for a thread, which waits by `blocked`; inside a loop it does not wait for the flush, and
    /// for anything else not at all.
    pub fn finish(&mut self, py: Python<'_>, blocked: Blocked<'_>) -> PyResult<()> {
        let in_loop = crate::py::ops::in_running_loop(py)?;
        if in_loop && self.beyond == Beyond::Wait {
            self.beyond = Beyond::Refuse;
        }
        while let Step::Waits = self.advance(py)? {
            if in_loop && self.is_handed_over() {
                return Ok(());
            }
            if in_loop {
                self.give_up(py);
                let text = "the event would have to wait, and this thread runs an event loop; use await publish()";
                let error = Error::QueueFull.exception(py, "", text);
                return Err(errors::no_room(py, error));
            }
            let signal = Arc::new(Signal::default());
            if self.wait(Waker::Thread(signal.clone()))
                && let Err(error) = blocked(&mut || signal.wait(py, None))
            {
                self.give_up(py);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Whether it waits for the flush, after which nothing is taken back.
    fn is_handed_over(&self) -> bool {
        matches!(self.waits, Waits::Commit(_))
    }

    /// Nobody waits any more. What was handed over stays so.
    pub fn give_up(&self, py: Python<'_>) {
        match &self.waits {
            Waits::Commit(publication) => self.leave_line(py, publication),
            Waits::Key(_) => {
                self.bus().count_cancelled();
                self.items.discard();
            }
            Waits::Nothing | Waits::Room(_) => self.items.discard(),
        }
    }

    fn leave_line(&self, py: Python<'_>, publication: &Arc<Publication<PyOps>>) {
        if !publication.lined_up {
            return;
        }
        let journaled = self.core.journaled.as_ref();
        let engine = &journaled.expect("only such publish here").engine;
        let now = self.core.now(py).unwrap_or_else(|_| monotonic_ns());
        match engine.leave_line(self.bus(), publication, now) {
            true => self.items.discard(),
            false => self.items.count_duplicates(self.bus()),
        }
    }

    /// What came of the only event.
    pub fn receipt(self) -> Receipt {
        let (mut results, stored) = self.results();
        let (event, number) = results.remove(0);
        let stored = match number {
            Some(_) => stored,
            None => BEFORE,
        };
        Receipt::durable(event, number, stored)
    }

    /// What came of all.
    pub fn batch_receipt(self) -> BatchReceipt {
        let (results, stored) = self.results();
        BatchReceipt::durable(results, stored)
    }

    /// What came of each: its event and its number, none for duplicates.
    fn results(self) -> (Vec<(Event, Option<u64>)>, Stored) {
        let (mut number, stored) = match self.waits {
            Waits::Commit(publication) => (publication.first(), Stored::Commit(publication)),
            _ => (0, BEFORE),
        };
        let results = self.items.0.into_iter().map(|item| {
            if item.duplicate {
                return (item.event, None);
            }
            number += 1;
            (item.event, Some(number - 1))
        });
        (results.collect(), stored)
    }
}

/// What is wrong with a batch of so many, which would never get in.
fn too_many(count: usize, max_backlog: Option<u64>) -> Option<String> {
    let most = Bounds::default().max_pending;
    if count > most {
        return Some(format!(
            "a batch of a bus with a path has at most {most} events; publish it in parts"
        ));
    }
    let limit = max_backlog.filter(|limit| count as u64 > *limit)?;
    Some(format!(
        "a batch has at most max_backlog={limit} events; publish it in parts, or raise max_backlog"
    ))
}
