//! From the type of an event to the lanes that want it.
//!
//! Exact types are looked up, patterns are matched once per type, and the answer is
//! remembered as an immutable [`Route`]. Every change of a subscription begins a new
//! epoch; the gate compares epochs, so that an event never goes by a stale route.

use std::ops::Deref;
use std::slice;

use hashbrown::HashMap;

use super::lane::Lane;
use super::ops::Ops;
use super::priority::Priority;
use super::sync::{Arc, Mutex, lock};
use super::topic::Topic;

/// The lanes of one type, as of one epoch.
pub struct Route<O: Ops> {
    /// In the order of the subscriptions.
    pub lanes: Lanes<O>,
    /// How many of them are not passive: the outcomes that an event must have.
    pub owed: usize,
    /// The epoch of the subscriptions that it was computed from.
    pub epoch: u64,
    /// A lane has several subscriptions, and gets an event for each.
    several: bool,
}

impl<O: Ops> Route<O> {
    /// To one lane alone, whatever the subscriptions.
    pub(super) fn to(lane: &Arc<Lane<O>>, epoch: u64) -> Self {
        Self {
            lanes: Lanes::One(lane.clone()),
            owed: 1,
            epoch,
            several: false,
        }
    }

    /// For who will publish by it soon: a route of many lanes is where it was a moment ago.
    #[inline]
    pub fn prefetch(&self) {
        if let Lanes::One(lane) = &self.lanes {
            lane.prefetch();
        }
    }

    /// Whether a lane of the route has room for the event, as often as it gets it.
    #[inline]
    pub fn has_room(&self, lane: &Lane<O>, level: Priority) -> bool {
        if self.several {
            return self.has_room_for_all(lane, level);
        }
        lane.has_room(level)
    }

    /// So many events of a level get in before anybody has to look again, whatever a full lane does.
    pub(super) fn room(&self, level: Priority) -> usize {
        if self.several {
            return 0;
        }
        let room = self.lanes.iter().map(|lane| lane.room(level));
        room.min().unwrap_or(usize::MAX)
    }

    #[cold]
    fn has_room_for_all(&self, lane: &Lane<O>, level: Priority) -> bool {
        let copies = self.lanes.iter().filter(|other| other.id == lane.id);
        let bound = lane.options.bound;
        // More than the lane ever has room for come when it is empty, or they would never.
        lane.depth(level) + copies.count().min(bound) <= bound
    }
}

impl<O: Ops> Clone for Route<O> {
    fn clone(&self) -> Self {
        Self {
            lanes: self.lanes.clone(),
            ..*self
        }
    }
}

/// Lanes in a row. One alone lies where it is found, and not one step further.
pub enum Lanes<O: Ops> {
    /// As of most types.
    One(Arc<Lane<O>>),
    /// None, or several.
    Many(Box<[Arc<Lane<O>>]>),
}

impl<O: Ops> Clone for Lanes<O> {
    fn clone(&self) -> Self {
        match self {
            Self::One(lane) => Self::One(lane.clone()),
            Self::Many(lanes) => Self::Many(lanes.clone()),
        }
    }
}

impl<O: Ops> From<Vec<Arc<Lane<O>>>> for Lanes<O> {
    fn from(mut lanes: Vec<Arc<Lane<O>>>) -> Self {
        match lanes.pop() {
            Some(only) if lanes.is_empty() => Self::One(only),
            last => {
                lanes.extend(last);
                Self::Many(lanes.into())
            }
        }
    }
}

impl<O: Ops> Deref for Lanes<O> {
    type Target = [Arc<Lane<O>>];

    #[inline]
    fn deref(&self) -> &[Arc<Lane<O>>] {
        match self {
            Self::One(lane) => slice::from_ref(lane),
            Self::Many(lanes) => lanes,
        }
    }
}

impl<'a, O: Ops> IntoIterator for &'a Lanes<O> {
    type Item = &'a Arc<Lane<O>>;
    type IntoIter = slice::Iter<'a, Arc<Lane<O>>>;

