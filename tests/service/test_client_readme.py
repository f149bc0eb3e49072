"""The examples in the client's README run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mlxrt.testing import FakeEngine
from mlxrt.testing.server_thread import ServerThread

README = Path(__file__).resolve().parents[2] / "clients" / "python" / "README.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


def run(example: str, engine: FakeEngine) -> None:
    """Runs an example against a server of its own."""
    with ServerThread(engine) as server:
        source = example.replace("127.0.0.1:50061", server.address)
        assert source != example
        exec(compile(source, "README.md", "exec"), {})


def test_there_are_three() -> None:
    assert len(EXAMPLES) == 3


def test_the_scheduler(capsys: pytest.CaptureFixture[str]) -> None:
    engine = FakeEngine()
    run(EXAMPLES[0], engine)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    tokens = {
        name: [int(line[1]) for line in lines if line and line[0] == name] for name in ("1", "2")
    }
    for name, prompt in (("1", [11, 12, 13]), ("2", [21, 22])):
        known = list(prompt)
        for _ in range(8):
            known.append(engine.expected_token(known))
        assert tokens[name] == known[len(prompt) :]


def test_own_steps(capsys: pytest.CaptureFixture[str]) -> None:
    engine = FakeEngine()
    run(EXAMPLES[1], engine)
    first = engine.expected_token([11, 12, 13])
    second = engine.expected_token([11, 12, 13, first])
    assert f"{first} {second}" in capsys.readouterr().out


def test_errors(capsys: pytest.CaptureFixture[str]) -> None:
    run(EXAMPLES[2], FakeEngine(num_blocks=10))
    assert "NO_FREE_BLOCKS 9 " in capsys.readouterr().out
