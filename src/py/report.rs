//! What a bus counts, as plain values for Python.

use std::collections::HashMap;

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

use super::breaker;
use super::core::Core;
use super::once::intern;
use super::ops::PyLane;
use super::policy::seconds;
use crate::engine::dead_letters::WhenFull;
use crate::engine::lane::{LaneReport, Overflow, Stopped};
use crate::engine::metrics::Percentiles;

/// Counts and lanes of one moment.
pub fn of<'py>(py: Python<'py>, core: &Core, latencies: bool) -> PyResult<Bound<'py, PyDict>> {
    let now = core.now(py)?;
    let (counts, lanes) = core.bus.report();
    let (runs, on_threads) = core.at_work(py);
    let taken = |since: u64| seconds(now.saturating_sub(since));
    let report = PyDict::new(py);
    report.set_item("now", now)?;
    report.set_item("uptime", seconds(core.uptime(now)))?;
    report.set_item("ran", seconds(core.ran(now)))?;
    let (live, evicted) = core.bus.with_keys(|keys| (keys.len(), keys.evicted()));
    report.set_item("keys", live)?;
    report.set_item("evicted", evicted)?;
    report.set_item("kept", core.bus.kept())?;
    report.set_item("kept_bound", core.settings.max_queue_size)?;
    report.set_item("threads_bound", core.pool().most_threads())?;
    let threads = runs[..on_threads].iter();
    let threads: Vec<_> = threads.map(|run| (run.lane, taken(run.since))).collect();
    report.set_item("threads", threads)?;
    letters(&report, core, now)?;
    let journal = match &core.journaled {
        Some(journaled) => journaled.report(py, &core.bus, core.clock.wall(py)?)?,
        None => None,
    };
    report.set_item("journal", journal)?;
    for (name, count) in [
        ("offered", counts.offered),
        ("accepted", counts.accepted),
        ("duplicate", counts.duplicate),
        ("rejected", counts.rejected),
        ("waiting", counts.waiting),
        ("cancelled", counts.cancelled),
        ("unknown", counts.unknown),
    ] {
        report.set_item(name, count)?;
    }
    let mut longest = HashMap::new();
    for run in &runs {
        let since = longest.entry(run.lane).or_insert(run.since);
        *since = run.since.min(*since);
    }
    let list = PyList::empty(py);
    for (lane, routed, lane_report) in lanes {
        let dict = lane_dict(py, &lane, routed, &lane_report, now)?;
        let longest = longest.get(&lane.id).map_or(0.0, |since| taken(*since));
        dict.set_item(intern!(py, "longest_run"), longest)?;
        if latencies {
            let latencies = lane.latencies();
            dict.set_item(intern!(py, "wait"), latency(&latencies.wait))?;
            dict.set_item(intern!(py, "work"), latency(&latencies.work))?;
        }
        list.append(dict)?;
    }
    report.set_item("lanes", list)?;
    Ok(report)
}

fn letters(report: &Bound<'_, PyDict>, core: &Core, now: u64) -> PyResult<()> {
    let letters = core.bus.sink();
    let statistics = letters.statistics();
    let (dropped_here, damaged_here) = letters.lost_here();
    for (name, count) in [
        ("dead_letters", statistics.entries),
        ("dead_letters_dropped", statistics.dropped),
        ("dead_letters_expired", statistics.expired),
        ("dead_letters_damaged", statistics.damaged),
        ("dead_letters_dropped_here", dropped_here),
        ("dead_letters_damaged_here", damaged_here),
        ("dead_letters_grown", letters.growth(now)),
        ("dead_letters_bound", letters.limits().max_entries),
    ] {
        report.set_item(name, count)?;
    }
    let parks = letters.limits().when_full == WhenFull::Refuse;
    report.set_item("dead_letters_park", parks)
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
    let since = |then: u64| seconds(now.saturating_sub(then));
    dict.set_item(intern!(py, "id"), lane.id)?;
    dict.set_item(intern!(py, "name"), &lane.handler.name)?;
    dict.set_item(intern!(py, "passive"), lane.options.passive)?;
    dict.set_item(intern!(py, "bound"), lane.options.bound)?;
    let refuses = matches!(lane.options.overflow, Overflow::Block | Overflow::Reject);
    dict.set_item(intern!(py, "refuses"), refuses)?;
    dict.set_item(intern!(py, "timeout"), lane.handler.timeout.map(seconds))?;
    dict.set_item(intern!(py, "state"), state)?;
    dict.set_item(intern!(py, "depth"), report.depth.to_vec())?;
    dict.set_item(intern!(py, "running"), report.running)?;
    dict.set_item(intern!(py, "held"), report.held)?;
    dict.set_item(intern!(py, "delayed"), report.delayed)?;
    dict.set_item(intern!(py, "retries"), report.retries)?;
    let breaker = lane.options.breaker.as_ref();
    let breaker = breaker.map(|breaker| breaker.snapshot());
    let state = breaker
        .as_ref()
        .map(|breaker| breaker::state_name(breaker.state));
    dict.set_item(intern!(py, "breaker"), state)?;
    let changed = breaker.map(|breaker| since(breaker.changed_at));
    dict.set_item(intern!(py, "breaker_for"), changed)?;
    dict.set_item(intern!(py, "oldest_age"), report.oldest.map_or(0.0, since))?;
    dict.set_item(intern!(py, "routed"), routed)?;
    dict.set_item(intern!(py, "done"), report.tally.done)?;
    dict.set_item(intern!(py, "dead"), report.tally.dead)?;
    dict.set_item(intern!(py, "dropped"), report.tally.dropped)?;
    dict.set_item(intern!(py, "expired"), report.tally.expired)?;
    dict.set_item(intern!(py, "filtered"), report.tally.filtered)?;
    dict.set_item(intern!(py, "pending"), queued + report.running)?;
    Ok(dict)
}

fn latency(percentiles: &Percentiles) -> (u64, f64, f64, f64, f64) {
    (
        percentiles.count,
        seconds(percentiles.p50),
        seconds(percentiles.p90),
        seconds(percentiles.p99),
        seconds(percentiles.max),
    )
}
