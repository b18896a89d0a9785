//! Objects that live for the length of a call: the memory of one is kept for the next.

#![allow(unsafe_code)]

use pyo3::prelude::*;
use pyo3::{PyClass, PyTypeInfo, ffi};

use crate::py::cell::GilCell;

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
