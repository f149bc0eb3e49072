"""Random requests, by bytes and by fields: each is answered or refused by reason, a refusal
changes nothing, and the core's invariants hold throughout. In-process, through the same decoding
as over the wire."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from mlxrt_client.v1 import execution_pb2, sequence_pb2, session_pb2, step_pb2

from mlxrt.core.model import Limits, ModelFacts
from mlxrt.core.step import StepOutcome
from mlxrt.engine.base import EngineDescription
from mlxrt.errors import MlxrtError, Reason
from mlxrt.server.execute_stream import StreamRegistry
from mlxrt.server.execution_service import ExecutionService
from mlxrt.server.lifecycle import Lifecycle, ServerState
from mlxrt.server.runtime import Runtime, build_runtime
from mlxrt.server.session_service import SessionService
from mlxrt.testing import FakeEngine

LIMITS = Limits(
    max_step_rows=24, max_step_sequences=6, max_sequences=8, max_model_length=48, max_sessions=3,
    max_step_copies=4, max_logits_rows=2,
)  # fmt: skip
UINT32 = (0, 1, 2, 23, 24, 25, 48, 49, 4095, 4096, 1 << 31, (1 << 32) - 1)
UINT64 = (*UINT32, 1 << 63, (1 << 64) - 1)
INT64 = (0, 12, -1, (1 << 63) - 1, -(1 << 63))
FLOATS = (0.0, 0.5, 1.0, 2.0, -1.0, 1e30, -0.0, math.nan, math.inf, 5e-324)
TEXTS = ("", "a", "b", "x" * 64, "x" * 65, "ä")


RARE = dict.fromkeys(
    (
        "adapter_id", "state_slot_id", "input_embeddings", "prompt_top_logprobs",
        "return_hidden_state", "sampling", "appended", "masks",
    ),
    0.02,
)  # fmt: skip
"""How often fields are set that mostly end in a refusal, or are asked for apart."""
LIKELY: dict[str, range | tuple[int, ...]] = {
    "group": (0, 0, 1), "count": range(5), "sequence_id": range(1, 5), "sequence_ids": range(1, 5),
    "decode_sequence_ids": range(1, 5), "release_sequence_ids": range(1, 5),
    "block_ids": range(14), "source_block_id": range(1, 14), "destination_block_id": range(1, 14),
    "row_count": (0, 1, 1, 1, 2, 3, 6), "start_position": range(10), "token_ids": range(9),
    "prompt_token_ids": range(9),
}  # fmt: skip
"""Values that are often in range, by field."""


class Target:
    """A runtime over a fake engine that answers at once, with the services' byte functions."""

    def __init__(self) -> None:
        self.engine = FakeEngine(num_blocks=24, block_size=4, windows=(0, 6), max_model_length=64)
        self.lifecycle = Lifecycle()
        self.clock_ms = 0
        self.runtime: Runtime
        self.engine.start(self)
        bits = random.Random(1).getrandbits  # ids and seeds are the same in every run
        sessions = SessionService(lambda: self.runtime, self.lifecycle, "i", bits)
        execution = ExecutionService(lambda: self.runtime, StreamRegistry())
        pipeline = self.runtime.pipeline
        self.rpcs: dict[str, tuple[type[Message], Callable[[bytes], Any]]] = {
            "open": (session_pb2.OpenSessionRequest, sessions.open),
            "renew": (session_pb2.RenewSessionRequest, sessions.renew),
            "resume": (session_pb2.ResumeSessionRequest, sessions.resume),
            "get": (session_pb2.GetSessionRequest, sessions.get),
            "close": (session_pb2.CloseSessionRequest, sessions.close),
            "allocate": (execution_pb2.AllocateBlocksRequest, execution.allocate),
            "free": (execution_pb2.FreeBlocksRequest, execution.free_blocks),
            "release": (execution_pb2.FreeSequencesRequest, execution.free_sequences),
            "step": (step_pb2.StepRequest, self._step),
            "sample": (execution_pb2.SampleStepRequest, pipeline.run_sampling),
            "prefill": (execution_pb2.PrefillRequest, pipeline.run_prefill),
            "decode": (execution_pb2.DecodeRequest, pipeline.run_decode),
        }

    def _step(self, data: bytes) -> bytes:
        """The answer to a step; nothing while it waits for masks."""
        pending = self.runtime.pipeline.begin_step(data)
        return b"" if pending.waiter.reply is None else pending.finish()

    def on_progress(self, fraction: float, activity: str) -> None:
        pass

    def on_ready(self, facts: ModelFacts, description: EngineDescription) -> None:
        self.runtime = build_runtime(
            facts, LIMITS, self.engine, self.lifecycle, lambda: self.clock_ms, self.on_lost
        )
        self.lifecycle.move_to(ServerState.SERVING)

    def on_outcome(self, outcome: StepOutcome) -> None:
        self.runtime.dispatcher.deliver(outcome)

    def on_lost(self, error: MlxrtError) -> None:
        raise AssertionError(f"a request broke the server: {error}")

    def send(self, rpc: str, data: bytes) -> Reason | None:
        """The reason of the refusal, which changed nothing; None where it was answered."""
        core = self.runtime.core
        before = core.digest()
        try:
            answer = self.rpcs[rpc][1](data)
        except MlxrtError as error:
            assert error.reason is not Reason.INTERNAL_DEFECT
            assert core.digest() == before, rpc
            return error.reason
        if not isinstance(answer, bytes):
            # It waits for masks, or behind a step that does.
            assert core.inflight_count() > 0
            answer.close()
        return None


