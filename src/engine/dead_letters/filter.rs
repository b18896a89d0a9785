//! Which dead letters are meant.

use super::entry::{DeadLetter, Fingerprint};
use crate::engine::store::WallSeconds;
use crate::engine::topic::Topic;

/// Lets through what fits everything that is given; the default lets all through.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Filter {
    /// This one.
    pub id: Option<String>,
    /// Events of this type or pattern.
    pub topic: Option<Topic>,
    /// Deliveries to this subscription.
    pub subscription: Option<String>,
    /// Deliveries to this handler.
    pub handler: Option<String>,
    /// Failures with this type of exception.
    pub exception_type: Option<String>,
    /// Failures of this cause.
    pub fingerprint: Option<Fingerprint>,
    /// Failed for the last time then or later.
    pub since: Option<WallSeconds>,
    /// Failed for the last time before then.
    pub until: Option<WallSeconds>,
}

impl Filter {
    /// Whether an entry is meant.
    pub fn admits(&self, letter: &DeadLetter) -> bool {
        fn fits<T>(wanted: &Option<T>, fits: impl FnOnce(&T) -> bool) -> bool {
            wanted.as_ref().is_none_or(fits)
        }
        fits(&self.id, |id| *id == letter.id)
            && fits(&self.topic, |topic| topic.matches(&letter.event.event_type))
            && fits(&self.subscription, |name| *name == letter.subscription)
            && fits(&self.handler, |name| *name == letter.handler)
            && fits(&self.exception_type, |name| {
                *name == letter.failure.exception_type
            })
            && fits(&self.fingerprint, |cause| *cause == letter.fingerprint)
            && fits(&self.since, |since| letter.last_failure >= *since)
            && fits(&self.until, |until| letter.last_failure < *until)
    }
}
