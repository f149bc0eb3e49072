"""A real server over the fake engine, in a thread, on a unix socket; calls as raw bytes; every
refusal's form checked."""

from __future__ import annotations

import asyncio
import itertools
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from queue import Queue
from typing import Any, TypeVar

import grpc
import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from mlxrt_client.v1 import error_pb2, execution_pb2, sequence_pb2, session_pb2, step_pb2

from mlxrt.config import Settings, load_settings
from mlxrt.core.core import Core
from mlxrt.errors import Reason
from mlxrt.server import ExitCode, Server, ServerState
from mlxrt.telemetry.tracing import StepTracer
from mlxrt.testing import FakeEngine
from mlxrt.testing.waiting import wait_until

T = TypeVar("T")
DEFAULTS = {"fake": True, "metrics_address": "off"}
SERVICES = {
    "SessionService": (
        "OpenSession", "RenewSession", "ResumeSession", "GetSession", "CloseSession",
    ),
    "ExecutionService": (
        "AllocateBlocks", "FreeBlocks", "Prefill", "Decode", "Step", "Execute", "FreeSequences",
        "SampleStep", "ExportBlocks", "ImportBlocks",
    ),
    "ModelService": (
        "GetServerInfo", "GetModelInfo", "GetTokenizer", "LoadAdapter", "UnloadAdapter",
    ),
}  # fmt: skip
PATHS = {rpc: f"/mlxrt.v1.{service}/{rpc}" for service, rpcs in SERVICES.items() for rpc in rpcs}


@dataclass(frozen=True)
class Refusal:
    """What a failed call ended with."""

    code: grpc.StatusCode
    reason: Reason
    fields: tuple[str, ...]
    metadata: dict[str, str]
    retry_ms: int | None
    message: str


def refusal_of(error: grpc.RpcError) -> Refusal:
    """The refusal, its standard form and its flat form proven equal."""
    trailers = dict(error.trailing_metadata())
    flat = error_pb2.Error.FromString(trailers["mlxrt-error-bin"])
    status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
    infos, violations, retries = [], [], []
    for detail in status.details:
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            info = error_details_pb2.ErrorInfo()
            assert detail.Unpack(info)
            infos.append(info)
        elif detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            bad = error_details_pb2.BadRequest()
            assert detail.Unpack(bad)
            violations += bad.field_violations
        else:
            retry = error_details_pb2.RetryInfo()
            assert detail.Unpack(retry)
            retries.append(retry.retry_delay.ToMilliseconds())
    (info,) = infos
    assert info.domain == "mlxrt"
    assert status.code == flat.code == error.code().value[0]
    assert status.message == flat.message == error.details()
    assert "ERROR_REASON_" + info.reason == error_pb2.ErrorReason.Name(flat.reason)
    assert dict(info.metadata) == dict(flat.metadata)
    assert [(v.field, v.description) for v in violations] == [
        (v.field, v.description) for v in flat.field_violations
    ]
    assert bool(retries) == flat.HasField("retry_delay")
    reason = Reason[info.reason]
    assert int(reason.code) == status.code
    return Refusal(
        error.code(), reason, tuple(v.field for v in violations), dict(info.metadata),
        retries[0] if retries else None, error.details(),
    )  # fmt: skip


class Stream:
    """An Execute call that a test feeds."""

    def __init__(self, channel: grpc.Channel, **options: Any) -> None:
        self._requests: Queue[Any] = Queue()
        run = channel.stream_stream(
            "/mlxrt.v1.ExecutionService/Execute",
            request_serializer=lambda m: m if isinstance(m, bytes) else m.SerializeToString(),
            response_deserializer=execution_pb2.ExecuteResponse.FromString,
        )
        self.call = run(self._feed(), timeout=60, **options)

    def _feed(self) -> Iterator[Any]:
        while (request := self._requests.get()) is not None:
            yield request

    def send(self, request: Any) -> None:
        """Sends a message; a StepRequest is wrapped."""
        if isinstance(request, step_pb2.StepRequest):
            request = execution_pb2.ExecuteRequest(step=request)
        self._requests.put(request)

    def receive(self) -> execution_pb2.ExecuteResponse:
        """The next answer."""
        return next(self.call)

    def finish(self) -> None:
        """Half-closes."""
        self._requests.put(None)


