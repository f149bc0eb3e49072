"""A session for asyncio, and the task that keeps its lease alive."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from mlxrt_client import messages
from mlxrt_client.aio.stream import ExecuteStream
from mlxrt_client.errors import (
    FATAL,
    MlxrtError,
    SessionLostError,
    TransportError,
    error_from_message,
)
from mlxrt_client.retry import CLOSE_PATIENCE_S, RetryPolicy
from mlxrt_client.v1 import (
    CloseSessionRequest,
    DeferredSampling,
    GetSessionResponse,
    PrefillChunk,
    PrefillRequest,
    RenewSessionRequest,
    SampleStepRequest,
    SessionRef,
    StepRequest,
    StepResponse,
    TokenMask,
)
from mlxrt_client.window import Numbered, StepWindow, expected_number

if TYPE_CHECKING:
    from mlxrt_client.aio.client import Client


class Session:
    """What a scheduler holds at a server. Closing it, or leaving its `async with`, frees all of it.

    Steps go through `step`, `prefill` and `decode`, one at a time, or through a stream, several in
    flight; both number them.
    """

    def __init__(
        self, client: Client, ref: SessionRef, lease_ttl_ms: int, next_step_number: int = 1
    ) -> None:
        """Made by `Client.open_session` and `Client.resume_session`, inside the event loop."""
        self.ref = ref
        self.lease_ttl_ms = lease_ttl_ms
        self.lost: MlxrtError | None = None
        """Why the session is lost, where the renewal of the lease has found out."""
        self._client = client
        self._step_lock = asyncio.Lock()
        self._window = StepWindow(ref, next_step_number)
        self._stream: ExecuteStream | None = None
        self._step_retry = dataclasses.replace(client.retry, attempt_timeout_s=None)
        self._renewal = asyncio.create_task(self._keep_alive(), name="mlxrt-lease")

    @property
    def next_step_number(self) -> int:
        """Number of the next step."""
        return self._window.next_number

    async def allocate_blocks(self, counts: Mapping[int, int]) -> dict[int, list[int]]:
        """Leases `counts` blocks by group, all or none, and returns their ids by group.

        Raises:
            OutOfBlocksError: the pool has too few.
        """
        request = messages.allocate_blocks(self.ref, counts)
        response = await self._client.call(self._client.execution.AllocateBlocks, request)
        return messages.tables_of(response.blocks)

    async def free_blocks(self, blocks: messages.Tables) -> dict[int, int]:
        """Gives blocks back and returns the pool's free blocks by group."""
        request = messages.free_blocks(self.ref, blocks)
        response = await self._client.call(self._client.execution.FreeBlocks, request)
        return {entry.group: entry.count for entry in response.free_blocks}

    async def free_sequences(
        self, sequence_ids: Sequence[int], *, and_blocks: bool = False
    ) -> dict[int, list[int]]:
        """Releases sequences, and their blocks if asked to; returns the blocks given back."""
        request = messages.free_sequences(self.ref, sequence_ids, and_blocks=and_blocks)
        response = await self._client.call(self._client.execution.FreeSequences, request)
        return messages.tables_of(response.freed_blocks)

    async def step(self, step: StepRequest, *, traceparent: str = "") -> StepResponse:
        """Runs one step; `session` and `step_number` of `step` are filled in.

        Args:
            traceparent: the step's trace, as W3C Trace Context has it.

        Raises:
            StepDiscardedError: it was accepted and did not commit.
            MlxrtError: it was refused, of the subclass that fits; nothing changed.
        """
        return await self._run(self._client.execution.Step, step, traceparent)

    async def prefill(
        self, chunks: Sequence[PrefillChunk], *, traceparent: str = ""
    ) -> StepResponse:
        """Runs prefill chunks as one step; otherwise as `step`."""
        request = PrefillRequest(chunks=chunks)
        return await self._run(self._client.execution.Prefill, request, traceparent)

    async def decode(
        self,
        sequence_ids: Sequence[int],
        appended: Mapping[int, messages.Tables] | None = None,
        *,
        traceparent: str = "",
    ) -> StepResponse:
        """Runs one token for each sequence, with blocks to append first by sequence id."""
        request = messages.decode_request(sequence_ids, appended)
        return await self._run(self._client.execution.Decode, request, traceparent)

    async def _run(self, method: Any, request: Numbered, traceparent: str) -> StepResponse:
        async with self._step_lock:
            if len(self._window):
                raise RuntimeError("a stream of this session has steps in flight")
            await self._align()
            numbered = self._window.number(request)
            try:
                response = await self._client.call(
                    method, numbered, retry=self._step_retry, traceparent=traceparent
                )
            except MlxrtError as error:
                self._window.next_number = expected_number(error, numbered.step_number)
                self._window.uncertain = isinstance(error, TransportError)
                raise
            self._window.next_number = numbered.step_number + 1
        answer: StepResponse = response if isinstance(response, StepResponse) else response.step
        if answer.HasField("error"):
            raise error_from_message(answer.error, accepted=True)
        return answer

    async def sample(self, step_number: int, masks: Sequence[TokenMask]) -> StepResponse:
        """Gives a step that deferred its sampling its masks, and returns the step's response.

        For steps of `step`, which waits meanwhile: call it from another task. A stream has a
        `sample` of its own.

        Raises:
            StepDiscardedError: the step did not commit.
            MlxrtError: the masks were refused, of the subclass that fits; the step waits on.
        """
        deferred = DeferredSampling(session=self.ref, step_number=step_number, masks=masks)
        request = SampleStepRequest(sampling=deferred)
        method = self._client.execution.SampleStep
        response = await self._client.call(method, request, retry=self._step_retry)
        answer: StepResponse = response.step
        if answer.HasField("error"):
            raise error_from_message(answer.error, accepted=True)
        return answer

    async def stream(self, inflight_steps: int = 0) -> ExecuteStream:
        """Opens the hot path.

        Args:
            inflight_steps: steps without an answer at which `submit` waits; 0 for the server's
                maximum.

        Raises:
            RuntimeError: the stream opened before is not closed; a session has one at a time.
        """
        if self._stream is not None and not self._stream.closed:
            raise RuntimeError("the session's stream is still open")
        await self._align()
        depth = inflight_steps
        if depth == 0:
            depth = (await self._client.server_info()).limits.max_inflight_steps
        channel, retry = self._client.channel, self._client.retry
        self._stream = ExecuteStream(channel, self._window, depth, retry)
        return self._stream

    async def _align(self) -> None:
        """Asks for the next step's number where steps were given up without an answer."""
        if self._window.uncertain:
            self._window.align((await self.state()).next_step_number)

    async def renew(self, retry: RetryPolicy | None = None) -> int:
        """Renews the lease, as the background does anyway; returns its length in milliseconds."""
        request = RenewSessionRequest(session=self.ref)
        method = self._client.sessions.RenewSession
        return int((await self._client.call(method, request, retry=retry)).lease_ttl_ms)

    async def state(
        self, *, tables: bool = False, tokens: bool = False, sequence_ids: Iterable[int] = ()
    ) -> GetSessionResponse:
        """Returns what the session holds, with the sequences' tables and tokens if asked for.

        Args:
            sequence_ids: answer those of them that the session has; none: all sequences.
        """
        request = messages.get_session(self.ref, tables, tokens, sequence_ids)
        method = self._client.sessions.GetSession
        response: GetSessionResponse = await self._client.call(method, request)
        return response

    async def abandon(self) -> None:
        """Stops the renewal and leaves the session to its lease, or to who takes it over."""
        self._renewal.cancel()
        await asyncio.wait([self._renewal])

    async def close(self) -> None:
        """Closes the session; everything that it holds is free. Does nothing for a lost session.

        A server that can't be reached is not waited for long: the lease ends anyway.
        """
        await self.abandon()
        request = CloseSessionRequest(session=self.ref)
        patience_s = min(CLOSE_PATIENCE_S, self._client.retry.patience_s)
        retry = dataclasses.replace(self._client.retry, patience_s=patience_s)
        try:
            await self._client.call(self._client.sessions.CloseSession, request, retry=retry)
        except SessionLostError:
            return

    async def _keep_alive(self) -> None:
        """Renews three times in each lease. No error but a fatal one ends it."""
        interval_s = self.lease_ttl_ms / 3000
        policy = RetryPolicy(patience_s=0, attempt_timeout_s=interval_s)
        while True:
            await asyncio.sleep(interval_s)
            try:
                await self.renew(policy)
            except FATAL as error:
                self.lost = error
                return
            except MlxrtError:
                continue

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            await self.close()
            return
        # The error under way is the one to report, not that of a server which is gone.
        try:
            await self.close()
        except MlxrtError as second:
            error.add_note(f"the session could not be closed: {second}")
