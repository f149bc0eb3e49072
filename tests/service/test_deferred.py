"""Masks and deferred sampling over the wire: on the stream, by a call, and when things break."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
import pytest
from mlxrt_client.v1 import error_pb2, execution_pb2, session_pb2, step_pb2, tensor_pb2

from mlxrt.errors import Reason
from mlxrt.testing import FakeEngine

PROMPT = [5, 9, 2, 77, 1023]
WORDS = 128


def mask(sequence_id: int, *rows: list[int]) -> step_pb2.TokenMask:
    """Allows the tokens of each row, of a vocabulary of 4096."""
    bits = np.zeros((len(rows), WORDS * 32), np.uint8)
    for row, tokens in zip(bits, rows, strict=True):
        row[tokens] = 1
    data = np.packbits(bits, axis=1, bitorder="little").tobytes()
    allowed = tensor_pb2.Tensor(
        data_type=tensor_pb2.DATA_TYPE_INT32, shape=[len(rows), WORDS], data=data
    )
    return step_pb2.TokenMask(sequence_id=sequence_id, allowed=allowed)


def sampling(session: Any, number: int, *masks: step_pb2.TokenMask) -> Any:
    """The message that goes over the stream."""
    deferred = step_pb2.DeferredSampling(session=session.ref, step_number=number, masks=masks)
    return execution_pb2.ExecuteRequest(sampling=deferred)


def unary(session: Any, number: int, *masks: step_pb2.TokenMask) -> Any:
    """The message of SampleStep."""
    return execution_pb2.SampleStepRequest(sampling=sampling(session, number, *masks).sampling)


def test_masks_in_a_step(server: Any) -> None:
    session = server.open()
    first = session.start(1, PROMPT)
    greedy = server.engine.expected_token([*PROMPT, first])
    # Of those allowed the one soonest after the greedy token, in the fake's order, wins.
    allowed = [(greedy + 7) % 4096, (greedy + 3) % 4096, (greedy - 1) % 4096]
    reply = session.step(decode_sequence_ids=[1], masks=[mask(1, allowed)])
    assert list(reply.token_ids) == [(greedy + 3) % 4096]
    drafts = [(greedy + 5) % 4096] * 2
    item = {"sequence_id": 1, "row_count": 1, "last_sampled": {}, "sample": True}
    reply = session.step(
        items=[{**item, "draft_token_ids": drafts}], masks=[mask(1, drafts[:1], drafts, [11])]
    )
    assert list(reply.results[0].token_ids) == [*drafts, 11]
    assert reply.results[0].accepted_draft_count == 2


def test_the_mask_comes_while_the_forward_runs_or_after(server: Any) -> None:
    session = server.open()
    first = session.start(1, PROMPT)
    stream = server.stream()
    stream.send(session.request(decode_sequence_ids=[1], defer_sampling=True))
    stream.send(sampling(session, 2, mask(1, [6, 8])))
    (token,) = stream.receive().step.token_ids
    assert token in (6, 8)
    stream.send(session.request(decode_sequence_ids=[1], defer_sampling=True))
    session.wait_for_inflight()
    stream.send(sampling(session, 3))
    (free,) = stream.receive().step.token_ids
    assert free == server.engine.expected_token([*PROMPT, first, token])


def test_steps_behind_wait_and_other_sessions_do_not(server: Any) -> None:
    session, other = server.open(), server.open()
    first = session.start(1, PROMPT)
    stream = server.stream()
    stream.send(session.request(decode_sequence_ids=[1], defer_sampling=True))
    stream.send(session.request(decode_sequence_ids=[1]))
    session.wait_for_inflight(2)
    tokens = [*PROMPT, other.start(1, PROMPT)]
    for _ in range(3):
        tokens += other.step(decode_sequence_ids=[1]).token_ids
    assert tokens[6:] == [server.engine.expected_token(tokens[:i]) for i in range(6, 9)]
    assert list(session.state().inflight_step_numbers) == [2, 3]
    stream.send(session.request(decode_sequence_ids=[1]))
    stream.send(sampling(session, 2, mask(1, [9])))
    second, third = stream.receive().step, stream.receive().step
    assert (second.step_number, list(second.token_ids)) == (2, [9])
    expected = server.engine.expected_token([*PROMPT, first, 9])
    assert (third.step_number, list(third.token_ids)) == (3, [expected])
    assert stream.receive().error.reason == error_pb2.ERROR_REASON_TOO_MANY_INFLIGHT_STEPS


def test_refused_masks_come_back_at_once_and_the_step_waits_on(server: Any) -> None:
    session = server.open()
    session.start(1, PROMPT)
    stream = server.stream()
    stream.send(session.request(decode_sequence_ids=[1], defer_sampling=True))
    session.wait_for_inflight()
    before = server.digest()
    short = mask(1, [4])
    short.allowed.data = short.allowed.data[:-1]
    typed = mask(1, [4])
    typed.allowed.data_type = tensor_pb2.DATA_TYPE_FLOAT32
    flat = mask(1, [4])
    flat.allowed.shape[:] = [WORDS]
    for bad, field in (
        (mask(2, [4]), "masks[0].sequence_id"),
        (mask(1, [4], [4]), "masks[0].allowed.shape[0]"),
        (short, "masks[0].allowed.data"),
        (typed, "masks[0].allowed.data_type"),
        (flat, "masks[0].allowed.shape"),
    ):
        stream.send(sampling(session, 2, bad))
        refusal = stream.receive().sampling_refusal
        assert refusal.step_number == 2
        assert [v.field for v in refusal.error.field_violations] == [f"sampling.{field}"]
        assert server.refused("SampleStep", unary(session, 2, bad)).fields == (f"sampling.{field}",)
        assert server.digest() == before
    stream.send(sampling(session, 3))
    gap = stream.receive().sampling_refusal
    assert (gap.step_number, gap.error.reason) == (3, Reason.STEP_GAP.number)
    assert server.digest() == before
    stream.send(sampling(session, 2, mask(1, [4])))
    assert list(stream.receive().step.token_ids) == [4]


def test_masks_by_a_call_and_their_repeats(server: Any) -> None:
    session = server.open()
    session.start(1, PROMPT)
    request = session.request(decode_sequence_ids=[1], defer_sampling=True)
    step = server.channel.unary_unary(
        "/mlxrt.v1.ExecutionService/Step",
        response_deserializer=step_pb2.StepResponse.FromString,
    ).future(request.SerializeToString(), timeout=60)
    session.wait_for_inflight()
    answer = server.call("SampleStep", unary(session, 2, mask(1, [4]))).step
    assert step.result() == answer and list(answer.token_ids) == [4]
    repeat = server.call("SampleStep", unary(session, 2, mask(1, [4]))).step
    assert repeat.replayed and list(repeat.token_ids) == [4]
    assert server.call("Step", request).replayed
    refusal = server.refused("SampleStep", execution_pb2.SampleStepRequest())
    assert refusal.fields == ("sampling.session",)


def test_a_lost_stream_leaves_the_step_waiting(server: Any) -> None:
    session = server.open()
    session.start(1, PROMPT)
    stream = server.stream()
    request = session.request(decode_sequence_ids=[1], defer_sampling=True)
    stream.send(request)
    session.wait_for_inflight()
    stream.call.cancel()
    again = server.stream()
    again.send(request)
    again.send(sampling(session, 2, mask(1, [4])))
    again.send(sampling(session, 2, mask(1, [4])))
    answer = again.receive().step
    assert list(answer.token_ids) == [4] and answer.replayed
    assert server.engine.plans_run == 3  # the prefill, the forward, the sampling


def test_a_waiting_step_ends_with_the_lease(server: Any) -> None:
    session = server.open()
    session.start(1, PROMPT)
    stream = server.stream()
    stream.send(session.request(decode_sequence_ids=[1], defer_sampling=True))
    stream.send(session.request(decode_sequence_ids=[1]))
    session.wait_for_inflight(2)
    held = server.core._state.sessions[session.ref.session_id]
    sooner_ms = server.on_loop(lambda: held.expiry_ms) - 10_000
    server.on_loop(lambda: setattr(held, "expiry_ms", sooner_ms))
    server.call("RenewSession", session_pb2.RenewSessionRequest(session=session.ref))
    assert server.on_loop(lambda: held.expiry_ms) > sooner_ms + 5_000
    assert list(session.state().inflight_step_numbers) == [2, 3]
    session.end_lease()
    answers = [stream.receive().step, stream.receive().step]
    unknown = error_pb2.ERROR_REASON_SESSION_UNKNOWN
    assert [answer.error.reason for answer in answers] == [unknown, unknown]
    assert server.refused("SampleStep", unary(session, 2)).reason is Reason.SESSION_UNKNOWN
    free = server.on_loop(server.core.free_blocks_by_group)
    assert free == (63,)
    server.open().start(1, PROMPT)


def test_a_take_over_and_a_close_end_a_waiting_step(server: Any) -> None:
    for rpc, request_type, reason in (
        ("ResumeSession", session_pb2.ResumeSessionRequest, error_pb2.ERROR_REASON_EPOCH_STALE),
        ("CloseSession", session_pb2.CloseSessionRequest, error_pb2.ERROR_REASON_SESSION_UNKNOWN),
    ):
        session = server.open()
        session.start(1, PROMPT)
        stream = server.stream()
        stream.send(session.request(decode_sequence_ids=[1], defer_sampling=True))
        session.wait_for_inflight()
        request = request_type(session=session.ref)
        if rpc == "ResumeSession":
            request.request_id = "take-over"
        server.call(rpc, request)
        assert stream.receive().step.error.reason == reason


def test_a_forward_that_fails(launch: Callable[..., Any]) -> None:
    server = launch(FakeEngine(num_blocks=64, block_size=4, threaded=True, step_s=0.05))
    session = server.open()
    first = session.start(1, PROMPT)
    server.engine.faults.fail_tickets.add(server.engine.last_ticket + 1)
    request = session.request(decode_sequence_ids=[1], defer_sampling=True)
    reply = server.call("Step", request)
    assert reply.error.reason == error_pb2.ERROR_REASON_EXECUTION_FAILED
    reply = session.step(decode_sequence_ids=[1])
    assert list(reply.token_ids) == [server.engine.expected_token([*PROMPT, first])]


def test_a_deferred_step_without_rows_waits_too(server: Any) -> None:
    session = server.open()
    stream = server.stream()
    stream.send(session.request(defer_sampling=True))
    session.wait_for_inflight()
    stream.send(sampling(session, 1))
    assert stream.receive().step.step_number == 1


def test_the_end_of_a_drain_discards_a_waiting_step(launch: Callable[..., Any]) -> None:
    server = launch(drain_seconds=1)
    session = server.open()
    session.start(1, PROMPT)
    stream = server.stream()
    stream.send(session.request(decode_sequence_ids=[1], defer_sampling=True))
    session.wait_for_inflight()
    server.loop.call_soon_threadsafe(server.server.drain)
    answer = stream.receive().step
    assert answer.error.reason == error_pb2.ERROR_REASON_SESSION_UNKNOWN
    assert server.exit_code.result(60) == 0


def test_a_drain_lets_a_waiting_step_end(launch: Callable[..., Any]) -> None:
    server = launch(drain_seconds=20)
    session = server.open()
    session.start(1, PROMPT)
    stream = server.stream()
    stream.send(session.request(decode_sequence_ids=[1], defer_sampling=True))
    session.wait_for_inflight()
    server.loop.call_soon_threadsafe(server.server.drain)
    stream.send(sampling(session, 2, mask(1, [4])))
    assert list(stream.receive().step.token_ids) == [4]
    server.call("CloseSession", session_pb2.CloseSessionRequest(session=session.ref))
    with pytest.raises((grpc.RpcError, StopIteration)):
        stream.receive()


def test_masks_without_number_are_counted_before_they_are_read(server: Any) -> None:
    session = server.open()
    request = execution_pb2.SampleStepRequest(
        sampling={"session": session.ref, "step_number": 1, "masks": [{}] * 20_000}
    )
    refusal = server.refused("SampleStep", request)
    assert refusal.reason is Reason.LIMIT_EXCEEDED
    assert refusal.metadata["limit"] == "max_mask_rows"
