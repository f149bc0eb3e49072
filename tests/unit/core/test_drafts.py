"""Drafts: what is planned while nobody knows how many are accepted, and what is true afterwards."""

from __future__ import annotations

import pytest
from core_client import FACTS, FAILURE, Client, hand_out, outcome, refused, rows

from mlxrt.core.core import Core
from mlxrt.core.model import Limits
from mlxrt.core.step import Item, NewSequence, SampledRow, StepOutcome, StepPlan, TokenSource
from mlxrt.core.verification import verify
from mlxrt.errors import MlxrtError, Reason

LAST = TokenSource.LAST_SAMPLED
NAN = MlxrtError(Reason.NON_FINITE_LOGITS, "NaN")


@pytest.fixture
def blocks(client: Client) -> list[int]:
    return client.allocate(16)[0]


def drafts(sequence_id: int, tokens: list[int], **more: object) -> Item:
    """A decode that verifies `tokens`."""
    return rows(sequence_id, source=LAST, sample=True, draft_tokens=tokens, **more)


def answer(plan: StepPlan, *drawn: list[int]) -> StepOutcome:
    """What an engine answers that draws these tokens in the rows of each entry."""
    told = outcome(plan)
    told.entry_rows = [
        verify(entry.draft_tokens, [SampledRow(token=token) for token in tokens])
        for entry, tokens in zip(plan.entries, drawn, strict=True)
    ]
    return told


def finish(client: Client, plan: StepPlan, *drawn: list[int]) -> object:
    ((_, reply),) = client.core.finish(answer(plan, *drawn), 0)
    client.core.check_integrity()
    return reply


@pytest.mark.parametrize(
    ("drawn", "accepted"),
    [([8, 9, 10], 0), ([7, 9, 10], 1), ([7, 8, 9], 2), ([9, 8, 9], 0)],
)
def test_a_prefix_is_accepted_and_one_token_more_is_sampled(
    client: Client, blocks: list[int], drawn: list[int], accepted: int
) -> None:
    client.prefill(1, 3, {0: blocks[:3]})
    client.accept(items=[drafts(1, [7, 8])])
    plan = hand_out(client)
    assert (plan.entries[0].start, plan.entries[0].count) == (3, 1)
    assert list(plan.entries[0].draft_tokens) == [7, 8]
    reply = finish(client, plan, drawn)
    assert reply.items[0].position == 4 + accepted
    assert len(reply.items[0].row.accepted) == accepted
    state = client.state(1)
    assert state.position == 4 + accepted == state.token_count - 1
    assert state.token_ids == [1, 2, 3, 50, *drawn[: accepted + 1]]
    assert client.run(decode_ids=[1]).token_ids == [50]
    assert client.state(1).position == 5 + accepted


def test_what_follows_the_accepted_drafts_counts_as_not_computed(
    client: Client, blocks: list[int]
) -> None:
    client.prefill(1, 3, {0: blocks[:3]})
    client.accept(items=[drafts(1, [7, 8, 9])])
    finish(client, hand_out(client), [7, 50, 50, 50])
    # Positions 3 and 4 are computed, 5 and 6 hold drafts that nobody sampled.
    shared = NewSequence(2, range(1, 9), {0: blocks[:2] + blocks[5:6]})
    client.refuse(
        Reason.BLOCK_UNFILLED,
        "items[0].start_position",
        new_sequences=[shared],
        items=[rows(2, 1, 6)],
    )
    copied = NewSequence(2, range(1, 9), {0: [blocks[0], blocks[6], blocks[5]]})
    client.run(
        copies=[(0, blocks[1], blocks[6])], new_sequences=[copied], items=[rows(2, 3, 5)]
    )


def test_rows_of_an_unsettled_sequence_are_refused_and_table_changes_are_not(
    client: Client, blocks: list[int]
) -> None:
    client.prefill(1, 3, {0: blocks[:2]})
    client.prefill(2, 3, {0: blocks[2:4]})
    client.accept(items=[drafts(1, [7, 8])])
    client.refuse(Reason.POSITION_UNKNOWN, "decode_sequence_ids[1]", decode_ids=[2, 1])
    client.refuse(Reason.POSITION_UNKNOWN, "items[0].row_count", items=[rows(1, 1, 0)])
    replaced = rows(1, 1, 0, replace={0: blocks[4:5]})
    client.refuse(Reason.POSITION_UNKNOWN, "items[0].row_count", items=[replaced])
    client.accept(decode_ids=[2], items=[Item(1, append={0: blocks[4:5]})])
    finish(client, hand_out(client), [7, 8, 9])
    reply = finish(client, hand_out(client))
    assert reply.items[0].position == 6
    assert client.run(decode_ids=[1, 2]).token_ids == [50, 50]
    assert client.state(1).token_ids == [1, 2, 3, 50, 7, 8, 9, 50]


