"""A checkpoint's numbers through mlxrt's engine beside those of mlx-lm alone."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mlxrt.core.step import Item, NewSequence, SampledRow, TokenSource
from mlxrt.testing.local_runner import LocalRunner

PROMPT_TOKENS = 40
GREEDY_TOKENS = 24
CHUNK = 7

TOLERANCE = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 6e-2}
"""Largest difference of logits, relative to the largest logit, by the type of keys and values."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """How far apart the two are.

    Attributes:
        compared: rows of logits compared.
        difference: largest difference of logits, relative to the largest logit of the row.
        tolerance: the difference allowed.
        tokens_equal: greedy tokens that are the same, of `tokens`; one that differs is allowed only
            where mlx-lm's own two best logits are closer than twice the tolerance.
    """

    compared: int
    difference: float
    tolerance: float
    tokens_equal: int
    tokens: int
    excused: int

    @property
    def passed(self) -> bool:
        """Whether all is within the tolerance."""
        return self.difference <= self.tolerance and self.tokens_equal + self.excused == self.tokens


def compare(runner: LocalRunner, folder: Path, dtype: str, blas: str) -> Comparison:
    """Runs the oracle in a process of its own, then feeds its tokens through `runner` in chunks,
    two sequences at once.

    Raises:
        RuntimeError: mlx-lm alone could not run the checkpoint.
        MlxrtError: the engine could not.
    """
    rng = np.random.default_rng(4)
    prompt = rng.integers(0, runner.facts.vocabulary_size, PROMPT_TOKENS).tolist()
    ((tokens, expected),) = run_oracle(folder, dtype, blas, [prompt], GREEDY_TOKENS)
    rows = _teacher_forced(runner, tokens)
    tolerance = TOLERANCE[runner.facts.kv_data_type]
    difference, equal, excused = 0.0, 0, 0
    for position, row in rows:
        assert row.logits is not None
        answered, wanted = np.frombuffer(row.logits, "<f4"), expected[position]
        scale = float(np.abs(wanted).max())
        difference = max(difference, float(np.abs(answered - wanted).max()) / scale)
        best = np.sort(wanted)[-2:]
        if int(answered.argmax()) == int(wanted.argmax()):
            equal += 1
        elif best[1] - best[0] <= 2 * tolerance * scale:
            excused += 1
    return Comparison(len(rows), difference, tolerance, equal, len(rows), excused)


Oracle = list[tuple[list[int], np.ndarray]]
"""For each prompt: the prompt and the greedy tokens after it; logits after each token, [tokens,
vocabulary_size] float32."""


def run_oracle(folder: Path, dtype: str, blas: str, prompts: list[list[int]], count: int) -> Oracle:
    """Runs mlx-lm alone in a process of its own.

    Raises:
        RuntimeError: it could not run the checkpoint.
    """
    with tempfile.TemporaryDirectory(prefix="mlxrt-") as scratch:
        out = Path(scratch, "oracle.npz")
        command = [sys.executable, "-P", "-m", "mlxrt.check.oracle", str(folder), dtype, blas]
        finished = subprocess.run(
            [*command, str(count), str(out)],
            input=json.dumps(prompts), capture_output=True, text=True, check=False,
        )  # fmt: skip
        if finished.returncode != 0:
            raise RuntimeError(f"mlx-lm alone could not run it:\n{finished.stderr[-2000:]}")
        with np.load(out) as arrays:
            return [
                (arrays[f"tokens_{i}"].tolist(), arrays[f"logits_{i}"]) for i in range(len(prompts))
            ]


def _teacher_forced(runner: LocalRunner, tokens: list[int]) -> list[tuple[int, SampledRow]]:
    """Logits after chunks of the tokens and after each of the last ones, through scattered
    blocks."""
    blocks_each = -(-len(tokens) // runner.facts.block_size)
    leased = runner.allocate(2 * blocks_each)
    tables = {1: leased[::2], 2: leased[::-2]}
    runner.run(new_sequences=[NewSequence(i, tokens, {0: tables[i]}) for i in (1, 2)])
    rows = []
    for start, count in _pieces(len(tokens)):
        items = [Item(i, count, source=TokenSource.REGISTERED, return_logits=True) for i in (1, 2)]
        reply = runner.run(items=items)
        rows += [(start + count - 1, item.row) for item in reply.items]
    runner.run(releases=[1, 2])
    return rows


def _pieces(length: int) -> list[tuple[int, int]]:
    """Chunks over the prompt, then single rows."""
    pieces = [(p, min(CHUNK, PROMPT_TOKENS - p)) for p in range(0, PROMPT_TOKENS, CHUNK)]
    return pieces + [(position, 1) for position in range(PROMPT_TOKENS, length)]
