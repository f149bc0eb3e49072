"""Tracing: one span for each step, of OpenTelemetry's SDK, which the extra `otel` brings.

A step's span reaches from its acceptance to its reply, and children divide all of it: `queue`
(before its build; once more where it then waits for the device), `build`, `device`, `sample`,
`commit`. They are made when the step has ended, from the times that the engine took.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import structlog

from mlxrt.config import ConfigError, TracingSettings
from mlxrt.core.step import FAILED_TOKEN, StepReply, Timings
from mlxrt.errors import MlxrtError
from mlxrt.telemetry.caller import SERVICE, Caller
from mlxrt.versions import installed_versions

if TYPE_CHECKING:
    from mlxrt_client.v1.step_pb2 import StepRequest
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span, Tracer

SPAN_NAME = "step"
SESSION_ID_CHARACTERS = 32
INT64_MAX = (1 << 63) - 1
"""What an attribute can hold. A caller may send more of either; the step is then refused, and its
span must not spoil the export of others."""
WAIT_S_MIN = 1e-4
"""Shortest wait for the device that is a part of its own, seconds; a launch takes a little."""
CLOSE_S = 3.0
"""How long the last spans may take to reach the collector."""
_log = structlog.get_logger("mlxrt.tracing")


def make_tracer(settings: TracingSettings) -> StepTracer | None:
    """The tracer that exports to `tracing.endpoint`; None where that is unset.

    Raises:
        ConfigError: the extra `otel` is not installed.
    """
    if settings.endpoint is None:
        return None
    try:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio
    except ImportError as error:
        raise ConfigError(
            f"tracing.endpoint: {error.name} is not installed; install mlxrt with the extra `otel`"
        ) from error
    versions = installed_versions()
    resource = Resource.create(
        {"service.name": settings.service_name, "service.version": versions["mlxrt"]}
    )
    provider = TracerProvider(
        sampler=ParentBasedTraceIdRatio(settings.sample_ratio),
        resource=resource,
        shutdown_on_exit=False,
    )
    insecure = settings.endpoint.startswith("http://")
    exporter = OTLPSpanExporter(endpoint=settings.endpoint, insecure=insecure)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return StepTracer(provider)


class StepTracer:
    """Makes the spans of steps. Lives on the event loop's thread; only `close` blocks.

    Args:
        provider: where the spans go; closed with the tracer.
    """

    def __init__(self, provider: TracerProvider) -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer: Tracer = provider.get_tracer("mlxrt")
        self._propagator = TraceContextTextMapPropagator()

    def begin(self, step: StepRequest, caller: Caller) -> StepTrace:
        """A step that is about to be accepted or refused."""
        attributes = {
            "rpc.system": "grpc",
            "rpc.service": SERVICE,
            "rpc.method": caller.rpc,
            "mlxrt.session.id": step.session.session_id[:SESSION_ID_CHARACTERS],
            "mlxrt.session.epoch": min(step.session.epoch, INT64_MAX),
            "mlxrt.step.number": min(step.step_number, INT64_MAX),
            "mlxrt.step.sequences": len(step.decode_sequence_ids) + len(step.items),
            "mlxrt.step.new_sequences": len(step.new_sequences),
        }
        return StepTrace(self._tracer, self._parent(caller), attributes, step)

    def close(self) -> None:
        """Exports what is left and stops, within CLOSE_S; blocks. A collector that does not answer
        loses the rest."""
        closing = threading.Thread(target=self._provider.shutdown, daemon=True)
        closing.start()
        closing.join(CLOSE_S)
        if closing.is_alive():
            _log.warning("spans lost: the collector does not take them", limit_s=CLOSE_S)

    def _parent(self, caller: Caller) -> Context | None:
        """The caller's trace; None where there is none, or, as W3C has it, none that is valid."""
        if not caller.traceparent:
            return None
        return self._propagator.extract(
            {"traceparent": caller.traceparent, "tracestate": caller.tracestate}
        )


