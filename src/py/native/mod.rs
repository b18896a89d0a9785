//! What pyo3 has no safe door for: stepping coroutines without exceptions, entering
//! contexts, and in the modules below it the memory and the methods of native classes.

#![allow(unsafe_code)]

mod ambient;
mod async_method;
mod items;
mod pool;
mod shortcut;
mod slot;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;

use pyo3::exceptions::{PyRuntimeError, PySystemError};
use pyo3::prelude::*;

use crate::py::once::intern;
use pyo3::types::PyString;
use pyo3::{PyClass, PyTypeInfo, ffi};

pub use self::ambient::Ambient;
pub use self::async_method::{Arguments, AsyncMethods};
pub use self::items::item;
pub use self::pool::{Pool, Pooled, Released, install_pool, install_release, make};
pub use self::shortcut::{Method, Shortcut, install_shortcut};
pub use self::slot::{Slot, install_slot};

/// What a step of a coroutine gave.
pub enum Sent<'py> {
    /// It waits; this is what for.
    Yielded(Bound<'py, PyAny>),
    /// It is over, with this result.
    Returned(Bound<'py, PyAny>),
}

/// `coroutine.send(value)`, without an exception for the ordinary end.
#[inline]
pub fn send<'py>(coroutine: &Bound<'py, PyAny>, value: &Bound<'py, PyAny>) -> PyResult<Sent<'py>> {
    let py = coroutine.py();
    let mut result = ptr::null_mut();
    // SAFETY: attached; both arguments are valid; `PyIter_Send` stores a new reference in
    // `result` unless it fails, and then it has set an exception.
    unsafe {
        match ffi::PyIter_Send(coroutine.as_ptr(), value.as_ptr(), &mut result) {
            ffi::PySendResult::PYGEN_RETURN => {
                Ok(Sent::Returned(Bound::from_owned_ptr(py, result)))
            }
            ffi::PySendResult::PYGEN_NEXT => Ok(Sent::Yielded(Bound::from_owned_ptr(py, result))),
            ffi::PySendResult::PYGEN_ERROR => Err(PyErr::fetch(py)),
        }
    }
}

/// Acts at once where this thread is attached to the interpreter, as nearly every thread is, and else
/// attaches it for that. None: the interpreter is at its end. It may not be told to pyo3 that the thread is
/// attached, so no `Py` may be dropped.
#[inline]
pub fn attached_here<R>(act: impl FnOnce(Python<'_>) -> R) -> Option<R> {
    if is_attached() {
        // SAFETY: as was just found out, and nobody but this thread can change it.
        return Some(act(unsafe { Python::assume_attached() }));
    }
    attach_for(act)
}

#[cold]
#[inline(never)]
fn attach_for<R>(act: impl FnOnce(Python<'_>) -> R) -> Option<R> {
    Python::try_attach(act)
}

/// Not by `PyGILState_Check`, which says yes to every thread once there was a subinterpreter.
#[inline]
fn is_attached() -> bool {
    // SAFETY: any thread may ask for both at any time. Up to CPython 3.11 the first is the one thread
    // that is attached, later it is this thread where that is attached; the second is this thread.
    unsafe {
        let attached = ffi::compat::PyThreadState_GetUnchecked();
        !attached.is_null() && attached == ffi::PyGILState_GetThisThreadState()
    }
}

/// Whether `PyIter_Send` steps the object itself: a coroutine of an `async def`.
#[inline]
pub fn is_coroutine(object: &Bound<'_, PyAny>) -> bool {
    // SAFETY: the argument is a valid object.
    unsafe { ffi::PyCoro_CheckExact(object.as_ptr()) != 0 }
}

/// The hash of a string, which remembers it; None for an object that is not exactly a string.
#[inline]
pub fn hash_of_str(object: &Bound<'_, PyAny>) -> Option<isize> {
    let object = object.cast_exact::<PyString>().ok()?.as_ptr();
    // SAFETY: attached; every string begins with a `PyASCIIObject`, in which -1 is no hash yet. The
    // callee cannot fail for a string.
    unsafe {
        match (*object.cast::<ffi::PyASCIIObject>()).hash {
            -1 => Some(ffi::PyObject_Hash(object)),
            hash => Some(hash),
        }
    }
}

/// A copy of the context, or of the current one.
#[inline]
pub fn copy_context<'py>(
    py: Python<'py>,
    context: Option<&Py<PyAny>>,
) -> PyResult<Bound<'py, PyAny>> {
    // SAFETY: attached; the objects that are passed in are contexts, which `PyContext_Copy` checks.
    unsafe {
        let copy = match context {
            Some(context) => ffi::PyContext_Copy(context.as_ptr()),
            None => ffi::PyContext_CopyCurrent(),
        };
        Bound::from_owned_ptr_or_err(py, copy)
    }
}

/// Runs `body` inside the context.
#[inline]
pub fn in_context<R>(context: &Bound<'_, PyAny>, body: impl FnOnce() -> R) -> PyResult<R> {
    // SAFETY: attached; `context` is checked by the callee. Enter and exit are paired on this
    // thread: `body` cannot leave except by returning, as a panic is carried past the exit.
    unsafe {
        if ffi::PyContext_Enter(context.as_ptr()) != 0 {
            return Err(PyErr::fetch(context.py()));
        }
        let result = catch_unwind(AssertUnwindSafe(body));
        if ffi::PyContext_Exit(context.as_ptr()) != 0 {
            return Err(PyErr::fetch(context.py()));
        }
        result.map_err(|panic| std::panic::resume_unwind(panic))
    }
}

/// A native coroutine: a pyclass that is stepped by `await` without exceptions.
pub trait Coroutine: PyClass {
    /// One step. That the thread is attached is not told to pyo3, which costs as much as a tenth of a
    /// publish; and where it is not told, the release of a `Py` is put off. So a step releases what
    /// it has as `Bound`, or does it in [`attached`].
    fn step<'py>(slf: &Bound<'py, Self>, value: &Bound<'py, PyAny>) -> PyResult<Sent<'py>>;
}

/// Tells pyo3 for the length of `body` that this thread, which has the GIL, is attached, so that
/// what is released in it is released at once. While the interpreter ends it cannot be told:
/// then that is left to the end of the process.
pub fn attached<R>(_py: Python<'_>, body: impl FnOnce() -> R) -> R {
    let mut body = Some(body);
    let mut run = || body.take().map(|body| body());
    Python::try_attach(|_| run())
        .flatten()
        .or_else(run)
        .expect("it runs once, here or there")
}

/// Gives the class the slot by which the interpreter and `asyncio` step it.
pub fn install_send<T: Coroutine + PyTypeInfo>(py: Python<'_>) {
    let class = T::type_object(py);
    // SAFETY: attached. `class` is a heap type that pyo3 made, so it is a `PyHeapTypeObject`, and
    // its `tp_as_async`, if set, points into it. It is not yet in anybody's hands, so that no
    // cached lookup exists that this change would have to invalidate.
    unsafe {
        let heap = class.as_type_ptr().cast::<ffi::PyHeapTypeObject>();
        (*heap).as_async.am_send = Some(step_slot::<T>);
        (*heap).as_async.am_await = Some(itself);
        (*heap).ht_type.tp_as_async = &raw mut (*heap).as_async;
        ffi::PyType_Modified(class.as_type_ptr());
    }
}

/// `__await__` of a coroutine.
unsafe extern "C" fn itself(slf: *mut ffi::PyObject) -> *mut ffi::PyObject {
    // SAFETY: the interpreter calls this attached, with a valid object.
    unsafe { ffi::Py_NewRef(slf) }
}

unsafe extern "C" fn step_slot<T: Coroutine>(
    slf: *mut ffi::PyObject,
    value: *mut ffi::PyObject,
    result: *mut *mut ffi::PyObject,
) -> ffi::PySendResult {
    // SAFETY: the interpreter calls this attached, with an instance of `T` (the slot is on that
    // type alone, which cannot be subclassed), a valid value and a place for the result.
    unsafe {
        let py = Python::assume_attached();
        let slf = Bound::from_borrowed_ptr(py, slf).cast_into_unchecked::<T>();
        let value = Bound::from_borrowed_ptr(py, value);
        let (object, kind) = match guarded(|| T::step(&slf, &value)) {
            Ok(Sent::Returned(object)) => (object.into_ptr(), ffi::PySendResult::PYGEN_RETURN),
            Ok(Sent::Yielded(object)) => (object.into_ptr(), ffi::PySendResult::PYGEN_NEXT),
            Err(error) => {
                error.restore(py);
                (ptr::null_mut(), ffi::PySendResult::PYGEN_ERROR)
            }
        };
        *result = object;
        kind
    }
}

/// For `__next__` of a coroutine, which is what `await` calls from CPython 3.12 on: one step, whose
/// result goes with the `StopIteration`.
#[inline]
pub fn next_step<'py, T: Coroutine>(slf: &Bound<'py, T>) -> PyResult<Bound<'py, PyAny>> {
    let py = slf.py();
    yield_or_stop(py, T::step(slf, py.None().bind(py))?)
}

