"""The pump between core and engine: plans out while the engine has room, outcomes in, replies to
whoever waits.

Everything here runs on the event loop's thread and needs no lock; `EngineEvents` is what brings
the engine's thread there.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import structlog

from mlxrt.core.answers import Accepted, Replayed
from mlxrt.core.core import Core
from mlxrt.core.model import ModelFacts
from mlxrt.core.step import Mask, StepInput, StepOutcome, StepReply
from mlxrt.engine.base import Engine, EngineDescription
from mlxrt.errors import MlxrtError, Reason
from mlxrt.server.errors import defect
from mlxrt.server.step_watch import StepObserver
from mlxrt.server.waiter import Waiter

_log = structlog.get_logger("mlxrt.server")


class Dispatcher:
    """Accepts steps, feeds the engine and hands replies back.

    Args:
        core: the core; whoever else calls it does so on the same thread and calls `pump` after.
        engine: a started and ready engine.
        now_ms: the monotonic clock that the core is told.
        on_defect: called once with the loss when core or engine break their promises; nothing is
            pumped after.

    Attributes:
        observers: told of each accepted step as it ends, in order. One that raises is reported and
            left out from then on.
    """

    def __init__(
        self,
        core: Core,
        engine: Engine,
        now_ms: Callable[[], int],
        on_defect: Callable[[MlxrtError], None],
    ) -> None:
        self._core = core
        self._engine = engine
        self._now_ms = now_ms
        self._on_defect = on_defect
        self.observers: list[StepObserver] = []
        self._waiters: dict[int, Waiter] = {}
        self._submitted_s: deque[tuple[int, float]] = deque()
        self._outcomes: deque[StepOutcome] = deque()
        self._pumping = False
        self._stopped = False

    def begin(
        self, session_id: str, epoch: int, step: StepInput, trace_id: str = ""
    ) -> tuple[Waiter, bool]:
        """Has the core take the step and starts what can start; answers its run, and whether it is
        a repeat.

        Raises:
            MlxrtError: what Core.accept raises.
        """
        try:
            return self._begin(session_id, epoch, step, trace_id)
        except MlxrtError:
            raise
        except Exception:
            # What the core has taken is waited for, however its call ends: masks for it may be on
            # their way.
            ticket = self._core.inflight_ticket(session_id, step.step_number)
            if ticket is not None:
                self._waiters.setdefault(ticket, Waiter(session_id, step, trace_id))
            raise

    def _begin(
        self, session_id: str, epoch: int, step: StepInput, trace_id: str
    ) -> tuple[Waiter, bool]:
        answer = self._core.accept(session_id, epoch, step, self._now_ms())
        if type(answer) is Accepted:
            waiter = self._waiters[answer.ticket] = Waiter(session_id, step, trace_id)
            self.pump()
            return waiter, False
        if type(answer) is Replayed:
            waiter = Waiter(session_id, step)
            waiter.resolve(answer.reply)
            return waiter, True
        return self._waiters[answer.ticket], True  # type: ignore[union-attr]

    def examine(self) -> None:
        """After a defect: goes on where the core's invariants hold, else gives everything up."""
        if self._stopped:
            return
        try:
            self._core.check_integrity()
        except Exception as error:
            self._on_defect(MlxrtError(Reason.DEVICE_LOST, defect("integrity", error).message))
            return
        self.pump()

    def sample(
        self, session_id: str, epoch: int, step_number: int, masks: Sequence[Mask], digest: bytes
    ) -> tuple[Waiter, bool]:
        """Gives a step that deferred its sampling its masks; answers its run, and whether that is a
        repeat.

        Raises:
            MlxrtError: what Core.sample raises.
        """
        answer = self._core.sample(session_id, epoch, step_number, masks, digest, self._now_ms())
        if type(answer) is Replayed:
            waiter = Waiter(session_id, StepInput(step_number, digest))
            waiter.resolve(answer.reply)
            return waiter, True
        waiter = self._waiters[answer.ticket]  # type: ignore[union-attr]
        self.pump()
        return waiter, type(answer) is not Accepted

    def was_accepted(self, session_id: str, step_number: int) -> bool:
        """As Core.was_accepted."""
        return self._core.was_accepted(session_id, step_number)

    def deliver(self, outcome: StepOutcome) -> None:
        """Takes an outcome from the engine, in the order of the plans."""
        self._outcomes.append(outcome)
        self.pump()

    def pump(self) -> None:
        """Finishes what came back and submits what fits. Reentrant: an engine may answer inside
        `submit`."""
        if self._pumping or self._stopped:
            return
        self._pumping = True
        try:
            while True:
                while self._outcomes:
                    self._finish(self._outcomes.popleft())
                if len(self._submitted_s) >= self._engine.depth:
                    break
                plan = self._core.next_plan(self._now_ms())
                if plan is None:
                    break
                self._submitted_s.append((plan.ticket, time.perf_counter()))
                self._engine.submit(plan)
        except Exception as error:
            self._on_defect(MlxrtError(Reason.DEVICE_LOST, defect("dispatch", error).message))
        finally:
            self._pumping = False

    def oldest_plan_age_s(self) -> float:
        """Seconds since the oldest plan that the engine has was submitted; 0 where it has none."""
        if not self._submitted_s:
            return 0.0
        return time.perf_counter() - self._submitted_s[0][1]

    def stop(self, loss: MlxrtError) -> None:
        """Answers every waiting step with `loss`; nothing commits from now on. Idempotent."""
        self._stopped = True
        waiters, self._waiters = self._waiters, {}
        for waiter in waiters.values():
            self._resolve(waiter, StepReply(waiter.step_number, error=loss))

    def _finish(self, outcome: StepOutcome) -> None:
        submitted, submitted_s = self._submitted_s.popleft()
        assert submitted == outcome.ticket, "outcomes come in the order of the plans"
        waiter = self._waiters.get(outcome.ticket)
        if waiter is not None:
            begun_s = outcome.timings.begun_s or submitted_s
            outcome.timings.queue_us = max(0, int((begun_s - waiter.accepted_s) * 1e6))
        for ticket, reply in self._core.finish(outcome, self._now_ms()):
            waiter = self._waiters.pop(ticket, None)
            if waiter is not None:
                self._resolve(waiter, reply)

    def _resolve(self, waiter: Waiter, reply: StepReply) -> None:
        for observe in tuple(self.observers):
            try:
                observe(waiter, reply)
            except Exception as error:
                defect("observing a step", error)
                self.observers.remove(observe)
        waiter.resolve(reply)


