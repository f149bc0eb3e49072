"""Tokens and logits over gRPC are those of mlx-lm alone, which runs unpatched in a process of its
own."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from mlxrt_client import Client, Scheduler, Session, messages
from mlxrt_client.v1 import StepRequest

from mlxrt import bundled
from mlxrt.check.numbers import Oracle, run_oracle
from mlxrt.testing.server_process import ServerProcess

CASES = ["bundled", "qwen3", "llama", "llama_llama3_rope", "qwen3-4bit"]
PROMPTS = 20
NEW_TOKENS = 40
BLOCK_COUNT = 40
BLOCK_SIZE = 4


@pytest.fixture
def folder(request: pytest.FixtureRequest, checkpoint: Callable[..., Path]) -> Path:
    """The checkpoint of a case."""
    name, _, quantised = request.param.partition("-")
    if name == "bundled":
        return bundled.path()
    return checkpoint(name, 4 if quantised else None)


Alone = Callable[[Path, int], Oracle]
"""Of a checkpoint and the size of its vocabulary: what mlx-lm says after each prompt."""


@pytest.fixture(scope="module")
def alone() -> Alone:
    """Runs mlx-lm once for each checkpoint."""

    @cache
    def run(folder: Path, vocabulary_size: int) -> Oracle:
        return run_oracle(folder, "float32", "reference", _prompts(vocabulary_size), NEW_TOKENS)

    return run


def _serve(folder: Path, attention: str) -> ServerProcess:
    """A server over a small pool that starts as NaN, with the wheel's own BLAS."""
    arguments = ["--model", str(folder), "--attention", attention, "--blas", "reference"]
    pool = ["--block-size", str(BLOCK_SIZE), "--num-blocks", str(BLOCK_COUNT + 1), "--poison-pool"]
    return ServerProcess([*arguments, *pool, "--dtype", "float32"])


def _prompts(vocabulary_size: int) -> list[list[int]]:
    rng = random.Random(5)
    return [
        [rng.randrange(vocabulary_size) for _ in range(rng.randint(1, 30))] for _ in range(PROMPTS)
    ]


@pytest.mark.parametrize("attention", ["gather", "native"])
@pytest.mark.parametrize("folder", CASES, indirect=True)
def test_greedy_tokens(folder: Path, attention: str, alone: Alone) -> None:
    with _serve(folder, attention) as server, Client(server.address) as client:
        info, model = client.server_info(), client.model_info()
        assert info.attention_path == attention
        prompts = _prompts(model.vocabulary_size)
        with client.open_session() as session:
            scheduler = Scheduler(session, model, info.limits, step_rows_max=12)
            got = {scheduler.add(prompt, NEW_TOKENS): list(prompt) for prompt in prompts}
            for token in scheduler.run():
                assert token.error is None and token.token_id is not None
                got[token.sequence_id].append(token.token_id)
            scheduler.close()
            assert not session.state().leased_blocks
    done = scheduler.statistics
    assert done.step_count >= 200
    assert done.mixed_step_count >= 20
    assert done.preemption_count >= 3
    assert done.inflight_steps_max == 2
    assert done.blocks_used_max[0] > BLOCK_COUNT * 3 // 4
    expected = alone(folder, model.vocabulary_size)
    assert list(got.values()) == [tokens for tokens, _ in expected]


@pytest.mark.parametrize("attention", ["gather", "native"])
@pytest.mark.parametrize("folder", CASES, indirect=True)
def test_logits(folder: Path, attention: str, alone: Alone) -> None:
    """Teacher-forced in chunks of 5 and then row by row, two sequences in a step, through
    interleaved blocks."""
    with _serve(folder, attention) as server, Client(server.address) as client:
        vocabulary_size = client.model_info().vocabulary_size
        tokens, expected = alone(folder, vocabulary_size)[3]
        with client.open_session() as session:
            rows = _teacher_forced(session, tokens)
    assert len(rows) > 2 * NEW_TOKENS
    tolerance = 0.0 if attention == "gather" else 1e-4
    for position, row in rows:
        difference = np.abs(row - expected[position]).max()
        assert difference <= tolerance * np.abs(expected[position]).max()


def _teacher_forced(session: Session, tokens: list[int]) -> list[tuple[int, np.ndarray]]:
    blocks_each = -(-len(tokens) // BLOCK_SIZE)
    leased = session.allocate_blocks({0: 2 * blocks_each})[0]
    tables = {1: leased[::2], 2: leased[::-2]}
    new = [messages.new_sequence(i, tokens, {0: table}) for i, table in tables.items()]
    session.step(StepRequest(new_sequences=new))
    rows = []
    chunks = [(p, 5) for p in range(0, 10, 5)] + [(p, 1) for p in range(10, len(tokens))]
    for start, count in chunks:
        step = StepRequest()
        for sequence_id in tables:
            step.items.append(messages.chunk_item(sequence_id, count, sample=False))
            step.items[-1].return_logits = True
        for result in session.step(step).results:
            assert result.position == start + count
            rows.append((start + count - 1, np.frombuffer(result.logits.data, "<f4")))
    return rows
