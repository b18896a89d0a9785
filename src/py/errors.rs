//! From the engine's errors and our own checks to the one exception tree of
//! `ironbus.errors`. The texts name the field and the fix and never a value.

use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyType;

macro_rules! exceptions {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// An exception class of `ironbus.errors`, by name.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Error { $($(#[$doc])* $name),* }

        impl Error {
            /// The Python class, imported once.
            pub fn class<'py>(self, py: Python<'py>) -> PyResult<&'py Bound<'py, PyType>> {
                match self {
                    $(Error::$name => {
                        static CLASS: PyOnceLock<Py<PyType>> = PyOnceLock::new();
                        CLASS.import(py, "ironbus.errors", stringify!($name))
                    })*
                }
            }
        }
    };
}

exceptions! {
    IronbusError,
    InvalidEvent, InvalidType, InvalidPriority, InvalidKey, InvalidHeaders, InvalidData,
    PayloadNotEncodable, PayloadNotFinite, PayloadCycle, PayloadTooDeep,
    InvalidSubscription, InvalidPattern, InvalidHandler, InvalidOption,
    QueueFull, WouldDeadlock, NotStarted, WrongLoop, Forked, Unsettled,
}

impl Error {
    /// The exception, for the field at `path` (empty when no field is at fault).
    pub fn new(self, py: Python<'_>, path: &str, text: impl Into<String>) -> PyErr {
        let text: String = text.into();
        match self.class(py).and_then(|class| class.call1((text, path))) {
            Ok(instance) => PyErr::from_value(instance),
            Err(error) => error,
        }
    }
}