def scene(target: Target) -> session_pb2.SessionRef:
    """A session with a sequence that decodes, one that was preempted, and spare blocks."""
    data = session_pb2.OpenSessionRequest(request_id="scene").SerializeToString()
    answer = target.rpcs["open"][1](data)
    ref = session_pb2.OpenSessionResponse.FromString(answer).session
    counts = [{"group": g, "count": 10} for g in (0, 1)]
    allocate = execution_pb2.AllocateBlocksRequest(session=ref, request_id="a", counts=counts)
    blocks = execution_pb2.AllocateBlocksResponse.FromString(
        target.rpcs["allocate"][1](allocate.SerializeToString())
    ).blocks
    for number, sequence_id in ((1, 1), (2, 2)):
        tables = [
            {"group": t.group, "block_ids": t.block_ids[4 * number - 4 : 4 * number]}
            for t in blocks
        ]
        new = sequence_pb2.NewSequence(
            sequence_id=sequence_id, prompt_token_ids=[3] * 6, tables=tables
        )
        item = {"sequence_id": sequence_id, "row_count": 6, "sample": True, "registered": {}}
        step = step_pb2.StepRequest(
            session=ref, step_number=number, new_sequences=[new], items=[item]
        )
        assert target.send("step", step.SerializeToString()) is None
    return ref


class Maker:
    """Random messages, most fields unset, values at the edges and among the ids in use."""

    def __init__(self, rng: random.Random, ref: session_pb2.SessionRef) -> None:
        self.rng = rng
        self.ref = ref

    def fill(self, message: Message, depth: int = 0) -> Message:
        """Sets some fields of `message`; of a oneof, the last that comes up."""
        for field in message.DESCRIPTOR.fields:
            if field.name == "session":
                if self.rng.random() < 0.97:
                    message.session.CopyFrom(self.ref)  # type: ignore[attr-defined]
            elif field.name == "request_id":
                message.request_id = self.rng.choice(TEXTS)  # type: ignore[attr-defined]
            elif self.rng.random() < RARE.get(field.name, 0.45 if depth else 0.25):
                self.set(message, field, depth)
        return message

    def set(self, message: Message, field: FieldDescriptor, depth: int) -> None:
        """Sets one field."""
        if field.is_repeated:
            for _ in range(self.rng.choice((1, 1, 2, 3))):
                if field.message_type is not None:
                    self.fill(getattr(message, field.name).add(), depth + 1)
                else:
                    getattr(message, field.name).append(self.value(field))
        elif field.message_type is not None:
            inner = getattr(message, field.name)
            inner.SetInParent()
            self.fill(inner, depth + 1)
        else:
            setattr(message, field.name, self.value(field))

    def value(self, field: FieldDescriptor) -> Any:
        """A value of the field's type; mostly a small one, which may be an id in use."""
        if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
            text = self.rng.choice(TEXTS)
            return text.encode() if field.type == FieldDescriptor.TYPE_BYTES else text
        choices: dict[int, tuple[Any, ...]] = {
            FieldDescriptor.CPPTYPE_UINT32: UINT32, FieldDescriptor.CPPTYPE_UINT64: UINT64,
            FieldDescriptor.CPPTYPE_INT64: INT64, FieldDescriptor.CPPTYPE_FLOAT: FLOATS,
            FieldDescriptor.CPPTYPE_BOOL: (False, True), FieldDescriptor.CPPTYPE_ENUM: (0, 1, 2, 9),
        }  # fmt: skip
        likely = LIKELY.get(field.name)
        if likely is not None and self.rng.random() < 0.95:
            return self.rng.choice(likely)
        return self.rng.choice(choices[field.cpp_type])


