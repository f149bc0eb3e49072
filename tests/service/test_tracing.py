"""Spans of steps over the wire: whose they are, what they say, that their parts add up."""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from itertools import pairwise
from typing import Any

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlxrt_client import Client, aio, messages, v1
from mlxrt_client.v1 import execution_pb2, step_pb2
from opentelemetry.proto.collector.trace.v1 import (
    trace_service_pb2,
    trace_service_pb2_grpc,
)
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio
from opentelemetry.trace import StatusCode

from mlxrt.config import TracingSettings
from mlxrt.telemetry.caller import Caller
from mlxrt.telemetry.tracing import StepTracer, make_tracer
from mlxrt.testing import FakeEngine, FakeFaults

TRACE_ID = 0x0AF7651916CD43DD8448EB211C80319C
SPAN_ID = 0xB7AD6B7169203331
PARTS = ("queue", "build", "device", "sample", "commit")


def traceparent(span_id: int = SPAN_ID, sampled: bool = True) -> str:
    return f"00-{TRACE_ID:032x}-{span_id:016x}-{int(sampled):02x}"


class Traced:
    """A tracer that keeps its spans."""

    def __init__(self, ratio: float = 1.0) -> None:
        self.exporter = InMemorySpanExporter()
        provider = TracerProvider(sampler=ParentBasedTraceIdRatio(ratio), shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = StepTracer(provider)

    def steps(self) -> list[ReadableSpan]:
        """The steps' spans, in the order of their ends."""
        return [s for s in self.exporter.get_finished_spans() if s.name == "step"]

    def parts(self, step: ReadableSpan) -> list[ReadableSpan]:
        """The children of a step's span, in the order of their starts."""
        found = self.exporter.get_finished_spans()
        mine = [s for s in found if s.parent and s.parent.span_id == step.context.span_id]
        return sorted(mine, key=lambda s: (s.start_time, s.end_time))


@pytest.fixture
def traced() -> Traced:
    return Traced()


def test_a_unary_steps_parent_is_the_callers(launch: Callable[..., Any], traced: Traced) -> None:
    server = launch(tracer=traced.tracer)
    session = server.open()
    fields = session.prefill_fields(1, [3, 4, 5], session.allocate(2))
    server.call("Step", session.request(**fields), metadata=[("traceparent", traceparent())])
    session.step(decode_sequence_ids=[1])
    first, second = traced.steps()
    assert (first.context.trace_id, first.parent.span_id) == (TRACE_ID, SPAN_ID)
    assert second.parent is None and second.context.trace_id != TRACE_ID
    said = {
        "rpc.system": "grpc", "rpc.service": "mlxrt.v1.ExecutionService", "rpc.method": "Step",
        "mlxrt.session.id": session.ref.session_id, "mlxrt.session.epoch": 1,
        "mlxrt.step.number": 1, "mlxrt.step.sequences": 1, "mlxrt.step.new_sequences": 1,
        "mlxrt.step.rows": 3, "mlxrt.step.tokens": 1, "mlxrt.step.bucket_rows": 3,
        "mlxrt.step.replayed": False, "mlxrt.step.failed_sequences": 0,
    }  # fmt: skip
    assert dict(first.attributes) == said
    assert second.attributes["mlxrt.step.number"] == 2
    assert first.status.status_code is StatusCode.UNSET


@pytest.mark.parametrize("rpc", ["Prefill", "Decode"])
def test_the_special_cases_are_traced_as_steps(
    launch: Callable[..., Any], traced: Traced, rpc: str
) -> None:
    server = launch(tracer=traced.tracer)
    session = server.open()
    session.start(1, [3, 4])
    request = execution_pb2.DecodeRequest(session=session.ref, step_number=2, sequence_ids=[1])
    if rpc == "Prefill":
        request = execution_pb2.PrefillRequest(
            session=session.ref, step_number=2, chunks=[{"sequence_id": 1, "row_count": 1}]
        )
    server.call(rpc, request, metadata=[("traceparent", traceparent())])
    span = traced.steps()[-1]
    assert (span.attributes["rpc.method"], span.parent.span_id) == (rpc, SPAN_ID)


def test_a_streams_steps_have_its_parent_unless_they_bring_their_own(
    launch: Callable[..., Any], traced: Traced
) -> None:
    server = launch(tracer=traced.tracer)
    session = server.open()
    session.start(1, [3, 4])
    stream = server.stream(metadata=[("traceparent", traceparent())])
    stream.send(session.request(decode_sequence_ids=[1]))
    own = execution_pb2.ExecuteRequest(
        step=session.request(decode_sequence_ids=[1]), traceparent=traceparent(7)
    )
    stream.send(own)
    malformed = execution_pb2.ExecuteRequest(
        step=session.request(decode_sequence_ids=[1]), traceparent="00-not-a-trace"
    )
    stream.send(malformed)
    for number in (2, 3, 4):
        assert stream.receive().step.step_number == number
    by_stream, by_step, by_nobody = traced.steps()[1:]
    assert by_stream.parent.span_id == SPAN_ID
    assert by_step.parent.span_id == 7 and by_step.context.trace_id == TRACE_ID
    assert by_nobody.parent is None
    stream.send(own)  # a repeat: it did not run again
    assert stream.receive().step.replayed
    repeat = traced.steps()[-1]
    assert repeat.attributes["mlxrt.step.replayed"] and not traced.parts(repeat)


def test_the_client_says_whose_each_step_is(launch: Callable[..., Any], traced: Traced) -> None:
    server = launch(tracer=traced.tracer)
    with Client(server.server.address) as client, client.open_session() as session:
        blocks = session.allocate_blocks({0: 4})
        session.step(registering(blocks), traceparent=traceparent(1))
        session.prefill(
            [v1.PrefillChunk(sequence_id=1, row_count=2, sample=True)], traceparent=traceparent(2)
        )
        session.decode([1], traceparent=traceparent(3))
        with session.stream() as stream:
            stream.submit(decoding(), traceparent=traceparent(4)).result()
            stream.submit(decoding()).result()
    assert [parent_of(span) for span in traced.steps()] == [1, 2, 3, 4, None]


async def test_the_asyncio_client_says_it_too(launch: Callable[..., Any], traced: Traced) -> None:
    server = launch(tracer=traced.tracer)
    async with aio.Client(server.server.address) as client:
        session = await client.open_session()
        async with session:
            blocks = await session.allocate_blocks({0: 4})
            await session.step(registering(blocks), traceparent=traceparent(1))
            chunk = v1.PrefillChunk(sequence_id=1, row_count=2, sample=True)
            await session.prefill([chunk], traceparent=traceparent(2))
            await session.decode([1], traceparent=traceparent(3))
            async with await session.stream() as stream:
                await (await stream.submit(decoding(), traceparent=traceparent(4)))
                await (await stream.submit(decoding()))
    assert [parent_of(span) for span in traced.steps()] == [1, 2, 3, 4, None]


def registering(blocks: messages.Tables) -> v1.StepRequest:
    """A step that registers sequence 1, of two tokens."""
    return v1.StepRequest(new_sequences=[messages.new_sequence(1, [3, 4], blocks)])


def decoding() -> v1.StepRequest:
    """A step of sequence 1's next token."""
    return v1.StepRequest(decode_sequence_ids=[1])


def parent_of(span: ReadableSpan) -> int | None:
    """The id of the caller's span."""
    return span.parent.span_id if span.parent else None


def test_another_trace_makes_no_other_step(launch: Callable[..., Any], traced: Traced) -> None:
    session = launch(tracer=traced.tracer).open()
    stream = session.harness.stream()
    fields = session.prefill_fields(1, [3, 4], session.allocate(1))
    request = session.request(**fields)
    for span_id in (1, 2):
        stream.send(execution_pb2.ExecuteRequest(step=request, traceparent=traceparent(span_id)))
        assert stream.receive().step.replayed == (span_id == 2)


def test_the_parts_add_up_to_the_step(launch: Callable[..., Any], traced: Traced) -> None:
    engine = FakeEngine(num_blocks=64, block_size=4, threaded=True, step_s=0.03)
    session = launch(engine, traced.tracer).open()
    session.start(1, [3, 4])
    engine.hold()
    stream = session.harness.stream()
    for _ in range(2):  # the second waits for the first
        stream.send(session.request(decode_sequence_ids=[1]))
    session.wait_for_inflight(2)
    threading.Timer(0.03, engine.release).start()
    replies = [stream.receive().step for _ in range(2)]
    for step, reply in zip(traced.steps()[1:], replies, strict=True):
        parts = traced.parts(step)
        assert [p.name for p in parts] == list(PARTS)
        assert (parts[0].start_time, parts[-1].end_time) == (step.start_time, step.end_time)
        for part, following in pairwise(parts):
            assert part.end_time == pytest.approx(following.start_time, abs=2_000)
        spent_us = {p.name: (p.end_time - p.start_time) / 1e3 for p in parts}
        assert sum(spent_us.values()) == pytest.approx(
            (step.end_time - step.start_time) / 1e3, abs=10
        )
        assert spent_us["device"] == pytest.approx(reply.timings.device_us, abs=5)
        assert spent_us["queue"] == pytest.approx(reply.timings.queue_us, abs=5)
        assert spent_us["device"] >= 30_000
    assert replies[1].timings.queue_us > 15_000, "time in the engine's own queue counts"


def test_failures_are_recorded(launch: Callable[..., Any], traced: Traced) -> None:
    engine = FakeEngine(num_blocks=64, block_size=4, faults=FakeFaults(nan_prompt_tokens={666}))
    server = launch(engine, traced.tracer)
    session = server.open()
    session.start(1, [3, 4])

    refusal = server.refused("Step", session.request(step_number=9, decode_sequence_ids=[1]))
    refused = traced.steps()[-1]
    assert refused.status.status_code is StatusCode.ERROR
    assert refusal.message in refused.status.description
    assert refused.attributes["error.type"] == "STEP_GAP"
    assert refused.attributes["rpc.grpc.status_code"] == 9
    assert not traced.parts(refused)

    engine.faults.fail_tickets.add(engine.last_ticket + 1)
    assert session.step(decode_sequence_ids=[1]).HasField("error")
    failed = traced.steps()[-1]
    assert failed.attributes["error.type"] == "EXECUTION_FAILED"
    assert failed.status.status_code is StatusCode.ERROR
    assert [p.name for p in traced.parts(failed)] == list(PARTS)

    fields = session.prefill_fields(2, [666], session.allocate(1))
    session.step(**fields)
    span = traced.steps()[-1]
    assert span.status.status_code is StatusCode.UNSET
    assert span.attributes["mlxrt.step.failed_sequences"] == 1
    assert span.attributes["mlxrt.step.tokens"] == 0
    (event,) = span.events
    assert event.attributes["error.type"] == "NON_FINITE_LOGITS"
    assert event.attributes["mlxrt.sequence.id"] == "2"


def test_what_nobody_can_number_spoils_no_span(launch: Callable[..., Any], traced: Traced) -> None:
    server = launch(tracer=traced.tracer)
    ref = {"session_id": "x" * 5000, "epoch": (1 << 64) - 1}
    server.refused("Step", step_pb2.StepRequest(session=ref, step_number=(1 << 64) - 1))
    (span,) = traced.steps()
    assert span.attributes["mlxrt.step.number"] == (1 << 63) - 1
    assert span.attributes["mlxrt.session.id"] == "x" * 32


def test_the_callers_choice_not_to_sample_wins(launch: Callable[..., Any], traced: Traced) -> None:
    server = launch(tracer=traced.tracer)
    session = server.open()
    fields = session.prefill_fields(1, [3], session.allocate(1))
    metadata = [("traceparent", traceparent(sampled=False))]
    server.call("Step", session.request(**fields), metadata=metadata)
    assert traced.steps() == []


def test_the_ratio_is_for_those_without_a_trace(launch: Callable[..., Any]) -> None:
    traced = Traced(ratio=0.0)
    server = launch(tracer=traced.tracer)
    session = server.open()
    session.start(1, [3])
    assert traced.steps() == []
    request = session.request(decode_sequence_ids=[1])
    server.call("Step", request, metadata=[("traceparent", traceparent())])
    assert len(traced.steps()) == 1


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.text(max_size=80) | st.from_regex(r"[0-9a-f-]{55}"), st.text(max_size=80))
def test_no_text_in_place_of_a_trace_raises(parent: str, state: str) -> None:
    traced = Traced()
    caller = Caller("Step").of_step(parent, state)
    span = traced.tracer.begin(step_pb2.StepRequest(), caller)
    span.refused(server_error())
    assert len(traced.steps()) == 1