class StepTrace:
    """One step on its way to its span."""

    __slots__ = ("_arrived_s", "_attributes", "_parent", "_step", "_tracer")

    def __init__(
        self, tracer: Tracer, parent: Context | None, attributes: dict[str, Any], step: StepRequest
    ) -> None:
        """A step that has just arrived."""
        self._tracer = tracer
        self._parent = parent
        self._attributes = attributes
        self._step = step
        self._arrived_s = time.perf_counter()

    def refused(self, error: MlxrtError) -> None:
        """Ends the span of a step that was not accepted."""
        clock = _Clock()
        span = self._start(clock, self._arrived_s)
        _fail(span, error)
        span.end(clock.now_ns)

    def ended(self, reply: StepReply, accepted_s: float, replayed: bool) -> None:
        """Ends the span of an accepted step; a repeat has no parts, for it ran under the first."""
        clock = _Clock()
        started_s = self._arrived_s if replayed else accepted_s
        self._attributes["mlxrt.step.replayed"] = replayed
        span = self._start(clock, started_s)
        if span.is_recording():
            span.set_attribute("mlxrt.step.rows", self._row_count())
            self._describe(span, reply)
            if not replayed:
                self._divide(span, clock, accepted_s, reply.timings)
        span.end(clock.now_ns)

    def _start(self, clock: _Clock, started_s: float) -> Span:
        from opentelemetry.trace import SpanKind

        return self._tracer.start_span(
            SPAN_NAME, self._parent, SpanKind.SERVER, self._attributes,
            start_time=clock.at(started_s),
        )  # fmt: skip

    def _row_count(self) -> int:
        """Rows of the accepted step: only then do the limits bound its items."""
        step = self._step
        chunk_rows: int = sum(item.row_count for item in step.items)
        return len(step.decode_sequence_ids) + chunk_rows

    @staticmethod
    def _describe(span: Span, reply: StepReply) -> None:
        if reply.error is not None:
            _fail(span, reply.error)
            return
        rows = [*reply.details, *reply.items]
        failures = [item for item in rows if item.row.failure is not None]
        tokens = sum(token != FAILED_TOKEN for token in reply.token_ids)
        tokens += sum(item.row.token is not None for item in reply.items)
        span.set_attribute("mlxrt.step.tokens", tokens)
        span.set_attribute("mlxrt.step.bucket_rows", reply.bucket_row_count)
        span.set_attribute("mlxrt.step.failed_sequences", len(failures))
        for item in failures:
            assert item.row.failure is not None
            span.add_event(
                "sequence failed",
                {"mlxrt.sequence.id": str(item.sequence_id)} | _words(item.row.failure),
            )

    def _divide(self, span: Span, clock: _Clock, accepted_s: float, timings: Timings) -> None:
        from opentelemetry.trace import set_span_in_context

        within = set_span_in_context(span, self._parent)
        for name, from_s, to_s in _parts(accepted_s, timings):
            part = self._tracer.start_span(name, within, start_time=clock.at(from_s))
            part.end(clock.at(to_s) if to_s is not None else clock.now_ns)


class _Clock:
    """Turns `time.perf_counter` into nanoseconds since 1970, as of now."""

    __slots__ = ("_now_s", "now_ns")

    def __init__(self) -> None:
        self.now_ns = time.time_ns()
        self._now_s = time.perf_counter()

    def at(self, moment_s: float) -> int:
        """When that was."""
        return self.now_ns - max(0, int((self._now_s - moment_s) * 1e9))


def _parts(accepted_s: float, timings: Timings) -> Iterator[tuple[str, float, float | None]]:
    """Name, start and end of each part, in order and without gaps; no end: it is now."""
    begun_s, device_s = timings.begun_s, timings.device_from_s
    if not begun_s:  # it never reached the engine
        yield "queue", accepted_s, None
        return
    yield "queue", accepted_s, begun_s
    built_s = begun_s + timings.build_us / 1e6
    if not device_s:  # it failed before its launch, or had nothing to run
        yield "build", begun_s, built_s
        yield "commit", built_s, None
        return
    if device_s - built_s >= WAIT_S_MIN:
        yield "build", begun_s, built_s
        yield "queue", built_s, device_s
    else:
        yield "build", begun_s, device_s
    ended_s = device_s + timings.device_us / 1e6
    yield "device", device_s, ended_s
    read_s = ended_s + timings.sample_us / 1e6
    yield "sample", ended_s, read_s
    yield "commit", read_s, None


def _words(error: MlxrtError) -> dict[str, str]:
    return {"error.type": error.reason.name, "error.message": error.message}


def _fail(span: Span, error: MlxrtError) -> None:
    from opentelemetry.trace import Status, StatusCode

    span.set_status(Status(StatusCode.ERROR, f"{error.reason.name}: {error.message}"))
    span.set_attribute("error.type", error.reason.name)
    span.set_attribute("rpc.grpc.status_code", int(error.reason.code))
