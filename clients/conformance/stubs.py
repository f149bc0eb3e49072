"""Plays a case over the generated messages and a bare channel: one call for each exchange."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable
from typing import Any, Protocol

import grpc
from google.protobuf import json_format
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from matching import Captures, Mismatch
from mlxrt_client.v1 import (
    Error,
    execution_service_pb2,
    model_service_pb2,
    session_service_pb2,
)

TRAILER = "mlxrt-error-bin"
CALL_TIMEOUT_S = 60.0
POLL_S = 0.02
_FILES = (session_service_pb2, execution_service_pb2, model_service_pb2)
METHODS: dict[str, MethodDescriptor] = {
    f"{service.name}.{method.name}": method
    for file in _FILES
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
"""Every rpc of the contract as `Service.Rpc`."""


class ServerControl(Protocol):
    """What a case may do to the server that it runs against."""

    def drain(self) -> None:
        """Sends SIGTERM."""

    def exit_code(self) -> int:
        """Waits for the end and returns the exit code."""


class Failed(Exception):
    """A call or a stream ended with an error.

    Attributes:
        status: gRPC's status code by number.
        error: the mlxrt.v1.Error that came with it as JSON; None where there was none.
    """

    def __init__(self, status: int, error: dict[str, Any] | None, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.error = error


def to_json(message: Message) -> dict[str, Any]:
    """Returns the message in proto JSON with the field names of the .proto files."""
    found: dict[str, Any] = json_format.MessageToDict(message, preserving_proto_field_name=True)
    return found


def failed(error: grpc.RpcError) -> Failed:
    """Returns what a failed call ended with."""
    status = error.code().value[0]
    for key, value in error.trailing_metadata() or ():
        if key == TRAILER:
            return Failed(status, to_json(Error.FromString(value)), f"{error.details()}")
    return Failed(status, None, f"{error.code().name}: {error.details()}")


def match_failure(captures: Captures, exchange: dict[str, Any], failure: Failed) -> None:
    """Compares a failure with the exchange's `error` or `status`; raises Mismatch."""
    if "status" in exchange and exchange["status"] == failure.status:
        return
    if "error" not in exchange:
        raise Mismatch(f"failed with status {failure.status}: {failure} {failure.error or ''}")
    if failure.error is None:
        raise Mismatch(f"failed with status {failure.status} and no Error: {failure}")
    if failure.error["code"] != failure.status:
        raise Mismatch(f"the status is {failure.status}, the Error says {failure.error['code']}")
    captures.match(exchange["error"], failure.error, "error")


def call_rpc(
    channel: grpc.Channel, rpc: str, request: dict[str, Any] | bytes
) -> dict[str, Any] | list[dict[str, Any]]:
    """Calls an rpc with one message and returns its answer, or a list of them where it streams.

    Raises:
        Failed: it ended with an error.
    """
    method = METHODS[rpc]
    path = f"/{method.containing_service.full_name}/{method.name}"
    decode = GetMessageClass(method.output_type).FromString
    data = request if isinstance(request, bytes) else encoded(method, request)
    try:
        if method.client_streaming:
            upload = channel.stream_unary(path, response_deserializer=decode)
            return to_json(upload(iter([data]), timeout=CALL_TIMEOUT_S))
        if method.server_streaming:
            download = channel.unary_stream(path, response_deserializer=decode)
            return [to_json(part) for part in download(data, timeout=CALL_TIMEOUT_S)]
        run = channel.unary_unary(path, response_deserializer=decode)
        return to_json(run(data, timeout=CALL_TIMEOUT_S))
    except grpc.RpcError as error:
        raise failed(error) from error


def encoded(method: MethodDescriptor, request: dict[str, Any]) -> bytes:
    """Returns the bytes of a request in proto JSON."""
    message = json_format.ParseDict(request, GetMessageClass(method.input_type)())
    data: bytes = message.SerializeToString()
    return data


