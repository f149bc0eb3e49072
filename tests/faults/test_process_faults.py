"""Faults of whole processes: killed, stopped, cut off, without a disk for the log."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from random import Random
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from mlxrt_client.errors import DeviceLostError, SessionLostError, TransportError
from mlxrt_client.v1 import CloseSessionRequest

from mlxrt.testing import FakeEngine
from mlxrt.testing.checked_session import CheckedSession
from mlxrt.testing.faults import ENGINE_POINTS, Fault, FaultSpec, Point
from mlxrt.testing.oracle import FakeOracle
from mlxrt.testing.server_process import ServerProcess
from mlxrt.testing.server_thread import ServerThread
from mlxrt.testing.waiting import wait_until

BLOCKS = 64
FAKE_POINTS = tuple(p for p in Point if p not in ENGINE_POINTS or p is Point.DEVICE)
ARGUMENTS = ["--fake", "--num-blocks", str(BLOCKS), "--set", "log_format=json"]
TTL_MS = 1_500

Start = Callable[..., ServerProcess]

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="it reads /proc and writes to /dev/full"
)


@pytest.fixture
def start(socket_folder: Path) -> Iterator[Start]:
    """Starts servers on one address; those that still run after the test are killed."""
    address = f"unix:{socket_folder / 's'}"
    with ExitStack() as stack:

        def begin(*faults: FaultSpec, more: tuple[str, ...] = (), **options: Any) -> ServerProcess:
            server = ServerProcess(
                [*ARGUMENTS, *more], **{"address": address, "faults": faults, **options}
            )
            stack.enter_context(server)
            assert server.process is not None
            stack.callback(server.process.kill)
            return server

        yield begin


def session_on(server: Any, seed: int = 7, **options: Any) -> CheckedSession:
    """An open session."""
    session = CheckedSession(server.address, FakeOracle(), Random(seed), **options)
    session.open()
    return session


def check_all_free(server: Any, ttl_ms: int = 0) -> None:
    """Proves that the whole pool can be leased, once leases of `ttl_ms` are over."""
    probe = CheckedSession(server.address, FakeOracle(), Random(1), tokens_max=24, lines=1)
    end_s = time.monotonic() + ttl_ms / 1000 + 60
    while True:
        probe.open()
        free = probe.send(probe.plan()).free_blocks[0].count
        held = sum(len(table.block_ids) for table in probe.state().leased_blocks)
        probe.call(probe.sessions.CloseSession, CloseSessionRequest(session=probe.ref))
        if free + held == BLOCKS - 1:
            break
        assert time.monotonic() < end_s, f"{BLOCKS - 1 - free - held} blocks are not free"
        time.sleep(0.1)
    probe.disconnect()


def counts_of(server: ServerProcess) -> tuple[int, int]:
    """File descriptors and threads of the server."""
    assert server.process is not None
    process = Path("/proc", str(server.process.pid))
    return len(list((process / "fd").iterdir())), len(list((process / "task").iterdir()))


def until_stopped(server: ServerProcess) -> None:
    """Waits until the server's process is stopped by SIGSTOP."""
    assert server.process is not None
    stat = Path("/proc", str(server.process.pid), "stat")
    end_s = time.monotonic() + 60
    while stat.read_text().rpartition(")")[2].split()[0] != "T":
        assert time.monotonic() < end_s
        time.sleep(0.01)


@pytest.mark.parametrize("point", FAKE_POINTS)
def test_a_server_killed_at_a_point_is_gone_and_its_successor_knows_nothing(
    start: Start, point: Point
) -> None:
    first = start(FaultSpec(point, Fault.KILL, hit=5))
    over_stream = FAKE_POINTS.index(point) % 2 == 0
    mate, session = session_on(first), session_on(first, 8, over_stream=over_stream)
    for _ in range(2):
        for each in (mate, session):
            each.advance()
    step = session.plan()
    with pytest.raises(TransportError) as raised:
        session.send(step)
    assert raised.value.code == 14
    assert first.process is not None and first.process.wait(60) == -signal.SIGKILL
    with ServerThread(FakeEngine(num_blocks=BLOCKS), address=first.address) as second:
        session.connect()
        with pytest.raises(SessionLostError) as lost:
            session.send(step)
        assert lost.value.reason == "SESSION_UNKNOWN"
        for each in (mate, session):
            each.connect()
            each.open()
            each.advance()
            each.close()
            assert each.statuses["UNKNOWN"] == 0
        assert second.on_loop(lambda runtime: runtime.holds_nothing)


@pytest.mark.parametrize("point", FAKE_POINTS)
def test_a_server_stopped_beyond_a_lease_goes_on(start: Start, point: Point) -> None:
    server = start(FaultSpec(point, Fault.STOP, hit=3))
    assert server.process is not None
    session = session_on(server, ttl_ms=TTL_MS)
    for _ in range(2):
        session.advance()
    answers: list[Any] = []
    step = session.plan()
    caller = threading.Thread(target=lambda: answers.append(session.send(step)))
    caller.start()
    until_stopped(server)
    time.sleep(1.2 * TTL_MS / 1000)
    server.process.send_signal(signal.SIGCONT)
    caller.join()
    session.settle(step, answers[0])
    assert session.statuses["UNKNOWN"] == 0
    session.advance()
    session.close()
    check_all_free(server)
    assert server.stop() == 0


