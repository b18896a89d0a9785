"""ironbus: the embedded event bus for Python, with a Rust core."""

import warnings

from ironbus._breaker import CircuitBreaker, CircuitBreakerConfig, CircuitState
from ironbus._core import (
    BatchReceipt,
    Delivery,
    Event,
    Receipt,
    __version__,
    content_key,
    current_delivery,
    debug_build,
)
from ironbus._retry import RetryManager, RetryPolicy
from ironbus._subscriptions import Subscription
from ironbus._waiting import Settlement
from ironbus.bus import EventBus, Idempotency
from ironbus.dead_letters import DeadLetter, DeadLetters, RedriveReport
from ironbus.errors import (
    CircuitOpenError,
    DeadLetterQueueFull,
    DurabilityUnknown,
    Forked,
    HandlerKilledProcess,
    InvalidData,
    InvalidEvent,
    InvalidHandler,
    InvalidHeaders,
    InvalidKey,
    InvalidOption,
    InvalidPattern,
    InvalidPriority,
    InvalidSubscription,
    InvalidTiming,
    InvalidType,
    IronbusError,
    JournalInUse,
    JournalReadOnly,
    NotStarted,
    PayloadCycle,
    PayloadNotEncodable,
    PayloadNotFinite,
    PayloadTooDeep,
    QueueFull,
    Reject,
    RetryLater,
    StorageError,
    Unsettled,
    WouldDeadlock,
    WrongLoop,
)
from ironbus.health import Health, HealthReason, HealthThresholds
from ironbus.priority import EventPriority
from ironbus.streams import Expectation, Stream

if debug_build:
    warnings.warn(
        "ironbus is a debug build and many times slower than a release; build that with `maturin develop --release`",
        RuntimeWarning,
        stacklevel=2,
    )

__all__ = [
    "BatchReceipt",
    "CircuitBreaker",
    "CircuitBreakerConfig",
    "CircuitOpenError",
    "CircuitState",
    "DeadLetter",
    "DeadLetterQueueFull",
    "DeadLetters",
    "Delivery",
    "DurabilityUnknown",
    "Event",
    "EventBus",
    "EventPriority",
    "Expectation",
    "Forked",
    "HandlerKilledProcess",
    "Health",
    "HealthReason",
    "HealthThresholds",
    "Idempotency",
    "InvalidData",
    "InvalidEvent",
    "InvalidHandler",
    "InvalidHeaders",
    "InvalidKey",
    "InvalidOption",
    "InvalidPattern",
    "InvalidPriority",
    "InvalidSubscription",
    "InvalidTiming",
    "InvalidType",
    "IronbusError",
    "JournalInUse",
    "JournalReadOnly",
    "NotStarted",
    "PayloadCycle",
    "PayloadNotEncodable",
    "PayloadNotFinite",
    "PayloadTooDeep",
    "QueueFull",
    "Receipt",
    "RedriveReport",
    "Reject",
    "RetryLater",
    "RetryManager",
    "RetryPolicy",
    "Settlement",
    "StorageError",
    "Stream",
    "Subscription",
    "Unsettled",
    "WouldDeadlock",
    "WrongLoop",
    "__version__",
    "content_key",
    "current_delivery",
]
