//! An accepted event and what becomes of it: exactly one outcome for each lane.
//!
//! The common end, "done everywhere and nobody asked", costs one atomic
//! subtraction. Everything else goes through the tail, made when first needed.

use std::ptr;
#[cfg(not(loom))]
use std::{mem::ManuallyDrop, sync::PoisonError};

use super::lane::{Lane, LaneId};
use super::ops::Ops;
use super::prefetch::prefetch;
use super::router::Route;
#[cfg(not(loom))]
use super::sync;
use super::sync::{
    Arc, Mutex, Shared,
    atomic::{AtomicU32, AtomicUsize, Ordering},
    lock,
};

/// How the delivery of an event to one lane ended.
#[derive(Debug)]
pub enum Outcome<F> {
    /// The handler succeeded.
    Done,
    /// The handler failed for good.
    Dead(Arc<F>),
    /// An overflow policy, or the end of the subscription, let go of it.
    Dropped,
    /// Its time had passed before it was started.
    Expired,
    /// The subscription's filter did not want it.
    Filtered,
}

/// An event on its way: the payload, where it goes, and what has become of it.
pub struct Envelope<O: Ops> {
    /// What the publisher handed in.
    pub payload: O::Payload,
    /// Deliveries that are not settled, and the flag [`TAIL`].
    state: AtomicU32,
    tail: Mutex<Option<Box<Tail<O>>>>,
    tree: Option<Arc<Tree<O>>>,
}

/// Set once there is a tail that the last settlement must look at.
const TAIL: u32 = 1 << 31;

struct Tail<O: Ops> {
    /// Where the event went, for events that were accepted before that was known.
    route: Option<Arc<Route<O>>>,
    outcomes: Vec<(LaneId, Outcome<O::Failure>)>,
    waiters: Vec<O::Waker>,
    tree: Option<Arc<Tree<O>>>,
    /// The last settlement has been here.
    ended: bool,
}

impl<O: Ops> Default for Tail<O> {
    fn default() -> Self {
        Self {
            route: None,
            outcomes: Vec::new(),
            waiters: Vec::new(),
            tree: None,
            ended: false,
        }
    }
}

/// Whom to wake. Mostly nobody, and then there is nothing to let go of either.
pub type Woken<O> = Option<Vec<<O as Ops>::Waker>>;

/// What an event has beside its payload, when nobody asks for it any more.
#[cfg(not(loom))]
pub struct Rest<O: Ops> {
    tail: Option<Box<Tail<O>>>,
    tree: Option<Arc<Tree<O>>>,
}

#[cfg(not(loom))]
impl<O: Ops> Rest<O> {
    /// Whether there is nothing, as mostly.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.tail.is_none() && self.tree.is_none()
    }
}

/// The events that one event caused, itself included, as a count. Made when the
/// first child is published, so that events without children pay nothing, and
/// shared by all descendants, so that an endless chain of events holds no history.
pub struct Tree<O: Ops> {
    unsettled: AtomicUsize,
    waiters: Mutex<Vec<O::Waker>>,
}

impl<O: Ops> Tree<O> {
    fn settle_one(&self) -> Vec<O::Waker> {
        if self.unsettled.fetch_sub(1, Ordering::AcqRel) == 1 {
            std::mem::take(&mut *lock(&self.waiters))
        } else {
            Vec::new()
        }
    }

    /// Whether every event of the tree is settled.
    pub fn settled(&self) -> bool {
        self.unsettled.load(Ordering::Acquire) == 0
    }

    /// Registers a waiter, or gives it back if there is nothing to wait for.
    pub fn wait(&self, waker: O::Waker) -> Result<(), O::Waker> {
        let mut waiters = lock(&self.waiters);
        if self.settled() {
            return Err(waker);
        }
        waiters.push(waker);
        Ok(())
    }
}

