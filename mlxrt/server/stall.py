"""Makes a hung device visible: NOT_SERVING while a step takes longer than any should, or the
engine's thread shows no life."""

from __future__ import annotations

import asyncio

import structlog

from mlxrt.engine.base import Engine
from mlxrt.server.dispatch import Dispatcher
from mlxrt.server.lifecycle import Lifecycle

LOOKS_PER_LIMIT = 10
IDLE_SLACK_S = 5.0
"""What an idle engine's heartbeat may be older than the limit: it beats only now and then."""
_log = structlog.get_logger("mlxrt.server")


class StallWatch:
    """Looks at the engine's heartbeat, more closely while a plan is with it.

    Nothing else follows from a stall: steps may still end, and then health is as before.

    Args:
        limit_s: age of the heartbeat, and of the oldest plan, that is a stall, seconds.
    """

    def __init__(
        self, engine: Engine, dispatcher: Dispatcher, lifecycle: Lifecycle, limit_s: float
    ) -> None:
        self._engine = engine
        self._dispatcher = dispatcher
        self._lifecycle = lifecycle
        self._limit_s = limit_s

    async def run(self) -> None:
        """Watches until cancelled."""
        while True:
            self.look()
            await asyncio.sleep(self._limit_s / LOOKS_PER_LIMIT)

    def look(self) -> None:
        """Tells the lifecycle whether the engine stalls."""
        age_s = self._engine.heartbeat_age_s()
        in_a_plan = self._dispatcher.oldest_plan_age_s() > self._limit_s
        stalled = age_s > self._limit_s + (0.0 if in_a_plan else IDLE_SLACK_S)
        if stalled != self._lifecycle.stalled:
            _log.error("the engine stalls" if stalled else "the engine goes on", age_s=age_s)
            self._lifecycle.set_stalled(stalled)
