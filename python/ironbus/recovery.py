"""Retries, circuit breakers and dead letters: the ``recovery`` half of the ``pm.events`` API."""

from __future__ import annotations

from ironbus._breaker import CircuitBreaker, CircuitBreakerConfig, CircuitState
from ironbus._retry import RetryManager, RetryPolicy

__all__ = [
    "CircuitBreaker",
    "CircuitBreakerConfig",
    "CircuitState",
    "RetryManager",
    "RetryPolicy",
]
