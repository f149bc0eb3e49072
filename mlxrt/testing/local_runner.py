"""Core and engine in one process, without a server: for benchmarks, checks and tests."""

from __future__ import annotations

import queue
import time
from typing import Any

from mlxrt.core.answers import SessionRef
from mlxrt.core.core import Core
from mlxrt.core.model import Limits, ModelFacts
from mlxrt.core.step import Mask, StepInput, StepOutcome, StepReply
from mlxrt.engine.base import Engine, EngineDescription
from mlxrt.errors import MlxrtError


class LocalRunner:
    """One session of a core over an engine; steps may overlap. One thread drives it.

    Attributes:
        core, ref: the core and its one session.
        facts, description: what the engine said of itself.
    """

    def __init__(self, engine: Engine, limits: Limits) -> None:
        """Starts the engine; returns once it is warm.

        Raises:
            MlxrtError: loading failed.
        """
        self._answers: queue.SimpleQueue[StepOutcome | MlxrtError] = queue.SimpleQueue()
        self._ready: queue.SimpleQueue[tuple[ModelFacts, EngineDescription] | MlxrtError] = (
            queue.SimpleQueue()
        )
        self._engine = engine
        engine.start(self)
        ready = self._ready.get()
        if isinstance(ready, MlxrtError):
            raise ready
        self.facts, self.description = ready
        self.core = Core(self.facts, limits)
        self.ref: SessionRef = self.core.open_session(
            "local", limits.max_lease_ttl_ms, "local",
            session_id="0" * 32, session_seed=1, now_ms=now_ms(),
        ).session  # fmt: skip
        self._number = 0
        self._leases = 0

    def allocate(self, block_count: int, group: int = 0) -> list[int]:
        """Leases blocks."""
        self._leases += 1
        request_id = f"local-{self._leases}"
        return self.core.allocate_blocks(self.ref, request_id, {group: block_count}, now_ms())[
            group
        ]

    def submit(self, **content: Any) -> None:
        """Accepts one step, the fields of StepInput by name, and hands it to the engine.

        Raises:
            MlxrtError: the step was refused.
        """
        number = self._number + 1
        step = StepInput(number, number.to_bytes(8, "little"), **content)
        self.core.accept(self.ref.session_id, self.ref.epoch, step, now_ms())
        self._number = number
        self._hand_over()

    def sample(self, *masks: Mask) -> None:
        """Gives the last step, submitted with `deferred`, its masks.

        Raises:
            MlxrtError: they were refused.
        """
        digest = repr(masks).encode()
        ref = self.ref
        self.core.sample(ref.session_id, ref.epoch, self._number, masks, digest, now_ms())
        self._hand_over()

    def _hand_over(self) -> None:
        while (plan := self.core.next_plan(now_ms())) is not None:
            self._engine.submit(plan)

    def finish(self) -> StepReply:
        """Waits for the oldest step, commits it and answers its reply.

        Raises:
            MlxrtError: the step failed, or the engine is lost.
        """
        replies: list[tuple[int, StepReply]] = []
        while not replies:
            outcome = self._answers.get()
            if isinstance(outcome, MlxrtError):
                raise outcome
            replies = self.core.finish(outcome, now_ms())
        ((_, reply),) = replies
        if reply.error is not None:
            raise reply.error
        return reply

    def run(self, **content: Any) -> StepReply:
        """`submit`, then `finish`."""
        self.submit(**content)
        return self.finish()

    def memory_table(self) -> str:
        """The engine's memory plan for people; empty for an engine without one."""
        plan = getattr(self._engine, "memory_plan", None)
        return "" if plan is None else str(plan.table())

    def close(self) -> None:
        """Closes the engine."""
        self._engine.close()

    def on_progress(self, fraction: float, activity: str) -> None:
        """As EngineListener."""

    def on_ready(self, facts: ModelFacts, description: EngineDescription) -> None:
        """As EngineListener."""
        self._ready.put((facts, description))

    def on_outcome(self, outcome: StepOutcome) -> None:
        """As EngineListener."""
        self._answers.put(outcome)

    def on_lost(self, error: MlxrtError) -> None:
        """As EngineListener."""
        self._ready.put(error)
        self._answers.put(error)


def now_ms() -> int:
    """The monotonic clock, milliseconds."""
    return time.monotonic_ns() // 1_000_000
