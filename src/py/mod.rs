//! Everything that speaks PyO3: the classes, the walk over Python objects, the
//! slots and threads that call handlers, and the mapping of errors.

use pyo3::prelude::*;

mod delivery;
mod errors;
mod event;
mod identity;
mod priority;
mod record;

/// The native half of `ironbus`. Its classes are re-exported by the package.
///
/// Written for interpreters with the GIL: see `event::slots::is_unshared`.
#[pymodule(gil_used = true)]
mod _core {
    use super::*;

    #[pymodule_export]
    use super::delivery::Delivery;
    #[pymodule_export]
    use super::event::Event;

    #[pymodule_init]
    fn init(m: &Bound<'_, PyModule>) -> PyResult<()> {
        identity::install(m)?;
        event::install(m)?;
        m.add("__version__", env!("CARGO_PKG_VERSION"))?;
        m.add("debug_build", cfg!(debug_assertions))
    }
}
