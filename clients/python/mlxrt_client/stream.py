"""The hot path for threads: steps in flight over one stream that mends itself."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Self

import grpc

from mlxrt_client.errors import FATAL, MlxrtError, TransportError, error_from_rpc
from mlxrt_client.retry import Retry, RetryPolicy
from mlxrt_client.v1 import ExecuteResponse, StepRequest, StepResponse, TokenMask
from mlxrt_client.window import EXECUTE, StepWindow


class ExecuteStream:
    """Sends steps ahead of their answers. Leaving its `with` block waits for what is in flight.

    A thread of its own reads the answers. When the stream breaks, it connects again and repeats
    every step without an answer, with the same number and the same bytes; the server answers those
    that it ran before from its store and runs none twice. All state is guarded by one condition.
    """

    def __init__(
        self, channel: grpc.Channel, window: StepWindow, depth: int, policy: RetryPolicy
    ) -> None:
        """Made by `Session.stream`."""
        self.connection_count = 0
        self._method = channel.stream_stream(
            EXECUTE, request_serializer=None, response_deserializer=ExecuteResponse.FromString
        )
        self._window = window
        self._depth = depth
        self._retry = Retry(policy)
        self._changed = threading.Condition()
        self._outbox: queue.SimpleQueue[bytes | None] | None = None
        self._call: Any = None
        self._closing = False
        self._error: BaseException | None = None
        self._reader = threading.Thread(target=self._run, name="mlxrt-execute", daemon=True)
        self._reader.start()

    def submit(self, step: StepRequest, *, traceparent: str = "") -> Future[StepResponse]:
        """Sends a step, after waiting for an answer where too many are in flight.

        The future ends with the response; with a `StepDiscardedError` where the accepted step did
        not commit; with another `MlxrtError` where it was refused. It can't be cancelled: a step
        runs.

        Args:
            traceparent: the step's own trace, as W3C Trace Context has it.

        Raises:
            MlxrtError: the session is lost, or the stream was given up; another may be opened.
            RuntimeError: the stream is closed.
        """
        future: Future[StepResponse] = Future()
        future.set_running_or_notify_cancel()
        with self._changed:
            self._changed.wait_for(lambda: self.closed or len(self._window) < self._depth)
            if self._error is not None:
                raise self._error
            if self._closing:
                raise RuntimeError("the stream is closed")
            sent = self._window.add(step, future, traceparent)
            if self._outbox is not None:
                self._outbox.put(sent.data)
            else:
                self._changed.notify_all()
        return future

    def sample(self, step: Future[StepResponse], masks: Sequence[TokenMask]) -> Future[None]:
        """Sends the masks of a step that was submitted with `defer_sampling`; it then samples.

        The future ends when the step's own does, with the same error if it has one. Where the
        server refuses the masks it ends with the refusal at once: the step waits on, for others.

        Args:
            step: what `submit` returned.
            masks: for the sequences that are constrained; may be empty.

        Raises:
            ValueError: the step is answered or not this stream's, or has masks.
        """
        sampled: Future[None] = Future()
        sampled.set_running_or_notify_cancel()
        with self._changed:
            data = self._window.sample(step, masks, sampled)
            # Without a connection the next one sends it, behind its step.
            if self._outbox is not None:
                self._outbox.put(data)
        return sampled

    @property
    def closed(self) -> bool:
        """Whether it takes no more steps: closed, cancelled or lost."""
        return self._closing or self._error is not None

    def close(self) -> None:
        """Waits for the answers of what is in flight, then ends the stream."""
        with self._changed:
            self._closing = True
            if self._outbox is not None:
                self._outbox.put(None)
            self._changed.notify_all()
        self._reader.join()

    def cancel(self) -> None:
        """Ends the stream at once. Steps in flight run all the same; their futures fail."""
        with self._changed:
            self._closing = True
            self._stop(TransportError("TRANSPORT", 1, "the stream was cancelled"))
            if self._call is not None:
                self._call.cancel()
        self._reader.join()

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
        else:
            self.cancel()

    def _stop(self, error: BaseException) -> None:
        """Ends every future with `error`, and every later `submit`. Under the condition."""
        self._error = error
        failure = (
            error if isinstance(error, MlxrtError) else TransportError("TRANSPORT", 13, str(error))
        )
        self._window.fail(failure)
        self._changed.notify_all()

    def _run(self) -> None:
        while (outbox := self._next_outbox()) is not None:
            error = self._serve(outbox)
            with self._changed:
                self._outbox = self._call = None
                if self._error is not None:
                    return
                if isinstance(error, MlxrtError) and not isinstance(error, FATAL):
                    self._wait_after(error)
                else:
                    self._stop(error)
                    return

    def _next_outbox(self) -> queue.SimpleQueue[bytes | None] | None:
        """Waits for something to send and returns it, queued; None when the stream is to end."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self.closed or len(self._window) > 0)
                repeats = self._window.to_repeat()
                if repeats and self._error is None:
                    break
                if self.closed:
                    return None
            outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
            for data in (data for sent in repeats for data in sent.messages()):
                outbox.put(data)
            if self._closing:
                outbox.put(None)
            self._outbox = outbox
            self.connection_count += 1
            return outbox

    def _serve(self, outbox: queue.SimpleQueue[bytes | None]) -> BaseException:
        """Runs one connection to its end and returns what ended it."""
        try:
            call = self._method(iter(outbox.get, None))
            with self._changed:
                self._call = call
            for response in call:
                with self._changed:
                    self._retry.succeeded()
                    self._window.answer(response)
                    self._changed.notify_all()
        except grpc.RpcError as failure:
            return error_from_rpc(failure)
        except (RuntimeError, ValueError) as defect:  # a wrong answer; a closed channel
            return defect
        finally:
            outbox.put(None)  # ends gRPC's own thread that waits for the next message
        return TransportError("TRANSPORT", 14, "the server ended the stream")

    def _wait_after(self, error: MlxrtError) -> None:
        """Waits before the next connection, or gives the stream up. Under the condition."""
        if not len(self._window):
            return
        delay_s = self._retry.delay_s(error, time.monotonic())
        if delay_s is None:
            self._stop(error)
            return
        self._changed.wait_for(lambda: self._error is not None, timeout=delay_s)
