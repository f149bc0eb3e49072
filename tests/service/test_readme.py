"""The README's commands are run: by CI (the quick start) or here (everything else)."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from mlxrt.testing.server_process import ServerProcess

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
SOCKET = "unix:/tmp/mlxrt.sock"


def _blocks(language: str, section: str | None = None) -> list[str]:
    text = README
    if section is not None:
        text = re.split(r"^## ", README.split(f"\n## {section}\n")[1], flags=re.MULTILINE)[0]
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def test_the_quick_start_is_two_blocks_that_ci_runs() -> None:
    blocks = _blocks("bash", "Quick start")
    assert len(blocks) == 2
    assert "mlxrt demo" in blocks[0] and "pytest" in blocks[1]
    printed = subprocess.run(
        ["bash", "-c", f"{_function_of_ci()}; quick_start_block 1; quick_start_block 2"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert printed.stdout == "".join(blocks)


def _function_of_ci() -> str:
    script = ROOT / ".ci" / "run"
    if not script.exists():
        pytest.skip("this copy of the repository has no .ci folder")
    found = re.search(r"^quick_start_block\(\) \{.*?^\}", script.read_text(), re.M | re.S)
    assert found is not None
    return found.group()


def test_every_other_command_is_known_here() -> None:
    others = [b for b in _blocks("bash") if b not in _blocks("bash", "Quick start")]
    (served,) = _blocks("bash", "Write a scheduler against it")
    (printed,) = _blocks("bash", "Operations")
    assert others == [served, printed]
    assert served == f".venv/bin/mlxrt serve --fake --address {SOCKET}\n"


def test_the_files_of_the_readme_are_printed(tmp_path: Path) -> None:
    (commands,) = _blocks("bash", "Operations")
    program = shlex.join([sys.executable, "-P", "-m", "mlxrt"])
    script = commands.replace(".venv/bin/mlxrt", program)
    subprocess.run(["bash", "-eu", "-c", script], cwd=tmp_path, check=True, timeout=120)
    written = {path.name for path in tmp_path.iterdir() if path.stat().st_size > 500}
    assert written == set(re.findall(r"> (\S+)$", commands, flags=re.MULTILINE))
    assert len(written) == 5


def test_the_scheduler_of_the_readme_runs() -> None:
    (served,) = _blocks("bash", "Write a scheduler against it")
    (program,) = _blocks("python", "Write a scheduler against it")
    arguments = shlex.split(served)[2:]
    assert arguments == ["--fake", "--address", SOCKET]
    with ServerProcess(["--fake"]) as server:
        finished = subprocess.run(
            [sys.executable, "-P", "-c", program.replace(SOCKET, server.address)],
            capture_output=True, text=True, check=True, timeout=60,
        )  # fmt: skip
    tokens = [int(token) for token in finished.stdout.split()]
    assert tokens[0] == _fake_token([11, 12, 13])
    assert tokens[1] == _fake_token([11, 12, 13, tokens[0]])


def _fake_token(tokens: list[int]) -> int:
    from mlxrt.testing.fake_engine import FakeEngine

    return FakeEngine().expected_token(tokens)


def test_the_commands_of_the_table_exist() -> None:
    section = README.split("\n## Commands\n")[1].split("\n## ")[0]
    commands = re.findall(r"^\| `mlxrt ([a-z -]+)` \|", section, flags=re.MULTILINE)
    assert "bench step" in commands and "serve" in commands
    for command in commands:
        words = command.split()
        arguments = words if command == "--version" else [*words, "--help"]
        done = subprocess.run(
            [sys.executable, "-P", "-m", "mlxrt", *arguments], capture_output=True, text=True,
            check=False, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
