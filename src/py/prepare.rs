//! From what a caller passes to an event before the gate: validated as a whole, or
//! refused with the path of the field and no trace left.

use std::sync::Arc;

use super::once::Once;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict, PyFloat, PyInt, PyMapping, PyString};

use super::core::Core;
use super::current::Origin;
use super::durable;
use super::errors::Error;
use super::event::{Event as PyEvent, record_of};
use super::identity::{self, Identity};
use super::native;
use super::ops::{Event, PyOps};
use super::policy::nanos;
use super::priority::to_level;
use super::record::{Extras, Given, Record, Stamp};
use super::routes::Way;
use super::walk;
use crate::engine::bus::{Bus, Published};
use crate::engine::digest::Digest;
use crate::engine::gate::{Offer, Patience, Timing};
use crate::engine::priority::Priority;
use crate::engine::router::Route;
use crate::engine::settlement::Envelope;
use crate::engine::store::Durability;
use crate::engine::sync::share;

/// The longest time that may be set, in seconds: some thirty years.
const LONGEST: f64 = 1e9;

/// What may be given beside type and data.
#[derive(Default)]
pub struct Options {
    /// See `EventBus.publish`.
    pub priority: Option<Py<PyAny>>,
    /// See `EventBus.publish`.
    pub key: Option<Py<PyAny>>,
    /// See `EventBus.publish`.
    pub idempotency_key: Option<Py<PyAny>>,
    /// See `EventBus.publish`.
    pub headers: Option<Py<PyAny>>,
    /// See `EventBus.publish`.
    pub delay: Option<Py<PyAny>>,
    /// See `EventBus.publish`.
    pub expires_in: Option<Py<PyAny>>,
    /// See `EventBus.publish`.
    pub durability: Option<Py<PyAny>>,
}

impl Options {
    /// These, unless nothing is given.
    #[inline]
    pub fn given(&self) -> Option<&Self> {
        let all = [
            &self.priority,
            &self.key,
            &self.idempotency_key,
            &self.headers,
            &self.delay,
            &self.expires_in,
            &self.durability,
        ];
        all.into_iter().any(Option::is_some).then_some(self)
    }

    /// The place of a keyword, if there is such a one.
    pub fn slot(&mut self, name: &str) -> Option<&mut Option<Py<PyAny>>> {
        match name {
            "priority" => Some(&mut self.priority),
            "key" => Some(&mut self.key),
            "idempotency_key" => Some(&mut self.idempotency_key),
            "headers" => Some(&mut self.headers),
            "delay" => Some(&mut self.delay),
            "expires_in" => Some(&mut self.expires_in),
            "durability" => Some(&mut self.durability),
            _ => None,
        }
    }
}

/// A valid event, ready for the gate.
pub struct Prepared {
    /// The event.
    pub event: Event,
    /// The lanes of its type, as of now.
    pub way: Py<Way>,
    /// Its level.
    pub level: Priority,
    /// What it is ordered by.
    pub token: u64,
    /// Its idempotency key.
    pub key: Option<Digest>,
    /// When it may be delivered, if not always.
    pub timing: Option<Box<Timing>>,
}

impl Prepared {
    /// Brings the event before the gate.
    pub fn publish(
        &mut self,
        py: Python<'_>,
        bus: &Bus<PyOps>,
        origin: Option<u64>,
        patience: Patience,
        now: u64,
    ) -> PyResult<Published<PyOps>> {
        let mut rerouted = None;
        let published = self.offer(bus, &mut rerouted, origin, patience, now);
        if let Some(route) = rerouted {
            self.went(py, route)?;
        }
        Ok(published)
    }

    /// The same, but leaves the route in `rerouted` if the event [went](Self::went) by another.
    #[inline(always)]
    pub fn offer(
        &self,
        bus: &Bus<PyOps>,
        rerouted: &mut Option<Arc<Route<PyOps>>>,
        origin: Option<u64>,
        patience: Patience,
        now: u64,
    ) -> Published<PyOps> {
        let way = self.way.get();
        let offer = Offer {
            event_type: &way.event_type,
            level: self.level,
            token: self.token,
            event: &self.event,
            origin,
            timing: self.timing.as_deref(),
        };
        let key = self.key.as_ref();
        bus.publish(&offer, &way.route, rerouted, key, patience, now)
    }

    /// It went by another route than the one that it came with.
    #[cold]
    pub fn went(&mut self, py: Python<'_>, route: Arc<Route<PyOps>>) -> PyResult<()> {
        self.way = self.way.get().by(py, &route)?;
        Ok(())
    }

    /// The event was not accepted: nobody waits for it, and its cause does not either.
    pub fn discard(&self) {
        discard(&self.event);
    }
}

