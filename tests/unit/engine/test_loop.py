"""The engine's loop: a plan that arrives while the device works is begun at once; outcomes keep the
order of the plans.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest

from mlxrt.core.step import StepOutcome, StepPlan
from mlxrt.engine.engine_config import EngineConfig
from mlxrt.engine.flight import Flight
from mlxrt.engine.mlx_engine import MlxEngine, _Watcher

TIMEOUT_S = 10


class DeviceArray:
    """What numpy waits for until the test says that the device has ended the step."""

    def __init__(self) -> None:
        self.ended = threading.Event()

    def __array__(self, dtype=None, copy=None):
        assert self.ended.wait(TIMEOUT_S)
        return np.zeros(1, np.int32)


class Runner:
    """Begins plans without a device; remembers what was done in which order."""

    def __init__(self) -> None:
        self.flights: deque[Flight] = deque()
        self.done: list[tuple[str, int]] = []
        self.arrays: dict[int, DeviceArray] = {}
        self.changed = threading.Condition()

    def begin(self, plan: StepPlan, deliver: Callable[[StepOutcome], None]) -> None:
        array = DeviceArray()
        flight = Flight(plan)
        if plan.decode_handles:
            flight.graph = SimpleNamespace(arrays=lambda: [array], signal=array)
        self.flights.append(flight)
        self._note("begin", plan.ticket, array)

    def finish(self) -> StepOutcome:
        flight = self.flights.popleft()
        if flight.graph is not None:
            np.array(flight.graph.arrays()[0])
        self._note("finish", flight.plan.ticket)
        return StepOutcome(flight.plan.ticket)

    def _note(self, event: str, ticket: int, array: DeviceArray | None = None) -> None:
        with self.changed:
            self.done.append((event, ticket))
            if array is not None:
                self.arrays[ticket] = array
            self.changed.notify_all()

    def wait_for(self, event: str, ticket: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: (event, ticket) in self.done, TIMEOUT_S)


@pytest.fixture
def loop():
    """An engine that serves with a runner of the test's; yields `(engine, runner, outcomes)`."""
    engine, runner, outcomes = MlxEngine(EngineConfig(model="unused")), Runner(), []
    listener = SimpleNamespace(on_outcome=lambda outcome: outcomes.append(outcome.ticket))
    engine._listener = listener
    engine._watcher = _Watcher(engine._changed)
    engine._watcher.start()
    thread = threading.Thread(target=engine._serve, args=(SimpleNamespace(runner=runner),))
    thread.start()
    yield engine, runner, outcomes
    for array in runner.arrays.values():
        array.ended.set()
    engine.close()
    thread.join(TIMEOUT_S)
    assert not thread.is_alive()
    engine._watcher.stop()


def decode(ticket: int) -> StepPlan:
    return StepPlan(ticket, decode_handles=[1], decode_starts=[ticket])


def test_the_next_plan_is_begun_while_the_device_works(loop):
    engine, runner, outcomes = loop
    engine.submit(decode(1))
    runner.wait_for("begin", 1)
    time.sleep(0.05)
    engine.submit(decode(2))
    runner.wait_for("begin", 2)
    assert outcomes == []
    runner.arrays[1].ended.set()
    runner.wait_for("finish", 1)
    engine.submit(decode(3))
    runner.wait_for("begin", 3)
    assert ("finish", 2) not in runner.done
    for ticket in (2, 3):
        runner.arrays[ticket].ended.set()
        runner.wait_for("finish", ticket)
    assert outcomes == [1, 2, 3]


def test_an_ended_step_is_answered_without_another_plan(loop):
    engine, runner, outcomes = loop
    engine.submit(decode(1))
    runner.wait_for("begin", 1)
    runner.arrays[1].ended.set()
    runner.wait_for("finish", 1)
    assert outcomes == [1]


def test_a_plan_without_device_work_waits_for_its_turn(loop):
    engine, runner, outcomes = loop
    engine.submit(decode(1))
    runner.wait_for("begin", 1)
    engine.submit(StepPlan(2))
    runner.wait_for("begin", 2)
    assert outcomes == []
    runner.arrays[1].ended.set()
    runner.wait_for("finish", 2)
    assert outcomes == [1, 2]


def test_the_heart_beats_while_idle(loop):
    engine, _, _ = loop
    for _ in range(2):
        last_s = engine._beat_s
        end_s = time.monotonic() + TIMEOUT_S
        while engine._beat_s == last_s:
            assert time.monotonic() < end_s
            time.sleep(0.01)
    assert engine.heartbeat_age_s() < TIMEOUT_S
