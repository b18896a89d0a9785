//! What pyo3 has no safe door for: stepping coroutines without exceptions, entering
//! contexts, and callables that are `async def` to everybody who asks and a C function
//! to the interpreter. The only module of the binding with unsafe code.

#![allow(unsafe_code)]

use std::ffi::c_int;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;

use pyo3::exceptions::{PyRuntimeError, PySystemError, PyTypeError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyTuple;
use pyo3::{PyClass, PyTypeInfo, ffi};

use super::cell::GilCell;

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

/// Whether `PyIter_Send` steps the object itself: a coroutine of an `async def`.
#[inline]
pub fn is_coroutine(object: &Bound<'_, PyAny>) -> bool {
    // SAFETY: the argument is a valid object.
    unsafe { ffi::PyCoro_CheckExact(object.as_ptr()) != 0 }
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
    /// One step.
    fn step<'py>(slf: &Bound<'py, Self>, value: &Bound<'py, PyAny>) -> PyResult<Sent<'py>>;
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

/// A class whose instances live for the length of a call, so that their memory is worth keeping.
/// The garbage collector does not see them: nothing that they hold may refer back to them.
pub trait Pooled: PyClass {
    /// The memory of instances that are gone.
    fn pool() -> &'static Pool;
}

/// Blocks of memory of one class.
pub type Pool = GilCell<Vec<Block>>;

/// A block of memory of an object that is gone.
pub struct Block(*mut ffi::PyObject);

// SAFETY: nobody else knows the address.
unsafe impl Send for Block {}

/// As many as a loop turn's worth of publishes may leave behind.
const POOLED: usize = 256;

/// Gives the class the slots by which its memory is kept for the next instance.
pub fn install_pool<T: Pooled + PyTypeInfo>(py: Python<'_>) {
    let class = T::type_object(py).as_type_ptr();
    // SAFETY: attached. As in `install_send`; pyo3 allocates through `tp_alloc` and frees
    // through `tp_free`, and the class cannot be subclassed.
    unsafe {
        // Blocks are freed with their collector's header: without one, that would corrupt the heap.
        assert_ne!((*class).tp_flags & ffi::Py_TPFLAGS_HAVE_GC, 0);
        debug_assert_eq!((*class).tp_flags & ffi::Py_TPFLAGS_BASETYPE, 0);
        (*class).tp_alloc = Some(pooled_alloc::<T>);
        (*class).tp_free = Some(pooled_free::<T>);
        ffi::PyType_Modified(class);
    }
}

unsafe extern "C" fn pooled_alloc<T: Pooled>(
    class: *mut ffi::PyTypeObject,
    items: ffi::Py_ssize_t,
) -> *mut ffi::PyObject {
    // SAFETY: called attached, for the one class whose blocks the pool holds: each has its size,
    // and `PyObject_Init` makes it an object again, as `PyType_GenericAlloc` would. It stays
    // untracked: the classes show the collector nothing anyway.
    unsafe {
        let py = Python::assume_attached();
        if let Some(block) = T::pool().update(py, |pool| pool.pop().map(|block| block.0)) {
            return ffi::PyObject_Init(block, class);
        }
        let object = ffi::PyType_GenericAlloc(class, items);
        if !object.is_null() {
            ffi::PyObject_GC_UnTrack(object.cast());
        }
        object
    }
}

unsafe extern "C" fn pooled_free<T: Pooled>(block: *mut std::ffi::c_void) {
    // SAFETY: called attached, with the memory of an object that has been finalised and that pyo3
    // has untracked; it came from `PyType_GenericAlloc` of a class with garbage collection, which
    // all of pyo3's are, so there is a collector's header in front of it that is freed with it.
    unsafe {
        let py = Python::assume_attached();
        let kept = T::pool().update(py, |pool| {
            let keep = pool.len() < POOLED;
            if keep {
                pool.push(Block(block.cast()));
            }
            keep
        });
        if !kept {
            ffi::PyObject_GC_Del(block);
        }
    }
}

unsafe extern "C" fn step_slot<T: Coroutine>(
    slf: *mut ffi::PyObject,
    value: *mut ffi::PyObject,
    result: *mut *mut ffi::PyObject,
) -> ffi::PySendResult {
    // SAFETY: the interpreter calls this attached, with an instance of `T` (the slot is on that
    // type alone, which cannot be subclassed), a valid value and a place for the result.
    // Attaching, though the thread is attached, tells pyo3 so: it would put off every release of
    // a reference otherwise.
    unsafe {
        Python::attach_unchecked(|py| {
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
        })
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
    catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|_| {
        Err(PySystemError::new_err(
            "ironbus: a bug in the native code; please report it",
        ))
    })
}

/// The arguments of a vectorcall.
pub struct Arguments<'a, 'py> {
    py: Python<'py>,
    positional: &'a [*mut ffi::PyObject],
    keyword: &'a [*mut ffi::PyObject],
    names: Option<Bound<'py, PyTuple>>,
}

impl<'a, 'py> Arguments<'a, 'py> {
    /// The interpreter.
    pub fn py(&self) -> Python<'py> {
        self.py
    }

    /// How many are given by position.
    #[inline]
    pub fn len(&self) -> usize {
        self.positional.len()
    }

    /// One that is given by position.
    #[inline]
    pub fn get(&self, at: usize) -> Option<Bound<'py, PyAny>> {
        // SAFETY: the interpreter keeps the arguments alive during the call.
        self.positional
            .get(at)
            .map(|object| unsafe { Bound::from_borrowed_ptr(self.py, *object) })
    }

    /// Those that are given by name.
    pub fn keywords(&self) -> impl Iterator<Item = (Bound<'py, PyAny>, Bound<'py, PyAny>)> + '_ {
        let names = self.names.iter().flatten();
        // SAFETY: as in `get`.
        names
            .zip(self.keyword)
            .map(|(name, object)| (name, unsafe { Bound::from_borrowed_ptr(self.py, *object) }))
    }
}

