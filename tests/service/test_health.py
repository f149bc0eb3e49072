"""Every change of health is provoked over the wire and seen by a Watch of each name."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import combinations
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2
from mlxrt_client.v1 import session_pb2

from mlxrt.errors import MlxrtError, Reason
from mlxrt.server import ExitCode, ServerState
from mlxrt.server.stall import IDLE_SLACK_S
from mlxrt.testing import FakeEngine

PROMPT = [5, 9, 2, 77, 1023]
STALL_S = 2.0
"""Told by the engine's word for its heartbeat alone, so that no machine is too slow."""
LIVENESS = "liveness"
READY = (
    "", "readiness",
    "mlxrt.v1.SessionService", "mlxrt.v1.ExecutionService", "mlxrt.v1.ModelService",
)  # fmt: skip
NAMES = (*READY, LIVENESS)
Status = health_pb2.HealthCheckResponse
Launch = Callable[..., Any]

LOADING, SERVING, DRAINING, FAILED = ServerState
STALLED = "STALLED"
"""SERVING, and the engine shows no life."""
State = ServerState | str


class Watches:
    """A watch of each name; what they have been told."""

    def __init__(self, server: Any, stack: ExitStack) -> None:
        self._told: dict[str, queue.Queue[int]] = {}
        run = server.channel.unary_stream(
            "/grpc.health.v1.Health/Watch", response_deserializer=Status.FromString
        )
        for name in NAMES:
            request = health_pb2.HealthCheckRequest(service=name)
            call = run(request.SerializeToString(), timeout=60)
            stack.callback(call.cancel)
            self._told[name] = queue.Queue()
            threading.Thread(target=self._collect, args=(call, name), daemon=True).start()

    def _collect(self, call: Any, name: str) -> None:
        try:
            for answer in call:
                self._told[name].put(answer.status)
        except grpc.RpcError:
            pass

    def next(self, name: str) -> int:
        """The next status of a name."""
        return self._told[name].get(timeout=60)

    def silent(self, name: str) -> bool:
        """Whether nothing more was told."""
        return self._told[name].empty()


class Stage:
    """A server that is led from state to state by what a client or an operator can do, or by what
    befalls its engine."""

    def __init__(self, launch: Launch) -> None:
        self.gate = threading.Event()
        self.engine = FakeEngine(num_blocks=64, block_size=4, threaded=True, load_gate=self.gate)
        self.engine.faults.heartbeat_age_s = 0.0
        self.server = launch(self.engine, stall_seconds=STALL_S)
        self.session: Any = None

    def go(self, before: State, after: State) -> None:
        """Provokes the change."""
        if after is SERVING and before is LOADING:
            self.gate.set()
        elif after is SERVING:
            self.engine.faults.heartbeat_age_s = 0.0
        elif after is STALLED:
            self.engine.faults.heartbeat_age_s = STALL_S + 2 * IDLE_SLACK_S
        elif after is DRAINING:
            self.server.on_loop(self.server.server.drain)
        elif before is LOADING:
            self.engine.faults.load_error = MlxrtError(Reason.INTERNAL_DEFECT, "no checkpoint")
            self.gate.set()
        else:
            self.engine.faults.lose_ticket = self.engine.last_ticket + 1
            self.session.step(decode_sequence_ids=[1])

    def reach(self, state: State) -> None:
        """Leads a fresh server there, with a session that keeps a drain from ending."""
        if state is LOADING:
            return
        self.go(LOADING, SERVING)
        self.server.wait_for(SERVING)
        self.session = self.server.open()
        self.session.start(1, PROMPT)
        if state is not SERVING:
            self.go(SERVING, state)
            self.wait(state)

    def wait(self, state: State) -> None:
        """Waits until the server is in the state."""
        end_s = time.monotonic() + 60
        while self.server.on_loop(lambda: state_of(self.server)) != state:
            assert time.monotonic() < end_s
            time.sleep(0.01)


def state_of(server: Any) -> State:
    lifecycle = server.server.lifecycle
    stalled = lifecycle.state is SERVING and lifecycle.stalled
    return STALLED if stalled else lifecycle.state


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as held:
        yield held


def status_in(state: State, name: str) -> int:
    """What a name says in a state."""
    well = state is not FAILED if name == LIVENESS else state is SERVING
    return Status.SERVING if well else Status.NOT_SERVING


