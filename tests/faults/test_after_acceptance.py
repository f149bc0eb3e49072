"""A defect between a step's acceptance and whoever waits for it: the step is one like any other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from mlxrt_client.errors import ServerDefectError
from mlxrt_client.v1 import DeferredSampling, ExecuteRequest, SampleStepRequest

from mlxrt.errors import Reason
from mlxrt.server.lifecycle import ServerState
from mlxrt.server.step_watch import size_of
from mlxrt.testing.faults import Fault, FaultSpec, Point

Start = Callable[..., Any]


def strike_next(rig: Any, fault: Fault) -> None:
    """Has the next step that is accepted meet `fault` right after."""
    hit = rig.faults.hits[Point.ACCEPTED] + 1
    rig.faults.plan(FaultSpec(Point.ACCEPTED, fault, hit))


def watch_steps(rig: Any) -> list[tuple[int, int, Reason | None]]:
    """The steps that end from now on, as metrics and log see them: number, rows, failure."""
    seen: list[tuple[int, int, Reason | None]] = []

    def observe(run: Any, reply: Any) -> None:
        failure = reply.error.reason if reply.error is not None else None
        seen.append((run.step_number, size_of(run.step).rows, failure))

    rig.server.on_loop(lambda runtime: runtime.dispatcher.observers.append(observe))
    return seen


@pytest.mark.parametrize("fault", [Fault.EXCEPTION, Fault.MEMORY])
def test_masks_find_a_step_that_nobody_repeated(fake_rig: Start, fault: Fault) -> None:
    rig = fake_rig()
    session = rig.session()
    session.advance()
    seen = watch_steps(rig)
    step = session.plan()
    step.defer_sampling = True
    strike_next(rig, fault)
    with pytest.raises(ServerDefectError):
        session.send(step)
    masks = SampleStepRequest(
        sampling=DeferredSampling(session=session.ref, step_number=step.step_number)
    )
    answer = session.call(session.execution.SampleStep, masks).step
    assert not answer.replayed
    session.settle(step, answer)
    assert [(number, failure) for number, _, failure in seen] == [(step.step_number, None)]
    assert seen[0][1] == len(step.decode_sequence_ids) + sum(i.row_count for i in step.items)
    session.advance()
    rig.finish()


def test_masks_behind_the_step_on_a_stream_get_no_answer_of_their_own(fake_rig: Start) -> None:
    rig = fake_rig()
    session = rig.session()
    session.advance()
    step = session.plan()
    step.defer_sampling = True
    masks = DeferredSampling(session=session.ref, step_number=step.step_number)
    strike_next(rig, Fault.EXCEPTION)
    sent = [ExecuteRequest(step=step), ExecuteRequest(sampling=masks), ExecuteRequest(step=step)]
    refused, answered = session.execution.Execute(iter(sent), timeout=60)
    assert refused.error.reason == Reason.INTERNAL_DEFECT.number
    assert answered.step.replayed
    session.settle(step, answered.step)
    rig.finish()


def test_metrics_see_a_step_that_nobody_has_repeated_yet(
    fake_rig: Start, wait_until: Callable[..., None]
) -> None:
    rig = fake_rig()
    session = rig.session()
    session.advance()
    seen = watch_steps(rig)
    step, committed = session.plan(), rig.committed()
    strike_next(rig, Fault.EXCEPTION)
    with pytest.raises(ServerDefectError):
        session.send(step)
    wait_until(lambda: rig.committed() > committed)
    assert [number for number, _, _ in seen] == [step.step_number]
    session.settle(step, session.send(step))
    assert session.replays == 1 and len(seen) == 1
    rig.finish()


def test_a_repeat_is_one_for_a_draining_server_too(fake_rig: Start) -> None:
    rig = fake_rig()
    session = rig.session()
    step = session.plan()
    assert step.new_sequences
    strike_next(rig, Fault.EXCEPTION)
    with pytest.raises(ServerDefectError):
        session.send(step)
    rig.server.on_loop(lambda runtime: runtime.pipeline._lifecycle.move_to(ServerState.DRAINING))
    answer = session.send(step)
    assert answer.replayed
    session.settle(step, answer)
    rig.finish()
