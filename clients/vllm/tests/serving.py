"""Servers and mlx-lm, in an environment of their own: `TEST_SERVER_PYTHON` names its interpreter.

What runs in this process needs vLLM and mlxrt_client alone.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlxrt_client import Client, RetryPolicy
from mlxrt_client.errors import MlxrtError

TESTS = Path(__file__).parent
BUNDLED = TESTS.parents[2] / "mlxrt" / "bundled" / "qwen3-python-4m"
START_TIMEOUT_S = 120.0


def server_python() -> str:
    """The interpreter of the server's environment."""
    python = os.environ.get("TEST_SERVER_PYTHON", "")
    assert python, "set TEST_SERVER_PYTHON to the interpreter of an environment with mlxrt"
    return python


class Server:
    """`mlxrt serve` on a unix socket of its own; it may be killed and started again there."""

    def __init__(self, folder: Path, arguments: Sequence[str]) -> None:
        """Prepares the process; `start` starts it."""
        self.address = f"unix:{folder}/server.sock"
        self.log = folder / "server.log"
        self._arguments = list(arguments)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it and waits until it serves."""
        command = [server_python(), "-P", "-m", "mlxrt", "serve", "--address", self.address]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command + self._arguments,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        deadline_s = time.monotonic() + START_TIMEOUT_S
        with Client(self.address, retry=RetryPolicy(patience_s=0)) as client:
            while True:
                try:
                    client.model_info()
                    return
                except MlxrtError as error:
                    ended = self.process.poll() is not None
                    if ended or time.monotonic() > deadline_s:
                        raise RuntimeError(f"no server: {self.log.read_text()}") from error
                time.sleep(0.1)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Sends a signal and waits for the end."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(timeout=60)


@contextmanager
def serving(*arguments: str) -> Iterator[Server]:
    """A server with these arguments of `mlxrt serve`."""
    with tempfile.TemporaryDirectory(prefix="mlxrt-") as folder:
        server = Server(Path(folder), arguments)
        try:
            server.start()
            yield server
        finally:
            if server.process is not None:
                server.stop(signal.SIGKILL)


def dense_runs(model: Path, runs: Sequence[tuple[list[int], list[int]]]) -> list[dict[str, Any]]:
    """mlx-lm's dense run over each prompt and its tokens: see dense.py."""
    request = json.dumps([[len(prompt), prompt + tokens] for prompt, tokens in runs])
    done = subprocess.run(
        [server_python(), "-P", str(TESTS / "dense.py"), str(model)],
        input=request,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    answer: list[dict[str, Any]] = json.loads(done.stdout)
    return answer
