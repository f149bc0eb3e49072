"""Sessions over the wire: leases, renewal, take-over, retries of what has a request id."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from mlxrt_client.v1 import error_pb2, execution_pb2, session_pb2, step_pb2
from structlog.testing import capture_logs

from mlxrt.errors import Reason
from mlxrt.server.reaper import monotonic_ms
from mlxrt.testing import FakeEngine

PROMPT = [5, 9, 2, 77, 1023]
TTL_MS = 30_000


def renew(server: Any, session: Any) -> int:
    """Milliseconds that RenewSession answers."""
    request = session_pb2.RenewSessionRequest(session=session.ref)
    return server.call("RenewSession", request).lease_ttl_ms


def test_a_lease_that_nobody_renews_ends(
    launch: Callable[..., Any], wait_until: Callable[..., None]
) -> None:
    server = launch()
    session, other = server.open(ttl_ms=TTL_MS), server.open(ttl_ms=TTL_MS)
    session.start(1, PROMPT)
    tokens = [*PROMPT, other.start(1, PROMPT)]
    renew(server, session)
    # All but the last second passes at once: no machine is too slow for what came before.
    ends_ms = expiry_of(server, session) - TTL_MS + 1_000
    held = server.core._state.sessions[session.ref.session_id]
    server.on_loop(lambda: setattr(held, "expiry_ms", ends_ms))
    wait_until(lambda: server.on_loop(server.core.session_count) == 1)
    assert monotonic_ms() >= ends_ms
    refusal = server.refused("GetSession", session_pb2.GetSessionRequest(session=session.ref))
    assert refusal.reason is Reason.SESSION_UNKNOWN
    reply = other.step(decode_sequence_ids=[1])
    assert reply.token_ids[0] == server.engine.expected_token(tokens)
    assert reply.free_blocks[0].count == 63 - len(other.state().leased_blocks[0].block_ids)
    server.digest()


def test_any_call_renews(launch: Callable[..., Any], wait_until: Callable[..., None]) -> None:
    server = launch()
    session = server.open(ttl_ms=TTL_MS)
    calls: list[Callable[[], Any]] = [
        lambda: renew(server, session), session.state, session.step, lambda: session.allocate(1),
    ]  # fmt: skip
    for call in calls:
        expiry_ms = expiry_of(server, session)
        wait_until(lambda until_ms=expiry_ms - TTL_MS: monotonic_ms() > until_ms)
        call()
        assert expiry_of(server, session) > expiry_ms
    assert renew(server, session) == TTL_MS


def expiry_of(server: Any, session: Any) -> int:
    """When the session's lease ends unless it is renewed, milliseconds of the server's clock."""
    held = server.core._state.sessions[session.ref.session_id]
    return server.on_loop(lambda: held.expiry_ms)


def test_a_step_in_flight_renews(
    launch: Callable[..., Any], wait_until: Callable[..., None]
) -> None:
    server = launch(FakeEngine(num_blocks=64, block_size=4, threaded=True))
    session = server.open(ttl_ms=TTL_MS)
    session.start(1, PROMPT)
    server.engine.hold()
    call = server.channel.unary_unary("/mlxrt.v1.ExecutionService/Step").future(
        session.request(decode_sequence_ids=[1]).SerializeToString(), timeout=60
    )
    session.wait_for_inflight()
    session.end_lease()
    looks, expire = [], server.core.expire
    server.core.expire = lambda now_ms: looks.append(now_ms) or expire(now_ms)
    wait_until(lambda: len(looks) > 2)
    server.engine.release()
    assert step_pb2.StepResponse.FromString(call.result()).token_ids
    assert expiry_of(server, session) > looks[-1]
    assert session.state().sequences[0].position == len(PROMPT) + 1


def test_a_take_over_fences_the_old_owner_and_its_steps(launch: Callable[..., Any]) -> None:
    engine = FakeEngine(num_blocks=64, block_size=4, threaded=True)
    server = launch(engine)
    session = server.open()
    tokens = [*PROMPT, session.start(1, PROMPT)]
    engine.hold()
    call = server.channel.unary_unary("/mlxrt.v1.ExecutionService/Step").future(
        session.request(decode_sequence_ids=[1]).SerializeToString(), timeout=60
    )
    session.wait_for_inflight()
    request = session_pb2.ResumeSessionRequest(request_id="take", session=session.ref)
    resumed = server.call("ResumeSession", request)
    assert resumed.session.epoch == 2
    # A repeat gets the first answer.
    again = server.call("ResumeSession", request)
    assert again.session == resumed.session
    engine.release()
    reply = step_pb2.StepResponse.FromString(call.result())
    assert reply.error.reason == error_pb2.ERROR_REASON_EPOCH_STALE and not reply.token_ids
    refusal = server.refused("Step", session.request(decode_sequence_ids=[1]))
    assert refusal.reason is Reason.EPOCH_STALE
    session.ref = resumed.session
    assert session.state().sequences[0].position == len(PROMPT)
    reply = session.step(step_number=resumed.next_step_number, decode_sequence_ids=[1])
    assert reply.token_ids[0] == server.engine.expected_token(tokens)


def test_requests_with_an_id_act_once(server: Any) -> None:
    request = session_pb2.OpenSessionRequest(request_id="once", client_name="me")
    first, again = server.call("OpenSession", request), server.call("OpenSession", request)
    assert first == again and server.on_loop(server.core.session_count) == 1
    assert len(first.session.session_id) == 32
    assert set(first.session.session_id) <= set("0123456789abcdef")
    request.client_name = "somebody else"
    assert server.refused("OpenSession", request).reason is Reason.REQUEST_MISMATCH
    counts = [{"group": 0, "count": 3}]
    allocate = execution_pb2.AllocateBlocksRequest(
        session=first.session, request_id="a", counts=counts
    )
    blocks = server.call("AllocateBlocks", allocate)
    assert server.call("AllocateBlocks", allocate) == blocks
    assert server.on_loop(server.core.free_blocks_by_group) == (60,)
    free = execution_pb2.FreeBlocksRequest(
        session=first.session, request_id="f", blocks=blocks.blocks
    )
    for _ in range(2):
        assert server.call("FreeBlocks", free).free_blocks[0].count == 63
    allocate.counts[0].count = 4
    assert server.refused("AllocateBlocks", allocate).reason is Reason.REQUEST_MISMATCH


@pytest.mark.parametrize(
    ("counts", "reason", "field"),
    [
        ([{"group": 0, "count": 64}], Reason.NO_FREE_BLOCKS, None),
        ([{"group": 0, "count": (1 << 32) - 1}], Reason.NO_FREE_BLOCKS, None),
        ([{"group": 0, "count": 0}], Reason.FIELD_INVALID, "counts[0].count"),
        ([{"group": 1, "count": 1}], Reason.FIELD_INVALID, "counts[0].group"),
        ([{"group": 0, "count": 1}] * 2, Reason.FIELD_INVALID, "counts[1].group"),
    ],
)
def test_allocations_refused(
    server: Any, counts: list[dict[str, int]], reason: Reason, field: str | None
) -> None:
    session = server.open()
    before = server.digest()
    request = execution_pb2.AllocateBlocksRequest(
        session=session.ref, request_id="a", counts=counts
    )
    refusal = server.refused("AllocateBlocks", request)
    assert refusal.reason is reason
    if reason is Reason.NO_FREE_BLOCKS:
        assert refusal.metadata["free"] == "63"
        assert refusal.retry_ms is None, "no wait makes the pool larger"
    if field is not None:
        assert refusal.fields == (field,)
    assert server.digest() == before


def test_a_name_can_not_drive_the_terminal_that_shows_the_log(server: Any) -> None:
    with capture_logs() as logs:
        server.call(
            "OpenSession",
            session_pb2.OpenSessionRequest(request_id="n", client_name="Zo\u00eb \x1b[2J\n\u202e"),
        )
    assert [e["client_name"] for e in logs if e["event"] == "session open"] == ["Zo\u00eb ?[2J??"]


def test_a_refused_call_renews_nothing(launch: Callable[..., Any]) -> None:
    server = launch(limits={"min_lease_ttl_ms": 1})
    session = server.open(ttl_ms=300)
    request = execution_pb2.AllocateBlocksRequest(
        session=session.ref, request_id="a", counts=[{"count": 64}]
    )
    until_s = time.monotonic() + 60
    while server.refused("AllocateBlocks", request).reason is Reason.NO_FREE_BLOCKS:
        assert time.monotonic() < until_s, "refused calls keep the lease"
        time.sleep(0.02)
    assert server.refused("AllocateBlocks", request).reason is Reason.SESSION_UNKNOWN


def test_blocks_that_others_have_are_worth_a_wait(server: Any) -> None:
    session, other = server.open(), server.open()
    other.allocate(1)
    request = execution_pb2.AllocateBlocksRequest(
        session=session.ref, request_id="a", counts=[{"count": 63}]
    )
    refusal = server.refused("AllocateBlocks", request)
    assert refusal.reason is Reason.NO_FREE_BLOCKS and refusal.metadata["wanted"] == "63"
    assert refusal.retry_ms is not None


def test_freeing_refused(server: Any) -> None:
    session, other = server.open(), server.open()
    session.start(1, PROMPT)
    held = list(session.state().leased_blocks[0].block_ids)
    spare, foreign = session.allocate(1), other.allocate(1)
    before = server.digest()
    for ids, reason in (
        ([held[0]], Reason.BLOCK_IN_USE),
        (foreign, Reason.BLOCK_NOT_LEASED),
        ([60], Reason.BLOCK_NOT_LEASED),
        ([0], Reason.FIELD_INVALID),
        (spare * 2, Reason.FIELD_INVALID),
        ([1] * 65, Reason.FIELD_INVALID),
    ):
        request = execution_pb2.FreeBlocksRequest(
            session=session.ref, request_id="f", blocks=[{"group": 0, "block_ids": ids}]
        )
        refusal = server.refused("FreeBlocks", request)
        assert refusal.reason is reason, ids
        assert refusal.fields and refusal.fields[0].startswith("blocks[0].block_ids")
    for ids, reason in (([2], Reason.SEQUENCE_UNKNOWN), ([], Reason.FIELD_INVALID)):
        free = execution_pb2.FreeSequencesRequest(
            session=session.ref, request_id="s", sequence_ids=ids
        )
        assert server.refused("FreeSequences", free).reason is reason
    assert server.digest() == before
    free = execution_pb2.FreeSequencesRequest(
        session=session.ref, request_id="s", sequence_ids=[1], free_blocks=True
    )
    freed = server.call("FreeSequences", free).freed_blocks
    assert sorted(freed[0].block_ids) == sorted(held)
    assert not session.state().sequences


def test_a_close_frees_everything_after_the_running_step(launch: Callable[..., Any]) -> None:
    server = launch(FakeEngine(num_blocks=64, block_size=4, threaded=True))
    session = server.open()
    session.start(1, PROMPT)
    server.engine.hold()
    call = server.channel.unary_unary("/mlxrt.v1.ExecutionService/Step").future(
        session.request(decode_sequence_ids=[1]).SerializeToString(), timeout=60
    )
    session.wait_for_inflight()
    closed = server.call("CloseSession", session_pb2.CloseSessionRequest(session=session.ref))
    assert closed.released_sequence_count == 1
    assert server.on_loop(server.core.free_blocks_by_group) < (63,), "the running step may write"
    server.engine.release()
    reply = step_pb2.StepResponse.FromString(call.result())
    assert reply.HasField("error")
    assert server.on_loop(server.core.free_blocks_by_group) == (63,)
    server.digest()


def test_a_session_is_required(server: Any) -> None:
    for rpc, request in (
        ("RenewSession", session_pb2.RenewSessionRequest()),
        ("AllocateBlocks", execution_pb2.AllocateBlocksRequest(request_id="a")),
    ):
        assert server.refused(rpc, request).fields == ("session",)


def test_every_rpc_refuses_malformed_bytes(server: Any) -> None:
    before = server.digest()
    for rpc in (
        "OpenSession", "RenewSession", "ResumeSession", "GetSession", "CloseSession",
        "AllocateBlocks", "FreeBlocks", "FreeSequences", "Step", "Prefill", "Decode",
        "GetServerInfo", "GetModelInfo", "LoadAdapter", "UnloadAdapter",
    ):  # fmt: skip
        assert server.refused(rpc, b"\xff\xff").reason is Reason.MALFORMED_REQUEST, rpc
    with pytest.raises(grpc.RpcError) as raised:
        list(server.channel.unary_stream("/mlxrt.v1.ModelService/GetTokenizer")(b"\xff"))
    assert server.refusal_of(raised.value).reason is Reason.MALFORMED_REQUEST
    assert server.digest() == before
