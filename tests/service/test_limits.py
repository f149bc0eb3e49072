"""Every declared limit, at its value and one past it; every field and rpc that comes later."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
import pytest
from mlxrt_client.v1 import execution_pb2, model_pb2, sequence_pb2, session_pb2, step_pb2

from mlxrt.errors import Reason
from mlxrt.testing import FakeEngine

LIMITS = {
    "max_inflight_steps": 3, "max_step_rows": 12, "max_step_sequences": 4, "max_step_copies": 3,
    "max_logits_rows": 2, "max_step_drafts": 3, "max_mask_rows": 4, "max_sequences": 5,
    "max_prompt_logprobs_rows": 6, "max_model_length": 20, "max_sessions": 2,
    "max_logit_bias": 4, "max_top_logprobs": 5, "max_message_bytes": 1 << 17,
    "min_lease_ttl_ms": 2_000, "max_lease_ttl_ms": 50_000, "default_lease_ttl_ms": 20_000,
}  # fmt: skip


@pytest.fixture
def limited(launch: Callable[..., Any]) -> Any:
    return launch(FakeEngine(num_blocks=64, block_size=4), limits=LIMITS)


def refused_past(server: Any, rpc: str, request: Any, limit: str, value: int) -> None:
    """The request is refused for `limit` and changes nothing."""
    before = server.digest()
    refusal = server.refused(rpc, request)
    assert refusal.reason is Reason.LIMIT_EXCEEDED and refusal.retry_ms is None
    assert refusal.metadata == {
        "limit": limit, "maximum": str(LIMITS[limit]), "value": str(value),
    }  # fmt: skip
    assert len(refusal.fields) == 1
    assert server.digest() == before


def new(count: int, first: int = 1, length: int = 3) -> list[dict[str, Any]]:
    """Registrations without tables."""
    return [
        {"sequence_id": i, "prompt_token_ids": [7] * length} for i in range(first, first + count)
    ]


def prefill(session: Any, sequence_id: int, length: int, **item: Any) -> dict[str, Any]:
    """Fields of a step that prefills a new sequence."""
    fields = session.prefill_fields(sequence_id, [7] * length, session.allocate(-(-length // 4)))
    fields["items"][0].MergeFrom(step_pb2.StepItem(**item))
    return fields


def test_limits_are_declared(limited: Any) -> None:
    declared = limited.call("GetServerInfo", model_pb2.GetServerInfoRequest()).limits
    assert {name: getattr(declared, name) for name in LIMITS} == LIMITS
    assert declared.stored_replies == LIMITS["max_inflight_steps"] + 2


def test_max_step_rows(limited: Any) -> None:
    session = limited.open()
    session.step(new_sequences=new(1, length=13))
    tables = {"tables": [{"group": 0, "block_ids": session.allocate(4)}]}
    rows = {"sequence_id": 1, "registered": {}, "append": tables}
    past = session.request(step_number=2, items=[{**rows, "row_count": 13, "sample": True}])
    refused_past(limited, "Step", past, "max_step_rows", 13)
    assert session.step(items=[{**rows, "row_count": 12}]).bucket_row_count == 12


def test_max_step_sequences(limited: Any) -> None:
    session = limited.open()
    for index in range(1, 6):
        session.start(index, [7, index])
    past = session.request(step_number=6, decode_sequence_ids=range(1, 6))
    refused_past(limited, "Step", past, "max_step_sequences", 5)
    decode = execution_pb2.DecodeRequest(
        session=session.ref, step_number=6, sequence_ids=range(1, 6)
    )
    refused_past(limited, "Decode", decode, "max_step_sequences", 5)
    assert len(session.step(decode_sequence_ids=range(1, 5)).token_ids) == 4


def test_max_step_copies(limited: Any) -> None:
    session = limited.open()
    blocks = session.allocate(8)
    copies = [
        {"group": 0, "source_block_id": blocks[0], "destination_block_id": b} for b in blocks[1:5]
    ]
    past = session.request(step_number=1, block_copies=copies)
    refused_past(limited, "Step", past, "max_step_copies", 4)
    assert not session.step(block_copies=copies[:3]).HasField("error")


def test_max_logits_rows(limited: Any) -> None:
    session = limited.open()
    fields: dict[str, Any] = {"new_sequences": [], "items": []}
    for index in range(1, 4):
        one = prefill(session, index, 2, return_logits=True)
        fields["new_sequences"] += one["new_sequences"]
        fields["items"] += one["items"]
    past = session.request(step_number=1, **fields)
    refused_past(limited, "Step", past, "max_logits_rows", 3)
    fields["items"][2].return_logits = False
    reply = session.step(**fields)
    assert [bool(r.logits.data) for r in reply.results] == [True, True, False]


def test_max_step_drafts(limited: Any) -> None:
    session = limited.open()
    for index in (1, 2):
        session.start(index, [7, index])
    first, second = (
        {"sequence_id": i, "row_count": 1, "last_sampled": {}, "sample": True} for i in (1, 2)
    )
    items = [{**first, "draft_token_ids": [1, 2]}, {**second, "draft_token_ids": [3, 4]}]
    past = session.request(step_number=3, items=items)
    refused_past(limited, "Step", past, "max_step_drafts", 4)
    items[1]["draft_token_ids"] = [3]
    assert session.step(items=items).bucket_row_count == 5


def test_max_mask_rows(limited: Any) -> None:
    session = limited.open()
    for index in (1, 2):
        session.start(index, [7, index])
    one = {"data_type": "DATA_TYPE_INT32", "shape": [1, 128], "data": b"\xff" * 512}
    four = {**one, "shape": [4, 128], "data": b"\xff" * 2048}
    drafted = {"sequence_id": 1, "row_count": 1, "last_sampled": {}, "sample": True}
    items = [{**drafted, "draft_token_ids": [1, 2, 3]}]
    masks = [{"sequence_id": 1, "allowed": four}, {"sequence_id": 2, "allowed": one}]
    fields = {"decode_sequence_ids": [2], "items": items}
    past = session.request(step_number=3, masks=masks, **fields)
    refused_past(limited, "Step", past, "max_mask_rows", 5)
    assert session.step(masks=masks[:1], **fields).bucket_row_count == 5


def test_max_prompt_logprobs_rows(limited: Any) -> None:
    session = limited.open()
    fields: dict[str, Any] = {"new_sequences": [], "items": []}
    for index in (1, 2):
        one = prefill(session, index, 5)
        one["new_sequences"][0].prompt_top_logprobs = 1
        for name in fields:
            fields[name] += one[name]
    # The last row of each prompt describes nothing: eight rows do.
    past = session.request(step_number=1, **fields)
    refused_past(limited, "Step", past, "max_prompt_logprobs_rows", 8)
    fields["items"][1].row_count, fields["items"][1].sample = 2, False
    reply = session.step(**fields)
    assert [len(r.prompt_logprobs.logprobs) for r in reply.results] == [4, 2]


def test_prompt_logprobs_have_at_most_max_top_logprobs(limited: Any) -> None:
    session = limited.open()
    asking = {**new(1)[0], "prompt_top_logprobs": 6}
    past = session.request(step_number=1, new_sequences=[asking])
    refused_past(limited, "Step", past, "max_top_logprobs", 6)
    session.step(new_sequences=[{**asking, "prompt_top_logprobs": 5}])


def test_max_sequences(limited: Any) -> None:
    session = limited.open()
    session.step(new_sequences=new(4))
    past = session.request(step_number=2, new_sequences=new(2, first=5))
    refused_past(limited, "Step", past, "max_sequences", 6)
    past = session.request(step_number=2, new_sequences=new(6, first=5))
    refused_past(limited, "Step", past, "max_sequences", 6)
    past = session.request(step_number=2, release_sequence_ids=range(6))
    refused_past(limited, "Step", past, "max_sequences", 6)
    free = execution_pb2.FreeSequencesRequest(
        session=session.ref, request_id="f", sequence_ids=range(6)
    )
    refused_past(limited, "FreeSequences", free, "max_sequences", 6)
    get = session_pb2.GetSessionRequest(session=session.ref, sequence_ids=range(6))
    refused_past(limited, "GetSession", get, "max_sequences", 6)
    session.step(new_sequences=new(1, first=5))
    assert len(session.state().sequences) == 5


def test_max_model_length_of_a_prompt(limited: Any) -> None:
    session = limited.open()
    past = session.request(step_number=1, new_sequences=new(1, length=21))
    refused_past(limited, "Step", past, "max_model_length", 21)
    session.step(new_sequences=new(1, length=20))
    assert session.state().sequences[0].token_count == 20


def test_max_model_length_of_a_growing_sequence(limited: Any) -> None:
    session = limited.open()
    session.start(1, [7] * 12, room=8)
    for _ in range(7):
        session.step(decode_sequence_ids=[1])
    # The last sampled token has the last position; one more would have none.
    assert session.state().sequences[0].token_count == 20
    past = session.request(decode_sequence_ids=[1])
    refused_past(limited, "Step", past, "max_model_length", 21)


def test_a_table_longer_than_any_sequence(limited: Any) -> None:
    session = limited.open()
    blocks = session.allocate(6)
    request = session.request(
        step_number=1,
        new_sequences=[{**new(1)[0], "tables": [{"group": 0, "block_ids": blocks}]}],
    )
    before = limited.digest()
    refusal = limited.refused("Step", request)
    assert refusal.fields == ("new_sequences[0].tables[0].block_ids",)
    assert refusal.reason is Reason.LIMIT_EXCEEDED
    assert refusal.metadata == {"limit": "max_model_length", "maximum": "20", "value": "24"}
    assert limited.digest() == before
    del request.new_sequences[0].tables[0].block_ids[-1]
    assert not limited.call("Step", request).HasField("error")


def test_max_sessions(limited: Any) -> None:
    sessions = [limited.open() for _ in range(2)]
    before = limited.digest()
    refusal = limited.refused("OpenSession", session_pb2.OpenSessionRequest(request_id="x"))
    assert refusal.reason is Reason.TOO_MANY_SESSIONS and refusal.retry_ms is not None
    assert limited.digest() == before
    limited.call("CloseSession", session_pb2.CloseSessionRequest(session=sessions[0].ref))
    limited.open()


def test_max_message_bytes(limited: Any) -> None:
    # Field 15 is unknown: bytes that pass through the parser and mean nothing.
    def padded(size: int) -> bytes:
        head = session_pb2.OpenSessionRequest(request_id="r").SerializeToString() + b"\x7a"
        body = size - len(head) - 3
        return head + bytes([body & 0x7F | 0x80, body >> 7 & 0x7F | 0x80, body >> 14]) + bytes(body)

    assert limited.call("OpenSession", padded(1 << 17)).session.epoch == 1
    with pytest.raises(grpc.RpcError) as raised:
        limited.call("OpenSession", padded((1 << 17) + 1))
    assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize(
    ("limit", "fits", "past"),
    [
        ("max_top_logprobs", {"top_logprobs": 5}, {"top_logprobs": 6}),
        (
            "max_logit_bias",
            {"logit_bias": [{"token_id": i} for i in range(4)]},
            {"logit_bias": [{"token_id": i} for i in range(5)]},
        ),
    ],
)
def test_limits_of_sampling(
    limited: Any, limit: str, fits: dict[str, Any], past: dict[str, Any]
) -> None:
    session = limited.open()
    request = session.request(step_number=1, new_sequences=[{**new(1)[0], "sampling": past}])
    refused_past(limited, "Step", request, limit, LIMITS[limit] + 1)
    session.step(new_sequences=[{**new(1)[0], "sampling": fits}])


def test_leases(limited: Any) -> None:
    def ask(ttl_ms: int) -> session_pb2.OpenSessionRequest:
        return session_pb2.OpenSessionRequest(request_id=f"t{ttl_ms}", lease_ttl_ms=ttl_ms)

    granted = [(1, 2_000), (2_001, 2_001), (50_000, 50_000), (0, 20_000)]
    for asked, given in granted:
        opened = limited.call("OpenSession", ask(asked))
        assert opened.lease_ttl_ms == given
        limited.call("CloseSession", session_pb2.CloseSessionRequest(session=opened.session))
    refused_past(limited, "OpenSession", ask(50_001), "max_lease_ttl_ms", 50_001)


def test_request_ids_and_names(limited: Any) -> None:
    for request_id in ("", "x" * 65, "ä" * 33):
        request = session_pb2.OpenSessionRequest(request_id=request_id)
        assert limited.refused("OpenSession", request).fields == ("request_id",)
    request = session_pb2.OpenSessionRequest(request_id="x" * 64, client_name="n" * 129)
    assert limited.refused("OpenSession", request).fields == ("client_name",)
    request.client_name = "n" * 128
    assert limited.call("OpenSession", request).session.epoch == 1


LATER_IN_A_STEP: dict[str, dict[str, Any]] = {
    "new_sequences[0].adapter_id": {"new_sequences": [{**new(1)[0], "adapter_id": "a"}]},
    "new_sequences[0].state_slot_id": {"new_sequences": [{**new(1)[0], "state_slot_id": 1}]},
    "new_sequences[0].input_embeddings": {"new_sequences": [{**new(1)[0], "input_embeddings": {}}]},
    "items[0].return_hidden_state": {"items": [{"sequence_id": 1, "return_hidden_state": True}]},
}


def test_the_table_of_later_fields_is_whole() -> None:
    """Every field of a request whose comment says Later is in the table above."""
    from pathlib import Path

    folder = Path(__file__).resolve().parents[2] / "protos" / "mlxrt" / "v1"
    named: set[str] = set()
    for name in ("step.proto", "sequence.proto"):
        lines = (folder / name).read_text().splitlines()
        for index, line in enumerate(lines):
            if "Later:" in line and not lines[index + 1].startswith("message"):
                named.add(lines[index + 1].split("=")[0].split()[-1])
    assert named == {path.rpartition(".")[2] for path in LATER_IN_A_STEP}


@pytest.mark.parametrize("field", LATER_IN_A_STEP)
def test_a_later_field_is_refused_by_name(limited: Any, field: str) -> None:
    session = limited.open()
    before = limited.digest()
    refusal = limited.refused("Step", session.request(**LATER_IN_A_STEP[field]))
    assert refusal.reason is Reason.FEATURE_UNSUPPORTED
    assert refusal.metadata == {"field": field} and refusal.fields == (field,)
    if field.startswith("new_sequences"):
        chunk = execution_pb2.PrefillChunk(row_count=1)
        chunk.sequence.CopyFrom(
            sequence_pb2.NewSequence(**LATER_IN_A_STEP[field]["new_sequences"][0])
        )
        request = execution_pb2.PrefillRequest(session=session.ref, step_number=1, chunks=[chunk])
        refusal = limited.refused("Prefill", request)
        path = field.replace("new_sequences[0]", "chunks[0].sequence")
        assert refusal.metadata == {"field": path} and refusal.fields == (path,)
    assert limited.digest() == before


@pytest.mark.parametrize("rpc", ["LoadAdapter", "UnloadAdapter", "ExportBlocks", "ImportBlocks"])
def test_a_later_rpc_is_refused_by_name(limited: Any, rpc: str) -> None:
    service = "Model" if "Adapter" in rpc else "Execution"
    path = f"/mlxrt.v1.{service}Service/{rpc}"
    with pytest.raises(grpc.RpcError) as raised:
        if rpc == "ExportBlocks":
            list(limited.channel.unary_stream(path)(b"", timeout=60))
        elif rpc == "ImportBlocks":
            limited.channel.stream_unary(path)(iter([b"", b""]), timeout=60)
        else:
            limited.channel.unary_unary(path)(b"", timeout=60)
    refusal = limited.refusal_of(raised.value)
    assert refusal.reason is Reason.FEATURE_UNSUPPORTED and refusal.metadata == {"field": rpc}