impl<O: Ops> Envelope<O> {
    /// A new event. It counts as having one unsettled delivery until it is [routed](Self::routed).
    #[inline(always)]
    pub fn new(payload: O::Payload, cause: Option<&Envelope<O>>) -> Self {
        let tree = cause.map(Envelope::family);
        if let Some(tree) = &tree {
            tree.unsettled.fetch_add(1, Ordering::Relaxed);
        }
        Self {
            payload,
            state: AtomicU32::new(1),
            tail: Mutex::new(None),
            tree,
        }
    }

    /// For who will need the event soon.
    #[inline]
    pub fn prefetch(&self) {
        // The count of those who share it lies before it.
        const COUNT: usize = size_of::<usize>();
        prefetch(ptr::from_ref(self).wrapping_byte_sub(COUNT), 2);
    }

    /// Lets go of an event. If nobody else has it, `last` takes its payload to pieces, and gets what
    /// else there is.
    ///
    /// # Safety
    /// `last` must drop, or take, every part of the payload once.
    #[cfg(not(loom))]
    #[inline]
    #[allow(unsafe_code)]
    pub unsafe fn let_go(
        event: Shared<Self>,
        last: impl FnOnce(&mut ManuallyDrop<O::Payload>, Rest<O>),
    ) {
        let dismantle = |event: &mut ManuallyDrop<Self>| {
            // All that there is.
            let Self {
                payload,
                state: _,
                tail,
                tree,
            } = &mut **event;
            // SAFETY: of the values here, each is taken once, and none is looked at any more. The
            // payload is the caller's affair.
            unsafe {
                let tail = ptr::read(tail).into_inner();
                let rest = Rest {
                    tail: tail.unwrap_or_else(PoisonError::into_inner),
                    tree: ptr::read(tree),
                };
                last(&mut *ptr::from_mut(payload).cast(), rest);
            }
        };
        // SAFETY: as just said; the state needs no drop.
        unsafe { sync::let_go(event, dismantle) }
    }

    /// The tree that this event's children join.
    fn family(&self) -> Arc<Tree<O>> {
        if let Some(tree) = &self.tree {
            return tree.clone();
        }
        let mut tail = lock(&self.tail);
        let tail = tail.get_or_insert_default();
        if let Some(tree) = &tail.tree {
            return tree.clone();
        }
        self.flag(tail);
        // A settled event is no part of the tree that its late children make.
        let tree = Tree {
            unsettled: AtomicUsize::new(usize::from(!tail.ended)),
            waiters: Mutex::new(Vec::new()),
        };
        tail.tree.insert(Arc::new(tree)).clone()
    }

    /// Makes the last settlement look at the tail, or notes that it has passed by without a reason
    /// to. Returns the state from before; the caller holds the tail's lock.
    fn flag(&self, tail: &mut Tail<O>) -> u32 {
        let before = self.state.fetch_or(TAIL, Ordering::AcqRel);
        // Whoever sets the flag after the end must say so: the next one could not tell such a flag
        // from one that an end, still on its way, has seen.
        tail.ended |= before == 0;
        before
    }

    /// Says to how many lanes the event goes. Called once, before its first delivery can start.
    /// An event for nobody is settled by this; returns whom to wake then.
    #[inline]
    pub fn routed(&self, lanes: usize) -> Woken<O> {
        // The count began with one, for the routing itself.
        match lanes {
            1 => None,
            0 => self.subtract(),
            _ => {
                self.state.fetch_add(lanes as u32 - 1, Ordering::AcqRel);
                None
            }
        }
    }

    /// Remembers where an event went that was accepted before its route was known.
    pub fn set_route(&self, route: Arc<Route<O>>) {
        let mut tail = lock(&self.tail);
        let tail = tail.get_or_insert_default();
        tail.route = Some(route);
        self.flag(tail);
    }

    /// The route that was remembered, if one was.
    pub fn route(&self) -> Option<Arc<Route<O>>> {
        lock(&self.tail)
            .as_ref()
            .and_then(|tail| tail.route.clone())
    }

