"""A server in a process of its own, for demonstrations, benchmarks and the tests of a scheduler."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from mlxrt.addresses import OFF
from mlxrt.testing.faults import FaultSpec

_LOOK_AGAIN_MS = 100


def waiting_channel(address: str) -> grpc.Channel:
    """A channel to a server that may not listen yet: it looks again ten times a second, where
    gRPC's own waits for a second and more."""
    wait = [f"grpc.{which}_reconnect_backoff_ms" for which in ("initial", "min", "max")]
    options = [*((name, _LOOK_AGAIN_MS) for name in wait), ("grpc.use_local_subchannel_pool", 1)]
    return grpc.insecure_channel(address, options)


class ServerProcess:
    """`mlxrt serve` on a unix socket of its own; a context manager that waits until it serves.

    Attributes:
        address: where it listens, in gRPC's form.
        process: the process, once entered.
    """

    def __init__(
        self,
        arguments: Sequence[str] = (),
        *,
        start_timeout_s: float = 120.0,
        address: str | None = None,
        faults: Sequence[FaultSpec] = (),
    ) -> None:
        """Prepares the process.

        Args:
            arguments: of `mlxrt serve`, without `--address`. Metrics are off unless
                `metrics_address` is set among them.
            start_timeout_s: longest wait for it to serve.
            address: where to listen; None for a unix socket of its own.
            faults: what shall go wrong in it.
        """
        self._folder = tempfile.TemporaryDirectory(prefix="mlxrt-")
        self.address = address or f"unix:{self._folder.name}/server.sock"
        self._faults = faults
        self._log_path = Path(self._folder.name, "server.log")
        self._arguments = list(arguments)
        self._start_timeout_s = start_timeout_s
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> str:
        """What the server has written so far."""
        return self._log_path.read_text(errors="replace") if self._log_path.exists() else ""

    def __enter__(self) -> Self:
        command = [sys.executable, "-P", "-m", "mlxrt"]
        if self._faults:
            command[-1] = "mlxrt.testing.faulty_serve"
            command += [f"--fault={spec}" for spec in self._faults]
        command += ["serve", "--address", self.address]
        if not any(a.startswith("metrics_address=") for a in self._arguments):
            command += ["--set", f"metrics_address={OFF}"]
        with self._log_path.open("wb") as log:
            self.process = self._start(command + self._arguments, log)
        try:
            self._wait_until_serving(self.process)
        except BaseException:
            self.stop(signal.SIGKILL)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
        self._folder.cleanup()

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Sends a signal, waits for the end and returns the exit code."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    @staticmethod
    def _start(command: list[str], log: IO[bytes]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
        )

    def _wait_until_serving(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + self._start_timeout_s
        with waiting_channel(self.address) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            while time.monotonic() < deadline:
                if process.poll() is not None:
                    raise RuntimeError(f"the server ended with {process.returncode}:\n{self.log}")
                try:
                    answer = health.Check(health_pb2.HealthCheckRequest(), timeout=1)
                    if answer.status == health_pb2.HealthCheckResponse.SERVING:
                        return
                except grpc.RpcError:
                    pass
                time.sleep(0.05)
        raise RuntimeError(f"the server did not serve in {self._start_timeout_s} s:\n{self.log}")