/// A panic becomes an exception: it must not unwind into the interpreter.
fn guarded<R>(body: impl FnOnce() -> PyResult<R>) -> PyResult<R> {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|_| Err(bug()))
}

/// What a panic becomes.
fn bug() -> PyErr {
    PySystemError::new_err("ironbus: a bug in the native code; please report it")
}

/// Has a thread raise an exception as soon as it runs Python again. False: there is no such thread.
pub fn raise_in_thread(
    ident: std::ffi::c_long,
    exception: &Bound<'_, pyo3::types::PyType>,
) -> bool {
    // SAFETY: attached; the exception is a valid class, of which the callee takes a reference.
    unsafe { ffi::PyThreadState_SetAsyncExc(ident, exception.as_ptr()) > 0 }
}

/// The awaitable's iterator: what `await` steps.
pub fn awaitable_iterator<'py>(
    awaitable: &Bound<'py, PyAny>,
) -> PyResult<Option<Bound<'py, PyAny>>> {
    if is_coroutine(awaitable) {
        return Ok(Some(awaitable.clone()));
    }
    match awaitable.getattr_opt("__await__")? {
        Some(method) => method.call0().map(Some),
        None => Ok(None),
    }
}

/// A `RuntimeWarning` in the way of a forgotten `await`, from a destructor.
pub fn warn_never_awaited(py: Python<'_>, name: &str) {
    // The exception that may be under way is not this warning's business.
    let under_way = PyErr::take(py);
    let text =
        std::ffi::CString::new(format!("coroutine '{name}' was never awaited")).unwrap_or_default();
    let class = py.get_type::<pyo3::exceptions::PyRuntimeWarning>();
    if let Err(error) = PyErr::warn(py, &class, &text, 1) {
        error.write_unraisable(py, None);
    }
    if let Some(error) = under_way {
        error.restore(py);
    }
}

