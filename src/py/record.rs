//! What a publish remembers of an event until its last delivery is settled.

use std::mem::ManuallyDrop;
use std::ptr;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use pyo3::PyTraverseError;
use pyo3::gc::PyVisit;
use pyo3::prelude::*;
use pyo3::types::{PyFloat, PyString};

use super::identity::Identity;
use super::native;
use super::ops::{Event, PyOps};
use crate::engine::priority::Priority;
use crate::engine::settlement::{Envelope, Rest};
use crate::engine::store::Durability;

/// When the event was made.
pub enum Stamp {
    /// Unix time.
    Seconds(f64),
    /// Set by the caller; the `pm.events` API allows any object.
    Object(Py<PyAny>),
}

impl Stamp {
    /// The wall clock, rounded as `time.time()` rounds it.
    pub fn now() -> Self {
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Self::Seconds(since.as_nanos() as f64 / 1e9)
    }

    /// The same time again.
    #[inline]
    pub fn clone_ref(&self, py: Python<'_>) -> Self {
        match self {
            &Self::Seconds(seconds) => Self::Seconds(seconds),
            Self::Object(object) => Self::Object(object.clone_ref(py)),
        }
    }

    /// What Python sees: a float, or the caller's object.
    pub fn to_object<'py>(&self, py: Python<'py>) -> Bound<'py, PyAny> {
        match self {
            &Self::Seconds(seconds) => PyFloat::new(py, seconds).into_any(),
            Self::Object(object) => object.bind(py).clone(),
        }
    }
}

/// One published event, shared by all its deliveries. Immutable.
///
/// The garbage collector does not see a record: it is reached from queues, which
/// are roots. A delivered [`Event`](super::event::Event) therefore takes references
/// of its own to every object here that could be part of a cycle.
pub struct Record {
    /// Exactly `str`, or a subclass of it.
    pub type_: Py<PyString>,
    /// The payload, by reference.
    pub data: Py<PyAny>,
    /// When the event was made, in Unix time, unless the caller set another object.
    pub seconds: f64,
    /// The number behind the event's id, unless the caller set another.
    pub number: u64,
    /// What the caller set that few callers set; apart, so that the common record stays small.
    pub given: Option<Box<Given>>,
    /// The same for what the bus is told beside the event.
    pub extras: Option<Arc<Extras>>,
    /// The level it is queued on.
    pub priority: Priority,
}

/// What an event has that was published as an object of the caller's.
#[derive(Default)]
pub struct Given {
    /// Another time than now.
    pub timestamp: Option<Stamp>,
    /// Another id than the next.
    pub identity: Option<Identity>,
    /// Another source than `"pm_system"`.
    pub source: Option<Py<PyAny>>,
    /// A private copy of what was published, where it is more than a plain `Event`:
    /// an instance of a subclass, or one with attributes of the caller's.
    pub template: Option<Py<PyAny>>,
}

/// Shared with the delivered events, unseen by the garbage collector: so there is
/// nothing in it but strings, and ids that are almost always numbers.
#[derive(Default)]
pub struct Extras {
    /// What the event is ordered by.
    pub key: Option<Py<PyString>>,
    /// A read-only mapping of strings to strings.
    pub headers: Option<Py<PyAny>>,
    /// What a second publish of the same event is recognised by.
    pub idempotency_key: Option<Py<PyString>>,
    /// The first event of the chain; `None` where this is the first.
    pub correlation: Option<Identity>,
    /// The event whose handler published this one.
    pub causation: Option<Identity>,
    /// What the publisher ran in, where handlers run in that.
    pub context: Option<Py<PyAny>>,
    /// How durable its publisher wants it, if not as the bus.
    pub durability: Option<Durability>,
}

impl Given {
    /// The same again.
    fn clone_ref(&self, py: Python<'_>) -> Self {
        let object =
            |object: &Option<Py<PyAny>>| object.as_ref().map(|object| object.clone_ref(py));
        Self {
            timestamp: self.timestamp.as_ref().map(|stamp| stamp.clone_ref(py)),
            identity: self.identity.as_ref().map(|id| id.clone_ref(py)),
            source: object(&self.source),
            template: object(&self.template),
        }
    }

    /// Whether the caller set nothing.
    pub fn is_empty(&self) -> bool {
        self.timestamp.is_none()
            && self.identity.is_none()
            && self.source.is_none()
            && self.template.is_none()
    }
}

impl Record {
    /// When the event was made.
    #[inline]
    pub fn timestamp(&self, py: Python<'_>) -> Stamp {
        let given = self
            .given
            .as_ref()
            .and_then(|given| given.timestamp.as_ref());
        given.map_or(Stamp::Seconds(self.seconds), |stamp| stamp.clone_ref(py))
    }

    /// The same event, with references of its own.
    pub fn clone_ref(&self, py: Python<'_>) -> Self {
        let given = self.given.as_ref();
        Self {
            type_: self.type_.clone_ref(py),
            data: self.data.clone_ref(py),
            seconds: self.seconds,
            number: self.number,
            given: given.map(|given| Box::new(given.clone_ref(py))),
            extras: self.extras.clone(),
            priority: self.priority,
        }
    }

    /// For the garbage collector, where a record has one owner that it sees.
    pub fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.data)?;
        let Some(given) = &self.given else {
            return Ok(());
        };
        visit.call(&given.source)?;
        visit.call(&given.template)?;
        if let Some(Stamp::Object(object)) = &given.timestamp {
            visit.call(object)?;
        }
        match &given.identity {
            Some(Identity::Object(object)) => visit.call(object),
            _ => Ok(()),
        }
    }

    /// The event's id.
    #[inline]
    pub fn identity(&self, py: Python<'_>) -> Identity {
        let given = self
            .given
            .as_ref()
            .and_then(|given| given.identity.as_ref());
        given.map_or(Identity::Number(self.number), |id| id.clone_ref(py))
    }

    /// The publisher's object, where handlers get copies of it.
    #[inline]
    pub fn template(&self) -> Option<&Py<PyAny>> {
        self.given
            .as_ref()
            .and_then(|given| given.template.as_ref())
    }

    /// Where it comes from, if that is not the default.
    #[inline]
    pub fn source(&self) -> Option<&Py<PyAny>> {
        self.given.as_ref().and_then(|given| given.source.as_ref())
    }

    /// The publisher's context, if handlers run in it.
    #[inline]
    pub fn context(&self) -> Option<&Py<PyAny>> {
        self.extras
            .as_ref()
            .and_then(|extras| extras.context.as_ref())
    }
}

/// Lets go of an event: what is last released then would by itself ask, object by object, whether
/// the thread is attached. It need not be told to pyo3 that it is.
#[inline]
#[allow(unsafe_code)]
pub fn let_go(py: Python<'_>, event: Event) {
    let dismantle = |record: &mut ManuallyDrop<Record>, rest: Rest<PyOps>| {
        // All that there is.
        let Record {
            type_,
            data,
            seconds: _,
            number: _,
            given,
            extras,
            priority: _,
        } = &mut **record;
        // SAFETY: each is taken once, and not looked at any more.
        unsafe {
            let (type_, data) = (ptr::read(type_), ptr::read(data));
            let (given, extras) = (ptr::read(given), ptr::read(extras));
            if !rest.is_empty() || given.is_some() || extras.is_some() {
                native::attached(py, || drop((rest, given, extras)));
            }
            type_.drop_ref(py);
            data.drop_ref(py);
        }
    };
    // SAFETY: as just said; numbers need no drop.
    unsafe { Envelope::let_go(event, dismantle) };
}

const _: () = assert!(size_of::<Record>() <= 56);
