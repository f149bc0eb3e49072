"""When to try again, and after how long. Pure: the caller has the clock and does the waiting."""

from __future__ import annotations

from dataclasses import dataclass

from mlxrt_client.errors import MlxrtError, TransportError, UnavailableError

RETRIED_CODES = frozenset({1, 2, 4, 13, 14})
"""Status codes of a broken transport or a dying server, when they come without an mlxrt error:
CANCELLED, UNKNOWN, DEADLINE_EXCEEDED, INTERNAL (a reset stream), UNAVAILABLE."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How long to keep trying. Each call of the contract may be repeated: none ever acts twice."""

    patience_s: float = 30.0
    """Seconds of failure in a row after which the error is raised; 0 never tries again."""

    initial_delay_s: float = 0.05
    """Wait before the first repeat; it doubles with each."""

    maximum_delay_s: float = 2.0
    """The longest wait, unless the server asks for a longer one."""

    attempt_timeout_s: float | None = 20.0
    """Time limit of one attempt of a call that runs no step; None for no limit. Steps have none."""


CLOSE_PATIENCE_S = 2.0
"""Longest time that closing a session is tried: its lease ends anyway."""

SETTLE_INTERVAL_S = 0.01
"""Time between two looks whether the steps of a session taken over have ended."""


class Retry:
    """The course of one call, or of one stream between two answers."""

    def __init__(self, policy: RetryPolicy) -> None:
        self._policy = policy
        self._failing_since_s: float | None = None
        self._next_delay_s = policy.initial_delay_s

    def succeeded(self) -> None:
        """Forgets earlier failures."""
        self._failing_since_s = None
        self._next_delay_s = self._policy.initial_delay_s

    def delay_s(self, error: MlxrtError, now_s: float) -> float | None:
        """Returns the wait before the next attempt, or None where `error` is to be raised.

        Args:
            error: what the last attempt ended with.
            now_s: a monotonic clock's reading.
        """
        if not is_transient(error):
            return None
        if self._failing_since_s is None:
            self._failing_since_s = now_s
        delay_s = max(self._next_delay_s, error.retry_delay_s or 0.0)
        self._next_delay_s = min(2 * self._next_delay_s, self._policy.maximum_delay_s)
        if now_s + delay_s - self._failing_since_s > self._policy.patience_s:
            return None
        return delay_s


def is_transient(error: MlxrtError) -> bool:
    """Returns whether the same call may succeed later without anybody's doing."""
    if isinstance(error, TransportError):
        return error.code in RETRIED_CODES
    return isinstance(error, UnavailableError)
