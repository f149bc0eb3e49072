"""The way down: health first, then what is new, then what runs, then sessions, then the engine.

1. DRAINING: health says NOT_SERVING, new sessions and new sequences are refused; what is
   registered goes on.
2. Once no session holds a block and no step is in flight, or after `drain_seconds`, every further
   call is refused.
3. Accepted steps run to their end, but for those that wait for masks, which can't come any more:
   they are discarded with their sessions. Then all sessions are closed, streams and watches end,
   the engine is closed.
"""

from __future__ import annotations

import asyncio

import structlog

from mlxrt.server.lifecycle import Lifecycle, ServerState
from mlxrt.server.runtime import Runtime

_POLL_S = 0.02
_log = structlog.get_logger("mlxrt.server")


class Drain:
    """Steps 1 to 3 up to the sessions; the rest is the server's.

    Args:
        limit_s: the longest time for step 1, seconds.
    """

    def __init__(self, lifecycle: Lifecycle, limit_s: float) -> None:
        self._lifecycle = lifecycle
        self._limit_s = limit_s
        self._hurried = asyncio.Event()

    def hurry(self) -> None:
        """Ends step 1 now."""
        self._hurried.set()

    async def run(self, runtime: Runtime | None) -> None:
        """Drains; returns when no session is left, or early where the device is lost or stalls.

        Args:
            runtime: None while the model is still loading; there is nothing to wait for then.
        """
        self._lifecycle.move_to(ServerState.DRAINING)
        if runtime is None:
            return
        _log.info("draining", limit_s=self._limit_s, sessions=runtime.core.session_count())
        deadline_s = asyncio.get_running_loop().time() + self._limit_s
        while not (runtime.holds_nothing or self._over(deadline_s)):
            await self._moment()
        self._lifecycle.closed = True
        while runtime.core.inflight_count() and not self._lost and not self._lifecycle.stalled:
            self._close_sessions(runtime)
            await self._moment()
        if not self._lost:
            self._close_sessions(runtime)

    def _over(self, deadline_s: float) -> bool:
        late = asyncio.get_running_loop().time() >= deadline_s
        return late or self._hurried.is_set() or self._lost

    async def _moment(self) -> None:
        await asyncio.sleep(_POLL_S)

    @property
    def _lost(self) -> bool:
        return self._lifecycle.state is ServerState.FAILED

    def _close_sessions(self, runtime: Runtime) -> None:
        """Ends every session for which nothing runs."""
        for ended in runtime.drain():
            _log.info(
                "session closed by the drain", session_id=ended.session_id,
                client_name=ended.client_name,
                freed_blocks=sum(ended.freed_block_counts.values()),
            )  # fmt: skip
