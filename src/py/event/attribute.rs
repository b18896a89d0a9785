//! The descriptors through which an event shows what it holds.
//!
//! Not getters of the class, because `@dataclass` reads a field's default from
//! `getattr(cls, name)`: there a field without a default must be missing, and the
//! others must be their default. A getter would show itself, and become the default
//! of `@dataclass class My(Event): data: Order`.

use pyo3::IntoPyObjectExt;
use pyo3::exceptions::PyAttributeError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyMappingProxy, PyString};

use super::fields::{Field, default_source};
use super::{Event, slots};
use crate::py::delivery::Delivery;
use crate::py::identity::Identity;
use crate::py::once::intern;
use crate::py::priority;

/// What the bus knows about a delivered event beyond the five fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    Sequence,
    Priority,
    Key,
    Headers,
    IdempotencyKey,
    CorrelationId,
    CausationId,
    Delivery,
}

impl Known {
    const ALL: [(Self, &'static str); 8] = [
        (Self::Sequence, "sequence"),
        (Self::Priority, "priority"),
        (Self::Key, "key"),
        (Self::Headers, "headers"),
        (Self::IdempotencyKey, "idempotency_key"),
        (Self::CorrelationId, "correlation_id"),
        (Self::CausationId, "causation_id"),
        (Self::Delivery, "delivery"),
    ];
}

#[derive(Clone, Copy)]
enum Which {
    Field(Field),
    Known(Known),
}

/// One attribute of [`Event`].
#[pyclass(frozen, module = "ironbus", name = "_EventAttribute")]
pub struct Attribute {
    #[pyo3(get, name = "__name__")]
    name: Py<PyString>,
    which: Which,
    /// What the class itself shows, as a dataclass shows its defaults.
    default: Option<Py<PyAny>>,
}

/// Puts the attributes on the class.
pub fn install(py: Python<'_>) -> PyResult<()> {
    let class = py.get_type::<Event>();
    let fields = Field::ALL.map(|field| (Which::Field(field), field.name(py).clone()));
    let known = Known::ALL.map(|(known, name)| (Which::Known(known), PyString::intern(py, name)));
    for (which, name) in fields.into_iter().chain(known) {
        let default = match which {
            Which::Field(Field::Timestamp | Field::EventId) => Some(py.None()),
            Which::Field(Field::Source) => Some(default_source(py).unbind()),
            _ => None,
        };
        class.setattr(
            &name,
            Attribute {
                name: name.clone().unbind(),
                which,
                default,
            },
        )?;
    }
    Ok(())
}

#[pymethods]
impl Attribute {
    fn __get__<'py>(
        &self,
        py: Python<'py>,
        instance: Option<&Bound<'py, PyAny>>,
        owner: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let value = match instance {
            Some(instance) => self.read(instance.cast::<Event>()?)?,
            None => None,
        };
        match (value, &self.default) {
            (Some(value), _) => Ok(value),
            (None, Some(default)) => Ok(default.bind(py).clone()),
            (None, None) => Err(self.missing(py, instance, owner)),
        }
    }

    fn __set__(&self, instance: &Bound<'_, PyAny>, value: &Bound<'_, PyAny>) -> PyResult<()> {
        let event = instance.cast::<Event>()?;
        if self.lives_in_dict(event) {
            return slots::get_dict(event)?.set_item(&self.name, value);
        }
        let field = self.settable(event.py())?;
        let old = event
            .borrow_mut()
            .fields
            .put(field, Some(value.clone().unbind()));
        drop(old);
        Ok(())
    }

    fn __delete__(&self, instance: &Bound<'_, PyAny>) -> PyResult<()> {
        let event = instance.cast::<Event>()?;
        let py = event.py();
        if self.lives_in_dict(event) {
            let dict = slots::get_dict(event)?;
            if !dict.contains(&self.name)? {
                return Err(self.missing(py, Some(instance), None));
            }
            return dict.del_item(&self.name);
        }
        let field = self.settable(py)?;
        if event.borrow().fields.get(py, field).is_none() {
            return Err(self.missing(py, Some(instance), None));
        }
        let old = event.borrow_mut().fields.put(field, None);
        drop(old);
        Ok(())
    }
}