def test_preemption_behind_drafts_keeps_the_accepted_tokens(
    client: Client, blocks: list[int]
) -> None:
    client.prefill(1, 3, {0: blocks[:2]})
    client.accept(items=[drafts(1, [7, 8])])
    client.accept(items=[Item(1, replace={})])
    finish(client, hand_out(client), [7, 8, 9])
    reply = finish(client, hand_out(client))
    assert reply.items[0].position == 0
    state = client.state(1)
    assert (state.position, state.token_ids) == (0, [1, 2, 3, 50, 7, 8, 9])
    client.run(items=[rows(1, 7, 0, sample=True, replace={0: blocks[4:6]})])
    assert client.state(1).position == 7


def test_a_copy_onto_drafts_in_flight_is_not_taken_for_them(
    client: Client, blocks: list[int]
) -> None:
    """The next step copies a block of one position over the block in which the drafts lie."""
    client.prefill(1, 3, {0: blocks[:2]})
    client.prefill(2, 1, {0: blocks[2:3]})
    client.accept(items=[drafts(1, [7, 8])])
    client.accept(copies=[(0, blocks[2], blocks[1])])
    finish(client, hand_out(client), [7, 8, 9])
    finish(client, hand_out(client))
    shared = NewSequence(3, range(1, 9), {0: blocks[:2]})
    client.refuse(
        Reason.BLOCK_UNFILLED,
        "items[0].start_position",
        new_sequences=[shared],
        items=[rows(3, 1, 6)],
    )


def test_a_copy_of_drafts_in_flight_takes_those_that_are_accepted(
    client: Client, blocks: list[int]
) -> None:
    """The next step copies the block in which the drafts lie, and a sequence goes on in the copy:
    its block is computed further than it stands once they are accepted.
    """
    client.prefill(1, 5, {0: blocks[:2]})
    client.accept(items=[drafts(1, [7, 8])])
    copied = NewSequence(2, [1, 2, 3, 4, 5, 50, 6], {0: [blocks[0], blocks[2]]})
    client.accept(
        copies=[(0, blocks[1], blocks[2])],
        new_sequences=[copied],
        items=[rows(2, 1, 6, sample=True)],
    )
    finish(client, hand_out(client), [7, 8, 9])
    finish(client, hand_out(client), [40])
    assert client.state(1).position == 8
    assert client.run(decode_ids=[2]).token_ids == [50]
    assert client.state(2).token_ids == [1, 2, 3, 4, 5, 50, 6, 40, 50]


def test_a_block_with_drafts_in_flight_may_be_taken_by_another_sequence(
    client: Client, blocks: list[int]
) -> None:
    """Its former rows leave the block computed further than the new sequence stands."""
    client.prefill(1, 4, {0: blocks[:2]})
    client.accept(items=[drafts(1, [7, 8])])
    client.accept(
        releases=[1],
        new_sequences=[NewSequence(2, [6], {0: blocks[1:2]})],
        items=[rows(2, 1, sample=True)],
    )
    finish(client, hand_out(client), [7, 8, 9])
    finish(client, hand_out(client), [40])
    assert client.run(decode_ids=[2]).token_ids == [50]
    assert client.state(2).token_ids == [6, 40, 50]


def test_a_failed_step_takes_its_drafts_with_it(client: Client, blocks: list[int]) -> None:
    client.prefill(1, 3, {0: blocks[:2]})
    client.accept(items=[drafts(1, [7, 8])])
    plan = hand_out(client)
    client.core.finish(outcome(plan, failure=FAILURE), 0)
    client.core.check_integrity()
    assert client.state(1).token_ids == [1, 2, 3, 50]
    client.accept(items=[drafts(1, [7, 8])])
    finish(client, hand_out(client), [7, 8, 9])
    assert client.state(1).token_count == 7


def test_a_take_over_settles_the_sequence(client: Client, blocks: list[int]) -> None:
    client.prefill(1, 3, {0: blocks[:2]})
    client.accept(items=[drafts(1, [7])])
    plan = hand_out(client)
    client.ref = client.core.resume(client.ref, "resume", 0).session
    client.core.finish(answer(plan, [7, 8]), 0)
    client.core.check_integrity()
    assert client.state(1).token_ids == [1, 2, 3, 50]
    assert client.run(decode_ids=[1]).token_ids == [50]


def test_one_sequence_fails_among_drafts(client: Client, blocks: list[int]) -> None:
    client.prefill(1, 3, {0: blocks[:2]})
    client.prefill(2, 3, {0: blocks[2:4]})
    client.accept(items=[drafts(1, [7]), drafts(2, [8])])
    plan = hand_out(client)
    told = answer(plan, [7, 9], [8, 9])
    told.entry_rows[0] = SampledRow(failure=NAN)
    ((_, reply),) = client.core.finish(told, 0)
    client.core.check_integrity()
    assert reply.items[0].row.failure is NAN
    assert client.state(1).position == 3
    assert client.state(2).token_ids == [1, 2, 3, 50, 8, 9]


