//! `delivery.transaction()`: what a handler wants done together with the settlement of its
//! delivery, collected while it runs, and [written](settling) as one once it has succeeded.

mod ready;
mod settling;

use std::sync::{Arc, Mutex};

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyMapping, PySequence, PyString};

use self::ready::Ready;
use super::clock::{monotonic_ns, wall_at};
use super::core::Core;
use super::current::{self, Origin};
use super::delivery::Delivery;
use super::durable::{self, Item, Items};
use super::errors::Error;
use super::prepare::{Options, prepare};
use super::values::from_python;
use crate::engine::durable::Place;
use crate::engine::journal::{Bounds, Parameters, Statement};
use crate::engine::sync::lock;

pub use self::settling::{Settling, settle};

/// Makes the class that is made anywhere.
pub fn install(py: Python<'_>) {
    py.get_type::<Ready>();
}

/// What is to be done. Dropped before it is handed over, nothing of it is.
#[derive(Default)]
struct Wanted {
    statements: Vec<Statement>,
    items: Items,
    /// The journal has the events that are not duplicates.
    handed_over: bool,
}

impl Wanted {
    fn is_empty(&self) -> bool {
        self.statements.is_empty() && self.items.0.is_empty()
    }

    fn add(&mut self, mut other: Self) {
        self.statements.append(&mut other.statements);
        self.items.0.append(&mut other.items.0);
    }
}

impl Drop for Wanted {
    fn drop(&mut self) {
        if self.handed_over {
            self.items.0.retain(|item| item.duplicate);
        }
        self.items.discard();
    }
}

/// What all transactions of one call of a handler have in common.
pub struct Work {
    core: Arc<Core>,
    place: Place,
    origin: Origin,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    wanted: Wanted,
    /// Events, those of blocks that are not over included.
    events: usize,
    /// Blocks that were entered and not left.
    open: usize,
    ended: bool,
}

/// What a handler that has succeeded has left.
pub struct Left {
    core: Arc<Core>,
    place: Place,
    wanted: Wanted,
}

/// The handler has returned in the middle of a block.
pub struct StillOpen;

impl StillOpen {
    /// What it is told.
    pub fn exception(self, py: Python<'_>) -> PyErr {
        let text = "the handler returned before it had left a transaction; \
                    use `with delivery.transaction() as tx:`, and await what uses it";
        Error::InvalidTransaction.exception(py, "", text)
    }
}

impl Work {
    /// The handler's run is over: nothing is added any more. What there is, if there is something.
    pub fn end(&self) -> Result<Option<Box<Left>>, StillOpen> {
        let (wanted, open) = {
            let mut state = lock(&self.state);
            state.ended = true;
            (std::mem::take(&mut state.wanted), state.open)
        };
        if open > 0 {
            return Err(StillOpen);
        }
        if wanted.is_empty() {
            return Ok(None);
        }
        Ok(Some(Box::new(Left {
            core: self.core.clone(),
            place: self.place.clone(),
            wanted,
        })))
    }

    fn is_ended(&self) -> bool {
        lock(&self.state).ended
    }
}

/// What is to happen together with the settlement of a delivery, or not at all.
///
/// A context manager, plain or async. Statements and events are collected in the block, and written
/// once the handler has returned: all of them and the settlement are one commit. They are forgotten
/// if the block is left by an exception, or if the handler fails after it. Several blocks of one
/// delivery add up, in the order in which they are left. If a statement fails, nothing of all that happens, and the
/// delivery has failed with :class:`ironbus.errors.TransactionFailed`. For one thread at a time.
#[pyclass(frozen, module = "ironbus")]
pub struct Transaction {
    work: Arc<Work>,
    block: Mutex<Block>,
}

enum Block {
    New,
    Open(Wanted),
    Left,
}

fn misuse(py: Python<'_>, text: &str) -> PyErr {
    Error::InvalidTransaction.exception(py, "", text)
}

