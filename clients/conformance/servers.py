"""The servers of servers.json: started once each, or given by address, and held to their facts."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import grpc
from matching import Captures
from stubs import Failed, call_rpc

START_TIMEOUT_S = 120.0
END_TIMEOUT_S = 60.0
FOLDER = Path(__file__).resolve().parent


class Server:
    """A server to run cases against; a context manager around its process, if it has one.

    Attributes:
        address: in gRPC's form.
        control: itself where the runner started it, else None.
    """

    def __init__(self, arguments: list[str] | None, address: str = "") -> None:
        """Prepares it.

        Args:
            arguments: the command that starts it, without its address; None: it runs already.
            address: where it runs.
        """
        self.address = address
        self.control: Server | None = self if arguments is not None else None
        self._arguments = arguments
        self._folder = tempfile.TemporaryDirectory(prefix="mlxrt-")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, facts: dict[str, Any]) -> None:
        """Starts it, waits until it serves and compares it with `facts`.

        Raises:
            RuntimeError: it does not start.
            Mismatch: it is another server than the cases need.
        """
        log = Path(self._folder.name, "log")
        if self._arguments is not None:
            self.address = f"unix:{self._folder.name}/s"
            command = [*self._arguments, "--address", self.address]
            with log.open("wb") as out:
                self._process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT
                )
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while True:
            ended = self._process is not None and self._process.poll() is not None
            if ended or time.monotonic() > deadline_s:
                text = log.read_text(errors="replace") if log.exists() else ""
                raise RuntimeError(f"the server does not serve: {self._arguments}\n{text}")
            # A channel of its own each time: no back-off between attempts.
            with grpc.insecure_channel(self.address) as channel:
                try:
                    model = call_rpc(channel, "ModelService.GetModelInfo", {})
                    server = call_rpc(channel, "ModelService.GetServerInfo", {})
                    break
                except Failed:
                    time.sleep(0.05)
        Captures("", {}).match(facts, {"model": model, "server": server}, "facts")

    def drain(self) -> None:
        """Sends SIGTERM."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)

    def exit_code(self) -> int:
        """Waits for the end and returns the exit code."""
        assert self._process is not None
        return self._process.wait(timeout=END_TIMEOUT_S)

    def stop(self) -> None:
        """Ends the process, if the runner started one."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._folder.cleanup()


class Servers:
    """The servers by name; a fresh one for each case where servers.json says so."""

    def __init__(self, table: dict[str, Any], addresses: dict[str, str], mlxrt: str | None) -> None:
        """Prepares them.

        Args:
            table: servers.json.
            addresses: of servers that run already, by name.
            mlxrt: the command line that is `mlxrt`; None: start none.
        """
        self._table = table
        self._addresses = addresses
        self._mlxrt = mlxrt
        self._running: dict[str, Server] = {}

    def available(self, name: str) -> bool:
        """Whether there is such a server, or can be."""
        return name in self._addresses or (
            self._mlxrt is not None and bool(self._table[name]["command"])
        )

    def owns(self, name: str) -> bool:
        """Whether the runner starts it, and so may end it."""
        return name not in self._addresses

    def is_fresh(self, name: str) -> bool:
        """Whether each case needs one of its own."""
        return bool(self._table[name].get("fresh"))

    def get(self, name: str) -> Server:
        """Returns a server that serves."""
        if name in self._running:
            return self._running[name]
        entry = self._table[name]
        if name in self._addresses:
            server = Server(None, self._addresses[name])
        else:
            assert self._mlxrt is not None
            program, *arguments = entry["command"]
            start: list[str] = {
                "mlxrt": shlex.split(self._mlxrt),
                "faulty.py": [sys.executable, str(FOLDER / "faulty.py")],
            }[program]
            server = Server([*start, *arguments])
        try:
            server.start(entry["facts"])
        except BaseException:
            server.stop()
            raise
        self._running[name] = server
        return server

    def drop(self, name: str) -> None:
        """Ends one."""
        if name in self._running:
            self._running.pop(name).stop()

    def stop(self) -> None:
        """Ends all."""
        for name in list(self._running):
            self.drop(name)
