"""Servers and clients as processes: SIGTERM, SIGKILL, exit codes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest
from mlxrt_client.v1 import error_pb2, execution_pb2, session_pb2, step_pb2

from mlxrt.testing import FakeModel
from mlxrt.testing.server_process import ServerProcess, waiting_channel

PROMPT = [5, 9, 2, 77, 1023]
BLOCK = 4
BLOCKS = 64
STEP_S = 0.1
STEPS_BESIDE_THE_VICTIM = 8
TTL_S = 2.0


class Process(ServerProcess):
    """`mlxrt serve` with a small pool, and a channel to it."""

    def __init__(self, step_ms: float = 0, *, fake: bool = True, **settings: float) -> None:
        arguments = ["--block-size", str(BLOCK), "--num-blocks", str(BLOCKS)]
        if fake:
            arguments.append("--fake")
        options = {"fake_model.step_ms": step_ms, "log_format": "json", **settings}
        for key, value in options.items():
            arguments += ["--set", f"{key}={value}"]
        super().__init__(arguments)
        self.channel = grpc.insecure_channel(self.address)

    def call(self, rpc: str, request: object, response: type) -> object:
        """A unary call."""
        service = "Session" if rpc.endswith("Session") else "Execution"
        run = self.channel.unary_unary(f"/mlxrt.v1.{service}Service/{rpc}")
        return response.FromString(run(request.SerializeToString(), timeout=60))

    def open(self, ttl_ms: int = 0) -> session_pb2.SessionRef:
        """A new session."""
        request = session_pb2.OpenSessionRequest(
            request_id=os.urandom(8).hex(), lease_ttl_ms=ttl_ms
        )
        return self.call("OpenSession", request, session_pb2.OpenSessionResponse).session

    def refusal_of_a_session(self) -> int:
        """The reason why a session without a request id is not opened."""
        with pytest.raises(grpc.RpcError) as refused:
            self.call(
                "OpenSession",
                session_pb2.OpenSessionRequest(),
                session_pb2.OpenSessionResponse,
            )
        data = dict(refused.value.trailing_metadata())["mlxrt-error-bin"]
        return error_pb2.Error.FromString(data).reason

    def step(self, session: session_pb2.SessionRef, number: int, **fields: object) -> object:
        """One step."""
        request = step_pb2.StepRequest(session=session, step_number=number, **fields)
        reply = self.call("Step", request, step_pb2.StepResponse)
        self.step_free_blocks = reply.free_blocks[0].count
        return reply

    def close(self, session: session_pb2.SessionRef) -> None:
        """CloseSession."""
        request = session_pb2.CloseSessionRequest(session=session)
        self.call("CloseSession", request, session_pb2.CloseSessionResponse)

    def start(self, session: session_pb2.SessionRef, blocks: int) -> int:
        """Prefills sequence 1 as step 1; answers its token."""
        request = execution_pb2.AllocateBlocksRequest(
            session=session, request_id="a", counts=[{"group": 0, "count": blocks}]
        )
        answer = self.call("AllocateBlocks", request, execution_pb2.AllocateBlocksResponse)
        new = {"sequence_id": 1, "prompt_token_ids": PROMPT, "tables": answer.blocks}
        item = {"sequence_id": 1, "row_count": len(PROMPT), "sample": True, "registered": {}}
        return self.step(session, 1, new_sequences=[new], items=[item]).results[0].token_ids[0]

    def stop(self, number: int = signal.SIGTERM) -> int:
        """As `ServerProcess.stop`; no line of the log may be an error."""
        code = super().stop(number)
        self.channel.close()
        assert '"error"' not in self.log
        return code


@pytest.fixture
def start() -> Iterator[Callable[..., Process]]:
    """Starts servers; those that still run after the test are killed."""
    with ExitStack() as running:

        def begin(**options: float) -> Process:
            server = running.enter_context(Process(**options))
            running.callback(server.process.kill)
            return server

        yield begin


VICTIM = """
import itertools, sys, threading, grpc
from mlxrt_client.v1 import execution_pb2, session_pb2, step_pb2
channel = grpc.insecure_channel(sys.argv[1])
def call(service, rpc, request, response):
    run = channel.unary_unary(f"/mlxrt.v1.{service}Service/{rpc}")
    return response.FromString(run(request.SerializeToString()))
request = session_pb2.OpenSessionRequest(request_id="victim", lease_ttl_ms=int(sys.argv[2]))
session = call("Session", "OpenSession", request, session_pb2.OpenSessionResponse).session
request = execution_pb2.AllocateBlocksRequest(
    session=session, request_id="b", counts=[{"group": 0, "count": 30}])
blocks = call("Execution", "AllocateBlocks", request, execution_pb2.AllocateBlocksResponse).blocks
new = {"sequence_id": 1, "prompt_token_ids": [8] * 60, "tables": blocks}
item = {"sequence_id": 1, "row_count": 60, "sample": True, "registered": {}}
def step(number, **fields):
    return step_pb2.StepRequest(session=session, step_number=number, **fields)
call("Execution", "Step", step(1, new_sequences=[new], items=[item]), step_pb2.StepResponse)
run = channel.stream_stream("/mlxrt.v1.ExecutionService/Execute")
room = threading.Semaphore(2)
def requests():
    for number in itertools.count(2):
        room.acquire()
        message = execution_pb2.ExecuteRequest(step=step(number, decode_sequence_ids=[1]))
        yield message.SerializeToString()
for answer in run(requests()):
    assert execution_pb2.ExecuteResponse.FromString(answer).step.token_ids
    print("step", flush=True)
    room.release()
