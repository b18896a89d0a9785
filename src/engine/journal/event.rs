//! An event as the journal keeps it: text that the caller made, and nothing that it reads.

use std::sync::Arc;

use crate::engine::priority::Priority;
use crate::engine::store::WallSeconds;

/// The first half of the SHA-256 digest of an idempotency key: what the index keeps.
pub type KeyDigest = [u8; 16];

/// An event of the journal.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Event {
    /// Its number, from the gate.
    pub sequence: u64,
    /// Its level.
    pub level: Priority,
    /// Its type.
    pub event_type: Arc<str>,
    /// Its payload as JSON.
    pub data: String,
    /// When it was accepted. The journal sees to it that this never goes back.
    pub accepted: WallSeconds,
    /// When its publisher says that it happened.
    pub timestamp: WallSeconds,
    /// Its id, where it is not made of the journal's identity and the sequence.
    pub event_id: Option<String>,
    /// Who made it, where it is not the default.
    pub source: Option<String>,
    /// What it is ordered by.
    pub key: Option<String>,
    /// Its headers as a JSON object.
    pub headers: Option<String>,
    /// The idempotency key that its publisher gave.
    pub idempotency_key: Option<String>,
    /// The key that duplicates are found by, explicit or of the content.
    pub digest: Option<KeyDigest>,
    /// What it belongs to.
    pub correlation_id: Option<String>,
    /// What it came of.
    pub causation_id: Option<String>,
    /// Not to be delivered before.
    pub due: Option<WallSeconds>,
    /// Not to be delivered after.
    pub expires: Option<WallSeconds>,
}

impl Event {
    /// Whether one of its times is NaN, for which a table has no place.
    pub(super) fn has_no_time(&self) -> bool {
        let perhaps = [self.due, self.expires].into_iter().flatten();
        perhaps
            .chain([self.accepted, self.timestamp])
            .any(f64::is_nan)
    }

    /// About how much memory it takes until it is written.
    pub(super) fn size(&self) -> usize {
        let texts = [
            &self.event_id,
            &self.source,
            &self.key,
            &self.headers,
            &self.idempotency_key,
            &self.correlation_id,
            &self.causation_id,
        ];
        let texts: usize = texts.into_iter().flatten().map(String::len).sum();
        size_of::<Self>() + self.data.len() + texts
    }
}
