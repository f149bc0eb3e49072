"""The engine's loop: a plan that arrives while the device works is launched at once, a step that
ended is answered at once, and outcomes keep the order of the plans.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from types import SimpleNamespace

import mlx.core as mx
import pytest

from mlxrt.core.sampling import GREEDY
from mlxrt.core.step import (
    Entry,
    Registration,
    StepOutcome,
    StepPlan,
    TableUpdate,
    TokenSource,
)
from mlxrt.engine.engine_config import EngineConfig
from mlxrt.engine.forward import StepValues
from mlxrt.engine.mlx_engine import MlxEngine
from mlxrt.engine.runner import StepRunner
from mlxrt.errors import Reason

TIMEOUT_S = 60


class Graph:
    """A launched graph: ends when the test says so, with a token or an error."""

    def __init__(self) -> None:
        self.ended = threading.Event()
        self.error: Exception | None = None
        self.read_by: list[str] = []

    def wait(self) -> None:
        self.read_by.append(threading.current_thread().name)
        assert self.ended.wait(TIMEOUT_S)
        if self.error is not None:
            raise self.error

    def read(self) -> StepValues:
        return StepValues([7], {}, None)


class Forward:
    """A forward whose graphs the test ends."""

    group_count = 1

    def __init__(self) -> None:
        self.path = SimpleNamespace(overlaps=True)
        self.graphs: list[Graph] = []

    def pools(self) -> list[mx.array]:
        return []

    def restore(self, pools: Sequence[mx.array]) -> None:
        pass

    def build(self, batch, sampling, unread) -> SimpleNamespace:
        graph = Graph()
        self.graphs.append(graph)
        token = mx.zeros(1, mx.int32)
        sampled = SimpleNamespace(tokens=token)
        return SimpleNamespace(
            arrays=lambda: [token], signal=token, sampled=sampled, logits=None,
            wait=graph.wait, read=graph.read, is_compiled=False,
        )  # fmt: skip


class Loop:
    """An engine that serves with the test's forward."""

    def __init__(self) -> None:
        self.engine = MlxEngine(EngineConfig(model="unused"))
        self.forward = Forward()
        self.outcomes: list[StepOutcome] = []
        self.changed = threading.Condition()
        self.engine._listener = SimpleNamespace(on_ready=lambda *_: None, on_outcome=self._heard)
        self.runner = StepRunner(self.forward, block_size=4, vocabulary_size=9, buckets=())
        assembled = SimpleNamespace(runner=self.runner, facts=None, description=None)
        self.lost: Exception | None = None
        self.thread = threading.Thread(target=self._run, args=(assembled,))
        self.thread.start()

    def _run(self, assembled: SimpleNamespace) -> None:
        try:
            self.engine._run(assembled, self.engine._listener)
        except Exception as error:
            self.lost = error

    def _heard(self, outcome: StepOutcome) -> None:
        with self.changed:
            self.outcomes.append(outcome)
            self.changed.notify_all()

    @property
    def tickets(self) -> list[int]:
        return [outcome.ticket for outcome in self.outcomes]

    def answered(self, count: int) -> bool:
        with self.changed:
            return self.changed.wait_for(lambda: len(self.outcomes) >= count, TIMEOUT_S)

    def launched(self, count: int) -> bool:
        end_s = time.monotonic() + TIMEOUT_S
        while self.runner.counters.async_evals < count and time.monotonic() < end_s:
            time.sleep(0.001)
        return self.runner.counters.async_evals == count