/// See [`Prepared::discard`].
pub fn discard(event: &Event) {
    crate::engine::ops::wake_all(event.routed(0).into_iter().flatten());
}

/// What comes after an event was prepared. Not a closure, because that cannot be told to be inlined;
/// and what is not is handed the event over the stack.
pub trait Then {
    /// What it gives.
    type Answer;

    /// The time of the event, in Unix time. Asked for once, as late as can be, so that the processor
    /// looks at its clock while it still works at the digest.
    fn seconds(&self) -> f64;

    /// Goes on with the event.
    fn then(self, prepared: Prepared) -> Self::Answer;
}

/// Nothing comes after it, and this is its time.
struct Nothing(f64);

impl Then for Nothing {
    type Answer = Prepared;

    #[inline(always)]
    fn seconds(&self) -> f64 {
        self.0
    }

    #[inline(always)]
    fn then(self, prepared: Prepared) -> Prepared {
        prepared
    }
}

/// Validates an event, or a type and its data.
#[inline(always)]
pub fn prepare<'py>(
    py: Python<'py>,
    core: &Core,
    event: Bound<'py, PyAny>,
    data: Option<Bound<'py, PyAny>>,
    options: Option<&Options>,
    origin: Option<&Origin>,
    wall: f64,
) -> PyResult<Prepared> {
    let prepared = prepare_and(py, core, event, data, options, origin, Nothing(wall));
    prepared.map_err(|error| *error)
}

/// The same, and what comes next: most of it in registers then. So the error is boxed, as a result
/// that has it in itself is too large for them.
#[inline(always)]
pub fn prepare_and<'py, T: Then>(
    py: Python<'py>,
    core: &Core,
    event: Bound<'py, PyAny>,
    data: Option<Bound<'py, PyAny>>,
    options: Option<&Options>,
    origin: Option<&Origin>,
    next: T,
) -> Result<T::Answer, Box<PyErr>> {
    prepare_parts(py, core, event, data, options, origin, next)
        .inspect_err(|_| core.bus.count_rejected())
}

#[inline(always)]
fn prepare_parts<'py, T: Then>(
    py: Python<'py>,
    core: &Core,
    event: Bound<'py, PyAny>,
    data: Option<Bound<'py, PyAny>>,
    options: Option<&Options>,
    origin: Option<&Origin>,
    next: T,
) -> Result<T::Answer, Box<PyErr>> {
    let plain = options.is_none() && origin.is_none() && !core.wants_contexts();
    // The common event has a way of its own, in which most is known beforehand and nothing has to
    // go over the stack.
    match event.cast_into::<PyString>() {
        Ok(type_) => {
            let data = match data {
                Some(data) if says_something(&data)? => data.unbind(),
                _ => PyDict::new(py).into_any().unbind(),
            };
            let number = identity::next_number();
            let parts = (type_.unbind(), data, number, None);
            if plain {
                let prepared = complete(py, core, parts, Details::default(), None, None, &next)?;
                Ok(next.then(prepared))
            } else {
                detailed_and(py, core, parts, None, options, origin, next)
            }
        }
        Err(other) => {
            let (parts, seconds) = parts_of(py, &other.into_inner(), next.seconds())?;
            detailed_and(py, core, parts, Some(seconds), options, origin, next)
        }
    }
}

/// Whether the data is true; to ask a dictionary for its size is the quicker way to the same.
#[inline]
fn says_something(data: &Bound<'_, PyAny>) -> PyResult<bool> {
    match data.cast_exact::<PyDict>() {
        Ok(dict) => Ok(!dict.is_empty()),
        Err(_) => data.is_truthy(),
    }
}

#[inline(never)]
fn detailed_and<T: Then>(
    py: Python<'_>,
    core: &Core,
    parts: Parts,
    seconds: Option<f64>,
    options: Option<&Options>,
    origin: Option<&Origin>,
    next: T,
) -> Result<T::Answer, Box<PyErr>> {
    let details = details(py, core, options, origin)?;
    let prepared = complete(py, core, parts, details, seconds, origin, &next)?;
    Ok(next.then(prepared))
}

#[inline(always)]
fn complete(
    py: Python<'_>,
    core: &Core,
    (type_, data, number, given): Parts,
    details: Details,
    seconds: Option<f64>,
    origin: Option<&Origin>,
    next: &impl Then,
) -> Result<Prepared, Box<PyErr>> {
    let Details {
        extras,
        level,
        token,
        mut key,
        timing,
    } = details;
    let way = way(core, type_.bind(py))?;
    way.get().route.prefetch();
    if core.settings.by_content && key.is_none() {
        key = Some(walk::content_digest(py, type_.bind(py), data.bind(py))?);
    }
    let cause = origin.map(|origin| &*origin.cause);
    let record = Record {
        type_,
        data,
        seconds: seconds.unwrap_or_else(|| next.seconds()),
        number,
        given,
        extras,
        priority: level,
    };
    let event = share(Envelope::new(record, cause));
    Ok(Prepared {
        event,
        way,
        level,
        token,
        key,
        timing,
    })
}

