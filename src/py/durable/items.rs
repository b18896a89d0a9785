//! Events that go to the journal together, and the claims to their keys: all are held, or none.

use std::collections::HashSet;

use crate::engine::bus::Bus;
use crate::engine::digest::Digest;
use crate::engine::durable::Written;
use crate::engine::gate::Timing;
use crate::engine::idempotency::Claim;
use crate::engine::journal;
use crate::engine::ops::wake_all;
use crate::py::ops::{Event, PyOps};
use crate::py::prepare::{Prepared, discard};

/// An event on its course.
pub struct Item {
    /// The event.
    pub event: Event,
    token: u64,
    key: Option<Digest>,
    timing: Option<Timing>,
    /// Until it is handed over.
    stored: Option<journal::Event>,
    /// An event with this key was accepted before.
    pub duplicate: bool,
}

impl Item {
    /// Of a valid event, and what the journal keeps of it.
    pub fn new(prepared: Prepared, stored: journal::Event) -> Self {
        Self {
            event: prepared.event,
            token: prepared.token,
            key: prepared.key,
            timing: prepared.timing.map(|timing| *timing),
            stored: Some(stored),
            duplicate: false,
        }
    }
}

/// See the module.
#[derive(Default)]
pub struct Items(pub Vec<Item>);

impl Items {
    /// Claims all keys, or none. The one whose fate is open.
    pub fn claim(&mut self, bus: &Bus<PyOps>, now: u64) -> Option<Digest> {
        let items = &mut self.0;
        let (open, woken) = bus.with_keys(|keys| {
            let mut mine = HashSet::new();
            let mut open = None;
            for item in items.iter_mut() {
                item.duplicate = false;
                let Some(key) = &item.key else { continue };
                // Of equal ones in a batch the first counts.
                if mine.contains(&key.short()) {
                    item.duplicate = true;
                    continue;
                }
                match keys.look(key, now) {
                    Claim::Vacant => {
                        keys.hold(key);
                        mine.insert(key.short());
                    }
                    Claim::Duplicate => item.duplicate = true,
                    Claim::Pending => {
                        open = Some(*key);
                        break;
                    }
                }
            }
            let mut woken = Vec::new();
            if open.is_some() {
                for key in items.iter().filter_map(|item| item.key.as_ref()) {
                    if mine.remove(&key.short()) {
                        woken.extend(keys.release(key));
                    }
                }
            }
            (open, woken)
        });
        wake_all(woken);
        open
    }

    /// What is to be written, once the keys are claimed.
    pub fn written(&mut self) -> Vec<Written<PyOps>> {
        let new = self.0.iter_mut().filter(|item| !item.duplicate);
        let written = new.map(|item| Written {
            event: item.event.clone(),
            stored: item.stored.take().unwrap_or_default(),
            token: item.token,
            key: item.key,
            timing: item.timing,
        });
        written.collect()
    }

    /// It was not handed over: lets go of the claims.
    pub fn put_back(&mut self, bus: &Bus<PyOps>, written: Vec<Written<PyOps>>) {
        self.take_back(written);
        let claimed = self.0.iter().filter(|item| !item.duplicate);
        for key in claimed.filter_map(|item| item.key.as_ref()) {
            wake_all(bus.with_keys(|keys| keys.release(key)));
        }
    }

    /// It has waited without claims, and is to be brought anew.
    pub fn take_back(&mut self, written: Vec<Written<PyOps>>) {
        let mut written = written.into_iter();
        for item in self.0.iter_mut().filter(|item| !item.duplicate) {
            item.stored = written.next().map(|written| written.stored);
        }
    }

    /// The others are handed over, and nothing more becomes of these.
    pub fn count_duplicates(&self, bus: &Bus<PyOps>) {
        for item in self.0.iter().filter(|item| item.duplicate) {
            bus.count_duplicate();
            discard(&item.event);
        }
    }

    /// Nothing becomes of any.
    pub fn discard(&self) {
        self.0.iter().for_each(|item| discard(&item.event));
    }
}