def test_an_engine_that_accepts_what_was_no_draft_is_a_defect(
    client: Client, blocks: list[int]
) -> None:
    client.prefill(1, 3, {0: blocks[:2]})
    client.accept(items=[drafts(1, [7])])
    told = outcome(hand_out(client))
    told.entry_rows = [SampledRow(token=3, accepted=[SampledRow(token=6)])]
    ((_, reply),) = client.core.finish(told, 0)
    assert reply.error is not None and reply.error.reason is Reason.INTERNAL_DEFECT


def test_bad_drafts_are_refused_by_field(client: Client, blocks: list[int]) -> None:
    client.prefill(1, 3, {0: blocks[:2]})
    path = "items[0].draft_token_ids"
    client.refuse(Reason.FIELD_INVALID, f"{path}[1]", items=[drafts(1, [7, 100])])
    unsampled = rows(1, source=LAST, draft_tokens=[7])
    client.refuse(Reason.FIELD_INVALID, path, items=[unsampled])
    logits = drafts(1, [7], return_logits=True)
    client.refuse(Reason.FIELD_INVALID, "items[0].return_logits", items=[logits])
    bare = Item(1, append={0: blocks[4:5]}, draft_tokens=[7])
    client.refuse(Reason.FIELD_INVALID, path, items=[bare])
    client.refuse(Reason.TABLE_TOO_SHORT, "items[0].row_count", items=[drafts(1, [7] * 5)])
    client.accept(items=[drafts(1, [7] * 4)])


def test_drafts_and_the_token_after_them_stay_inside_the_model_length(
    client: Client, blocks: list[int]
) -> None:
    client.prefill(1, 28, {0: blocks[:8]})
    error = client.refuse(
        Reason.LIMIT_EXCEEDED, "items[0].draft_token_ids", items=[drafts(1, [7, 8, 9])]
    )
    assert error.metadata == {"limit": "max_model_length", "maximum": "32", "value": "33"}
    client.accept(items=[drafts(1, [7, 8])])


def test_max_step_drafts_counts_all_items() -> None:
    client = Client(Core(FACTS, Limits(max_step_drafts=3, max_step_rows=6)))
    blocks = client.allocate(8)[0]
    client.prefill(1, 3, {0: blocks[:3]})
    client.prefill(2, 3, {0: blocks[3:6]})
    error = client.refuse(
        Reason.LIMIT_EXCEEDED, "items", items=[drafts(1, [7, 7]), drafts(2, [7, 7])]
    )
    assert error.metadata["limit"] == "max_step_drafts"
    wide = rows(2, 4, 0, sample=True, draft_tokens=[7])
    error = client.refuse(Reason.LIMIT_EXCEEDED, "items", items=[drafts(1, [7, 7]), wide])
    assert (error.metadata["limit"], error.metadata["value"]) == ("max_step_rows", "8")
    client.accept(items=[drafts(1, [7, 7]), drafts(2, [7])])


def test_rows_behind_the_first_draft_that_was_not_drawn_mean_nothing() -> None:
    good, bad = SampledRow(token=4), SampledRow(failure=NAN)
    assert verify([5, 6], [good, bad, bad]) is good and good.accepted == []
    assert verify([4], [SampledRow(token=4), bad]).failure is NAN
    assert verify([], [bad]) is bad


def test_a_released_sequence_leaves_its_drafts_behind(client: Client, blocks: list[int]) -> None:
    client.prefill(1, 3, {0: blocks[:2]})
    client.accept(items=[drafts(1, [7, 8])])
    plan = hand_out(client)
    client.core.free_sequences(client.ref, "free", [1], 0, free_blocks=False)
    finish(client, plan, [7, 8, 9])
    refused(
        client.core, Reason.SEQUENCE_UNKNOWN, "sequence_ids[0]",
        lambda: client.core.free_sequences(client.ref, "x", [1], 0, free_blocks=False),
    )  # fmt: skip


@pytest.mark.parametrize(("drawn", "computed"), [([9, 9, 9], 2), ([7, 9, 9], 3), ([7, 8, 9], 4)])
def test_rejected_drafts_take_the_place_of_what_was_computed_there(
    client: Client, blocks: list[int], drawn: list[int], computed: int
) -> None:
    """The block had been filled by somebody before: what they wrote over counts no longer."""
    a, b, c = blocks[:3]
    client.run(new_sequences=[NewSequence(9, range(1, 9), {0: [a, b]})], items=[rows(9, 8)])
    client.run(releases=[9])
    client.prefill(1, 5, {0: [a, b, c]})
    client.accept(items=[drafts(1, [7, 8])])
    finish(client, hand_out(client), drawn)
    client.run(releases=[1])
    parts = {"new_sequences": [NewSequence(2, range(1, 10), {0: [a, b, c]})]}
    end = 4 + computed
    if end < 8:
        beyond = [rows(2, 1, end + 1)]
        client.refuse(Reason.BLOCK_UNFILLED, "items[0].start_position", items=beyond, **parts)
    client.run(items=[rows(2, 1, end)], **parts)