impl Transaction {
    /// Of the delivery, which is to be the one that this thread is in the middle of.
    pub fn of(py: Python<'_>, delivery: &Delivery) -> PyResult<Self> {
        let own = current::with(py, |life, running| {
            let entry = &running.entry;
            let sequence = (entry.sequence, entry.attempt);
            (life, sequence, running.work.clone())
        });
        let origin = current::origin(py);
        let (Some((life, running, work)), Some(origin)) = (own, origin) else {
            return Err(misuse(
                py,
                "transaction() is for the handler itself, while it runs: call it there, and pass the \
                 transaction on to its tasks and threads",
            ));
        };
        if delivery
            .sequence
            .map(|sequence| (sequence, delivery.attempt))
            != Some(running)
        {
            return Err(misuse(
                py,
                "this is not the delivery that is under way here; use event.delivery of the handler's own event",
            ));
        }
        let core = &origin.core;
        let Some(journaled) = &core.journaled else {
            return Err(misuse(
                py,
                "a transaction needs a bus with a path, for example EventBus(path=\"orders.bus\")",
            ));
        };
        if let Some(work) = work {
            return Ok(Self::new(work));
        }
        // First the place, then the look: a life that is over by then is not this opening's.
        let place = journaled.engine.place(origin.lane);
        let Some(place) = place.filter(|_| core.life() == life) else {
            return Err(misuse(
                py,
                "the bus was stopped while this handler ran; its event is delivered again after the next start()",
            ));
        };
        let work = Arc::new(Work {
            core: core.clone(),
            place,
            origin,
            state: Mutex::default(),
        });
        let own = work.clone();
        current::with(py, move |_, running| {
            running.work.get_or_insert(own).clone()
        });
        Ok(Self::new(work))
    }

    fn new(work: Arc<Work>) -> Self {
        Self {
            work,
            block: Mutex::new(Block::New),
        }
    }

    /// That it may be added to now.
    fn check_open(&self, py: Python<'_>) -> PyResult<()> {
        if self.work.is_ended() {
            return Err(ended(py));
        }
        match &*lock(&self.block) {
            Block::Open(_) => Ok(()),
            Block::New => Err(misuse(
                py,
                "the transaction is not entered; use `with delivery.transaction() as tx:`",
            )),
            Block::Left => Err(misuse(
                py,
                "the transaction was left; call delivery.transaction() for another one",
            )),
        }
    }

    fn add(&self, py: Python<'_>, more: Wanted) -> PyResult<()> {
        {
            let mut block = lock(&self.block);
            if let Block::Open(wanted) = &mut *block {
                wanted.add(more);
                return Ok(());
            }
        }
        // Another thread has left it just now.
        drop(more);
        self.check_open(py)
    }

    fn enter(&self, py: Python<'_>) -> PyResult<()> {
        let mut state = lock(&self.work.state);
        if state.ended {
            drop(state);
            return Err(ended(py));
        }
        let mut block = lock(&self.block);
        if !matches!(*block, Block::New) {
            drop((block, state));
            let text = "a transaction is entered once; call delivery.transaction() for another one";
            return Err(misuse(py, text));
        }
        *block = Block::Open(Wanted::default());
        state.open += 1;
        Ok(())
    }

    fn exit(&self, py: Python<'_>, failed: bool) -> PyResult<()> {
        let block = std::mem::replace(&mut *lock(&self.block), Block::Left);
        let Block::Open(wanted) = block else {
            return self.check_open(py);
        };
        let late = {
            let mut state = lock(&self.work.state);
            state.open -= 1;
            match (failed, state.ended) {
                (false, false) => {
                    state.wanted.add(wanted);
                    return Ok(());
                }
                (failed, _) => !failed,
            }
        };
        if late { Err(ended(py)) } else { Ok(()) }
    }
}

fn ended(py: Python<'_>) -> PyErr {
    misuse(
        py,
        "the delivery of this transaction is over; await what uses it before the handler returns",
    )
}

#[pymethods]
impl Transaction {
    /// Have one statement of SQL run on tables of your own in the journal, when the handler has
    /// succeeded. ``parameters``: a sequence, or a mapping for named ones, of None, bool, int (64 bits), float,
    /// str and bytes. Not for tables of ironbus, PRAGMA, ATTACH, BEGIN and the like. Other deliveries and publishers
    /// wait while it runs. Raises :class:`ironbus.errors.InvalidOption` and :class:`ironbus.errors.InvalidTransaction`.
    #[pyo3(signature = (sql, parameters=None))]
    fn execute(
        &self,
        sql: &Bound<'_, PyAny>,
        parameters: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let py = sql.py();
        self.check_open(py)?;
        let statement = Statement {
            sql: text_of(sql)?,
            parameters: match parameters {
                None => Parameters::Numbered(Vec::new()),
                Some(given) => parameters_of(given)?,
            },
        };
        let mut wanted = Wanted::default();
        wanted.statements.push(statement);
        self.add(py, wanted)
    }

