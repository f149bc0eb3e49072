"""The Node scheduler prints the tokens that the Python one gets from the same server."""

from __future__ import annotations

import json
import os
import random
import subprocess
from pathlib import Path
from typing import Any

import pytest
from mlxrt_client import Client, Scheduler

from mlxrt.testing import FakeEngine
from mlxrt.testing.server_process import ServerProcess
from mlxrt.testing.server_thread import ServerThread

REPOSITORY = Path(__file__).resolve().parents[2]
VOCABULARY = 4096


def run_node(folder: Path, address: str, *arguments: str, given: str | None = None) -> Any:
    """Runs the scheduler and returns what it prints, parsed."""
    result = subprocess.run(
        ["node", "scheduler.mjs", address, *arguments],
        cwd=folder,
        env={**os.environ, "MLXRT_PROTOS": str(REPOSITORY / "protos")},
        input=given,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def run_python(address: str, prompts: list[list[int]], tokens_max: int) -> list[list[int]]:
    """Returns the tokens of each prompt, scheduled by the Python client."""
    with Client(address) as client, client.open_session() as session:
        scheduler = Scheduler(session, client.model_info(), client.server_info().limits)
        found: dict[int, list[int]] = {scheduler.add(prompt, tokens_max): [] for prompt in prompts}
        for token in scheduler.run():
            assert token.token_id is not None
            found[token.sequence_id].append(token.token_id)
        return list(found.values())


def random_prompts(count: int, longest: int, vocabulary: int) -> list[list[int]]:
    """Returns random prompts of 1 to `longest` tokens."""
    source = random.Random(4)
    return [
        [source.randrange(vocabulary) for _ in range(source.randint(1, longest))]
        for _ in range(count)
    ]


@pytest.mark.parametrize("windows", [(0,), (0, 8)], ids=["one-group", "two-groups"])
def test_the_same_tokens_from_the_fake_model(node_folder: Path, windows: tuple[int, ...]) -> None:
    # So few blocks and rows that sequences queue and prompts are cut into chunks.
    engine = FakeEngine(block_size=4, num_blocks=60, windows=windows)
    prompts = random_prompts(12, 50, VOCABULARY)
    with ServerThread(engine, limits={"max_step_rows": 32}) as server:
        given = json.dumps({"prompts": prompts, "tokens_max": 10})
        found = run_node(node_folder, server.address, given=given)
        steps_of_node = engine.plans_run
        assert found["tokens"] == run_python(server.address, prompts, 10)
    assert found["inflight_steps_max"] == 2
    assert found["steps"] == steps_of_node


def test_prompts_from_the_command_line_and_a_stop_token(node_folder: Path) -> None:
    engine = FakeEngine()
    with ServerThread(engine) as server:
        found = run_node(node_folder, server.address, "6", "1,2,3", "4")
        assert found["tokens"] == run_python(server.address, [[1, 2, 3], [4]], 6)
        stop = found["tokens"][0][2]
        document = {"prompts": [[1, 2, 3]], "tokens_max": 6, "stop_token_ids": [stop]}
        stopped = run_node(node_folder, server.address, given=json.dumps(document))
    assert stopped["tokens"] == [found["tokens"][0][:3]]


def test_an_error_is_told_and_ends_with_a_failure(node_folder: Path) -> None:
    engine = FakeEngine()
    with ServerThread(engine) as server, pytest.raises(AssertionError, match="4096"):
        run_node(node_folder, server.address, "6", "1,4096")


@pytest.mark.skipif(
    not list((REPOSITORY / "mlxrt" / "bundled").rglob("*.safetensors")),
    reason="the bundled model is not in this source tree",
)
def test_the_same_tokens_from_the_bundled_model(node_folder: Path) -> None:
    prompts = random_prompts(6, 40, 256)
    with ServerProcess(["--model", "bundled", "--num-blocks", "64"]) as server:
        given = json.dumps({"prompts": prompts, "tokens_max": 24})
        found = run_node(node_folder, server.address, given=given)
        assert found["tokens"] == run_python(server.address, prompts, 24)
    assert found["inflight_steps_max"] == 2