/// A method written in Rust that is called with its arguments as they are.
pub type NativeMethod =
    for<'a, 'py> fn(&Bound<'py, PyAny>, &Arguments<'a, 'py>) -> PyResult<Bound<'py, PyAny>>;

/// An object that calls a [`NativeMethod`], and in everything else looks like the `async def`
/// that it was made from: `inspect`, mocks and documentation see name, signature and flags.
#[repr(C)]
struct AsyncMethod {
    base: ffi::PyObject,
    vectorcall: Option<ffi::vectorcallfunc>,
    template: *mut ffi::PyObject,
    method: NativeMethod,
}

unsafe extern "C" fn call_method(
    callable: *mut ffi::PyObject,
    args: *const *mut ffi::PyObject,
    nargsf: usize,
    names: *mut ffi::PyObject,
) -> *mut ffi::PyObject {
    // SAFETY: vectorcall's contract: attached; `callable` is an `AsyncMethod`, `args` holds the
    // positional arguments followed by one for each of `names`, which is a tuple or null.
    // Not told to pyo3, unlike in `step_slot`: a call keeps its arguments and releases nothing.
    unsafe {
        (|py: Python<'_>| {
            let count = ffi::PyVectorcall_NARGS(nargsf) as usize;
            let names = Bound::from_borrowed_ptr_or_opt(py, names)
                .map(|names| names.cast_into_unchecked::<PyTuple>());
            let named = names.as_ref().map_or(0, |names| names.len());
            let all: &[*mut ffi::PyObject] = if count + named == 0 {
                &[]
            } else {
                std::slice::from_raw_parts(args, count + named)
            };
            let (positional, keyword) = all.split_at(count);
            let Some((slf, positional)) = positional.split_first() else {
                PyTypeError::new_err("the method needs an EventBus").restore(py);
                return ptr::null_mut();
            };
            let slf = Bound::from_borrowed_ptr(py, *slf);
            let arguments = Arguments {
                py,
                positional,
                keyword,
                names,
            };
            let method = (*callable.cast::<AsyncMethod>()).method;
            match guarded(|| method(&slf, &arguments)) {
                Ok(result) => result.into_ptr(),
                Err(error) => {
                    error.restore(py);
                    ptr::null_mut()
                }
            }
        })(Python::assume_attached())
    }
}

// SAFETY: as declared in CPython's `classobject.h`, in all versions.
unsafe extern "C" {
    fn PyMethod_New(function: *mut ffi::PyObject, slf: *mut ffi::PyObject) -> *mut ffi::PyObject;
}

unsafe extern "C" fn bind(
    method: *mut ffi::PyObject,
    instance: *mut ffi::PyObject,
    _class: *mut ffi::PyObject,
) -> *mut ffi::PyObject {
    // SAFETY: `__get__`'s contract: attached; `instance` is an object, or null or None for the class.
    unsafe {
        if instance.is_null() || instance == ffi::Py_None() {
            return ffi::Py_NewRef(method);
        }
        PyMethod_New(method, instance)
    }
}

unsafe extern "C" fn get_attribute(
    slf: *mut ffi::PyObject,
    name: *mut ffi::PyObject,
) -> *mut ffi::PyObject {
    // SAFETY: attached; both are valid; `template` is a function owned by `slf`.
    unsafe {
        // What the function has goes first: `__doc__` and `__class__` aside, the type has nothing
        // of its own that anybody looks for.
        let found = ffi::PyObject_GetAttr((*slf.cast::<AsyncMethod>()).template, name);
        if !found.is_null() {
            return found;
        }
        ffi::PyErr_Clear();
        ffi::PyObject_GenericGetAttr(slf, name)
    }
}

