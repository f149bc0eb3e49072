"""Positions and tokens: where rows may start, which tokens they take, when they may sample."""

from __future__ import annotations

import pytest
from core_client import FAILURE, Client, explicit, outcome, rows

from mlxrt.core.sampling import Sampling
from mlxrt.core.step import Item, NewSequence, TokenSource
from mlxrt.errors import Reason

LAST = TokenSource.LAST_SAMPLED


@pytest.fixture
def blocks(client: Client) -> list[int]:
    return client.allocate(16)[0]


def test_chunks_then_decode(client: Client, blocks: list[int]) -> None:
    client.run(new_sequences=[NewSequence(1, range(1, 6), {0: blocks[:3]})], items=[rows(1, 3)])
    assert client.state(1).position == 3
    reply = client.run(items=[rows(1, 2, sample=True)])
    assert (reply.items[0].position, reply.items[0].row.token) == (5, 50)
    for _ in range(6):
        assert client.run(decode_ids=[1]).token_ids == [50]
    state = client.state(1)
    assert (state.position, state.token_count) == (11, 12)
    assert state.token_ids == [1, 2, 3, 4, 5, *[50] * 7]


def test_two_steps_in_flight_see_one_another(client: Client, blocks: list[int]) -> None:
    client.prefill(1, 2, {0: blocks[:2]})
    client.accept(decode_ids=[1])
    client.accept(decode_ids=[1])
    plans = [client.core.next_plan(0), client.core.next_plan(0)]
    assert [plan.decode_starts for plan in plans if plan] == [[2], [3]]
    assert client.state(1).position == 2
    for plan in plans:
        assert plan is not None
        client.core.finish(outcome(plan), 0)
    assert client.state(1).position == 4


def test_rolling_back_and_jumping_forward(client: Client, blocks: list[int]) -> None:
    client.prefill(1, 6, {0: blocks[:2]})
    reply = client.run(items=[rows(1, 2, 1)])
    assert reply.items[0].position == 3
    assert client.state(1).token_count == 7
    reply = client.run(items=[rows(1, 1, 6, sample=True)])
    assert reply.items[0].position == 7
    client.refuse(Reason.POSITION_INVALID, "items[0].start_position", items=[rows(1, 1, 8)])
    client.refuse(Reason.POSITION_INVALID, "items[0].start_position", items=[rows(1, 1, -1)])


def test_jump_over_positions_that_were_never_computed_is_refused(
    client: Client, blocks: list[int]
) -> None:
    client.run(new_sequences=[NewSequence(1, range(1, 8), {0: blocks[:2]})], items=[rows(1, 2)])
    client.refuse(Reason.BLOCK_UNFILLED, "items[0].start_position", items=[rows(1, 1, 3)])
    client.run(items=[rows(1, 1, 2)])


def test_registered_rows_stop_at_the_last_known_token(client: Client, blocks: list[int]) -> None:
    client.run(new_sequences=[NewSequence(1, [1, 2, 3], {0: blocks[:2]})])
    client.refuse(Reason.POSITION_INVALID, "items[0].row_count", items=[rows(1, 4)])
    client.refuse(Reason.POSITION_INVALID, "items[0].sample", items=[rows(1, 2, sample=True)])
    client.accept(items=[rows(1, 3, sample=True)])
    client.accept(items=[rows(1, 1)])


def test_last_sampled_needs_a_sampled_token_and_its_position(
    client: Client, blocks: list[int]
) -> None:
    client.run(new_sequences=[NewSequence(1, [1], {0: blocks[:2]})])
    client.refuse(Reason.POSITION_INVALID, "items[0].last_sampled", items=[rows(1, source=LAST)])
    client.refuse(Reason.POSITION_INVALID, "decode_sequence_ids[0]", decode_ids=[1])
    client.run(items=[rows(1, sample=True)])
    client.refuse(
        Reason.POSITION_INVALID, "items[0].last_sampled", items=[rows(1, 1, 0, source=LAST)]
    )
    client.refuse(Reason.FIELD_INVALID, "items[0].row_count", items=[rows(1, 2, 0, source=LAST)])
    client.run(items=[rows(1, source=LAST)])
    client.refuse(Reason.POSITION_INVALID, "decode_sequence_ids[0]", decode_ids=[1])


def test_explicit_tokens_replace_what_was_known(client: Client, blocks: list[int]) -> None:
    client.prefill(1, 5, {0: blocks[:3]})
    reply = client.run(items=[explicit(1, [7, 8], 3)])
    assert (reply.items[0].position, reply.items[0].row.token) == (5, None)
    assert client.state(1).token_ids == [1, 2, 3, 7, 8]
    client.run(items=[explicit(1, [9], sample=True)])
    assert client.state(1).token_ids == [1, 2, 3, 7, 8, 9, 50]
    assert client.run(decode_ids=[1]).token_ids == [50]
    client.run(items=[explicit(1, [4], 0)])
    assert client.state(1).token_ids == [4]
    client.run(items=[rows(1, 1, 0, source=LAST, sample=True)])


