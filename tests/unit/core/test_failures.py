"""Failures: of a step, of those behind it, of one sequence."""

from __future__ import annotations

import math

import pytest
from core_client import FAILURE, Client, explicit, finish_all, hand_out, outcome, rows

from mlxrt.core.sampling import Sampling
from mlxrt.core.step import FAILED_TOKEN, Item, NewSequence, SampledRow, StepOutcome, StepPlan
from mlxrt.errors import Reason


@pytest.fixture
def blocks(client: Client) -> list[int]:
    blocks = client.allocate(12)[0]
    client.prefill(1, 6, {0: blocks[:3]})
    return blocks


def fail(client: Client, plan: StepPlan, reason: Reason = Reason.EXECUTION_FAILED) -> None:
    """The step's outcome is a failure, or it is doomed already; its reply says why."""
    ((_, reply),) = client.core.finish(outcome(plan, failure=FAILURE), 0)
    assert reply.error is not None
    assert reply.error.reason is reason
    assert not reply.token_ids and not reply.items and not reply.free_blocks
    client.core.check_integrity()


def test_a_failed_step_fails_those_behind_it_whether_they_ran_or_not(
    client: Client, blocks: list[int]
) -> None:
    before = client.state(1)
    client.accept(decode_ids=[1])
    plan = hand_out(client)
    client.accept(decode_ids=[1])
    behind = hand_out(client)
    fail(client, plan)
    assert client.state(1) == before
    client.accept(decode_ids=[1])
    fail(client, behind, Reason.PREDECESSOR_FAILED)
    fresh = hand_out(client)
    assert not fresh.cancelled, "accepted after the failure"
    ((_, reply),) = client.core.finish(outcome(fresh), 0)
    assert reply.token_ids == [50]
    assert client.core.counters.steps_discarded == 2


def test_a_step_behind_that_was_not_handed_out_is_cancelled(
    client: Client, blocks: list[int]
) -> None:
    client.accept(decode_ids=[1])
    client.accept(
        copies=[(0, blocks[0], blocks[8])],
        decode_ids=[1],
        releases=[],
        new_sequences=[NewSequence(2, [3])],
    )
    fail(client, hand_out(client))
    plan = hand_out(client)
    assert plan.cancelled
    assert (plan.copies, plan.decode_handles, plan.entries) == ([], [], [])
    assert [new.prompt.tolist() for new in plan.registrations] == [[3]]  # type: ignore[attr-defined]
    fail(client, plan, Reason.PREDECESSOR_FAILED)
    assert client.state(2).token_count == 1


def test_after_a_discard_the_engine_meets_its_sequences_anew(
    client: Client, blocks: list[int]
) -> None:
    client.accept(items=[explicit(1, [9, 9], 2)])
    old = hand_out(client)
    fail(client, old)
    client.accept(items=[rows(1, append={0: [blocks[7]]})])
    plan = hand_out(client)
    (new,) = plan.registrations
    assert new.handle != old.entries[0].handle
    assert plan.retired == [old.entries[0].handle]
    assert list(new.prompt) == [1, 2, 3, 4, 5, 6, 50]
    assert new.generated_count == 1
    assert [(u.first_index, u.length) for u in plan.table_updates] == [(0, 3), (3, 4)]
    assert plan.entries[0].handle == new.handle


def test_given_tokens_count_as_generated_where_they_replaced_the_prompt(
    client: Client, blocks: list[int]
) -> None:
    client.run(items=[explicit(1, [9, 9], 2, sample=True)])
    client.run(items=[explicit(1, [8], 4, sample=True)])
    client.accept(decode_ids=[1])
    fail(client, hand_out(client))
    client.accept(decode_ids=[1])
    (new,) = hand_out(client).registrations
    assert (list(new.prompt), new.generated_count) == ([1, 2, 9, 9, 8, 50], 4)


def test_a_cancelled_step_needs_no_new_handles(client: Client, blocks: list[int]) -> None:
    client.run(new_sequences=[NewSequence(2, [1], {0: [blocks[5]]})])
    client.accept(items=[rows(2)])
    client.accept(decode_ids=[1])
    fail(client, hand_out(client))
    fail(client, hand_out(client), Reason.PREDECESSOR_FAILED)
    client.accept(decode_ids=[1])
    assert [list(new.prompt) for new in hand_out(client).registrations] == [[1]]


