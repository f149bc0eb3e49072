"""Every ErrorReason is provoked over the wire, save those that name here why they can't be."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from mlxrt_client.v1 import error_pb2, execution_pb2, model_pb2, session_pb2, step_pb2

from mlxrt.errors import Reason
from mlxrt.testing import FakeEngine

NOT_PROVOKED: dict[Reason, str] = {}
PROMPT = [5, 9, 2, 77, 1023]
Launch = Callable[..., Any]
Provoke = Callable[[Launch], int]
PROVOKED: dict[Reason, Provoke] = {}


def provokes(reason: Reason) -> Callable[[Provoke], Provoke]:
    """Enters the function as the one that provokes `reason` and answers its number."""

    def enter(function: Provoke) -> Provoke:
        PROVOKED[reason] = function
        return function

    return enter


def held(launch: Launch) -> Any:
    """A server whose steps run once `server.engine.release` says so."""
    engine = FakeEngine(num_blocks=64, block_size=4, threaded=True)
    engine.hold()
    return launch(engine)


def refused_step(launch: Launch, *, started: bool = False, **fields: Any) -> int:
    """The reason of a first step (second where `started`: then sequence 1 stands at position 5)."""
    server = launch()
    session = server.open()
    if started:
        session.start(1, PROMPT)
    return server.refused("Step", session.request(**fields)).reason.number


def refused_table(launch: Launch, blocks: Callable[[Any], list[int]], **item: Any) -> int:
    """The reason of a step that registers a prompt of five with these blocks and runs the item."""
    server = launch()
    session = server.open()
    fields = session.prefill_fields(1, PROMPT, blocks(session))
    fields["items"][0].MergeFrom(step_pb2.StepItem(**item))
    return server.refused("Step", session.request(**fields)).reason.number


PROVOKED |= {
    Reason.MALFORMED_REQUEST: lambda launch: launch().refused("Step", b"\xff").reason.number,
    Reason.FIELD_INVALID: lambda launch: refused_step(launch, step_number=0),
    Reason.FEATURE_UNSUPPORTED: lambda launch: refused_step(
        launch, items=[{"sequence_id": 1, "return_hidden_state": True}]
    ),
    Reason.LIMIT_EXCEEDED: lambda launch: refused_step(launch, decode_sequence_ids=range(257)),
    Reason.SEQUENCE_UNKNOWN: lambda launch: refused_step(launch, decode_sequence_ids=[1]),
    Reason.SEQUENCE_EXISTS: lambda launch: refused_step(
        launch, started=True, new_sequences=[{"sequence_id": 1, "prompt_token_ids": [1]}]
    ),
    Reason.STEP_GAP: lambda launch: refused_step(launch, step_number=2),
    Reason.STEP_MISMATCH: lambda launch: refused_step(launch, started=True, step_number=1),
    Reason.POSITION_INVALID: lambda launch: refused_step(
        launch, started=True,
        items=[{"sequence_id": 1, "row_count": 1, "registered": {}, "start_position": 9}],
    ),
    Reason.BLOCK_NOT_LEASED: lambda launch: refused_table(launch, lambda _: [1, 2]),
    Reason.BLOCK_SHARED: lambda launch: refused_table(launch, lambda s: s.allocate(1) * 2),
    Reason.BLOCK_HOLE: lambda launch: refused_table(launch, lambda s: [0, *s.allocate(1)]),
    Reason.TABLE_TOO_SHORT: lambda launch: refused_table(launch, lambda s: s.allocate(1)),
    Reason.BLOCK_UNFILLED: lambda launch: refused_table(
        launch, lambda s: s.allocate(2), start_position=4, row_count=1
    ),
}  # fmt: skip


@provokes(Reason.SLOT_CONFLICT)
def slot_conflict(launch: Launch) -> int:
    server = launch()
    session = server.open()
    blocks = session.allocate(3)
    copies = [{"source_block_id": b, "destination_block_id": blocks[2]} for b in blocks[:2]]
    return server.refused("Step", session.request(block_copies=copies)).reason.number


@provokes(Reason.STEP_STALE)
def step_stale(launch: Launch) -> int:
    server = launch()
    session = server.open()
    for _ in range(6):
        session.step()
    refusal = server.refused("Step", session.request(step_number=1))
    assert refusal.metadata["expected_step_number"] == "7"
    return refusal.reason.number


@provokes(Reason.SESSION_UNKNOWN)
def session_unknown(launch: Launch) -> int:
    server = launch()
    session = server.open()
    request = session_pb2.CloseSessionRequest(session=session.ref)
    server.call("CloseSession", request)
    return server.refused("CloseSession", request).reason.number


@provokes(Reason.EPOCH_STALE)
def epoch_stale(launch: Launch) -> int:
    server = launch()
    session = server.open()
    request = session_pb2.ResumeSessionRequest(request_id="t", session=session.ref)
    server.call("ResumeSession", request)
    return server.refused("Step", session.request()).reason.number


@provokes(Reason.BLOCK_IN_USE)
def block_in_use(launch: Launch) -> int:
    server = launch()
    session = server.open()
    session.start(1, PROMPT)
    request = execution_pb2.FreeBlocksRequest(
        session=session.ref, request_id="f", blocks=session.state().leased_blocks
    )
    return server.refused("FreeBlocks", request).reason.number


@provokes(Reason.NO_FREE_BLOCKS)
def no_free_blocks(launch: Launch) -> int:
    server = launch()
    request = execution_pb2.AllocateBlocksRequest(
        session=server.open().ref, request_id="a", counts=[{"count": 64}]
    )
    return server.refused("AllocateBlocks", request).reason.number


@provokes(Reason.TOO_MANY_SESSIONS)
def too_many_sessions(launch: Launch) -> int:
    server = launch(limits={"max_sessions": 1})
    server.open()
    request = session_pb2.OpenSessionRequest(request_id="two")
    return server.refused("OpenSession", request).reason.number


@provokes(Reason.REQUEST_MISMATCH)
def request_mismatch(launch: Launch) -> int:
    server = launch()
    server.call("OpenSession", session_pb2.OpenSessionRequest(request_id="one"))
    request = session_pb2.OpenSessionRequest(request_id="one", client_name="x")
    return server.refused("OpenSession", request).reason.number


@provokes(Reason.TOO_MANY_INFLIGHT_STEPS)
def too_many_inflight_steps(launch: Launch) -> int:
    server = held(launch)
    session = server.open()
    run = server.channel.unary_unary("/mlxrt.v1.ExecutionService/Step")
    requests = [session.request().SerializeToString() for _ in range(3)]
    calls = [run.future(request, timeout=60) for request in requests[:2]]
    session.wait_for_inflight(2)
    reason = server.refused("Step", requests[2]).reason.number
    server.engine.release()
    for call in calls:
        call.result()
    return reason


def failed_replies(launch: Launch) -> list[step_pb2.StepResponse]:
    """The replies of two steps in flight, the first of which fails."""
    server = held(launch)
    session = server.open()
    server.engine.faults.fail_tickets.update(range(100))
    run = server.channel.unary_unary("/mlxrt.v1.ExecutionService/Step")
    calls = []
    for number in (1, 2):
        calls.append(run.future(session.request().SerializeToString(), timeout=60))
        session.wait_for_inflight(number)
    server.engine.release()
    return [step_pb2.StepResponse.FromString(call.result()) for call in calls]


@provokes(Reason.EXECUTION_FAILED)
def execution_failed(launch: Launch) -> int:
    return failed_replies(launch)[0].error.reason


@provokes(Reason.PREDECESSOR_FAILED)
def predecessor_failed(launch: Launch) -> int:
    return failed_replies(launch)[1].error.reason


@provokes(Reason.POSITION_UNKNOWN)
def position_unknown(launch: Launch) -> int:
    server = launch()
    session = server.open()
    session.start(1, PROMPT)
    item = {"sequence_id": 1, "row_count": 1, "last_sampled": {}, "sample": True}
    # Deferred, so that the step stays in flight.
    drafting = session.request(items=[{**item, "draft_token_ids": [1]}], defer_sampling=True)
    stream = server.stream()
    stream.send(drafting)
    session.wait_for_inflight()
    refusal = server.refused("Step", session.request(decode_sequence_ids=[1]))
    assert refusal.fields == ("decode_sequence_ids[0]",)
    return refusal.reason.number


@provokes(Reason.MASK_EMPTY)
def mask_empty(launch: Launch) -> int:
    session = launch().open()
    session.start(1, PROMPT)
    nothing = {"data_type": "DATA_TYPE_INT32", "shape": [1, 128], "data": bytes(512)}
    masks = [{"sequence_id": 1, "allowed": nothing}]
    reply = session.step(decode_sequence_ids=[1], masks=masks)
    assert list(reply.token_ids) == [4294967295]
    return reply.results[0].error.reason


@provokes(Reason.NON_FINITE_LOGITS)
def non_finite_logits(launch: Launch) -> int:
    server = launch()
    server.engine.faults.nan_prompt_tokens.add(9)
    session = server.open()
    reply = session.step(**session.prefill_fields(1, PROMPT, session.allocate(2)))
    return reply.results[0].error.reason


@provokes(Reason.DEVICE_LOST)
def device_lost(launch: Launch) -> int:
    server = launch()
    server.engine.faults.lose_ticket = server.engine.last_ticket + 1
    reason = server.open().step().error.reason
    server.exit_code.result(60)
    return reason


@provokes(Reason.LOADING)
def loading(launch: Launch) -> int:
    gate = threading.Event()
    server = launch(FakeEngine(threaded=True, load_gate=gate))
    return server.refused("GetModelInfo", model_pb2.GetModelInfoRequest()).reason.number


@provokes(Reason.DRAINING)
def draining(launch: Launch) -> int:
    server = launch()
    server.open().start(1, PROMPT)
    server.on_loop(server.server.drain)
    while server.refused(
        "OpenSession", session_pb2.OpenSessionRequest(request_id="", client_name="x" * 200)
    ).reason is Reason.FIELD_INVALID:  # fmt: skip
        time.sleep(0.005)
    request = session_pb2.OpenSessionRequest(request_id="late")
    return server.refused("OpenSession", request).reason.number


@provokes(Reason.INTERNAL_DEFECT)
def internal_defect(launch: Launch) -> int:
    server = launch()
    session = server.open()
    server.on_loop(lambda: setattr(server.server.runtime.pipeline, "run_step", lambda _: 1 / 0))
    return server.refused("Step", session.request()).reason.number


@provokes(Reason.STREAM_REPLACED)
def stream_replaced(launch: Launch) -> int:
    server = launch()
    session = server.open()
    run = server.channel.stream_stream("/mlxrt.v1.ExecutionService/Execute")
    ends = threading.Event()

    def one_step() -> Any:
        yield execution_pb2.ExecuteRequest(step=session.request()).SerializeToString()
        ends.wait(60)

    older = run(one_step(), timeout=60)
    next(older)
    newer = run(one_step(), timeout=60)
    next(newer)
    with pytest.raises(grpc.RpcError) as raised:
        next(older)
    ends.set()
    return server.refusal_of(raised.value).reason.number


@provokes(Reason.UNAUTHENTICATED_CALLER)
def unauthenticated_caller(launch: Launch) -> int:
    with tempfile.NamedTemporaryFile("w") as file:
        file.write("a-token-that-nobody-sends\n")
        file.flush()
        server = launch(token_file=file.name)
    return server.refused("GetServerInfo", b"").reason.number


def test_the_table_is_whole() -> None:
    assert set(PROVOKED) | set(NOT_PROVOKED) == set(Reason)
    assert not set(PROVOKED) & set(NOT_PROVOKED)
    assert {r.number for r in Reason} == set(error_pb2.ErrorReason.values()) - {0}


@pytest.mark.parametrize("reason", PROVOKED, ids=lambda reason: reason.name)
def test_each_reason(launch: Launch, reason: Reason) -> None:
    assert PROVOKED[reason](launch) == reason.number
