//! What a bus counts, as plain values for Python.

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

use super::breaker;
use super::core::Core;
use super::once::intern;
use super::ops::PyLane;
use crate::engine::lane::{LaneReport, Stopped};
use crate::engine::metrics::Percentiles;

/// Counts and lanes of one moment.
pub fn of<'py>(py: Python<'py>, core: &Core) -> PyResult<Bound<'py, PyDict>> {
    let now = core.now(py)?;
    let (counts, lanes) = core.bus.report();
    let report = PyDict::new(py);
    let started = if core.is_running() {
        now.saturating_sub(core.started_at())
    } else {
        0
    };
    report.set_item("uptime", started as f64 / 1e9)?;
    report.set_item("keys", core.bus.keys().len())?;
    report.set_item("evicted", core.bus.keys().evicted())?;
    report.set_item("kept", core.bus.kept())?;
    let letters = core.bus.sink();
    let statistics = letters.statistics();
    for (name, count) in [
        ("dead_letters", statistics.entries),
        ("dead_letters_dropped", statistics.dropped),
        ("dead_letters_expired", statistics.expired),
        ("dead_letters_damaged", statistics.damaged),
        ("dead_letters_grown", letters.growth(now)),
    ] {
        report.set_item(name, count)?;
    }
    for (name, count) in [
        ("offered", counts.offered),
        ("accepted", counts.accepted),
        ("duplicate", counts.duplicate),
        ("rejected", counts.rejected),
        ("waiting", counts.waiting),
        ("cancelled", counts.cancelled),
    ] {
        report.set_item(name, count)?;
    }
    let list = PyList::empty(py);
    for (lane, routed, lane_report) in lanes {
        list.append(lane_dict(py, &lane, routed, &lane_report, now)?)?;
    }
    report.set_item("lanes", list)?;
    Ok(report)
}

fn lane_dict<'py>(
    py: Python<'py>,
    lane: &PyLane,
    routed: u64,
    report: &LaneReport,
    now: u64,
) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    let queued: usize = report.depth.iter().sum();
    let state = match (report.stopped, report.running) {
        (Some(Stopped::Parked), _) => intern!(py, "parked"),
        (Some(Stopped::Breaker), _) => intern!(py, "open"),
        (Some(_), _) => intern!(py, "paused"),
        (None, 0) if queued == 0 => intern!(py, "idle"),
        (None, 0) if report.startable => intern!(py, "ready"),
        (None, 0) => intern!(py, "waiting"),
        (None, _) => intern!(py, "running"),
    };
    dict.set_item("id", lane.id)?;
    dict.set_item("name", &lane.handler.name)?;
    dict.set_item("passive", lane.options.passive)?;
    dict.set_item("state", state)?;
    dict.set_item("depth", report.depth.to_vec())?;
    dict.set_item("running", report.running)?;
    dict.set_item("held", report.held)?;
    dict.set_item("delayed", report.delayed)?;
    dict.set_item("retries", report.retries)?;
    let breaker = lane.options.breaker.as_ref();
    let breaker = breaker.map(|breaker| breaker::state_name(breaker.snapshot().state));
    dict.set_item("breaker", breaker)?;
    dict.set_item(
        "oldest_age",
        report
            .oldest
            .map_or(0.0, |oldest| now.saturating_sub(oldest) as f64 / 1e9),
    )?;
    dict.set_item("routed", routed)?;
    dict.set_item("done", report.tally.done)?;
    dict.set_item("dead", report.tally.dead)?;
    dict.set_item("dropped", report.tally.dropped)?;
    dict.set_item("expired", report.tally.expired)?;
    dict.set_item("filtered", report.tally.filtered)?;
    dict.set_item("pending", queued + report.running)?;
    dict.set_item("wait", latency(&report.wait))?;
    dict.set_item("work", latency(&report.work))?;
    Ok(dict)
}

fn latency(percentiles: &Percentiles) -> (u64, f64, f64, f64, f64) {
    let seconds = |nanos: u64| nanos as f64 / 1e9;
    (
        percentiles.count,
        seconds(percentiles.p50),
        seconds(percentiles.p90),
        seconds(percentiles.p99),
        seconds(percentiles.max),
    )
}
