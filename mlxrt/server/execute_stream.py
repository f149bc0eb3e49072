"""Execute: one reader and one writer per stream, decoupled; answers in the order of the steps,
refusals in-band."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

import grpc
from mlxrt_client.v1 import execution_pb2

from mlxrt.errors import MlxrtError, Reason
from mlxrt.server.errors import bare, defect, encode_error
from mlxrt.server.handler import Context, abort, serialize
from mlxrt.server.pipeline import Pending, SamplingRefusedError, StepPipeline
from mlxrt.telemetry.tallies import Tallies

_UNANSWERED_MIN = 16


class StreamRegistry:
    """Which stream each session uses."""

    def __init__(self) -> None:
        self._by_session: dict[str, ExecuteStream] = {}
        self._open: set[ExecuteStream] = set()

    def opened(self, stream: ExecuteStream) -> None:
        """Notes a stream that no session uses yet."""
        self._open.add(stream)

    def claim(self, session_id: str, stream: ExecuteStream) -> None:
        """Makes `stream` the session's; an older one of it is closed with STREAM_REPLACED."""
        older = self._by_session.get(session_id)
        self._by_session[session_id] = stream
        if older is not None and older is not stream:
            older.close(
                MlxrtError(Reason.STREAM_REPLACED, "a newer stream of the session took over"),
                answer_first=False,
            )

    def closed(self, stream: ExecuteStream) -> None:
        """Forgets a stream that has ended."""
        self._open.discard(stream)
        session_id = stream.session_id
        if session_id is not None and self._by_session.get(session_id) is stream:
            del self._by_session[session_id]

    def close_all(self, error: MlxrtError) -> None:
        """Ends every stream with `error`, after the answers that are due."""
        for stream in tuple(self._open):
            stream.close(error, answer_first=True)


class ExecuteStream:
    """One call of Execute.

    The reader stops while `max(16, 4 * max_inflight_steps)` messages are unanswered, so that a
    client that sends without reading fills its own buffers and not ours.

    Attributes:
        session_id: whose steps it carries; None until the first one is accepted.
    """

    def __init__(
        self, pipeline: StepPipeline, registry: StreamRegistry, tallies: Tallies, context: Context
    ) -> None:
        self.session_id: str | None = None
        self._pipeline = pipeline
        self._registry = registry
        self._tallies = tallies
        self._context = context
        self._answers: deque[Pending | bytes] = deque()
        # Refusals of masks: the answers before them may wait for just those masks.
        self._urgent: deque[bytes] = deque()
        self._unanswered_max = max(_UNANSWERED_MIN, 4 * pipeline.limits.max_inflight_steps)
        self._ended = False
        self._closing: MlxrtError | None = None
        self._answer_first = True
        self._writer_signal: asyncio.Future[None] | None = None
        self._reader_signal: asyncio.Future[None] | None = None

    async def run(self) -> None:
        """Serves the stream to its end."""
        self._registry.opened(self)
        reader = asyncio.create_task(self._read())
        try:
            closing = await self._write()
        finally:
            self._registry.closed(self)
            reader.cancel()
        if closing is not None:
            await abort(self._context, closing)

    def close(self, error: MlxrtError, *, answer_first: bool) -> None:
        """Ends the stream with `error`, with `answer_first` once what was accepted is answered."""
        if self._closing is None:
            self._closing = error
            self._answer_first = answer_first
        self._wake()

    async def _read(self) -> None:
        try:
            while True:
                data = await self._context.read()
                if data is grpc.aio.EOF:
                    break
                self._take(data)
                while len(self._answers) + len(self._urgent) >= self._unanswered_max:
                    self._reader_signal = asyncio.get_running_loop().create_future()
                    await self._reader_signal
        except asyncio.CancelledError:
            raise
        except Exception as error:
            self.close(defect("Execute", error), answer_first=True)
        self._ended = True
        self._wake()

    def _take(self, data: bytes) -> None:
        if self._closing is not None:
            return
        answer: Pending | bytes | None
        try:
            answer = self._pipeline.begin_execute(data, self._check_session, self._claim)
        except SamplingRefusedError as refused:
            self._tallies.reject(refused.error.reason)
            self._urgent.append(sampling_refusal(refused))
            self._wake()
            return
        except MlxrtError as error:
            answer = self._refuse(error)
        except Exception as error:
            answer = self._refuse(defect("Execute", error))
            self._pipeline.examine()
        if answer is None:
            return
        self._answers.append(answer)
        if isinstance(answer, bytes):
            self._wake()
        else:
            answer.waiter.when_done(self._wake)

    def _refuse(self, error: MlxrtError) -> bytes:
        self._tallies.reject(error.reason)
        return serialize(execution_pb2.ExecuteResponse(error=encode_error(error)))

    def _check_session(self, session_id: str) -> bool:
        return self.session_id in (None, session_id)

    def _claim(self, session_id: str) -> None:
        if self.session_id is None:
            self.session_id = session_id
            self._registry.claim(session_id, self)

    async def _write(self) -> MlxrtError | None:
        """Writes answers until the stream ends; answers the error that it shall end with."""
        loop = asyncio.get_running_loop()
        while True:
            while True:
                try:
                    head = self._next_answer()
                except Exception as error:
                    return defect("Execute", error)
                if head is None:
                    break
                if self._reader_signal is not None and not self._reader_signal.done():
                    self._reader_signal.set_result(None)
                await self._context.write(head)
            unanswered = self._answers or self._urgent
            if self._cut_short or (not unanswered and (self._ended or self._closing)):
                return self._closing
            self._writer_signal = loop.create_future()
            await self._writer_signal

    def _next_answer(self) -> bytes | None:
        """Takes what is to be written now; None where that has to wait."""
        if self._cut_short:
            return None
        if self._urgent:
            return self._urgent.popleft()
        if not self._answers:
            return None
        head = self._answers[0]
        if isinstance(head, Pending):
            if head.waiter.reply is None:
                return None
            head = head.finish()
        self._answers.popleft()
        return head

    @property
    def _cut_short(self) -> bool:
        return self._closing is not None and not self._answer_first

    def _wake(self) -> None:
        signal = self._writer_signal
        if signal is not None and not signal.done():
            signal.set_result(None)


def sampling_refusal(refused: SamplingRefusedError) -> bytes:
    """The answer to masks that were refused."""
    refusal = execution_pb2.SamplingRefusal(
        step_number=refused.step_number, error=encode_error(refused.error)
    )
    return serialize(execution_pb2.ExecuteResponse(sampling_refusal=refusal))


def execute_handler(
    pipeline: Callable[[], StepPipeline], registry: StreamRegistry, tallies: Tallies
) -> grpc.RpcMethodHandler:
    """The rpc's handler.

    Args:
        pipeline: answers the StepPipeline, or raises MlxrtError while there is none.
    """

    async def behave(_requests: object, context: Context) -> None:
        try:
            ready = pipeline()
        except MlxrtError as error:
            refusal = bare(error)
        else:
            await ExecuteStream(ready, registry, tallies, context).run()
            return
        await abort(context, refusal)

    return grpc.stream_stream_rpc_method_handler(behave)
