//! What a dead letter says. Payloads are text that the caller made; nothing here reads it.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest as _, Sha256};

use super::limits::Limits;
use crate::engine::priority::Priority;
use crate::engine::store::WallSeconds;

/// The event of a dead letter.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DeadEvent {
    /// Its type.
    pub event_type: String,
    /// Its payload as JSON; where it has none, as what text it has.
    pub data: String,
    /// Its id.
    pub event_id: String,
    /// When it was made.
    pub timestamp: WallSeconds,
    /// Who made it.
    pub source: String,
    /// Its number, if it came through a bus.
    pub sequence: Option<u64>,
    /// Its level.
    pub priority: Priority,
    /// The key that its order is by.
    pub key: Option<String>,
    /// Its headers as a JSON object.
    pub headers: Option<String>,
    /// The key that its uniqueness is by.
    pub idempotency_key: Option<String>,
    /// What it belongs to.
    pub correlation_id: Option<String>,
    /// What it came of.
    pub causation_id: Option<String>,
}

/// How a handler failed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Failure {
    /// The exception's type, with its module.
    pub exception_type: String,
    /// Its text.
    pub message: String,
    /// Where it came from.
    pub traceback: String,
}

/// A delivery that failed for good.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DeadLetter {
    /// What it is found by: unique in its queue.
    pub id: String,
    /// What was delivered.
    pub event: DeadEvent,
    /// To which subscription.
    pub subscription: String,
    /// To which handler.
    pub handler: String,
    /// Its last failure.
    pub failure: Failure,
    /// How often it was tried.
    pub attempts: u64,
    /// When it failed for the first time.
    pub first_failure: WallSeconds,
    /// When it failed for the last time.
    pub last_failure: WallSeconds,
    /// The same for failures of the same cause.
    pub fingerprint: Fingerprint,
    /// The payload has no JSON: only the process that has the object can deliver it again.
    pub redrivable_in_process_only: bool,
}

/// A dead letter in its queue.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored {
    /// Its place: later entries have higher ones, and none is given twice.
    pub position: u64,
    /// The entry.
    pub letter: DeadLetter,
}

/// What failures of one cause share: a hash of names and places, never of values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Fingerprint(pub u64);

impl Fingerprint {
    /// Of a failure in this subscription with this type of exception, raised at this place
    /// (file, function and line, as the traceback has them).
    ///
    /// ```
    /// use ironbus::engine::dead_letters::Fingerprint;
    ///
    /// let here = Fingerprint::of("bill", "ValueError", "bill.py:7 in bill");
    /// assert_eq!(here, here.to_string().parse().unwrap());
    /// assert_ne!(here, Fingerprint::of("bill", "KeyError", "bill.py:7 in bill"));
    /// ```
    pub fn of(subscription: &str, exception_type: &str, place: &str) -> Self {
        let mut hash = Sha256::new();
        for part in [subscription, exception_type, place] {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        let mut first = [0; 8];
        first.copy_from_slice(&hash.finalize()[..8]);
        Self(u64::from_be_bytes(first))
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// A text that is not 16 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a fingerprint is 16 hexadecimal digits")]
pub struct NoFingerprint;

impl FromStr for Fingerprint {
    type Err = NoFingerprint;

    fn from_str(text: &str) -> Result<Self, NoFingerprint> {
        if text.len() != 16 || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(NoFingerprint);
        }
        u64::from_str_radix(text, 16)
            .map(Self)
            .map_err(|_| NoFingerprint)
    }
}

impl DeadLetter {
    /// Takes the same entry's newer failure over into this one.
    pub(super) fn fail_again(&mut self, newer: DeadLetter) {
        *self = DeadLetter {
            attempts: self.attempts.saturating_add(newer.attempts),
            first_failure: self.first_failure,
            ..newer
        };
    }

    /// Takes the failure of a redrive over.
    pub(crate) fn redriven(
        &mut self,
        mut failure: Failure,
        fingerprint: Fingerprint,
        attempts: u64,
        now: WallSeconds,
        limits: &Limits,
    ) {
        limits.trim(&mut failure);
        self.failure = failure;
        self.fingerprint = fingerprint;
        self.attempts = self.attempts.saturating_add(attempts);
        self.last_failure = now;
    }
}
