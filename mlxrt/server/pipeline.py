"""From request bytes to reply bytes: decode, accept, run, encode. All forms of a step pass through
here."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from mlxrt_client.v1 import execution_pb2, step_pb2

from mlxrt.core.model import Limits, ModelFacts
from mlxrt.core.step import StepReply
from mlxrt.errors import MlxrtError, Reason, field_invalid
from mlxrt.server.decode_step import StepCall, StepDecoder
from mlxrt.server.dispatch import Dispatcher
from mlxrt.server.encode import encode_step
from mlxrt.server.handler import parse, serialize
from mlxrt.server.lifecycle import Lifecycle, ServerState
from mlxrt.server.relocate import PathMap, in_execute, in_sampling, relocate
from mlxrt.server.special_cases import step_of_decode, step_of_prefill
from mlxrt.server.waiter import Waiter
from mlxrt.server.wire_check import WireCheck
from mlxrt.telemetry.caller import CALLER
from mlxrt.telemetry.tracing import StepTracer

Encoder = Callable[[Waiter, bool], bytes]
_WithStep = (
    execution_pb2.PrefillResponse
    | execution_pb2.DecodeResponse
    | execution_pb2.ExecuteResponse
    | execution_pb2.SampleStepResponse
)


class Pending:
    """An accepted step on its way to reply bytes."""

    __slots__ = ("_encode", "_replayed", "waiter")

    def __init__(self, waiter: Waiter, replayed: bool, encode: Encoder) -> None:
        self.waiter = waiter
        self._replayed = replayed
        self._encode = encode

    def finish(self) -> bytes:
        """The reply bytes; the step has ended."""
        return self._encode(self.waiter, self._replayed)

    def when_done(self, listener: Callable[[StepReply, float, bool], None]) -> None:
        """Calls `listener` once the step has ended, with its reply, when it was accepted by
        `time.perf_counter`, and whether this is a repeat of it."""
        waiter = self.waiter

        def done() -> None:
            assert waiter.reply is not None
            listener(waiter.reply, waiter.accepted_s, self._replayed)

        waiter.when_done(done)

    async def wait(self) -> bytes:
        """The reply bytes, once the step has ended."""
        await self.waiter.wait()
        return self.finish()


class SamplingRefusedError(Exception):
    """Masks that came over a stream were refused, for a step that waits on."""

    def __init__(self, step_number: int, error: MlxrtError) -> None:
        super().__init__(str(error))
        self.step_number = step_number
        self.error = error


class StepPipeline:
    """The hot path without a transport. Lives on the event loop's thread.

    Attributes:
        limits: those in force with the loaded model.
        notes_traces: whether steps carry the id of their caller's trace.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        lifecycle: Lifecycle,
        facts: ModelFacts,
        limits: Limits,
        tracer: StepTracer | None = None,
    ) -> None:
        self.limits = limits
        self.notes_traces = False
        self._tracer = tracer
        self._dispatcher = dispatcher
        self._lifecycle = lifecycle
        self._decoder = StepDecoder(facts, limits)
        self._wire = WireCheck(limits)

    def begin_step(self, data: bytes) -> Pending:
        """Step: accepts a StepRequest. Raises MlxrtError where it is refused."""
        return self._start(parse(step_pb2.StepRequest, data, self._wire), None, _encode_step)

    def begin_prefill(self, data: bytes) -> Pending:
        """Prefill: as begin_step."""
        message = parse(execution_pb2.PrefillRequest, data, self._wire)
        step, path_map = step_of_prefill(message, self.limits)
        return self._start(step, path_map, _encode_prefill)

    def begin_decode(self, data: bytes) -> Pending:
        """Decode: as begin_step."""
        message = parse(execution_pb2.DecodeRequest, data, self._wire)
        step, path_map = step_of_decode(message, self.limits)
        return self._start(step, path_map, _encode_decode)

    def begin_execute(
        self, data: bytes, may_carry: Callable[[str], bool], carries: Callable[[str], None]
    ) -> Pending | None:
        """One message of Execute: as begin_step; None for masks, which have no answer of their own.

        Args:
            may_carry: whether the stream may carry steps of this session.
            carries: called with the session's id once the step is accepted.

        Raises:
            MlxrtError: a step was refused.
            SamplingRefusedError: masks were refused.
        """
        message = parse(execution_pb2.ExecuteRequest, data, self._wire)
        kind = message.WhichOneof("message")
        if kind is None:
            raise field_invalid("message", "one of step and sampling is required")
        if kind == "sampling":
            number = message.sampling.step_number
            try:
                if not may_carry(message.sampling.session.session_id):
                    raise field_invalid("session.session_id", "this stream carries another session")
                self._sample(message.sampling)
            except MlxrtError as error:
                raise SamplingRefusedError(number, relocate(error, in_sampling)) from None
            return None
        session_id = message.step.session.session_id
        if not may_carry(session_id):
            raise field_invalid("step.session.session_id", "this stream carries another session")
        trace = message.traceparent, message.tracestate
        pending = self._start(message.step, in_execute, _encode_execute, trace)
        carries(session_id)
        return pending

    def run_bytes(self, data: bytes) -> bytes:
        """StepRequest bytes to StepResponse bytes, for an engine that answers inside `submit`.

        Raises:
            MlxrtError: the step was refused.
            RuntimeError: the engine has a thread of its own, or the step defers its sampling.
        """
        pending = self.begin_step(data)
        if pending.waiter.reply is None:
            raise RuntimeError("the step still runs, on the engine's thread, or waits for masks")
        return pending.finish()

    def run_step(self, data: bytes) -> bytes | Awaitable[bytes]:
        """Step, for a handler."""
        return _answer(self.begin_step(data))

    def run_prefill(self, data: bytes) -> bytes | Awaitable[bytes]:
        """Prefill, for a handler."""
        return _answer(self.begin_prefill(data))

    def run_decode(self, data: bytes) -> bytes | Awaitable[bytes]:
        """Decode, for a handler."""
        return _answer(self.begin_decode(data))

    def examine(self) -> None:
        """As Dispatcher.examine: for who has met a defect here."""
        self._dispatcher.examine()

    def run_sampling(self, data: bytes) -> bytes | Awaitable[bytes]:
        """SampleStep, for a handler."""
        return _answer(self.begin_sampling(data))

    def begin_sampling(self, data: bytes) -> Pending:
        """SampleStep: takes the masks; what is pending is the answer to their step. Raises
        MlxrtError where they are refused."""
        request = parse(execution_pb2.SampleStepRequest, data, self._wire)
        try:
            waiter, repeat = self._sample(request.sampling)
        except MlxrtError as error:
            raise relocate(error, in_sampling) from None
        replayed = repeat and waiter.reply is not None
        return Pending(waiter, replayed, _encode_sampled)

    def _sample(self, message: step_pb2.DeferredSampling) -> tuple[Waiter, bool]:
        if not message.HasField("session"):
            raise field_invalid("session", "required")
        call = self._decoder.decode_sampling(message)
        self._lifecycle.check_serving()
        return self._dispatcher.sample(
            call.session_id, call.epoch, call.step_number, call.masks, call.digest
        )

    def _start(
        self,
        message: step_pb2.StepRequest,
        path_map: PathMap | None,
        encode: Encoder,
        trace: tuple[str, str] = ("", ""),
    ) -> Pending:
        """`_begin`, traced where tracing is on; `trace` is the step's own, of the caller's."""
        if self._tracer is None and not self.notes_traces:
            return self._begin(message, path_map, encode)
        caller = CALLER.get().of_step(*trace)
        if self._tracer is None:
            return self._begin(message, path_map, encode, caller.trace_id)
        span = self._tracer.begin(message, caller)
        try:
            pending = self._begin(message, path_map, encode, caller.trace_id)
        except MlxrtError as error:
            span.refused(error)
            raise
        except Exception as error:
            span.refused(MlxrtError(Reason.INTERNAL_DEFECT, type(error).__name__))
            raise
        pending.when_done(span.ended)
        return pending

    def _begin(
        self,
        message: step_pb2.StepRequest,
        path_map: PathMap | None,
        encode: Encoder,
        trace_id: str = "",
    ) -> Pending:
        try:
            if not message.HasField("session"):
                raise field_invalid("session", "required")
            call = self._decoder.decode(message)
            if self._lifecycle.state is not ServerState.SERVING:
                self._check_state(call)
            waiter, replayed = self._dispatcher.begin(
                call.session_id, call.epoch, call.step, trace_id
            )
        except MlxrtError as error:
            raise (relocate(error, path_map) if path_map is not None else error) from None
        return Pending(waiter, replayed, encode)

    def _check_state(self, call: StepCall) -> None:
        """While draining, a step that registers sequences is refused unless it is a repeat."""
        self._lifecycle.check_serving()
        if call.step.new_sequences and not self._dispatcher.was_accepted(
            call.session_id, call.step.step_number
        ):
            self._lifecycle.check_starting()