class Stream:
    """One call of Execute that the case feeds."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._method = METHODS["ExecutionService.Execute"]
        self._requests: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        run = channel.stream_stream(
            "/mlxrt.v1.ExecutionService/Execute",
            response_deserializer=GetMessageClass(self._method.output_type).FromString,
        )
        self._call = run(iter(self._requests.get, None), timeout=CALL_TIMEOUT_S)

    def send(self, message: dict[str, Any]) -> None:
        """Sends a message."""
        self._requests.put(encoded(self._method, message))

    def receive(self) -> dict[str, Any] | None:
        """Returns the next answer; None where the stream has ended well.

        Raises:
            Failed: it ended with an error.
        """
        try:
            return to_json(next(self._call))
        except StopIteration:
            return None
        except grpc.RpcError as error:
            raise failed(error) from error

    def half_close(self) -> None:
        """Sends nothing more."""
        self._requests.put(None)

    def cancel(self) -> None:
        """Breaks the stream."""
        self._call.cancel()
        self._requests.put(None)


class StubPlayer:
    """Plays the exchanges of one case."""

    def __init__(
        self, channel: grpc.Channel, captures: Captures, control: ServerControl | None
    ) -> None:
        """`control`: None for a server that the runner did not start."""
        self._channel = channel
        self._captures = captures
        self._control = control
        self._streams: dict[str, Stream] = {}
        self._sessions: dict[str, int] = {}

    def play(self, exchange: dict[str, Any]) -> None:
        """Plays one exchange.

        Raises:
            Mismatch: it went otherwise than the case says.
        """
        if "call" in exchange:
            self._call(exchange)
        elif "stream" in exchange:
            self._stream(exchange)
        elif "wait_ms" in exchange:
            time.sleep(exchange["wait_ms"] / 1000)
        elif exchange.get("server") == "drain":
            assert self._control is not None
            self._control.drain()
        elif "exit_code" in exchange:
            assert self._control is not None
            self._captures.match(exchange["exit_code"], self._control.exit_code(), "exit_code")
        else:
            raise Mismatch(f"unknown kind of exchange: {sorted(exchange)}")

    def finish(self) -> None:
        """Breaks the streams and closes the sessions that the case left open."""
        for stream in self._streams.values():
            stream.cancel()
        for session_id, epoch in self._sessions.items():
            try:
                request = {"session": {"session_id": session_id, "epoch": epoch}}
                call_rpc(self._channel, "SessionService.CloseSession", request)
            except Failed:
                continue

    def _call(self, exchange: dict[str, Any]) -> None:
        deadline_s = time.monotonic() + exchange.get("within_ms", 0) / 1000
        while True:
            bound = dict(self._captures.bound)
            try:
                self._call_once(exchange)
                return
            except Mismatch:
                if time.monotonic() >= deadline_s:
                    raise
                self._captures.bound = bound
                time.sleep(POLL_S)

    def _call_once(self, exchange: dict[str, Any]) -> None:
        rpc = exchange["call"]
        request: Any = self._captures.fill(exchange.get("request", {}))
        if "bytes_hex" in exchange:
            request = bytes.fromhex(exchange["bytes_hex"])
        if "fill_bytes" in exchange:
            request = bytes(exchange["fill_bytes"])
        try:
            answer = call_rpc(self._channel, rpc, request)
        except Failed as failure:
            match_failure(self._captures, exchange, failure)
            return
        if isinstance(answer, dict) and rpc.endswith((".OpenSession", ".ResumeSession")):
            session = answer["session"]
            self._sessions[session["session_id"]] = int(session["epoch"])
        if "response" not in exchange:
            raise Mismatch(f"answered where it had to fail: {answer}")
        self._captures.match(exchange["response"], answer, "response")

    def _stream(self, exchange: dict[str, Any]) -> None:
        name = exchange["stream"]
        if name not in self._streams:
            self._streams[name] = Stream(self._channel)
        stream = self._streams[name]
        actions: dict[str, Callable[[], None]] = {
            "send": lambda: stream.send(self._captures.fill(exchange["send"])),
            "half_close": stream.half_close,
            "cancel": stream.cancel,
        }
        for key, action in actions.items():
            if key in exchange:
                action()
                return
        try:
            answer = stream.receive()
        except Failed as failure:
            if "end" not in exchange:
                raise Mismatch(f"the stream ended: {failure}") from failure
            match_failure(self._captures, exchange["end"], failure)
            return
        if answer is None:
            if exchange.get("end") != {"status": 0}:
                raise Mismatch("the stream ended with status 0")
        elif "receive" not in exchange:
            raise Mismatch(f"answered where it had to end: {answer}")
        else:
            self._captures.match(exchange["receive"], answer, "receive")
