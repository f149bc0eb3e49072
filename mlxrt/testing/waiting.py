"""Waiting for what another thread or process does, on machines of any speed."""

from __future__ import annotations

import time
from collections.abc import Callable

_LOOK_INTERVAL_S = 0.005


def wait_until(condition: Callable[[], object], limit_s: float = 60.0) -> None:
    """Returns once `condition()` is true.

    Args:
        limit_s: what nobody waits for: long enough that a slow machine does not meet it. Counted
            in looks, so that a machine that stands still in between does not either.

    Raises:
        AssertionError: it did not come true within the limit.
    """
    looks_left = round(limit_s / _LOOK_INTERVAL_S)
    while not condition():
        looks_left -= 1
        assert looks_left > 0, f"not true after {limit_s} s"
        time.sleep(_LOOK_INTERVAL_S)
