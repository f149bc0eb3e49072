"""The clients' streams, retries and leases against a server that does as a test tells it.

The scripted server breaks streams, loses answers and refuses steps at exact points, and keeps the
bytes that it received; what a real server makes of repeats is in test_client_recovery.py.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from mlxrt_client import Client, RetryPolicy, aio
from mlxrt_client.errors import (
    FencedError,
    InvalidRequestError,
    SessionLostError,
    StepDiscardedError,
    StepNumberError,
    TransportError,
)
from mlxrt_client.v1 import (
    CloseSessionResponse,
    Error,
    ErrorReason,
    ExecuteRequest,
    ExecuteResponse,
    GetServerInfoResponse,
    Limits,
    OpenSessionResponse,
    RenewSessionResponse,
    SessionRef,
    StepRequest,
    StepResponse,
)
from mlxrt_client.v1.execution_service_pb2_grpc import (
    ExecutionServiceServicer,
    add_ExecutionServiceServicer_to_server,
)
from mlxrt_client.v1.model_service_pb2_grpc import (
    ModelServiceServicer,
    add_ModelServiceServicer_to_server,
)
from mlxrt_client.v1.session_service_pb2_grpc import (
    SessionServiceServicer,
    add_SessionServiceServicer_to_server,
)

ABORTED_STREAM = object()
"""What a script answers to end the stream with UNAVAILABLE instead of an answer."""

Script = Callable[[ExecuteRequest, int], Any]
"""Given a message and how many came before it over all streams: an ExecuteResponse, an Error for a
failed call, None for no answer, or ABORTED_STREAM."""


def committed(request: ExecuteRequest, count: int = 0) -> ExecuteResponse:
    """Answers a step as committed, with its number as the one token."""
    number = request.step.step_number
    return ExecuteResponse(step=StepResponse(step_number=number, token_ids=[number]))


def refused(reason: str, code: int, **metadata: str) -> ExecuteResponse:
    """Answers a step as refused."""
    return ExecuteResponse(error=error(reason, code, **metadata))


def error(reason: str, code: int, **metadata: str) -> Error:
    """An error of the given reason and status code."""
    value = ErrorReason.Value(f"ERROR_REASON_{reason}")
    return Error(code=code, reason=value, message="as the test wants it", metadata=metadata)


class StubServer(SessionServiceServicer, ExecutionServiceServicer, ModelServiceServicer):
    """The server; `address` is where it listens. A context manager."""

    def __init__(self, script: Script = committed, lease_ttl_ms: int = 30_000) -> None:
        self.script = script
        self.received: list[bytes] = []
        self.renewal_count = 0
        self.closed = threading.Event()
        self.renewal_error: Error | None = None
        self.failures_before_open = 0
        self.open_request_ids: list[str] = []
        self._lease_ttl_ms = lease_ttl_ms
        self._server = grpc.server(ThreadPoolExecutor(16))
        add_SessionServiceServicer_to_server(self, self._server)
        add_ExecutionServiceServicer_to_server(self, self._server)
        add_ModelServiceServicer_to_server(self, self._server)
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    def __enter__(self) -> StubServer:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(0).wait()

    def GetServerInfo(self, request: Any, context: Any) -> GetServerInfoResponse:
        return GetServerInfoResponse(limits=Limits(max_inflight_steps=2))

    def OpenSession(self, request: Any, context: Any) -> OpenSessionResponse:
        self.open_request_ids.append(request.request_id)
        if self.failures_before_open:
            self.failures_before_open -= 1
            fail(context, error("LOADING", 14))
        ref = SessionRef(session_id="0" * 32, epoch=1)
        return OpenSessionResponse(session=ref, lease_ttl_ms=self._lease_ttl_ms)

    def RenewSession(self, request: Any, context: Any) -> RenewSessionResponse:
        self.renewal_count += 1
        if self.renewal_error is not None:
            fail(context, self.renewal_error)
        return RenewSessionResponse(lease_ttl_ms=self._lease_ttl_ms)

    def CloseSession(self, request: Any, context: Any) -> CloseSessionResponse:
        self.closed.set()
        return CloseSessionResponse()

    def Execute(self, request_iterator: Any, context: Any) -> Iterator[ExecuteResponse]:
        for request in request_iterator:
            count = len(self.received)
            self.received.append(request.SerializeToString())
            answer = self.script(request, count)
            if answer is ABORTED_STREAM:
                context.abort(grpc.StatusCode.UNAVAILABLE, "the stream breaks")
            elif isinstance(answer, Error):
                fail(context, answer)
            elif answer is not None:
                yield answer

    def Step(self, request: Any, context: Any) -> StepResponse:
        answer = self.script(ExecuteRequest(step=request), len(self.received))
        self.received.append(request.SerializeToString())
        if answer is ABORTED_STREAM:
            context.abort(grpc.StatusCode.UNAVAILABLE, "the call breaks")
        if answer.HasField("error"):
            fail(context, answer.error)
        return answer.step


def fail(context: Any, message: Error) -> None:
    """Ends a call as the contract says: a status, and the error in the trailer."""
    context.set_trailing_metadata((("mlxrt-error-bin", message.SerializeToString()),))
    code = next(code for code in grpc.StatusCode if code.value[0] == message.code)
    context.abort(code, message.message)


QUICK = RetryPolicy(patience_s=60, initial_delay_s=0.01)
STEP = StepRequest(decode_sequence_ids=[1])


def run_steps(address: str, count: int, policy: RetryPolicy = QUICK) -> list[Any]:
    """Submits `count` steps over the stream for threads.

    Returns their responses or errors, then the number of connections.
    """
    with Client(address, retry=policy) as client, client.open_session() as session:
        with session.stream() as stream:
            futures = [stream.submit(STEP) for _ in range(count)]
            results: list[Any] = [future.exception() or future.result() for future in futures]
        return [*results, stream.connection_count]


def run_steps_aio(address: str, count: int, policy: RetryPolicy = QUICK) -> list[Any]:
    """As `run_steps`, over the stream for asyncio."""

    async def run() -> list[Any]:
        async with (
            aio.Client(address, retry=policy) as client,
            await client.open_session() as session,
        ):
            async with await session.stream() as stream:
                futures = [await stream.submit(STEP) for _ in range(count)]
                results = await asyncio.gather(*futures, return_exceptions=True)
            return [*results, stream.connection_count]

    return asyncio.run(run())


both = pytest.mark.parametrize("run", [run_steps, run_steps_aio])


@both
def test_steps_are_numbered_and_answered_in_order(run: Any) -> None:
    with StubServer() as server:
        *responses, connection_count = run(server.address, 6)
    assert [response.step_number for response in responses] == [1, 2, 3, 4, 5, 6]
    assert connection_count == 1
    assert server.closed.is_set()


@both
def test_two_steps_are_in_flight_before_the_first_answer(run: Any) -> None:
    # The first answer waits for the second step: a client that waits for it would never end.
    class Holding(StubServer):
        def Execute(self, request_iterator: Any, context: Any) -> Iterator[ExecuteResponse]:
            first = next(request_iterator)
            second = next(request_iterator)
            yield committed(first)
            yield committed(second)

    with Holding() as server:
        *responses, _ = run(server.address, 2)
    assert [response.step_number for response in responses] == [1, 2]


@both
def test_a_broken_stream_repeats_the_same_bytes(run: Any) -> None:
    def script(request: ExecuteRequest, count: int) -> Any:
        return ABORTED_STREAM if count in (2, 3) else committed(request)

    with StubServer(script) as server:
        *responses, connection_count = run(server.address, 4)
    assert [response.step_number for response in responses] == [1, 2, 3, 4]
    assert connection_count == 3
    sent = [ExecuteRequest.FromString(data).step.step_number for data in server.received]
    assert sent == [1, 2, 3, 3, 3, 4]
    assert server.received[2] == server.received[3] == server.received[4]


@both
def test_a_refusal_uses_no_number_and_dooms_the_step_behind(run: Any) -> None:
    def script(request: ExecuteRequest, count: int) -> ExecuteResponse:
        if count == 0:
            return refused("FIELD_INVALID", 3)
        if count == 1:
            return refused("STEP_GAP", 9, expected_step_number="1")
        return committed(request)

    with StubServer(script) as server:
        *results, connection_count = run(server.address, 3)
    assert isinstance(results[0], InvalidRequestError) and not results[0].accepted
    assert isinstance(results[1], StepNumberError)
    assert results[2].step_number in (1, 2)  # 2 where it was sent before the first refusal was read
    assert connection_count == 1


@both
def test_a_discarded_step_uses_its_number(run: Any) -> None:
    def script(request: ExecuteRequest, count: int) -> ExecuteResponse:
        if count == 0:
            lost = StepResponse(step_number=1, error=error("EXECUTION_FAILED", 13))
            return ExecuteResponse(step=lost)
        return committed(request)

    with StubServer(script) as server:
        *results, _ = run(server.address, 2)
    assert isinstance(results[0], StepDiscardedError) and results[0].accepted
    assert results[1].step_number == 2


@both
def test_patience_ends_and_the_transport_error_is_raised(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(monotonic=iter(range(100)).__next__)  # a second from look to look
    monkeypatch.setattr("mlxrt_client.stream.time", clock)
    monkeypatch.setattr("mlxrt_client.aio.stream.time", clock)
    with StubServer(lambda request, count: ABORTED_STREAM) as server:
        *results, connection_count = run(
            server.address, 1, RetryPolicy(patience_s=3, initial_delay_s=0.02)
        )
    assert isinstance(results[0], TransportError)
    assert connection_count == 4  # with the next wait the fourth failure is past the patience


@both
@pytest.mark.parametrize(
    ("reason", "code", "kind"),
    [("SESSION_UNKNOWN", 5, SessionLostError), ("STREAM_REPLACED", 10, FencedError)],
)
def test_a_fatal_error_ends_the_stream_at_once(run: Any, reason: str, code: int, kind: Any) -> None:
    with StubServer(lambda request, count: error(reason, code)) as server:
        result, connection_count = run(server.address, 1)
    assert isinstance(result, kind)
    assert result.reason == reason
    assert connection_count == 1


def test_open_is_repeated_while_loading_with_one_request_id() -> None:
    with StubServer() as server:
        server.failures_before_open = 2
        with Client(server.address, retry=QUICK) as client, client.open_session():
            pass
    assert len(server.open_request_ids) == 3
    assert len(set(server.open_request_ids)) == 1


def test_a_unary_step_is_repeated_with_the_same_bytes() -> None:
    def script(request: ExecuteRequest, count: int) -> Any:
        return ABORTED_STREAM if count == 0 else committed(request)

    with (
        StubServer(script) as server,
        Client(server.address, retry=QUICK) as client,
        client.open_session() as session,
    ):
        assert session.step(STEP).step_number == 1
        assert session.step(STEP).step_number == 2
    assert len(server.received) == 3
    assert server.received[0] == server.received[1]


def test_the_lease_is_renewed_in_the_background_and_its_loss_is_told(
    wait_until: Callable[..., None],
) -> None:
    with (
        StubServer(lease_ttl_ms=150) as server,
        Client(server.address, retry=QUICK) as client,
        client.open_session() as session,
    ):
        wait_until(lambda: server.renewal_count >= 3)
        assert session.lost is None
        server.renewal_error = error("SESSION_UNKNOWN", 5)
        wait_until(lambda: session.lost is not None)
        assert isinstance(session.lost, SessionLostError)


async def test_the_lease_is_renewed_in_the_background_with_asyncio(
    wait_until: Callable[..., None],
) -> None:
    with StubServer(lease_ttl_ms=150) as server:
        async with (
            aio.Client(server.address, retry=QUICK) as client,
            await client.open_session() as session,
        ):
            await asyncio.to_thread(wait_until, lambda: server.renewal_count >= 3)
            assert session.lost is None
            server.renewal_error = error("EPOCH_STALE", 10)
            await asyncio.to_thread(wait_until, lambda: session.lost is not None)
            assert isinstance(session.lost, FencedError)
