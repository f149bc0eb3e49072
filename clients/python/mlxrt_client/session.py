"""A session for threads, and the thread that keeps its lease alive."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from mlxrt_client import messages
from mlxrt_client.errors import (
    FATAL,
    MlxrtError,
    SessionLostError,
    TransportError,
    error_from_message,
)
from mlxrt_client.retry import CLOSE_PATIENCE_S, RetryPolicy
from mlxrt_client.stream import ExecuteStream
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
    from mlxrt_client.client import Client


class Session:
    """What a scheduler holds at a server. Closing it, or leaving its `with` block, frees all of it.

    Steps go through `step`, `prefill` and `decode`, one at a time, or through a stream, several in
    flight; both number them. Any thread may call; the order of steps is the order of the calls.
    """

    def __init__(
        self, client: Client, ref: SessionRef, lease_ttl_ms: int, next_step_number: int = 1
    ) -> None:
        """Made by `Client.open_session` and `Client.resume_session`."""
        self.ref = ref
        self.lease_ttl_ms = lease_ttl_ms
        self._client = client
        self._step_lock = threading.Lock()
        self._window = StepWindow(ref, next_step_number)
        self._stream: ExecuteStream | None = None
        self._step_retry = dataclasses.replace(client.retry, attempt_timeout_s=None)
        self._renewal = LeaseRenewal(self)
        self._renewal.start()

    @property
    def lost(self) -> MlxrtError | None:
        """Why the session is lost, where the renewal of the lease has found out; else None."""
        return self._renewal.error

    @property
    def next_step_number(self) -> int:
        """Number of the next step."""
        return self._window.next_number

    def allocate_blocks(self, counts: Mapping[int, int]) -> dict[int, list[int]]:
        """Leases `counts` blocks by group, all or none, and returns their ids by group.

        Raises:
            OutOfBlocksError: the pool has too few.
        """
        request = messages.allocate_blocks(self.ref, counts)
        response = self._client.call(self._client.execution.AllocateBlocks, request)
        return messages.tables_of(response.blocks)

    def free_blocks(self, blocks: messages.Tables) -> dict[int, int]:
        """Gives blocks back and returns the pool's free blocks by group."""
        request = messages.free_blocks(self.ref, blocks)
        response = self._client.call(self._client.execution.FreeBlocks, request)
        return {entry.group: entry.count for entry in response.free_blocks}

    def free_sequences(
        self, sequence_ids: Sequence[int], *, and_blocks: bool = False
    ) -> dict[int, list[int]]:
        """Releases sequences and returns the blocks given back, by group.

        Args:
            sequence_ids: registered ones.
            and_blocks: also give back the blocks that only their tables named.
        """
        request = messages.free_sequences(self.ref, sequence_ids, and_blocks=and_blocks)
        response = self._client.call(self._client.execution.FreeSequences, request)
        return messages.tables_of(response.freed_blocks)

    def step(self, step: StepRequest, *, traceparent: str = "") -> StepResponse:
        """Runs one step; `session` and `step_number` of `step` are filled in.

        Args:
            traceparent: the step's trace, as W3C Trace Context has it.

        Raises:
            StepDiscardedError: it was accepted and did not commit.
            MlxrtError: it was refused, of the subclass that fits; nothing changed.
        """
        return self._run(self._client.execution.Step, step, traceparent)

    def prefill(
        self, chunks: Sequence[PrefillChunk], *, traceparent: str = ""
    ) -> StepResponse:
        """Runs prefill chunks as one step; otherwise as `step`."""
        request = PrefillRequest(chunks=chunks)
        return self._run(self._client.execution.Prefill, request, traceparent)

    def decode(
        self,
        sequence_ids: Sequence[int],
        appended: Mapping[int, messages.Tables] | None = None,
        *,
        traceparent: str = "",
    ) -> StepResponse:
        """Runs one token for each sequence as one step; otherwise as `step`.

        Args:
            sequence_ids: each sequence at most once.
            appended: blocks to append first, by sequence id.
        """
        request = messages.decode_request(sequence_ids, appended)
        return self._run(self._client.execution.Decode, request, traceparent)

    def _run(self, method: Any, request: Numbered, traceparent: str) -> StepResponse:
        with self._step_lock:
            if len(self._window):
                raise RuntimeError("a stream of this session has steps in flight")
            self._align()
            numbered = self._window.number(request)
            try:
                response = self._client.call(
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

    def sample(self, step_number: int, masks: Sequence[TokenMask]) -> StepResponse:
        """Gives a step that deferred its sampling its masks, and returns the step's response.

        For steps of `step`, which waits meanwhile: call it from another thread. A stream has a
        `sample` of its own.

        Raises:
            StepDiscardedError: the step did not commit.
            MlxrtError: the masks were refused, of the subclass that fits; the step waits on.
        """
        deferred = DeferredSampling(session=self.ref, step_number=step_number, masks=masks)
        request = SampleStepRequest(sampling=deferred)
        method = self._client.execution.SampleStep
        response = self._client.call(method, request, retry=self._step_retry)
        answer: StepResponse = response.step
        if answer.HasField("error"):
            raise error_from_message(answer.error, accepted=True)
        return answer

    def stream(self, inflight_steps: int = 0) -> ExecuteStream:
        """Opens the hot path.

        Args:
            inflight_steps: steps without an answer at which `submit` waits; 0 for the server's
                maximum.

        Raises:
            RuntimeError: the stream opened before is not closed; a session has one at a time.
        """
        if self._stream is not None and not self._stream.closed:
            raise RuntimeError("the session's stream is still open")
        self._align()
        depth = inflight_steps or self._client.server_info().limits.max_inflight_steps
        channel, retry = self._client.channel, self._client.retry
        self._stream = ExecuteStream(channel, self._window, depth, retry)
        return self._stream

    def _align(self) -> None:
        """Asks for the next step's number where steps were given up without an answer."""
        if self._window.uncertain:
            self._window.align((self.state()).next_step_number)

    def renew(self, retry: RetryPolicy | None = None) -> int:
        """Renews the lease, as the background does anyway; returns its length in milliseconds."""
        request = RenewSessionRequest(session=self.ref)
        method = self._client.sessions.RenewSession
        return int(self._client.call(method, request, retry=retry).lease_ttl_ms)

    def state(
        self, *, tables: bool = False, tokens: bool = False, sequence_ids: Iterable[int] = ()
    ) -> GetSessionResponse:
        """Returns what the session holds, with the sequences' tables and tokens if asked for.

        Args:
            sequence_ids: answer those of them that the session has; none: all sequences.
        """
        request = messages.get_session(self.ref, tables, tokens, sequence_ids)
        response: GetSessionResponse = self._client.call(self._client.sessions.GetSession, request)
        return response

    def abandon(self) -> None:
        """Stops the renewal and leaves the session to its lease, or to who takes it over."""
        self._renewal.stop()

    def close(self) -> None:
        """Closes the session; everything that it holds is free. Does nothing for a lost session.

        A server that can't be reached is not waited for long: the lease ends anyway.
        """
        self._renewal.stop()
        request = CloseSessionRequest(session=self.ref)
        patience_s = min(CLOSE_PATIENCE_S, self._client.retry.patience_s)
        retry = dataclasses.replace(self._client.retry, patience_s=patience_s)
        try:
            self._client.call(self._client.sessions.CloseSession, request, retry=retry)
        except SessionLostError:
            return

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
            return
        # The error under way is the one to report, not that of a server which is gone.
        try:
            self.close()
        except MlxrtError as second:
            error.add_note(f"the session could not be closed: {second}")


class LeaseRenewal(threading.Thread):
    """Renews a session's lease three times in each lease, until stopped or the session is lost."""

    def __init__(self, session: Session) -> None:
        """Prepares the thread; `start` starts it."""
        super().__init__(name="mlxrt-lease", daemon=True)
        self.error: MlxrtError | None = None
        self._session = session
        self._interval_s = session.lease_ttl_ms / 3000
        self._stopped = threading.Event()
        self._retry = RetryPolicy(patience_s=0, attempt_timeout_s=self._interval_s)

    def run(self) -> None:
        """Renews; no error but a fatal one ends it, the next attempt comes in its time."""
        while not self._stopped.wait(self._interval_s):
            try:
                self._session.renew(self._retry)
            except FATAL as error:
                self.error = error
                return
            except MlxrtError:
                continue
            except ValueError:  # gRPC's way to say that the channel is closed
                return

    def stop(self) -> None:
        """Ends the thread; returns at once."""
        self._stopped.set()
