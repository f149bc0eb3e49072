"""Rows that read what rows before them in the same step compute."""

from __future__ import annotations

from dataclasses import replace

import pytest
from core_client import FACTS, FAILURE, LIMITS, Client, finish_all, hand_out, new, outcome, rows

from mlxrt.core.core import Core
from mlxrt.core.step import FAILED_TOKEN, Item, NewSequence, TokenSource
from mlxrt.errors import Reason


@pytest.fixture
def blocks(client: Client) -> list[int]:
    return client.allocate(12)[0]


def test_each_item_of_a_chain_reads_what_those_before_it_fill(
    client: Client, blocks: list[int]
) -> None:
    a, b, c, d, e = blocks[:5]
    reply = client.run(
        new_sequences=[new(1, 6, [a, b]), new(2, 9, [a, c, d]), new(3, 10, [a, c, e])],
        items=[
            rows(1, 6, sample=True),
            rows(2, 5, 4, sample=True),
            rows(3, 2, 8, sample=True),
        ],
    )
    assert [item.position for item in reply.items] == [6, 9, 10]
    reply = client.run(decode_ids=[1, 2, 3])
    assert reply.token_ids == [50, 50, 50]


def test_a_reader_stands_behind_what_it_reads(client: Client, blocks: list[int]) -> None:
    a, b, c = blocks[:3]
    parts = {"new_sequences": [new(1, 6, [a, b]), new(2, 6, [a, c])]}
    writer, reader = rows(1, 6), rows(2, 2, 4)
    client.refuse(Reason.BLOCK_UNFILLED, "items[0].start_position", items=[reader, writer], **parts)
    client.run(new_sequences=[new(3, 4, [a])], items=[rows(3, 4)])
    client.run(releases=[3])
    # The block is computed now, by somebody who is gone: the reader would not get that.
    client.refuse(Reason.BLOCK_SHARED, "items[1].row_count", items=[reader, writer], **parts)
    client.run(items=[writer, reader], **parts)


def test_a_reader_may_come_by_replacing_or_appending(client: Client, blocks: list[int]) -> None:
    a, b, c, d, e = blocks[:5]
    client.run(new_sequences=[new(2, 9, [c]), new(3, 9, [d])], items=[rows(2, 4), rows(3, 2)])
    client.run(
        new_sequences=[new(1, 8, [a, b])],
        items=[
            rows(1, 8),
            rows(2, 1, 8, append={0: [b, e]}, sample=True),
            rows(3, 5, 4, replace={0: [a, d, blocks[5]]}, sample=True),
        ],
    )
    assert client.state(2).tables == {0: [c, b, e]}
    client.run(decode_ids=[2, 3])


def test_a_decode_id_stands_before_every_item(client: Client, blocks: list[int]) -> None:
    client.prefill(1, 3, {0: [blocks[0]]})
    tokens = [1, 2, 3, 50, 9]
    reply = client.run(
        new_sequences=[NewSequence(2, tokens, {0: blocks[:2]})],
        decode_ids=[1],
        items=[rows(2, 1, 4, sample=True)],
    )
    assert (reply.token_ids, reply.items[0].position) == ([50], 5)


def test_who_had_the_block_before_or_has_no_rows_keeps_it_from_being_written(
    client: Client, blocks: list[int]
) -> None:
    a, b, c = blocks[:3]
    client.run(new_sequences=[new(2, 6, [a, c])])
    client.refuse(
        Reason.BLOCK_SHARED,
        "items[0].row_count",
        new_sequences=[new(1, 6, [a, b])],
        items=[rows(1, 6), rows(2, 2, 4)],
    )
    client.refuse(
        Reason.BLOCK_SHARED,
        "items[0].row_count",
        new_sequences=[new(1, 6, [b]), new(3, 6, [b])],
        items=[rows(1, 4), Item(3, append={0: [blocks[4]]})],
    )
    client.refuse(
        Reason.BLOCK_SHARED,
        "items[1].row_count",
        new_sequences=[new(1, 6, [b]), new(3, 6, [b])],
        items=[rows(1, 4), rows(3, 4)],
    )


def test_positions_that_no_row_fills_are_not_read(client: Client, blocks: list[int]) -> None:
    a, b, c = blocks[:3]
    client.refuse(
        Reason.BLOCK_UNFILLED,
        "items[1].start_position",
        new_sequences=[new(1, 6, [a, b]), new(2, 6, [a, c])],
        items=[rows(1, 3), rows(2, 2, 4)],
    )