def test_rows_that_a_failed_step_rewrote_are_no_longer_computed(
    client: Client, blocks: list[int]
) -> None:
    """Their slots may hold anything now: the sequence stands before them, its tokens are as
    before.
    """
    client.accept(items=[explicit(1, [9], 2)])
    fail(client, hand_out(client))
    state = client.state(1)
    assert (state.position, state.token_count) == (2, 7)
    client.refuse(Reason.BLOCK_UNFILLED, "items[0].start_position", items=[rows(1, 1, 4)])
    client.run(items=[rows(1, 5, sample=True)])


def test_a_copy_that_may_have_run_leaves_its_destination_unknown(
    client: Client, blocks: list[int]
) -> None:
    client.accept(copies=[(0, blocks[1], blocks[0])])
    fail(client, hand_out(client))
    assert client.state(1).position == 0


def test_a_step_that_never_ran_spoils_nothing(client: Client, blocks: list[int]) -> None:
    client.accept()
    client.accept(items=[explicit(1, [9], 2)], copies=[(0, blocks[1], blocks[0])])
    fail(client, hand_out(client))
    assert client.state(1).position == 6
    fail(client, hand_out(client), Reason.PREDECESSOR_FAILED)
    client.run(decode_ids=[1])


def test_one_sequence_fails_alone(client: Client, blocks: list[int]) -> None:
    client.prefill(2, 3, {0: [blocks[5]]})
    client.accept(decode_ids=[1, 2])
    plan = hand_out(client)
    ((_, reply),) = client.core.finish(outcome(plan, failing=plan.decode_handles[:1]), 0)
    assert reply.error is None
    assert reply.token_ids == [FAILED_TOKEN, 50]
    (detail,) = reply.details
    assert (detail.sequence_id, detail.position) == (1, 6)
    assert detail.row.failure is not None
    state = client.state(1)
    assert (state.position, state.token_count) == (6, 7)
    assert state.failure is detail.row.failure
    assert client.state(2).position == 4
    assert client.core.counters.sequences_failed == {Reason.NON_FINITE_LOGITS: 1}


def test_a_failed_sequence_does_nothing_but_go(client: Client, blocks: list[int]) -> None:
    client.accept(items=[rows(1, 1, sample=True)])
    plan = hand_out(client)
    client.core.finish(outcome(plan, failing=[plan.entries[0].handle]), 0)
    reply = client.run(decode_ids=[1])
    assert reply.token_ids == [FAILED_TOKEN]
    assert reply.details[0].row.failure is not None
    reply = client.run(items=[Item(1, replace={})])
    assert reply.items[0].row.failure is not None
    assert client.state(1).tables == {0: blocks[:3]}
    client.run(releases=[1], new_sequences=[NewSequence(1, [1], {0: [blocks[4]]})], items=[rows(1)])
    assert client.state(1).failure is None


def test_steps_behind_leave_a_failed_sequence_out(client: Client, blocks: list[int]) -> None:
    client.prefill(2, 3, {0: [blocks[5], blocks[6]]})
    client.accept(decode_ids=[1, 2])
    client.accept(decode_ids=[1, 2])
    plan = hand_out(client)
    client.core.finish(outcome(plan, failing=plan.decode_handles[:1]), 0)
    behind = hand_out(client)
    assert behind.decode_handles == plan.decode_handles[1:]
    assert behind.decode_starts == [4]
    ((_, reply),) = client.core.finish(outcome(behind), 0)
    assert reply.token_ids == [FAILED_TOKEN, 50]


def test_steps_behind_that_run_already_are_not_listened_to(
    client: Client, blocks: list[int]
) -> None:
    client.prefill(2, 3, {0: [blocks[5], blocks[6]]})
    client.accept(items=[rows(1, 1, sample=True)], decode_ids=[2])
    client.accept(items=[rows(1, 1, sample=True)], decode_ids=[2])
    plan, behind = hand_out(client), hand_out(client)
    client.core.finish(outcome(plan, failing=[plan.entries[0].handle]), 0)
    ((_, reply),) = client.core.finish(outcome(behind), 0)
    assert reply.token_ids == [50]
    assert reply.items[0].row.failure is not None
    assert client.state(1).token_count == 7


