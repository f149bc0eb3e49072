"""Waiting for what another thread or process does, on machines of any speed."""

from __future__ import annotations

import time
from collections.abc import Callable

_LOOK_INTERVAL_S = 0.005


def wait_until(condition: Callable[[], object], limit_s: float = 60.0) -> None:
    """Returns once `condition()` is true.

    Args:
        limit_s: what nobody waits for: long enough that a slow machine does not meet it.

    Raises:
        AssertionError: it did not come true within the limit.
    """
    end_s = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end_s, f"not true after {limit_s} s"
        time.sleep(_LOOK_INTERVAL_S)
