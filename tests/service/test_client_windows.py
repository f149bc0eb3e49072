"""The reference scheduler over groups with windows: it gives back what left a window, and its
tokens are right, under preemption, failed steps and two steps in flight.
"""

from __future__ import annotations

import random

import pytest
from mlxrt_client import Client, Scheduler, Token, v1
from mlxrt_client.layout import BlockLayout

from mlxrt.testing import FakeEngine, FakeFaults
from mlxrt.testing.server_thread import ServerThread

BLOCK = 4
ROWS = 12
WINDOW = 9
TEXT = 20 * WINDOW
FULL_BLOCKS = 91
WINDOW_BLOCKS = 17
"""Of the pools, block 0 included; a whole text would need 45 in each group."""


def texts(engine: FakeEngine, count: int) -> list[tuple[list[int], list[int]]]:
    """Prompts of 1 to 60 tokens and the greedy tokens that make each TEXT long."""
    source = random.Random(3)
    made = []
    for _ in range(count):
        prompt = [source.randrange(4096) for _ in range(source.randint(1, 60))]
        tokens = list(prompt)
        while len(tokens) < TEXT:
            tokens.append(engine.expected_token(tokens))
        made.append((prompt, tokens[len(prompt) :]))
    return made


def collect(scheduler: Scheduler) -> dict[int, list[Token]]:
    """Runs a scheduler to its end; tokens by sequence."""
    found: dict[int, list[Token]] = {}
    for token in scheduler.run():
        found.setdefault(token.sequence_id, []).append(token)
    return found


@pytest.fixture
def torn(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Positions at which a sequence stood after a discard, its window reaching into holes."""
    positions = []
    is_torn = BlockLayout.is_torn

    def watch(layout: BlockLayout, tables: dict[int, list[int]], position: int) -> bool:
        found = is_torn(layout, tables, position)
        positions.extend([position] * found)
        return found

    monkeypatch.setattr(BlockLayout, "is_torn", watch)
    return positions


@pytest.mark.parametrize("failing", [set(), set(range(5, 2000, 5))], ids=["sound", "failing"])
@pytest.mark.parametrize("depth", [1, 2])
def test_a_small_windowed_pool_serves_texts_of_twenty_windows(
    depth: int, failing: set[int], torn: list[int]
) -> None:
    engine = FakeEngine(
        block_size=BLOCK, num_blocks=FULL_BLOCKS, window_num_blocks=WINDOW_BLOCKS,
        windows=(0, WINDOW), threaded=True, step_s=0.002,
        faults=FakeFaults(fail_tickets=failing),
    )  # fmt: skip
    wanted = texts(engine, 4)
    with ServerThread(engine) as server, Client(server.address) as client:
        model, limits = client.model_info(), client.server_info().limits
        assert [group.block_count for group in model.groups] == [FULL_BLOCKS, WINDOW_BLOCKS]
        with client.open_session() as session:
            scheduler = Scheduler(session, model, limits, step_rows_max=ROWS, inflight_steps=depth)
            ids = [scheduler.add(prompt, len(rest)) for prompt, rest in wanted]
            found = collect(scheduler)
            done = scheduler.statistics
            scheduler.close()
            state = session.state()
    for sequence_id, (_, rest) in zip(ids, wanted, strict=True):
        assert [token.token_id for token in found[sequence_id]] == rest
    assert done.preemption_count > 0
    assert done.inflight_steps_max == depth
    assert (done.discard_count > 0) == bool(failing)
    # One step at a time never makes holes for a step that is not the next.
    assert bool(torn) == (bool(failing) and depth == 2)
    assert done.left_count > 4 * 18 * WINDOW // BLOCK
    assert done.blocks_used_max[1] <= WINDOW_BLOCKS - 1
    assert not any(table.block_ids for table in state.leased_blocks)


def test_one_text_has_its_share_of_the_windowed_group_and_no_more():
    engine = FakeEngine(block_size=BLOCK, num_blocks=64, windows=(0, WINDOW, 3))
    [(prompt, rest)] = texts(engine, 1)
    with (
        ServerThread(engine) as server,
        Client(server.address) as client,
        client.open_session() as session,
    ):
        model, limits = client.model_info(), client.server_info().limits
        scheduler = Scheduler(session, model, limits, step_rows_max=ROWS)
        scheduler.add(prompt, len(rest))
        assert [token.token_id for token in scheduler.run()] == rest
        used = scheduler.statistics.blocks_used_max
    assert used[0] == TEXT // BLOCK
    assert used[1] <= -(-(WINDOW + ROWS - 2) // BLOCK) + 1
    assert used[2] <= -(-(3 + ROWS - 2) // BLOCK) + 1


def test_what_a_windowed_group_can_never_hold_is_refused_at_once():
    engine = FakeEngine(block_size=BLOCK, num_blocks=64, window_num_blocks=6, windows=(0, WINDOW))
    with (
        ServerThread(engine) as server,
        Client(server.address) as client,
        client.open_session() as session,
    ):
        model, limits = client.model_info(), client.server_info().limits
        scheduler = Scheduler(session, model, limits, step_rows_max=ROWS)
        with pytest.raises(ValueError, match="more than the model or the blocks can hold"):
            scheduler.add([1] * 40, 10)
        scheduler.close()
        narrow = Scheduler(session, model, limits, step_rows_max=ROWS - 4)
        narrow.add([1] * 40, 10)
        assert len(list(narrow.run())) == 10


def test_the_arithmetic_of_a_layout():
    groups = [v1.GroupInfo(group=0), v1.GroupInfo(group=1, window=8)]
    layout = BlockLayout(v1.GetModelInfoResponse(block_size=4, groups=groups), 5)
    assert layout.held(12) == {0: 3, 1: 3}
    assert layout.held(100) == {0: 25, 1: 4}
    tables = {0: [1, 2, 3], 1: [4, 5, 6]}
    assert layout.missing(tables, 12) == {}
    assert layout.missing(tables, 13) == {0: 1, 1: 1}
    # The row at 10 sees 3 to 10; the one at 11 no longer sees block 0 of the table.
    assert layout.left(10) == {1: 0}
    assert layout.left(11) == {1: 1}
    assert layout.take_left(tables, 12) == ({1: 1}, {1: [4]})
    assert tables == {0: [1, 2, 3], 1: [0, 5, 6]}
    assert layout.take_left(tables, 12) == ({}, {})
    assert layout.is_torn(tables, 10) and not layout.is_torn(tables, 11)
