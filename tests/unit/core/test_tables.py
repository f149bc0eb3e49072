"""Tables: holes, sharing, copies, and what rows may read and write through them."""

from __future__ import annotations

from typing import Any

import pytest
from core_client import FAILURE, Client, finish_all, outcome, rows

from mlxrt.core.step import Item, NewSequence, TableUpdate
from mlxrt.errors import Reason


def change(sequence_id: int, **tables: Any) -> Item:
    """A table change alone."""
    return Item(sequence_id, **tables)


@pytest.fixture
def blocks(client: Client) -> list[int]:
    return client.allocate(12)[0]


@pytest.fixture
def foreign(client: Client) -> int:
    """A block of another session."""
    return Client(client.core, "b").allocate(1)[0][0]


def test_ids_in_tables_are_named_where_they_are_wrong(
    client: Client, blocks: list[int], foreign: int
) -> None:
    client.run(new_sequences=[NewSequence(1, [1])])
    for block_id, reason in (
        (foreign, Reason.BLOCK_NOT_LEASED),
        (16, Reason.BLOCK_NOT_LEASED),
        (17, Reason.FIELD_INVALID),
    ):
        tables = {0: [blocks[0], 0, block_id]}
        tail = "tables[0].block_ids[2]"
        client.refuse(reason, f"items[0].append.{tail}", items=[change(1, append=tables)])
        client.refuse(reason, f"items[0].replace.{tail}", items=[change(1, replace=tables)])
        client.refuse(
            reason, f"new_sequences[0].{tail}", new_sequences=[NewSequence(2, [1], tables)]
        )
    wrong = {0: [], 1: [1]}
    invalid = Reason.FIELD_INVALID
    client.refuse(invalid, "items[0].append.tables[1].group", items=[change(1, append=wrong)])
    client.refuse(invalid, "items[0].replace.tables[1].group", items=[change(1, replace=wrong)])
    client.refuse(
        invalid, "items[0].leading_holes[1].group", items=[change(1, leading_holes={0: 0, 1: 0})]
    )
    client.refuse(
        invalid, "items[0].leading_holes[0].count", items=[change(1, leading_holes={0: 1})]
    )


def test_rows_past_the_table_and_in_holes_are_refused(client: Client, blocks: list[int]) -> None:
    client.run(new_sequences=[NewSequence(1, range(1, 13), {0: [blocks[0], 0]})])
    client.refuse(Reason.BLOCK_HOLE, "items[0].row_count", items=[rows(1, 5)])
    client.run(items=[rows(1, 4)])
    client.refuse(Reason.BLOCK_HOLE, "items[0].row_count", items=[rows(1)])
    client.run(items=[change(1, append={0: [blocks[1]]})])
    client.refuse(Reason.BLOCK_HOLE, "items[0].start_position", items=[rows(1, 1, 8)])
    client.run(items=[rows(1, 8, 0, replace={0: blocks[:2]})])
    client.refuse(Reason.TABLE_TOO_SHORT, "items[0].row_count", items=[rows(1)])
    client.run(items=[rows(1, 4, append={0: [blocks[2]]})])


def test_leading_holes_let_go_of_blocks(client: Client, blocks: list[int]) -> None:
    client.prefill(1, 8, {0: blocks[:3]})
    client.run(items=[change(1, leading_holes={0: 1})])
    assert client.state(1).tables == {0: [0, blocks[1], blocks[2]]}
    client.refuse(Reason.BLOCK_HOLE, "decode_sequence_ids[0]", decode_ids=[1])
    client.core.free_blocks(client.ref, "f", {0: [blocks[0]]}, 0)


def test_a_window_reads_no_further_back(windowed: Client) -> None:
    full, window = windowed.allocate(4, 4).values()
    windowed.prefill(1, 9, {0: full, 1: window})
    windowed.run(items=[rows(1, 1, sample=True, leading_holes={1: 1})])
    windowed.run(decode_ids=[1])
    windowed.run(decode_ids=[1], items=[])
    windowed.refuse(Reason.BLOCK_HOLE, "items[0].start_position", items=[rows(1, 1, 6)])
    windowed.run(items=[rows(1, 1, 7)])