impl Attribute {
    #[inline]
    fn read<'py>(&self, event: &Bound<'py, Event>) -> PyResult<Option<Bound<'py, PyAny>>> {
        let py = event.py();
        let me = event.borrow();
        if me.in_dict {
            drop(me);
            if let Some(own) = slots::get_dict(event)?.get_item(&self.name)? {
                return Ok(Some(own));
            }
            return match self.which {
                Which::Field(_) => Ok(None),
                Which::Known(known) => known.read(event).map(Some),
            };
        }
        match self.which {
            Which::Field(field) => Ok(me.fields.get(py, field)),
            Which::Known(known) => {
                drop(me);
                known.read(event).map(Some)
            }
        }
    }

    /// Subclasses written for the `pm.events` API may have attributes that are called
    /// like those of the bus; theirs go before ours.
    fn lives_in_dict(&self, event: &Bound<'_, Event>) -> bool {
        event.borrow().in_dict
            && (matches!(self.which, Which::Field(_)) || !event.is_exact_instance_of::<Event>())
    }

    fn settable(&self, py: Python<'_>) -> PyResult<Field> {
        match self.which {
            Which::Field(field) => Ok(field),
            Which::Known(_) => Err(PyAttributeError::new_err(format!(
                "{} of an Event is set by the bus; give it to publish()",
                self.name.bind(py)
            ))),
        }
    }

    fn missing(
        &self,
        py: Python<'_>,
        instance: Option<&Bound<'_, PyAny>>,
        owner: Option<&Bound<'_, PyAny>>,
    ) -> PyErr {
        let name = self.name.bind(py);
        let text = match (instance, owner) {
            (Some(instance), _) => instance
                .get_type()
                .qualname()
                .map(|class| format!("{class:?} object has no attribute '{name}'")),
            (None, Some(owner)) => owner
                .getattr(intern!(py, "__qualname__"))
                .map(|class| format!("type object '{class}' has no attribute '{name}'")),
            (None, None) => Ok(format!("no attribute '{name}'")),
        };
        match text {
            Ok(text) => PyAttributeError::new_err(text),
            Err(error) => error,
        }
    }
}

impl Known {
    fn read<'py>(self, event: &Bound<'py, Event>) -> PyResult<Bound<'py, PyAny>> {
        let py = event.py();
        let me = event.borrow();
        let extras = me.delivered.extras.as_deref();
        let text = |text: Option<&Option<Py<PyString>>>| text.into_bound_py_any(py);
        let id = |id: Option<&Identity>| id.map(|id| id.to_object(py));
        match self {
            Self::Sequence => me
                .delivered
                .call
                .as_ref()
                .map(|call| call.sequence)
                .into_bound_py_any(py),
            Self::Priority => {
                let level = me.delivered.priority;
                drop(me);
                priority::to_member(py, level).map(|member| member.into_bound(py))
            }
            Self::Key => text(extras.map(|extras| &extras.key)),
            Self::IdempotencyKey => text(extras.map(|extras| &extras.idempotency_key)),
            Self::Headers => match extras.and_then(|extras| extras.headers.as_ref()) {
                Some(headers) => Ok(headers.bind(py).clone()),
                None => no_headers(py),
            },
            Self::CausationId => Ok(id(extras.and_then(|extras| extras.causation.as_ref()))
                .unwrap_or_else(|| py.None().into_bound(py))),
            Self::CorrelationId => {
                match id(extras.and_then(|extras| extras.correlation.as_ref())) {
                    Some(id) => Ok(id),
                    None => {
                        drop(me);
                        event.getattr(intern!(py, "event_id"))
                    }
                }
            }
            Self::Delivery => {
                // One that was read, and not delivered, is no try.
                let call = me.delivered.call.as_ref().filter(|call| call.attempt > 0);
                let delivery = call.map(|call| Delivery {
                    attempt: call.attempt,
                    subscription: call.subscription.clone_ref(py),
                    deadline: call.deadline.is_finite().then_some(call.deadline),
                    sequence: Some(call.sequence),
                });
                // Making an object may start the garbage collector, and with it anybody's code.
                drop(me);
                delivery.into_bound_py_any(py)
            }
        }
    }
}

/// One empty mapping for all events without headers.
fn no_headers(py: Python<'_>) -> PyResult<Bound<'_, PyAny>> {
    use crate::py::once::Once;
    static EMPTY: Once<Py<PyMappingProxy>> = Once::new();
    let empty = EMPTY.get_or_init(py, || {
        PyMappingProxy::new(py, PyDict::new(py).as_mapping()).unbind()
    });
    Ok(empty.bind(py).clone().into_any())
}
