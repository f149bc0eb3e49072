"""Spans of real steps, two in flight: what the engine measured divides each of them."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from mlxrt_client import Client, messages, v1
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from mlxrt.engine.engine_config import EngineConfig
from mlxrt.engine.mlx_engine import MlxEngine
from mlxrt.telemetry.tracing import StepTracer
from mlxrt.testing.server_thread import ServerThread

STEPS = 40
ORDERS = (
    ["queue", "build", "device", "sample", "commit"],
    ["queue", "build", "queue", "device", "sample", "commit"],
)


def test_the_parts_of_real_steps_add_up(checkpoint: Any) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    engine = MlxEngine(EngineConfig(model=str(checkpoint("qwen3")), num_blocks=64))
    replies = []
    with (
        ServerThread(engine, tracer=StepTracer(provider)) as server,
        Client(server.address) as client,
        client.open_session() as session,
    ):
        blocks = session.allocate_blocks({0: 8})
        prefill = v1.StepRequest(
            new_sequences=[messages.new_sequence(1, [3, 4, 5], blocks)],
            items=[messages.chunk_item(1, row_count=3, sample=True)],
        )
        with session.stream() as stream:
            futures = [stream.submit(prefill)]
            futures += [
                stream.submit(v1.StepRequest(decode_sequence_ids=[1])) for _ in range(STEPS)
            ]
        replies = [future.result() for future in futures]
    spans = exporter.get_finished_spans()
    steps = [span for span in spans if span.name == "step"]
    assert len(steps) == len(replies) == STEPS + 1
    for step, reply in zip(steps, replies, strict=True):
        mine = [s for s in spans if s.parent and s.parent.span_id == step.context.span_id]
        assert [part.name for part in mine] in ORDERS
        assert (mine[0].start_time, mine[-1].end_time) == (step.start_time, step.end_time)
        for part, following in pairwise(mine):
            assert abs(part.end_time - following.start_time) <= 3_000
            assert part.start_time <= part.end_time + 1_000
        device_us, sample_us = (
            sum((s.end_time - s.start_time) / 1e3 for s in mine if s.name == name)
            for name in ("device", "sample")
        )
        assert abs(device_us - reply.timings.device_us) <= 3 < device_us
        assert abs(sample_us - reply.timings.sample_us) <= 3
