"""What protos/README.md says one can do with tables, done with the client's own words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from mlxrt_client import BlockAllocator, Client, Session, messages, v1
from mlxrt_client.errors import InvalidRequestError, PreconditionError

from mlxrt.testing import FakeEngine
from mlxrt.testing.server_thread import ServerThread

PROMPT = [3, 1, 4, 1, 5, 9]
BLOCK_SIZE = 4


@pytest.fixture
def engine() -> FakeEngine:
    """A fake model with a full group and one that sees 4 positions."""
    return FakeEngine(block_size=BLOCK_SIZE, num_blocks=16, windows=(0, 4))


@pytest.fixture
def session(engine: FakeEngine) -> Iterator[Session]:
    """A session at its server."""
    with (
        ServerThread(engine) as server,
        Client(server.address) as client,
        client.open_session() as opened,
    ):
        yield opened


@pytest.fixture
def blocks(session: Session) -> BlockAllocator:
    """The session's blocks: ten of each group."""
    allocator = BlockAllocator()
    allocator.add(session.allocate_blocks({0: 10, 1: 10}))
    return allocator


def start(session: Session, sequence_id: int, prompt: Sequence[int], tables: Any) -> int:
    """Registers a sequence, runs its prompt and returns its first token."""
    response = session.step(
        v1.StepRequest(
            new_sequences=[messages.new_sequence(sequence_id, prompt, tables)],
            items=[messages.chunk_item(sequence_id, len(prompt), sample=True)],
        )
    )
    return int(response.results[0].token_ids[0])


def test_a_prefix_is_shared_and_a_fork_copies_its_last_block(
    session: Session, engine: FakeEngine, blocks: BlockAllocator
) -> None:
    tables = blocks.allocate({0: 2, 1: 2})
    first = start(session, 1, PROMPT, tables)
    assert first == engine.expected_token(PROMPT)

    # Positions 0 to 3 are common; 4 and 5 are in a block that sequence 1 goes on writing.
    shared = {group: ids[:1] for group, ids in tables.items()}
    blocks.share(shared)
    own = blocks.allocate({0: 1, 1: 1})
    fork = [*PROMPT, 7]
    request = v1.StepRequest(
        block_copies=[
            v1.BlockCopy(group=g, source_block_id=tables[g][1], destination_block_id=own[g][0])
            for g in tables
        ],
        new_sequences=[messages.new_sequence(2, fork, {g: shared[g] + own[g] for g in tables})],
        decode_sequence_ids=[1],
        items=[messages.chunk_item(2, 1, sample=True, start_position=6)],
    )
    response = session.step(request)
    assert list(response.token_ids) == [engine.expected_token([*PROMPT, first])]
    assert list(response.results[0].token_ids) == [engine.expected_token(fork)]
    assert all(blocks.is_shared(g, shared[g][0]) for g in tables)


def test_without_the_copy_the_fork_is_refused(
    session: Session, engine: FakeEngine, blocks: BlockAllocator
) -> None:
    tables = blocks.allocate({0: 2, 1: 2})
    start(session, 1, PROMPT, tables)
    with pytest.raises(PreconditionError) as caught:
        session.step(
            v1.StepRequest(
                new_sequences=[messages.new_sequence(2, [*PROMPT, 7], tables)],
                items=[messages.chunk_item(2, 1, sample=True, start_position=6)],
            )
        )
    assert caught.value.reason == "BLOCK_SHARED"


def test_a_sequence_rolls_back_and_goes_another_way(
    session: Session, engine: FakeEngine, blocks: BlockAllocator
) -> None:
    start(session, 1, PROMPT, blocks.allocate({0: 3, 1: 3}))
    session.decode([1])
    item = messages.explicit_item(1, [8, 8, 8], sample=True, start_position=4)
    response = session.step(v1.StepRequest(items=[item]))
    other = [*PROMPT[:4], 8, 8, 8]
    assert list(response.results[0].token_ids) == [engine.expected_token(other)]
    assert response.results[0].position == 7
    again = session.step(v1.StepRequest(items=[messages.chunk_item(
        1, 2, sample=False, start_position=0)]))  # fmt: skip
    assert again.results[0].position == 2 and not again.results[0].token_ids


def test_blocks_that_left_the_window_come_back(
    session: Session, engine: FakeEngine, blocks: BlockAllocator
) -> None:
    known = [*PROMPT, 2, 6, 5]
    tables = blocks.allocate({0: 3, 1: 3})
    known.append(start(session, 1, known, tables))
    # Row 9 sees positions 6 to 9 of group 1: its first block has left the window.
    session.step(v1.StepRequest(items=[messages.holes_item(1, {1: 1})]))
    left = {1: tables[1][:1]}
    blocks.release(left)
    session.free_blocks({1: blocks.take_free(1, 10)})
    state = session.state(tables=True)
    assert messages.tables_of(state.sequences[0].tables)[1] == [0, *tables[1][1:]]
    assert left[1][0] not in messages.tables_of(state.leased_blocks)[1]
    assert list(session.decode([1]).token_ids) == [engine.expected_token(known)]
    with pytest.raises(InvalidRequestError) as caught:
        item = messages.chunk_item(1, 4, sample=False, start_position=4)
        session.step(v1.StepRequest(items=[item]))
    assert caught.value.reason == "BLOCK_HOLE"


def test_blocks_are_appended_by_item_and_by_decode(
    session: Session, engine: FakeEngine, blocks: BlockAllocator
) -> None:
    known = list(PROMPT)
    known.append(start(session, 1, known, blocks.allocate({0: 2, 1: 2})))
    for _ in range(2):
        known.append(session.decode([1]).token_ids[0])
    one = {0: 1, 1: 1}
    known += session.decode([1], {1: blocks.allocate(one)}).results[0].token_ids
    for _ in range(3):
        known.append(session.decode([1]).token_ids[0])
    item = messages.decode_item(1, append=blocks.allocate(one))
    known += session.step(v1.StepRequest(items=[item])).results[0].token_ids
    for end in range(len(PROMPT), len(known)):
        assert known[end] == engine.expected_token(known[:end])
    assert len(known) == 14


def test_prefill_is_a_step_of_chunks(session: Session, engine: FakeEngine) -> None:
    tables = session.allocate_blocks({0: 2, 1: 2})
    sequence = messages.new_sequence(1, PROMPT, tables)
    first = session.prefill([v1.PrefillChunk(sequence=sequence, row_count=4)])
    assert first.results[0].position == 4
    chunk = v1.PrefillChunk(sequence_id=1, row_count=2, sample=True)
    second = session.prefill([chunk])
    assert list(second.results[0].token_ids) == [engine.expected_token(PROMPT)]
    assert second.step_number == 2
    freed = session.free_sequences([1], and_blocks=True)
    assert {group: sorted(ids) for group, ids in freed.items()} == tables


def test_an_item_can_t_append_and_replace() -> None:
    with pytest.raises(ValueError, match="not both"):
        messages.chunk_item(1, 1, sample=True, append={0: [1]}, replace={0: [2]})
