//! What the engine is generic over: it carries payloads, handlers, failures and
//! wake-ups without knowing what they are.

use super::lane::Lane;
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

/// Wakes them all.
pub fn wake_all<W: Wake>(wakers: impl IntoIterator<Item = W>) {
    wakers.into_iter().for_each(Wake::wake);
}