def test_explicit_tokens_of_a_discarded_step_are_not_known(
    client: Client, blocks: list[int]
) -> None:
    client.prefill(1, 5, {0: blocks[:3]})
    client.accept(items=[explicit(1, [7, 8])])
    plan = client.core.next_plan(0)
    assert plan is not None
    client.core.finish(outcome(plan, failure=FAILURE), 0)
    assert client.state(1).token_ids == [1, 2, 3, 4, 5, 50]
    client.run(decode_ids=[1])


@pytest.mark.parametrize(
    ("item", "field"),
    [
        (Item(1), "row_count"),
        (Item(1, -1, append={}), "row_count"),
        (Item(1, 1), "tokens"),
        (Item(1, append={}, source=TokenSource.REGISTERED), "tokens"),
        (Item(1, append={}, start_position=0), "start_position"),
        (Item(1, append={}, sample=True), "sample"),
        (Item(1, append={}, return_logits=True), "return_logits"),
        (Item(1, 2, None, TokenSource.EXPLICIT, [1]), "explicit.token_ids"),
        (Item(1, 2, None, TokenSource.EXPLICIT, [1, 100]), "explicit.token_ids[1]"),
        (Item(1, 1, None, TokenSource.EXPLICIT, [-1]), "explicit.token_ids[0]"),
        (Item(1, append={}, replace={}), "replace"),
    ],
)
def test_items_that_contradict_themselves(
    client: Client, blocks: list[int], item: Item, field: str
) -> None:
    client.run(new_sequences=[NewSequence(1, [1, 2], {0: blocks[:1]})])
    client.refuse(Reason.FIELD_INVALID, f"items[0].{field}", items=[item])


def test_a_sequence_stands_in_a_step_once(client: Client, blocks: list[int]) -> None:
    client.prefill(1, 2, {0: blocks[:2]})
    client.refuse(Reason.FIELD_INVALID, "decode_sequence_ids[1]", decode_ids=[1, 1])
    client.refuse(
        Reason.FIELD_INVALID, "items[0].sequence_id", decode_ids=[1], items=[rows(1, 1, 0)]
    )
    client.refuse(
        Reason.FIELD_INVALID, "items[1].sequence_id", items=[rows(1, 1, 0), rows(1, 1, 0)]
    )
    client.refuse(Reason.FIELD_INVALID, "release_sequence_ids[1]", releases=[1, 1])


def test_unknown_and_known_ids(client: Client) -> None:
    client.run(new_sequences=[NewSequence(1, [1])])
    unknown, exists = Reason.SEQUENCE_UNKNOWN, Reason.SEQUENCE_EXISTS
    client.refuse(unknown, "decode_sequence_ids[0]", decode_ids=[2])
    client.refuse(unknown, "items[0].sequence_id", items=[rows(2)])
    client.refuse(unknown, "release_sequence_ids[0]", releases=[2])
    client.refuse(unknown, "decode_sequence_ids[0]", releases=[1], decode_ids=[1])
    client.refuse(exists, "new_sequences[0].sequence_id", new_sequences=[NewSequence(1, [1])])
    client.refuse(
        exists,
        "new_sequences[1].sequence_id",
        new_sequences=[NewSequence(2, [1]), NewSequence(2, [1])],
    )
    client.run(releases=[1], new_sequences=[NewSequence(1, [9])])
    assert client.state(1).token_ids == [9]


def test_prompts(client: Client) -> None:
    path = "new_sequences[1].prompt_token_ids"
    fine = NewSequence(1, [1])
    client.refuse(Reason.FIELD_INVALID, path, new_sequences=[fine, NewSequence(2, [])])
    client.refuse(
        Reason.FIELD_INVALID, f"{path}[2]", new_sequences=[fine, NewSequence(2, [1, 99, 100])]
    )
    client.refuse(Reason.LIMIT_EXCEEDED, path, new_sequences=[fine, NewSequence(2, [1] * 33)])
    client.run(new_sequences=[fine, NewSequence(2, [1] * 32)])


def test_seeds_are_the_clients_or_derived(client: Client) -> None:
    other = Client(client.core, "b")
    for each in (client, other):
        each.accept(
            new_sequences=[
                NewSequence(1, [1], seed=5),
                NewSequence(2, [1]),
                NewSequence(3, [1], sampling=Sampling(0.5)),
            ]
        )
    plans = [client.core.next_plan(0), client.core.next_plan(0)]
    seeds = [[new.seed for new in plan.registrations] for plan in plans if plan]
    assert [each[0] for each in seeds] == [5, 5]
    assert seeds[0] == seeds[1], "the same session seed and id give the same seed"
    assert seeds[0][1] != seeds[0][2]
    assert all(0 <= seed < 2**64 for seed in seeds[0])
    assert plans[0] is not None
    assert plans[0].registrations[2].sampling == Sampling(0.5)
