//! The deliveries of one redrive. Which come next, and when to stop, the engine decides;
//! who calls waits for the receipts and says when one has ended.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak};

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};

use super::revive;
use super::sink::LetterSink;
use crate::engine::dead_letters::{self, DeadLetter, Ended, Filter, Skipped, Step, Stored};
use crate::engine::gate::Redelivery;
use crate::engine::lane::{Lane, Letter};
use crate::engine::settlement::{Envelope, Outcome};
use crate::engine::sync::{lock, share};
use crate::py::core::Core;
use crate::py::errors::Error;
use crate::py::ops::{Event, PyLane, PyOps};
use crate::py::receipt::Receipt;
use crate::py::routes::Way;

/// See the module. One caller at a time.
#[pyclass(frozen, module = "ironbus._core")]
pub struct Redrive {
    core: Arc<Core>,
    sink: Arc<LetterSink>,
    /// The lanes of the beginning, by name.
    lanes: HashMap<String, Weak<Lane<PyOps>>>,
    /// The lane to which all go, instead of their own.
    into: Option<String>,
    plan: Mutex<dead_letters::Redrive>,
}

impl Redrive {
    /// A redrive that has delivered nothing yet. May wait for the file.
    pub fn new(
        py: Python<'_>,
        core: Arc<Core>,
        sink: Arc<LetterSink>,
        filter: Filter,
        into: Option<String>,
        limit: Option<u64>,
        holder: u64,
    ) -> PyResult<Self> {
        let lanes = core.bus.lanes();
        let lanes = lanes.iter().filter(|lane| !lane.options.passive);
        let lanes = lanes.map(|lane| (lane.options.name.to_string(), Arc::downgrade(lane)));
        let wall = sink.wall(py)?;
        let plan = sink.with(py, wall, |queue| {
            dead_letters::Redrive::new(queue, filter, limit, holder)
        })?;
        Ok(Self {
            lanes: lanes.collect(),
            into,
            core,
            sink,
            plan: Mutex::new(plan),
        })
    }

    fn lane(&self, letter: &DeadLetter) -> Option<PyLane> {
        let name = self.into.as_ref().unwrap_or(&letter.subscription);
        self.lanes.get(name)?.upgrade()
    }

    fn refuse(&self, letter: &DeadLetter) -> Option<Skipped> {
        if self.lane(letter).is_none() {
            return Some(Skipped::NoSubscription);
        }
        if letter.redrivable_in_process_only && !self.sink.originals.has(&letter.id) {
            return Some(Skipped::PayloadElsewhere);
        }
        // Its lease has ended, and its delivery has not.
        self.sink.under_way.has(&letter.id).then_some(Skipped::Held)
    }

    fn deliver(&self, py: Python<'_>, stored: &Stored) -> PyResult<Result<Receipt, Skipped>> {
        let letter = &stored.letter;
        let Some(lane) = self.lane(letter) else {
            return Ok(Err(Skipped::NoSubscription));
        };
        let Some(record) = revive::event(py, &self.sink.originals, letter)? else {
            return Ok(Err(Skipped::PayloadElsewhere));
        };
        let key = record
            .extras
            .as_ref()
            .and_then(|extras| extras.key.as_ref());
        let token = key.map_or(Ok(0), |key| key.bind(py).hash())? as u64;
        let level = record.priority;
        let event: Event = share(Envelope::new(record, None));
        let redelivery = Redelivery {
            lane: &lane,
            level,
            token,
            event: &event,
            letter: Letter {
                id: letter.id.clone(),
                holder: lock(&self.plan).holder(),
                subscription: letter.subscription.clone(),
            },
        };
        let now = self.core.now(py)?;
        self.sink.under_way.add(&letter.id, &event);
        let Some((sequence, route)) = self.core.bus.redeliver(redelivery, now) else {
            self.sink.under_way.remove(&letter.id);
            return Ok(Err(Skipped::NoSubscription));
        };
        let journaled = self.core.journaled.as_ref();
        if let Some(journal) = journaled.and_then(|journaled| journaled.engine.journal()) {
            journal.given(sequence);
        }
        let way = Way::of(event.payload.type_.bind(py), &route)?;
        Ok(Ok(Receipt::redelivered(event, way, sequence)))
    }

    /// It was claimed and is not delivered: it is everybody's again.
    fn put_back(&self, py: Python<'_>, id: &str, why: Skipped) -> PyResult<()> {
        let holder = {
            let mut plan = lock(&self.plan);
            plan.not_delivered(id, why);
            plan.holder()
        };
        self.sink
            .with_queue(py, |queue| queue.release(id, holder))
            .map(drop)
    }
}

