"""Unary calls of a simulated client: repeated with the same bytes until there is an answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from mlxrt.errors import MlxrtError, Reason
from mlxrt.testing.simulation.clock import Event, EventQueue
from mlxrt.testing.simulation.network import Network, Outcome

ATTEMPT_US = 400_000
ATTEMPTS_MAX = 12
RETRIED = {Reason.LOADING, Reason.DRAINING, Reason.NO_FREE_BLOCKS, Reason.TOO_MANY_SESSIONS}
LOST = {"SESSION_UNKNOWN", "EPOCH_STALE", "DEVICE_LOST"}


class Answer:
    """Future of one step, as StepWindow wants it; calls back at once."""

    def __init__(
        self, on_result: Callable[[Any], None], on_failure: Callable[[Any], None]
    ) -> None:
        self._on_result = on_result
        self._on_failure = on_failure
        self._done = False

    def done(self) -> bool:
        """As Future."""
        return self._done

    def set_result(self, result: Any, /) -> None:
        """As Future."""
        self._done = True
        self._on_result(result)

    def set_exception(self, exception: Any, /) -> None:
        """As Future."""
        self._done = True
        self._on_failure(exception)


class Caller:
    """A client that can call, most calls one at a time.

    Attributes:
        made: how often each thing was done.
        reasons: refusals and failures met, by reason.
    """

    def __init__(self, name: str, queue: EventQueue, network: Network) -> None:
        self.name = name
        self.made: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self._queue = queue
        self._network = network
        self._life = 0
        self._ids = 0
        self._busy = self._synced = False

    def _lose(self) -> None:
        """Lets the session go."""
        raise NotImplementedError

    def _request_id(self) -> str:
        self._ids += 1
        return f"{self.name}-{self._ids}"

    def _call(
        self, rpc: str, request: Any, then: Callable[[bytes], None],
        refused: Callable[[MlxrtError], None] | None = None, *, alone: bool = True,
    ) -> None:  # fmt: skip
        """Calls until there is an answer, with the same bytes; no other calls that are `alone`
        meanwhile."""
        data = request if isinstance(request, bytes) else request.SerializeToString()
        life, state = self._life, {"done": False, "attempt": 0}
        self._busy = self._busy or alone
        timer: list[Event] = []

        def attempt() -> None:
            if state["done"] or life != self._life:
                return
            state["attempt"] += 1
            if state["attempt"] > ATTEMPTS_MAX:
                self._lose()
                return
            timer[:] = [self._queue.after(ATTEMPT_US, attempt)]
            self._network.call(rpc, data, on_outcome)

        def on_outcome(outcome: Outcome) -> None:
            if state["done"] or life != self._life or isinstance(outcome, str):
                return
            if isinstance(outcome, MlxrtError):
                self.reasons[outcome.reason.name] += 1
                if outcome.reason in RETRIED and refused is None:
                    return
            state["done"] = True
            timer[0].cancel()
            self._busy = self._busy and not alone
            if isinstance(outcome, bytes):
                then(outcome)
            elif refused is not None:
                refused(outcome)
            elif outcome.reason.name in LOST:
                self._lose()
            else:
                self._synced = False

        attempt()
