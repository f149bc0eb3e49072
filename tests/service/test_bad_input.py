"""Bad input over the wire: each case is refused with its reason and field, and changes nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from mlxrt_client.v1 import execution_pb2, sequence_pb2, session_pb2, step_pb2

from mlxrt.errors import Reason
from mlxrt.testing import FakeEngine

BLOCK = 4
PROMPT = [5, 9, 2, 77, 1023]
VOCABULARY = 4096


@dataclass
class Scene:
    """Two sessions. `mine` has sequence 1 (position 5, two blocks, the second half full), sequence
    2 (not prefilled, no block), and spare blocks; `other` has a block of its own."""

    server: Any
    mine: Any
    other: Any
    table: list[int]
    spare: list[int]
    spare_window: list[int]
    foreign: int

    def step(self, **fields: Any) -> step_pb2.StepRequest:
        fields.setdefault("step_number", 3)
        return step_pb2.StepRequest(session=self.mine.ref, **fields)

    def item(self, **fields: Any) -> step_pb2.StepRequest:
        return self.step(items=[{"sequence_id": 1, **fields}])

    def new(self, **fields: Any) -> step_pb2.StepRequest:
        return self.step(new_sequences=[{"sequence_id": 9, "prompt_token_ids": [1], **fields}])

    def sampled(self, **fields: Any) -> step_pb2.StepRequest:
        return self.new(sampling=fields)


@pytest.fixture
def scene(launch: Callable[..., Any]) -> Scene:
    server = launch(
        FakeEngine(num_blocks=64, block_size=BLOCK, windows=(0, 8)),
        limits={
            "max_step_rows": 40, "max_step_sequences": 6, "max_step_copies": 3,
            "max_logits_rows": 2, "max_sequences": 8, "max_model_length": 64, "max_sessions": 3,
            "max_logit_bias": 4, "max_top_logprobs": 5, "max_message_bytes": 1 << 16,
            "max_lease_ttl_ms": 60_000,
        },
    )  # fmt: skip
    mine, other = server.open(), server.open()
    spare = mine.allocate(12)
    window = mine.allocate(4, group=1)
    foreign = other.allocate(1)[0]
    tables = [
        {"group": 0, "block_ids": spare[:2]}, {"group": 1, "block_ids": window[:2]},
    ]  # fmt: skip
    fields = mine.prefill_fields(1, PROMPT, [])
    fields["new_sequences"][0].ClearField("tables")
    fields["new_sequences"][0].tables.extend(sequence_pb2.NewSequence(tables=tables).tables)
    assert mine.step(**fields).results[0].token_ids
    mine.step(new_sequences=[{"sequence_id": 2, "prompt_token_ids": [4, 5, 6]}])
    return Scene(server, mine, other, spare[:2], spare[2:], window[2:], foreign)


Build = Callable[[Scene], Any]
STEP_CASES: dict[str, tuple[Build, Reason, str | None]] = {
    # Form.
    "malformed bytes": (lambda s: b"\x0a\xff\xff", Reason.MALFORMED_REQUEST, None),
    "a text that is not UTF-8": (
        lambda s: b"\x0a\x04\x0a\x02\xff\xfe", Reason.MALFORMED_REQUEST, None,
    ),
    "session unset": (
        lambda s: step_pb2.StepRequest(step_number=3), Reason.FIELD_INVALID, "session",
    ),
    "rows without a token source": (
        lambda s: s.item(row_count=1), Reason.FIELD_INVALID, "items[0].tokens",
    ),
    "a token source without rows": (
        lambda s: s.item(last_sampled={}), Reason.FIELD_INVALID, "items[0].tokens",
    ),
    "an item that does nothing": (
        lambda s: s.item(), Reason.FIELD_INVALID, "items[0].row_count",
    ),
    "an unknown enum": (
        lambda s: s.sampled(logprobs_mode=77), Reason.FIELD_INVALID,
        "new_sequences[0].sampling.logprobs_mode",
    ),
    "a group twice": (
        lambda s: s.item(append={"tables": [{"group": 0}, {"group": 0}]}), Reason.FIELD_INVALID,
        "items[0].append.tables[1].group",
    ),
    "a hole's group twice": (
        lambda s: s.item(leading_holes=[{"group": 1}, {"group": 1}]), Reason.FIELD_INVALID,
        "items[0].leading_holes[1].group",
    ),
    "an unknown group": (
        lambda s: s.item(append={"tables": [{"group": 2, "block_ids": [s.spare[0]]}]}),
        Reason.FIELD_INVALID, "items[0].append.tables[0].group",
    ),
    "explicit tokens fewer than rows": (
        lambda s: s.item(row_count=2, start_position=5, explicit={"token_ids": [1]}),
        Reason.FIELD_INVALID, "items[0].explicit.token_ids",
    ),
    # Ids.
    "unknown session": (
        lambda s: step_pb2.StepRequest(session={"session_id": "0" * 32, "epoch": 1}, step_number=1),
        Reason.SESSION_UNKNOWN, None,
    ),
    "stale epoch": (
        lambda s: step_pb2.StepRequest(
            session={"session_id": s.mine.ref.session_id, "epoch": 0}, step_number=3
        ),
        Reason.EPOCH_STALE, None,
    ),
    "unknown sequence, packed": (
        lambda s: s.step(decode_sequence_ids=[1, 3]), Reason.SEQUENCE_UNKNOWN,
        "decode_sequence_ids[1]",
    ),
    "unknown sequence, item": (
        lambda s: s.step(items=[{"sequence_id": 3, "row_count": 1, "last_sampled": {}}]),
        Reason.SEQUENCE_UNKNOWN, "items[0].sequence_id",
    ),
    "unknown sequence, release": (
        lambda s: s.step(release_sequence_ids=[3]), Reason.SEQUENCE_UNKNOWN,
        "release_sequence_ids[0]",
    ),
    "a sequence id again": (
        lambda s: s.step(new_sequences=[{"sequence_id": 1, "prompt_token_ids": [1]}]),
        Reason.SEQUENCE_EXISTS, "new_sequences[0].sequence_id",
    ),
    "a sequence twice in a step": (
        lambda s: s.step(decode_sequence_ids=[1, 1]), Reason.FIELD_INVALID,
        "decode_sequence_ids[1]",
    ),
    "a sequence packed and as an item": (
        lambda s: s.step(
            decode_sequence_ids=[1], items=[{"sequence_id": 1, "row_count": 1, "last_sampled": {}}]
        ),
        Reason.FIELD_INVALID, "items[0].sequence_id",
    ),
    # Blocks.
    "a block of another session": (
        lambda s: s.item(append={"tables": [{"group": 0, "block_ids": [s.foreign]}]}),
        Reason.BLOCK_NOT_LEASED, "items[0].append.tables[0].block_ids[0]",
    ),
    "a block that nobody leases": (
        lambda s: s.item(append={"tables": [{"group": 0, "block_ids": [63]}]}),
        Reason.BLOCK_NOT_LEASED, "items[0].append.tables[0].block_ids[0]",
    ),
    "a block past the pool": (
        lambda s: s.item(append={"tables": [{"group": 0, "block_ids": [1 << 31]}]}),
        Reason.FIELD_INVALID, "items[0].append.tables[0].block_ids[0]",
    ),
    "a new table with a foreign block": (
        lambda s: s.new(tables=[{"group": 0, "block_ids": [s.spare[0], s.foreign]}]),
        Reason.BLOCK_NOT_LEASED, "new_sequences[0].tables[0].block_ids[1]",
    ),
    "a replacement with a foreign block": (
        lambda s: s.item(replace={"tables": [{"group": 0, "block_ids": [s.foreign]}]}),
        Reason.BLOCK_NOT_LEASED, "items[0].replace.tables[0].block_ids[0]",
    ),
    "a copy from a foreign block": (
        lambda s: s.step(
            block_copies=[{"source_block_id": s.foreign, "destination_block_id": s.spare[0]}]
        ),
        Reason.BLOCK_NOT_LEASED, "block_copies[0].source_block_id",
    ),
    "a copy of an unknown group": (
        lambda s: s.step(
            block_copies=[
                {"group": 5, "source_block_id": s.spare[1], "destination_block_id": s.spare[0]}
            ]
        ),
        Reason.FIELD_INVALID, "block_copies[0].group",
    ),
    "a table too short": (
        lambda s: s.item(row_count=4, start_position=5, explicit={"token_ids": [1, 2, 3, 4]}),
        Reason.TABLE_TOO_SHORT, "items[0].row_count",
    ),
    "a hole read": (
        lambda s: s.item(row_count=1, last_sampled={}, leading_holes=[{"group": 0, "count": 1}]),
        Reason.BLOCK_HOLE, None,
    ),
    "a hole written": (
        lambda s: s.item(
            row_count=1, last_sampled={}, leading_holes=[{"group": 1, "count": 2}]
        ),
        Reason.BLOCK_HOLE, None,
    ),
    "more holes than entries": (
        lambda s: s.item(leading_holes=[{"group": 0, "count": 3}]), Reason.FIELD_INVALID,
        "items[0].leading_holes[0].count",
    ),
    "a slot written by two sequences": (
        lambda s: s.step(
            items=[
                {
                    "sequence_id": i, "row_count": 1, "start_position": 0,
                    "explicit": {"token_ids": [1]},
                    "replace": {"tables": [
                        {"group": 0, "block_ids": [s.spare[0]]},
                        {"group": 1, "block_ids": [s.table[0]]},
                    ]},
                }
                for i in (1, 2)
            ]
        ),
        Reason.BLOCK_SHARED, None,
    ),
    "a slot written twice by one sequence": (
        lambda s: s.item(
            row_count=5, start_position=0, explicit={"token_ids": [1] * 5},
            replace={"tables": [
                {"group": 0, "block_ids": [s.spare[0], s.spare[0]]},
                {"group": 1, "block_ids": s.spare_window},
            ]},
        ),
        Reason.BLOCK_SHARED, "items[0].row_count",
    ),
    "two copies to one block": (
        lambda s: s.step(
            block_copies=[
                {"source_block_id": b, "destination_block_id": s.spare[0]} for b in s.table
            ]
        ),
        Reason.SLOT_CONFLICT, "block_copies[1].destination_block_id",
    ),
    "a shared block written": (
        lambda s: s.step(
            new_sequences=[
                {
                    "sequence_id": 9, "prompt_token_ids": [1],
                    "tables": [{"group": 0, "block_ids": s.table}],
                }
            ],
            decode_sequence_ids=[1],
        ),
        Reason.BLOCK_SHARED, "decode_sequence_ids[0]",
    ),
    "positions never computed": (
        lambda s: s.step(
            items=[
                {
                    "sequence_id": 2, "row_count": 1, "start_position": 2, "registered": {},
                    "append": {"tables": [
                        {"group": 0, "block_ids": [s.spare[0]]},
                    ]},
                }
            ]
        ),
        Reason.BLOCK_UNFILLED, None,
    ),
    # Positions and tokens.
    "a start past the known tokens": (
        lambda s: s.item(row_count=1, start_position=50, registered={}),
        Reason.POSITION_INVALID, "items[0].start_position",
    ),
    "a negative start": (
        lambda s: s.item(row_count=1, start_position=-1, registered={}),
        Reason.POSITION_INVALID, "items[0].start_position",
    ),
    "a sample before the last token": (
        lambda s: s.item(row_count=1, start_position=0, registered={}, sample=True),
        Reason.POSITION_INVALID, None,
    ),
    "a token outside the vocabulary, prompt": (
        lambda s: s.new(prompt_token_ids=[1, VOCABULARY]), Reason.FIELD_INVALID,
        "new_sequences[0].prompt_token_ids[1]",
    ),
    "a token outside the vocabulary, explicit": (
        lambda s: s.item(
            row_count=1, start_position=5, explicit={"token_ids": [(1 << 32) - 1]}
        ),
        Reason.FIELD_INVALID, "items[0].explicit.token_ids[0]",
    ),
    "a token outside the vocabulary, bias": (
        lambda s: s.sampled(logit_bias=[{"token_id": VOCABULARY}]), Reason.FIELD_INVALID,
        "new_sequences[0].sampling.logit_bias[0].token_id",
    ),
    "an empty prompt": (
        lambda s: s.new(prompt_token_ids=[]), Reason.FIELD_INVALID,
        "new_sequences[0].prompt_token_ids",
    ),
    # Step numbers.
    "step number 0": (lambda s: s.step(step_number=0), Reason.FIELD_INVALID, "step_number"),
    "a gap": (lambda s: s.step(step_number=4), Reason.STEP_GAP, None),
    "a repeat with other content": (
        lambda s: s.step(step_number=2, decode_sequence_ids=[1]), Reason.STEP_MISMATCH, None,
    ),
}  # fmt: skip

for _name, _values in {
    "temperature": (-0.1, math.nan, math.inf),
    "top_p": (0.0, 1.5, -1.0, math.nan),
    "min_p": (-0.1, 1.1, math.nan),
    "repetition_penalty": (0.0, -1.0, math.nan, math.inf),
    "presence_penalty": (-2.1, 2.1, math.nan),
    "frequency_penalty": (-2.1, 2.1, -math.inf),
}.items():
    for _value in _values:
        STEP_CASES[f"{_name} = {_value}"] = (
            lambda s, name=_name, value=_value: s.sampled(**{name: value}),
            Reason.FIELD_INVALID,
            f"new_sequences[0].sampling.{_name}",
        )
STEP_CASES["a bias that is not finite"] = (
    lambda s: s.sampled(logit_bias=[{"token_id": 1, "bias": math.nan}]),
    Reason.FIELD_INVALID,
    "new_sequences[0].sampling.logit_bias[0].bias",
)
STEP_CASES["a bias twice"] = (
    lambda s: s.sampled(logit_bias=[{"token_id": 1}, {"token_id": 1}]),
    Reason.FIELD_INVALID,
    "new_sequences[0].sampling.logit_bias[1].token_id",
)


def unharmed(scene: Scene, before: bytes) -> None:
    """The state is as before, and the next step of each session still runs."""
    assert scene.server.digest() == before
    assert scene.mine.step(step_number=3, decode_sequence_ids=[1]).token_ids


@pytest.mark.parametrize("case", STEP_CASES)
def test_step(scene: Scene, case: str) -> None:
    build, reason, field = STEP_CASES[case]
    before = scene.server.digest()
    refusal = scene.server.refused("Step", build(scene))
    assert refusal.reason is reason
    if field is not None:
        assert refusal.fields == (field,)
    unharmed(scene, before)


@pytest.mark.parametrize("case", [c for c in STEP_CASES if c not in ("session unset",)])
def test_the_stream_refuses_the_same_in_band(scene: Scene, case: str) -> None:
    build, reason, field = STEP_CASES[case]
    request = build(scene)
    if isinstance(request, bytes):
        data = b"\x0a" + bytes([len(request)]) + request
    else:
        data = execution_pb2.ExecuteRequest(step=request).SerializeToString()
    before = scene.server.digest()
    run = scene.server.channel.stream_stream("/mlxrt.v1.ExecutionService/Execute")
    good = execution_pb2.ExecuteRequest(step=scene.step(decode_sequence_ids=[1]))
    answers = [
        execution_pb2.ExecuteResponse.FromString(a)
        for a in run(iter([data, data, good.SerializeToString()]), timeout=60)
    ]
    for answer in answers[:2]:
        assert answer.error.reason == reason.number
        assert answer.error.code == int(reason.code)
        if field is not None:
            assert [v.field for v in answer.error.field_violations] == [f"step.{field}"]
    assert answers[2].step.token_ids and len(answers) == 3
    assert scene.server.digest() != before


def test_unknown_fields_are_kept_out_of_the_way(scene: Scene) -> None:
    data = scene.step(decode_sequence_ids=[1]).SerializeToString() + b"\xf8\x7f\x01"
    assert scene.server.call("Step", data).token_ids


def test_no_call_without_a_service(scene: Scene) -> None:
    for path in ("/mlxrt.v1.ExecutionService/Nothing", "/nobody/Home"):
        with pytest.raises(grpc.RpcError) as raised:
            scene.server.channel.unary_unary(path)(b"", timeout=60)
        assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_a_message_past_the_limit_never_arrives(scene: Scene) -> None:
    before = scene.server.digest()
    with pytest.raises(grpc.RpcError) as raised:
        scene.server.call("Step", bytes(1 << 17))
    assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    unharmed(scene, before)


def test_a_session_of_another_epoch_is_refused_everywhere(scene: Scene) -> None:
    stale = session_pb2.SessionRef(session_id=scene.mine.ref.session_id, epoch=1)
    resumed = scene.server.call(
        "ResumeSession", session_pb2.ResumeSessionRequest(request_id="take", session=stale)
    )
    assert resumed.session.epoch == 2 and resumed.next_step_number == 3
    before = scene.server.digest()
    for rpc, request in (
        ("RenewSession", session_pb2.RenewSessionRequest(session=stale)),
        ("GetSession", session_pb2.GetSessionRequest(session=stale)),
        ("CloseSession", session_pb2.CloseSessionRequest(session=stale)),
        ("ResumeSession", session_pb2.ResumeSessionRequest(request_id="b", session=stale)),
        ("FreeBlocks", execution_pb2.FreeBlocksRequest(session=stale, request_id="c")),
        ("AllocateBlocks", execution_pb2.AllocateBlocksRequest(session=stale, request_id="d")),
        (
            "FreeSequences",
            execution_pb2.FreeSequencesRequest(session=stale, request_id="e", sequence_ids=[1]),
        ),
        ("Step", step_pb2.StepRequest(session=stale, step_number=3)),
    ):
        assert scene.server.refused(rpc, request).reason is Reason.EPOCH_STALE, rpc
    assert scene.server.digest() == before