    /// Publish an event when the handler has succeeded. It is checked now, as by
    /// :meth:`ironbus.EventBus.publish`, and gets its number with the commit; where its idempotency key was seen
    /// by then, it is a duplicate, and the rest happens without it. Raises
    /// :class:`ironbus.errors.InvalidEvent` and :class:`ironbus.errors.InvalidTransaction`.
    #[pyo3(signature = (event, data=None, *, priority=None, key=None, idempotency_key=None, headers=None, delay=None, expires_in=None))]
    #[allow(clippy::too_many_arguments)]
    fn publish<'py>(
        &self,
        event: Bound<'py, PyAny>,
        data: Option<Bound<'py, PyAny>>,
        priority: Option<Py<PyAny>>,
        key: Option<Py<PyAny>>,
        idempotency_key: Option<Py<PyAny>>,
        headers: Option<Py<PyAny>>,
        delay: Option<Py<PyAny>>,
        expires_in: Option<Py<PyAny>>,
    ) -> PyResult<()> {
        let py = event.py();
        self.check_open(py)?;
        let core = &self.work.core;
        let options = Options {
            priority,
            key,
            idempotency_key,
            headers,
            delay,
            expires_in,
            durability: None,
        };
        let (origin, wall) = (Some(&self.work.origin), wall_at(monotonic_ns()));
        let prepared = prepare(py, core, event, data, options.given(), origin, wall)?;
        let stored = durable::moment(py, &core.clock)
            .and_then(|(now, wall)| durable::stored(py, &prepared, now, wall));
        let stored = stored.inspect_err(|_| {
            core.bus.count_rejected();
            prepared.discard();
        })?;
        let mut wanted = Wanted::default();
        wanted.items.0.push(Item::new(prepared, stored));
        let most = Bounds::default().max_pending;
        {
            let mut state = lock(&self.work.state);
            if state.events < most {
                state.events += 1;
            } else {
                drop(state);
                let text = format!("one delivery publishes at most {most} events in transactions");
                return Err(misuse(py, &text));
            }
        }
        self.add(py, wanted)
    }

    fn __enter__(slf: PyRef<'_, Self>) -> PyResult<PyRef<'_, Self>> {
        slf.enter(slf.py())?;
        Ok(slf)
    }

    #[pyo3(signature = (kind, error, traceback))]
    fn __exit__(
        &self,
        kind: &Bound<'_, PyAny>,
        error: &Bound<'_, PyAny>,
        traceback: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let _ = (error, traceback);
        self.exit(kind.py(), !kind.is_none())
    }

    fn __aenter__(slf: &Bound<'_, Self>) -> PyResult<Ready> {
        slf.get().enter(slf.py())?;
        Ok(Ready::with(slf.clone().into_any().unbind()))
    }

    #[pyo3(signature = (kind, error, traceback))]
    fn __aexit__(
        &self,
        kind: &Bound<'_, PyAny>,
        error: &Bound<'_, PyAny>,
        traceback: &Bound<'_, PyAny>,
    ) -> PyResult<Ready> {
        self.__exit__(kind, error, traceback)?;
        Ok(Ready::with(kind.py().None()))
    }
}

fn text_of(sql: &Bound<'_, PyAny>) -> PyResult<String> {
    let text = sql.cast::<PyString>().ok();
    let text = text.and_then(|text| text.to_str().ok());
    match text.filter(|text| !text.trim().is_empty() && !text.contains('\0')) {
        Some(text) => Ok(text.to_owned()),
        None => Err(Error::InvalidOption.exception(
            sql.py(),
            "sql",
            "sql must be a string with one statement of SQL",
        )),
    }
}

fn parameters_of(given: &Bound<'_, PyAny>) -> PyResult<Parameters> {
    let py = given.py();
    if let Ok(mapping) = given.cast::<PyMapping>() {
        let mut values = Vec::with_capacity(mapping.len()?);
        for item in mapping.items()?.iter() {
            let (name, value): (Bound<'_, PyAny>, Bound<'_, PyAny>) = item.extract()?;
            let name = name.cast::<PyString>().ok();
            let Some(name) = name.and_then(|name| name.to_str().ok()) else {
                let text = "the names of parameters must be strings";
                return Err(Error::InvalidOption.exception(py, "parameters", text));
            };
            let field = || format!("parameters[{name:?}]");
            values.push((name.to_owned(), from_python(&value, field)?));
        }
        return Ok(Parameters::Named(values));
    }
    let text = given.is_instance_of::<PyString>() || given.is_instance_of::<PyBytes>();
    let Some(sequence) = given.cast::<PySequence>().ok().filter(|_| !text) else {
        let text = "parameters must be a sequence, or a mapping of names; a single one is (value,)";
        return Err(Error::InvalidOption.exception(py, "parameters", text));
    };
    let values = sequence
        .try_iter()?
        .enumerate()
        .map(|(index, value)| from_python(&value?, || format!("parameters[{index}]")));
    Ok(Parameters::Numbered(values.collect::<PyResult<_>>()?))
}
