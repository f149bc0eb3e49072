"""The hot path for asyncio: steps in flight over one stream that mends itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import Any, Self

import grpc

from mlxrt_client.errors import FATAL, MlxrtError, TransportError, error_from_rpc
from mlxrt_client.retry import Retry, RetryPolicy
from mlxrt_client.v1 import ExecuteResponse, StepRequest, StepResponse, TokenMask
from mlxrt_client.window import EXECUTE, StepWindow

Outbox = asyncio.Queue[bytes | None]
"""Messages to send; None ends the stream."""


class ExecuteStream:
    """Sends steps ahead of their answers. Leaving its `async with` waits for what is in flight.

    A task of its own reads the answers. When the stream breaks, it connects again and repeats every
    step without an answer, with the same number and the same bytes; the server answers those that
    it ran before from its store and runs none twice.
    """

    def __init__(
        self, channel: grpc.aio.Channel, window: StepWindow, depth: int, policy: RetryPolicy
    ) -> None:
        """Made by `Session.stream`, inside the event loop."""
        self.connection_count = 0
        self._method = channel.stream_stream(
            EXECUTE, request_serializer=None, response_deserializer=ExecuteResponse.FromString
        )
        self._window = window
        self._depth = depth
        self._retry = Retry(policy)
        self._changed = asyncio.Event()
        self._outbox: Outbox | None = None
        self._closing = False
        self._error: BaseException | None = None
        self._reader = asyncio.create_task(self._run(), name="mlxrt-execute")

    async def submit(
        self, step: StepRequest, *, traceparent: str = ""
    ) -> asyncio.Future[StepResponse]:
        """Sends a step, after waiting for an answer where too many are in flight.

        The future ends with the response; with a `StepDiscardedError` where the accepted step did
        not commit; with another `MlxrtError` where it was refused. Cancelling it does not stop the
        step.

        Args:
            traceparent: the step's own trace, as W3C Trace Context has it.

        Raises:
            MlxrtError: the session is lost, or the stream was given up; another may be opened.
            RuntimeError: the stream is closed.
        """
        while not self.closed and len(self._window) >= self._depth:
            await self._change()
        if self._error is not None:
            raise self._error
        if self._closing:
            raise RuntimeError("the stream is closed")
        future: asyncio.Future[StepResponse] = asyncio.get_running_loop().create_future()
        sent = self._window.add(step, future, traceparent)
        if self._outbox is not None:
            self._outbox.put_nowait(sent.data)
        else:
            self._changed.set()
        return future

    def sample(
        self, step: asyncio.Future[StepResponse], masks: Sequence[TokenMask]
    ) -> asyncio.Future[None]:
        """Sends the masks of a step that was submitted with `defer_sampling`; it then samples.

        The future ends when the step's own does, with the same error if it has one. Where the
        server refuses the masks it ends with the refusal at once: the step waits on, for others.

        Args:
            step: what `submit` returned.
            masks: for the sequences that are constrained; may be empty.

        Raises:
            ValueError: the step is answered or not this stream's, or has masks.
        """
        sampled: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        # Whoever does not look hears of a failure from the step.
        sampled.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        data = self._window.sample(step, masks, sampled)
        # Without a connection the next one sends it, behind its step.
        if self._outbox is not None:
            self._outbox.put_nowait(data)
        return sampled

    @property
    def closed(self) -> bool:
        """Whether it takes no more steps: closed, cancelled or lost."""
        return self._closing or self._error is not None

    async def close(self) -> None:
        """Waits for the answers of what is in flight, then ends the stream."""
        self._closing = True
        if self._outbox is not None:
            self._outbox.put_nowait(None)
        self._changed.set()
        await self._reader

    async def cancel(self) -> None:
        """Ends the stream at once. Steps in flight run all the same; their futures fail."""
        self._closing = True
        self._stop(TransportError("TRANSPORT", 1, "the stream was cancelled"))
        self._reader.cancel()
        await asyncio.wait([self._reader])

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
        else:
            await self.cancel()

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    def _stop(self, error: BaseException) -> None:
        """Ends every future with `error`, and every later `submit`."""
        self._error = error
        failure = (
            error if isinstance(error, MlxrtError) else TransportError("TRANSPORT", 13, str(error))
        )
        self._window.fail(failure)
        self._changed.set()

    async def _run(self) -> None:
        while (outbox := await self._next_outbox()) is not None:
            error = await self._serve(outbox)
            self._outbox = None
            if self._error is not None:
                return
            if isinstance(error, MlxrtError) and not isinstance(error, FATAL):
                await self._wait_after(error)
            else:
                self._stop(error)
                return

    async def _next_outbox(self) -> Outbox | None:
        """Waits for something to send and returns it, queued; None when the stream is to end."""
        while self._error is not None or not (repeats := self._window.to_repeat()):
            if self.closed:
                return None
            await self._change()
        outbox: Outbox = asyncio.Queue()
        for data in (data for sent in repeats for data in sent.messages()):
            outbox.put_nowait(data)
        if self._closing:
            outbox.put_nowait(None)
        self._outbox = outbox
        self.connection_count += 1
        return outbox

    async def _serve(self, outbox: Outbox) -> BaseException:
        """Runs one connection to its end and returns what ended it."""
        call: Any = None
        try:
            call = self._method(_messages(outbox))
            async for response in call:
                self._retry.succeeded()
                self._window.answer(response)
                self._changed.set()
        except grpc.RpcError as failure:
            return error_from_rpc(failure)
        except (RuntimeError, grpc.aio.UsageError) as defect:  # a wrong answer; a closed channel
            return defect
        finally:
            if call is not None:
                call.cancel()
        return TransportError("TRANSPORT", 14, "the server ended the stream")

    async def _wait_after(self, error: MlxrtError) -> None:
        """Waits before the next connection, or gives the stream up."""
        if not len(self._window):
            return
        delay_s = self._retry.delay_s(error, time.monotonic())
        if delay_s is None:
            self._stop(error)
            return
        await asyncio.sleep(delay_s)


async def _messages(outbox: Outbox) -> AsyncIterator[bytes]:
    while (data := await outbox.get()) is not None:
        yield data