def test_rows_left_out_of_a_plan_spoil_nothing_when_its_step_fails(
    client: Client, blocks: list[int]
) -> None:
    client.prefill(2, 4, {0: blocks[5:7]})
    client.accept(decode_ids=[1])
    client.accept(items=[rows(1, 7, 0, replace={0: [blocks[8], blocks[5]]})], releases=[2])
    plan = hand_out(client)
    client.core.finish(outcome(plan, failing=plan.decode_handles), 0)
    behind = hand_out(client)
    assert behind.entries == []
    fail(client, behind)
    new = NewSequence(3, range(1, 6), {0: blocks[5:7]})
    client.run(new_sequences=[new], items=[rows(3, 1, 4)])


def test_what_a_failed_sequence_wrote_is_not_computed(client: Client, blocks: list[int]) -> None:
    client.run(new_sequences=[NewSequence(2, range(1, 9), {0: blocks[5:7]})], items=[rows(2, 4)])
    client.accept(items=[rows(2, 4)])
    plan = hand_out(client)
    client.core.finish(outcome(plan, failing=[plan.entries[0].handle]), 0)
    new = NewSequence(3, range(1, 10), {0: blocks[5:8]})
    client.refuse(
        Reason.BLOCK_UNFILLED, "items[0].start_position", new_sequences=[new], items=[rows(3, 1, 8)]
    )
    client.refuse(
        Reason.BLOCK_SHARED, "items[0].row_count", new_sequences=[new], items=[rows(3, 1, 4)]
    )
    client.run(releases=[2], new_sequences=[new], items=[rows(3, 5, 4)])


@pytest.mark.parametrize("released", [False, True])
def test_a_discarded_step_spoils_what_it_wrote_for_a_sequence_that_failed_meanwhile(
    client: Client, blocks: list[int], released: bool
) -> None:
    """The engine had its rows: that they come to nothing does not undo what they wrote."""
    client.accept(decode_ids=[1])
    client.accept(items=[explicit(1, [9], 2)])
    plan, behind = hand_out(client), hand_out(client)
    client.core.finish(outcome(plan, failing=plan.decode_handles), 0)
    if released:
        client.accept(releases=[1])
    client.ref = client.core.resume(client.ref, client.request_id(), 0).session
    fail(client, behind, Reason.EPOCH_STALE)
    new = NewSequence(2, range(1, 8), {0: [blocks[0], blocks[5]]})
    client.refuse(
        Reason.BLOCK_UNFILLED, "items[0].start_position", new_sequences=[new], items=[rows(2, 3, 4)]
    )
    if not released:
        client.accept(releases=[1])
    client.run(new_sequences=[new], items=[rows(2, 5, 2)])


def test_an_outcome_that_does_not_answer_its_plan_discards_the_step(
    client: Client, blocks: list[int]
) -> None:
    for wrong in (
        {"decode_tokens": []},
        {"decode_tokens": [1], "entry_rows": [SampledRow()]},
    ):
        client.accept(decode_ids=[1])
        plan = hand_out(client)
        ((_, reply),) = client.core.finish(StepOutcome(plan.ticket, **wrong), 0)
        assert reply.error is not None
        assert reply.error.reason is Reason.INTERNAL_DEFECT
        assert client.state(1).position == 6


def test_logprobs_come_in_a_column_of_their_own(client: Client, blocks: list[int]) -> None:
    client.run(
        new_sequences=[NewSequence(2, [1], {0: [blocks[5]]}, Sampling(top_logprobs=1))],
        items=[rows(2, 1, sample=True)],
    )
    assert list(client.run(decode_ids=[1]).logprobs) == []
    client.accept(decode_ids=[1, 2])
    plan = hand_out(client)
    row = SampledRow(7, -0.5, [(7, -0.5)], 1)
    ((_, reply),) = client.core.finish(
        StepOutcome(plan.ticket, decode_tokens=[5, 7], decode_details={1: row}), 0
    )
    assert reply.token_ids == [5, 7]
    assert math.isnan(reply.logprobs[0])
    assert reply.logprobs[1] == -0.5
    (detail,) = reply.details
    assert (detail.sequence_id, detail.position, detail.row) == (2, 2, row)
    assert finish_all(client.core) == {}
