//! Dead letters for tests.

use std::time::Duration;

use ironbus::engine::dead_letters::{
    DeadEvent, DeadLetter, DeadLetters, Failure, Filter, Fingerprint, Stored,
};
use ironbus::engine::priority::Priority;
use ironbus::engine::store::{Durability, Options};

pub const NOW: f64 = 1_700_000_000.0;

pub fn options() -> Options {
    Options {
        durability: Durability::Os,
        busy_timeout: Duration::from_secs(60),
        create: true,
    }
}

pub fn letter(id: &str) -> DeadLetter {
    DeadLetter {
        id: id.into(),
        event: DeadEvent {
            event_type: "order.paid".into(),
            data: r#"{"id": 7, "who": "Ä"}"#.into(),
            event_id: format!("event-{id}"),
            timestamp: NOW - 60.0,
            source: "pm_system".into(),
            sequence: Some(12),
            priority: Priority::High,
            key: Some("o-7".into()),
            headers: Some(r#"{"trace": "1"}"#.into()),
            idempotency_key: Some("pay-7".into()),
            correlation_id: Some("c".into()),
            causation_id: None,
        },
        subscription: "bill".into(),
        handler: "shop.bill".into(),
        failure: failure("first"),
        attempts: 3,
        first_failure: NOW - 10.0,
        last_failure: NOW,
        fingerprint: Fingerprint::of("bill", "ValueError", "bill.py:7 in bill"),
        redrivable_in_process_only: false,
    }
}

pub fn failure(message: &str) -> Failure {
    Failure {
        exception_type: "ValueError".into(),
        message: message.into(),
        traceback: "bill.py:7 in bill".into(),
    }
}

pub fn all(queue: &dyn DeadLetters) -> Vec<Stored> {
    queue
        .page(&Filter::default(), 0, usize::MAX)
        .expect("a page")
}