unsafe extern "C" fn traverse(
    slf: *mut ffi::PyObject,
    visit: ffi::visitproc,
    arg: *mut std::ffi::c_void,
) -> c_int {
    // SAFETY: traverse's contract; the type and the template are the references that `slf` owns.
    unsafe {
        let result = visit(ffi::Py_TYPE(slf).cast(), arg);
        if result != 0 {
            return result;
        }
        let template = (*slf.cast::<AsyncMethod>()).template;
        if template.is_null() {
            0
        } else {
            visit(template, arg)
        }
    }
}

unsafe extern "C" fn clear(slf: *mut ffi::PyObject) -> c_int {
    // SAFETY: as in `traverse`; the reference is given up once.
    unsafe {
        let method = slf.cast::<AsyncMethod>();
        let template = std::mem::replace(&mut (*method).template, ptr::null_mut());
        ffi::Py_XDECREF(template);
    }
    0
}

unsafe extern "C" fn dealloc(slf: *mut ffi::PyObject) {
    // SAFETY: the last reference is gone; the object was made by `PyObject_GC_New` of a heap type.
    unsafe {
        let class = ffi::Py_TYPE(slf);
        ffi::PyObject_GC_UnTrack(slf.cast());
        clear(slf);
        ffi::PyObject_GC_Del(slf.cast());
        ffi::Py_DECREF(class.cast());
    }
}

/// Makes the type of async methods, and one such method of each template.
pub struct AsyncMethods<'py>(Bound<'py, PyAny>);

impl<'py> AsyncMethods<'py> {
    /// The type.
    pub fn new(py: Python<'py>) -> PyResult<Self> {
        let mut members = [
            ffi::PyMemberDef {
                name: c"__vectorcalloffset__".as_ptr(),
                type_code: ffi::Py_T_PYSSIZET,
                offset: std::mem::offset_of!(AsyncMethod, vectorcall) as ffi::Py_ssize_t,
                flags: ffi::Py_READONLY,
                doc: ptr::null(),
            },
            // SAFETY: an all-zero member ends the list.
            unsafe { std::mem::zeroed() },
        ];
        let slot = |slot, pfunc| ffi::PyType_Slot { slot, pfunc };
        let mut slots = [
            slot(ffi::Py_tp_members, members.as_mut_ptr().cast()),
            slot(ffi::Py_tp_call, ffi::PyVectorcall_Call as *mut _),
            slot(ffi::Py_tp_descr_get, bind as *mut _),
            slot(ffi::Py_tp_getattro, get_attribute as *mut _),
            slot(ffi::Py_tp_traverse, traverse as *mut _),
            slot(ffi::Py_tp_clear, clear as *mut _),
            slot(ffi::Py_tp_dealloc, dealloc as *mut _),
            slot(0, ptr::null_mut()),
        ];
        let flags = ffi::Py_TPFLAGS_DEFAULT
            | ffi::Py_TPFLAGS_HAVE_GC
            | ffi::Py_TPFLAGS_HAVE_VECTORCALL
            | ffi::Py_TPFLAGS_METHOD_DESCRIPTOR
            | ffi::Py_TPFLAGS_DISALLOW_INSTANTIATION
            | ffi::Py_TPFLAGS_IMMUTABLETYPE;
        let mut spec = ffi::PyType_Spec {
            name: c"ironbus._core.AsyncMethod".as_ptr(),
            basicsize: size_of::<AsyncMethod>() as c_int,
            itemsize: 0,
            flags: flags as _,
            slots: slots.as_mut_ptr(),
        };
        // SAFETY: attached; the specification outlives the call, which copies what it keeps.
        let class = unsafe { Bound::from_owned_ptr_or_err(py, ffi::PyType_FromSpec(&mut spec))? };
        Ok(Self(class))
    }

    /// A method that looks like `template`, an `async def`, and calls `method`.
    pub fn make(
        &self,
        template: Bound<'py, PyAny>,
        method: NativeMethod,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = template.py();
        // SAFETY: attached; the object is of the type's size, and every field of it is written
        // before the collector is told of it.
        unsafe {
            let class = self.0.as_ptr().cast::<ffi::PyTypeObject>();
            let object: *mut ffi::PyObject = ffi::PyObject_GC_New(class);
            let object = Bound::from_owned_ptr_or_err(py, object)?;
            let raw = object.as_ptr().cast::<AsyncMethod>();
            (&raw mut (*raw).vectorcall).write(Some(call_method));
            (&raw mut (*raw).template).write(template.into_ptr());
            (&raw mut (*raw).method).write(method);
            ffi::PyObject_GC_Track(object.as_ptr().cast());
            Ok(object)
        }
    }
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
