//! How a journal stands and what is wrong with it, as plain values.

use std::path::PathBuf;

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

use super::exception;
use crate::engine::journal::{self, Damage, Ownership, Standing};
use crate::engine::priority::Priority;

/// How a journal stands: see `ironbus.cli.journal`.
#[pyfunction]
pub fn journal_status(py: Python<'_>, path: PathBuf) -> PyResult<Bound<'_, PyDict>> {
    let found = py.detach(|| journal::status(&path));
    let found = found.map_err(|error| exception(py, &error))?;
    let status = PyDict::new(py);
    let (owned, pid) = match found.owner {
        Ownership::Free => (false, None),
        Ownership::Owned { pid } => (true, pid),
    };
    status.set_item("owned", owned)?;
    status.set_item("owner_pid", pid)?;
    status.set_item("closed", found.head.closed)?;
    status.set_item("events", found.events)?;
    status.set_item("first_sequence", found.first.map(|(sequence, _)| sequence))?;
    status.set_item("first_accepted", found.first.map(|(_, accepted)| accepted))?;
    status.set_item("last_sequence", found.last.map(|(sequence, _)| sequence))?;
    status.set_item("last_accepted", found.last.map(|(_, accepted)| accepted))?;
    status.set_item("deleted_through", found.head.deleted_through)?;
    status.set_item("dead_letters", found.dead_letters)?;
    status.set_item("noted_damage", found.noted)?;
    status.set_item("bytes", found.bytes)?;
    status.set_item("free_bytes", found.free_bytes)?;
    status.set_item("log_bytes", found.log_bytes)?;
    let subscriptions = PyList::empty(py);
    for standing in &found.subscriptions {
        subscriptions.append(subscription(py, standing)?)?;
    }
    status.set_item("subscriptions", subscriptions)?;
    Ok(status)
}

fn subscription<'py>(py: Python<'py>, standing: &Standing) -> PyResult<Bound<'py, PyDict>> {
    let told = PyDict::new(py);
    let (waiting, positions, stragglers) = (PyDict::new(py), PyDict::new(py), PyDict::new(py));
    for level in Priority::ALL {
        let place = &standing.levels[level.index()];
        waiting.set_item(level.name(), place.waiting)?;
        positions.set_item(level.name(), place.position)?;
    }
    for (state, count) in &standing.stragglers {
        stragglers.set_item(state.name(), count)?;
    }
    told.set_item("name", &standing.row.name)?;
    told.set_item("topics", &standing.row.topics)?;
    told.set_item("created", standing.row.created)?;
    told.set_item("seen", standing.row.seen)?;
    told.set_item("positions", positions)?;
    told.set_item("waiting", waiting)?;
    told.set_item("stragglers", stragglers)?;
    told.set_item("next_due", standing.next_due)?;
    Ok(told)
}

/// Looks at everything in a journal; changes nothing.
#[pyfunction]
pub fn verify_journal(py: Python<'_>, path: PathBuf) -> PyResult<Bound<'_, PyDict>> {
    let found = py.detach(|| journal::verify(&path));
    let found = found.map_err(|error| exception(py, &error))?;
    let told = PyDict::new(py);
    told.set_item("clean", found.is_clean())?;
    told.set_item("events", found.events)?;
    told.set_item("dead_letters", found.dead_letters)?;
    let damage = found.damage.iter().map(|each| damage(py, each));
    told.set_item("damage", damage.collect::<PyResult<Vec<_>>>()?)?;
    told.set_item("findings", found.findings)?;
    told.set_item("noted", found.noted)?;
    Ok(told)
}

/// What is wrong with events.
pub fn damage<'py>(py: Python<'py>, damage: &Damage) -> PyResult<Bound<'py, PyDict>> {
    let told = PyDict::new(py);
    match damage {
        Damage::Damaged { sequence } => {
            told.set_item("what", "damaged")?;
            told.set_item("sequence", sequence)?;
        }
        Damage::Lost {
            level,
            after,
            through,
        } => {
            told.set_item("what", "lost")?;
            told.set_item("priority", level.name())?;
            told.set_item("after", after)?;
            told.set_item("through", through)?;
        }
    }
    Ok(told)
}
