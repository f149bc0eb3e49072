"""Messages that ask a parser for too much are refused on their bytes; all others pass."""

from __future__ import annotations

import gc
import sys
from typing import Any

import pytest
from mlxrt_client.v1 import execution_pb2, sequence_pb2, session_pb2, step_pb2

from mlxrt.core.model import Limits
from mlxrt.errors import MlxrtError, Reason
from mlxrt.server import wire_check
from mlxrt.server.handler import unary
from mlxrt.server.wire_check import ENTRIES_MAX, SMALL_BYTES, WireCheck

STEP = step_pb2.StepRequest.DESCRIPTOR
LIMITS = Limits()


def tagged(number: int, payload: bytes) -> bytes:
    """A field that has a length."""
    length, at = b"", len(payload)
    while at > 127:
        length, at = length + bytes([at & 127 | 128]), at >> 7
    return bytes([number << 3 | 2]) + length + bytes([at]) + payload


def refusal(descriptor: Any, data: bytes) -> MlxrtError:
    """Why the bytes are refused."""
    with pytest.raises(MlxrtError) as raised:
        WireCheck(LIMITS).check(descriptor, data)
    return raised.value


@pytest.mark.parametrize(
    ("field", "limit"),
    [
        ("items", "max_step_sequences"), ("new_sequences", "max_sequences"),
        ("block_copies", "max_step_copies"),
    ],
)  # fmt: skip
def test_empty_entries_are_counted_to_the_limit(field: str, limit: str) -> None:
    number = STEP.fields_by_name[field].number
    error = refusal(STEP, tagged(number, b"") * (1 << 20))
    assert error.reason is Reason.LIMIT_EXCEEDED
    assert error.metadata == {
        "limit": limit, "maximum": str(getattr(LIMITS, limit)),
        "value": str(getattr(LIMITS, limit) + 1),
    }  # fmt: skip
    assert error.violations[0].field == field


def test_nested_lists_are_counted_and_named() -> None:
    tables = tagged(1, b"") * 1000
    number = step_pb2.StepItem.DESCRIPTOR.fields_by_name["append"].number
    item = tagged(STEP.fields_by_name["items"].number, tagged(number, tables))
    within = tagged(1, item * 12)
    error = refusal(execution_pb2.ExecuteRequest.DESCRIPTOR, within)
    assert error.reason is Reason.FIELD_INVALID
    assert error.violations[0].field == "step.items[0].append.tables"


def test_numbers_that_are_not_packed_are_counted_too() -> None:
    ids = bytes([STEP.fields_by_name["decode_sequence_ids"].number << 3, 5])
    assert refusal(STEP, ids * 20_000).metadata["limit"] == "max_step_sequences"


@pytest.mark.parametrize("data", [b"\xa0\x7d\x05", b"\x10\x05"], ids=["unknown", "single"])
def test_a_field_that_is_no_list_stands_a_few_times_at_most(data: bytes) -> None:
    assert refusal(STEP, data * 20_000).reason is Reason.MALFORMED_REQUEST


def test_every_list_that_a_request_has_is_bounded() -> None:
    check = WireCheck(LIMITS)
    seen: set[str] = set()

    def walk(descriptor: Any) -> None:
        if descriptor.full_name in seen:
            return
        seen.add(descriptor.full_name)
        for field, maximum in check._fields_of(descriptor).values():
            assert maximum <= ENTRIES_MAX
            if field.message_type is not None:
                assert maximum <= max(LIMITS.max_step_copies, LIMITS.max_step_rows), field.full_name
                walk(field.message_type)

    for name in ("Step", "Execute", "Prefill", "Decode", "AllocateBlocks", "FreeBlocks"):
        module = step_pb2 if name == "Step" else execution_pb2
        walk(getattr(module, f"{name}Request").DESCRIPTOR)
    assert {"mlxrt.v1.StepItem", "mlxrt.v1.LogitBias", "mlxrt.v1.BlockTable"} <= seen
    assert set(wire_check._LIMITED.values()) <= {f for f in Limits.__dataclass_fields__}


def test_a_large_message_within_the_limits_passes() -> None:
    tables = [{"group": 0, "block_ids": range(1, 257)}, {"group": 1, "block_ids": range(1, 257)}]
    bias = [{"token_id": i, "bias": 1.0} for i in range(LIMITS.max_logit_bias)]
    step = step_pb2.StepRequest(
        session=session_pb2.SessionRef(session_id="0" * 32, epoch=1), step_number=1,
        new_sequences=[
            sequence_pb2.NewSequence(
                sequence_id=i, prompt_token_ids=range(4096), tables=tables,
                sampling={"logit_bias": bias if i < 4 else []},
            )
            for i in range(LIMITS.max_step_sequences)
        ],
        items=[
            {"sequence_id": i, "row_count": 8, "registered": {}}
            for i in range(LIMITS.max_step_sequences)
        ],
    )  # fmt: skip
    data = step.SerializeToString()
    assert len(data) > 1 << 20
    WireCheck(LIMITS).check(STEP, data)


@pytest.mark.parametrize("junk", [b"\xff" * 40_000, bytes(40_000), b"\x3a\xff\xff\xff\xff\x0f"])
def test_bytes_that_are_no_message_are_the_parsers_or_malformed(junk: bytes) -> None:
    data = junk + bytes(SMALL_BYTES)
    try:
        WireCheck(LIMITS).check(STEP, data)
    except MlxrtError as error:
        assert error.reason is Reason.MALFORMED_REQUEST


async def test_a_refused_request_is_gone_without_the_garbage_collector() -> None:
    class Context:
        async def abort(self, *_: object) -> None:
            raise RuntimeError("aborted")

    def refuse(data: bytes) -> bytes:
        try:
            raise ValueError(len(data))
        except ValueError as cause:
            raise MlxrtError(Reason.MALFORMED_REQUEST, "no") from cause

    handler = unary("Step", refuse)
    data = bytes(100)
    before = sys.getrefcount(data)
    gc.disable()
    try:
        for _ in range(10):
            with pytest.raises(RuntimeError):
                await handler.unary_unary(data, Context())
        assert sys.getrefcount(data) == before
    finally:
        gc.enable()