def test_a_window_needs_only_what_it_reads(windowed: Client) -> None:
    full, window = windowed.allocate(4, 4).values()
    windowed.prefill(1, 8, {0: full[:3], 1: window[:3]})
    tables = {0: [*full[:2], full[3]], 1: [0, window[1], window[3]]}
    windowed.run(
        new_sequences=[NewSequence(2, [*range(1, 9), 50], tables)],
        items=[rows(2, 1, 8, sample=True)],
    )
    assert windowed.run(decode_ids=[2]).token_ids == [50]


def test_a_shared_block_may_be_read_but_not_written(client: Client, blocks: list[int]) -> None:
    client.prefill(1, 6, {0: blocks[:2]})
    shared = NewSequence(2, range(1, 8), {0: blocks[:2]})
    client.refuse(
        Reason.BLOCK_SHARED, "items[0].row_count", new_sequences=[shared], items=[rows(2, 1, 6)]
    )
    client.refuse(
        Reason.BLOCK_SHARED, "decode_sequence_ids[0]", new_sequences=[shared], decode_ids=[1]
    )
    client.run(new_sequences=[shared])
    client.refuse(Reason.BLOCK_SHARED, "decode_sequence_ids[0]", decode_ids=[1])
    client.run(releases=[2], decode_ids=[1])
    client.run(new_sequences=[NewSequence(2, range(1, 8), {0: [blocks[0], blocks[3]]})])
    client.accept(decode_ids=[1], items=[rows(2, 3, 4, sample=True)])
    client.accept(decode_ids=[2])
    assert all(reply.error is None for reply in finish_all(client.core).values())


def test_a_block_twice_in_one_table_is_shared(client: Client, blocks: list[int]) -> None:
    new = NewSequence(1, range(1, 9), {0: [blocks[0], blocks[0]]})
    client.refuse(
        Reason.BLOCK_SHARED, "items[0].row_count", new_sequences=[new], items=[rows(1, 4)]
    )


def test_copy_on_write_in_one_step(client: Client, blocks: list[int]) -> None:
    a, b, c = blocks[:3]
    client.prefill(1, 6, {0: [a, b]})
    client.run(new_sequences=[NewSequence(2, [*range(1, 7), 50], {0: [a, b]})])
    client.run(
        copies=[(0, b, c)], decode_ids=[1], items=[rows(2, 1, 6, replace={0: [a, c]}, sample=True)]
    )
    assert client.state(2).position == 7
    assert client.run(decode_ids=[1, 2]).token_ids == [50, 50]


def test_copies_are_checked(client: Client, blocks: list[int], foreign: int) -> None:
    a, b, c = blocks[:3]
    client.prefill(1, 6, {0: [a, b]})
    client.run(new_sequences=[NewSequence(2, [1], {0: [a]})])
    fine = (0, a, c)
    for copy, reason, field in (
        ((1, a, c), Reason.FIELD_INVALID, "group"),
        ((0, foreign, blocks[3]), Reason.BLOCK_NOT_LEASED, "source_block_id"),
        ((0, 0, blocks[3]), Reason.BLOCK_NOT_LEASED, "source_block_id"),
        ((0, a, foreign), Reason.BLOCK_NOT_LEASED, "destination_block_id"),
        ((0, a, 99), Reason.FIELD_INVALID, "destination_block_id"),
        ((0, b, c), Reason.SLOT_CONFLICT, "destination_block_id"),
        ((0, b, a), Reason.BLOCK_SHARED, "destination_block_id"),
    ):
        client.refuse(reason, f"block_copies[1].{field}", copies=[fine, copy])
    client.run(copies=[fine])