def server_error() -> Any:
    from mlxrt.errors import field_invalid

    return field_invalid("session", "required")


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """An OTLP collector."""

    def __init__(self) -> None:
        self.spans: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def Export(self, request: Any, context: grpc.ServicerContext) -> Any:
        for resource in request.resource_spans:
            names = {a.key: a.value.string_value for a in resource.resource.attributes}
            for scope in resource.scope_spans:
                for span in scope.spans:
                    self.spans.put((names["service.name"], span))
        return trace_service_pb2.ExportTraceServiceResponse()


@pytest.fixture
def collector() -> Iterator[tuple[Collector, str]]:
    server = grpc.server(futures.ThreadPoolExecutor(2))
    servicer = Collector()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield servicer, f"http://127.0.0.1:{port}"
    server.stop(None).wait()


def test_spans_reach_the_collector_the_last_ones_with_the_drain(
    launch: Callable[..., Any], collector: tuple[Collector, str]
) -> None:
    found, endpoint = collector
    server = launch(tracing={"endpoint": endpoint, "service_name": "mine"})
    session = server.open()
    session.start(1, [3, 4])
    server.close()
    spans = [found.spans.get(timeout=60) for _ in range(len(PARTS) + 1)]
    assert {service for service, _ in spans} == {"mine"}
    by_name = {span.name: span for _, span in spans}
    assert set(by_name) == {"step", *PARTS}
    assert by_name["device"].parent_span_id == by_name["step"].span_id
    assert found.spans.empty()


def test_a_collector_that_is_gone_delays_nothing(launch: Callable[..., Any]) -> None:
    server = launch(tracing={"endpoint": "http://127.0.0.1:9"})
    session = server.open()
    session.start(1, [3, 4])
    assert session.step(decode_sequence_ids=[1]).token_ids
    server.close()  # fails after 20 s


def test_off_there_is_no_tracer() -> None:
    assert make_tracer(TracingSettings()) is None


def test_asking_for_it_without_the_extra_says_so_at_the_start() -> None:
    code = """
import sys
sys.modules["opentelemetry"] = None
sys.argv = ["mlxrt", "serve", "--fake", "--address", "127.0.0.1:0",
            "--set", "tracing.endpoint=http://127.0.0.1:4317"]
from mlxrt.cli import main
main()
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=os.environ
    )
    assert result.returncode == 2, result.stderr
    assert "tracing.endpoint" in result.stderr and "extra `otel`" in result.stderr
