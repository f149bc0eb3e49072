"""The way between clients and server: messages are lost, late, doubled, out of order; connections
are cut, both ways or one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from mlxrt.errors import MlxrtError
from mlxrt.testing.simulation.clock import EventQueue
from mlxrt.testing.simulation.server import ServerStream, SimulatedServer

UNREACHABLE = "unreachable"
"""What a call or stream ends with that the transport ended."""
Outcome = bytes | MlxrtError | str


@dataclass(slots=True)
class NetworkFaults:
    """Chances per message: lost, very late, doubled; and of a stream's that it is cut, one way or
    both. `late_us` is the longest of the very late."""

    lose: float = 0.0
    delay: float = 0.0
    double: float = 0.0
    cut: float = 0.0
    late_us: int = 3_000_000


class Network:
    """Carries bytes.

    Attributes:
        server: what answers now; None while there is none.
        lost, delayed, doubled, cuts: counts.
    """

    def __init__(self, queue: EventQueue, random: Random, faults: NetworkFaults) -> None:
        self.server: SimulatedServer | None = None
        self.faults = faults
        self.lost = self.delayed = self.doubled = self.cuts = 0
        self._queue = queue
        self._random = random

    def call(self, rpc: str, data: bytes, done: Callable[[Outcome], None]) -> None:
        """A unary call; `done` may hear of it never, once, or twice where it was doubled."""
        copies = 1
        if self._random.random() < self.faults.double:
            copies, self.doubled = 2, self.doubled + 1
        for _ in range(copies):
            self._carry(self._arrive, rpc, data, done)

    def connect(
        self, on_answer: Callable[[bytes], None], on_end: Callable[[Outcome], None]
    ) -> Connection:
        """A stream."""
        return Connection(self, on_answer, on_end)

    def delay_us(self) -> int:
        """How long the next message takes."""
        if self._random.random() < self.faults.delay:
            self.delayed += 1
            return self._random.randint(10_000, self.faults.late_us)
        return self._random.randint(50, 2_000)

    def loses(self) -> bool:
        """Whether the next message is lost."""
        lost = self._random.random() < self.faults.lose
        self.lost += lost
        return lost

    def cuts_now(self) -> str:
        """Whether a stream is cut at this message: "" or the direction, "both", "requests" or
        "answers"."""
        if self._random.random() >= self.faults.cut:
            return ""
        self.cuts += 1
        return self._random.choice(("both", "both", "requests", "answers"))

    def later(self, delay_us: int, action: Callable[..., None], *arguments: Any) -> None:
        """As EventQueue.after."""
        self._queue.after(delay_us, action, *arguments)

    @property
    def now_us(self) -> int:
        """As EventQueue."""
        return self._queue.now_us

    def _carry(self, action: Callable[..., None], *arguments: Any) -> None:
        if not self.loses():
            self._queue.after(self.delay_us(), action, *arguments)

    def _arrive(self, rpc: str, data: bytes, done: Callable[[Outcome], None]) -> None:
        server = self.server
        if server is None or not server.alive:
            self._carry(done, UNREACHABLE)
            return

        def answered(answer: bytes | MlxrtError) -> None:
            if server.alive:
                self._carry(done, answer)

        server.call(rpc, data, answered)


class Connection:
    """A stream's two ends: in order both ways, until it is cut.

    A cut both ways is noticed by the client soon; one way it is not: the client has to give up
    waiting. The server never learns of either.
    """

    def __init__(
        self,
        network: Network,
        on_answer: Callable[[bytes], None],
        on_end: Callable[[Outcome], None],
    ) -> None:
        self._network = network
        self._on_answer = on_answer
        self._on_end = on_end
        self._server_end: ServerStream | None = None
        self._requests_cut = self._answers_cut = self._closed = False
        self._last_us = [0, 0]

    def send(self, data: bytes) -> None:
        """Sends a message."""
        cut = self._network.cuts_now()
        self._requests_cut |= cut in ("both", "requests")
        self._answers_cut |= cut in ("both", "answers")
        if cut == "both":
            self._network.later(self._network.delay_us(), self._end, UNREACHABLE)
        if not self._requests_cut:
            self._in_order(0, self._arrive, data)

    def close(self) -> None:
        """The client hangs up; what it has sent may still arrive."""
        self._closed = True

    def _in_order(self, direction: int, action: Callable[..., None], *arguments: Any) -> None:
        at_us = max(self._network.now_us + self._network.delay_us(), self._last_us[direction] + 1)
        self._last_us[direction] = at_us
        self._network.later(at_us - self._network.now_us, action, *arguments)

    def _arrive(self, data: bytes) -> None:
        if self._server_end is None:
            server = self._network.server
            if server is None or not server.alive:
                self._end(UNREACHABLE)
                return
            self._server_end = server.open_stream(self._answer, self._server_ends)
        self._server_end.take(data)

    def _answer(self, data: bytes) -> None:
        cut = self._network.cuts_now()
        self._answers_cut |= cut in ("both", "answers")
        if cut == "both":
            self._end(UNREACHABLE)
        if not self._answers_cut:
            self._in_order(1, self._deliver, data)

    def _server_ends(self, why: Outcome) -> None:
        if not self._answers_cut:
            self._in_order(1, self._end, why)

    def _deliver(self, data: bytes) -> None:
        if not self._closed:
            self._on_answer(data)

    def _end(self, why: Outcome) -> None:
        if not self._closed:
            self._closed = True
            self._on_end(why)