def mend(rng: random.Random, step: step_pb2.StepRequest) -> None:
    """Mends what chance nearly always gets wrong, so that the rest is looked at."""
    seen: set[int] = set(step.decode_sequence_ids)
    del step.decode_sequence_ids[:]
    step.decode_sequence_ids.extend(seen)
    for item in step.items:
        if item.row_count and item.WhichOneof("tokens") is None:
            item.registered.SetInParent()
        if item.WhichOneof("tokens") is not None and not item.row_count:
            item.row_count = 1
        if item.WhichOneof("tokens") == "explicit":
            tokens = [rng.randrange(9) for _ in range(min(item.row_count, 30))]
            item.explicit.token_ids[:] = tokens
        if item.sequence_id in seen:
            item.sequence_id = next(i for i in range(1, 9) if i not in seen)
        seen.add(item.sequence_id)
        for tables in (item.append.tables, item.replace.tables, item.leading_holes):
            groups: set[int] = set()
            for index in reversed(range(len(tables))):
                if tables[index].group in groups:
                    del tables[index]
                else:
                    groups.add(tables[index].group)
    for new in step.new_sequences:
        if not new.prompt_token_ids:
            new.prompt_token_ids.append(1)
        del new.tables[1:]


@pytest.mark.parametrize("seed", range(4))
def test_random_messages(seed: int) -> None:
    rng = random.Random(seed)
    target = Target()
    maker = Maker(rng, scene(target))
    outcomes: dict[str, set[Reason | None]] = {}
    for index in range(6_000):
        target.clock_ms += rng.choice((0, 1, 10))
        rpc = rng.choice([*target.rpcs, *["step"] * 12])
        if rpc in ("close", "resume") and rng.random() < 0.95:
            continue
        message = maker.fill(target.rpcs[rpc][0]())
        if hasattr(message, "step_number"):
            message.step_number = next_step_number(target, maker.ref)
        if isinstance(message, step_pb2.StepRequest) and rng.random() < 0.9:
            mend(rng, message)
        try:
            reason = target.send(rpc, message.SerializeToString())
        except Exception:
            print(rpc, message)
            raise
        outcomes.setdefault(rpc, set()).add(reason)
        # The state wears out: a fresh one now and then.
        if index % 20 == 0 or (reason is None and rpc in ("close", "resume")):
            target.runtime.core.check_integrity()
            target = Target()
            maker.ref = scene(target)
    target.runtime.core.check_integrity()
    # The messages reach deep: many are accepted, and many different refusals are met.
    assert None in outcomes["step"] and len(outcomes["step"]) >= 9
    assert {rpc for rpc, reasons in outcomes.items() if None in reasons} >= {
        "renew", "get", "allocate", "free", "step",
    }  # fmt: skip


def next_step_number(target: Target, ref: session_pb2.SessionRef) -> int:
    """The number that the session expects."""
    data = session_pb2.GetSessionRequest(session=ref).SerializeToString()
    return session_pb2.GetSessionResponse.FromString(target.rpcs["get"][1](data)).next_step_number


@pytest.mark.parametrize("seed", range(2))
def test_random_bytes(seed: int) -> None:
    rng = random.Random(seed)
    target = Target()
    ref = scene(target)
    maker = Maker(rng, ref)
    reasons = set()
    for _ in range(3_000):
        rpc = rng.choice(list(target.rpcs))
        if rpc in ("close", "resume", "open"):
            continue
        data = bytearray(maker.fill(target.rpcs[rpc][0]()).SerializeToString())
        for _ in range(rng.choice((1, 1, 2, 8))):
            if data and rng.random() < 0.8:
                data[rng.randrange(len(data))] = rng.randrange(256)
            else:
                del data[rng.randrange(len(data) + 1) :]
        reasons.add(target.send(rpc, bytes(data)))
    target.runtime.core.check_integrity()
    assert {Reason.MALFORMED_REQUEST, Reason.FIELD_INVALID} <= reasons