@pytest.mark.parametrize("computed_before", [False, True])
def test_drafts_fill_nothing_for_others(
    client: Client, blocks: list[int], computed_before: bool
) -> None:
    a, b, c = blocks[:3]
    if computed_before:
        client.run(new_sequences=[new(9, 4, [b])], items=[rows(9, 4)])
        client.run(releases=[9])
    client.prefill(1, 4, {0: [a]})
    item = Item(1, 1, None, TokenSource.LAST_SAMPLED, sample=True, append={0: [b]})
    item.draft_tokens = [7, 7, 7]
    client.refuse(
        Reason.BLOCK_SHARED,
        "items[0].draft_token_ids",
        new_sequences=[new(2, 9, [a, b, c])],
        items=[item, rows(2, 1, 8)],
    )


def test_drafts_behind_a_full_block_leave_it_readable(client: Client, blocks: list[int]) -> None:
    a, b, c = blocks[:3]
    client.prefill(1, 3, {0: [a]})
    item = Item(1, 1, None, TokenSource.LAST_SAMPLED, sample=True, append={0: [b]})
    item.draft_tokens = [7, 7]
    client.run(new_sequences=[new(2, 5, [a, c])], items=[item, rows(2, 1, 4)])


def test_a_copy_is_made_before_any_row(client: Client, blocks: list[int]) -> None:
    a, b, c = blocks[:3]
    client.refuse(
        Reason.BLOCK_UNFILLED,
        "items[1].start_position",
        copies=[(0, a, c)],
        new_sequences=[new(1, 6, [a, b]), new(2, 5, [c, blocks[3]])],
        items=[rows(1, 6), rows(2, 1, 4)],
    )


def test_the_reader_fails_with_the_sequence_that_was_to_fill(
    client: Client, blocks: list[int]
) -> None:
    a, b, c, d = blocks[:4]
    client.prefill(4, 3, {0: [d, blocks[6]]})
    client.accept(
        new_sequences=[new(1, 6, [a, b]), new(2, 6, [a, c])],
        decode_ids=[4],
        items=[rows(1, 6, sample=True), rows(2, 2, 4, sample=True)],
    )
    plan = hand_out(client)
    ((_, reply),) = client.core.finish(outcome(plan, failing=[plan.entries[0].handle]), 0)
    client.core.check_integrity()
    assert reply.token_ids == [50]
    writer, reader = (item.row.failure for item in reply.items)
    assert writer is not None and writer.reason is Reason.NON_FINITE_LOGITS
    assert reader is not None and reader.reason is Reason.BLOCK_UNFILLED
    assert (client.state(2).position, client.state(2).token_count) == (0, 6)
    assert client.core.counters.sequences_failed == {
        Reason.NON_FINITE_LOGITS: 1,
        Reason.BLOCK_UNFILLED: 1,
    }
    # Nothing that either wrote counts, and both go.
    for block in (a, c):
        client.refuse(
            Reason.BLOCK_UNFILLED,
            "items[0].start_position",
            new_sequences=[new(3, 5, [block, blocks[5]])],
            items=[rows(3, 1, 4)],
        )
    client.run(releases=[1, 2], new_sequences=[new(2, 6, [a, c])], items=[rows(2, 6, sample=True)])
    assert client.run(decode_ids=[2, 4]).token_ids == [50, 50]


def test_a_decode_that_fails_takes_its_reader_with_it(client: Client, blocks: list[int]) -> None:
    client.prefill(1, 3, {0: [blocks[0]]})
    client.accept(
        new_sequences=[NewSequence(2, [1, 2, 3, 50, 9], {0: blocks[:2]})],
        decode_ids=[1],
        items=[rows(2, 1, 4, sample=True)],
    )
    plan = hand_out(client)
    ((_, reply),) = client.core.finish(outcome(plan, failing=plan.decode_handles), 0)
    assert reply.token_ids == [FAILED_TOKEN]
    failure = reply.items[0].row.failure
    assert failure is not None and failure.reason is Reason.BLOCK_UNFILLED


@pytest.mark.parametrize("ran", [False, True])
def test_a_writer_that_failed_a_step_earlier_takes_its_reader_with_it(
    client: Client, blocks: list[int], ran: bool
) -> None:
    """Where its rows are left out, the reader would meet what the block's last owner left."""
    a, b, c, d = blocks[:4]
    client.run(new_sequences=[new(1, 8, [d, a, b]), new(4, 3, [blocks[5]])])
    client.accept(items=[rows(1, 4), rows(4, 3, sample=True)])
    client.accept(
        new_sequences=[NewSequence(2, range(1, 10), {0: [d, a, c]})],
        decode_ids=[4],
        items=[rows(1, 4), rows(2, 1, 8, sample=True)],
    )
    plan = hand_out(client)
    behind = hand_out(client) if ran else None
    client.core.finish(outcome(plan, failing=[plan.entries[0].handle]), 0)
    client.core.check_integrity()
    assert client.state(2).failure is not None
    if behind is None:
        behind = hand_out(client)
        assert behind.entries == []
    ((_, reply),) = client.core.finish(outcome(behind), 0)
    assert reply.token_ids == [50]
    assert [item.row.failure is not None for item in reply.items] == [True, True]


