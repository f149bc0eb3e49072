"""The client for asyncio: the same as `mlxrt_client.client`, awaited."""

from __future__ import annotations

import asyncio
import time
from types import TracebackType
from typing import Any, Self

import grpc

from mlxrt_client import messages
from mlxrt_client.aio.session import Session
from mlxrt_client.channel import ChannelSettings, Token, open_aio_channel
from mlxrt_client.errors import error_from_rpc
from mlxrt_client.retry import SETTLE_INTERVAL_S, Retry, RetryPolicy
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
    """A server, by its address, for the event loop that runs when it is made.

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
        """Prepares the channel; nothing is sent yet. Arguments as in `mlxrt_client.Client`."""
        self.retry = retry
        self.channel = open_aio_channel(address, settings, credentials, token)
        self.sessions = SessionServiceStub(self.channel)
        self.execution = ExecutionServiceStub(self.channel)
        self.models = ModelServiceStub(self.channel)

    async def server_info(self) -> GetServerInfoResponse:
        """Returns the server's facts and limits."""
        response: GetServerInfoResponse = await self.call(
            self.models.GetServerInfo, GetServerInfoRequest()
        )
        return response

    async def model_info(self) -> GetModelInfoResponse:
        """Returns the model's facts."""
        response: GetModelInfoResponse = await self.call(
            self.models.GetModelInfo, GetModelInfoRequest()
        )
        return response

    async def tokenizer_files(self) -> dict[str, bytes]:
        """Returns the tokenizer's files by name, each checked against its digest."""
        assembly = messages.FileAssembly()
        try:
            async for piece in self.models.GetTokenizer(GetTokenizerRequest()):
                assembly.add(piece)
        except grpc.RpcError as failure:
            raise error_from_rpc(failure) from failure
        return assembly.files()

    async def open_session(self, *, lease_ttl_ms: int = 0, client_name: str = "") -> Session:
        """Opens a session and keeps its lease alive; arguments as in `mlxrt_client.Client`."""
        request = messages.open_session(lease_ttl_ms, client_name)
        response = await self.call(self.sessions.OpenSession, request)
        return Session(self, response.session, response.lease_ttl_ms)

    async def resume_session(self, ref: SessionRef) -> Session:
        """Takes a session over, as `mlxrt_client.Client.resume_session`."""
        request = messages.resume_session(ref)
        response = await self.call(self.sessions.ResumeSession, request)
        session = Session(self, response.session, response.lease_ttl_ms, response.next_step_number)
        until_s = time.monotonic() + self.retry.patience_s
        try:
            while time.monotonic() < until_s and (await session.state()).inflight_step_numbers:
                await asyncio.sleep(SETTLE_INTERVAL_S)
        except BaseException:
            await session.abandon()
            raise
        return session

    async def call(
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
                return await method(
                    request, timeout=policy.attempt_timeout_s, metadata=metadata
                )
            except grpc.RpcError as failure:
                error = error_from_rpc(failure)
                delay_s = course.delay_s(error, time.monotonic())
                if delay_s is None:
                    raise error from failure
            await asyncio.sleep(delay_s)

    async def close(self) -> None:
        """Closes the channel. Sessions that are open end with their leases."""
        await self.channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()
