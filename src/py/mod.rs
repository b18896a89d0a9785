//! Everything that speaks PyO3: the classes, the walk over Python objects, the
//! slots and threads that call handlers, and the mapping of errors.

use pyo3::prelude::*;

mod alarm;
mod breaker;
mod bus;
mod cell;
mod clock;
mod context;
mod core;
mod current;
mod dataclass;
mod dead_letters;
mod delivery;
mod durable;
mod errors;
mod event;
mod event_loop;
mod event_sequence;
mod failure;
mod identity;
mod journal_file;
mod keys;
mod lane;
mod letters;
mod native;
mod once;
mod ops;
mod ordering;
mod policy;
mod pool;
mod prepare;
mod priority;
mod process;
mod publisher;
mod receipt;
mod record;
mod refusal;
mod report;
mod retries;
mod routes;
mod run;
mod slot;
mod stream;
mod testing;
mod transaction;
mod values;
mod walk;

/// Events live from publish to settlement, hundreds at a time, which is what the C library's
/// allocator is slow at.
#[global_allocator]
static ALLOCATOR: crate::allocator::Allocator = crate::allocator::Allocator;

/// The native half of `ironbus`. Its classes are re-exported by the package.
///
/// Written for interpreters with the GIL: see `event::slots::is_unshared`.
#[pymodule(gil_used = true)]
mod _core {
    use super::*;

    #[pymodule_export]
    use super::bus::{Bus, async_methods};
    #[pymodule_export]
    use super::current::current_delivery;
    #[pymodule_export]
    use super::delivery::Delivery;
    #[pymodule_export]
    use super::event::Event;
    #[pymodule_export]
    use super::keys::{IdempotencyManager, content_key};
    #[pymodule_export]
    use super::lane::LaneHandle;
    #[pymodule_export]
    use super::receipt::{BatchReceipt, Receipt};
    #[pymodule_export]
    use super::routes::topic_matches;
    #[pymodule_export]
    use super::stream::StreamSource;
    #[pymodule_export]
    use super::transaction::Transaction;

    #[pymodule_export]
    use super::breaker::Breaker;
    #[pymodule_export]
    use super::dead_letters::DeadLetterStore;
    #[pymodule_export]
    use super::journal_file::{
        EventFilter, JournalFile, backup_journal, forget_subscription, journal_status,
        query_journal, verify_journal,
    };
    #[pymodule_export]
    use super::letters::{LetterBox, LetterFile, LetterFilter, Redrive};
    #[pymodule_export]
    use super::retries::{Random, Retries};

    #[pymodule_export]
    use super::testing::Harness;

    #[pymodule_export]
    use super::event_sequence::EventSequence;
    #[pymodule_export]
    use super::ordering::EventOrderingManager;

    #[pymodule_init]
    fn init(m: &Bound<'_, PyModule>) -> PyResult<()> {
        identity::install(m)?;
        event::install(m)?;
        process::install(m)?;
        native::install_send::<publisher::Publish>(m.py());
        native::install_send::<publisher::PublishMany>(m.py());
        native::install_send::<slot::Slot>(m.py());
        native::install_pool::<publisher::Publish>(m.py());
        native::install_release::<publisher::Publish>(m.py());
        native::install_pool::<receipt::Receipt>(m.py());
        event_sequence::install(m.py())?;
        ordering::install(m.py())?;
        native::install_release::<receipt::Receipt>(m.py());
        native::install_pool::<receipt::BatchReceipt>(m.py());
        native::install_release::<receipt::BatchReceipt>(m.py());
        // The others that are made anywhere: at their first use, a fork might come in between.
        m.py().get_type::<alarm::Rearm>();
        m.py().get_type::<alarm::Tick>();
        m.py().get_type::<event_loop::Rouser>();
        m.py().get_type::<pool::Worker>();
        m.py().get_type::<receipt::Guard>();
        m.py().get_type::<routes::Way>();
        transaction::install(m.py());
        m.add("__version__", env!("CARGO_PKG_VERSION"))?;
        m.add("debug_build", cfg!(debug_assertions))
    }
}