def test_a_reader_of_a_later_step_fails_too_where_the_writer_never_ran() -> None:
    """Three in flight: the writer fails in the first, is left out of the second, and the third
    reads.
    """
    client = Client(Core(FACTS, replace(LIMITS, max_inflight_steps=3)))
    a, b, c, d = client.allocate(4)[0]
    client.run(new_sequences=[new(1, 8, [a, b])])
    client.accept(items=[rows(1, 4)])
    client.accept(items=[rows(1, 4)])
    client.accept(
        new_sequences=[new(2, 9, [a, b, c]), new(3, 2, [d])],
        items=[rows(2, 1, 8, sample=True), rows(3, 2, sample=True)],
    )
    plan = hand_out(client)
    client.core.finish(outcome(plan, failing=[plan.entries[0].handle]), 0)
    second = hand_out(client)
    assert second.entries == []
    client.core.finish(outcome(second), 0)
    last = hand_out(client)
    assert [entry.count for entry in last.entries] == [2], "only the sequence that reads nothing"
    ((_, reply),) = client.core.finish(outcome(last), 0)
    reasons = [item.row.failure and item.row.failure.reason for item in reply.items]
    assert reasons == [Reason.BLOCK_UNFILLED, None]


def test_who_reads_only_below_what_is_lost_goes_on(client: Client, blocks: list[int]) -> None:
    a, b = blocks[:2]
    client.prefill(1, 5, {0: [a, b]})
    client.accept(decode_ids=[1])
    client.accept(
        releases=[1], new_sequences=[new(2, 6, [a, b])], items=[rows(2, 1, 5, sample=True)]
    )
    plan = hand_out(client)
    client.core.finish(outcome(plan, failing=plan.decode_handles), 0)
    ((_, reply),) = client.core.finish(outcome(hand_out(client)), 0)
    assert (reply.items[0].row.token, reply.items[0].position) == (50, 6)


def test_a_discarded_step_undoes_what_its_items_filled_for_each_other(
    client: Client, blocks: list[int]
) -> None:
    a, b, c = blocks[:3]
    parts = {
        "new_sequences": [new(1, 6, [a, b]), new(2, 6, [a, c])],
        "items": [rows(1, 6, sample=True), rows(2, 2, 4, sample=True)],
    }
    client.accept(**parts)
    client.accept(decode_ids=[1, 2])
    plan = hand_out(client)
    client.core.finish(outcome(plan, failure=FAILURE), 0)
    ((_, reply),) = client.core.finish(outcome(hand_out(client)), 0)
    assert reply.error is not None and reply.error.reason is Reason.PREDECESSOR_FAILED
    client.core.check_integrity()
    assert [client.state(i).position for i in (1, 2)] == [0, 0]
    # Both tables name the block since before: it is filled by whoever has it alone.
    client.refuse(
        Reason.BLOCK_UNFILLED, "items[0].start_position", items=[rows(2, 2, 4, sample=True)]
    )
    client.refuse(Reason.BLOCK_SHARED, "items[0].row_count", items=[rows(1, 6)])
    client.run(
        items=[
            rows(1, 6, 0, replace={0: [a, b]}, sample=True),
            rows(2, 2, 4, replace={0: [a, c]}, sample=True),
        ]
    )
    assert client.run(decode_ids=[1, 2]).token_ids == [50, 50]


def test_groups_are_filled_alike(windowed: Client) -> None:
    full, window = windowed.allocate(6, 6).values()
    windowed.run(
        new_sequences=[
            NewSequence(1, range(1, 13), {0: full[:3], 1: window[:3]}),
            NewSequence(
                2, range(1, 14), {0: [*full[:3], full[4]], 1: [0, 0, window[2], window[4]]}
            ),
        ],
        items=[rows(1, 12, sample=True), rows(2, 1, 12, sample=True)],
    )
    assert windowed.run(decode_ids=[2]).token_ids == [50]
    windowed.refuse(
        Reason.BLOCK_UNFILLED,
        "items[0].start_position",
        new_sequences=[
            NewSequence(3, range(1, 14), {0: [*full[:3], full[5]], 1: [0, 0, window[5], window[3]]})
        ],
        items=[rows(3, 1, 12)],
    )
    assert finish_all(windowed.core) == {}
