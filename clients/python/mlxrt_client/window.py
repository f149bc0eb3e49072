"""The steps of a session that are sent and not answered: their numbers, their bytes, their futures.

Pure bookkeeping, shared by the sync and the asyncio stream: no I/O, no locks, no clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from mlxrt_client.errors import MlxrtError, StepNumberError, error_from_message
from mlxrt_client.v1 import (
    DecodeRequest,
    DeferredSampling,
    ExecuteRequest,
    ExecuteResponse,
    PrefillRequest,
    SessionRef,
    StepRequest,
    StepResponse,
    TokenMask,
)

EXECUTE = "/mlxrt.v1.ExecutionService/Execute"
"""The stream's method, called with bytes, so that a repeat is the same to the last of them."""

Numbered = TypeVar("Numbered", StepRequest, PrefillRequest, DecodeRequest)


class Future(Protocol):
    """What `concurrent.futures.Future` and `asyncio.Future` have in common."""

    def done(self) -> bool:
        """Whether it has a result or an exception, or was cancelled."""

    def set_result(self, result: Any, /) -> None:
        """Ends it with `result`."""

    def set_exception(self, exception: Any, /) -> None:
        """Ends it with `exception`."""


@dataclass(slots=True)
class SentStep:
    """A step without an answer.

    Attributes:
        data: the ExecuteRequest's bytes, the same for every repeat.
        doomed: a step before it was refused, so its number was never due: it will be refused too.
        sampling: the ExecuteRequest's bytes with its masks, sent after it; None without any.
        sampled: ends with the step, or with the refusal of the masks.
    """

    number: int
    data: bytes
    future: Future
    doomed: bool = False
    sampling: bytes | None = None
    sampled: Future | None = None

    def messages(self) -> list[bytes]:
        """Returns what to send for it."""
        return [self.data] if self.sampling is None else [self.data, self.sampling]

    def end(self, error: MlxrtError) -> None:
        """Ends it with `error`."""
        end(self.future, error)
        if self.sampled is not None:
            end(self.sampled, error)


class StepWindow:
    """Numbers the steps of one session and matches answers with them, in order.

    A refusal uses up no number: the next step gets the refused one's, and the steps behind it,
    which the server refuses for the gap, are marked as doomed.
    """

    def __init__(self, session: SessionRef, next_number: int) -> None:
        self._session = session
        self._sent: deque[SentStep] = deque()
        self.next_number = next_number
        self.uncertain = False

    def __len__(self) -> int:
        """Number of steps without an answer."""
        return len(self._sent)

    def align(self, next_number: int) -> None:
        """Takes the server's word for the next step's number. Without steps in flight only."""
        self.next_number = next_number
        self.uncertain = False

    def number(self, request: Numbered) -> Numbered:
        """Returns a copy of `request` with the session and the next step number filled in."""
        numbered = type(request)()
        numbered.CopyFrom(request)
        numbered.session.CopyFrom(self._session)
        numbered.step_number = self.next_number
        return numbered

    def add(self, step: StepRequest, future: Future, traceparent: str = "") -> SentStep:
        """Numbers a copy of `step` and remembers its bytes until it is answered."""
        request = ExecuteRequest(step=self.number(step), traceparent=traceparent)
        data = request.SerializeToString()
        sent = SentStep(self.next_number, data, future)
        self._sent.append(sent)
        self.next_number += 1
        return sent

    def sample(self, step: Future, masks: Sequence[TokenMask], sampled: Future) -> bytes:
        """Remembers the masks of a step that defers its sampling; returns the bytes to send.

        Raises:
            ValueError: the step of this future has its answer, or is another stream's, or its masks
                were sent.
        """
        sent = next((sent for sent in self._sent if sent.future is step), None)
        if sent is None:
            raise ValueError("this stream has no such step without an answer")
        if sent.sampling is not None:
            raise ValueError("the masks of this step were sent")
        deferred = DeferredSampling(session=self._session, step_number=sent.number, masks=masks)
        sent.sampling = ExecuteRequest(sampling=deferred).SerializeToString()
        sent.sampled = sampled
        return sent.sampling

    def answer(self, response: ExecuteResponse) -> None:
        """Ends the oldest step with `response`, or masks that were refused.

        Raises:
            RuntimeError: no step is unanswered, or the answer is another step's: a defect of the
            server.
        """
        if response.WhichOneof("message") == "sampling_refusal":
            refusal = response.sampling_refusal
            self._refuse_masks(refusal.step_number, error_from_message(refusal.error))
            return
        if not self._sent:
            raise RuntimeError("an answer came without a step")
        if response.WhichOneof("message") == "error":
            self.refuse(error_from_message(response.error))
        else:
            self.finish(response.step)

    def finish(self, response: StepResponse) -> None:
        """Ends the oldest step, which was accepted, with its response or the error in it."""
        sent = self._sent[0]
        if response.step_number != sent.number:
            raise RuntimeError(f"step {response.step_number} answered in place of {sent.number}")
        self._sent.popleft()
        if response.HasField("error"):
            sent.end(error_from_message(response.error, accepted=True))
            return
        if not sent.future.done():
            sent.future.set_result(response)
        if sent.sampled is not None and not sent.sampled.done():
            sent.sampled.set_result(None)

    def _refuse_masks(self, number: int, error: MlxrtError) -> None:
        """Ends masks with `error`; their step waits on, and other masks may be sent."""
        for sent in self._sent:
            if sent.number == number and sent.sampled is not None:
                end(sent.sampled, error)
                sent.sampling = sent.sampled = None
                return

    def refuse(self, error: MlxrtError) -> None:
        """Ends the oldest step, which was not accepted, with `error`."""
        sent = self._sent.popleft()
        if not sent.doomed:
            self.next_number = expected_number(error, sent.number)
            for later in self._sent:
                later.doomed = True
        sent.end(error)

    def to_repeat(self) -> list[SentStep]:
        """Returns the steps to send on a new connection; doomed ones end here instead."""
        for sent in [sent for sent in self._sent if sent.doomed]:
            self._sent.remove(sent)
            sent.end(StepNumberError("STEP_GAP", 9, "a step before this one was refused"))
        return list(self._sent)

    def fail(self, error: MlxrtError) -> None:
        """Ends every step with `error`, when no answer is to be had any more.

        Which of them the server accepted is not known: ask it before the next step.
        """
        self.uncertain = self.uncertain or bool(self._sent)
        while self._sent:
            self._sent.popleft().end(error)


def expected_number(error: MlxrtError, refused_number: int) -> int:
    """Returns the number that the next step gets after the one of `refused_number` was refused."""
    return int(error.metadata.get("expected_step_number", refused_number))


def end(future: Future, error: MlxrtError) -> None:
    """Ends `future` with `error` unless its owner gave it up."""
    if not future.done():
        future.set_exception(error)