#[pymethods]
impl Redrive {
    /// Delivers the next. Its id and its receipt; None: first one that is under way must end, or if
    /// there is none, that was all. May wait for the file.
    fn step(&self, py: Python<'_>) -> PyResult<Option<(String, Receipt)>> {
        loop {
            if !self.core.is_running() {
                let text = "a redrive needs handlers that run; start() the bus first";
                return Err(Error::NotStarted.exception(py, "", text));
            }
            let wall = self.sink.wall(py)?;
            let step = self.sink.with_queue(py, |queue| {
                lock(&self.plan).step(queue, |letter| self.refuse(letter), wall)
            })?;
            let Step::Deliver(stored) = step else {
                return Ok(None);
            };
            let id = &stored.letter.id;
            match self.deliver(py, &stored) {
                Ok(Ok(receipt)) => return Ok(Some((id.clone(), receipt))),
                Ok(Err(why)) => self.put_back(py, id, why)?,
                Err(error) => {
                    self.put_back(py, id, Skipped::NotHandled)?;
                    return Err(error);
                }
            }
        }
    }

    /// The delivery with this receipt is settled. May wait for the file.
    fn ended(&self, py: Python<'_>, id: &str, receipt: &Receipt) -> PyResult<()> {
        let outcomes = receipt.event().outcomes();
        let ended = match outcomes.first() {
            None => Ended::Succeeded,
            Some((_, Outcome::Dead(_))) => {
                match self.sink.with_queue(py, |queue| queue.get(id))? {
                    Some(stored) => Ended::Failed(stored.letter.fingerprint),
                    // Somebody let go of it meanwhile.
                    None => Ended::NotHandled,
                }
            }
            Some(_) => {
                let holder = lock(&self.plan).holder();
                self.sink
                    .with_queue(py, |queue| queue.release(id, holder))?;
                Ended::NotHandled
            }
        };
        lock(&self.plan).ended(id, ended);
        Ok(())
    }

    /// Nobody else takes what is under way for another while. May wait for the file.
    fn renew(&self, py: Python<'_>) -> PyResult<()> {
        let wall = self.sink.wall(py)?;
        self.sink
            .with_queue(py, |queue| lock(&self.plan).renew(queue, wall))
            .map(drop)
    }

    /// What was done so far: delivered, succeeded, failed, skipped by reason, causes that came back.
    #[allow(clippy::type_complexity)]
    fn report<'py>(
        &self,
        py: Python<'py>,
    ) -> PyResult<(u64, u64, u64, Bound<'py, PyDict>, Vec<String>)> {
        let report = lock(&self.plan).report().clone();
        let skipped = PyDict::new(py);
        let mut reasons: Vec<_> = report.skipped.into_iter().collect();
        reasons.sort_unstable();
        for (why, count) in reasons {
            skipped.set_item(PyString::new(py, reason(why)), count)?;
        }
        let stopped = report.stopped.iter().map(ToString::to_string).collect();
        Ok((
            report.delivered,
            report.succeeded,
            report.failed,
            skipped,
            stopped,
        ))
    }
}

fn reason(skipped: Skipped) -> &'static str {
    match skipped {
        Skipped::SameCause => "same_cause",
        Skipped::Held => "held",
        Skipped::NoSubscription => "no_subscription",
        Skipped::PayloadElsewhere => "payload_elsewhere",
        Skipped::NotHandled => "not_handled",
    }
}

/// Letters whose delivery is not settled, whoever delivered them.
#[derive(Default)]
pub struct UnderWay(Mutex<HashMap<String, Event>>);

impl UnderWay {
    fn add(&self, id: &str, event: &Event) {
        let mut gone = Vec::new();
        let mut all = lock(&self.0);
        // Those that a lane let go of, which tells nobody.
        all.retain(|_, event| {
            let open = !event.settled();
            if !open {
                gone.push(event.clone());
            }
            open
        });
        all.insert(id.to_owned(), event.clone());
        drop(all);
        // Payloads are outside code.
        drop(gone);
    }

    /// What became of it is written.
    pub fn remove(&self, id: &str) {
        let removed = lock(&self.0).remove(id);
        drop(removed);
    }

    fn has(&self, id: &str) -> bool {
        lock(&self.0).get(id).is_some_and(|event| !event.settled())
    }

    /// Forgets all.
    pub fn clear(&self) {
        let all = std::mem::take(&mut *lock(&self.0));
        drop(all);
    }
}
