//! The members of `ironbus.priority.EventPriority`, looked up once.

use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;

use super::record::Priority;

/// The enum's member for a level.
pub fn member(py: Python<'_>, level: Priority) -> PyResult<Bound<'_, PyAny>> {
    static MEMBERS: PyOnceLock<Vec<Py<PyAny>>> = PyOnceLock::new();
    let members = MEMBERS.get_or_try_init(py, || {
        let class = py.import("ironbus.priority")?.getattr("EventPriority")?;
        (0..4u8)
            .map(|level| Ok(class.call1((level,))?.unbind()))
            .collect::<PyResult<Vec<_>>>()
    })?;
    Ok(members[usize::from(level)].bind(py).clone())
}