/// What an event has beside type and data, which most do not.
#[derive(Default)]
struct Details {
    extras: Option<Arc<Extras>>,
    level: Priority,
    token: u64,
    key: Option<Digest>,
    timing: Option<Box<Timing>>,
}

#[cold]
fn details(
    py: Python<'_>,
    core: &Core,
    options: Option<&Options>,
    origin: Option<&Origin>,
) -> PyResult<Details> {
    let mut details = Details::default();
    let mut extras = Extras::default();
    let mut any = false;
    if let Some(options) = options {
        if let Some(priority) = &options.priority {
            details.level = to_level(py, priority.bind(py))?;
        }
        if let Some(given) = &options.key {
            let text = text_of(given.bind(py), "key")?;
            details.token = text.hash()? as u64;
            extras.key = Some(text.unbind());
            any = true;
        }
        if let Some(given) = &options.idempotency_key {
            let text = text_of(given.bind(py), "idempotency_key")?;
            details.key = Some(key_digest(text.to_str()?));
            extras.idempotency_key = Some(text.unbind());
            any = true;
        }
        if let Some(headers) = &options.headers {
            extras.headers = Some(headers_of(headers.bind(py))?);
            any = true;
        }
        if options.delay.is_some() || options.expires_in.is_some() {
            details.timing = timing_of(py, core, options)?;
        }
        if let Some(given) = &options.durability {
            extras.durability = Some(durability_of(core, given.bind(py))?);
            any = true;
        }
    }
    if core.wants_contexts() {
        extras.context = Some(native::copy_context(py, None)?.unbind());
        any = true;
    }
    if let Some(origin) = origin {
        let parent = &origin.cause.payload;
        let first = parent
            .extras
            .as_ref()
            .and_then(|extras| extras.correlation.as_ref());
        extras.correlation = Some(match first {
            Some(first) => first.clone_ref(py),
            None => parent.identity(py),
        });
        extras.causation = Some(parent.identity(py));
        any = true;
    }
    details.extras = any.then(|| Arc::new(extras));
    Ok(details)
}

type Parts = (Py<PyString>, Py<PyAny>, u64, Option<Box<Given>>);

/// The parts of an event that was published as an object, and its time.
fn parts_of(py: Python<'_>, event: &Bound<'_, PyAny>, wall: f64) -> PyResult<(Parts, f64)> {
    if !event.is_instance_of::<PyEvent>() {
        let text = format!(
            "event must be a type (a string) or an ironbus.Event, not {}",
            event.get_type().name()?.to_string_lossy()
        );
        return Err(Error::InvalidType.exception(py, "event", text));
    }
    let published = record_of(event)?;
    let type_ = published.type_.into_bound(py).cast_into::<PyString>();
    let type_ = type_.map_err(|_| not_a_type(py))?.unbind();
    let (seconds, timestamp) = match published.timestamp {
        Stamp::Seconds(seconds) => (seconds, None),
        object => (wall, Some(object)),
    };
    let (number, identity) = match published.identity {
        Identity::Number(number) => (number, None),
        object => (0, Some(object)),
    };
    let given = Given {
        timestamp,
        identity,
        source: published.source,
        template: published.template,
    };
    let given = (!given.is_empty()).then(|| Box::new(given));
    Ok(((type_, published.data, number, given), seconds))
}

/// The times that the publisher has set, counted from now.
#[cold]
fn timing_of(py: Python<'_>, core: &Core, options: &Options) -> PyResult<Option<Box<Timing>>> {
    let seconds = |given: &Option<Py<PyAny>>, field: &str| -> PyResult<Option<f64>> {
        let Some(given) = given else { return Ok(None) };
        let given = given.bind(py);
        let number = given.is_instance_of::<PyFloat>() || given.is_instance_of::<PyInt>();
        let seconds = given.extract().ok();
        let within = |seconds: &f64| number && (0.0..=LONGEST).contains(seconds);
        if let Some(seconds) = seconds.filter(within)
            && !given.is_instance_of::<PyBool>()
        {
            return Ok(Some(seconds));
        }
        let text =
            format!("{field} must be a number of seconds from 0 to 1e9, for example {field}=30");
        Err(Error::InvalidTiming.exception(py, field, text))
    };
    let delay = seconds(&options.delay, "delay")?;
    let expires = seconds(&options.expires_in, "expires_in")?;
    if let (Some(delay), Some(expires)) = (delay, expires)
        && expires <= delay
    {
        let text = "expires_in must be longer than delay: both count from now, and the event would never be delivered";
        return Err(Error::InvalidTiming.exception(py, "expires_in", text));
    }
    let now = core.now(py)?;
    let at = |seconds: f64| now.saturating_add(nanos(seconds));
    let timing = Timing {
        due: delay.filter(|delay| *delay > 0.0).map(at),
        expires: expires.map(at),
    };
    let any = timing.due.is_some() || timing.expires.is_some();
    Ok(any.then(|| Box::new(timing)))
}

