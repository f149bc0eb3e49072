"""The simulator's second book, where it must not be stricter than the contract."""

from __future__ import annotations

import pytest

from mlxrt.core.answers import Accepted, SessionRef
from mlxrt.core.step import Item, NewSequence, Phase, StepInput, StepOutcome, StepPlan, TokenSource
from mlxrt.errors import MlxrtError, Reason
from mlxrt.testing.fake_engine import FakeEngine
from mlxrt.testing.simulation.history import History
from mlxrt.testing.simulation.simulation import LIMITS
from mlxrt.testing.simulation.witness import WitnessCore


@pytest.fixture
def history() -> History:
    return History()


@pytest.fixture
def core(history: History) -> WitnessCore:
    engine = FakeEngine(vocabulary_size=509, block_size=4, num_blocks=24, max_model_length=48)
    core = WitnessCore(engine.facts, LIMITS, engine.model, history, 1, lambda: 0)
    core.open_session("open", 1_000, "c", session_id="s", session_seed=0, now_ms=0)
    return core


def accept(core: WitnessCore, number: int, **parts: object) -> int:
    step = StepInput(number, b"%d" % number, deferred=True, **parts)  # type: ignore[arg-type]
    answer = core.accept("s", 1, step, 0)
    assert isinstance(answer, Accepted)
    return answer.ticket


def hand_out(core: WitnessCore, ticket: int, phase: Phase) -> StepPlan:
    plan = core.next_plan(0)
    assert plan is not None and (plan.ticket, plan.phase) == (ticket, phase)
    return plan


def test_a_step_accepted_behind_a_forward_that_failed_may_wait_for_masks_until_the_lease_ends(
    core: WitnessCore, history: History
) -> None:
    """It is accepted before the failed step has its reply, and is not failed by it."""
    blocks = core.allocate_blocks(SessionRef("s", 1), "blocks", {0: 2}, 0)[0]
    first = accept(
        core, 1, new_sequences=[NewSequence(1, [5, 6], {0: blocks})],
        items=[Item(1, 2, None, TokenSource.REGISTERED, sample=True)],
    )  # fmt: skip
    hand_out(core, first, Phase.FORWARD)
    core.failed_plans.add(first)
    failure = MlxrtError(Reason.EXECUTION_FAILED, "the forward failed")
    assert core.finish(StepOutcome(first, failure=failure), 0) == []
    item = Item(1, 2, None, TokenSource.REGISTERED, sample=True)
    second = accept(core, 2, items=[item])
    hand_out(core, first, Phase.SAMPLING)
    ((_, reply),) = core.finish(StepOutcome(first), 0)
    assert reply.error is not None and reply.error.reason is Reason.EXECUTION_FAILED
    hand_out(core, second, Phase.FORWARD)
    assert core.finish(StepOutcome(second), 0) == []
    assert [each.session_id for each in core.expire(1_000)] == ["s"]
    assert core.expired_waiting == 1
    assert history.violations == []
