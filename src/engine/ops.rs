//! What the engine is generic over: it carries payloads, handlers, failures and
//! wake-ups without knowing what they are.

use super::clock::Nanos;
use super::lane::{Entry, Lane};
use super::settlement::Outcome;
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

    /// Tells many at once, for who can do that for less.
    fn wake_many(wakers: Vec<Self>)
    where
        Self: Sized,
    {
        wakers.into_iter().for_each(Self::wake);
    }
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

/// Why a delivery is at its end.
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
    /// It was of a [dead letter](super::lane::Letter), and its handler has succeeded.
    Done,
    /// It was of a dead letter, and the subscription's filter does not want it.
    Filtered,
}

/// A delivery at its end that has to do with dead letters, not settled yet. Its lane takes it for
/// one that runs.
pub struct Dying<O: Ops> {
    /// Where.
    pub lane: Arc<Lane<O>>,
    /// What.
    pub entry: Entry<O>,
    /// Why.
    pub cause: Cause,
    /// What its handler raised last, if it failed.
    pub failure: Option<Arc<O::Failure>>,
    /// It was refused before, and the lane has waited for room.
    pub again: bool,
    /// The letter and the settlement are written as one: set by who does that.
    pub as_one: bool,
    /// How long the handler ran; none if it was not called.
    pub work: Option<Nanos>,
    /// When.
    pub at: Nanos,
    /// How often the bus had heard of room for letters by then.
    pub(super) heard: usize,
}

impl<O: Ops> Dying<O> {
    /// How it is settled once its letter is kept.
    pub(super) fn outcome(&self) -> Outcome<O::Failure> {
        match (&self.failure, self.cause) {
            (Some(failure), _) => Outcome::Dead(failure.clone()),
            (None, Cause::Done) => Outcome::Done,
            (None, Cause::Filtered) => Outcome::Filtered,
            (None, _) => Outcome::Expired,
        }
    }
}

/// What a dead letter queue has done with a delivery at its end.
pub enum Kept<O: Ops> {
    /// The queue is as it should be: settle it.
    Now(Box<Dying<O>>),
    /// Somebody writes, and says [`Bus::letter_kept`](super::bus::Bus::letter_kept) when that is over.
    Later,
    /// There is no room, or the letter cannot be kept now for another reason.
    Not(Box<Dying<O>>),
}

/// The dead letter queue, as a bus sees it.
pub trait Sink<O: Ops>: Send + Sync {
    /// Keeps what is left of a delivery; where the delivery was of a dead letter, writes down in the
    /// queue how it went. It is settled after that. A letter that is not kept goes back to its lane, which
    /// starts nothing until there is [room](super::bus::Bus::room_for_letters). Called with no lock
    /// held, on the executor's thread, which must not wait for a file.
    fn keep(&self, dying: Box<Dying<O>>) -> Kept<O>;
}

/// Wakes them all.
pub fn wake_all<W: Wake>(wakers: impl IntoIterator<Item = W>) {
    wakers.into_iter().for_each(Wake::wake);
}
