"""A session that knows every answer beforehand and says so when one is wrong."""

from __future__ import annotations

import queue
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from random import Random
from typing import Any

import grpc
from mlxrt_client import messages
from mlxrt_client.channel import ChannelSettings, open_channel
from mlxrt_client.errors import TransportError, error_from_message, error_from_rpc
from mlxrt_client.v1 import (
    CloseSessionRequest,
    ExecuteRequest,
    ExecuteResponse,
    ExecutionServiceStub,
    GetSessionRequest,
    GetSessionResponse,
    SessionRef,
    SessionServiceStub,
    StepRequest,
    StepResponse,
)

from mlxrt.testing.oracle import Oracle

RETRIES_MAX = 8
"""Repeats of one step after which its failure is raised."""


class WrongAnswerError(AssertionError):
    """The server broke its promise; the message says which."""


def expect(held: bool, promise: str) -> None:
    """Raises WrongAnswerError unless the promise was kept."""
    if not held:
        raise WrongAnswerError(promise)


@dataclass(slots=True)
class Line:
    """One sequence at a time on the same blocks.

    Attributes:
        tokens: prompt and what was acknowledged after it.
        position: positions computed.
        registered: the server knows the sequence.
    """

    sequence_id: int
    blocks: list[int]
    prompt: tuple[int, ...]
    expected: list[int]
    tokens: list[int] = field(default_factory=list)
    position: int = 0
    registered: bool = False

    @property
    def ended(self) -> bool:
        """Whether all its tokens have come."""
        return len(self.tokens) == len(self.expected)


