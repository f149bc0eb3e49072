"""One log line now and then that says what the server did; none while it does nothing."""

from __future__ import annotations

import asyncio

import structlog

from mlxrt.server.runtime import Runtime

INTERVAL_S = 10.0
_log = structlog.get_logger("mlxrt.server")


class Summary:
    """Logs what happened since the last line.

    Args:
        interval_s: time between two lines, seconds.
    """

    def __init__(self, runtime: Runtime, interval_s: float = INTERVAL_S) -> None:
        self._runtime = runtime
        self._interval_s = interval_s
        self._told = self._totals()

    async def run(self) -> None:
        """Logs until cancelled."""
        while True:
            await asyncio.sleep(self._interval_s)
            self.tell()

    def tell(self) -> bool:
        """Logs one line if there is something to say; answers whether there was."""
        totals = self._totals()
        news = {name: count - self._told[name] for name, count in totals.items()}
        self._told = totals
        if not any(news.values()):
            return False
        core = self._runtime.core
        _log.info(
            "served", **{name: count for name, count in news.items() if count},
            seconds=self._interval_s, sessions=core.session_count(),
            inflight_steps=core.inflight_count(), free_blocks=core.free_blocks_by_group(),
        )  # fmt: skip
        return True

    def _totals(self) -> dict[str, int]:
        counters = self._runtime.core.counters
        return {
            "steps": counters.steps_committed,
            "steps_discarded": counters.steps_discarded,
            "steps_replayed": counters.steps_replayed,
            "sequences_failed": sum(counters.sequences_failed.values()),
            "leases_expired": counters.sessions_expired,
        }
