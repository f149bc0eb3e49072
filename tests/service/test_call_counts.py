"""How calls are counted, by what they end with: each status that a handler can give them."""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from mlxrt_client.v1 import model_pb2, step_pb2
from prometheus_client.parser import text_string_to_metric_families

from mlxrt.server.counted import has_expired
from mlxrt.testing import FakeEngine

Launch = Callable[..., Any]
TOKEN = "token-of-the-tests-0123"
STEP = "/mlxrt.v1.ExecutionService/Step"


def started(launch: Launch, **settings: Any) -> Any:
    engine = FakeEngine(num_blocks=64, block_size=4, threaded=True)
    return launch(engine, metrics_address="127.0.0.1:0", **settings)


def counts(server: Any, method: str, sample: str = "grpc_server_handled_total") -> dict[str, float]:
    """Calls of a method by code; by "" where the metric has no codes. Zeros are left out."""
    url = f"http://{server.server.metrics_address}/metrics"
    with urllib.request.urlopen(url, timeout=60) as answer:
        families = text_string_to_metric_families(answer.read().decode())
    samples = [s for family in families for s in family.samples if s.name == sample]
    return {
        s.labels.get("grpc_code", ""): s.value
        for s in samples
        if s.labels["grpc_method"] == method and s.value
    }


def running(server: Any, method: str) -> float:
    """Calls of a method that have started and not ended."""
    started = counts(server, method, "grpc_server_started_total")
    return sum(started.values()) - sum(counts(server, method).values())


def settle(server: Any, method: str, expected: dict[str, float]) -> None:
    """Waits until the method's calls have ended so."""
    end_s = time.monotonic() + 60
    while (found := counts(server, method)) != expected:
        assert time.monotonic() < end_s, found
        time.sleep(0.02)


@pytest.mark.parametrize(("elapsed_s", "remaining_s", "expired"), [
    (1.0, 0.0, True), (0.99, 0.01, True), (0.097, 0.003, True),
    (0.5, 0.5, False), (0.001, 0.099, False), (5.0, None, False),
])  # fmt: skip
def test_who_ended_a_call(elapsed_s: float, remaining_s: float | None, expired: bool) -> None:
    assert has_expired(elapsed_s, remaining_s) is expired


def test_a_deadline_and_a_cancel(launch: Launch, wait_until: Callable[..., None]) -> None:
    server = started(launch)
    session = server.open()
    server.engine.hold()
    run = server.channel.unary_unary(STEP)
    request = session.request().SerializeToString()
    while not session.state().inflight_step_numbers:  # a call may be over before it is there
        with pytest.raises(grpc.RpcError) as raised:
            run(request, timeout=0.5)
        assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    # On a slow machine the client's word for it comes long before the server's own clock.
    wait_until(lambda: not running(server, "Step"))
    first = counts(server, "Step")
    assert first
    assert set(first) <= {"DEADLINE_EXCEEDED", "CANCELLED"}
    call = run.future(session.request().SerializeToString(), timeout=60)
    session.wait_for_inflight(2)
    call.cancel()
    settle(server, "Step", {**first, "CANCELLED": 1 + first.get("CANCELLED", 0)})
    server.engine.release()


def test_a_defect_is_internal_never_unknown(launch: Launch) -> None:
    server = started(launch)
    session = server.open()
    pipeline = server.server.runtime.pipeline
    for count, broken in enumerate((lambda _: 1 / 0, lambda _: "no bytes"), 1):
        server.on_loop(lambda broken=broken: setattr(pipeline, "run_step", broken))
        server.refused("Step", session.request())
        settle(server, "Step", {"INTERNAL": count})


def test_who_is_not_known_counts_under_what_was_called(launch: Launch, tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text(TOKEN)
    server = started(launch, token_file=tmp_path / "tokens")
    for path in (STEP, "/mlxrt.v1.ExecutionService/Execute"):
        with pytest.raises(grpc.RpcError):
            next(server.channel.stream_stream(path)(iter([b""]), timeout=60))
    settle(server, "Step", {"UNAUTHENTICATED": 1})
    settle(server, "Execute", {"UNAUTHENTICATED": 1})
    server.call(
        "GetServerInfo", model_pb2.GetServerInfoRequest(),
        metadata=(("authorization", f"Bearer {TOKEN}"),),
    )  # fmt: skip
    settle(server, "GetServerInfo", {"OK": 1})


def test_calls_that_run_are_started_and_not_ended(launch: Launch) -> None:
    server = started(launch)
    session = server.open()
    stream = server.stream()
    stream.send(session.request())
    stream.receive()
    assert counts(server, "Execute", "grpc_server_started_total") == {"": 1}
    assert counts(server, "Execute") == {}
    stream.finish()
    settle(server, "Execute", {"OK": 1})
    assert counts(server, "Execute", "grpc_server_handling_seconds_count") == {"": 1}


def test_server_streams_and_refused_client_streams(launch: Launch) -> None:
    server = started(launch)
    for method in ("GetTokenizer", "ImportBlocks"):
        service = "ModelService" if method == "GetTokenizer" else "ExecutionService"
        run = server.channel.stream_stream(f"/mlxrt.v1.{service}/{method}")
        with pytest.raises(grpc.RpcError):
            next(run(iter([b""]), timeout=60))
        settle(server, method, {"UNIMPLEMENTED": 1})


def test_what_the_library_refuses_is_not_counted(launch: Launch) -> None:
    server = started(launch, limits={"max_message_bytes": 1 << 16})
    session = server.open()
    request = session.request(release_sequence_ids=range(1 << 40, (1 << 40) + 20_000))
    with pytest.raises(grpc.RpcError) as raised:
        server.call("Step", request)
    assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    with pytest.raises(grpc.RpcError):
        server.channel.unary_unary("/mlxrt.v1.ExecutionService/Nothing")(b"", timeout=60)
    assert counts(server, "Step") == counts(server, "Nothing") == {}


def test_the_port_for_probes_is_counted_too(launch: Launch) -> None:
    server = started(launch, health_address="127.0.0.1:0")
    with grpc.insecure_channel(server.server.health_address) as channel:
        channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=60)
    settle(server, "Check", {"OK": 1})


def test_a_step_that_was_given_up_commits_and_is_counted_once(launch: Launch) -> None:
    server = started(launch)
    session = server.open()
    server.engine.hold()
    request = session.request()
    while not session.state().inflight_step_numbers:  # a call may be over before it is there
        with pytest.raises(grpc.RpcError):
            server.call("Step", request, timeout=0.05)
    server.engine.release()
    reply = server.call("Step", request)
    assert isinstance(reply, step_pb2.StepResponse) and reply.step_number == 1
    tallies = server.server.tallies.steps["empty"]
    assert (tallies.committed, tallies.discarded) == (1, 0)
