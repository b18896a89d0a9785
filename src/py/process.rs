//! Whether this process is a fork of the one that imported the package: threads and
//! loops do not survive a fork, and a started bus in a child must say so.

use std::sync::atomic::{AtomicU32, Ordering};

use pyo3::prelude::*;
use pyo3::types::PyDict;

static FORKS: AtomicU32 = AtomicU32::new(0);

/// How many forks lie between the import and this process.
#[inline]
pub fn generation() -> u32 {
    FORKS.load(Ordering::Relaxed)
}

#[pyfunction]
fn forked() {
    FORKS.fetch_add(1, Ordering::Relaxed);
}

/// Has a thread raise SystemExit as soon as it runs Python again. False: there is no such thread.
#[pyfunction]
pub fn end_thread(py: Python<'_>, ident: std::ffi::c_long) -> bool {
    super::native::raise_in_thread(ident, &py.get_type::<pyo3::exceptions::PySystemExit>())
}

/// Has forks counted, where there are any.
pub fn install(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_function(wrap_pyfunction!(end_thread, m)?)?;
    let os = m.py().import("os")?;
    if os.hasattr("register_at_fork")? {
        let hooks = PyDict::new(m.py());
        hooks.set_item("after_in_child", wrap_pyfunction!(forked, m)?)?;
        os.call_method("register_at_fork", (), Some(&hooks))?;
    }
    Ok(())
}
