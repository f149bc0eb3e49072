"""Each fault at each point of a step's way, over the wire: what was acknowledged holds, what was
refused changed nothing, nobody else notices, nothing is left."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from mlxrt_client.errors import (
    DeviceLostError,
    ServerDefectError,
    StepDiscardedError,
    TransportError,
)

from mlxrt.exit_code import ExitCode
from mlxrt.testing.faults import ENGINE_POINTS, Fault, FaultSpec, Point

REFUSED = (Point.DECODE, Point.ACCEPT)
ANSWER_LOST = (Point.ACCEPTED, Point.ENCODE, Point.REPLY)
SERVER_LOST = (Point.PLAN, Point.SUBMIT, Point.COMMIT, Point.COMMITTED)
FAKE_POINTS = tuple(p for p in Point if p not in ENGINE_POINTS or p is Point.DEVICE)
RAISING = (Fault.EXCEPTION, Fault.MEMORY)
DELAY_MS = 200
UNTIL_WOKEN_MS = 300_000
DEADLINE_S = 0.1

Start = Callable[..., Any]


def test_every_point_is_in_one_class() -> None:
    assert {*REFUSED, *ANSWER_LOST, *SERVER_LOST, *ENGINE_POINTS} == set(Point)


@contextmanager
def struck(
    rig: Any, point: Point, fault: Fault, delay_ms: int = DELAY_MS
) -> Iterator[Callable[[], bool]]:
    """Has the next passing of `point` meet `fault` and proves that it happens within the block,
    which is told whether it has."""
    before = len(rig.faults.struck)
    rig.faults.plan(FaultSpec(point, fault, rig.faults.hits[point] + 1, delay_ms))
    yield lambda: len(rig.faults.struck) > before
    assert [spec.point for spec in rig.faults.struck[before:]] == [point]


@pytest.fixture(params=[False, True], ids=["unary", "stream"])
def over_stream(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.mark.parametrize("fault", RAISING)
@pytest.mark.parametrize("point", REFUSED)
def test_a_defect_before_acceptance_changes_nothing(
    fake_rig: Start, point: Point, fault: Fault, over_stream: bool
) -> None:
    rig = fake_rig()
    mate, session = rig.session(), rig.session(over_stream=over_stream)
    for each in (mate, session, session):
        each.advance()
    before = rig.digest()
    with struck(rig, point, fault), pytest.raises(ServerDefectError) as raised:
        session.send(session.plan())
    assert raised.value.reason == "INTERNAL_DEFECT" and raised.value.metadata["defect_id"]
    assert rig.digest() == before
    for each in (session, mate, session):
        each.advance()
    assert session.replays == 0
    rig.finish()


@pytest.mark.parametrize("fault", RAISING)
@pytest.mark.parametrize("point", ANSWER_LOST)
def test_a_defect_after_acceptance_leaves_the_answer_to_the_retry(
    fake_rig: Start, point: Point, fault: Fault, over_stream: bool
) -> None:
    rig = fake_rig()
    mate, session = rig.session(), rig.session(over_stream=over_stream)
    for each in (mate, session, session):
        each.advance()
    step, committed = session.plan(), rig.committed()
    with struck(rig, point, fault), pytest.raises(ServerDefectError):
        session.send(step)
    session.settle(step, session.send(step))
    assert session.replays == 1
    assert rig.committed() == committed + 1
    for each in (mate, session):
        each.advance()
    rig.finish()


@pytest.mark.parametrize("fault", RAISING)
@pytest.mark.parametrize("point", SERVER_LOST)
def test_a_defect_between_acceptance_and_commit_ends_the_server(
    fake_rig: Start, point: Point, fault: Fault, over_stream: bool
) -> None:
    rig = fake_rig()
    mate, session = rig.session(), rig.session(over_stream=over_stream)
    for each in (mate, session):
        each.advance()
    with struck(rig, point, fault), pytest.raises(DeviceLostError):
        session.send(session.plan())
    with pytest.raises((DeviceLostError, TransportError)):
        mate.advance()
    assert rig.lose() is ExitCode.DEVICE_LOST


@pytest.mark.parametrize("fault", RAISING)
def test_a_failed_forward_is_discarded(fake_rig: Start, fault: Fault, over_stream: bool) -> None:
    rig = fake_rig()
    mate, session = rig.session(), rig.session(over_stream=over_stream)
    for each in (mate, session, session):
        each.advance()
    check_discard(rig, session, Point.DEVICE, fault)
    for each in (mate, session):
        each.advance()
    rig.finish()


def check_discard(rig: Any, session: Any, point: Point, fault: Fault) -> None:
    """A step discarded at a point leaves every sequence where it stood."""
    before = session.state()
    with struck(rig, point, fault), pytest.raises(StepDiscardedError) as raised:
        session.send(session.plan())
    assert raised.value.reason == "EXECUTION_FAILED" and raised.value.accepted
    after = session.state()
    assert after.sequences == before.sequences
    assert after.leased_blocks == before.leased_blocks
    session.resync()
    session.advance()


@pytest.mark.parametrize("point", FAKE_POINTS)
def test_a_delay_beyond_the_deadline_is_one_step(
    fake_rig: Start, point: Point, over_stream: bool
) -> None:
    rig = fake_rig()
    mate, session = rig.session(), rig.session(over_stream=over_stream)
    for each in (mate, session, session):
        each.advance()
    step, committed = session.plan(), rig.committed()
    with struck(rig, point, Fault.DELAY, UNTIL_WOKEN_MS) as reached:
        while not reached():  # a call may be over before it is there
            with pytest.raises(TransportError) as raised:
                session.send(step, timeout_s=DEADLINE_S)
            assert raised.value.code == 4
        rig.faults.wake()
        session.settle(step, session.send(step))
    assert rig.committed() == committed + 1
    for each in (mate, session):
        each.advance()
    rig.finish()


@pytest.mark.parametrize("point", FAKE_POINTS)
def test_a_client_that_goes_away_loses_its_answer_alone(
    fake_rig: Start, point: Point, wait_until: Callable[..., None]
) -> None:
    rig = fake_rig()
    mate, session = rig.session(), rig.session()
    for each in (mate, session, session):
        each.advance()
    step, committed = session.plan(), rig.committed()
    with struck(rig, point, Fault.DELAY, UNTIL_WOKEN_MS) as reached:
        call = session.execution.Step.future(step, timeout=60)
        wait_until(reached)
        session.connect()  # the channel goes, and the call with it
        assert call.done() or call.cancel()
        rig.faults.wake()
        session.settle(step, session.send(step))
    assert rig.committed() == committed + 1
    for each in (mate, session):
        each.advance()
    rig.finish()


@pytest.mark.parametrize("point", FAKE_POINTS)
def test_a_step_sent_twice_at_once_runs_once(fake_rig: Start, point: Point) -> None:
    rig = fake_rig()
    session = rig.session()
    session.advance()
    step, committed = session.plan(), rig.committed()
    with struck(rig, point, Fault.DELAY):
        calls = [session.execution.Step.future(step, timeout=60) for _ in range(3)]
        answers = [call.result() for call in calls]
    assert rig.committed() == committed + 1
    assert sorted(answer.replayed for answer in answers) == [False, True, True]
    for answer in answers:
        answer.replayed = False
    assert answers[0] == answers[1] == answers[2]
    session.settle(step, answers[0])
    session.advance()
    rig.finish()


@pytest.mark.parametrize("point", FAKE_POINTS)
def test_a_take_over_fences_what_is_under_way(
    fake_rig: Start, point: Point, wait_until: Callable[..., None]
) -> None:
    rig = fake_rig()
    mate, session = rig.session(), rig.session()
    for each in (mate, session, session):
        each.advance()
    step = session.plan()
    with struck(rig, point, Fault.DELAY, UNTIL_WOKEN_MS) as reached:
        call = session.execution.Step.future(step, timeout=60)
        wait_until(reached)
        # Most points hold the event loop: the take-over lies unread until it goes on.
        waking = threading.Timer(DELAY_MS / 2000, rig.faults.wake)
        waking.start()
        session.take_over()
        waking.join()
        call.exception()
    session.resync()
    for each in (mate, session, session):
        each.advance()
    rig.finish()


@pytest.mark.parametrize("broken", [False, True])
def test_after_a_defect_the_core_is_examined(fake_rig: Start, broken: bool) -> None:
    rig = fake_rig()
    session = rig.session()
    session.advance()

    def sabotage(runtime: Any) -> None:
        def allocate(*_: object) -> None:
            if broken:
                runtime.core._state.pool.take(0, 1)  # owned by nobody
            raise RuntimeError("a defect")

        runtime.core.allocate_blocks = allocate

    rig.server.on_loop(sabotage)
    with pytest.raises(ServerDefectError):
        session.open()
    if broken:
        with pytest.raises((DeviceLostError, TransportError)):
            session.state()
        assert rig.lose() is ExitCode.DEVICE_LOST
    else:
        rig.server.on_loop(lambda runtime: runtime.core.check_integrity())
        session.state()
