"""Blocks and sequences outside a step: leasing, freeing, waiting for steps in flight."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from core_client import Client, finish_all, outcome, refused, rows

from mlxrt.core.step import NewSequence
from mlxrt.errors import Reason


def freeing(client: Client, blocks: dict[int, list[int]]) -> Callable[[], object]:
    request_id = client.request_id()
    return lambda: client.core.free_blocks(client.ref, request_id, blocks, 0)


def releasing(client: Client, ids: list[int]) -> Callable[[], object]:
    return lambda: client.core.free_sequences(client.ref, "x", ids, 0, free_blocks=True)


def test_allocation_is_all_or_none_and_never_block_0(windowed: Client) -> None:
    core = windowed.core
    answer = windowed.allocate(16, 3)
    assert list(answer) == [0, 1]
    assert answer[0] == list(range(1, 17))
    error = refused(
        core,
        Reason.NO_FREE_BLOCKS,
        None,
        lambda: core.allocate_blocks(windowed.ref, "x", {1: 1, 0: 1}, 0),
    )
    assert error.metadata == {"group": "0", "free": "0", "wanted": "1"}
    assert error.retry_delay_ms
    assert core.free_blocks_by_group() == (0, 13)
    assert core.counters.blocks_allocated == 19


@pytest.mark.parametrize(
    ("counts", "field"), [({0: 0}, "counts[0].count"), ({0: 1, 5: 1}, "counts[1].group")]
)
def test_allocation_of_nothing_or_of_no_group_is_refused(
    client: Client, counts: dict[int, int], field: str
) -> None:
    refused(
        client.core,
        Reason.FIELD_INVALID,
        field,
        lambda: client.core.allocate_blocks(client.ref, "x", counts, 0),
    )


def test_repeated_requests_act_once(client: Client) -> None:
    core, ref = client.core, client.ref
    first = core.allocate_blocks(ref, "x", {0: 4}, 0)
    assert core.allocate_blocks(ref, "x", {0: 4}, 0) == first
    assert core.free_blocks_by_group() == (12,)
    refused(core, Reason.REQUEST_MISMATCH, None, lambda: core.allocate_blocks(ref, "x", {0: 5}, 0))
    refused(core, Reason.REQUEST_MISMATCH, None, lambda: core.free_blocks(ref, "x", {}, 0))
    assert core.free_blocks(ref, "y", {0: first[0]}, 0) == (16,)
    assert core.free_blocks(ref, "y", {0: first[0]}, 0) == (16,)


def test_remembered_requests_are_bounded(client: Client) -> None:
    core, ref = client.core, client.ref
    core.allocate_blocks(ref, "first", {0: 1}, 0)
    for index in range(64):
        core.free_blocks(ref, f"n{index}", {}, 0)
    core.allocate_blocks(ref, "first", {0: 2}, 0)
    assert core.free_blocks_by_group() == (13,)


def test_what_cannot_be_freed_is_named(client: Client) -> None:
    blocks = client.allocate(4)[0]
    other = Client(client.core, "b").allocate(1)[0][0]
    client.run(new_sequences=[NewSequence(1, [1], {0: [blocks[1]]})])
    for ids, reason, field in (
        ([blocks[0], 0], Reason.FIELD_INVALID, "blocks[0].block_ids[1]"),
        ([blocks[0], blocks[0]], Reason.FIELD_INVALID, "blocks[0].block_ids[1]"),
        ([17], Reason.FIELD_INVALID, "blocks[0].block_ids[0]"),
        ([blocks[0], other], Reason.BLOCK_NOT_LEASED, "blocks[0].block_ids[1]"),
        ([16], Reason.BLOCK_NOT_LEASED, "blocks[0].block_ids[0]"),
        ([blocks[0], blocks[1]], Reason.BLOCK_IN_USE, "blocks[0].block_ids[1]"),
    ):
        refused(client.core, reason, field, freeing(client, {0: ids}))
    refused(client.core, Reason.FIELD_INVALID, "blocks[0].group", freeing(client, {3: [1]}))


def test_freed_blocks_come_back_last(client: Client) -> None:
    blocks = client.allocate(3)[0]
    freeing(client, {0: [blocks[1]]})()
    assert client.allocate(13)[0] == list(range(4, 17))
    assert client.allocate(1)[0] == [blocks[1]]


def test_blocks_wait_for_the_steps_accepted_before_they_were_freed(client: Client) -> None:
    core = client.core
    blocks = client.allocate(16)[0]
    client.prefill(1, 3, {0: blocks[:1]})
    client.accept(decode_ids=[1])
    client.accept(items=[rows(1, 0, source=None, replace={})])
    other = Client(core, "b")
    other.accept()
    assert freeing(client, {0: blocks[:1]})() == (0,)
    first = core.next_plan(0)
    theirs = core.next_plan(0)
    second = core.next_plan(0)
    assert first is not None and theirs is not None and second is not None
    core.finish(outcome(first), 0)
    core.finish(outcome(theirs), 0)
    assert core.free_blocks_by_group() == (0,), "the second step was accepted before the free"
    core.finish(outcome(second), 0)
    assert core.free_blocks_by_group() == (1,)


def test_releasing_sequences_frees_only_what_no_other_table_names(client: Client) -> None:
    core = client.core
    a, b, c = client.allocate(3)[0]
    client.run(
        new_sequences=[
            NewSequence(1, [1], {0: [a, 0, b]}),
            NewSequence(2, [1], {0: [b, c]}),
            NewSequence(3, [1], {0: [a]}),
        ],
    )
    for ids, reason, field in (
        ([], Reason.FIELD_INVALID, "sequence_ids"),
        ([1, 1], Reason.FIELD_INVALID, "sequence_ids[1]"),
        ([1, 7], Reason.SEQUENCE_UNKNOWN, "sequence_ids[1]"),
    ):
        refused(core, reason, field, releasing(client, ids))
    assert core.free_sequences(client.ref, "f", [1, 2], 0, free_blocks=True) == {0: [b, c]}
    assert core.free_sequences(client.ref, "f", [1, 2], 0, free_blocks=True) == {0: [b, c]}
    assert core.free_sequences(client.ref, "g", [3], 0, free_blocks=False) == {}
    assert core.free_blocks_by_group() == (15,)
    assert core.counters.blocks_freed["free_sequences"] == 2
    core.check_integrity()


def test_released_while_it_runs_the_result_still_comes(client: Client) -> None:
    blocks = client.allocate(1)
    client.prefill(1, 2, blocks)
    ticket = client.accept(decode_ids=[1])
    freed = client.core.free_sequences(client.ref, "f", [1], 0, free_blocks=True)
    assert freed == blocks
    assert client.core.free_blocks_by_group() == (15,)
    assert finish_all(client.core)[ticket].token_ids == [50]
    assert client.core.free_blocks_by_group() == (16,)


def test_freed_and_leased_again_a_block_has_nothing_computed(client: Client) -> None:
    blocks = client.allocate(16)
    client.prefill(1, 4, {0: blocks[0][:2]})
    client.run(releases=[1])
    freeing(client, {0: blocks[0][:1]})()
    again = client.allocate(1)
    assert again[0] == blocks[0][:1]
    client.refuse(
        Reason.BLOCK_UNFILLED,
        "items[0].start_position",
        new_sequences=[NewSequence(1, range(1, 6), {0: [again[0][0], blocks[0][1]]})],
        items=[rows(1, 1, 4)],
    )
