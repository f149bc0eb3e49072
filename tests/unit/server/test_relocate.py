"""Field paths of a step in the words of Prefill and Decode."""

from __future__ import annotations

import pytest

from mlxrt.errors import field_invalid, unsupported
from mlxrt.server.relocate import in_decode, in_execute, in_prefill, relocate

PREFILL = in_prefill({0: 2, 1: 3})
DECODE = in_decode({0: 1}, {0: 0, 1: 2}, {0: 1, 1: 0})


@pytest.mark.parametrize(
    ("path", "there"),
    [
        ("items[1].append.tables[0].block_ids[2]", "chunks[1].append[0].block_ids[2]"),
        ("items[1].row_count", "chunks[1].row_count"),
        ("items[1].tokens", "chunks[1].row_count"),
        ("items", "chunks"),
        ("new_sequences[1].tables[0].group", "chunks[3].sequence.tables[0].group"),
        ("session.session_id", "session.session_id"),
    ],
)
def test_prefill(path: str, there: str) -> None:
    assert PREFILL(path) == there


@pytest.mark.parametrize(
    ("path", "there"),
    [
        ("decode_sequence_ids[0]", "sequence_ids[1]"),
        ("items[1].sequence_id", "sequence_ids[2]"),
        ("items[0].append.tables[3].block_ids[1]", "appended[1].append[3].block_ids[1]"),
        ("items", "sequence_ids"),
        ("step_number", "step_number"),
    ],
)
def test_decode(path: str, there: str) -> None:
    assert DECODE(path) == there


def test_message_metadata_and_violations_agree() -> None:
    error = relocate(field_invalid("items[0].row_count", "too many"), PREFILL)
    assert error.message == "chunks[0].row_count: too many"
    assert [v.field for v in error.violations] == ["chunks[0].row_count"]
    error = relocate(unsupported("defer_sampling"), in_execute)
    assert error.metadata == {"field": "step.defer_sampling"}