/// The error of a coroutine that is used in a way that it cannot be.
pub fn reused(name: &str) -> PyErr {
    PyRuntimeError::new_err(format!("cannot reuse already awaited coroutine '{name}'"))
}

/// For `send` and `throw` as Python methods: the ordinary end is a `StopIteration`.
pub fn yield_or_stop<'py>(py: Python<'py>, sent: Sent<'py>) -> PyResult<Bound<'py, PyAny>> {
    match sent {
        Sent::Yielded(object) => Ok(object),
        Sent::Returned(result) => {
            let stop = py
                .get_type::<pyo3::exceptions::PyStopIteration>()
                .call1((result,))?;
            Err(PyErr::from_value(stop))
        }
    }
}

/// The exception that the arguments of `throw` mean, in each of their forms.
pub fn thrown<'py>(
    kind: &Bound<'py, PyAny>,
    value: Option<&Bound<'py, PyAny>>,
    traceback: Option<&Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyAny>> {
    let py = kind.py();
    let base = py.get_type::<pyo3::exceptions::PyBaseException>();
    let error = match value.filter(|value| !value.is_none()) {
        Some(value) if value.is_instance(&base)? => value.clone(),
        Some(value) => kind.call1((value,))?,
        None if kind.is_instance(&base)? => kind.clone(),
        None => kind.call0()?,
    };
    if let Some(traceback) = traceback.filter(|traceback| !traceback.is_none()) {
        error.setattr(intern!(py, "__traceback__"), traceback)?;
    }
    Ok(error)
}
