//! `Event`: what callers publish and what handlers receive.
//!
//! For Python it is a dataclass of five mutable fields. A plain `Event` holds them
//! natively, so that a delivery costs one allocation; where Python code may see or
//! change the instance's `__dict__` (it asked for it, or the class is a subclass),
//! they live there, exactly as on a dataclass.
//!
//! An event holds its own references to all that could refer back to it; through a
//! shared `Arc` the garbage collector could not see such a cycle.

mod attribute;
mod delivered;

mod fields;
mod pool;
mod publish;
mod slots;
#[cfg(test)]
mod tests;

use pyo3::gc::PyVisit;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyGenericAlias, PyList, PyString, PyTuple, PyType};
use pyo3::{IntoPyObjectExt, PyTraverseError};

use self::delivered::Delivered;
use self::fields::{Field, Fields, default_source};
use super::identity::Identity;
use super::record::Stamp;
use crate::py::once::intern;

#[allow(unused_imports)] // used by publish
pub use self::publish::{Published, record_of};

/// One thing that happened: a type, its data, and when and where.
///
/// The five fields may be set at any time, from any thread; ``timestamp`` is Unix
/// time in seconds and defaults to now, ``event_id`` to a new UUID string. What the
/// bus adds for a handler (``sequence``, ``priority``, ``key``, ``headers``,
/// ``idempotency_key``, ``correlation_id``, ``causation_id``, ``delivery``) is
/// read-only. Copies and pickles carry the fields and the caller's own attributes,
/// not what the bus added.
#[pyclass(subclass, dict, weakref, module = "ironbus")]
#[derive(Default)]
pub struct Event {
    fields: Fields,
    delivered: Delivered,
    /// The fields live in `__dict__`, and `fields` is empty.
    in_dict: bool,
}

/// An argument that was given, be it `None`, or left out.
struct Given<'py>(Option<Bound<'py, PyAny>>);

impl<'a, 'py> FromPyObject<'a, 'py> for Given<'py> {
    type Error = PyErr;

    fn extract(object: Borrowed<'a, 'py, PyAny>) -> PyResult<Self> {
        Ok(Self(Some(object.to_owned())))
    }
}