    /// The events caused by this one, if there are any.
    pub fn tree(&self) -> Option<Arc<Tree<O>>> {
        self.tree
            .clone()
            .or_else(|| lock(&self.tail).as_ref().and_then(|tail| tail.tree.clone()))
    }

    /// Counts the end of the delivery to one lane. Returns whom to wake, with no lock held.
    #[inline]
    pub fn settle(&self, lane: &Lane<O>, outcome: Outcome<O::Failure>) -> Woken<O> {
        if lane.options.passive {
            return None;
        }
        if !matches!(outcome, Outcome::Done) {
            self.note(lane.id, outcome);
        }
        self.subtract()
    }

    /// The same, for who gives the event away afterwards. Mostly nobody else has it: then nobody else
    /// can see its state, and a locked instruction is saved.
    #[inline]
    pub fn settle_last(
        event: &mut Shared<Self>,
        lane: &Lane<O>,
        outcome: Outcome<O::Failure>,
    ) -> Woken<O> {
        if matches!(outcome, Outcome::Done)
            && !lane.options.passive
            && let Some(own) = Shared::get_mut(event)
        {
            let before = own.state.load(Ordering::Relaxed);
            own.state.store(before - 1, Ordering::Relaxed);
            return own.subtracted(before);
        }
        event.settle(lane, outcome)
    }

    #[inline]
    fn subtract(&self) -> Woken<O> {
        self.subtracted(self.state.fetch_sub(1, Ordering::AcqRel))
    }

    #[inline]
    fn subtracted(&self, before: u32) -> Woken<O> {
        debug_assert!(
            before & !TAIL > 0,
            "an event was settled more often than it was routed"
        );
        if before & !TAIL == 1 && (before & TAIL != 0 || self.tree.is_some()) {
            Some(self.end())
        } else {
            None
        }
    }

    #[cold]
    fn note(&self, lane: LaneId, outcome: Outcome<O::Failure>) {
        lock(&self.tail)
            .get_or_insert_default()
            .outcomes
            .push((lane, outcome));
        self.state.fetch_or(TAIL, Ordering::AcqRel);
    }

    #[cold]
    fn end(&self) -> Vec<O::Waker> {
        let (mut wakers, tree) = match lock(&self.tail).as_mut() {
            Some(tail) => {
                tail.ended = true;
                (std::mem::take(&mut tail.waiters), tail.tree.clone())
            }
            None => (Vec::new(), None),
        };
        if let Some(tree) = self.tree.as_ref().or(tree.as_ref()) {
            wakers.extend(tree.settle_one());
        }
        wakers
    }

    /// Whether every delivery has its outcome.
    pub fn settled(&self) -> bool {
        self.state.load(Ordering::Acquire) & !TAIL == 0
    }

    /// Registers a waiter for the settlement, or gives it back if there is nothing to wait for.
    pub fn wait(&self, waker: O::Waker) -> Result<(), O::Waker> {
        let mut tail = lock(&self.tail);
        let tail = tail.get_or_insert_default();
        if self.flag(tail) & !TAIL == 0 {
            return Err(waker);
        }
        tail.waiters.push(waker);
        Ok(())
    }

    /// The outcomes other than "done", so far.
    pub fn outcomes(&self) -> Vec<(LaneId, Outcome<O::Failure>)> {
        lock(&self.tail).as_ref().map_or_else(Vec::new, |tail| {
            tail.outcomes
                .iter()
                .map(|(lane, outcome)| (*lane, outcome.share()))
                .collect()
        })
    }
}

impl<F> Outcome<F> {
    fn share(&self) -> Self {
        match self {
            Self::Done => Self::Done,
            Self::Dead(failure) => Self::Dead(failure.clone()),
            Self::Dropped => Self::Dropped,
            Self::Expired => Self::Expired,
            Self::Filtered => Self::Filtered,
        }
    }
}
