//! The Rust side of a delivery, which Python cannot reach without a bus.

use std::sync::Arc;

use pyo3::ffi::c_str;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyString, PyWeakrefReference};

use super::Event;
use crate::py::identity;
use crate::py::record::Record;

fn with_python(test: impl FnOnce(Python<'_>)) {
    Python::initialize();
    Python::attach(test);
}

fn record(py: Python<'_>, data: &Bound<'_, PyAny>) -> Arc<Record> {
    Arc::new(Record {
        type_: PyString::new(py, "a").unbind(),
        data: data.clone().unbind(),
        seconds: 1.5,
        number: identity::next_number(),
        given: None,
        extras: None,
        priority: crate::engine::priority::Priority::High,
    })
}

fn deliver<'py>(py: Python<'py>, record: &Record, sequence: u64) -> Bound<'py, Event> {
    let name = PyString::new(py, "bill").unbind();
    let event = Event::deliver(py, record, sequence, 1, &name, None).unwrap();
    event.into_bound(py).cast_into().unwrap()
}

/// Where the next delivery is made tells whether the last object is used again.
fn address_of_next(py: Python<'_>, record: &Record) -> usize {
    deliver(py, record, 9).as_ptr() as usize
}

#[test]
fn deliveries_are_apart_and_share_the_payload() {
    with_python(|py| {
        let data = PyDict::new(py);
        let record = record(py, &data);
        let (first, second) = (deliver(py, &record, 1), deliver(py, &record, 2));
        assert!(!first.is(&second));
        for (event, sequence) in [(&first, 1), (&second, 2)] {
            let me = event.borrow();
            assert!(me.fields.data.as_ref().unwrap().is(&data));
            let call = me.delivered.call.as_ref().unwrap();
            assert_eq!((call.sequence, call.attempt), (sequence, 1));
        }
    });
}

#[test]
fn an_event_that_nobody_kept_is_used_again_without_its_payload() {
    with_python(|py| {
        let data = PyList::empty(py);
        let weak = py
            .eval(c_str!("type('Payload', (), {})()"), None, None)
            .unwrap();
        let gone = PyWeakrefReference::new(&weak).unwrap();
        let used = deliver(py, &record(py, &weak), 1);
        drop(weak);
        let address = used.as_ptr() as usize;
        Event::recycle(py, used.into_any().unbind());
        assert!(gone.upgrade().is_none());

        let next = deliver(py, &record(py, &data), 2);
        assert_eq!(next.as_ptr() as usize, address);
        assert!(next.borrow().fields.data.as_ref().unwrap().is(&data));
        let tracked = py
            .import("gc")
            .unwrap()
            .call_method1("is_tracked", (next,))
            .unwrap();
        assert!(tracked.is_truthy().unwrap());
    });
}

#[test]
fn an_event_that_somebody_kept_stays_as_it_is() {
    with_python(|py| {
        let data = PyList::empty(py);
        let record = record(py, &data);

        let kept = deliver(py, &record, 1);
        Event::recycle(py, kept.clone().into_any().unbind());
        assert!(kept.borrow().fields.data.is_some());
        assert_ne!(address_of_next(py, &record), kept.as_ptr() as usize);

        let event = deliver(py, &record, 2);
        let weak = PyWeakrefReference::new(&event).unwrap();
        Event::recycle(py, event.into_any().unbind());
        assert!(weak.upgrade().is_none());

        let event = deliver(py, &record, 3);
        event.setattr("__dict__", PyDict::new(py)).unwrap();
        Event::recycle(py, event.into_any().unbind());
        assert!(!deliver(py, &record, 4).borrow().in_dict);
    });
}

#[test]
fn a_cycle_through_two_deliveries_of_one_record_is_collected() {
    with_python(|py| {
        let service = py
            .eval(c_str!("type('Service', (), {})()"), None, None)
            .unwrap();
        let gone = PyWeakrefReference::new(&service).unwrap();
        let record = record(py, &service);
        let events = [deliver(py, &record, 1), deliver(py, &record, 2)];
        service
            .setattr("events", PyList::new(py, events).unwrap())
            .unwrap();
        drop((service, record));
        py.import("gc").unwrap().call_method0("collect").unwrap();
        assert!(gone.upgrade().is_none());
    });
}