def test_a_copy_is_computed_as_far_as_its_source(client: Client, blocks: list[int]) -> None:
    a, b, c, d = blocks[:4]
    client.prefill(1, 6, {0: [a, b]})
    client.run(copies=[(0, b, c), (0, a, b), (0, c, d)])
    client.refuse(
        Reason.BLOCK_UNFILLED, "items[0].start_position", items=[rows(1, 1, 5, replace={0: [a, d]})]
    )
    client.run(items=[rows(1, 1, 6, replace={0: [a, c]})])
    client.refuse(
        Reason.BLOCK_UNFILLED, "items[0].start_position", copies=[(0, d, a)], items=[rows(1, 1, 5)]
    )


def test_copying_over_a_block_that_is_decoded_stops_the_plain_path(
    client: Client, blocks: list[int]
) -> None:
    client.prefill(1, 6, {0: blocks[:2]})
    client.refuse(
        Reason.BLOCK_UNFILLED,
        "decode_sequence_ids[0]",
        copies=[(0, blocks[5], blocks[1])],
        decode_ids=[1],
    )


def test_preempting_and_resuming(client: Client, blocks: list[int]) -> None:
    client.prefill(1, 6, {0: blocks[:2]})
    reply = client.run(items=[change(1, replace={})])
    assert reply.items[0].position == 0
    state = client.state(1)
    assert (state.position, state.token_count, state.tables) == (0, 7, {})
    again = {0: [blocks[7], blocks[5]]}
    client.refuse(
        Reason.POSITION_INVALID, "items[0].start_position", items=[rows(1, 7, replace=again)]
    )
    client.run(items=[rows(1, 7, 0, replace=again, sample=True)])
    assert client.run(decode_ids=[1]).token_ids == [50]


def test_a_later_preemption_outlives_the_commit_of_an_earlier_step(
    client: Client, blocks: list[int]
) -> None:
    client.prefill(1, 2, {0: blocks[:1]})
    decode = client.accept(decode_ids=[1])
    client.accept(items=[change(1, replace={})])
    assert client.state(1).position == 0
    assert finish_all(client.core)[decode].token_ids == [50]
    state = client.state(1)
    assert (state.position, state.token_count) == (0, 4)


def test_table_changes_stay_true_when_the_forward_fails(client: Client, blocks: list[int]) -> None:
    client.prefill(1, 2, {0: blocks[:1]})
    client.accept(items=[rows(1, 1, append={0: [blocks[1]]})], new_sequences=[NewSequence(2, [1])])
    plan = client.core.next_plan(0)
    assert plan is not None
    client.core.finish(outcome(plan, failure=FAILURE), 0)
    assert client.state(1).tables == {0: blocks[:2]}
    assert client.state(1).position == 2
    assert client.state(2).token_ids == [1]


def test_what_the_engine_hears_of_tables(windowed: Client) -> None:
    full, window = windowed.allocate(4, 4).values()
    windowed.accept(new_sequences=[NewSequence(1, range(1, 10), {1: window[:2]})])
    windowed.accept(
        items=[Item(1, append={0: full[:3], 1: [window[2]]}, leading_holes={1: 2, 0: 1})]
    )
    first, second = windowed.core.next_plan(0), windowed.core.next_plan(0)
    assert first is not None and second is not None
    handle = first.registrations[0].handle
    assert first.table_updates == [TableUpdate(handle, 1, 0, window[:2], 2)]
    assert second.table_updates == [
        TableUpdate(handle, 0, 0, full[:3], 3),
        TableUpdate(handle, 1, 2, [window[2]], 3),
        TableUpdate(handle, 1, 0, [0, 0], 3),
        TableUpdate(handle, 0, 0, [0], 3),
    ]
    for plan in (first, second):
        windowed.core.finish(outcome(plan), 0)
    windowed.accept(items=[Item(1, replace={0: [full[3]]})])
    third = windowed.core.next_plan(0)
    assert third is not None
    assert third.table_updates == [
        TableUpdate(handle, 0, 0, [full[3]], 1),
        TableUpdate(handle, 1, 0, [], 0),
    ]
