"""The lines that the native code writes to the log ``ironbus``.

They carry types, names, numbers and locations; never a payload, and never the
message of a handler's exception, which may quote one.
"""

from __future__ import annotations

import _thread
import logging
import traceback
from collections.abc import Mapping

logger = logging.getLogger("ironbus")

#: The interpreter ends, and handlers on threads are ended with it.
leaving = False


def place(error: BaseException) -> str:
    """Where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    return f" at {frames[-1].filename}:{frames[-1].lineno} in {frames[-1].name}" if frames else ""


def handler_failed(
    subscription: str, event_type: str, sequence: int, attempt: int, error: BaseException, again: float | None
) -> None:
    """A handler failed, for good or until ``again`` seconds later. Called from the thread that ran it."""
    logger.log(
        logging.ERROR if again is None else logging.WARNING,
        "handler %s failed on event %d of type %r (attempt %d%s): %s%s",
        subscription,
        sequence,
        event_type,
        attempt,
        "" if again is None else f", the next one in {round(again, 3):g} s",
        type(error).__qualname__,
        place(error),
        extra={"subscription": subscription, "sequence": sequence, "event_type": event_type, "attempt": attempt},
    )


def parked(subscription: str, sequence: int, reason: str) -> None:
    """A dead letter could not be kept; its subscription starts nothing until it can."""
    logger.error(
        "subscription %s is parked: the dead letter of event %d could not be kept: %s", subscription, sequence, reason
    )


def not_settled(subscription: str, sequence: int, reason: str) -> None:
    """A handler has succeeded, and what it left in transactions could not be written; it is called again."""
    logger.error(
        "subscription %s is not through with event %d and gets it again; what its handler left was not written: %s",
        subscription,
        sequence,
        reason,
    )


def unreadable(subscription: str, reason: str) -> None:
    """The journal could not be read for a subscription; it goes on with what it has, and after the next start."""
    logger.error("subscription %s cannot be given what is in the journal: %s", subscription, reason)


def subscription_expired(subscription: str) -> None:
    """A subscription that nobody has had for ``absent_ttl`` seconds is let go of, with all that it had still to do."""
    logger.warning(
        "subscription %s has been absent for absent_ttl: the journal has let go of it, and of what it had to do",
        subscription,
        extra={"subscription": subscription},
    )


def upkeep_failed(reason: str) -> None:
    """Old events stay in the journal. It is tried again; said once until it succeeds."""
    logger.error("the journal could not let go of old events, and tries again: %s", reason)


def dead_letter_unchanged(subscription: str, sequence: int, letter_id: str, reason: str) -> None:
    """A dead letter was delivered again, and its queue could not be told how that went."""
    logger.error(
        "handler %s is through with event %d, and its dead letter %s stays as it is: %s",
        subscription,
        sequence,
        letter_id,
        reason,
    )


def handler_ended_the_program(subscription: str, sequence: int, kind: str) -> None:
    """A handler raised SystemExit or KeyboardInterrupt; its subscription is held until the next start."""
    if leaving:
        return
    logger.error(
        "handler %s raised %s on event %d: the event is kept; the subscription is paused until resume() or a new start",
        subscription,
        kind,
        sequence,
    )


def circuit_changed(name: str, old: str, new: str) -> None:
    """A circuit breaker has changed its state. Called from the thread that made the change."""
    level = logging.WARNING if new == "open" else logging.INFO
    logger.log(level, "circuit breaker %r: %s -> %s", name, old, new, extra={"circuit": name, "state": str(new)})


def listener_failed(name: str, error: BaseException) -> None:
    """A listener of a circuit breaker raised; the breaker and the other listeners go on."""
    logger.error("a listener of circuit breaker %r failed: %s%s", name, type(error).__qualname__, place(error))
    if isinstance(error, KeyboardInterrupt):
        # It came while the listener ran, and is meant for the program.
        _thread.interrupt_main()


def journal_damaged(path: str, fault: Mapping[str, object]) -> None:
    """Events of a journal could not be read, and were left out."""
    if fault["what"] == "damaged":
        where = f"event {fault['sequence']} is damaged"
    else:
        where = f"events of priority {fault['priority']} after {fault['after']} up to {fault['through']} are missing"
    logger.error("journal %s: %s; restore a backup to see what was there", path, where)
