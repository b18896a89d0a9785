//! Everything that speaks PyO3: the classes, the walk over Python objects, the
//! slots and threads that call handlers, and the mapping of errors.

use pyo3::prelude::*;

mod dataclass;
mod errors;
mod event_sequence;
mod ordering;
mod priority;

/// The native half of `ironbus`. Its classes are re-exported by the package.
#[pymodule]
mod _core {
    use super::*;

    #[pymodule_export]
    use super::event_sequence::EventSequence;
    #[pymodule_export]
    use super::ordering::EventOrderingManager;

    #[pymodule_init]
    fn init(m: &Bound<'_, PyModule>) -> PyResult<()> {
        dataclass::adopt(&m.py().get_type::<EventSequence>())?;
        m.add("__version__", env!("CARGO_PKG_VERSION"))?;
        m.add("debug_build", cfg!(debug_assertions))
    }
}
