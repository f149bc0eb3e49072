"""The client for threads: one channel, the facts about server and model, sessions."""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import Any, Self

import grpc

from mlxrt_client import messages
from mlxrt_client.channel import ChannelSettings, Token, open_channel
from mlxrt_client.errors import error_from_rpc
from mlxrt_client.retry import SETTLE_INTERVAL_S, Retry, RetryPolicy
from mlxrt_client.session import Session
from mlxrt_client.v1 import (
    ExecutionServiceStub,
    GetModelInfoRequest,
    GetModelInfoResponse,
    GetServerInfoRequest,
    GetServerInfoResponse,
    GetTokenizerRequest,
    ModelServiceStub,
    SessionRef,
    SessionServiceStub,
)


class Client:
    """A server, by its address. Any thread may call it.

    Every call is repeated while the server can't be reached, loads or drains, for as long as
    `retry` allows; then it raises what the last attempt ended with. A repeat never acts twice.
    """

    def __init__(
        self,
        address: str,
        *,
        settings: ChannelSettings = ChannelSettings(),
        credentials: grpc.ChannelCredentials | None = None,
        token: Token | None = None,
        retry: RetryPolicy = RetryPolicy(),
    ) -> None:
        """Prepares the channel; nothing is sent yet.

        Args:
            address: `unix:/path/of/socket` or `host:port`.
            settings: of the channel.
            credentials: for TLS; None for none.
            token: one that the server knows, or what answers it; None where it asks for none.
            retry: for every call and every stream.

        Raises:
            ValueError: the address has neither form, or a token would go over a network in plain
                text.
        """
        self.retry = retry
        self.channel = open_channel(address, settings, credentials, token)
        self.sessions = SessionServiceStub(self.channel)
        self.execution = ExecutionServiceStub(self.channel)
        self.models = ModelServiceStub(self.channel)
        self._closed = threading.Event()

    def server_info(self) -> GetServerInfoResponse:
        """Returns the server's facts and limits."""
        response: GetServerInfoResponse = self.call(
            self.models.GetServerInfo, GetServerInfoRequest()
        )
        return response

    def model_info(self) -> GetModelInfoResponse:
        """Returns the model's facts."""
        response: GetModelInfoResponse = self.call(self.models.GetModelInfo, GetModelInfoRequest())
        return response

    def tokenizer_files(self) -> dict[str, bytes]:
        """Returns the tokenizer's files by name, each checked against its digest."""
        assembly = messages.FileAssembly()
        try:
            for piece in self.models.GetTokenizer(GetTokenizerRequest()):
                assembly.add(piece)
        except grpc.RpcError as failure:
            raise error_from_rpc(failure) from failure
        return assembly.files()

    def open_session(self, *, lease_ttl_ms: int = 0, client_name: str = "") -> Session:
        """Opens a session and keeps its lease alive in the background until it is closed.

        Args:
            lease_ttl_ms: how long what the session holds outlives this process; 0 for the server's
                default.
            client_name: for the server's logs.
        """
        request = messages.open_session(lease_ttl_ms, client_name)
        response = self.call(self.sessions.OpenSession, request)
        return Session(self, response.session, response.lease_ttl_ms)

    def resume_session(self, ref: SessionRef) -> Session:
        """Takes a session over, from another process say; its old owner is refused from now on.

        Steps of the old owner's count as in flight until the one that runs has ended: returns then,
        or once `retry` has no more patience.

        Args:
            ref: the session with the epoch last known.
        """
        response = self.call(self.sessions.ResumeSession, messages.resume_session(ref))
        session = Session(self, response.session, response.lease_ttl_ms, response.next_step_number)
        until_s = time.monotonic() + self.retry.patience_s
        try:
            while time.monotonic() < until_s and session.state().inflight_step_numbers:
                self._closed.wait(SETTLE_INTERVAL_S)
        except BaseException:
            session.abandon()
            raise
        return session

    def call(
        self, method: Any, request: Any, *, retry: RetryPolicy | None = None, traceparent: str = ""
    ) -> Any:
        """Calls a unary method of a stub, with repeats, and returns its response.

        Args:
            retry: in place of the client's own.
            traceparent: the trace that it belongs to, as W3C Trace Context has it.

        Raises:
            MlxrtError: of the subclass that fits.
        """
        policy = retry or self.retry
        course = Retry(policy)
        metadata = [("traceparent", traceparent)] if traceparent else None
        while True:
            try:
                return method(
                    request, timeout=policy.attempt_timeout_s, metadata=metadata
                )
            except grpc.RpcError as failure:
                error = error_from_rpc(failure)
                delay_s = course.delay_s(error, time.monotonic())
                if delay_s is None or self._closed.wait(delay_s):
                    raise error from failure

    def close(self) -> None:
        """Closes the channel. Sessions that are open end with their leases."""
        self._closed.set()
        self.channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