class Harness:
    """One server in a thread and a channel to it."""

    refusal_of = staticmethod(refusal_of)

    def __init__(
        self, settings: Settings, engine: FakeEngine, tracer: StepTracer | None = None
    ) -> None:
        self.engine = engine
        self.tracer = tracer
        self.settings = settings
        self.exit_code: Future[ExitCode] = Future()
        self._request_ids = itertools.count(1)
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))
        self._thread.start()
        assert self._started.wait(60), "the server did not start"
        self.channel = grpc.insecure_channel(
            self.server.address, options=[("grpc.max_send_message_length", -1)]
        )

    async def _serve(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.server = Server(self.settings, self.engine, tracer=self.tracer)
        await self.server.start()
        self._started.set()
        self.exit_code.set_result(await self.server.wait())

    def on_loop(self, function: Callable[[], T]) -> T:
        """`function()` on the server's event loop."""

        async def run() -> T:
            return function()

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(60)

    def close(self) -> ExitCode:
        """Drains without waiting and answers the exit code."""
        if not self.exit_code.done():
            self.loop.call_soon_threadsafe(lambda: (self.server.drain(), self.server.drain()))
        code = self.exit_code.result(60)
        self._thread.join(60)
        self.channel.close()
        return code

    @property
    def core(self) -> Core:
        """The core; touch it through on_loop alone."""
        assert self.server.runtime is not None
        return self.server.runtime.core

    def digest(self) -> bytes:
        """The digest of the core's state, its invariants proven."""
        self.on_loop(self.core.check_integrity)
        return self.on_loop(self.core.digest)

    def wait_for(self, state: ServerState) -> None:
        """Waits until the server is in `state`."""
        reached = threading.Event()
        self.on_loop(
            lambda: self.server.lifecycle.subscribe(
                lambda now: reached.set() if now is state else None
            )
        )
        assert reached.wait(60)

    def call(self, rpc: str, request: Message | bytes, **options: Any) -> Message:
        """A unary call; raises grpc.RpcError."""
        response = response_type(rpc)
        data = request if isinstance(request, bytes) else request.SerializeToString()
        run = self.channel.unary_unary(PATHS[rpc], response_deserializer=response.FromString)
        return run(data, timeout=options.pop("timeout", 60), **options)

    def refused(self, rpc: str, request: Message | bytes) -> Refusal:
        """The refusal of a unary call; fails if it is answered."""
        with pytest.raises(grpc.RpcError) as raised:
            self.call(rpc, request)
        return refusal_of(raised.value)

    def request_id(self) -> str:
        """A fresh request id."""
        return f"request-{next(self._request_ids)}"

    def stream(self, **options: Any) -> Stream:
        """A new Execute call."""
        return Stream(self.channel, **options)

    def open(self, ttl_ms: int = 0) -> SessionDriver:
        """A new session."""
        answer = self.call(
            "OpenSession",
            session_pb2.OpenSessionRequest(request_id=self.request_id(), lease_ttl_ms=ttl_ms),
        )
        return SessionDriver(self, answer.session)


class SessionDriver:
    """A session as a scheduler drives it."""

    def __init__(self, harness: Harness, ref: session_pb2.SessionRef) -> None:
        self.harness = harness
        self.ref = ref
        self.steps = itertools.count(1)

    def allocate(self, count: int, group: int = 0) -> list[int]:
        """Leases blocks."""
        answer = self.harness.call(
            "AllocateBlocks",
            execution_pb2.AllocateBlocksRequest(
                session=self.ref, request_id=self.harness.request_id(),
                counts=[{"group": group, "count": count}],
            ),
        )  # fmt: skip
        return list(answer.blocks[0].block_ids)

    def state(self, **options: bool) -> session_pb2.GetSessionResponse:
        """GetSession."""
        request = session_pb2.GetSessionRequest(session=self.ref, **options)
        return self.harness.call("GetSession", request)

    def end_lease(self) -> None:
        """Has the lease run out by now, however slow the machine is; the reaper's next look ends
        the session."""
        held = self.harness.core._state.sessions[self.ref.session_id]
        self.harness.on_loop(lambda: setattr(held, "expiry_ms", 0))

    def wait_for_inflight(self, count: int = 1) -> None:
        """Waits until `count` steps at least are accepted and not answered."""
        wait_until(lambda: len(self.state().inflight_step_numbers) >= count)

    def request(self, **fields: Any) -> step_pb2.StepRequest:
        """A step request; the next number unless `step_number` is among the fields."""
        if "step_number" not in fields:
            fields["step_number"] = next(self.steps)
        return step_pb2.StepRequest(session=self.ref, **fields)

    def step(self, **fields: Any) -> step_pb2.StepResponse:
        """One step, unary."""
        return self.harness.call("Step", self.request(**fields))

    def prefill_fields(
        self, sequence_id: int, prompt: list[int], blocks: list[int], **sampling: Any
    ) -> dict[str, Any]:
        """The fields of a step that registers a sequence and prefills all of it."""
        new = sequence_pb2.NewSequence(
            sequence_id=sequence_id, prompt_token_ids=prompt,
            tables=[{"group": 0, "block_ids": blocks}],
        )  # fmt: skip
        if sampling:
            new.sampling.CopyFrom(sequence_pb2.NewSequence(sampling=sampling).sampling)
        item = step_pb2.StepItem(
            sequence_id=sequence_id, row_count=len(prompt), sample=True,
            registered=sequence_pb2.RegisteredTokens(),
        )  # fmt: skip
        return {"new_sequences": [new], "items": [item]}

    def start(self, sequence_id: int, prompt: list[int], room: int = 16, **sampling: Any) -> int:
        """Registers and prefills a sequence with blocks for `room` more tokens; answers its first
        token."""
        size = self.harness.engine.facts.block_size
        blocks = self.allocate(-(-(len(prompt) + room) // size))
        reply = self.step(**self.prefill_fields(sequence_id, prompt, blocks, **sampling))
        (token,) = reply.results[0].token_ids
        return token


def response_type(rpc: str) -> Any:
    """The response message of a unary rpc."""
    from mlxrt_client.v1 import model_pb2

    for module in (session_pb2, execution_pb2, step_pb2, model_pb2):
        if hasattr(module, f"{rpc}Response"):
            return getattr(module, f"{rpc}Response")
    raise KeyError(rpc)


@pytest.fixture
def launch() -> Iterator[Callable[..., Harness]]:
    """Starts servers: `launch(engine, tracer, **settings)`; each is drained after the test and must
    then exit 0 unless lost."""
    running: list[Harness] = []
    with tempfile.TemporaryDirectory(prefix="mlxrt") as folder:

        def start(
            engine: FakeEngine | None = None, tracer: StepTracer | None = None, **explicit: Any
        ) -> Harness:
            address = f"unix:{Path(folder) / f'{len(running)}.sock'}"
            settings = load_settings(None, **{**DEFAULTS, "address": address, **explicit})
            engine = engine or FakeEngine(num_blocks=64, block_size=4)
            harness = Harness(settings, engine, tracer)
            running.append(harness)
            return harness

        yield start
        for harness in running:
            code = harness.close()
            lost = harness.server.lifecycle.loss is not None
            assert lost or code is ExitCode.OK


@pytest.fixture
def server(launch: Callable[..., Harness]) -> Harness:
    """A server over a small fake model: vocabulary 4096, 63 blocks of 4 positions."""
    return launch()


@pytest.fixture(scope="session")
def node_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder with the Node programs and their packages, installed unless they are
    there."""
    if shutil.which("node") is None:
        pytest.skip("there is no `node` on PATH")
    source = Path(__file__).resolve().parents[2] / "clients" / "node"
    if (source / "node_modules").is_dir():
        return source
    folder = tmp_path_factory.mktemp("node")
    for name in ("package.json", "scheduler.mjs", "conformance.mjs"):
        shutil.copy(source / name, folder)
    command = ["npm", "install", "--no-audit", "--no-fund", "--no-package-lock", "--omit=dev"]
    subprocess.run(command, cwd=folder, check=True, timeout=300)
    return folder