/// What the publisher wants to be told that it survives.
fn durability_of(core: &Core, given: &Bound<'_, PyAny>) -> PyResult<Durability> {
    let name = given.cast::<PyString>().ok();
    let level = name.and_then(|name| durable::durability(name.to_str().ok()?));
    match (level, &core.journaled) {
        (Some(level @ (Durability::Os | Durability::Fsync)), Some(_))
        | (Some(level @ Durability::Memory), None) => Ok(level),
        (_, journaled) => {
            let text = match journaled {
                Some(_) => {
                    "durability must be \"os\" (survives a kill of the process) or \"fsync\" (a loss of power, too)"
                }
                None => {
                    "durability needs a bus with a path, for example EventBus(path=\"orders.bus\")"
                }
            };
            Err(Error::InvalidOption.exception(given.py(), "durability", text))
        }
    }
}

/// The lanes of a type. A type that is remembered was checked when it came for the first time.
#[inline(always)]
fn way(core: &Core, type_: &Bound<'_, PyString>) -> PyResult<Py<Way>> {
    match core.routes.get(type_) {
        Some(way) => Ok(way),
        None => look_up(core, type_),
    }
}

#[cold]
fn look_up(core: &Core, type_: &Bound<'_, PyString>) -> PyResult<Py<Way>> {
    let py = type_.py();
    let text = type_.to_str().map_err(|_| not_a_type(py))?;
    let route = match core.bus.remembered_route(text) {
        Some(route) => route,
        None if is_printable(type_)? => core.bus.route(text),
        None => return Err(not_a_type(py)),
    };
    core.routes.put(type_, &route)
}

/// Not empty, and nothing in it that a log line could not show.
pub fn is_printable(text: &Bound<'_, PyString>) -> PyResult<bool> {
    Ok(!text.is_empty()? && text.call_method0("isprintable")?.is_truthy()?)
}

fn not_a_type(py: Python<'_>) -> PyErr {
    Error::InvalidType.exception(
        py,
        "type",
        "type must be a printable, non-empty string, for example \"order.paid\"",
    )
}

/// What an idempotency key is remembered by.
pub fn key_digest(key: &str) -> Digest {
    Digest::of_parts(&[b"key:", key.as_bytes()])
}

fn text_of<'py>(given: &Bound<'py, PyAny>, field: &str) -> PyResult<Bound<'py, PyString>> {
    let text = given
        .cast::<PyString>()
        .ok()
        .filter(|text| text.to_str().is_ok_and(|text| !text.is_empty()));
    text.cloned().ok_or_else(|| {
        let text = format!(
            "{field} must be a non-empty string; turn other values into one, for example with str()"
        );
        Error::InvalidKey.exception(given.py(), field, text)
    })
}

/// A private, read-only copy.
fn headers_of(given: &Bound<'_, PyAny>) -> PyResult<Py<PyAny>> {
    static PROXY: Once<Py<PyAny>> = Once::new();
    let py = given.py();
    let wrong = |path: &str| {
        Error::InvalidHeaders.exception(
            py,
            path,
            format!("{path}: headers must map non-empty strings to strings"),
        )
    };
    let mapping = given.cast::<PyMapping>().map_err(|_| wrong("headers"))?;
    let copy = PyDict::new(py);
    for item in mapping.items()?.iter() {
        let (name, value): (Bound<'_, PyAny>, Bound<'_, PyAny>) = item.extract()?;
        let name = name.cast::<PyString>().map_err(|_| wrong("headers"))?;
        if name.is_empty()? {
            return Err(wrong("headers"));
        }
        let path = || format!("headers[{:?}]", name.to_string_lossy());
        let value = value.cast::<PyString>().map_err(|_| wrong(&path()))?;
        copy.set_item(name, value)?;
    }
    Ok(PROXY
        .import(py, "types", "MappingProxyType")?
        .call1((copy,))?
        .unbind())
}
