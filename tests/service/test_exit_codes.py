"""Every documented exit code of `mlxrt serve`, provoked in a process of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from mlxrt_client.v1 import session_pb2, step_pb2

from mlxrt.exit_code import ExitCode
from mlxrt.testing.server_process import ServerProcess, waiting_channel

ROOT = Path(__file__).parents[2]
Provoke = Callable[[Path], subprocess.CompletedProcess[str]]

NO_EXTENSION = """
import sys
class Broken:
    def find_spec(self, name, path=None, target=None):
        if name == "mlxrt.kernels._native":
            raise ImportError("undefined symbol: mlx::core::version")
sys.meta_path.insert(0, Broken())
"""
"""A sitecustomize under which the extension can't be loaded, as after an upgrade of MLX alone."""

LOSES_ITS_DEVICE = """
import sys
from mlxrt import launch
from mlxrt.testing import FakeEngine, FakeFaults
launch.make_engine = lambda *_, **__: FakeEngine(
    threaded=True, faults=FakeFaults(lose_ticket=1), block_size=4)
from mlxrt.cli import main
main()
"""


def serve(folder: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`mlxrt serve` until it ends by itself."""
    command = [
        sys.executable, "-P", "-m", "mlxrt", "serve", "--address", f"unix:{folder / 's'}",
        "--set", "metrics_address=off", *options,
    ]  # fmt: skip
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, env={**os.environ, **environment}
    )


def drained(_: Path) -> subprocess.CompletedProcess[str]:
    with ServerProcess(["--fake"]) as server:
        code = server.stop(signal.SIGTERM)
        return subprocess.CompletedProcess([], code, "", server.log)


def without_extension(folder: Path) -> subprocess.CompletedProcess[str]:
    (folder / "sitecustomize.py").write_text(NO_EXTENSION)
    paths = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    return serve(folder, "--attention", "native", PYTHONPATH=paths)


def lost(folder: Path) -> subprocess.CompletedProcess[str]:
    address = f"unix:{folder / 'l'}"
    log = folder / "log"
    arguments = ["serve", "--fake", "--address", address, "--set", "metrics_address=off"]
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", LOSES_ITS_DEVICE, *arguments], stderr=file
        )
    with waiting_channel(address) as channel:
        run = channel.unary_unary("/mlxrt.v1.SessionService/OpenSession")
        request = session_pb2.OpenSessionRequest(request_id="r").SerializeToString()
        answer = run(request, timeout=60, wait_for_ready=True)
        session = session_pb2.OpenSessionResponse.FromString(answer).session
        run = channel.unary_unary("/mlxrt.v1.ExecutionService/Step")
        run(step_pb2.StepRequest(session=session, step_number=1).SerializeToString(), timeout=60)
    return subprocess.CompletedProcess([], process.wait(60), "", log.read_text())


PROVOKED: dict[ExitCode, tuple[Provoke, str]] = {
    ExitCode.OK: (drained, "stopped"),
    ExitCode.CONFIG: (lambda folder: serve(folder, "--fake", "--block-size", "0"), "block_size"),
    ExitCode.MODEL: (
        lambda folder: serve(folder, "--model", str(folder / "absent")), "absent",
    ),
    ExitCode.ABI: (without_extension, "undefined symbol"),
    ExitCode.MEMORY: (
        lambda folder: serve(folder, "--set", "memory_fraction=0.0001"), "more than the limit",
    ),
    ExitCode.DEVICE_LOST: (lost, "DEVICE_LOST"),
}  # fmt: skip
"""How, and what the log must say."""


def test_the_table_is_whole() -> None:
    assert set(PROVOKED) == set(ExitCode)


@pytest.mark.parametrize("code", PROVOKED, ids=lambda code: code.name)
def test_each_code(socket_folder: Path, code: ExitCode) -> None:
    provoke, said = PROVOKED[code]
    done = provoke(socket_folder)
    assert done.returncode == code, done.stderr
    assert said in done.stderr and "Traceback" not in done.stderr
    if code not in (ExitCode.CONFIG, ExitCode.OK):
        assert f'"exit_code": {int(code)}' in done.stderr


def test_the_readme_and_the_help_name_each() -> None:
    texts = [
        (ROOT / "README.md").read_text(),
        subprocess.run(
            [sys.executable, "-P", "-m", "mlxrt", "serve", "--help"],
            capture_output=True, text=True, env={**os.environ, "COLUMNS": "200"},
        ).stdout,
    ]  # fmt: skip
    for text in texts:
        said = re.search(r"[Ee]xit\s+codes[^:]*:(.*?6 device\s+lost)", text, re.S)
        assert said is not None
        assert [int(n) for n in re.findall(r"\b(\d) ", said[1])] == list(ExitCode)
