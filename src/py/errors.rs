//! From the engine's errors and our own checks to the one exception tree of
//! `ironbus.errors`. The texts name the field and the fix and never a value.

use super::once::Once;
use super::once::intern;
use pyo3::prelude::*;
use pyo3::types::PyType;

use crate::engine::error::EngineError;

macro_rules! exceptions {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// An exception class of `ironbus.errors` that is raised from here, by name.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[allow(clippy::enum_variant_names)] // the names are Python's
        pub enum Error { $($(#[$doc])* $name),* }

        impl Error {
            /// The Python class, imported once.
            pub fn class<'py>(self, py: Python<'py>) -> PyResult<&'py Bound<'py, PyType>> {
                match self {
                    $(Error::$name => {
                        static CLASS: Once<Py<PyType>> = Once::new();
                        CLASS.import(py, "ironbus.errors", stringify!($name))
                    })*
                }
            }
        }
    };
}

exceptions! {
    InvalidEvent, InvalidType, InvalidPriority, InvalidKey, InvalidHeaders, InvalidTiming, InvalidOption,
    PayloadNotEncodable, PayloadNotFinite, PayloadCycle, PayloadTooDeep,
    QueueFull, WouldDeadlock, NotStarted, Forked, Unsettled, Reject, RetryLater, CircuitOpenError,
    DeadLetterQueueFull, StorageError, InvalidData,
    JournalInUse, JournalReadOnly, DurabilityUnknown, HandlerKilledProcess,
    InvalidTransaction, TransactionFailed,
}

impl Error {
    /// The exception, for the field at `path` (empty when no field is at fault).
    pub fn exception(self, py: Python<'_>, path: &str, text: impl Into<String>) -> PyErr {
        let text: String = text.into();
        match self.class(py).and_then(|class| class.call1((text, path))) {
            Ok(instance) => PyErr::from_value(instance),
            Err(error) => error,
        }
    }
}

/// The engine's refusals.
pub fn engine(py: Python<'_>, error: &EngineError) -> PyErr {
    let class = match error {
        EngineError::Full { .. } => Error::QueueFull,
        EngineError::NotStarted { .. } => Error::QueueFull,
        EngineError::Behind { .. } | EngineError::BehindAtRest { .. } => Error::QueueFull,
        EngineError::Deadlock { .. } => Error::WouldDeadlock,
    };
    let error = class.exception(py, "", error.to_string());
    if class == Error::QueueFull {
        return no_room(py, error);
    }
    error
}

/// A `QueueFull` that a bus raises to a publisher: out of a handler it does not mean that the handler failed.
pub fn no_room(py: Python<'_>, error: PyErr) -> PyErr {
    match error.value(py).setattr(intern!(py, "_by_bus"), true) {
        Ok(()) => error,
        Err(broken) => broken,
    }
}

/// The same error, for the event at this place of a batch.
pub fn at_index(py: Python<'_>, error: PyErr, index: usize) -> PyErr {
    let value = error.value(py);
    let Ok(field) = value
        .getattr("field")
        .and_then(|field| field.extract::<String>())
    else {
        return error;
    };
    let separator = if field.is_empty() { "" } else { "." };
    let class = value.get_type();
    let text = format!("events[{index}]: {value}");
    let by_bus = value.getattr_opt(intern!(py, "_by_bus"));
    let by_bus =
        by_bus.is_ok_and(|by_bus| by_bus.is_some_and(|by_bus| by_bus.is_truthy().unwrap_or(false)));
    match class.call1((text, format!("events[{index}]{separator}{field}"))) {
        Ok(instance) if by_bus => no_room(py, PyErr::from_value(instance)),
        Ok(instance) => PyErr::from_value(instance),
        Err(_) => error,
    }
}