def _answer(pending: Pending) -> bytes | Awaitable[bytes]:
    return pending.finish() if pending.waiter.reply is not None else pending.wait()


def _fill(message: step_pb2.StepResponse, waiter: Waiter, replayed: bool) -> None:
    assert waiter.reply is not None
    encode_step(message, waiter.reply, replayed)


def _encode_step(waiter: Waiter, replayed: bool) -> bytes:
    message = step_pb2.StepResponse()
    _fill(message, waiter, replayed)
    return serialize(message)


def _encode_within(message: _WithStep, waiter: Waiter, replayed: bool) -> bytes:
    _fill(message.step, waiter, replayed)
    return serialize(message)


def _encode_prefill(waiter: Waiter, replayed: bool) -> bytes:
    return _encode_within(execution_pb2.PrefillResponse(), waiter, replayed)


def _encode_decode(waiter: Waiter, replayed: bool) -> bytes:
    return _encode_within(execution_pb2.DecodeResponse(), waiter, replayed)


def _encode_execute(waiter: Waiter, replayed: bool) -> bytes:
    return _encode_within(execution_pb2.ExecuteResponse(), waiter, replayed)


def _encode_sampled(waiter: Waiter, replayed: bool) -> bytes:
    return _encode_within(execution_pb2.SampleStepResponse(), waiter, replayed)
