//! What stands behind a durable lane, as the gate and the executors see it: somebody who
//! remembers what is settled, and has what the lane has no room for.

use super::clock::Nanos;
use super::priority::Priority;

/// See the module. None of these waits for a disk, and none calls outside code.
pub trait Backing: Send + Sync {
    /// By the gate, for each event of the lane when it is committed, in order: whether the lane
    /// is to be given it now. Where it has no `room`, or is still being given older ones, the
    /// event comes later.
    fn accept(&self, level: Priority, sequence: u64, room: bool) -> bool;

    /// Whether there are events of a level that the lane was not given.
    fn has_more(&self, level: Priority) -> bool;

    /// By an executor: the handler is about to be called.
    fn begin(&self, level: Priority, sequence: u64, attempt: u32);

    /// The delivery has its outcome.
    fn settle(&self, level: Priority, sequence: u64);

    /// The delivery has its outcome, and that is written already.
    fn settled(&self, level: Priority, sequence: u64);

    /// Another attempt follows so many that counted, not before this time has passed.
    fn retry(&self, level: Priority, sequence: u64, attempts: u32, after: Nanos);

    /// The lane was paused, or goes on.
    fn paused(&self);

    /// The handler does not run any more, and has done nothing.
    fn put_back(&self, sequence: u64);

    /// One of a level has been started, or waits for its key or for a time: there may be room for others.
    fn has_room(&self, level: Priority);
}
