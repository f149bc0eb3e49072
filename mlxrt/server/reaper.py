"""Ends sessions whose lease has run out, and knows when its own sleep is to blame."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import structlog

from mlxrt.server.runtime import Runtime

LOOK_INTERVAL_MIN_MS = 20
LOOK_INTERVAL_MS = 1_000
"""Shortest and longest time between two looks, ms."""
JUMP_MS = 5_000
"""A look that comes this much late, or a wall clock this far ahead of the monotonic one, was a
sleep of the machine."""
LATE_MS = 200
"""A look that comes this much late was kept from its time, and so were the renewals before it."""
LATE_MAX_MS = 5_000
"""Where one look after the other is late, this long after the first of them nothing is held back
any more: on a machine that is always busy leases end too."""

_log = structlog.get_logger("mlxrt.server")


def monotonic_ms() -> int:
    """Milliseconds of the monotonic clock."""
    return time.monotonic_ns() // 1_000_000


def wall_ms() -> int:
    """Milliseconds of the wall clock."""
    return time.time_ns() // 1_000_000


class Reaper:
    """Calls Core.expire when it is due.

    After a sleep of machine or process, renewals that clients sent meanwhile are still unread, so
    nothing expires for one grace period; after a shorter stop, for as long as that was.

    Args:
        grace_ms: the grace period after a sleep.
        wall_clock_ms: only ever compared with the monotonic clock.

    Attributes:
        graces: sleeps noticed.
    """

    def __init__(
        self, runtime: Runtime, grace_ms: int, wall_clock_ms: Callable[[], int] = wall_ms
    ) -> None:
        self.graces = 0
        self._runtime = runtime
        self._grace_ms = grace_ms
        self._wall_clock_ms = wall_clock_ms
        self._hold_until_ms = 0
        self._late_since_ms: int | None = None
        self._looked_ms = runtime.now_ms()
        self._looked_wall_ms = wall_clock_ms()
        self._planned_ms = self._looked_ms

    async def run(self) -> None:
        """Reaps until cancelled."""
        while True:
            wait_ms = self.look()
            await asyncio.sleep(wait_ms / 1000)

    def look(self) -> int:
        """Ends what has expired; answers the milliseconds until the next look."""
        now_ms, now_wall_ms = self._runtime.now_ms(), self._wall_clock_ms()
        self._notice_sleep(now_ms, now_wall_ms)
        core = self._runtime.core
        if now_ms >= self._hold_until_ms:
            for ended in self._runtime.expire(now_ms):
                _log.warning(
                    "lease expired", session_id=ended.session_id, client_name=ended.client_name,
                    freed_blocks=sum(ended.freed_block_counts.values()),
                    released_sequences=ended.released_sequence_count,
                )  # fmt: skip
        due_ms = core.next_expiry_ms()
        wait_ms = LOOK_INTERVAL_MS
        if due_ms is not None:
            due_ms = max(due_ms, self._hold_until_ms)
            wait_ms = max(LOOK_INTERVAL_MIN_MS, min(LOOK_INTERVAL_MS, due_ms - now_ms))
        self._looked_ms, self._looked_wall_ms = now_ms, now_wall_ms
        self._planned_ms = now_ms + wait_ms
        return wait_ms

    def _notice_sleep(self, now_ms: int, now_wall_ms: int) -> None:
        late_ms = now_ms - self._planned_ms
        slept_ms = (now_wall_ms - self._looked_wall_ms) - (now_ms - self._looked_ms)
        if max(late_ms, slept_ms) >= JUMP_MS:
            self.graces += 1
            self._hold_until_ms = now_ms + self._grace_ms
            _log.warning("woke from a sleep; leases get a grace", grace_ms=self._grace_ms)
        elif late_ms >= LATE_MS:
            if self._late_since_ms is None:
                self._late_since_ms = now_ms
            if now_ms - self._late_since_ms < LATE_MAX_MS:
                self._hold_until_ms = max(self._hold_until_ms, now_ms + late_ms)
            return
        self._late_since_ms = None