    #[inline]
    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// A new epoch, and the routes that ended with the old one: to be dropped once no lock is held.
pub struct Epoch<O: Ops> {
    /// Its number.
    pub number: u64,
    /// What it ended.
    pub retired: Vec<Arc<Route<O>>>,
}

/// Types that are remembered before the memory starts anew: a publisher that makes
/// up types must not fill the process.
const REMEMBERED: usize = 65_536;

/// The subscriptions, and the routes computed from them.
pub struct Router<O: Ops> {
    table: Mutex<Table<O>>,
}

struct Table<O: Ops> {
    epoch: u64,
    exact: HashMap<Box<str>, Vec<Listener<O>>>,
    patterns: Vec<(Topic, Listener<O>)>,
    routes: HashMap<Box<str>, Arc<Route<O>>>,
}

/// One subscription: its number, and the lane that it feeds. A subscription with several
/// topics gets an event once; a lane with several subscriptions gets it once for each.
#[derive(Clone)]
struct Listener<O: Ops> {
    subscription: u64,
    lane: Arc<Lane<O>>,
}

impl<O: Ops> Default for Router<O> {
    fn default() -> Self {
        Self {
            table: Mutex::new(Table {
                epoch: 0,
                exact: HashMap::new(),
                patterns: Vec::new(),
                routes: HashMap::new(),
            }),
        }
    }
}

impl<O: Ops> Router<O> {
    /// The route of a type that was asked for before.
    #[inline]
    pub fn remembered(&self, event_type: &str) -> Option<Arc<Route<O>>> {
        lock(&self.table).routes.get(event_type).cloned()
    }

    /// The route of a type.
    pub fn route(&self, event_type: &str) -> Arc<Route<O>> {
        let mut table = lock(&self.table);
        if let Some(route) = table.routes.get(event_type) {
            return route.clone();
        }
        let route = Arc::new(table.compute(event_type));
        if table.routes.len() < REMEMBERED {
            table.routes.insert(event_type.into(), route.clone());
            return route;
        }
        let forgotten = std::mem::replace(
            &mut table.routes,
            HashMap::from([(event_type.into(), route.clone())]),
        );
        drop(table);
        // A route may be the last to hold a lane, and a lane's handler is outside code.
        drop(forgotten);
        route
    }

    /// Sends events of the topic to the subscription's lane.
    pub fn add(&self, topic: Topic, subscription: u64, lane: Arc<Lane<O>>) -> Epoch<O> {
        let listener = Listener { subscription, lane };
        let mut table = lock(&self.table);
        if topic.is_pattern() {
            table.patterns.push((topic, listener));
        } else {
            table
                .exact
                .entry(topic.text().into())
                .or_default()
                .push(listener);
        }
        table.turn()
    }

    /// Ends a subscription, whatever its topics. The caller holds its lane.
    pub fn remove(&self, subscription: u64) -> Epoch<O> {
        let mut table = lock(&self.table);
        table
            .patterns
            .retain(|(_, listener)| listener.subscription != subscription);
        table.exact.retain(|_, listeners| {
            listeners.retain(|listener| listener.subscription != subscription);
            !listeners.is_empty()
        });
        table.turn()
    }
}

impl<O: Ops> Router<O> {
    /// Ends all subscriptions. Returns what held lanes: to be dropped once no lock is held.
    pub fn clear(&self) -> impl Sized + use<O> {
        let mut table = lock(&self.table);
        let epoch = table.turn();
        (
            epoch,
            std::mem::take(&mut table.exact),
            std::mem::take(&mut table.patterns),
        )
    }
}

impl<O: Ops> Table<O> {
    fn turn(&mut self) -> Epoch<O> {
        self.epoch += 1;
        Epoch {
            number: self.epoch,
            retired: std::mem::take(&mut self.routes).into_values().collect(),
        }
    }

    fn compute(&self, event_type: &str) -> Route<O> {
        let exact = self.exact.get(event_type).into_iter().flatten();
        let matched = self
            .patterns
            .iter()
            .filter(|(topic, _)| topic.matches(event_type))
            .map(|(_, l)| l);
        let mut listeners: Vec<&Listener<O>> = exact.chain(matched).collect();
        listeners.sort_by_key(|listener| listener.subscription);
        listeners.dedup_by_key(|listener| listener.subscription);
        let lanes: Vec<_> = listeners
            .into_iter()
            .map(|listener| listener.lane.clone())
            .collect();
        let mut ids: Vec<_> = lanes.iter().map(|lane| lane.id).collect();
        ids.sort_unstable();
        let several = ids.windows(2).any(|pair| pair[0] == pair[1]);
        let owed = lanes.iter().filter(|lane| !lane.options.passive).count();
        Route {
            lanes: lanes.into(),
            owed,
            epoch: self.epoch,
            several,
        }
    }
}