class EngineEvents:
    """EngineListener that carries each event to the event loop's thread, in order.

    Events of that thread itself (an engine without a thread) are handled at once.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        progress: Callable[[float, str], None],
        ready: Callable[[ModelFacts, EngineDescription], None],
        outcome: Callable[[StepOutcome], None],
        lost: Callable[[MlxrtError], None],
    ) -> None:
        self._loop = loop
        self._loop_thread_id = threading.get_ident()
        self._progress, self._ready, self._outcome, self._lost = progress, ready, outcome, lost

    def on_progress(self, fraction: float, activity: str) -> None:
        """As EngineListener."""
        self._carry(self._progress, fraction, activity)

    def on_ready(self, facts: ModelFacts, description: EngineDescription) -> None:
        """As EngineListener."""
        self._carry(self._ready, facts, description)

    def on_outcome(self, outcome: StepOutcome) -> None:
        """As EngineListener."""
        self._carry(self._outcome, outcome)

    def on_lost(self, error: MlxrtError) -> None:
        """As EngineListener."""
        self._carry(self._lost, error)

    def _carry(self, handler: Callable[..., None], *event: Any) -> None:
        if threading.get_ident() == self._loop_thread_id:
            handler(*event)
            return
        try:
            self._loop.call_soon_threadsafe(handler, *event)
        except RuntimeError:
            _log.debug("event after the loop closed", handler=handler.__name__)
