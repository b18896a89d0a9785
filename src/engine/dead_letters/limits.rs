//! How much a queue keeps, and of an entry how much text.

use super::entry::Failure;
use crate::engine::store::WallSeconds;

/// What happens to a dead letter that comes to a full queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WhenFull {
    /// It is refused, and the bus parks its lane: nothing is lost.
    #[default]
    Refuse,
    /// The oldest entry that nobody holds makes room, and is counted.
    DropOldest,
}

/// The bounds of a queue.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Entries.
    pub max_entries: u64,
    /// Seconds since the last failure; `None`: for ever.
    pub max_age: Option<WallSeconds>,
    /// At `max_entries`.
    pub when_full: WhenFull,
    /// Bytes of a message or of a traceback.
    pub max_text: usize,
    /// Whether exceptions' texts are kept. They can hold values.
    pub messages: bool,
    /// Whether tracebacks are kept.
    pub tracebacks: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_entries: 100_000,
            max_age: None,
            when_full: WhenFull::Refuse,
            max_text: 16 * 1024,
            messages: true,
            tracebacks: true,
        }
    }
}

impl Limits {
    /// Cuts a failure's texts. Of a traceback the end says where it was raised, of a message
    /// the beginning says what.
    pub(super) fn trim(&self, failure: &mut Failure) {
        if !self.messages {
            failure.message.clear();
        } else if failure.message.len() > self.max_text {
            let mut end = self.max_text;
            while !failure.message.is_char_boundary(end) {
                end -= 1;
            }
            let cut = failure.message.len() - end;
            failure.message.truncate(end);
            failure.message.push_str(&format!("… [{cut} bytes cut]"));
        }
        if !self.tracebacks {
            failure.traceback.clear();
        } else if failure.traceback.len() > self.max_text {
            let mut begin = failure.traceback.len() - self.max_text;
            while !failure.traceback.is_char_boundary(begin) {
                begin += 1;
            }
            failure.traceback = format!("[{begin} bytes cut] …{}", &failure.traceback[begin..]);
        }
    }

    /// Entries whose last failure was before this are too old.
    pub(super) fn horizon(&self, now: WallSeconds) -> Option<WallSeconds> {
        self.max_age.map(|age| now - age)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_keeps_its_beginning_and_a_traceback_its_end() {
        let limits = Limits {
            max_text: 5,
            ..Limits::default()
        };
        let mut failure = Failure {
            exception_type: "ValueError".into(),
            message: "1234ä6".into(),
            traceback: "12ä456".into(),
        };
        limits.trim(&mut failure);
        assert_eq!(failure.message, "1234… [3 bytes cut]");
        assert_eq!(failure.traceback, "[2 bytes cut] …ä456");
        limits.trim(&mut Failure::default());
    }

    #[test]
    fn texts_can_be_switched_off_each() {
        let limits = Limits {
            messages: false,
            ..Limits::default()
        };
        let mut failure = Failure {
            exception_type: "E".into(),
            message: "secret".into(),
            traceback: "place".into(),
        };
        limits.trim(&mut failure);
        assert_eq!((&*failure.message, &*failure.traceback), ("", "place"));
        Limits {
            tracebacks: false,
            ..limits
        }
        .trim(&mut failure);
        assert_eq!((&*failure.message, &*failure.traceback), ("", ""));
    }
}
