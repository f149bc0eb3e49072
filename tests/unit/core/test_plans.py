"""Plans: whose turn it is, and what the engine is told to forget."""

from __future__ import annotations

import pytest
from core_client import Client, outcome, rows

from mlxrt.core.core import Core
from mlxrt.core.step import Entry, NewSequence, StepOutcome, TokenSource
from mlxrt.errors import Reason


def test_sessions_take_turns_and_keep_their_own_order(core: Core) -> None:
    a, b, c = Client(core, "a"), Client(core, "b"), Client(core, "c")
    tickets = {
        a.accept(): "a1",
        a.accept(): "a2",
        b.accept(): "b1",
        b.accept(): "b2",
        c.accept(): "c1",
    }
    assert core.queued_count() == 5
    order = []
    while (plan := core.next_plan(0)) is not None:
        order.append(tickets[plan.ticket])
    assert order == ["a1", "b1", "c1", "a2", "b2"]
    assert core.queued_count() == 0
    assert core.inflight_count() == 5


def test_outcomes_come_in_the_order_of_the_plans(client: Client) -> None:
    client.accept()
    client.accept()
    client.core.next_plan(0)
    second = client.core.next_plan(0)
    assert second is not None
    with pytest.raises(AssertionError):
        client.core.finish(outcome(second), 0)


def test_an_outcome_without_a_plan_is_refused(client: Client) -> None:
    with pytest.raises(AssertionError):
        client.core.finish(StepOutcome(1), 0)


def test_a_plan_says_all_that_the_engine_needs(client: Client) -> None:
    blocks = client.allocate(6)[0]
    client.prefill(7, 2, {0: blocks[:2]})
    client.accept(
        copies=[(0, blocks[0], blocks[5])],
        new_sequences=[NewSequence(8, [4, 5, 6], {0: blocks[2:3]}, seed=11)],
        decode_ids=[7],
        items=[rows(8, 3, sample=True, return_logits=True)],
    )
    plan = client.core.next_plan(0)
    assert plan is not None
    (new,) = plan.registrations
    assert (list(new.prompt), new.seed, new.generated_count) == ([4, 5, 6], 11, 0)
    assert plan.copies == [(0, blocks[0], blocks[5])]
    assert plan.decode_starts == [2]
    assert plan.entries == [Entry(new.handle, 0, 3, TokenSource.REGISTERED, (), True, True)]
    assert new.handle not in plan.decode_handles


def test_released_handles_are_retired_by_the_step_itself(client: Client) -> None:
    client.accept(new_sequences=[NewSequence(1, [1])])
    client.accept(releases=[1], new_sequences=[NewSequence(1, [1])])
    first, second = client.core.next_plan(0), client.core.next_plan(0)
    assert first is not None and second is not None
    assert second.retired == [first.registrations[0].handle]
    assert second.registrations[0].handle not in second.retired


def test_sequences_released_outside_a_step_are_retired_by_the_next_plan_of_any_session(
    core: Core,
) -> None:
    a, b = Client(core, "a"), Client(core, "b")
    a.accept(new_sequences=[NewSequence(1, [1])])
    plan = core.next_plan(0)
    assert plan is not None
    core.finish(outcome(plan), 0)
    core.free_sequences(a.ref, "f", [1], 0, free_blocks=False)
    b.accept()
    theirs = core.next_plan(0)
    assert theirs is not None
    assert theirs.retired == [plan.registrations[0].handle]


def test_but_not_before_the_last_plan_that_names_them(core: Core) -> None:
    a, b = Client(core, "a"), Client(core, "b")
    blocks = a.allocate(1)
    a.prefill(1, 1, blocks)
    b.accept()
    a.accept(decode_ids=[1])
    core.free_sequences(a.ref, "f", [1], 0, free_blocks=True)
    theirs, ours = core.next_plan(0), core.next_plan(0)
    assert theirs is not None and ours is not None
    assert theirs.retired == ours.retired == []
    assert ours.decode_handles
    b.accept()
    later = core.next_plan(0)
    assert later is not None
    assert later.retired == ours.decode_handles


def test_a_closed_session_leaves_nothing_with_the_engine(core: Core) -> None:
    a, b = Client(core, "a"), Client(core, "b")
    a.accept(new_sequences=[NewSequence(1, [1]), NewSequence(2, [1])])
    core.close_session(a.ref, 0)
    cancelled = core.next_plan(0)
    assert cancelled is not None
    assert cancelled.cancelled
    handles = [new.handle for new in cancelled.registrations]
    ((_, reply),) = core.finish(outcome(cancelled), 0)
    assert reply.error is not None
    assert reply.error.reason is Reason.SESSION_UNKNOWN
    b.accept()
    plan = core.next_plan(0)
    assert plan is not None
    assert plan.retired == handles
