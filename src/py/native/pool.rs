//! Objects that are made and dropped at a high rate: the memory of one is kept for the next.

#![allow(unsafe_code)]

use std::ffi::c_void;

use pyo3::prelude::*;
use pyo3::pyclass::boolean_struct::True;
use pyo3::{PyClass, PyTypeInfo, ffi};

use super::guarded;
use crate::py::cell::GilCell;

/// A class whose instances come and go with every event, so that their memory is worth keeping.
pub trait Pooled: PyClass<Frozen = True> + PyTypeInfo + Sync {
    /// Whether the garbage collector sees the instances. If not, nothing that they hold may refer
    /// back to them.
    const TRACKED: bool;
    /// How many instances' memory is kept at most.
    const KEPT: usize;

    /// The memory of instances that are gone.
    fn pool() -> &'static Pool;
}

/// A pooled class whose instances are released without the ways through pyo3.
pub trait Released: Pooled + Into<PyClassInitializer<Self>> {
    /// Drops what an instance holds. It is not told to pyo3 that the thread is attached, so no `Py`
    /// may be dropped as such.
    fn release(self, py: Python<'_>);
}

/// Blocks of memory of one class.
pub type Pool = GilCell<Vec<Block>>;

/// A block of memory of an object that is gone.
pub struct Block(*mut ffi::PyObject);

// SAFETY: nobody else knows the address.
unsafe impl Send for Block {}

/// Where in a block the value is: behind the object's head.
const fn offset<T>() -> usize {
    size_of::<ffi::PyObject>().next_multiple_of(align_of::<T>())
}

/// Makes an instance of the class, in kept memory if there is any.
// Always inlined, as `value` should be, which makes it where it stays: else it is written to the stack in
// words and read back in larger pieces at once, which the processor cannot forward.
#[inline(always)]
pub fn make<T: Pooled + Into<PyClassInitializer<T>>>(
    py: Python<'_>,
    value: impl FnOnce() -> T,
) -> PyResult<Bound<'_, T>> {
    let Some(Block(block)) = T::pool().update(py, Vec::pop) else {
        return Bound::new(py, value());
    };
    // SAFETY: attached. The block has the size of the class and is nobody's; `PyObject_Init` makes an
    // object of it again, as allocating would, and the value is all that pyo3 puts behind the head,
    // as was checked when the pool was installed. The collector is told last.
    unsafe {
        let object = ffi::PyObject_Init(block, T::type_object_raw(py));
        object.byte_add(offset::<T>()).cast::<T>().write(value());
        if T::TRACKED {
            ffi::PyObject_GC_Track(object.cast());
        }
        Ok(Bound::from_owned_ptr(py, object).cast_into_unchecked())
    }
}

/// Gives the class the slots by which its memory is kept.
pub fn install_pool<T: Pooled>(py: Python<'_>) {
    let class = T::type_object_raw(py);
    // SAFETY: attached. As in `install_send`; pyo3 allocates through `tp_alloc` and frees
    // through `tp_free`, of which classes derived in Python get others.
    unsafe {
        // Blocks are freed with their collector's header: without one, that would corrupt the heap.
        assert_ne!((*class).tp_flags & ffi::Py_TPFLAGS_HAVE_GC, 0);
        let size = offset::<T>() + size_of::<T>();
        assert_eq!((*class).tp_basicsize, size.cast_signed());
        (*class).tp_alloc = Some(pooled_alloc::<T>);
        (*class).tp_free = Some(pooled_free::<T>);
        ffi::PyType_Modified(class);
    }
}

unsafe extern "C" fn pooled_alloc<T: Pooled>(
    class: *mut ffi::PyTypeObject,
    items: ffi::Py_ssize_t,
) -> *mut ffi::PyObject {
    // SAFETY: called attached, in place of `PyType_GenericAlloc`. An instance that the collector is
    // to see is tracked by it already.
    unsafe {
        let object = ffi::PyType_GenericAlloc(class, items);
        if !T::TRACKED && !object.is_null() {
            ffi::PyObject_GC_UnTrack(object.cast());
        }
        object
    }
}

unsafe extern "C" fn pooled_free<T: Pooled>(block: *mut c_void) {
    // SAFETY: called attached, with the memory of an object that has been finalised and that pyo3
    // has untracked; it came from `PyType_GenericAlloc` of a class with garbage collection, which
    // all of pyo3's are, so there is a collector's header in front of it that is freed with it.
    unsafe {
        let py = Python::assume_attached();
        let kept = T::pool().update(py, |pool| {
            let keep = pool.len() < T::KEPT;
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

/// Gives the class the slot by which an instance is released. Its pool must be installed.
pub fn install_release<T: Released>(py: Python<'_>) {
    let class = T::type_object_raw(py);
    // SAFETY: attached. As in `install_send`.
    unsafe {
        (*class).tp_dealloc = Some(release::<T>);
        ffi::PyType_Modified(class);
    }
}

unsafe extern "C" fn release<T: Released>(object: *mut ffi::PyObject) {
    // SAFETY: called attached, with an instance of the class or of one derived from it that nobody
    // refers to any more, and in which the value lies as `make` or pyo3 put it there. It is moved out
    // once. As pyo3 does, the memory is freed by the instance's own class, and the instance's
    // reference to that is given up.
    unsafe {
        let py = Python::assume_attached();
        ffi::PyObject_GC_UnTrack(object.cast());
        let value = object.byte_add(offset::<T>()).cast::<T>().read();
        if let Err(error) = guarded(|| {
            value.release(py);
            Ok(())
        }) {
            error.write_unraisable(py, None);
        }
        let class = ffi::Py_TYPE(object);
        if std::ptr::eq(class, T::type_object_raw(py)) {
            pooled_free::<T>(object.cast());
        } else if let Some(free) = (*class).tp_free {
            free(object.cast());
        }
        ffi::Py_DECREF(class.cast());
    }
}
