//! What the engine is generic over: it carries payloads, handlers, failures and
//! wake-ups without knowing what they are.

use super::clock::Nanos;
use super::lane::{Entry, Lane};
use super::sync::Arc;

/// The outside world, as types. The Python binding is one; the tests bring a plain one.
pub trait Ops: Sized + Send + Sync + 'static {
    /// What an event carries. Shared by all its deliveries.
    type Payload: Send + Sync;
    /// What a lane carries for whoever runs it.
    type Handler: Send + Sync;
    /// What a handler raised.
    type Failure: Send + Sync;
    /// Tells one waiting party, once. Called with no lock held.
    type Waker: Wake;
    /// Where lanes with work go to be run.
    type Seat: Seat<Self>;
    /// Who keeps the time for a bus.
    type Alarm: Alarm;
    /// Where deliveries go that failed for good.
    type Sink: Sink<Self>;
}

/// A one-shot wake-up.
pub trait Wake: Send {
    /// Tells the waiting party to look again.
    fn wake(self);
}

/// An executor of handlers, as the engine sees it.
pub trait Seat<O: Ops>: Send + Sync {
    /// The lane has work and is in no executor's hands: run it. Called with no lock held.
    fn schedule(&self, lane: Arc<Lane<O>>);
}

/// The one timer of a bus.
pub trait Alarm: Send + Sync {
    /// Something is due then, and nothing before: [`tick`](super::bus::Bus::tick) the bus. It takes
    /// the place of a later time that was set before. Called with no lock held.
    fn set(&self, due: Nanos);
}

/// Why a delivery failed for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Its attempts are used up.
    Exhausted,
    /// Another attempt would fail as well.
    Final,
    /// Its handler did not want it.
    Rejected,
    /// Its time had passed before it was started.
    Expired,
}

/// A delivery at its end, not settled yet.
pub struct Dying<'a, O: Ops> {
    /// Where.
    pub lane: &'a Arc<Lane<O>>,
    /// What.
    pub entry: &'a Entry<O>,
    /// Why.
    pub cause: Cause,
    /// What its handler raised last; an expired delivery has no failure.
    pub failure: Option<&'a Arc<O::Failure>>,
    /// When.
    pub now: Nanos,
}

/// There is no room, or the letter cannot be kept now for another reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotKept;

/// The dead letter queue, as a bus sees it.
pub trait Sink<O: Ops>: Send + Sync {
    /// Keeps what is left of a delivery. It is settled once this has returned; where it could not be
    /// kept, it stays in its lane, which starts nothing until there is
    /// [room](super::bus::Bus::room_for_letters). Called with no lock held.
    fn keep(&self, dying: &Dying<'_, O>) -> Result<(), NotKept>;
}

/// Wakes them all.
pub fn wake_all<W: Wake>(wakers: impl IntoIterator<Item = W>) {
    wakers.into_iter().for_each(Wake::wake);
}
