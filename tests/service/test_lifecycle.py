"""Loading, serving, draining, loss: states, health, refusals, exit codes."""

from __future__ import annotations

import hashlib
import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from mlxrt_client.v1 import error_pb2, model_pb2, session_pb2, step_pb2

from mlxrt.errors import MlxrtError, Reason
from mlxrt.server import ExitCode, ServerState
from mlxrt.server.summary import Summary
from mlxrt.testing import FakeEngine, FakeFaults

PROMPT = [5, 9, 2, 77, 1023]
SERVICES = (
    "", "mlxrt.v1.SessionService", "mlxrt.v1.ExecutionService", "mlxrt.v1.ModelService",
)  # fmt: skip
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Watch:
    """A health watch whose statuses are collected."""

    def __init__(self, server: Any, service: str) -> None:
        self.statuses: queue.Queue[int] = queue.Queue()
        run = server.channel.unary_stream(
            "/grpc.health.v1.Health/Watch",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        self.call = run(health_pb2.HealthCheckRequest(service=service), timeout=60)
        threading.Thread(target=self._collect, daemon=True).start()

    def _collect(self) -> None:
        try:
            for response in self.call:
                self.statuses.put(response.status)
        except grpc.RpcError:
            pass

    def next(self) -> int:
        """The next status."""
        return self.statuses.get(timeout=60)


def check(server: Any, service: str) -> int:
    """Health.Check."""
    run = server.channel.unary_unary(
        "/grpc.health.v1.Health/Check",
        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=health_pb2.HealthCheckResponse.FromString,
    )
    return run(health_pb2.HealthCheckRequest(service=service), timeout=60).status


def server_state(server: Any) -> int:
    """GetServerInfo's state."""
    return server.call("GetServerInfo", model_pb2.GetServerInfoRequest()).state


def open_request() -> session_pb2.OpenSessionRequest:
    return session_pb2.OpenSessionRequest(request_id="r")


@pytest.mark.parametrize("service", SERVICES)
def test_watch_follows_loading_serving_and_draining(
    launch: Callable[..., Any], service: str
) -> None:
    gate = threading.Event()
    server = launch(FakeEngine(num_blocks=64, block_size=4, threaded=True, load_gate=gate))
    watch = Watch(server, service)
    assert watch.next() == NOT_SERVING == check(server, service)
    gate.set()
    assert watch.next() == SERVING
    assert check(server, service) == SERVING
    session = server.open()
    session.start(1, PROMPT)
    server.on_loop(server.server.drain)
    assert watch.next() == NOT_SERVING
    assert check(server, service) == NOT_SERVING
    assert server_state(server) == model_pb2.SERVER_STATE_DRAINING


def test_while_loading_facts_of_the_server_alone_are_answered(launch: Callable[..., Any]) -> None:
    gate = threading.Event()
    server = launch(FakeEngine(num_blocks=64, block_size=4, threaded=True, load_gate=gate))
    assert server_state(server) == model_pb2.SERVER_STATE_LOADING
    for rpc, request in (
        ("OpenSession", open_request()),
        ("GetModelInfo", model_pb2.GetModelInfoRequest()),
        ("Step", step_pb2.StepRequest()),
    ):
        refusal = server.refused(rpc, request)
        assert refusal.reason is Reason.LOADING and refusal.retry_ms is not None
    gate.set()
    server.wait_for(ServerState.SERVING)
    assert server.call("GetModelInfo", model_pb2.GetModelInfoRequest()).model_type == "fake"


def test_facts_and_limits(launch: Callable[..., Any]) -> None:
    engine = FakeEngine(num_blocks=64, block_size=4, windows=(0, 8), max_model_length=512)
    server = launch(engine, limits={"max_sessions": 3})
    info = server.call("GetServerInfo", model_pb2.GetServerInfoRequest())
    assert info.device == info.attention_path == "fake" and info.mlx_version == ""
    assert info.instance_id == server.server.instance_id
    assert info.limits.max_sessions == 3 and info.limits.stored_replies == 4
    assert info.limits.max_model_length == 512
    model = server.call("GetModelInfo", model_pb2.GetModelInfoRequest())
    assert [(g.group, g.kind, g.window, g.block_count) for g in model.groups] == [
        (0, model_pb2.GROUP_KIND_FULL, 0, 64), (1, model_pb2.GROUP_KIND_WINDOW, 8, 64),
    ]  # fmt: skip
    assert model.block_size == 4 and model.max_model_length == 512
    assert info.state == model_pb2.SERVER_STATE_SERVING


def test_draining_refuses_what_is_new_and_lets_the_rest_go_on(launch: Callable[..., Any]) -> None:
    server = launch()
    session = server.open()
    tokens = [*PROMPT, session.start(1, PROMPT)]
    registering = session.prefill_fields(2, PROMPT, session.allocate(2))
    server.on_loop(server.server.drain)
    server.wait_for(ServerState.DRAINING)
    assert server.refused("OpenSession", open_request()).reason is Reason.DRAINING
    before = server.digest()
    refusal = server.refused("Step", session.request(step_number=2, **registering))
    assert refusal.reason is Reason.DRAINING and refusal.retry_ms is not None
    assert server.digest() == before
    next(session.steps)
    for number in range(2, 5):
        reply = session.step(step_number=number, decode_sequence_ids=[1])
        assert reply.token_ids[0] == server.engine.expected_token(tokens)
        tokens.append(reply.token_ids[0])
    assert not server.exit_code.done()
    server.call("CloseSession", session_pb2.CloseSessionRequest(session=session.ref))
    assert server.exit_code.result(60) is ExitCode.OK


def test_the_drain_ends_at_its_limit_with_accepted_steps_run(launch: Callable[..., Any]) -> None:
    engine = FakeEngine(num_blocks=64, block_size=4, threaded=True)
    server = launch(engine, drain_seconds=0.2)
    session = server.open()
    session.start(1, PROMPT)
    engine.hold()
    call = server.channel.unary_unary("/mlxrt.v1.ExecutionService/Step").future(
        session.request(decode_sequence_ids=[1]).SerializeToString(), timeout=60
    )
    session.wait_for_inflight()
    server.on_loop(server.server.drain)
    threading.Timer(0.4, engine.release).start()
    assert step_pb2.StepResponse.FromString(call.result()).token_ids
    assert server.exit_code.result(60) is ExitCode.OK
    assert server.core.session_count() == 0 and server.core.free_blocks_by_group() == (63,)


def test_loss_answers_what_waits_and_exits_with_6(launch: Callable[..., Any]) -> None:
    engine = FakeEngine(num_blocks=64, block_size=4, threaded=True, step_s=0.1)
    server = launch(engine)
    watch = Watch(server, "")
    while watch.next() != SERVING:
        pass
    session = server.open()
    session.start(1, PROMPT)
    accepted = server.on_loop(lambda: server.core.counters.steps_committed)
    engine.faults.lose_ticket = server.on_loop(lambda: next_ticket(server))
    assert accepted == 1
    reply = session.step(decode_sequence_ids=[1])
    assert reply.error.reason == error_pb2.ERROR_REASON_DEVICE_LOST
    assert server.exit_code.result(60) is ExitCode.DEVICE_LOST == 6
    assert server.core.counters.steps_committed == accepted
    assert server.server.lifecycle.state is ServerState.FAILED
    assert watch.next() == NOT_SERVING


def next_ticket(server: Any) -> int:
    """The ticket of the next accepted step: tickets rise by one from the first that a plan had."""
    return server.engine.last_ticket + 1


def test_a_stall_shows_in_health_until_the_step_ends(
    launch: Callable[..., Any], wait_until: Callable[..., None]
) -> None:
    engine = FakeEngine(num_blocks=64, block_size=4, threaded=True)
    server = launch(engine, stall_seconds=0.2)
    watch = Watch(server, "")
    while watch.next() != SERVING:
        pass
    session = server.open()
    engine.hold()
    call = server.channel.unary_unary("/mlxrt.v1.ExecutionService/Step").future(
        session.request().SerializeToString(), timeout=60
    )
    assert watch.next() == NOT_SERVING
    assert not call.done()
    engine.release()
    assert watch.next() == SERVING
    assert not step_pb2.StepResponse.FromString(call.result()).HasField("error")
    looks, look = [], engine.heartbeat_age_s
    engine.heartbeat_age_s = lambda: looks.append(None) or look()
    wait_until(lambda: len(looks) > 3)
    server.wait_for(ServerState.SERVING)
    assert watch.statuses.empty()


def test_a_step_that_never_ends_can_not_keep_the_drain(
    launch: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlxrt.server.app.LOST_CLOSE_S", 0.2)
    engine = FakeEngine(num_blocks=64, block_size=4, threaded=True)
    server = launch(engine, stall_seconds=0.3, drain_seconds=0.1)
    session = server.open()
    hang = threading.Event()
    run = engine._runner.run
    monkeypatch.setattr(engine._runner, "run", lambda *a: hang.wait(60) and run(*a))
    call = server.channel.unary_unary("/mlxrt.v1.ExecutionService/Step").future(
        session.request().SerializeToString(), timeout=60
    )
    session.wait_for_inflight()
    server.on_loop(server.server.drain)
    assert server.exit_code.result(60) is ExitCode.DEVICE_LOST
    reply = step_pb2.StepResponse.FromString(call.result())
    assert reply.error.reason == error_pb2.ERROR_REASON_DEVICE_LOST
    hang.set()


def test_loss_ends_streams_after_what_they_are_due(launch: Callable[..., Any]) -> None:
    engine = FakeEngine(num_blocks=64, block_size=4, threaded=True, step_s=0.1)
    server = launch(engine)
    session = server.open()
    session.start(1, PROMPT)
    engine.faults.lose_ticket = engine.last_ticket + 2
    stream = server.stream()
    for _ in range(2):
        stream.send(session.request(decode_sequence_ids=[1]))
    assert stream.receive().step.token_ids
    assert stream.receive().step.error.reason == error_pb2.ERROR_REASON_DEVICE_LOST
    with pytest.raises(grpc.RpcError) as raised:
        stream.receive()
    assert server.refusal_of(raised.value).reason is Reason.DEVICE_LOST
    assert server.exit_code.result(60) is ExitCode.DEVICE_LOST


def test_the_drain_ends_idle_streams(launch: Callable[..., Any]) -> None:
    server = launch()
    session = server.open()
    stream = server.stream()
    stream.send(session.request())
    assert stream.receive().step.step_number == 1
    server.on_loop(server.server.drain)
    with pytest.raises(grpc.RpcError) as raised:
        stream.receive()
    assert server.refusal_of(raised.value).reason is Reason.DRAINING
    assert server.exit_code.result(60) is ExitCode.OK


def test_a_drain_while_loading(launch: Callable[..., Any]) -> None:
    gate = threading.Event()
    server = launch(FakeEngine(threaded=True, load_gate=gate))
    stream = server.stream()
    with pytest.raises(grpc.RpcError) as raised:
        stream.receive()
    assert server.refusal_of(raised.value).reason is Reason.LOADING
    server.on_loop(server.server.drain)
    assert server.exit_code.result(60) is ExitCode.OK
    assert server.server.runtime is None


@pytest.mark.parametrize(
    ("metadata", "code"),
    [
        ({}, ExitCode.MODEL),
        ({"exit_code": "5"}, ExitCode.MEMORY),
        ({"exit_code": "4"}, ExitCode.ABI),
    ],
)
def test_a_failed_load_exits_with_its_code(
    launch: Callable[..., Any], metadata: dict[str, str], code: ExitCode
) -> None:
    error = MlxrtError(Reason.INTERNAL_DEFECT, "no such checkpoint", metadata=metadata)
    engine = FakeEngine(threaded=True, faults=FakeFaults(load_error=error))
    server = launch(engine)
    assert server.exit_code.result(60) is code


def test_a_core_that_breaks_a_promise_stops_everything(launch: Callable[..., Any]) -> None:
    server = launch()
    session = server.open()
    session.start(1, PROMPT)

    def broken(*_: object) -> None:
        raise AssertionError("an invariant does not hold")

    server.on_loop(lambda: setattr(server.server.runtime.dispatcher, "_finish", broken))
    reply = session.step(decode_sequence_ids=[1])
    assert reply.error.reason == error_pb2.ERROR_REASON_DEVICE_LOST
    assert "invariant" not in reply.error.message
    assert server.exit_code.result(60) is ExitCode.DEVICE_LOST


def test_the_summary_tells_news_alone(launch: Callable[..., Any]) -> None:
    server = launch()
    summary = server.on_loop(lambda: Summary(server.server.runtime))
    assert not server.on_loop(summary.tell)
    server.open().start(1, PROMPT)
    assert server.on_loop(summary.tell) and not server.on_loop(summary.tell)


def test_an_engine_that_never_closes_is_left_behind(
    launch: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlxrt.server.app.CLOSE_S", 0.2)
    server = launch()
    hang = threading.Event()
    monkeypatch.setattr(server.engine, "close", hang.wait)
    assert server.close() is ExitCode.OK
    hang.set()


def test_unknown_service_and_malformed_health(server: Any) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        check(server, "nobody")
    assert raised.value.code() is grpc.StatusCode.NOT_FOUND
    assert Watch(server, "nobody").next() == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    with pytest.raises(grpc.RpcError) as raised:
        server.channel.unary_unary("/grpc.health.v1.Health/Check")(b"\xff", timeout=60)
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("enabled", [True, False])
def test_reflection_lists_the_services(launch: Callable[..., Any], enabled: bool) -> None:
    server = launch(reflection=enabled)
    run = server.channel.stream_stream(
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    if not enabled:
        with pytest.raises(grpc.RpcError) as raised:
            next(run(iter([request]), timeout=60))
        assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED
        return
    response = next(run(iter([request]), timeout=60))
    names = {s.name for s in response.list_services_response.service}
    assert names >= {*SERVICES[1:], "grpc.health.v1.Health"}


def test_the_tokenizer_streams_with_its_digest(launch: Callable[..., Any], tmp_path: Path) -> None:
    server = launch()
    run = server.channel.unary_stream(
        "/mlxrt.v1.ModelService/GetTokenizer",
        response_deserializer=model_pb2.GetTokenizerResponse.FromString,
    )
    with pytest.raises(grpc.RpcError) as raised:
        list(run(b"", timeout=60))
    assert server.refusal_of(raised.value).reason is Reason.FEATURE_UNSUPPORTED
    content = {"tokenizer.json": bytes(range(256)) * 10_000, "merges.txt": b""}
    for name, data in content.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    server.engine.tokenizer_folder = tmp_path
    files: dict[str, bytes] = {}
    for piece in run(b"", timeout=60):
        files[piece.file_name] = files.get(piece.file_name, b"") + piece.chunk
        assert len(piece.chunk) <= 1 << 20
        digest = hashlib.sha256(content[piece.file_name]).hexdigest()
        complete = len(files[piece.file_name]) == len(content[piece.file_name])
        assert piece.file_sha256 == (digest if complete else "")
    assert files == content


def test_a_defect_is_answered_without_its_text(server: Any) -> None:
    session = server.open()

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("a secret of the server")

    server.on_loop(lambda: setattr(server.server.runtime.pipeline, "run_step", broken))
    refusal = server.refused("Step", session.request())
    assert refusal.reason is Reason.INTERNAL_DEFECT and "secret" not in refusal.message
    assert len(refusal.metadata["defect_id"]) == 16
    assert refusal.metadata["defect_id"] in refusal.message
    assert session.state().next_step_number == 1