def test_a_stopped_client_loses_its_lease_and_nobody_else_does(start: Start) -> None:
    server = start()
    before = counts_of(server)
    code = VICTIM.format(address=server.address, ttl_ms=TTL_MS)
    victim = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert victim.stdout is not None and victim.stdout.readline().strip() == "steps"
    victim.send_signal(signal.SIGSTOP)
    mate = session_on(server)
    wait_until(lambda: all_free_beside(mate))
    victim.send_signal(signal.SIGCONT)
    assert victim.wait(60) == 3, "a client that comes back is told that its session is gone"
    victim.stdout.close()
    mate.close()
    assert mate.statuses == {"OK": mate.statuses["OK"]}
    check_all_free(server)
    settle_counts(server, before)
    assert server.stop() == 0


VICTIM = """
import sys
from random import Random
from mlxrt_client.errors import SessionLostError
from mlxrt.testing.checked_session import CheckedSession
from mlxrt.testing.oracle import FakeOracle
session = CheckedSession({address!r}, FakeOracle(), Random(3), ttl_ms={ttl_ms})
session.open()
for _ in range(5):
    session.advance()
print("steps", flush=True)
try:
    while True:
        session.advance()
except SessionLostError as error:
    assert error.reason == "SESSION_UNKNOWN"
    sys.exit(3)
"""


def all_free_beside(mate: CheckedSession) -> bool:
    """Has the mate make a step; answers whether its blocks are the only ones leased."""
    step = mate.plan()
    response = mate.send(step)
    mate.settle(step, response)
    held = sum(len(table.block_ids) for table in mate.state().leased_blocks)
    return response.free_blocks[0].count + held == BLOCKS - 1


def settle_counts(server: ServerProcess, before: tuple[int, int]) -> None:
    """Waits until the server has no more file descriptors and threads than before."""
    end_s = time.monotonic() + 60
    while any(now > then for now, then in zip(counts_of(server), before, strict=True)):
        assert time.monotonic() < end_s, f"{counts_of(server)} now, {before} before"
        time.sleep(0.1)


def test_a_log_on_a_full_disk_stops_nobody(socket_folder: Path) -> None:
    address = f"unix:{socket_folder / 's'}"
    command = [sys.executable, "-P", "-m", "mlxrt", "serve", *ARGUMENTS, "--address", address]
    with Path("/dev/full").open("wb") as full:
        process = subprocess.Popen(command, stdout=full, stderr=full)
    try:
        session = CheckedSession(address, FakeOracle(), Random(2))
        end_s = time.monotonic() + 60
        while True:
            try:
                session.open()
                break
            except TransportError:
                assert process.poll() is None, f"the server ended with {process.returncode}"
                assert time.monotonic() < end_s
                time.sleep(0.1)
        for _ in range(20):
            session.advance()
        session.close()
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()


def test_a_thousand_silent_connections_cost_a_step_nothing(start: Start) -> None:
    server = start()
    before = counts_of(server)
    path = server.address.removeprefix("unix:")
    silent = []
    for index in range(300):
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(path)
        if index % 2:  # half say half of what opens HTTP/2
            connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n"[: index % 24])
        silent.append(connection)
    session = session_on(server)
    for _ in range(50):
        session.advance()
    session.close()
    for connection in silent:
        connection.close()
    check_all_free(server)
    settle_counts(server, before)
    assert server.stop() == 0


def test_a_hung_device_shows_in_health_and_ends_with_the_drain(start: Start) -> None:
    server = start(
        FaultSpec(Point.DEVICE, Fault.DELAY, hit=2, delay_ms=300_000),
        # A step that takes time is what gives the fake engine a thread.
        more=tuple(f"--set={each}" for each in (
            "stall_seconds=0.3", "drain_seconds=0.5", "fake_model.step_ms=1")),
    )
    session = session_on(server)
    session.advance()
    with pytest.raises(TransportError):
        session.send(session.plan(), timeout_s=0.8)
    end_s = time.monotonic() + 60
    while health_of(server) != "NOT_SERVING":
        assert time.monotonic() < end_s
        time.sleep(0.05)
    session.state()  # calls that need no device are answered
    assert server.process is not None
    server.process.send_signal(signal.SIGTERM)
    with pytest.raises((DeviceLostError, TransportError)):
        session.send(session.plan(), timeout_s=60)
    session.disconnect()
    assert server.process.wait(60) == 6


def health_of(server: ServerProcess) -> str:
    """What grpc.health.v1 says."""
    with grpc.insecure_channel(server.address) as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))


def test_no_configuration_reaches_a_fault() -> None:
    environment = {**os.environ, "MLXRT_FAULTS": "commit:kill"}
    for options, env in (
        (["--fault", "commit:kill"], None), (["--set", "faults=commit:kill"], None),
        ([], environment),
    ):  # fmt: skip
        command = [sys.executable, "-m", "mlxrt", "serve", "--fake", *options]
        done = subprocess.run(command, capture_output=True, timeout=60, env=env)
        assert done.returncode == 2
