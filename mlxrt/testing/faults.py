"""Named points in a step's way through the server, and what may go wrong at each.

`mlxrt.testing.fault_points` lays the points into one server. No setting reaches any of this;
`mlxrt.testing.faulty_serve` and tests do.
"""

from __future__ import annotations

import enum
import os
import signal
import threading
from collections import Counter
from dataclasses import dataclass


class Point(enum.StrEnum):
    """Where a step is. The engine's four are passed on its threads, all others on the event
    loop's."""

    DECODE = "decode"
    """The bytes are a message; nothing has been looked at."""
    ACCEPT = "accept"
    """The core is about to judge the step."""
    ACCEPTED = "accepted"
    """The core has taken it; nobody waits for it yet."""
    PLAN = "plan"
    """It is about to be handed out."""
    SUBMIT = "submit"
    """It is handed out; the engine does not have it."""
    BUILD = "build"
    """The engine builds its graph."""
    LAUNCH = "launch"
    """The graph is built and about to be evaluated."""
    DEVICE = "device"
    """The device has it; its end is waited for."""
    READ = "read"
    """It has run; its tokens are about to be read."""
    COMMIT = "commit"
    """Its outcome is there; the core does not know it."""
    COMMITTED = "committed"
    """The core has committed it; nobody has been told."""
    ENCODE = "encode"
    """Its reply is about to become bytes."""
    REPLY = "reply"
    """The bytes are there and not yet with gRPC."""


ENGINE_POINTS = (Point.BUILD, Point.LAUNCH, Point.DEVICE, Point.READ)
"""The points inside an engine; the fake one has DEVICE alone."""


class Fault(enum.StrEnum):
    """What happens at a point, once."""

    EXCEPTION = "exception"
    """An exception that nobody expects."""
    MEMORY = "memory"
    """An allocation fails."""
    DELAY = "delay"
    """The thread waits for the spec's time, or until `Faults.wake`, and goes on."""
    KILL = "kill"
    """The process gets SIGKILL."""
    STOP = "stop"
    """The process gets SIGSTOP; who started it sends SIGCONT."""


class InjectedError(Exception):
    """The exception of Fault.EXCEPTION."""


@dataclass(frozen=True, slots=True)
class FaultSpec:
    """One fault to come.

    Attributes:
        hit: which passing of the point it meets, from 1.
        delay_ms: of Fault.DELAY.
    """

    point: Point
    fault: Fault
    hit: int = 1
    delay_ms: int = 300

    @classmethod
    def parse(cls, text: str) -> FaultSpec:
        """The spec that `POINT:FAULT[:HIT[:MS]]` names; raises ValueError."""
        point, fault, *numbers = text.split(":")
        if len(numbers) > 2:
            raise ValueError(f"{text!r} is not POINT:FAULT[:HIT[:MS]]")
        return cls(Point(point), Fault(fault), *map(int, numbers))

    def __str__(self) -> str:
        return f"{self.point}:{self.fault}:{self.hit}:{self.delay_ms}"


class Faults:
    """The faults of one server.

    Attributes:
        hits: how often each point was passed.
        struck: faults that have happened.
    """

    def __init__(self, *specs: FaultSpec) -> None:
        self.hits: Counter[Point] = Counter()
        self.struck: list[FaultSpec] = []
        self._specs = specs
        self._woken = threading.Event()

    def plan(self, spec: FaultSpec) -> None:
        """Has one more fault happen; its `hit` counts from the start of the server."""
        self._specs = (*self._specs, spec)

    def wake(self) -> None:
        """Ends the delay that a point is in, if one is."""
        woken, self._woken = self._woken, threading.Event()
        woken.set()

    def reach(self, point: Point) -> None:
        """Passes a point: what was planned for this hit happens."""
        self.hits[point] += 1
        for spec in self._specs:
            if spec.point is point and spec.hit == self.hits[point]:
                woken = self._woken
                self.struck.append(spec)
                _strike(spec, woken)


def _strike(spec: FaultSpec, woken: threading.Event) -> None:
    match spec.fault:
        case Fault.EXCEPTION:
            raise InjectedError(f"injected at {spec.point}")
        case Fault.MEMORY:
            raise MemoryError(f"injected at {spec.point}")
        case Fault.DELAY:
            woken.wait(spec.delay_ms / 1000)
        case Fault.KILL:
            os.kill(os.getpid(), signal.SIGKILL)
        case Fault.STOP:
            os.kill(os.getpid(), signal.SIGSTOP)
