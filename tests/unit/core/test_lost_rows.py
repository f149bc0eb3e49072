"""Rows of a failed sequence that never run: who counted on them never gets what was there before.

Blocks are used again, and what their last owner left counts as computed, so a reader of rows that
come to nothing would find something to read.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from core_client import (
    FACTS,
    FAILURE,
    LIMITS,
    Client,
    explicit,
    finish_all,
    hand_out,
    new,
    outcome,
    rows,
)

from mlxrt.core.core import Core
from mlxrt.core.step import FAILED_TOKEN, Item, NewSequence, StepPlan, TokenSource
from mlxrt.errors import Reason


@pytest.fixture
def blocks(client: Client) -> list[int]:
    """Sequence 1 stands at 8 in the first three, all of which are computed."""
    blocks = client.allocate(12)[0]
    client.run(new_sequences=[new(9, 12, blocks[:3])], items=[rows(9, 12)])
    client.run(releases=[9])
    client.prefill(1, 8, {0: blocks[:3]})
    return blocks


def fail_decode(client: Client, plan: StepPlan) -> None:
    """Sequence 1's row, a decode id, is not finite."""
    ((_, reply),) = client.core.finish(outcome(plan, failing=plan.decode_handles), 0)
    assert reply.token_ids == [FAILED_TOKEN]
    client.core.check_integrity()


def reader(shared: list[int], own: int) -> dict[str, object]:
    """A step of two: sequence 1 goes on from position 6 with other tokens; sequence 2 has those
    too, and starts behind the blocks that they fill.
    """
    tokens = [*range(1, 7), 40, 41, 5]
    return {
        "new_sequences": [NewSequence(2, tokens, {0: [*shared, own]})],
        "items": [explicit(1, [40, 41], 6, sample=True), rows(2, 1, 8, sample=True)],
    }


def test_a_reader_accepted_before_the_failure_fails_with_the_writer(
    client: Client, blocks: list[int]
) -> None:
    client.accept(decode_ids=[1])
    client.accept(**reader(blocks[:2], blocks[4]))
    fail_decode(client, hand_out(client))
    behind = hand_out(client)
    assert behind.entries == []
    ((_, reply),) = client.core.finish(outcome(behind), 0)
    reasons = [item.row.failure and item.row.failure.reason for item in reply.items]
    assert reasons == [Reason.NON_FINITE_LOGITS, Reason.BLOCK_UNFILLED]
    client.run(releases=[1, 2], new_sequences=[new(2, 7, blocks[:2])], items=[rows(2, 1, 6)])


def test_a_step_with_a_reader_that_comes_after_the_failure_is_refused(
    client: Client, blocks: list[int]
) -> None:
    client.accept(decode_ids=[1])
    fail_decode(client, hand_out(client))
    parts = reader(blocks[:2], blocks[4])
    client.refuse(Reason.BLOCK_UNFILLED, "items[1].start_position", **parts)
    # Refused, it took nothing: without the writer the block is what it was.
    parts["items"] = [rows(2, 1, 8, sample=True)]
    assert client.run(**parts).items[0].row.token == 50


def test_what_lies_below_the_lost_rows_is_read(client: Client, blocks: list[int]) -> None:
    client.accept(decode_ids=[1])
    fail_decode(client, hand_out(client))
    reply = client.run(
        new_sequences=[new(2, 7, [blocks[0], blocks[4]])],
        items=[explicit(1, [40, 41], 6), rows(2, 3, 4, sample=True)],
    )
    assert [item.row.failure is None for item in reply.items] == [False, True]
    # From then on the rows count as lost.
    client.refuse(
        Reason.BLOCK_UNFILLED,
        "items[0].start_position",
        new_sequences=[new(3, 9, [*blocks[:2], blocks[5]])],
        items=[rows(3, 1, 8)],
    )