@pytest.fixture
def loop():
    """A loop with one sequence whose first token was sampled."""
    loop = Loop()
    plan = StepPlan(
        1,
        registrations=[Registration(1, [3, 4], GREEDY, 0)],
        table_updates=[TableUpdate(1, 0, 0, [5, 6], 2)],
        entries=[Entry(1, 0, 2, TokenSource.REGISTERED, sample=True)],
    )
    loop.engine.submit(plan)
    assert loop.launched(1)
    loop.forward.graphs[0].ended.set()
    assert loop.answered(1)
    yield loop
    for graph in loop.forward.graphs:
        graph.ended.set()
    with loop.engine._changed:
        loop.engine._closing = True
        loop.engine._changed.notify_all()
    loop.thread.join(TIMEOUT_S)
    assert not loop.thread.is_alive()


def decode(ticket: int) -> StepPlan:
    """The sequence's next row, each ticket one position further."""
    return StepPlan(ticket, decode_handles=[1], decode_starts=[ticket])


def test_the_next_plan_is_launched_while_the_device_works(loop):
    loop.engine.submit(decode(2))
    assert loop.launched(2)
    loop.engine.submit(decode(3))
    assert loop.launched(3)
    assert loop.tickets == [1]
    for count, graph in ((2, loop.forward.graphs[1]), (3, loop.forward.graphs[2])):
        graph.ended.set()
        assert loop.answered(count)
    assert loop.tickets == [1, 2, 3]


def test_a_step_is_answered_while_the_launch_of_the_next_one_blocks(loop, monkeypatch):
    loop.engine.submit(decode(2))
    assert loop.launched(2)
    blocks, original = threading.Event(), mx.async_eval

    def blocking(*arrays):
        assert blocks.wait(TIMEOUT_S)
        original(*arrays)

    monkeypatch.setattr(mx, "async_eval", blocking)
    loop.engine.submit(decode(3))
    assert loop.launched(3)
    loop.forward.graphs[1].ended.set()
    assert loop.answered(2)
    blocks.set()
    loop.forward.graphs[2].ended.set()
    assert loop.answered(3)
    assert loop.tickets == [1, 2, 3]


def test_one_thread_reads_and_it_is_not_the_one_that_launches(loop):
    loop.engine.submit(decode(2))
    assert loop.launched(2)
    loop.forward.graphs[1].ended.set()
    assert loop.answered(2)
    assert [graph.read_by for graph in loop.forward.graphs] == [["mlxrt-reader"]] * 2


def test_a_plan_without_device_work_waits_for_its_turn(loop):
    loop.engine.submit(decode(2))
    assert loop.launched(2)
    loop.engine.submit(StepPlan(3))
    assert loop.tickets == [1]
    loop.forward.graphs[1].ended.set()
    assert loop.answered(3)
    assert loop.tickets == [1, 2, 3]


def test_a_step_that_can_t_be_read_fails_and_the_loop_goes_on(loop):
    loop.engine.submit(decode(2))
    assert loop.launched(2)
    loop.forward.graphs[1].error = RuntimeError("the device says no")
    loop.forward.graphs[1].ended.set()
    assert loop.answered(2)
    failure = loop.outcomes[1].failure
    assert failure.reason is Reason.EXECUTION_FAILED
    assert "the device says no" in failure.message
    loop.engine.submit(decode(2))
    assert loop.launched(3)
    loop.forward.graphs[2].ended.set()
    assert loop.answered(3)
    assert loop.outcomes[2].decode_tokens == [7]


def test_a_defect_in_answering_ends_the_engine(loop):
    def broken(outcome):
        raise ValueError("nobody listens")

    loop.engine._listener.on_outcome = broken
    loop.engine.submit(decode(2))
    assert loop.launched(2)
    loop.forward.graphs[1].ended.set()
    loop.thread.join(TIMEOUT_S)
    assert isinstance(loop.lost, ValueError)


def test_the_heart_beats_while_idle(loop):
    engine = loop.engine
    for _ in range(2):
        last_s = engine._beat_s
        end_s = time.monotonic() + TIMEOUT_S
        while engine._beat_s == last_s:
            assert time.monotonic() < end_s
            time.sleep(0.01)
    assert engine.heartbeat_age_s() < TIMEOUT_S
