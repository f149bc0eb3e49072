"""Steps end to end over the wire: unary forms, the stream, retries, cancels."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from mlxrt_client.v1 import error_pb2, execution_pb2, sequence_pb2, session_pb2, step_pb2

from mlxrt.errors import Reason
from mlxrt.testing import FakeEngine

PROMPT = [5, 9, 2, 77, 1023]


def test_unary_step_gives_the_models_tokens(server: Any) -> None:
    session = server.open()
    tokens = [*PROMPT, session.start(7, PROMPT)]
    for _ in range(10):
        reply = session.step(decode_sequence_ids=[7])
        assert not reply.results and reply.bucket_row_count == 1
        tokens.append(reply.token_ids[0])
    for end in range(len(PROMPT), len(tokens)):
        assert tokens[end] == server.engine.expected_token(tokens[:end])
    state = session.state(include_tokens=True, include_tables=True)
    assert list(state.sequences[0].token_ids) == tokens
    assert state.sequences[0].position == len(tokens) - 1


def test_prefill_and_decode_are_the_same_steps(server: Any) -> None:
    session = server.open()
    blocks = session.allocate(4)
    new = sequence_pb2.NewSequence(sequence_id=1, prompt_token_ids=PROMPT)
    chunk = execution_pb2.PrefillChunk(
        sequence=new, row_count=5, sample=True,
        append=[{"group": 0, "block_ids": blocks[:2]}],
    )  # fmt: skip
    request = execution_pb2.PrefillRequest(session=session.ref, step_number=1, chunks=[chunk])
    first = server.call("Prefill", request).step
    tokens = [*PROMPT, first.results[0].token_ids[0]]
    assert tokens[-1] == server.engine.expected_token(PROMPT)
    # The same content as a Step is a repeat of the Prefill.
    item = step_pb2.StepItem(
        sequence_id=1, row_count=5, sample=True, registered={},
        append={"tables": [{"group": 0, "block_ids": blocks[:2]}]},
    )  # fmt: skip
    again = session.step(step_number=1, new_sequences=[new], items=[item])
    assert again.replayed and again.results == first.results
    for number in range(2, 6):
        appended = []
        if number == 5:
            tables = [{"group": 0, "block_ids": blocks[2:]}]
            appended = [{"sequence_id": 1, "append": tables}]
        request = execution_pb2.DecodeRequest(
            session=session.ref, step_number=number, sequence_ids=[1], appended=appended
        )
        reply = server.call("Decode", request).step
        got = reply.results[0].token_ids[0] if appended else reply.token_ids[0]
        assert got == server.engine.expected_token(tokens)
        tokens.append(got)


def test_a_repeat_is_replayed_and_runs_once(server: Any) -> None:
    session = server.open()
    session.start(1, PROMPT)
    first = session.step(decode_sequence_ids=[1])
    plans = server.engine.plans_run
    again = session.step(step_number=2, decode_sequence_ids=[1])
    assert again.replayed and not first.replayed
    assert again.token_ids == first.token_ids and again.timings == first.timings
    assert server.engine.plans_run == plans == 2


def test_logprobs_logits_and_the_draw(server: Any) -> None:
    session = server.open()
    blocks = session.allocate(4)
    sampling = {"temperature": 1.0, "top_k": 2, "seed": 3, "top_logprobs": 3}
    fields = session.prefill_fields(1, PROMPT, blocks, **sampling)
    fields["items"][0].return_logits = True
    (result,) = session.step(**fields).results
    greedy = server.engine.expected_token(PROMPT)
    assert [e.token_id for e in result.top_logprobs[0].entries] == [greedy, greedy + 1, greedy + 2]
    assert result.token_ids[0] in (greedy, greedy + 1)
    assert result.top_logprobs[0].sampled_rank == 1 + result.token_ids[0] - greedy
    assert result.logits.shape == [4096] and len(result.logits.data) == 4 * 4096
    reply = session.step(decode_sequence_ids=[1])
    assert len(reply.logprobs) == 1 and len(reply.results) == 1


def test_stream_answers_in_order_with_two_in_flight(launch: Callable[..., Any]) -> None:
    server = launch(FakeEngine(num_blocks=64, block_size=4, threaded=True, step_s=0.02))
    session = server.open()
    tokens = [*PROMPT, session.start(1, PROMPT)]
    stream = server.stream()
    stream.send(session.request(decode_sequence_ids=[1]))
    stream.send(session.request(decode_sequence_ids=[1]))
    stream.send(session.request(step_number=9, decode_sequence_ids=[1]))
    for number in (2, 3):
        reply = stream.receive().step
        assert reply.step_number == number
        assert reply.token_ids[0] == server.engine.expected_token(tokens)
        tokens.append(reply.token_ids[0])
    error = stream.receive().error
    assert error.reason == error_pb2.ERROR_REASON_STEP_GAP
    assert error.metadata["expected_step_number"] == "4"
    stream.send(session.request(decode_sequence_ids=[1]))
    assert stream.receive().step.token_ids[0] == server.engine.expected_token(tokens)
    stream.finish()
    assert list(stream.call) == [] and stream.call.code() is grpc.StatusCode.OK


def test_a_third_step_in_flight_is_refused_in_band(server: Any) -> None:
    session = server.open()
    session.start(1, PROMPT)
    stream = server.stream()
    # The first stays in flight until its masks come.
    requests = [
        session.request(decode_sequence_ids=[1], defer_sampling=first)
        for first in (True, False, False)
    ]
    for request in requests:
        stream.send(request)
    sampling = {"session": session.ref, "step_number": 2}
    stream.send(execution_pb2.ExecuteRequest(sampling=sampling))
    answers = [stream.receive() for _ in range(3)]
    assert [a.step.step_number for a in answers[:2]] == [2, 3]
    error = answers[2].error
    assert error.reason == error_pb2.ERROR_REASON_TOO_MANY_INFLIGHT_STEPS
    assert error.HasField("retry_delay")
    stream.send(requests[2])
    assert stream.receive().step.step_number == 4


def test_in_band_errors_name_fields_from_the_messages_root(server: Any) -> None:
    session = server.open()
    stream = server.stream()
    stream.send(session.request(decode_sequence_ids=[99]))
    error = stream.receive().error
    assert error.reason == error_pb2.ERROR_REASON_SEQUENCE_UNKNOWN
    assert error.field_violations[0].field == "step.decode_sequence_ids[0]"
    stream.send(b"\xff\xff")
    assert stream.receive().error.reason == error_pb2.ERROR_REASON_MALFORMED_REQUEST
    stream.send(execution_pb2.ExecuteRequest())
    error = stream.receive().error
    assert error.reason == error_pb2.ERROR_REASON_FIELD_INVALID
    assert error.field_violations[0].field == "message"
    stream.send(execution_pb2.ExecuteRequest(sampling={"step_number": 7}))
    refusal = stream.receive().sampling_refusal
    assert (refusal.step_number, refusal.error.field_violations[0].field) == (7, "sampling.session")


def test_a_newer_stream_replaces_the_older(launch: Callable[..., Any]) -> None:
    server = launch(FakeEngine(num_blocks=64, block_size=4, threaded=True))
    session = server.open()
    session.start(1, PROMPT)
    server.engine.hold()
    older, newer = server.stream(), server.stream()
    older.send(session.request(decode_sequence_ids=[1]))
    session.wait_for_inflight()
    newer.send(session.request(decode_sequence_ids=[1]))
    with pytest.raises(grpc.RpcError) as raised:
        older.receive()
    refusal = server.refusal_of(raised.value)
    assert refusal.reason is Reason.STREAM_REPLACED
    server.engine.release()
    assert newer.receive().step.step_number == 3
    # The older stream's step was accepted, so it committed.
    assert session.state().sequences[0].position == len(PROMPT) + 2
    assert session.step(step_number=2, decode_sequence_ids=[1]).replayed


def test_a_lost_stream_leaves_its_steps_to_commit(launch: Callable[..., Any]) -> None:
    server = launch(FakeEngine(num_blocks=64, block_size=4, threaded=True))
    session = server.open()
    session.start(1, PROMPT)
    server.engine.hold()
    stream = server.stream()
    for _ in range(2):
        stream.send(session.request(decode_sequence_ids=[1]))
    session.wait_for_inflight(2)
    stream.call.cancel()
    threading.Timer(0.1, server.engine.release).start()
    # A repeat waits for the run in flight.
    assert session.step(step_number=3, decode_sequence_ids=[1]).replayed
    assert session.state().sequences[0].position == len(PROMPT) + 2
    assert server.engine.plans_run == 3


def test_a_stream_carries_one_session(server: Any) -> None:
    one, two = server.open(), server.open()
    stream = server.stream()
    stream.send(one.request())
    assert stream.receive().step.step_number == 1
    before = server.digest()
    stream.send(two.request())
    error = stream.receive().error
    assert error.field_violations[0].field == "step.session.session_id"
    assert server.digest() == before


@pytest.mark.parametrize("how", ["cancel", "deadline"])
def test_a_call_cut_off_in_mid_step_leaves_the_step_to_commit(
    launch: Callable[..., Any], how: str
) -> None:
    server = launch(FakeEngine(num_blocks=64, block_size=4, threaded=True))
    session = server.open()
    tokens = [*PROMPT, session.start(1, PROMPT)]
    server.engine.hold()
    request = session.request(decode_sequence_ids=[1])
    run = server.channel.unary_unary("/mlxrt.v1.ExecutionService/Step")
    if how == "cancel":
        call = run.future(request.SerializeToString(), timeout=60)
        session.wait_for_inflight()
        call.cancel()
    while not session.state().inflight_step_numbers:  # a call may be over before it is there
        with pytest.raises(grpc.RpcError) as raised:
            run(request.SerializeToString(), timeout=0.1)
        assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    threading.Timer(0.1, server.engine.release).start()
    # The retry waits for the run in flight.
    reply = server.call("Step", request)
    assert reply.token_ids[0] == server.engine.expected_token(tokens)
    assert server.engine.plans_run == 2
    server.digest()


def test_a_failed_step_fails_the_one_behind_it(launch: Callable[..., Any]) -> None:
    engine = FakeEngine(num_blocks=64, block_size=4, threaded=True)
    server = launch(engine)
    session = server.open()
    session.start(1, PROMPT)
    engine.hold()
    tickets = server.on_loop(lambda: server.core.counters.steps_accepted)
    engine.faults.fail_tickets.update(range(tickets + 1))
    engine.faults.fail_tickets.add(tickets + 1)
    stream = server.stream()
    stream.send(session.request(decode_sequence_ids=[1]))
    stream.send(session.request(decode_sequence_ids=[1]))
    session.wait_for_inflight(2)
    engine.release()
    reasons = [stream.receive().step.error.reason for _ in range(2)]
    assert reasons == [
        error_pb2.ERROR_REASON_EXECUTION_FAILED, error_pb2.ERROR_REASON_PREDECESSOR_FAILED,
    ]  # fmt: skip
    engine.faults.fail_tickets.clear()
    stream.send(session.request(decode_sequence_ids=[1]))
    assert stream.receive().step.token_ids
    assert session.state().sequences[0].position == len(PROMPT) + 1


def test_a_sequence_with_nan_fails_alone(launch: Callable[..., Any]) -> None:
    engine = FakeEngine(num_blocks=64, block_size=4)
    engine.faults.nan_prompt_tokens.add(666)
    server = launch(engine)
    session = server.open()
    tokens = [*PROMPT, session.start(1, PROMPT)]
    blocks = session.allocate(4)
    reply = session.step(**session.prefill_fields(2, [3, 666], blocks))
    assert reply.results[0].error.reason == error_pb2.ERROR_REASON_NON_FINITE_LOGITS
    assert not reply.HasField("error") and not reply.results[0].token_ids
    reply = session.step(decode_sequence_ids=[2, 1])
    assert reply.token_ids[0] == 0xFFFFFFFF
    assert reply.results[0].error.reason == error_pb2.ERROR_REASON_NON_FINITE_LOGITS
    assert reply.token_ids[1] == server.engine.expected_token(tokens)
    state = session.state().sequences[1]
    assert state.sequence_id == 2 and state.position == 0
    assert state.failure.reason == error_pb2.ERROR_REASON_NON_FINITE_LOGITS
    session.step(release_sequence_ids=[2])


def test_a_client_that_sends_without_reading_is_held_back(server: Any) -> None:
    session = server.open()
    stream = server.stream()
    sent = 200
    for _ in range(sent):
        stream.send(session.request(step_number=50))
    other = server.open()
    assert other.start(1, PROMPT) == server.engine.expected_token(PROMPT)
    reasons = {stream.receive().error.reason for _ in range(sent)}
    assert reasons == {error_pb2.ERROR_REASON_STEP_GAP}


def test_sessions_of_several_threads_get_their_own_tokens(launch: Callable[..., Any]) -> None:
    server = launch(FakeEngine(num_blocks=256, block_size=4, threaded=True, step_s=0.001))
    wrong: list[int] = []

    def drive(seed: int) -> None:
        session = server.open()
        tokens = [seed, seed + 1]
        tokens.append(session.start(1, tokens, room=40))
        for _ in range(30):
            token = session.step(decode_sequence_ids=[1]).token_ids[0]
            if token != server.engine.expected_token(tokens):
                wrong.append(seed)
            tokens.append(token)
        server.call("CloseSession", session_pb2.CloseSessionRequest(session=session.ref))

    threads = [threading.Thread(target=drive, args=(10 * i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert server.on_loop(server.core.free_blocks_by_group) == (255,)
