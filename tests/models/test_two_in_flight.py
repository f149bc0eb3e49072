"""What a failed step does to the one built on it, by a runner on the test's own thread."""

from __future__ import annotations

import pytest

from mlxrt.core.sampling import GREEDY
from mlxrt.core.step import Entry, Registration, StepPlan, TableUpdate, TokenSource
from mlxrt.engine.assembly import assemble
from mlxrt.engine.engine_config import EngineConfig
from mlxrt.engine.sampling import Sampled
from mlxrt.errors import Reason

PROMPT = [4, 8, 15, 16, 23]


@pytest.fixture(params=["gather", "native"])
def runner(request, checkpoint):
    """A runner with two sequences whose prompts are computed: 1 and 2, the same.

    The native path launches a step while the one before runs; gather reads that one first.
    """
    config = EngineConfig(
        model=str(checkpoint("qwen3")),
        attention=request.param,
        block_size=4,
        num_blocks=64,
        poison_pool=True,
    )
    runner = assemble(config, lambda fraction, activity: None).runner
    plan = StepPlan(1)
    for handle in (1, 2):
        plan.registrations.append(Registration(handle, PROMPT, GREEDY, 0))
        blocks = [10 * handle, 10 * handle + 3, 10 * handle + 1]
        plan.table_updates.append(TableUpdate(handle, 0, 0, blocks, 3))
        plan.entries.append(Entry(handle, 0, 5, TokenSource.REGISTERED, sample=True))
    runner.begin(plan, lambda outcome: None)
    assert runner.finish().failure is None
    return runner


@pytest.fixture
def expected(checkpoint, make_oracle) -> list[int]:
    """The greedy tokens after the prompt."""
    return make_oracle(checkpoint("qwen3")).greedy(PROMPT, 6)[5:]


@pytest.fixture
def failing_read(monkeypatch):
    """Makes reading the next step fail, as an error of the device would."""
    original = Sampled.read

    def read(self, tokens):
        monkeypatch.setattr(Sampled, "read", original)
        raise RuntimeError("the device says no")

    monkeypatch.setattr(Sampled, "read", read)


def decode(ticket: int, positions: dict[int, int]) -> StepPlan:
    return StepPlan(ticket, decode_handles=list(positions), decode_starts=list(positions.values()))


def run_all(runner, *plans):
    """Begins all plans, then finishes what is left."""
    outcomes = []
    for plan in plans:
        runner.begin(plan, outcomes.append)
    while runner.flights:
        outcomes.append(runner.finish())
    return outcomes


def test_the_step_built_on_a_failed_one_fails_and_leaves_no_trace(runner, expected, failing_read):
    # The second step replaces the token that the first one samples.
    explicit = Entry(1, 5, 2, TokenSource.EXPLICIT, [99, 98], sample=True)
    first, second = run_all(runner, decode(2, {1: 5}), StepPlan(3, entries=[explicit]))
    assert first.failure.reason is Reason.EXECUTION_FAILED
    assert second.failure is not None
    again = run_all(runner, decode(4, {1: 5, 2: 5}), decode(5, {2: 6, 1: 6}))
    assert [list(outcome.decode_tokens) for outcome in again] == [
        [expected[1]] * 2,
        [expected[2]] * 2,
    ]


def test_mates_go_on_after_a_failed_step(runner, expected, failing_read):
    first, second = run_all(runner, decode(2, {1: 5}), decode(3, {2: 5}))
    assert first.failure.reason is Reason.EXECUTION_FAILED
    position, tokens = 5, expected[1:]
    if second.failure is None:
        assert list(second.decode_tokens) == [expected[1]]
        position, tokens = 6, expected[2:]
    assert list(run_all(runner, decode(4, {2: position}))[0].decode_tokens) == tokens[:1]
    assert list(run_all(runner, decode(5, {1: 5}))[0].decode_tokens) == [expected[1]]


def test_a_plan_cancelled_after_its_launch_leaves_no_token(runner, expected):
    first, second = decode(2, {1: 5}), decode(3, {1: 6})
    outcomes = []
    runner.begin(first, outcomes.append)
    first.cancelled = True
    outcomes += run_all(runner, second)
    assert [outcome.failure.reason for outcome in outcomes] == [Reason.PREDECESSOR_FAILED] * 2
    again = run_all(runner, decode(4, {1: 5}), decode(5, {1: 6}))
    assert [token for outcome in again for token in outcome.decode_tokens] == expected[1:3]


def test_a_plan_without_rows_stands_between_two_that_share_a_token(runner, expected):
    plans = (decode(2, {1: 5}), StepPlan(3, retired=[2]), decode(4, {1: 6}))
    outcomes = run_all(runner, *plans)
    assert [outcome.ticket for outcome in outcomes] == [2, 3, 4]
    assert [token for outcome in outcomes for token in outcome.decode_tokens] == expected[1:3]