CHANGES: list[tuple[State, State]] = [
    *combinations(ServerState, 2),
    (SERVING, STALLED), (STALLED, SERVING), (STALLED, DRAINING), (STALLED, FAILED),
]  # fmt: skip
"""Every change that there is: a server's states follow one another and never come back."""


@pytest.mark.parametrize(
    ("before", "after"), CHANGES, ids=lambda state: getattr(state, "name", state)
)
def test_each_change_is_pushed_to_each_name(
    launch: Launch, stack: ExitStack, before: State, after: State
) -> None:
    stage = Stage(launch)
    stage.reach(before)
    watches = Watches(stage.server, stack)
    for name in NAMES:
        assert watches.next(name) == status_in(before, name), name
        assert check(stage.server, name) == status_in(before, name), name
    stage.go(before, after)
    for name in NAMES:
        if status_in(before, name) != status_in(after, name):
            assert watches.next(name) == status_in(after, name), name
    if after is FAILED:
        assert stage.server.exit_code.result(60) is not ExitCode.OK
    elif (before, after) != (LOADING, DRAINING):  # there a drain has nothing to wait for
        stage.wait(after)
        for name in NAMES:
            assert check(stage.server, name) == status_in(after, name), name
    assert all(watches.silent(name) for name in NAMES)


def check(server: Any, name: str) -> int:
    run = server.channel.unary_unary(
        "/grpc.health.v1.Health/Check", response_deserializer=Status.FromString
    )
    request = health_pb2.HealthCheckRequest(service=name)
    return run(request.SerializeToString(), timeout=60).status


def test_the_names_are_all_that_there_are(launch: Launch) -> None:
    server = launch()
    assert set(server.server._health._statuses) == set(NAMES)
    assert set(server.on_loop(lambda: server.server._health._statuses.values())) == {Status.SERVING}


def test_a_stall_while_draining_changes_nothing(launch: Launch, stack: ExitStack) -> None:
    stage = Stage(launch)
    stage.reach(DRAINING)
    watches = Watches(stage.server, stack)
    first = {name: watches.next(name) for name in NAMES}
    stage.engine.faults.heartbeat_age_s = STALL_S + 2 * IDLE_SLACK_S
    while not stage.server.on_loop(lambda: stage.server.server.lifecycle.stalled):
        time.sleep(0.01)
    assert {name: check(stage.server, name) for name in NAMES} == first
    assert all(watches.silent(name) for name in NAMES)
    stage.engine.faults.heartbeat_age_s = 0.0
    stage.server.call("CloseSession", session_pb2.CloseSessionRequest(session=stage.session.ref))


@pytest.mark.parametrize(("in_a_plan", "age_s", "stalls"), [
    (False, STALL_S + IDLE_SLACK_S * 0.9, False),  # an idle engine beats now and then only
    (False, STALL_S + IDLE_SLACK_S * 1.1, True),  # the thread is gone or stuck
    (True, STALL_S * 0.9, False),
    (True, STALL_S * 1.1, True),
])  # fmt: skip
def test_what_counts_as_a_stall(in_a_plan: bool, age_s: float, stalls: bool) -> None:
    from mlxrt.server.lifecycle import Lifecycle
    from mlxrt.server.stall import StallWatch

    class Engine:
        def heartbeat_age_s(self) -> float:
            return age_s

    class Dispatcher:
        def oldest_plan_age_s(self) -> float:
            return 1000.0 if in_a_plan else 0.0

    lifecycle = Lifecycle()
    parts: Any = Engine(), Dispatcher()
    StallWatch(*parts, lifecycle, STALL_S).look()
    assert lifecycle.stalled is stalls


def test_an_engine_with_other_steps_to_do_does_not_stall(launch: Launch) -> None:
    """Steps that end keep the heartbeat young, however many wait."""
    engine = FakeEngine(num_blocks=64, block_size=4, threaded=True, step_s=0.25)
    server = launch(engine, stall_seconds=5.0, limits={"max_inflight_steps": 24})
    session = server.open()
    run = server.channel.unary_unary("/mlxrt.v1.ExecutionService/Step")
    calls = []
    for _ in range(24):
        calls.append(run.future(session.request().SerializeToString(), timeout=60))
    while not all(call.done() for call in calls):
        assert check(server, "readiness") == Status.SERVING
        time.sleep(0.02)
