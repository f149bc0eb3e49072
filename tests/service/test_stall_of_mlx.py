"""MLX's own engine hangs, on its thread or on the device: readiness says so until it goes on."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest
from grpc_health.v1 import health_pb2
from mlxrt_client import Client, messages
from mlxrt_client.v1 import StepRequest

from mlxrt.config import load_settings
from mlxrt.launch import make_engine
from mlxrt.testing.faults import ENGINE_POINTS, Fault, Faults, FaultSpec, Point
from mlxrt.testing.server_thread import ServerThread

STALL_S = 1.0
UNTIL_WOKEN_MS = 300_000
SETTINGS = {"num_blocks": 8, "blas": "reference", "stall_seconds": STALL_S}
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture(scope="module")
def hanging() -> Iterator[tuple[ServerThread, Faults]]:
    faults = Faults()
    engine = make_engine(load_settings(**SETTINGS))
    with ServerThread(engine, faults=faults, **SETTINGS) as server:
        yield server, faults


@pytest.mark.parametrize("point", ENGINE_POINTS)
def test_a_step_that_hangs(hanging: tuple[ServerThread, Faults], point: Point) -> None:
    server, faults = hanging
    with (
        grpc.insecure_channel(server.address) as channel,
        Client(server.address) as client,
        client.open_session() as session,
        session.stream() as stream,
    ):
        run = channel.unary_stream(
            "/grpc.health.v1.Health/Watch",
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        request = health_pb2.HealthCheckRequest(service="readiness")
        watch = run(request.SerializeToString(), timeout=60)
        assert SERVING in (answer.status for answer in watch)  # a slow machine may look stalled
        blocks = session.allocate_blocks({0: 2})
        faults.plan(FaultSpec(point, Fault.DELAY, faults.hits[point] + 1, UNTIL_WOKEN_MS))
        answer = stream.submit(
            StepRequest(
                new_sequences=[messages.new_sequence(1, [11, 12, 13], blocks)],
                items=[messages.chunk_item(1, 3, sample=True)],
            )
        )
        assert NOT_SERVING in (answer.status for answer in watch)
        assert not answer.done()
        faults.wake()
        assert answer.result(60).results[0].token_ids
        assert SERVING in (answer.status for answer in watch)
        watch.cancel()
    assert faults.struck[-1].point is point