#[pymethods]
impl Event {
    /// Takes anything: subclasses have constructors of their own, and copies are initialised later.
    #[new]
    #[classmethod]
    #[pyo3(
        signature = (*_args, **_kwargs),
        text_signature = "(type, data, timestamp=None, event_id=None, source='pm_system')"
    )]
    fn new(
        cls: &Bound<'_, PyType>,
        _args: &Bound<'_, PyTuple>,
        _kwargs: Option<&Bound<'_, PyDict>>,
    ) -> Self {
        Self {
            fields: Fields::default(),
            delivered: Delivered::default(),
            in_dict: !cls.is(cls.py().get_type::<Self>()),
        }
    }

    #[pyo3(signature = (r#type, data, timestamp=None, event_id=None, source=Given(None)))]
    fn __init__<'py>(
        slf: &Bound<'py, Self>,
        r#type: Bound<'py, PyAny>,
        data: Bound<'py, PyAny>,
        timestamp: Option<Bound<'py, PyAny>>,
        event_id: Option<Bound<'py, PyAny>>,
        source: Given<'py>,
    ) -> PyResult<()> {
        let py = slf.py();
        let source = source.0.unwrap_or_else(|| default_source(py));
        if slf.borrow().in_dict {
            // As a dataclass does it: one assignment each, then the hook, all of which a subclass may override.
            slf.setattr(intern!(py, "type"), r#type)?;
            slf.setattr(intern!(py, "data"), data)?;
            slf.setattr(intern!(py, "timestamp"), timestamp)?;
            slf.setattr(intern!(py, "event_id"), event_id)?;
            slf.setattr(intern!(py, "source"), source)?;
            slf.call_method0(intern!(py, "__post_init__"))?;
            return Ok(());
        }
        let fields = Fields {
            type_: Some(r#type.unbind()),
            data: Some(data.unbind()),
            timestamp: Some(
                timestamp.map_or_else(Stamp::now, |object| Stamp::Object(object.unbind())),
            ),
            identity: Some(
                event_id.map_or_else(Identity::next, |object| Identity::Object(object.unbind())),
            ),
            source: Some(source.unbind()),
        };
        // Dropped after the borrow: a destructor may look at the event.
        let old = std::mem::replace(&mut slf.borrow_mut().fields, fields);
        drop(old);
        Ok(())
    }

    /// Gives a time and an id to what has none. The ``__init__`` that ``@dataclass``
    /// writes for a subclass calls this instead of ``Event.__init__``.
    fn __post_init__(slf: &Bound<'_, Self>) -> PyResult<()> {
        let py = slf.py();
        if slf.getattr(intern!(py, "timestamp"))?.is_none() {
            slf.setattr(intern!(py, "timestamp"), Stamp::now().to_object(py))?;
        }
        if slf.getattr(intern!(py, "event_id"))?.is_none() {
            slf.setattr(intern!(py, "event_id"), Identity::next().to_object(py))?;
        }
        Ok(())
    }

    /// The five fields, and nothing else, by reference.
    fn to_dict<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyDict>> {
        let py = slf.py();
        let dict = PyDict::new(py);
        for field in Field::ALL {
            let name = field.name(py);
            dict.set_item(name, slf.getattr(name)?)?;
        }
        Ok(dict)
    }

    /// :meth:`to_dict` as JSON; what has no JSON form goes through ``str``.
    fn to_json<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        let py = slf.py();
        let options = PyDict::new(py);
        options.set_item(intern!(py, "default"), py.get_type::<PyString>())?;
        let dict = slf.call_method0(intern!(py, "to_dict"))?;
        py.import(intern!(py, "json"))?
            .call_method(intern!(py, "dumps"), (dict,), Some(&options))
    }

    /// ``Event[Order]``: an event whose data is an ``Order``.
    #[classmethod]
    fn __class_getitem__<'py>(
        cls: &Bound<'py, PyType>,
        item: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyGenericAlias>> {
        PyGenericAlias::new(cls.py(), cls.as_any(), item)
    }

    /// Shadows the getter that `#[pyclass(dict)]` makes: whoever looks here expects the fields.
    #[getter(__dict__)]
    fn get_dict<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyDict>> {
        let dict = slots::get_dict(slf)?;
        if !slf.borrow().in_dict {
            slf.borrow().write_fields(&dict)?;
            Self::leave_native(slf);
        }
        Ok(dict)
    }

    #[setter(__dict__)]
    fn set_dict(slf: &Bound<'_, Self>, dict: &Bound<'_, PyDict>) -> PyResult<()> {
        slots::set_dict(slf, dict)?;
        Self::leave_native(slf);
        Ok(())
    }

    /// What `object.__getstate__` gives for a dataclass; that one refuses native classes.
    fn __getstate__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        let py = slf.py();
        let own = slots::get_dict(slf)?;
        if slf.is_exact_instance_of::<Self>() {
            let state = own.copy()?;
            slf.borrow().write_fields(&state)?;
            return Ok(state.into_any());
        }
        let state = if own.is_empty() {
            py.None().into_bound(py)
        } else {
            own.into_any()
        };
        let slots = PyDict::new(py);
        for name in py
            .import("copyreg")?
            .call_method1("_slotnames", (slf.get_type(),))?
            .cast_into::<PyList>()?
        {
            let name = name.cast_into::<PyString>()?;
            if let Some(value) = slf.getattr_opt(&name)? {
                slots.set_item(name, value)?;
            }
        }
        if slots.is_empty() {
            Ok(state)
        } else {
            (state, slots).into_bound_py_any(py)
        }
    }

    /// The protocols 0 and 1 know no classes with a native `__new__`; the way of protocol 2 works in all.
    fn __reduce_ex__<'py>(slf: &Bound<'py, Self>, protocol: i32) -> PyResult<Bound<'py, PyAny>> {
        let py = slf.py();
        py.get_type::<PyAny>()
            .call_method1(intern!(py, "__reduce_ex__"), (slf, protocol.max(2)))
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        self.fields.visit(&visit)?;
        self.delivered.visit(&visit)
    }

    fn __clear__(&mut self) {
        self.fields = Fields::default();
        self.delivered = Delivered::default();
    }
}

impl Event {
    /// Nothing, where the fields are in the instance's `__dict__` already.
    fn write_fields(&self, dict: &Bound<'_, PyDict>) -> PyResult<()> {
        let py = dict.py();
        for field in Field::ALL {
            if let Some(value) = self.fields.get(py, field) {
                dict.set_item(field.name(py), value)?;
            }
        }
        Ok(())
    }

    /// From now on the fields live in the instance's `__dict__`.
    fn leave_native(slf: &Bound<'_, Self>) {
        let old = {
            let mut me = slf.borrow_mut();
            me.in_dict = true;
            std::mem::take(&mut me.fields)
        };
        // After the borrow: a destructor may look at the event.
        drop(old);
    }
}

/// Completes the class: its attributes, and what makes it a dataclass.
pub fn install(m: &Bound<'_, PyModule>) -> PyResult<()> {
    let py = m.py();
    attribute::install(py)?;
    slots::install(py)?;
    let class = py.get_type::<Event>();
    let template = py.import("ironbus._event_fields")?;
    let parts = template.getattr("Event")?;
    for name in template.getattr("TAKEN")?.try_iter()? {
        let name = name?.cast_into::<PyString>()?;
        class.setattr(&name, parts.getattr(&name)?)?;
    }
    Ok(())
}