def test_a_decode_id_of_a_failed_sequence_loses_its_row(client: Client, blocks: list[int]) -> None:
    client.run(new_sequences=[new(9, 8, blocks[6:8])], items=[rows(9, 8)])
    client.accept(items=[explicit(1, [40, 41], 6, sample=True)], releases=[9])
    plan = hand_out(client)
    client.core.finish(outcome(plan, failing=[plan.entries[0].handle]), 0)
    # The decode would have filled the first position of the third block.
    parts = {
        "new_sequences": [new(2, 10, [*blocks[6:8], blocks[2]])],
        "items": [rows(2, 1, 9)],
    }
    client.refuse(Reason.BLOCK_UNFILLED, "items[0].start_position", decode_ids=[1], **parts)
    client.refuse(Reason.BLOCK_SHARED, "items[0].row_count", **parts)


def test_blocks_that_a_failed_sequence_was_to_get_are_lost_too() -> None:
    """Three in flight: who sends the third does not know that the second's table change came to
    nothing.
    """
    client = Client(Core(FACTS, replace(LIMITS, max_inflight_steps=3)))
    a, b, c, d = client.allocate(4)[0]
    client.run(new_sequences=[new(9, 8, [b, c])], items=[rows(9, 8)])
    client.run(releases=[9])
    client.run(new_sequences=[new(1, 12, [])], items=[rows(1, 4, append={0: [a]})])
    client.accept(items=[rows(1, 4, append={0: [b]})])
    plan = hand_out(client)
    client.core.finish(outcome(plan, failing=[plan.entries[0].handle]), 0)
    client.run(items=[rows(1, 4, append={0: [c]})])
    assert client.state(1).tables == {0: [a, b]}
    client.refuse(
        Reason.BLOCK_UNFILLED,
        "items[0].start_position",
        new_sequences=[NewSequence(2, range(9, 14), {0: [c, d]})],
        items=[rows(2, 1, 4)],
    )


def test_rows_of_an_unknown_place_lose_nothing(client: Client, blocks: list[int]) -> None:
    """Nobody with a right table could have meant them."""
    client.accept(decode_ids=[1])
    fail_decode(client, hand_out(client))
    before = [block.filled for block in client.core._state.sessions["a"].blocks[0].values()]
    client.run(items=[rows(1, 4, 1 << 40)])
    client.run(items=[rows(1, 4, -(1 << 40))])
    client.run(items=[Item(1, 4, 0, TokenSource.REGISTERED, replace={7: [1], 0: [99, 0]})])
    client.run(items=[Item(1, 4, 0, TokenSource.REGISTERED, leading_holes={0: 1 << 40, 7: 1})])
    after = [block.filled for block in client.core._state.sessions["a"].blocks[0].values()]
    assert after == before


def test_a_block_that_others_name_is_not_lost(client: Client, blocks: list[int]) -> None:
    client.run(
        new_sequences=[new(2, 9, [*blocks[:2], blocks[4]])], items=[rows(2, 1, 8, sample=True)]
    )
    client.accept(decode_ids=[1])
    fail_decode(client, hand_out(client))
    client.run(items=[explicit(1, [40, 41], 6)])
    client.run(new_sequences=[new(3, 9, [*blocks[:2], blocks[5]])], items=[rows(3, 1, 8)])
    assert client.run(decode_ids=[2]).token_ids == [50]


def test_a_discarded_step_gives_back_what_its_lost_rows_took(
    client: Client, blocks: list[int]
) -> None:
    client.accept(decode_ids=[1])
    fail_decode(client, hand_out(client))
    client.accept(items=[explicit(1, [40, 41], 6)])
    ((_, reply),) = client.core.finish(outcome(hand_out(client), failure=FAILURE), 0)
    assert reply.error is not None
    client.core.check_integrity()
    client.run(new_sequences=[new(2, 9, [*blocks[:2], blocks[5]])], items=[rows(2, 1, 8)])
    assert finish_all(client.core) == {}
