"""The run of an accepted step: what its calls wait for, and what is seen of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from mlxrt.core.step import StepInput, StepReply


class Waiter:
    """The run of one accepted step, for all calls that wait for it.

    Attributes:
        step: as it was asked for.
        trace_id: of the caller's trace, hexadecimal; empty where there is none.
        reply: None until the step has ended.
    """

    __slots__ = (
        "_listeners", "accepted_s", "reply", "session_id", "step", "step_number", "trace_id",
    )  # fmt: skip

    def __init__(self, session_id: str, step: StepInput, trace_id: str = "") -> None:
        self.session_id = session_id
        self.step = step
        self.step_number = step.step_number
        self.trace_id = trace_id
        self.accepted_s = time.perf_counter()
        self.reply: StepReply | None = None
        self._listeners: list[Callable[[], None]] = []

    def when_done(self, listener: Callable[[], None]) -> None:
        """Calls `listener` once the reply is there; at once where it is."""
        if self.reply is not None:
            listener()
        else:
            self._listeners.append(listener)

    def resolve(self, reply: StepReply) -> None:
        """Sets the reply and tells the listeners."""
        self.reply = reply
        for listener in self._listeners:
            listener()
        self._listeners.clear()

    async def wait(self) -> StepReply:
        """The reply. Cancelling a wait leaves the step and other waits alone."""
        if self.reply is None:
            done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self.when_done(lambda: None if done.done() else done.set_result(None))
            await done
        assert self.reply is not None
        return self.reply