"""


def alone(server: Process, count: int) -> list[int]:
    """The first `count` tokens after PROMPT, in a session that has the server to itself."""
    session = server.open()
    tokens = [server.start(session, blocks=BLOCKS // 4)]
    for number in range(2, count + 1):
        tokens += server.step(session, number, decode_sequence_ids=[1]).token_ids
    server.close(session)
    return tokens


@pytest.mark.parametrize("engine", ["fake", "bundled"])
def test_a_killed_clients_blocks_come_back_and_nobody_else_notices(
    start: Callable[..., Process], engine: str
) -> None:
    server = start(step_ms=1000 * STEP_S) if engine == "fake" else start(fake=False)
    expected = alone(server, 1 + STEPS_BESIDE_THE_VICTIM)
    session = server.open(ttl_ms=60_000)
    tokens = [server.start(session, blocks=BLOCKS // 4)]
    ours = BLOCKS - 1 - BLOCKS // 4
    victim = subprocess.Popen(
        [sys.executable, "-c", VICTIM, server.address, str(int(1000 * TTL_S))],
        stdout=subprocess.PIPE,
    )
    assert victim.stdout is not None and victim.stdout.readline() == b"step\n"
    # It keeps two steps in flight, so one is running at any time.
    for number in range(2, 2 + STEPS_BESIDE_THE_VICTIM):
        if number == 2 + STEPS_BESIDE_THE_VICTIM // 2:
            assert server.step_free_blocks == ours - 30
            victim.send_signal(signal.SIGKILL)
            killed_s = time.monotonic()
        tokens += server.step(session, number, decode_sequence_ids=[1]).token_ids
    assert victim.wait() == -signal.SIGKILL
    while server.step_free_blocks < ours:
        assert time.monotonic() - killed_s < 60
        number += 1
        server.step(session, number)
        time.sleep(0.01)
    assert tokens == expected and server.step_free_blocks == ours
    if engine == "fake":
        model = FakeModel(4096, 4096, BLOCK, BLOCKS, (0,))
        assert tokens[-1] == model.expected_token([*PROMPT, *tokens[:-1]])
    server.close(session)
    assert server.stop() == 0


def test_sigterm_drains_under_load(start: Callable[..., Process]) -> None:
    server = start(step_ms=30)
    session = server.open()
    tokens = [*PROMPT, server.start(session, blocks=15)]
    model = FakeModel(4096, 4096, BLOCK, BLOCKS, (0,))
    server.process.send_signal(signal.SIGTERM)
    for number in range(2, 22):
        reply = server.step(session, number, decode_sequence_ids=[1])
        assert reply.token_ids[0] == model.expected_token(tokens)
        tokens.append(reply.token_ids[0])
    with pytest.raises(grpc.RpcError) as raised:
        server.open()
    assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
    assert server.process.poll() is None
    server.close(session)
    assert server.process.wait(60) == 0
    assert not Path(server.address.removeprefix("unix:")).exists()


def test_a_second_signal_ends_the_wait(
    start: Callable[..., Process], wait_until: Callable[..., None]
) -> None:
    server = start()
    session = server.open()
    server.start(session, blocks=2)
    server.process.send_signal(signal.SIGINT)
    wait_until(lambda: server.refusal_of_a_session() == error_pb2.ERROR_REASON_DRAINING)
    assert server.process.poll() is None
    assert server.stop() == 0


def test_the_drain_ends_at_its_limit(start: Callable[..., Process]) -> None:
    server = start(drain_seconds=0.4)
    server.start(server.open(), blocks=2)
    started_s = time.monotonic()
    assert server.stop() == 0
    assert 0.4 <= time.monotonic() - started_s < 60


LOSING = """
import sys
from mlxrt.config import load_settings
from mlxrt.server import run_server
from mlxrt.telemetry import configure_logs
from mlxrt.testing import FakeEngine, FakeFaults
engine = FakeEngine(threaded=True, faults=FakeFaults(lose_ticket=1), block_size=4)
configure_logs()
settings = load_settings(
    fake=True, address=sys.argv[1], log_format="json", metrics_address="off")
assert not any(name == "mlx" or name.startswith("mlx.") for name in sys.modules)
sys.exit(run_server(settings, engine, on_listening=lambda address: print(address, flush=True)))
"""


def test_device_loss_exits_with_6(socket_folder: Path) -> None:
    address = f"unix:{socket_folder / 'l.sock'}"
    process = subprocess.Popen(
        [sys.executable, "-c", LOSING, address], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline().strip() == address
    with waiting_channel(address) as channel:
        run = channel.unary_unary("/mlxrt.v1.SessionService/OpenSession")
        request = session_pb2.OpenSessionRequest(request_id="r")
        answer = run(request.SerializeToString(), timeout=60, wait_for_ready=True)
        session = session_pb2.OpenSessionResponse.FromString(answer).session
        run = channel.unary_unary("/mlxrt.v1.ExecutionService/Step")
        step = step_pb2.StepRequest(session=session, step_number=1)
        reply = step_pb2.StepResponse.FromString(run(step.SerializeToString(), timeout=60))
    assert reply.error.reason == error_pb2.ERROR_REASON_DEVICE_LOST
    assert process.wait(60) == 6


@pytest.mark.parametrize(
    "options",
    [
        ["--address", "0.0.0.0:50061"], ["--set", "oops=1"], ["--set", "block_size=0"],
        ["--set", "oops"], ["--set", "fake.oops=1"],
    ],
)  # fmt: skip
def test_a_bad_configuration_exits_with_2(options: list[str]) -> None:
    command = [sys.executable, "-m", "mlxrt", "serve", "--fake", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr and options[1].partition("=")[0] in done.stderr
