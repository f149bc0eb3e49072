"""Every declared limit that the core enforces, at its value and one past it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from core_client import FACTS, Client, explicit, rows

from mlxrt.core.core import Core
from mlxrt.core.model import Group, GroupKind, Limits
from mlxrt.core.step import NewSequence
from mlxrt.errors import Reason


@pytest.fixture
def client() -> Client:
    limits = Limits(
        max_step_rows=6,
        max_step_sequences=4,
        max_step_copies=2,
        max_logits_rows=1,
        max_sequences=5,
        max_model_length=8,
    )
    facts = replace(FACTS, groups=(Group(GroupKind.FULL, (0,), 0, 33, 1),))
    client = Client(Core(facts, limits))
    blocks = client.allocate(32)[0]
    client.run(
        new_sequences=[NewSequence(i, [1] * 4, {0: blocks[2 * i : 2 * i + 2]}) for i in range(5)]
    )
    return client


def exceed(client: Client, limit: str, field: str, **parts: object) -> None:
    error = client.refuse(Reason.LIMIT_EXCEEDED, field, **parts)
    assert error.metadata["limit"] == limit
    assert error.retry_delay_ms is None


def test_rows(client: Client) -> None:
    exceed(client, "max_step_rows", "items", items=[rows(0, 4), rows(1, 3)])
    client.run(items=[rows(0, 4), rows(1, 2)])


def test_sequences_of_a_step(client: Client) -> None:
    exceed(client, "max_step_sequences", "items", items=[rows(i) for i in range(5)])
    client.run(items=[rows(i) for i in range(4)])
    exceed(client, "max_step_sequences", "decode_sequence_ids", decode_ids=[0, 1, 2, 3, 4])


def test_copies(client: Client) -> None:
    copies = [(0, 1, 20), (0, 1, 21), (0, 1, 22)]
    exceed(client, "max_step_copies", "block_copies", copies=copies)
    client.run(copies=copies[:2])


def test_logits_rows(client: Client) -> None:
    items = [rows(i, return_logits=True) for i in range(2)]
    exceed(client, "max_logits_rows", "items", items=items)
    client.run(items=items[:1])


def test_sequences_of_a_session(client: Client) -> None:
    new = [NewSequence(9, [1])]
    exceed(client, "max_sequences", "new_sequences", new_sequences=new)
    client.run(releases=[0], new_sequences=new)


def test_positions_and_tokens_of_a_sequence(client: Client) -> None:
    client.run(items=[explicit(0, [1] * 6, 0)])
    exceed(client, "max_model_length", "items[0].row_count", items=[explicit(0, [1] * 3)])
    exceed(client, "max_model_length", "items[0].sample", items=[explicit(0, [1] * 2, sample=True)])
    client.run(items=[explicit(0, [1], sample=True)])
    exceed(client, "max_model_length", "decode_sequence_ids[0]", decode_ids=[0])
    client.run(items=[rows(0)])
    assert client.state(0).position == 8


def test_entries_of_a_table(client: Client) -> None:
    for change in ("append", "replace"):
        item = rows(0, 0, source=None, **{change: {0: [0, 0, 0]}})
        exceed(client, "max_model_length", f"items[0].{change}.tables", items=[item])
    new = [NewSequence(9, [1], {0: [0, 0, 0]})]
    exceed(client, "max_model_length", "new_sequences[0].tables", releases=[1], new_sequences=new)