class CheckedSession:
    """Decodes a few sequences, one step at a time; each that ends is followed by a new one.

    Every token is compared with the oracle's. Not thread-safe.

    Args:
        lines: sequences at once.
        tokens_max: most tokens that each gets.
        over_stream: steps go over Execute, else over Step.

    Attributes:
        statuses: how often each status code ended a call, by name.
        tokens_checked: tokens compared.
        retries, replays: steps repeated; of those, the ones answered from the store.
        renewed_s: when the last call was sent that succeeded, so that the lease can't have ended
            before `renewed_s + ttl_ms / 1000`, by time.monotonic.
    """

    def __init__(
        self,
        address: str,
        oracle: Oracle,
        random: Random,
        *,
        block_size: int = 16,
        lines: int = 2,
        tokens_max: int = 24,
        ttl_ms: int = 10_000,
        over_stream: bool = False,
        timeout_s: float = 30.0,
        name: str = "checked",
    ) -> None:
        self.statuses: Counter[str] = Counter()
        self.tokens_checked = self.retries = self.replays = 0
        self.renewed_s = time.monotonic()
        self.ref = SessionRef()
        self.number = 1
        self.timeout_s = timeout_s
        self._address = address
        self._oracle, self._random = oracle, random
        self._lines_count, self._tokens_max = lines, tokens_max
        self._block_size = block_size
        self.ttl_ms, self._name = ttl_ms, name
        self._over_stream = over_stream
        self._lines: list[Line] = []
        self._to_release: list[int] = []
        self._next_id = 1
        self._stream: _Stream | None = None
        self._channel: grpc.Channel | None = None
        self.connect()

    # ---- transport ----

    def connect(self) -> None:
        """Drops the connection, if there is one, for a new one."""
        self.disconnect()
        self._channel = open_channel(self._address, ChannelSettings())
        self.sessions = SessionServiceStub(self._channel)
        self.execution = ExecutionServiceStub(self._channel)

    def disconnect(self) -> None:
        """Drops the connection; the session is left to its lease."""
        if self._stream is not None:
            self._stream.cancel()
            self._stream = None
        if self._channel is not None:
            self._channel.close()

    def call(self, method: Any, request: Any, timeout_s: float | None = None) -> Any:
        """A unary call; raises MlxrtError of the client library's subclasses."""
        sent_s = time.monotonic()
        try:
            answer = method(request, timeout=timeout_s or self.timeout_s)
        except grpc.RpcError as failure:
            self.count(failure)
            raise error_from_rpc(failure) from failure
        self.statuses["OK"] += 1
        self.renewed_s = sent_s
        return answer

    def send(self, step: StepRequest, timeout_s: float | None = None) -> StepResponse:
        """Sends a step once; raises what its call ended with, or what discarded it."""
        if self._over_stream:
            response = self._send_over_stream(step, timeout_s or self.timeout_s)
        else:
            response = self.call(self.execution.Step, step, timeout_s)
        if response.HasField("error"):
            raise error_from_message(response.error, accepted=True)
        return response

    def _send_over_stream(self, step: StepRequest, timeout_s: float) -> StepResponse:
        if self._stream is None:
            self._stream = _Stream(self.execution)
        sent_s = time.monotonic()
        try:
            answer = self._stream.exchange(step, timeout_s)
        except grpc.RpcError as failure:
            self.count(failure)
            self._stream = None
            raise error_from_rpc(failure) from failure
        except queue.Empty:
            self._stream.cancel()
            self._stream = None
            self.statuses["DEADLINE_EXCEEDED"] += 1
            raise TransportError("TRANSPORT", 4, "no answer in time") from None
        self.statuses["OK"] += 1
        if answer.WhichOneof("message") == "error":
            raise error_from_message(answer.error)
        self.renewed_s = sent_s
        response: StepResponse = answer.step
        return response

    def count(self, failure: grpc.RpcError) -> None:
        """Notes how a call ended."""
        self.statuses[failure.code().name] += 1

    # ---- the session ----

    def open(self) -> None:
        """Opens a session and leases its blocks."""
        if self._stream is not None:  # it carries the session before
            self._stream.cancel()
            self._stream = None
        request = messages.open_session(self.ttl_ms, self._name)
        self.ref = self.call(self.sessions.OpenSession, request).session
        self.number, self._to_release = 1, []
        each = -(-(64 + self._tokens_max) // self._block_size)
        answer = self.call(
            self.execution.AllocateBlocks,
            messages.allocate_blocks(self.ref, {0: each * self._lines_count}),
        )
        leased = messages.tables_of(answer.blocks)[0]
        self._lines = [
            self._new_line(leased[each * index : each * (index + 1)])
            for index in range(self._lines_count)
        ]

    def close(self) -> None:
        """Closes the session, then the connection."""
        self.call_close()
        self.disconnect()

    def call_close(self) -> None:
        """Closes the session."""
        self.call(self.sessions.CloseSession, CloseSessionRequest(session=self.ref))

    def take_over(self) -> None:
        """As another process would: the epoch rises, what was in flight is discarded."""
        answer = self.call(self.sessions.ResumeSession, messages.resume_session(self.ref))
        expect(answer.session.epoch == self.ref.epoch + 1, "a take-over raises the epoch by one")
        self.ref = answer.session
        self.resync()

    def state(self) -> GetSessionResponse:
        """GetSession with everything."""
        request = GetSessionRequest(session=self.ref, include_tables=True, include_tokens=True)
        answer: GetSessionResponse = self.call(self.sessions.GetSession, request)
        return answer

    # ---- steps ----

    def advance(self) -> None:
        """One step, repeated with the same number and content until it is answered.

        Raises:
            MlxrtError: it was refused, or the session is lost.
            WrongAnswerError: an answer is wrong.
        """
        step = self.plan()
        for attempt in range(RETRIES_MAX + 1):
            try:
                response = self.send(step)
                break
            except TransportError:
                if attempt == RETRIES_MAX:
                    raise
                self.retries += 1
                self.connect()
        self.settle(step, response)

    def plan(self) -> StepRequest:
        """The next step: decodes, and prefills of what is new. Answers the same until `settle`."""
        step = StepRequest(session=self.ref, step_number=self.number)
        for index, line in enumerate(self._lines):
            if line.ended:
                self._to_release.append(line.sequence_id)
                line = self._lines[index] = self._new_line(line.blocks)
            if not line.registered:
                step.new_sequences.append(
                    messages.new_sequence(line.sequence_id, line.prompt, {0: line.blocks})
                )
            rows = len(line.tokens) - line.position
            if line.registered and rows == 1 and len(line.tokens) > len(line.prompt):
                step.decode_sequence_ids.append(line.sequence_id)
            else:
                step.items.append(messages.chunk_item(line.sequence_id, rows, sample=True))
        step.release_sequence_ids.extend(self._to_release)
        return step

    def settle(self, step: StepRequest, response: StepResponse) -> None:
        """Compares a committed step's answer with the oracle's and goes on from it."""
        expect(response.step_number == step.step_number, "an answer names its step")
        by_id = {line.sequence_id: line for line in self._lines}
        expect(
            len(response.token_ids) == len(step.decode_sequence_ids)
            and len(response.results) == len(step.items),
            "answers are parallel to what was asked",
        )
        for sequence_id, token in zip(step.decode_sequence_ids, response.token_ids, strict=True):
            self._take(by_id[sequence_id], [token], 1)
        for item, result in zip(step.items, response.results, strict=True):
            expect(not result.HasField("error"), f"no sequence fails: {result.error.message}")
            self._take(by_id[item.sequence_id], list(result.token_ids), item.row_count)
        self._to_release.clear()
        self.replays += response.replayed
        self.number += 1

    def resync(self) -> None:
        """Takes the server's word for where everything stands, and checks it."""
        state = self.state()
        held = {sequence.sequence_id: sequence for sequence in state.sequences}
        self._to_release = [each for each in self._to_release if each in held]
        for line in self._lines:
            there = held.get(line.sequence_id)
            expect(there is not None or not line.registered, "what was acknowledged is there")
            if there is None:
                continue
            tokens = list(there.token_ids)
            expect(len(tokens) >= len(line.tokens), "what was acknowledged stays")
            expect(tokens == line.expected[: len(tokens)], "the server's tokens are the oracle's")
            line.registered, line.tokens, line.position = True, tokens, there.position
        self.number = state.next_step_number

    def _take(self, line: Line, tokens: list[int], rows: int) -> None:
        known = len(line.tokens)
        line.registered = True
        line.position += rows
        line.tokens += tokens
        expect(len(tokens) == 1, "a row that samples answers one token")
        expect(
            line.tokens == line.expected[: known + 1],
            f"token {known} after {line.prompt} is {line.expected[known]}, not {tokens[0]}",
        )
        self.tokens_checked += 1

    def _new_line(self, blocks: list[int]) -> Line:
        prompt = self._oracle.prompt(self._random)
        count = self._random.randint(2, self._tokens_max)
        expected = [*prompt, *self._oracle.after(prompt, count)]
        self._next_id += 1
        return Line(self._next_id - 1, blocks, prompt, expected, list(prompt))


class _Stream:
    """One Execute call, one message at a time; a thread of its own reads."""

    def __init__(self, stub: ExecutionServiceStub) -> None:
        self._outbox: queue.SimpleQueue[ExecuteRequest | None] = queue.SimpleQueue()
        self._inbox: queue.SimpleQueue[ExecuteResponse | grpc.RpcError] = queue.SimpleQueue()
        self._call = stub.Execute(iter(self._outbox.get, None))
        self._reader = threading.Thread(target=self._read, name="checked-stream", daemon=True)
        self._reader.start()

    def exchange(self, step: StepRequest, timeout_s: float) -> ExecuteResponse:
        """Sends a step and returns its answer; raises grpc.RpcError, or queue.Empty when time is
        up."""
        self._outbox.put(ExecuteRequest(step=step))
        answer = self._inbox.get(timeout=timeout_s)
        if isinstance(answer, grpc.RpcError):
            raise answer
        return answer

    def cancel(self) -> None:
        """Ends the call and the thread."""
        self._call.cancel()
        self._outbox.put(None)
        self._reader.join()

    def _read(self) -> None:
        try:
            for answer in self._call:
                self._inbox.put(answer)
            self._inbox.put(EndedError())
        except grpc.RpcError as failure:
            self._inbox.put(failure)
        self._outbox.put(None)


class EndedError(grpc.RpcError):  # type: ignore[misc]  # grpc has no types
    """A stream that ended with OK while an answer was due."""

    def code(self) -> grpc.StatusCode:
        """Nobody is there any more, for the caller."""
        return grpc.StatusCode.UNAVAILABLE

    def details(self) -> str:
        """For people."""
        return "the server ended the stream"

    def trailing_metadata(self) -> tuple[()]:
        """None."""
        return ()
